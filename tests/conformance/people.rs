//! What people ask of tasks: reading, cancelling, retrying.

use millrace_core::{id::TaskId, retry::OutcomeKind, task::State};
use millrace_store::{CancelResult, DeleteMode, RetryResult, TaskRow};
use uuid::Uuid;

use crate::world::{DEFAULT, World, completion, hours, request, requeue, secs, sorted};

fn retried(world: &World, task: TaskId, request: Option<Uuid>) -> (RetryResult, bool) {
    let answer = world.retry(task, request).expect("retrying");
    (answer.value, answer.repeated)
}

fn queued_again(world: &World, task: TaskId) -> TaskRow {
    match retried(world, task, None) {
        (RetryResult::Done(row), false) => *row,
        other => panic!("not retried: {other:?}"),
    }
}

pub(crate) fn unknown_tasks_are_not_found(world: &World) {
    let unknown = TaskId(Uuid::now_v7());
    assert_eq!(world.task(unknown).expect("reading"), None);
    assert_eq!(world.attempts(unknown).expect("reading attempts"), []);
    assert_eq!(world.cancel(unknown, "a test", None).expect("cancelling"), CancelResult::NotFound);
    assert_eq!(retried(world, unknown, None), (RetryResult::NotFound, false));
    let page = world.list(&Default::default(), None, 10).expect("listing");
    assert_eq!((page.rows.len(), page.next), (0, None));
}

pub(crate) fn tasks_are_read_together_live_and_finished(world: &World) {
    let worker = world.worker();
    let tasks = [world.queued(), world.held(worker).task, world.finished(State::Succeeded)];
    world.queued();
    let mut asked = tasks.to_vec();
    asked.push(TaskId(Uuid::now_v7()));
    let rows = world.tasks(&asked).expect("reading");
    assert_eq!(sorted(rows.iter().map(|row| row.envelope.id)), sorted(tasks));
    for row in rows {
        assert_eq!(row, world.row(row.envelope.id));
    }
}

pub(crate) fn nothing_is_quarantined_in_a_new_database(world: &World) {
    assert!(!world.is_quarantined(world.queued()).expect("reading"));
    assert_eq!(world.quarantined().expect("counting"), 0);
}

pub(crate) fn attempts_are_listed_oldest_first(world: &World) {
    let task = world.queued();
    let other = world.queued();
    for attempt in 1..=3 {
        let worker = world.worker();
        let lease = world.dispatched(worker, task).lease;
        let mut requeue = requeue(lease, secs(0));
        requeue.outcome.exit_code = Some(attempt);
        world.try_requeue(requeue);
    }
    let lease = world.dispatched(world.worker(), other).lease;
    world.requeued(lease, secs(0));
    let attempts = world.attempts(task).expect("reading attempts");
    let listed: Vec<_> = attempts.iter().map(|attempt| (attempt.attempt, attempt.outcome.exit_code)).collect();
    assert_eq!(listed, [(1, Some(1)), (2, Some(2)), (3, Some(3))]);
    assert!(attempts.is_sorted_by_key(|attempt| attempt.recorded_at_us));
}

pub(crate) fn cancelling_a_waiting_task_ends_it(world: &World) {
    let mut scheduled = world.new_task();
    scheduled.not_before = Some(world.now().after(hours(1)));
    for task in [world.queued(), world.put(scheduled)] {
        let answer = world.cancel(task, "not needed «any» more", None).expect("cancelling");
        let row = world.row(task);
        assert_eq!(answer, CancelResult::Done(Box::new(row.clone())));
        assert_eq!((row.state, row.ready_at_us, row.wake_at_us), (State::Cancelled, None, None));
        let outcome = row.outcome.expect("an outcome");
        assert_eq!((outcome.kind, outcome.message.as_str()), (OutcomeKind::Cancelled, "not needed «any» more"));
        assert!(row.finished_at_us.is_some());
    }
    assert_eq!(world.wake(10).expect("waking"), []);
    assert_eq!(world.lanes(DEFAULT, None, 10).expect("listing lanes"), []);
}

pub(crate) fn cancelling_a_held_task_asks_for_its_end(world: &World) {
    let worker = world.worker();
    let (dispatched, running) = (world.held(worker), world.held(worker));
    world.beat(worker, vec![(running, None)]);
    for lease in [dispatched, running] {
        let answer = world.cancel(lease.task, "a test", None).expect("cancelling");
        let row = world.row(lease.task);
        assert_eq!(answer, CancelResult::Done(Box::new(row.clone())));
        assert_eq!((row.state, row.token, row.session), (State::Cancelling, Some(lease.token), Some(worker.id)));
        assert_eq!((row.finished_at_us, row.outcome), (None, None));
        world.completed(lease, State::Cancelled);
        assert_eq!(world.state(lease.task), State::Cancelled);
    }
}

pub(crate) fn cancelling_twice_changes_nothing(world: &World) {
    let (waiting, held) = (world.queued(), world.held(world.worker()).task);
    for task in [waiting, held] {
        let first = world.cancelled(task);
        let again = world.cancel(task, "another reason", None).expect("cancelling");
        assert_eq!(again, CancelResult::Done(Box::new(first.clone())));
        assert_eq!(world.row(task), first);
    }
}

pub(crate) fn cancelling_a_finished_task_says_so(world: &World) {
    let mut expiring = world.new_task();
    expiring.expire_after = Some(hours(1));
    let expired = world.put(expiring);
    let (succeeded, failed) = (world.finished(State::Succeeded), world.finished(State::Failed));
    world.advance(hours(2));
    world.expire(10).expect("expiring");
    for task in [succeeded, failed, expired] {
        let row = world.row(task);
        let answer = world.cancel(task, "a test", None).expect("cancelling");
        assert_eq!(answer, CancelResult::Finished(Box::new(row.clone())));
        assert_eq!(world.row(task), row);
    }
}

pub(crate) fn r11_a_repeated_cancellation_does_not_cancel_a_retried_task(world: &World) {
    let task = world.queued();
    let key = request();
    assert!(matches!(world.cancel(task, "a test", key).expect("cancelling"), CancelResult::Done(_)));
    queued_again(world, task);
    let repeated = world.cancel(task, "a test", key).expect("cancelling again");
    assert!(matches!(repeated, CancelResult::Done(_)), "{repeated:?}");
    assert_eq!(world.state(task), State::Queued);
    assert!(matches!(world.cancel(task, "a test", request()).expect("cancelling"), CancelResult::Done(_)));
    assert_eq!(world.state(task), State::Cancelled);
}

pub(crate) fn retrying_queues_a_finished_task_with_fresh_budgets(world: &World) {
    let mut task = world.new_task();
    task.not_before = Some(world.now().before(secs(5)));
    let task = world.put(task);
    let lease = world.dispatched(world.worker(), task).lease;
    let mut failed = completion(lease, State::Failed);
    (failed.failures, failed.losses) = (3, 1);
    world.try_complete(failed);
    let before = world.row(task);
    world.advance(secs(1));
    let now = world.now();
    let row = queued_again(world, task);
    assert_eq!(row, world.row(task));
    assert_eq!((&row.envelope, &row.spec), (&before.envelope, &before.spec));
    assert_eq!((row.state, row.attempt, row.failures, row.losses), (State::Queued, 1, 0, 0));
    assert_eq!((row.token, row.session, row.wake_at_us), (None, None, None));
    assert_eq!((row.finished_at_us, row.outcome.clone()), (None, None));
    assert!(row.ready_at_us >= Some(now.0));
    assert_eq!(world.all(), [task]);
    // Its attempts go on counting.
    let lease = world.dispatched(world.worker(), task).lease;
    assert_eq!(lease.attempt, 2);
    let held = world.held_rows(&[lease]).expect("reading");
    assert_eq!((held[0].failures, held[0].losses, held[0].unsupported), (0, 0, 0));
    // And it may be retried once more, also when it was cancelled.
    world.cancelled(task);
    world.completed(lease, State::Cancelled);
    assert_eq!(queued_again(world, task).attempt, 2);
}

pub(crate) fn retrying_keeps_the_attempt_that_was_the_last_word(world: &World) {
    let task = world.queued();
    let lease = world.dispatched(world.worker(), task).lease;
    let mut failed = completion(lease, State::Failed);
    failed.outcome.exit_code = Some(3);
    failed.outcome.output_tail = b"no such file".to_vec();
    world.try_complete(failed.clone());
    queued_again(world, task);
    let attempts = world.attempts(task).expect("reading attempts");
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0].attempt, attempts[0].orchestrator.as_str()), (1, "worker"));
    assert_eq!(attempts[0].outcome, failed.outcome);
    assert!(attempts[0].dispatched_at_us.is_some());
    // A task that was cancelled while it waited had no attempt of its own to keep.
    world.cancelled(task);
    queued_again(world, task);
    assert_eq!(world.attempts(task).expect("reading attempts"), attempts);
}

pub(crate) fn retrying_an_expired_task_lets_it_wait_again(world: &World) {
    let mut task = world.new_task();
    task.expire_after = Some(hours(1));
    let task = world.put(task);
    world.advance(hours(2));
    world.expire(10).expect("expiring");
    let row = queued_again(world, task);
    assert!(row.expires_at_us.is_none_or(|at| at > world.now().0), "it would expire at once");
    assert_eq!(world.expire(10).expect("expiring"), []);
    world.dispatched(world.worker(), task);
}

pub(crate) fn retrying_what_has_not_ended_or_ended_well_is_refused(world: &World) {
    let worker = world.worker();
    let mut scheduled = world.new_task();
    scheduled.not_before = Some(world.now().after(hours(1)));
    let cancelling = world.held(worker).task;
    world.cancelled(cancelling);
    let tasks =
        [world.queued(), world.put(scheduled), world.held(worker).task, cancelling, world.finished(State::Succeeded)];
    for task in tasks {
        let row = world.row(task);
        assert_eq!(retried(world, task, None), (RetryResult::WrongState(Box::new(row.clone())), false));
        assert_eq!(world.row(task), row);
    }
}

pub(crate) fn retrying_into_a_closed_queue_is_refused(world: &World) {
    let (gone, draining) = (world.queue_named("gone"), world.queue_named("draining"));
    let tasks = [&gone, &draining].map(|queue| {
        let task = world.put(world.new_task_in(queue));
        world.cancelled(task);
        task
    });
    world.put(world.new_task_in(&draining));
    for queue in [&gone, &draining] {
        world.delete_queue(queue, &DeleteMode::Drain, None).expect("deleting");
    }
    assert_eq!(retried(world, tasks[0], None), (RetryResult::QueueClosed(gone), false));
    assert_eq!(retried(world, tasks[1], None), (RetryResult::QueueClosed(draining), false));
    assert_eq!((world.state(tasks[0]), world.state(tasks[1])), (State::Cancelled, State::Cancelled));
}

pub(crate) fn r11_a_repeated_retry_says_so(world: &World) {
    let task = world.finished(State::Failed);
    let key = request();
    assert!(matches!(retried(world, task, key), (RetryResult::Done(_), false)));
    let row = world.row(task);
    assert_eq!(retried(world, task, key), (RetryResult::Done(Box::new(row)), true));
    // Also when the task has failed again meanwhile.
    let lease = world.dispatched(world.worker(), task).lease;
    world.completed(lease, State::Failed);
    assert!(matches!(retried(world, task, key), (RetryResult::Done(_), true)));
    assert_eq!(world.state(task), State::Failed);
    assert!(matches!(retried(world, task, request()), (RetryResult::Done(_), false)));
    assert_eq!(world.state(task), State::Queued);
}

pub(crate) fn r11_request_keys_are_looked_up(world: &World) {
    let (submitted, cancelled, retried_key) = (request(), request(), request());
    let mut task = world.new_task();
    task.request = submitted;
    let task = world.put(task);
    world.cancel(task, "a test", cancelled).expect("cancelling");
    retried(world, task, retried_key);
    for key in [submitted, cancelled, retried_key].into_iter().flatten() {
        assert_eq!(world.request(key).expect("reading a key"), Some(task));
    }
    assert_eq!(world.request(Uuid::new_v4()).expect("reading a key"), None);
}
