//! Dropping what is old.

use std::time::Duration;

use millrace_core::{id::TaskId, task::State};
use uuid::Uuid;

use crate::world::{World, completion, hours, request, secs};

/// Trims until nothing is left to trim; a call empties at most one slot of the eight.
fn trim(world: &World, keep: Duration) -> i64 {
    let mut total = 0;
    for _ in 0..20 {
        match world.trim_finished(keep).expect("trimming") {
            0 => return total,
            emptied => {
                assert_eq!(emptied, 1, "more than one slot in a call");
                total += emptied;
            }
        }
    }
    panic!("trimming does not end");
}

fn is_there(world: &World, task: TaskId) -> bool {
    world.task(task).expect("reading").is_some()
}

fn trim_requests(world: &World, keep: Duration, limit: i64) -> usize {
    let mut after = None;
    for steps in 1..1000 {
        let next = world.trim_requests(keep, after, limit).expect("trimming");
        assert!(next.is_none_or(|next| after.is_none_or(|after| next > after)), "a step that does not go on");
        after = next;
        if after.is_none() {
            return steps;
        }
    }
    panic!("trimming does not end");
}

pub(crate) fn young_finished_tasks_are_kept(world: &World) {
    let keep = hours(60);
    assert_eq!(trim(world, keep), 0);
    let mut tasks = Vec::new();
    // As long as the tasks of no slot are older than that, whichever slots they fell into.
    for _ in 0..5 {
        tasks.push(world.finished(State::Succeeded));
        world.advance(hours(11));
        trim(world, keep);
    }
    assert!(tasks.iter().all(|task| is_there(world, *task)));
}

pub(crate) fn old_finished_tasks_are_dropped(world: &World) {
    let keep = hours(60);
    trim(world, keep);
    let tasks =
        [world.finished(State::Succeeded), world.finished(State::Failed), world.cancelled(world.queued()).envelope.id];
    world.advance(hours(75));
    assert!(trim(world, keep) >= 1);
    assert!(tasks.iter().all(|task| !is_there(world, *task)));
    assert_eq!((world.all(), trim(world, keep)), (vec![], 0));
    // The slots are used again.
    let task = world.finished(State::Failed);
    trim(world, keep);
    assert!(is_there(world, task));
}

pub(crate) fn old_and_young_share_no_fate(world: &World) {
    let keep = hours(60);
    trim(world, keep);
    let old = world.finished(State::Succeeded);
    world.advance(hours(40));
    let young = world.finished(State::Succeeded);
    world.advance(hours(40));
    // The older one's time has come, the younger one's has not; they may well lie in one slot.
    trim(world, keep);
    assert!(is_there(world, young));
    world.advance(hours(40));
    trim(world, keep);
    assert!(!is_there(world, young) && !is_there(world, old));
}

pub(crate) fn no_task_is_dropped_before_its_time(world: &World) {
    let keep = hours(60);
    trim(world, keep);
    // Closer to each other than a slot is wide, so that most share a slot with a younger one.
    let mut tasks: Vec<(TaskId, u64)> = Vec::new();
    for hour in (0..90).step_by(2) {
        if hour % 4 == 0 && hour < 28 {
            tasks.push((world.finished(State::Succeeded), hour));
        }
        trim(world, keep);
        for (task, finished) in &tasks {
            let age = hour - finished;
            assert!(age >= 60 || is_there(world, *task), "a task {age} h old was dropped");
        }
        world.advance(hours(2));
    }
    world.advance(hours(20));
    trim(world, keep);
    assert!(tasks.iter().all(|(task, _)| !is_there(world, *task)));
}

pub(crate) fn a_new_width_of_slots_drops_nothing_young(world: &World) {
    let mut tasks = Vec::new();
    for keep in [hours(6), hours(600), hours(1), hours(60), hours(7)] {
        trim(world, keep);
        tasks.push(world.finished(State::Succeeded));
    }
    // All are younger than the shortest of these, whatever width their slots had.
    world.advance(secs(1800));
    for keep in [hours(1), hours(600), hours(2)] {
        trim(world, keep);
    }
    assert!(tasks.iter().all(|task| is_there(world, *task)));
    world.advance(hours(900));
    trim(world, hours(600));
    assert!(tasks.iter().all(|task| !is_there(world, *task)));
}

pub(crate) fn live_tasks_are_never_dropped(world: &World) {
    let (queued, held) = (world.queued(), world.held(world.worker()));
    let retried = world.finished(State::Failed);
    world.advance(hours(500));
    world.retry(retried, None).expect("retrying");
    trim(world, hours(60));
    assert!([queued, held.task, retried].iter().all(|task| is_there(world, *task)));
}

pub(crate) fn old_request_keys_are_dropped(world: &World) {
    let with_key = |world: &World| {
        let mut task = world.new_task();
        task.request = request();
        world.put(task.clone());
        task.request.expect("a key")
    };
    let old: Vec<Uuid> = (0..3).map(|_| with_key(world)).collect();
    world.advance(hours(20));
    let young: Vec<Uuid> = (0..3).map(|_| with_key(world)).collect();
    world.advance(hours(10));
    trim_requests(world, hours(24), 100);
    let is_known = |key: &Uuid| world.request(*key).expect("reading a key").is_some();
    assert!(!old.iter().any(is_known) && young.iter().all(is_known));
    // A key that was dropped stores another task.
    let mut task = world.new_task();
    task.request = Some(old[0]);
    world.put(task);
    assert!(is_known(&old[0]));
}

pub(crate) fn request_keys_are_looked_through_in_bounded_steps(world: &World) {
    for age in 0..2 {
        let version = world.route_version();
        let batch: Vec<_> = (0..10)
            .map(|_| millrace_store::NewTask { request: request(), ..crate::world::new_task(version) })
            .collect();
        world.submit(&batch, false).expect("submitting");
        world.advance(hours(if age == 0 { 30 } else { 1 }));
    }
    // A step looks at so many keys, old or not.
    assert!(trim_requests(world, hours(24), 5) >= 4);
    assert!(trim_requests(world, hours(24), 100) <= 2);
    if world.sql("SELECT 1") {
        assert_eq!(world.sql_number("SELECT count(*) AS number FROM requests"), 10);
    }
}

pub(crate) fn attempts_go_with_their_tasks(world: &World) {
    let keep = hours(60);
    trim(world, keep);
    let worker = world.worker();
    let tried = |world: &World| {
        let lease = world.held(worker);
        world.requeued(lease, secs(0));
        lease.task
    };
    let dropped: Vec<TaskId> = (0..3).map(|_| tried(world)).collect();
    for task in &dropped {
        let lease = world.dispatched(worker, *task).lease;
        world.try_complete(completion(lease, State::Failed));
    }
    world.advance(hours(75));
    let kept = [tried(world), tried(world)];
    let finished = tried(world);
    trim(world, keep);
    world.cancelled(finished);
    assert!(dropped.iter().all(|task| !is_there(world, *task)));
    for limit in [2, 100] {
        let mut after = None;
        for _ in 0..20 {
            after = world.trim_attempts(after, limit).expect("trimming");
            if after.is_none() {
                break;
            }
        }
        assert_eq!(after, None, "trimming does not end");
    }
    for task in &dropped {
        assert_eq!(world.attempts(*task).expect("reading attempts"), []);
    }
    for task in kept.into_iter().chain([finished]) {
        assert_eq!(world.attempts(task).expect("reading attempts").len(), 1);
    }
}
