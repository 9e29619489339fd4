//! Whole lives of tasks, through every call that searches.

use millrace_core::{READER_RANGE, held::LeaseRef, id::TaskId, task::State, time::Timestamp};
use millrace_store::{
    Audit, CancelResult, DeleteMode, DeleteResult, Examined, Idempotent, LaneKey, ListFilter, MemberKind, MemberRow,
    QuarantineFilter, QueueChange, Released, Requeued, Resumed, RetryResult, RouteResult, Submitted,
};
use uuid::Uuid;

use crate::world::{
    DEFAULT, RULE, Worker, World, completion, hours, member, new_session, queue_row, request, requeue, secs, sorted,
};

fn audit() -> Audit {
    Audit { action: "a test".into(), subject: "types".into(), detail: String::new() }
}

/// Tasks in every part of their lives, on which a change of a type comes.
pub(super) struct Scene {
    pub(super) queued: TaskId,
    scheduled: TaskId,
    expiring: TaskId,
    dispatched: LeaseRef,
    running: LeaseRef,
    cancelling: LeaseRef,
    failed: TaskId,
    worker: Worker,
}

impl Scene {
    pub(super) fn set(world: &World) -> Self {
        let worker = world.worker();
        let scene = Self {
            queued: world.queued(),
            scheduled: scheduled(world),
            expiring: expiring(world),
            dispatched: world.held(worker),
            running: world.held(worker),
            cancelling: world.held(worker),
            failed: world.finished(State::Failed),
            worker,
        };
        assert!(world.beat(worker, vec![(scene.running, Some(7))]).0);
        world.cancelled(scene.cancelling.task);
        scene
    }

    /// Brings every one of them to its end.
    pub(super) fn finish(self, world: &World) {
        let Self { queued, scheduled, expiring, dispatched, running, cancelling, failed, worker } = self;
        let (renewed, stop) = world.beat(worker, vec![(dispatched, Some(8))]);
        assert_eq!((renewed, stop), (true, vec![cancelling]));
        assert_eq!([dispatched, running].map(|lease| world.state(lease.task)), [State::Running; 2]);
        let held = sorted(world.held_by(worker.id).expect("reading what it holds").iter().map(|one| one.lease));
        assert_eq!(held, sorted([dispatched, running, cancelling]));
        assert_eq!(world.held_rows(&held).expect("reading").len(), 3);
        world.completed(dispatched, State::Succeeded);
        // The answer was lost.
        world.completed(dispatched, State::Succeeded);
        world.completed(cancelling, State::Failed);
        assert_eq!(world.state(cancelling.task), State::Cancelled);
        world.requeued(running, secs(0));
        let again = match world.try_requeue(requeue(running, secs(0))) {
            Requeued::Waiting { ready_at_us } => ready_at_us,
            other => panic!("a repeated requeue: {other:?}"),
        };
        assert!(again.is_some());
        assert_eq!(world.attempts(running.task).expect("reading attempts").len(), 1);
        let fed = fed(world);
        assert!(fed.contains(&queued) && fed.contains(&running.task), "{fed:?}");
        for task in [queued, running.task] {
            world.completed(world.dispatched(worker, task).lease, State::Succeeded);
            assert_eq!(world.state(task), State::Succeeded);
        }
        woken(world, scheduled);
        world.completed(world.dispatched(worker, scheduled).lease, State::Succeeded);
        expired(world, expiring);
        retried(world, failed);
        world.completed(world.dispatched(worker, failed).lease, State::Failed);
        assert!(world.close_session(worker.id, Some(worker.generation)).expect("closing"));
    }
}

fn scheduled(world: &World) -> TaskId {
    let mut task = world.new_task();
    task.not_before = Some(world.now().after(hours(1)));
    world.put(task)
}

fn expiring(world: &World) -> TaskId {
    let mut task = world.new_task();
    task.expire_after = Some(hours(1));
    task.envelope.timeout_ms = Some(5000);
    task.envelope.exclusive = true;
    world.put(task)
}

/// Sets a column of a task to a moment long past, whatever the column's type is.
fn past(world: &World, task: TaskId, column: &str) {
    world.sql(&format!("UPDATE tasks SET {column} = '1' WHERE id::text LIKE '%{task}%'"));
}

fn woken(world: &World, task: TaskId) {
    assert_eq!(world.wake(10).expect("waking"), []);
    past(world, task, "wake_at_us");
    let woken = world.wake(10).expect("waking");
    assert!(woken.iter().any(|(queue, row)| queue == DEFAULT && row.id == task), "{woken:?}");
    assert_eq!(world.state(task), State::Queued);
}

fn expired(world: &World, task: TaskId) {
    assert_eq!(world.expire(10).expect("expiring"), []);
    past(world, task, "expires_at_us");
    assert_eq!(world.expire(10).expect("expiring"), [task]);
    let row = world.row(task);
    assert_eq!((row.state, row.envelope.timeout_ms, row.envelope.exclusive), (State::Expired, Some(5000), true));
}

fn retried(world: &World, task: TaskId) {
    let key = request();
    match world.retry(task, key).expect("retrying") {
        Idempotent { value: RetryResult::Done(row), repeated: false } => assert_eq!(row.state, State::Queued),
        other => panic!("{task} was not retried: {other:?}"),
    }
    assert!(matches!(world.retry(task, key).expect("retrying"), Idempotent { repeated: true, .. }));
}

/// What a feeder that lists the lanes and reads them to their ends gets to see, in the default queue.
pub(super) fn fed(world: &World) -> Vec<TaskId> {
    let mut fed = Vec::new();
    let mut lanes = Vec::new();
    loop {
        let page = world.lanes(DEFAULT, lanes.last(), 2).expect("listing lanes");
        let more = page.len() == 2;
        lanes.extend(page);
        if !more {
            break;
        }
    }
    for lane in &lanes {
        let mut after = (Timestamp::MIN, TaskId(Uuid::nil()));
        loop {
            let page = world.lane_page(DEFAULT, lane, after, None, 2).expect("reading a lane");
            fed.extend(page.rows.iter().filter(|row| row.min_reader <= READER_RANGE.1).map(|row| row.id));
            match page.rows.last() {
                Some(last) if !page.exhausted => after = (Timestamp(last.ready_at_us), last.id),
                _ => break,
            }
        }
    }
    fed
}

/// Every kind of call, each with what it is to do.
pub(super) fn whole(world: &World) {
    Scene::set(world).finish(world);
    submissions(world);
    order(world);
    ends(world);
    sessions(world);
    reading(world);
    queues(world);
    aside(world);
    upkeep(world);
}

fn submissions(world: &World) {
    let mut task = world.new_task();
    task.request = request();
    let id = world.put(task.clone());
    let again = world.submit(std::slice::from_ref(&task), true).expect("submitting again");
    assert!(matches!(again[..], [Submitted::Stored { ready_at_us: Some(_), .. }]), "{again:?}");
    let mut other = world.new_task();
    other.request = task.request;
    assert_eq!(world.submit(&[other], false).expect("submitting"), [Submitted::Existing(id)]);
    assert_eq!(world.request(task.request.expect("a key")).expect("reading"), Some(id));
    let closed = world.submit(&[world.new_task_in("nowhere")], false).expect("submitting");
    assert_eq!(closed, [Submitted::QueueClosed]);
    world.cancelled(id);
    let again = world.submit(&[task], true).expect("submitting again");
    assert!(matches!(again[..], [Submitted::Stored { .. }]), "{again:?}");
    assert_eq!(world.state(id), State::Cancelled);
}

/// Numbers go by their size, whatever the type.
fn order(world: &World) {
    let submitted: Vec<TaskId> = [("b", 10), ("b", -5), ("b", 9), ("a", 2), ("B", 0)]
        .map(|(tenant, rank)| {
            let mut task = world.new_task();
            (task.envelope.tenant, task.envelope.rank) = (tenant.into(), rank);
            world.put(task)
        })
        .into();
    let lanes: Vec<_> = world.lanes(DEFAULT, None, 100).expect("listing lanes");
    let ranks: Vec<i32> = lanes.iter().filter(|lane| lane.tenant == "b").map(|lane| lane.rank).collect();
    assert_eq!(ranks, [-5, 9, 10]);
    let after = LaneKey { tenant: "b".into(), rank: -5 };
    let next = world.lanes(DEFAULT, Some(&after), 1).expect("listing lanes");
    assert_eq!(next, [LaneKey { tenant: "b".into(), rank: 9 }]);
    let fed = fed(world);
    assert_eq!(sorted(fed.iter().copied()), sorted(submitted.iter().copied()));
    let of_b = [submitted[1], submitted[2], submitted[0]];
    assert_eq!(fed.into_iter().filter(|task| of_b.contains(task)).collect::<Vec<_>>(), of_b);
    // The others that stand before it: one of its tenant with a higher priority, and those of the other tenants.
    assert!(world.position(submitted[2]).expect("counting").is_some_and(|before| (1..=4).contains(&before)));
    for task in submitted {
        world.cancelled(task);
    }
}

fn ends(world: &World) {
    let worker = world.worker();
    let held = world.held(worker);
    world.cancelled(held.task);
    assert!(matches!(world.cancel(held.task, "again", None).expect("cancelling"), CancelResult::Done(_)));
    assert_eq!(world.beat(worker, Vec::new()), (true, vec![held]));
    assert_eq!(world.try_requeue(requeue(held, secs(0))), Requeued::Cancelling);
    world.completed(held, State::Succeeded);
    let cancel = world.cancel(held.task, "too late", None).expect("cancelling");
    assert!(matches!(cancel, CancelResult::Finished(_)), "{cancel:?}");
    let later = world.held(worker);
    world.requeued(later, hours(1));
    assert_eq!(world.state(later.task), State::Scheduled);
    woken(world, later.task);
    let mut ending = completion(world.dispatched(worker, later.task).lease, State::Failed);
    ending.outcome.exit_code = Some(3);
    ending.outcome.message = "a sentence".into();
    ending.outcome.ended_at_us = Some(9);
    ending.outcome.output_tail = b"tail".to_vec();
    ending.outcome.output_bytes = 4;
    world.try_complete(ending);
    let row = world.row(later.task);
    let outcome = row.outcome.expect("an outcome");
    assert_eq!((outcome.exit_code, outcome.message.as_str(), outcome.ended_at_us), (Some(3), "a sentence", Some(9)));
    assert_eq!((outcome.output_tail, outcome.output_bytes, row.failures), (b"tail".to_vec(), 4, 1));
}

fn sessions(world: &World) {
    let dead = world.worker();
    let lease = world.held(dead);
    assert_eq!(world.reap_sessions(10).expect("reaping"), []);
    world.sql(&format!("UPDATE sessions SET expires_served_ms = '-1' WHERE id::text LIKE '%{}%'", dead.id));
    assert_eq!(world.reap_sessions(10).expect("reaping"), [dead.id]);
    assert!(!world.beat(dead, Vec::new()).0);
    let orphans = world.orphans(10).expect("sweeping");
    assert_eq!(orphans.iter().map(|row| row.lease).collect::<Vec<_>>(), [lease]);
    world.requeued(lease, secs(0));
    assert_eq!(world.orphans(10).expect("sweeping"), []);
    let session = new_session(hours(1));
    let opened = world.open_session(&session).expect("opening");
    assert_eq!(world.open_session(&session).expect("opening again"), opened);
    let worker = Worker { id: session.id, generation: opened.generation };
    let held = world.dispatched(worker, lease.task).lease;
    assert!(world.sessions(100).expect("listing").iter().any(|row| row.session.id == worker.id && row.held == 1));
    match world.resume_session(worker.id, worker.generation, "elsewhere").expect("resuming") {
        Resumed::Yes { session, held: told } => {
            assert_eq!((session.generation, session.session.replica.as_str()), (worker.generation + 1, "elsewhere"));
            assert_eq!(told.iter().map(|one| one.lease).collect::<Vec<_>>(), [held]);
        }
        Resumed::Gone => panic!("not resumed"),
    }
    world.completed(held, State::Succeeded);
    assert!(world.close_session(worker.id, None).expect("closing"));
    assert!(!world.close_session(worker.id, None).expect("closing"));
    world.trim_sessions(hours(1), 100).expect("trimming");
}

fn reading(world: &World) {
    let task = world.queued();
    let filter = ListFilter { states: vec![State::Queued], ..ListFilter::default() };
    let page = world.list(&filter, None, 100).expect("listing");
    assert_eq!(page.rows.iter().map(|row| row.envelope.id).collect::<Vec<_>>(), [task]);
    assert_eq!(world.tasks(&[task]).expect("reading").len(), 1);
    assert!(world.all().contains(&task));
    let counts = world.counts(&[DEFAULT.to_owned()]).expect("counting");
    assert_eq!((counts[0].queued, counts[0].scheduled, counts[0].held), (1, 0, 0));
    assert!(counts[0].oldest_ready_at_us.is_some());
    assert_eq!(world.position(task).expect("counting"), Some(0));
    assert_eq!(world.strays(10).expect("looking for strays"), []);
    let inspected = world.inspect(None, 100).expect("inspecting");
    assert_eq!(inspected.rows.len(), 1);
    assert_eq!(world.examine(&[task]).expect("examining"), [Examined::Readable]);
    world.cancelled(task);
    assert!(world.cluster().expect("reading").incarnation > 0);
    assert!(world.routing().expect("reading").queues.iter().any(|queue| queue.name == DEFAULT));
}

fn queues(world: &World) {
    let name = format!("queue-{}", Uuid::new_v4());
    world.create_queue(&queue_row(&name), None).expect("creating").expect("a new queue");
    let owner = member();
    let epoch = world.own_queue(&name, owner, "here", 1000).expect("owning").expect("an epoch");
    assert_eq!(world.own_queue(&name, member(), "there", 1000).expect("owning"), None);
    assert!(world.renew_queues(owner, &[(name.clone(), epoch)], 1000).expect("renewing").is_empty());
    assert!(world.owners().expect("reading").iter().any(|row| row.queue == name && row.owner.is_some()));
    world.release_queues(owner, std::slice::from_ref(&name)).expect("releasing");
    let pause = |pause| QueueChange { pause: Some(pause), ..QueueChange::default() };
    let paused = pause(Some(("a reason".to_owned(), Some(1))));
    let row = world.update_queue(&name, &paused, &audit(), None).expect("changing").expect("the queue");
    assert_eq!(row.pause.expect("a pause").reason, "a reason");
    assert_eq!(world.lift_pauses().expect("lifting"), std::slice::from_ref(&name));
    let route = millrace_core::route::Route {
        name: name.clone(),
        order: 7,
        executor: "other".into(),
        resource_class: String::new(),
        tenant: String::new(),
        labels: Default::default(),
        queue: name.clone(),
    };
    assert_eq!(world.set_route(&route, None).expect("setting"), RouteResult::Done);
    assert!(world.routing().expect("reading").routes.contains(&route));
    assert_eq!(
        world.delete_queue(&name, &DeleteMode::Refuse, None).expect("deleting"),
        DeleteResult::Routed(name.clone())
    );
    assert_eq!(world.delete_route(&name, None).expect("deleting"), RouteResult::Done);
    let moved = world.put(world.new_task_in(&name));
    let deleted = world.delete_queue(&name, &DeleteMode::Move(DEFAULT.into()), None).expect("deleting");
    assert_eq!(deleted, DeleteResult::Gone);
    assert_eq!(world.row(moved).envelope.queue, DEFAULT);
    assert!(fed(world).contains(&moved));
    world.cancelled(moved);
    let drained = world.queue_named(&format!("drained-{}", Uuid::new_v4()));
    let left = world.put(world.new_task_in(&drained));
    let deleted = world.delete_queue(&drained, &DeleteMode::Drain, None).expect("deleting");
    assert!(matches!(deleted, DeleteResult::Draining(_)), "{deleted:?}");
    world.cancelled(left);
    assert_eq!(world.drain_queues(10).expect("draining"), [drained]);
}

/// A row without a queue is set aside, and comes back once there is one.
fn aside(world: &World) {
    let task = world.queued();
    let name = format!("gone-{}", Uuid::new_v4());
    // As JSON, of which the database makes whatever type the column has.
    world.sql(&format!(
        "UPDATE tasks t SET queue = r.queue FROM jsonb_populate_record(NULL::tasks, '{{\"queue\": \"{name}\"}}') r
         WHERE t.id::text LIKE '%{task}%'"
    ));
    assert_eq!(world.strays(10).expect("looking for strays"), [task]);
    world.set_aside(task, "queue");
    assert_eq!(world.strays(10).expect("looking for strays"), []);
    let filter = QuarantineFilter { tasks: vec![task], column: Some("queue".into()), ..QuarantineFilter::default() };
    let page = world.quarantine(&filter, None, 10).expect("reading the quarantine");
    assert_eq!(page.rows.iter().map(|row| row.task).collect::<Vec<_>>(), [task]);
    assert!(matches!(world.release(&[task], &audit()).expect("releasing")[..], [Released::Refused(_)]));
    world.reexamine(None, 10).expect("examining again");
    let queue = world.queue_named(&name);
    assert_eq!(world.release(&[task], &audit()).expect("releasing"), [Released::Done]);
    let worker = world.worker();
    world.completed(world.dispatched_from(worker, &queue, task).lease, State::Succeeded);
}

fn upkeep(world: &World) {
    world.tick(RULE).expect("ticking");
    let row = MemberRow {
        id: member(),
        kind: MemberKind::Queue,
        endpoint: "http://127.0.0.1:1".into(),
        build: "test".into(),
        readers: (1, 1),
        seen_at_us: 0,
    };
    world.renew_member(&row, 10_000).expect("renewing");
    world.renew_member(&row, 10_000).expect("renewing");
    assert!(world.members().expect("listing").iter().any(|one| one.id == row.id));
    world.remove_member(row.id).expect("removing");
    world.trim_finished(hours(100)).expect("trimming");
    world.trim_requests(hours(100), None, 1000).expect("trimming");
    world.trim_attempts(None, 1000).expect("trimming");
    assert!(matches!(world.activate(1, 1, &audit()).expect("activating"), millrace_store::Activated::Already(1)));
}
