//! Ending attempts: completions and requeues.

use millrace_core::{held::LeaseRef, id::TaskId, lease::Token, retry::OutcomeKind, task::State, time::Timestamp};
use millrace_store::{Claimed, Completed, Completion, Outcome, Requeue, Requeued};
use uuid::Uuid;

use crate::world::{DEFAULT, World, completion, hours, outcome, requeue, secs, sorted, token};

fn whole_outcome() -> Outcome {
    Outcome {
        kind: OutcomeKind::Failed,
        exit_code: Some(3),
        signal: Some(9),
        message: "exit code 3 – \"that\" 'was' it".into(),
        output_tail: vec![0, 1, 255, 10],
        output_bytes: 5_000_000_000,
        started_at_us: Some(1_700_000_000_000_001),
        ended_at_us: Some(1_700_000_000_000_009),
    }
}

/// Leases that name a held task and are not its own.
fn stale_leases(lease: LeaseRef) -> [LeaseRef; 4] {
    [
        LeaseRef { token: token(), ..lease },
        LeaseRef { attempt: lease.attempt + 1, ..lease },
        LeaseRef { attempt: lease.attempt - 1, ..lease },
        LeaseRef { task: TaskId(Uuid::now_v7()), ..lease },
    ]
}

pub(crate) fn a_completion_ends_the_task(world: &World) {
    let worker = world.worker();
    let before = world.row(world.queued());
    let lease = world.dispatched(worker, before.envelope.id).lease;
    world.beat(worker, vec![(lease, Some(42))]);
    let completion = Completion { lease, state: State::Failed, outcome: whole_outcome(), failures: 2, losses: 1 };
    assert_eq!(world.try_complete(completion), Completed::Recorded);
    let row = world.row(lease.task);
    assert_eq!((&row.envelope, &row.spec), (&before.envelope, &before.spec));
    assert_eq!((row.state, row.attempt, row.token), (State::Failed, 1, Some(lease.token)));
    assert_eq!((row.session, row.orchestrator.as_str()), (Some(worker.id), "worker"));
    assert_eq!((row.failures, row.losses), (2, 1));
    assert_eq!((row.created_at_us, row.ready_at_us, row.wake_at_us), (before.created_at_us, None, None));
    assert_eq!(row.started_at_us, whole_outcome().started_at_us);
    assert_eq!(row.outcome, Some(whole_outcome()));
    assert!(row.finished_at_us >= row.dispatched_at_us && row.finished_at_us <= Some(world.now().0));
    assert_eq!(world.held_by(worker.id).expect("reading what it holds"), []);
    // The last word is not one of the earlier attempts.
    assert_eq!(world.attempts(lease.task).expect("reading attempts"), []);
}

pub(crate) fn a_completion_never_lowers_what_was_spent(world: &World) {
    let worker = world.worker();
    for (said, counted) in [((0, 0), (3, 2)), ((4, 1), (4, 2)), ((1, 5), (3, 5))] {
        let lease = world.held(worker);
        world.try_requeue(Requeue { failures: 3, losses: 2, ..requeue(lease, secs(0)) });
        let lease = world.dispatched(worker, lease.task).lease;
        let (failures, losses) = said;
        world.try_complete(Completion { failures, losses, ..completion(lease, State::Succeeded) });
        let row = world.row(lease.task);
        assert_eq!((row.failures, row.losses), counted, "completed with {said:?}");
    }
}

pub(crate) fn completing_twice_is_recorded_once(world: &World) {
    let lease = world.held(world.worker());
    world.completed(lease, State::Succeeded);
    let first = world.row(lease.task);
    world.completed(lease, State::Succeeded);
    // Even a repeat that says something else: the first outcome is the only one.
    world.completed(lease, State::Failed);
    assert_eq!(world.row(lease.task), first);
    assert_eq!(world.all(), [lease.task]);
}

pub(crate) fn r2_a_stale_completion_changes_nothing(world: &World) {
    let lease = world.held(world.worker());
    let before = world.row(lease.task);
    for stale in stale_leases(lease) {
        assert_eq!(world.try_complete(completion(stale, State::Succeeded)), Completed::Stale);
    }
    assert_eq!(world.row(lease.task), before);
    world.completed(lease, State::Succeeded);
    let before = world.row(lease.task);
    for stale in stale_leases(lease) {
        assert_eq!(world.try_complete(completion(stale, State::Failed)), Completed::Stale);
    }
    assert_eq!(world.row(lease.task), before);
}

pub(crate) fn r2_a_completion_after_a_requeue_is_stale(world: &World) {
    let lease = world.held(world.worker());
    world.requeued(lease, secs(0));
    assert_eq!(world.try_complete(completion(lease, State::Succeeded)), Completed::Stale);
    assert_eq!(world.state(lease.task), State::Queued);
}

pub(crate) fn r2_a_completion_after_a_requeue_and_a_cancellation_is_stale(world: &World) {
    let lease = world.held(world.worker());
    world.requeued(lease, secs(0));
    world.cancelled(lease.task);
    // The row is finished with this attempt's number, and not by this attempt.
    assert_eq!(world.try_complete(completion(lease, State::Succeeded)), Completed::Stale);
    assert_eq!(world.state(lease.task), State::Cancelled);
}

pub(crate) fn r2_a_completion_after_the_next_claim_is_stale(world: &World) {
    let (one, other) = (world.worker(), world.worker());
    let old = world.held(one);
    world.requeued(old, secs(0));
    let new = world.dispatched(other, old.task).lease;
    assert_eq!(world.try_complete(completion(old, State::Succeeded)), Completed::Stale);
    world.completed(new, State::Failed);
    assert_eq!(world.try_complete(completion(old, State::Succeeded)), Completed::Stale);
    assert_eq!(world.state(old.task), State::Failed);
}

pub(crate) fn r15_a_token_of_another_incarnation_is_stale(world: &World) {
    let task = world.queued();
    let mut claim = world.claim_of(world.worker(), DEFAULT, task);
    claim.token = Token::new(7, 12345);
    let Claimed::Won(dispatch) = world.try_claim(&claim) else { panic!("not won") };
    // The same attempt and the same random bits, given before a restore.
    for incarnation in [0, 6, 8, i16::MAX, -1] {
        let lease = LeaseRef { token: Token::new(incarnation, 12345), ..dispatch.lease };
        assert_eq!(world.try_complete(completion(lease, State::Succeeded)), Completed::Stale);
        assert_eq!(world.try_requeue(requeue(lease, secs(0))), Requeued::Stale);
        assert_eq!(world.held_rows(&[lease]).expect("reading"), []);
    }
    world.completed(dispatch.lease, State::Succeeded);
}

pub(crate) fn a_task_that_is_being_cancelled_ends_cancelled_unless_it_succeeded(world: &World) {
    let worker = world.worker();
    for (said, ended) in
        [(State::Cancelled, State::Cancelled), (State::Failed, State::Cancelled), (State::Succeeded, State::Succeeded)]
    {
        let lease = world.held(worker);
        assert_eq!(world.cancelled(lease.task).state, State::Cancelling);
        world.completed(lease, said);
        assert_eq!(world.state(lease.task), ended, "completed as {said}");
        world.completed(lease, said);
    }
}

pub(crate) fn r8_the_same_completion_twice_in_a_batch_and_neighbours(world: &World) {
    let worker = world.worker();
    let mut leases: Vec<LeaseRef> = (0..6).map(|_| world.held(worker)).collect();
    leases.reverse();
    let mut batch: Vec<Completion> = leases.iter().map(|lease| completion(*lease, State::Succeeded)).collect();
    batch[1].lease.token = token();
    batch[4].lease.attempt = 2;
    batch.push(completion(leases[0], State::Succeeded));
    let answers = world.complete(&batch).expect("completing");
    let expected: Vec<Completed> =
        (0..7).map(|index| if [1, 4].contains(&index) { Completed::Stale } else { Completed::Recorded }).collect();
    assert_eq!(answers, expected);
    assert_eq!(world.all().len(), 6);
}

pub(crate) fn r8_text_that_a_database_refuses_never_costs_an_outcome(world: &World) {
    let worker = world.worker();
    let (good, bad, again) = (world.held(worker), world.held(worker), world.held(worker));
    let mut batch = [completion(good, State::Succeeded), completion(bad, State::Failed)];
    batch[1].outcome.message = "no space\0left".into();
    assert_eq!(world.complete(&batch).expect("completing"), [Completed::Recorded; 2]);
    assert_eq!((world.state(good.task), world.state(bad.task)), (State::Succeeded, State::Failed));
    let message = world.row(bad.task).outcome.expect("an outcome").message;
    assert!(message.starts_with("no space") && message.ends_with("left") && !message.contains('\0'), "{message:?}");
    let mut requeue = requeue(again, secs(0));
    requeue.outcome.message = "no space\0left".into();
    let answer = world.try_requeue(requeue);
    assert!(matches!(answer, Requeued::Waiting { .. }), "{answer:?}");
}

pub(crate) fn a_requeue_at_once_queues_the_task_at_the_end(world: &World) {
    let worker = world.worker();
    let first = world.queued();
    let lease = world.dispatched(worker, first).lease;
    world.beat(worker, vec![(lease, Some(42))]);
    let second = world.queued();
    world.advance(secs(1));
    let answer = world.try_requeue(Requeue {
        lease,
        outcome: outcome(OutcomeKind::HandedBack),
        wait: secs(0),
        failures: 3,
        losses: 2,
        unsupported: 1,
    });
    let row = world.row(first);
    assert_eq!(answer, Requeued::Waiting { ready_at_us: row.ready_at_us });
    assert!(row.ready_at_us > world.row(second).ready_at_us, "it stands behind what came while it ran");
    assert_eq!((row.state, row.attempt, row.token, row.session), (State::Queued, 1, None, None));
    assert_eq!((row.failures, row.losses, row.wake_at_us), (3, 2, None));
    assert_eq!((row.finished_at_us, row.outcome), (None, None));
    assert_eq!(world.held_by(worker.id).expect("reading what it holds"), []);
    // What was spent is what the next end of an attempt starts from.
    let lease = world.dispatched(worker, first).lease;
    let held = world.held_rows(&[lease]).expect("reading");
    assert_eq!((held[0].failures, held[0].losses, held[0].unsupported), (3, 2, 1));
    assert_eq!(world.row(first).started_at_us, None, "the new attempt has not started");
}

pub(crate) fn a_requeue_with_a_wait_schedules_the_task(world: &World) {
    let lease = world.held(world.worker());
    let before = world.now();
    assert_eq!(world.try_requeue(requeue(lease, hours(1))), Requeued::Waiting { ready_at_us: None });
    let row = world.row(lease.task);
    assert_eq!((row.state, row.session, row.ready_at_us), (State::Scheduled, None, None));
    let wake_at = Timestamp(row.wake_at_us.expect("a moment to wake"));
    assert!(wake_at >= before.after(hours(1)) && wake_at <= world.now().after(hours(1)));
    assert_eq!(world.wake(10).expect("waking"), []);
    world.advance(hours(2));
    assert_eq!(world.wake(10).expect("waking").len(), 1);
    assert_eq!(world.dispatched(world.worker(), lease.task).lease.attempt, 2);
}

pub(crate) fn a_requeue_keeps_the_attempt(world: &World) {
    let worker = world.worker();
    let task = world.queued();
    let dispatch = world.dispatched(worker, task);
    let before = world.now();
    let requeue = Requeue { outcome: whole_outcome(), ..requeue(dispatch.lease, secs(0)) };
    world.try_requeue(requeue);
    let attempts = world.attempts(task).expect("reading attempts");
    assert_eq!(attempts.len(), 1);
    let attempt = &attempts[0];
    assert_eq!((attempt.attempt, attempt.orchestrator.as_str()), (1, "worker"));
    assert_eq!(attempt.dispatched_at_us, Some(dispatch.dispatched_at_us));
    assert!(attempt.recorded_at_us >= before.0 && attempt.recorded_at_us <= world.now().0);
    assert_eq!(attempt.outcome, whole_outcome());
}

pub(crate) fn r1_a_repeated_requeue_changes_nothing(world: &World) {
    let worker = world.worker();
    let lease = world.held(worker);
    world.requeued(lease, secs(0));
    let before = world.row(lease.task);
    let answer = world.try_requeue(requeue(lease, hours(1)));
    assert!(matches!(answer, Requeued::Waiting { .. }), "{answer:?}");
    assert_eq!(world.row(lease.task), before);
    // The same after the task went on to another orchestrator, and after it has ended.
    let next = world.dispatched(worker, lease.task).lease;
    let before = world.row(lease.task);
    let answer = world.try_requeue(requeue(lease, secs(0)));
    assert!(matches!(answer, Requeued::Waiting { .. }), "{answer:?}");
    assert_eq!(world.row(lease.task), before);
    world.completed(next, State::Succeeded);
    let answer = world.try_requeue(requeue(lease, secs(0)));
    assert!(matches!(answer, Requeued::Waiting { .. }), "{answer:?}");
    assert_eq!(world.state(lease.task), State::Succeeded);
    assert_eq!(world.attempts(lease.task).expect("reading attempts").len(), 1);
}

pub(crate) fn a_requeue_of_a_task_that_is_being_cancelled_changes_nothing(world: &World) {
    let worker = world.worker();
    let (cancelling, neighbour) = (world.held(worker), world.held(worker));
    let before = world.cancelled(cancelling.task);
    let answers = world.requeue(&[requeue(cancelling, secs(0)), requeue(neighbour, secs(0))]).expect("requeueing");
    assert_eq!(answers[0], Requeued::Cancelling);
    assert!(matches!(answers[1], Requeued::Waiting { .. }), "{answers:?}");
    assert_eq!(world.row(cancelling.task), before);
    assert_eq!(world.attempts(cancelling.task).expect("reading attempts"), []);
}

pub(crate) fn r2_a_stale_requeue_changes_nothing(world: &World) {
    let worker = world.worker();
    let lease = world.held(worker);
    let before = world.row(lease.task);
    for stale in stale_leases(lease) {
        assert_eq!(world.try_requeue(requeue(stale, secs(0))), Requeued::Stale);
    }
    assert_eq!(world.row(lease.task), before);
    world.completed(lease, State::Failed);
    let before = world.row(lease.task);
    assert_eq!(world.try_requeue(requeue(lease, secs(0))), Requeued::Stale);
    assert_eq!(world.row(lease.task), before);
    assert_eq!(world.attempts(lease.task).expect("reading attempts"), []);
}

pub(crate) fn held_rows_reads_what_is_still_held_with_the_lease(world: &World) {
    let worker = world.worker();
    let mut task = world.new_task();
    task.envelope.tenant = "acme".into();
    task.envelope.rank = 5;
    task.spec = vec![9, 0, 9];
    task.expire_after = Some(hours(1));
    let dispatched = world.dispatched(worker, world.put(task.clone())).lease;
    let running = world.held(worker);
    world.beat(worker, vec![(running, None)]);
    let cancelling = world.held(worker);
    world.cancelled(cancelling.task);
    let (requeued, finished) = (world.held(worker), world.held(worker));
    world.requeued(requeued, secs(0));
    world.completed(finished, State::Failed);
    let mut asked = vec![dispatched, running, cancelling, requeued, finished];
    asked.extend(stale_leases(dispatched));
    let rows = world.held_rows(&asked).expect("reading");
    assert_eq!(sorted(rows.iter().map(|row| row.lease)), sorted([dispatched, running, cancelling]));
    let state = |lease: LeaseRef| rows.iter().find(|row| row.lease == lease).map(|row| row.state);
    assert_eq!(state(dispatched), Some(State::Dispatched));
    assert_eq!(state(running), Some(State::Running));
    assert_eq!(state(cancelling), Some(State::Cancelling));
    let row = rows.iter().find(|row| row.lease == dispatched).expect("the row");
    assert_eq!((row.session, row.queue.as_str(), row.tenant.as_str(), row.rank), (worker.id, DEFAULT, "acme", 5));
    assert_eq!((&row.spec, row.min_reader), (&task.spec, task.envelope.min_reader));
    assert_eq!(row.expires_at_us, world.row(dispatched.task).expires_at_us);
    assert_eq!((row.failures, row.losses, row.unsupported), (0, 0, 0));
}
