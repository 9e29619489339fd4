//! Storing tasks.

use millrace_core::{id::TaskId, route::Route, task::State, time::Timestamp};
use millrace_store::{DeleteMode, DeleteResult, NewTask, RouteResult, Submitted};
use uuid::Uuid;

use crate::world::{DEFAULT, World, hours, request, secs};

fn is_stored(answer: &Submitted) -> bool {
    matches!(answer, Submitted::Stored { .. })
}

fn created_at(answer: &Submitted) -> i64 {
    match answer {
        Submitted::Stored { created_at_us, .. } => *created_at_us,
        other => panic!("not stored: {other:?}"),
    }
}

/// Submits one task and returns what became of it.
fn submit_one(world: &World, task: &NewTask) -> Submitted {
    let mut answers = world.submit(std::slice::from_ref(task), false).expect("submitting");
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

/// Raises the version of the routes without changing where tasks go.
fn change_routes(world: &World) {
    let route = Route {
        name: "other".into(),
        order: 1,
        executor: "other".into(),
        resource_class: String::new(),
        tenant: String::new(),
        labels: Default::default(),
        queue: DEFAULT.into(),
    };
    assert_eq!(world.set_route(&route, None).expect("setting a route"), RouteResult::Done);
}

pub(crate) fn a_task_reads_back_as_it_was_submitted(world: &World) {
    let mut task = world.new_task();
    task.envelope.tenant = "acme".into();
    task.envelope.rank = -1000;
    task.envelope.executor = "docker".into();
    task.envelope.resource_class = "gpu.large".into();
    task.envelope.concurrency_key = "ключ 'with' \"quotes\" \\ %".into();
    task.envelope.exclusive = true;
    task.envelope.timeout_ms = Some(90_000);
    task.envelope.trace_context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into();
    task.spec = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let answer = submit_one(world, &task);
    let row = world.row(task.envelope.id);
    assert_eq!(row.envelope, task.envelope);
    assert!(row.spec == task.spec, "the spec is not what was submitted");
    assert_eq!(
        answer,
        Submitted::Stored {
            created_at_us: row.created_at_us,
            state: State::Queued,
            ready_at_us: row.ready_at_us,
            expires_at_us: None
        }
    );
    assert_eq!((row.state, row.attempt, row.token, row.session), (State::Queued, 0, None, None));
    assert_eq!((row.failures, row.losses, row.orchestrator.as_str()), (0, 0, ""));
    assert!(row.ready_at_us >= Some(row.created_at_us));
    assert_eq!((row.wake_at_us, row.expires_at_us, row.dispatched_at_us), (None, None, None));
    assert_eq!((row.started_at_us, row.finished_at_us, row.outcome), (None, None, None));
}

pub(crate) fn a_task_without_a_moment_or_with_a_past_one_is_queued(world: &World) {
    let mut task = world.new_task();
    task.not_before = Some(world.now().before(secs(1)));
    let answer = submit_one(world, &task);
    assert!(matches!(answer, Submitted::Stored { state: State::Queued, ready_at_us: Some(_), .. }), "{answer:?}");
    let row = world.row(task.envelope.id);
    assert_eq!((row.state, row.wake_at_us), (State::Queued, None));
    // The moment that it waited for is not when it joined.
    assert!(row.ready_at_us >= Some(row.created_at_us));
}

pub(crate) fn a_task_waits_for_its_moment(world: &World) {
    let mut task = world.new_task();
    let moment = world.now().after(hours(1));
    task.not_before = Some(moment);
    let answer = submit_one(world, &task);
    assert!(matches!(answer, Submitted::Stored { state: State::Scheduled, ready_at_us: None, .. }), "{answer:?}");
    let row = world.row(task.envelope.id);
    assert_eq!((row.state, row.wake_at_us, row.ready_at_us), (State::Scheduled, Some(moment.0), None));
}

pub(crate) fn a_deadline_counts_from_the_submission(world: &World) {
    let mut waiting = world.new_task();
    waiting.expire_after = Some(hours(2));
    let mut scheduled = waiting.clone();
    scheduled.envelope.id = TaskId(Uuid::now_v7());
    scheduled.not_before = Some(world.now().after(hours(1)));
    for task in [waiting, scheduled] {
        let Submitted::Stored { created_at_us, expires_at_us, .. } = submit_one(world, &task) else {
            panic!("not stored");
        };
        assert_eq!(expires_at_us, Some(Timestamp(created_at_us).after(hours(2)).0));
        assert_eq!(world.row(task.envelope.id).expires_at_us, expires_at_us);
    }
}

pub(crate) fn answers_come_in_the_order_of_the_batch(world: &World) {
    let mut batch: Vec<NewTask> = (0..20).map(|_| world.new_task()).collect();
    // Rows are locked in the order of their ids, which is not that of the batch.
    batch.reverse();
    batch[3].envelope.queue = "nowhere".into();
    batch[7].envelope.tenant = "nul\0byte".into();
    batch[11].route_version += 1;
    batch[15].expire_after = Some(hours(1));
    let answers = world.submit(&batch, false).expect("submitting");
    assert_eq!(answers.len(), batch.len());
    for (index, answer) in answers.iter().enumerate() {
        match index {
            3 => assert_eq!(*answer, Submitted::QueueClosed),
            7 => assert!(matches!(answer, Submitted::Refused(_)), "{answer:?}"),
            11 => assert_eq!(*answer, Submitted::RoutesChanged),
            15 => assert!(matches!(answer, Submitted::Stored { expires_at_us: Some(_), .. }), "{answer:?}"),
            _ => assert!(matches!(answer, Submitted::Stored { expires_at_us: None, .. }), "{index}: {answer:?}"),
        }
    }
    for (index, task) in batch.iter().enumerate() {
        let stored = world.task(task.envelope.id).expect("reading").is_some();
        assert_eq!(stored, ![3, 7, 11].contains(&index), "task {index}");
    }
}

pub(crate) fn empty_batches_are_answered(world: &World) {
    assert_eq!(world.submit(&[], false).expect("submitting nothing"), []);
    assert_eq!(world.submit(&[], true).expect("submitting nothing again"), []);
    assert_eq!(world.claim(&[]).expect("claiming nothing"), []);
    assert_eq!(world.complete(&[]).expect("completing nothing"), []);
    assert_eq!(world.requeue(&[]).expect("requeueing nothing"), []);
    assert_eq!(world.heartbeat(&[]).expect("no heartbeat"), []);
    assert_eq!(world.held_rows(&[]).expect("reading nothing"), []);
    assert_eq!(world.tasks(&[]).expect("reading nothing"), []);
    assert_eq!(world.renew_queues(crate::world::member(), &[], 1000).expect("renewing nothing"), [""; 0]);
    world.release_queues(crate::world::member(), &[]).expect("releasing nothing");
}

/// Puts bad items among good ones and checks that exactly they are refused, and nothing of them is stored.
fn refused_alone(world: &World, bad: Vec<NewTask>) {
    let mut batch = Vec::new();
    for task in &bad {
        batch.push(world.new_task());
        batch.push(task.clone());
    }
    // A pair of neighbours at the end, where bisecting meets two at once.
    batch.push(NewTask {
        envelope: millrace_store::Envelope { id: TaskId(Uuid::now_v7()), ..bad[0].envelope.clone() },
        request: request(),
        ..bad[0].clone()
    });
    let is_bad = |index: usize| index % 2 == 1 || index == batch.len() - 1;
    let answers = world.submit(&batch, false).expect("a batch with bad items is answered");
    for (index, (task, answer)) in batch.iter().zip(&answers).enumerate() {
        let refused = matches!(answer, Submitted::Refused(words) if !words.is_empty());
        assert_eq!(refused, is_bad(index), "item {index}: {answer:?}");
        assert_eq!(is_stored(answer), !is_bad(index), "item {index}: {answer:?}");
        assert_eq!(world.task(task.envelope.id).expect("reading").is_some(), !is_bad(index), "item {index}");
        if let Some(key) = task.request {
            assert_eq!(world.request(key).expect("reading a key").is_some(), !is_bad(index), "item {index}");
        }
    }
}

pub(crate) fn r8_one_bad_submission_fails_alone(world: &World) {
    let with = |change: fn(&mut NewTask)| {
        let mut task = world.new_task();
        task.request = request();
        change(&mut task);
        task
    };
    refused_alone(
        world,
        vec![
            with(|task| task.envelope.tenant = "a\0b".into()),
            with(|task| task.envelope.executor = "\0".into()),
            with(|task| task.envelope.resource_class = "small\0".into()),
            with(|task| task.envelope.concurrency_key = "\0key".into()),
            with(|task| task.envelope.trace_context = "00\0".into()),
        ],
    );
}

pub(crate) fn r8_a_value_that_is_too_long_fails_alone(world: &World) {
    // Digits that do not repeat, so that no compression makes them fit.
    let long: String = (0..5000).map(|_| Uuid::new_v4().simple().to_string()).collect();
    let with = |change: fn(&mut NewTask, &str)| {
        let mut task = world.new_task();
        change(&mut task, &long);
        task
    };
    refused_alone(
        world,
        vec![
            with(|task, long| task.envelope.tenant = long.into()),
            with(|task, long| task.envelope.executor = long.into()),
            with(|task, long| task.envelope.resource_class = long.into()),
            with(|task, long| task.envelope.concurrency_key = long.into()),
        ],
    );
}

pub(crate) fn r8_a_repeated_batch_after_an_unknown_commit_stores_nothing_twice(world: &World) {
    let mut batch: Vec<NewTask> = (0..8).map(|_| world.new_task()).collect();
    for task in &mut batch {
        task.request = request();
    }
    let first = world.submit(&batch, false).expect("submitting");
    // Between the commit and the repeat, one task is claimed, one ends, and one is cancelled.
    let worker = world.worker();
    world.dispatched(worker, batch[1].envelope.id);
    let lease = world.dispatched(worker, batch[2].envelope.id).lease;
    world.completed(lease, State::Succeeded);
    world.cancelled(batch[3].envelope.id);
    let second = world.submit(&batch, true).expect("submitting again");
    for (index, (first, second)) in first.iter().zip(&second).enumerate() {
        assert_eq!(created_at(first), created_at(second), "task {index}");
    }
    assert_eq!(world.all().len(), batch.len());
    assert_eq!(world.state(batch[1].envelope.id), State::Dispatched);
    assert_eq!(world.state(batch[2].envelope.id), State::Succeeded);
    assert_eq!(world.state(batch[3].envelope.id), State::Cancelled);
}

pub(crate) fn r8_a_batch_of_which_a_part_was_stored_is_completed_by_its_repeat(world: &World) {
    let batch: Vec<NewTask> = (0..5).map(|_| world.new_task()).collect();
    world.submit(&batch[1..3], false).expect("submitting a part");
    change_routes(world);
    let answers = world.submit(&batch, true).expect("submitting all");
    // What was stored stays so although the routes have changed since; the rest goes by the rules of now.
    for (index, answer) in answers.iter().enumerate() {
        match index {
            1 | 2 => assert!(is_stored(answer), "task {index}: {answer:?}"),
            _ => assert_eq!(*answer, Submitted::RoutesChanged, "task {index}"),
        }
    }
    let version = world.route_version();
    let batch: Vec<NewTask> = batch.into_iter().map(|task| NewTask { route_version: version, ..task }).collect();
    let answers = world.submit(&batch, true).expect("submitting all");
    assert!(answers.iter().all(is_stored), "{answers:?}");
    assert_eq!(world.all().len(), batch.len());
}

pub(crate) fn r11_a_request_key_stores_one_task(world: &World) {
    let mut first = world.new_task();
    first.request = request();
    let mut second = world.new_task();
    second.request = first.request;
    let mut third = world.new_task();
    third.request = request();
    assert!(is_stored(&submit_one(world, &first)));
    assert_eq!(submit_one(world, &second), Submitted::Existing(first.envelope.id));
    assert!(is_stored(&submit_one(world, &third)));
    // The same holds once the task has ended.
    world.cancelled(first.envelope.id);
    let answers = world.submit(&[second.clone(), world.new_task()], false).expect("submitting");
    assert_eq!(answers[0], Submitted::Existing(first.envelope.id));
    assert!(is_stored(&answers[1]));
    assert_eq!(world.task(second.envelope.id).expect("reading"), None);
}

pub(crate) fn r11_a_request_key_twice_in_one_batch_stores_one_task(world: &World) {
    let mut first = world.new_task();
    first.request = request();
    let mut second = world.new_task();
    second.request = first.request;
    let batch = [first, world.new_task(), second];
    let answers = world.submit(&batch, false).expect("submitting");
    assert!(is_stored(&answers[1]), "{answers:?}");
    let (stored, existing) = match is_stored(&answers[0]) {
        true => (&batch[0], &answers[2]),
        false => (&batch[2], &answers[0]),
    };
    assert_eq!(*existing, Submitted::Existing(stored.envelope.id));
    assert_eq!(world.all().len(), 2);
    let key = stored.request.expect("a key");
    assert_eq!(world.request(key).expect("reading a key"), Some(stored.envelope.id));
}

pub(crate) fn r11_a_request_key_answers_although_the_queue_has_closed(world: &World) {
    let queue = world.queue_named("closing");
    let mut first = world.new_task_in(&queue);
    first.request = request();
    assert!(is_stored(&submit_one(world, &first)));
    let deleted = world.delete_queue(&queue, &DeleteMode::Drain, None).expect("deleting");
    assert!(matches!(deleted, DeleteResult::Draining(_)), "{deleted:?}");
    change_routes(world);
    let mut second = first.clone();
    second.envelope.id = TaskId(Uuid::now_v7());
    assert_eq!(submit_one(world, &second), Submitted::Existing(first.envelope.id));
}

pub(crate) fn r11_a_refused_submission_does_not_spend_its_key(world: &World) {
    let mut task = world.new_task_in("not-yet");
    task.request = request();
    assert_eq!(submit_one(world, &task), Submitted::QueueClosed);
    task.route_version += 1;
    task.envelope.queue = DEFAULT.into();
    assert_eq!(submit_one(world, &task), Submitted::RoutesChanged);
    assert_eq!(world.request(task.request.expect("a key")).expect("reading a key"), None);
    task.route_version = world.route_version();
    assert!(is_stored(&submit_one(world, &task)));
    assert_eq!(world.request(task.request.expect("a key")).expect("reading a key"), Some(task.envelope.id));
}

pub(crate) fn a_closed_queue_takes_nothing(world: &World) {
    let queue = world.queue_named("closing");
    world.put(world.new_task_in(&queue));
    world.delete_queue(&queue, &DeleteMode::Drain, None).expect("deleting");
    let batch = [world.new_task_in(&queue), world.new_task(), world.new_task_in("nowhere")];
    let answers = world.submit(&batch, false).expect("submitting");
    assert_eq!(answers[0], Submitted::QueueClosed);
    assert!(is_stored(&answers[1]));
    assert_eq!(answers[2], Submitted::QueueClosed);
    assert_eq!(world.all().len(), 2);
}

pub(crate) fn a_submission_routed_by_old_routes_is_sent_back(world: &World) {
    let stale = world.new_task();
    change_routes(world);
    let fresh = world.new_task();
    assert!(fresh.route_version > stale.route_version);
    let answers = world.submit(&[stale.clone(), fresh], false).expect("submitting");
    assert_eq!(answers[0], Submitted::RoutesChanged);
    assert!(is_stored(&answers[1]));
    assert_eq!(world.task(stale.envelope.id).expect("reading"), None);
}
