//! Deleting queues, and moving what waits in them.

use millrace_core::{id::TaskId, route::Route, task::State, time::Timestamp};
use millrace_store::{Claimed, DeleteMode, DeleteResult, LaneKey};
use uuid::Uuid;

use crate::world::{DEFAULT, World, audit, hours, member, queue_row, request, secs, sorted};

fn delete(world: &World, queue: &str, mode: DeleteMode) -> DeleteResult {
    world.delete_queue(queue, &mode, None).expect("deleting a queue")
}

fn move_to(queue: &str) -> DeleteMode {
    DeleteMode::Move(queue.into())
}

fn drains(world: &World, queue: &str, mode: DeleteMode) {
    match delete(world, queue, mode) {
        DeleteResult::Draining(row) => {
            assert!(row.draining && row.name == queue);
            assert_eq!(world.queue(queue).expect("reading"), Some(*row));
        }
        other => panic!("{queue} does not drain: {other:?}"),
    }
}

fn exists(world: &World, queue: &str) -> bool {
    world.queue(queue).expect("reading").is_some()
}

pub(crate) fn an_empty_queue_is_deleted(world: &World) {
    for mode in [DeleteMode::Refuse, DeleteMode::Drain, move_to(DEFAULT)] {
        let queue = world.queue_named("other");
        let task = world.put(world.new_task_in(&queue));
        world.cancelled(task);
        assert_eq!(delete(world, &queue, mode.clone()), DeleteResult::Gone);
        assert!(!exists(world, &queue));
        assert_eq!(delete(world, &queue, mode), DeleteResult::NotFound);
        // What has ended there can still be read.
        assert_eq!(world.row(task).envelope.queue, queue);
    }
}

pub(crate) fn a_queue_with_work_is_not_deleted_by_refuse(world: &World) {
    let worker = world.worker();
    let queue = world.queue_named("other");
    let task = world.put(world.new_task_in(&queue));
    assert_eq!(delete(world, &queue, DeleteMode::Refuse), DeleteResult::NotEmpty);
    let lease = world.dispatched_from(worker, &queue, task).lease;
    assert_eq!(delete(world, &queue, DeleteMode::Refuse), DeleteResult::NotEmpty);
    world.cancelled(task);
    assert_eq!(delete(world, &queue, DeleteMode::Refuse), DeleteResult::NotEmpty);
    world.completed(lease, State::Cancelled);
    let mut scheduled = world.new_task_in(&queue);
    scheduled.not_before = Some(world.now().after(hours(1)));
    let scheduled = world.put(scheduled);
    assert_eq!(delete(world, &queue, DeleteMode::Refuse), DeleteResult::NotEmpty);
    // A refusal leaves the queue as it was.
    let row = world.queue(&queue).expect("reading").expect("the queue");
    assert!(!row.draining);
    world.cancelled(scheduled);
    assert_eq!(delete(world, &queue, DeleteMode::Refuse), DeleteResult::Gone);
}

pub(crate) fn a_queue_that_a_route_names_is_not_deleted(world: &World) {
    let other = world.queue_named("other");
    for mode in [DeleteMode::Refuse, DeleteMode::Drain, move_to(&other)] {
        assert_eq!(delete(world, DEFAULT, mode), DeleteResult::Routed("default".into()));
    }
    let row = world.queue(DEFAULT).expect("reading").expect("the queue");
    assert!(!row.draining);
    let route = Route { queue: other, ..world.routing().expect("reading the routes").routes.remove(0) };
    world.set_route(&route, None).expect("setting a route");
    assert_eq!(delete(world, DEFAULT, DeleteMode::Refuse), DeleteResult::Gone);
}

pub(crate) fn a_draining_queue_takes_nothing_and_goes_once_empty(world: &World) {
    let queue = world.queue_named("other");
    let worker = world.worker();
    let mut scheduled = world.new_task_in(&queue);
    scheduled.not_before = Some(world.now().after(hours(1)));
    let tasks = [world.put(world.new_task_in(&queue)), world.put(scheduled)];
    drains(world, &queue, DeleteMode::Drain);
    drains(world, &queue, DeleteMode::Drain);
    assert_eq!(world.drain_queues(100).expect("draining"), [""; 0]);
    // What waits there is dispatched as ever, and may be tried again there.
    let lease = world.dispatched_from(worker, &queue, tasks[0]).lease;
    world.requeued(lease, secs(0));
    let lease = world.dispatched_from(worker, &queue, tasks[0]).lease;
    world.completed(lease, State::Succeeded);
    assert_eq!(world.drain_queues(100).expect("draining"), [""; 0]);
    world.advance(hours(2));
    assert_eq!(world.wake(10).expect("waking").len(), 1);
    let lease = world.dispatched_from(worker, &queue, tasks[1]).lease;
    assert_eq!(world.drain_queues(100).expect("draining"), [""; 0]);
    world.completed(lease, State::Failed);
    assert_eq!(world.drain_queues(100).expect("draining"), std::slice::from_ref(&queue));
    assert_eq!(world.drain_queues(100).expect("draining"), [""; 0]);
    assert!(!exists(world, &queue));
}

pub(crate) fn a_moved_queue_gives_its_waiting_tasks_to_the_other(world: &World) {
    let (from, to) = (world.queue_named("from"), world.queue_named("to"));
    let mut scheduled = world.new_task_in(&from);
    scheduled.not_before = Some(world.now().after(hours(1)));
    let (queued, scheduled) = (world.put(world.new_task_in(&from)), world.put(scheduled));
    let before = world.row(scheduled);
    let claim = world.claim_of(world.worker(), &from, queued);
    assert_eq!(delete(world, &from, move_to(&to)), DeleteResult::Gone);
    let (moved, waits) = (world.row(queued), world.row(scheduled));
    assert_eq!((moved.envelope.queue.as_str(), moved.state), ("to", State::Queued));
    assert_eq!((waits.envelope.queue.as_str(), waits.state), ("to", State::Scheduled));
    assert_eq!((waits.wake_at_us, waits.created_at_us), (before.wake_at_us, before.created_at_us));
    // A match made before the move comes too late.
    let late = world.try_claim(&claim);
    assert!(matches!(late, Claimed::Stale | Claimed::GateClosed), "{late:?}");
    world.dispatched_from(world.worker(), &to, queued);
}

pub(crate) fn r3_moved_tasks_join_at_the_time_of_the_move(world: &World) {
    let (from, to) = (world.queue_named("from"), world.queue_named("to"));
    let old = world.put(world.new_task_in(&from));
    world.advance(hours(1));
    let there = world.put(world.new_task_in(&to));
    world.advance(secs(1));
    let before = world.now();
    delete(world, &from, move_to(&to));
    let ready_at_us = world.row(old).ready_at_us;
    assert!(ready_at_us >= Some(before.0), "the feeder of the other queue has read up to now");
    assert!(ready_at_us > world.row(there).ready_at_us);
}

pub(crate) fn r3_moved_tasks_keep_their_order(world: &World) {
    let (from, to) = (world.queue_named("from"), world.queue_named("to"));
    let tasks: Vec<_> = (0..40)
        .map(|_| {
            let mut task = world.new_task_in(&from);
            // Woken one by one, so that the database keeps the rows in another order than that of their ids.
            task.not_before = Some(world.now().after(hours(1)));
            world.put(task)
        })
        .collect();
    world.advance(hours(2));
    while !world.wake(1).expect("waking").is_empty() {}
    let order = |queue: &str| {
        let lane = LaneKey { tenant: DEFAULT.into(), rank: 0 };
        let start = (Timestamp::MIN, TaskId(Uuid::nil()));
        let page = world.lane_page(queue, &lane, start, None, 100).expect("reading a lane");
        page.rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(order(&from).len(), tasks.len());
    assert_eq!(delete(world, &from, move_to(&to)), DeleteResult::Gone);
    assert_eq!(order(&to), tasks, "of one age, in the order of their submission");
}

pub(crate) fn a_moved_queue_goes_once_what_runs_has_ended(world: &World) {
    let (from, to) = (world.queue_named("from"), world.queue_named("to"));
    let worker = world.worker();
    let tasks: Vec<_> = (0..3).map(|_| world.put(world.new_task_in(&from))).collect();
    let (ends, returns) =
        (world.dispatched_from(worker, &from, tasks[0]).lease, world.dispatched_from(worker, &from, tasks[1]).lease);
    drains(world, &from, move_to(&to));
    assert_eq!(world.row(tasks[2]).envelope.queue, to);
    assert_eq!(world.row(tasks[0]).envelope.queue, from);
    assert_eq!(world.drain_queues(100).expect("draining"), [""; 0]);
    world.completed(ends, State::Succeeded);
    // What comes back waits in its old queue until the drain has moved it on.
    world.requeued(returns, secs(0));
    assert_eq!(world.drain_queues(100).expect("draining"), std::slice::from_ref(&from));
    assert_eq!(world.row(tasks[1]).envelope.queue, to);
    assert!(!exists(world, &from));
    world.dispatched_from(worker, &to, tasks[1]);
}

pub(crate) fn draining_is_bounded(world: &World) {
    let (from, to) = (world.queue_named("from"), world.queue_named("to"));
    let worker = world.worker();
    let leases: Vec<_> =
        (0..5).map(|_| world.dispatched_from(worker, &from, world.put(world.new_task_in(&from))).lease).collect();
    drains(world, &from, move_to(&to));
    for lease in &leases {
        world.requeued(*lease, secs(0));
    }
    let moved = || leases.iter().filter(|lease| world.row(lease.task).envelope.queue == to).count();
    assert_eq!(world.drain_queues(2).expect("draining"), [""; 0]);
    assert_eq!(moved(), 2);
    assert_eq!(world.drain_queues(2).expect("draining"), [""; 0]);
    assert_eq!(moved(), 4);
    assert_eq!(world.drain_queues(2).expect("draining"), [from]);
    assert_eq!(moved(), 5);
}

pub(crate) fn moving_needs_a_target_that_takes_tasks(world: &World) {
    let (from, draining) = (world.queue_named("from"), world.queue_named("draining"));
    for queue in [&from, &draining] {
        world.put(world.new_task_in(queue));
    }
    drains(world, &draining, DeleteMode::Drain);
    for target in ["nowhere", &from, &draining] {
        assert_eq!(delete(world, &from, move_to(target)), DeleteResult::NoTarget, "{target}");
    }
    let row = world.queue(&from).expect("reading").expect("the queue");
    assert!(!row.draining);
    // A queue that drains may still be told to move instead.
    assert_eq!(delete(world, &draining, move_to(&from)), DeleteResult::Gone);
    assert_eq!(world.counts(&[from]).expect("counting")[0].queued, 2);
}

pub(crate) fn r11_a_repeated_deletion_is_gone(world: &World) {
    let queue = world.queue_named("other");
    let key = request();
    assert_eq!(world.delete_queue(&queue, &DeleteMode::Refuse, key).expect("deleting"), DeleteResult::Gone);
    assert_eq!(world.delete_queue(&queue, &DeleteMode::Refuse, key).expect("deleting"), DeleteResult::Gone);
    let other = world.delete_queue(&queue, &DeleteMode::Refuse, request()).expect("deleting");
    assert_eq!(other, DeleteResult::NotFound);
}

pub(crate) fn r5_a_queue_made_again_refuses_claims_of_its_former_owner(world: &World) {
    let queue = world.queue_named("other");
    let former = member();
    let old = world.own_queue(&queue, former, "here", 1_000_000).expect("owning").expect("an epoch");
    delete(world, &queue, DeleteMode::Refuse);
    assert_eq!(
        world.renew_queues(former, &[(queue.clone(), old)], 1000).expect("renewing"),
        std::slice::from_ref(&queue)
    );
    world.create_queue(&queue_row(&queue), None).expect("creating").expect("a new queue");
    let mut claim = world.claim_of(world.worker(), &queue, world.put(world.new_task_in(&queue)));
    claim.epoch = old;
    assert_eq!(world.try_claim(&claim), Claimed::GateClosed, "before anybody owns the new one");
    let new = world.own_queue(&queue, member(), "there", 1_000_000).expect("owning").expect("an epoch");
    assert!(new > old, "the former owner still believes in {old}, the new one got {new}");
    assert_eq!(world.try_claim(&claim), Claimed::GateClosed);
    // A pause of the former queue is not one of the new.
    let change = millrace_store::QueueChange { pause: Some(Some(("x".into(), None))), ..Default::default() };
    let paused = world.queue_named("paused");
    world.update_queue(&paused, &change, &audit(), None).expect("pausing");
    delete(world, &paused, DeleteMode::Refuse);
    let created = world.create_queue(&queue_row(&paused), None).expect("creating").expect("a new queue");
    assert_eq!((created.pause, sorted([created.draining])), (None, vec![false]));
    world.dispatched_from(world.worker(), &paused, world.put(world.new_task_in(&paused)));
}
