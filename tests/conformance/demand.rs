//! What queues ask of the scaler.

use std::time::Duration;

use millrace_core::{
    id::TaskId,
    task::State,
    time::{Timestamp, micros},
};
use millrace_store::{NewTask, QueueChange, QueueDemand};
use uuid::{NoContext, Uuid};

use crate::world::{DEFAULT, Worker, World, audit, completion, hours, new_task, secs};

const MINUTE_US: i64 = 60_000_000;

/// A task whose id says that it was submitted this long ago: that is what arrivals are counted by, whenever the row was written.
fn submitted(world: &World, queue: &str, ago: Duration) -> NewTask {
    let mut task = world.new_task_in(queue);
    task.envelope.id = id_at(world.now().before(ago));
    task
}

fn id_at(moment: Timestamp) -> TaskId {
    let moment = Duration::from_micros(moment.0.unsigned_abs());
    TaskId(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, moment.as_secs(), moment.subsec_nanos())))
}

/// A task that ran for so long, by its orchestrator's clock, and ended so.
fn ran(world: &World, worker: Worker, queue: &str, ago: Duration, span: Option<Duration>, state: State) {
    let task = world.put(submitted(world, queue, ago));
    let mut completion = completion(world.dispatched_from(worker, queue, task).lease, state);
    completion.outcome.started_at_us = Some(5);
    completion.outcome.ended_at_us = span.map(|span| 5 + micros(span));
    world.try_complete(completion);
}

fn demand(world: &World, queues: &[&str], window: Duration) -> Vec<QueueDemand> {
    let queues: Vec<String> = queues.iter().map(|queue| (*queue).to_owned()).collect();
    world.queue_demand(&queues, window).expect("reading the demand")
}

pub(crate) fn demand_tells_what_waits_and_runs(world: &World) {
    for queue in ["busy", "empty", "paused"] {
        world.queue_named(queue);
    }
    let worker = world.worker();
    let oldest = world.put(submitted(world, "busy", secs(90)));
    world.advance(secs(30));
    world.put(submitted(world, "busy", secs(30)));
    let mut scheduled = submitted(world, "busy", secs(20));
    scheduled.not_before = Some(world.now().after(hours(1)));
    world.put(scheduled);
    for state in [State::Dispatched, State::Running, State::Cancelling] {
        let task = world.put(submitted(world, "busy", secs(10)));
        let lease = world.dispatched_from(worker, "busy", task).lease;
        match state {
            State::Running => drop(world.beat(worker, vec![(lease, None)])),
            State::Cancelling => drop(world.cancelled(task)),
            _ => {}
        }
    }
    let pause = QueueChange { pause: Some(Some(("a test".into(), None))), ..QueueChange::default() };
    world.update_queue("paused", &pause, &audit(), None).expect("pausing").expect("the queue");
    world.put(submitted(world, "paused", secs(10)));
    // Those that exist, once each and by name.
    let all = demand(world, &["paused", "busy", "nowhere", "empty", "busy"], secs(60));
    let figures: Vec<_> = all.iter().map(|of| (of.queue.as_str(), of.waiting, of.running, of.paused)).collect();
    assert_eq!(figures, [("busy", 2, 3, false), ("empty", 0, 0, false), ("paused", 1, 0, true)]);
    assert_eq!(all[0].oldest_ready_at_us, world.row(oldest).ready_at_us);
    assert_eq!((all[1].oldest_ready_at_us, all[1].run_time_us, all[1].arrivals), (None, None, 0));
    let age = Timestamp(all[0].now_us).since(Timestamp(all[0].oldest_ready_at_us.expect("the oldest")));
    assert!(age >= secs(30) && age < hours(1), "{age:?}");
    assert_eq!(demand(world, &[], secs(60)), []);
    assert_eq!(demand(world, &["nowhere"], secs(60)), []);
}

pub(crate) fn arrivals_are_counted_over_the_window(world: &World) {
    world.queue_named("other");
    let worker = world.worker();
    // What came in, whatever has become of it since.
    world.put(submitted(world, DEFAULT, secs(5)));
    let held = world.put(submitted(world, DEFAULT, secs(20)));
    world.dispatched(worker, held);
    ran(world, worker, DEFAULT, secs(50), None, State::Failed);
    ran(world, worker, "other", secs(40), None, State::Succeeded);
    world.cancelled(world.put(submitted(world, "other", secs(30))));
    // Before the window.
    world.put(submitted(world, DEFAULT, secs(300)));
    ran(world, worker, DEFAULT, hours(3), None, State::Failed);
    let arrivals = |window| -> Vec<(i64, i64)> {
        let demand = demand(world, &[DEFAULT, "other"], window);
        demand.iter().map(|of| (of.arrivals, of.arrivals_over_us)).collect()
    };
    assert_eq!(arrivals(secs(240)), [(3, 4 * MINUTE_US), (2, 4 * MINUTE_US)]);
    assert_eq!(arrivals(hours(1)), [(4, 60 * MINUTE_US), (2, 60 * MINUTE_US)]);
    assert_eq!(arrivals(hours(24)), [(5, 1440 * MINUTE_US), (2, 1440 * MINUTE_US)]);
}

pub(crate) fn arrivals_are_counted_over_no_more_than_what_was_looked_at(world: &World) {
    world.queue_named("other");
    let (now, version) = (world.now(), world.route_version());
    // One every hundred milliseconds, back from now: the last 20,000 go back 2,000 s.
    for part in 0..11u64 {
        let tasks = (part * 2_000..(part + 1) * 2_000).map(|number| {
            let mut task = new_task(version);
            task.envelope.id = id_at(now.before(Duration::from_millis(number * 100)));
            task.envelope.queue = if number % 4 == 0 { "other" } else { DEFAULT }.into();
            task
        });
        world.submit(&tasks.collect::<Vec<_>>(), false).expect("submitting");
    }
    let all = demand(world, &[DEFAULT, "other"], hours(1));
    assert_eq!(all.iter().map(|of| of.arrivals).collect::<Vec<_>>(), [15_000, 5_000]);
    for of in &all {
        let span = Duration::from_micros(of.arrivals_over_us.unsigned_abs());
        assert!(span >= secs(1_999) && span < secs(2_120), "{span:?}");
    }
    // A window within what is looked at is counted whole.
    let window = world.now().since(now) + secs(60);
    let minute = demand(world, &[DEFAULT, "other"], window);
    assert!(minute.iter().all(|of| of.arrivals_over_us == micros(window)), "{minute:?}");
    // The window ends a little later than the moment of which its length was taken.
    let arrivals = minute.iter().map(|of| of.arrivals).sum::<i64>();
    assert!((550..=601).contains(&arrivals), "{arrivals}");
}

pub(crate) fn run_times_are_averaged_over_what_has_run_to_its_end(world: &World) {
    world.queue_named("other");
    let worker = world.worker();
    for (queue, span, state) in [
        (DEFAULT, Some(secs(10)), State::Succeeded),
        (DEFAULT, Some(secs(31)), State::Failed),
        // These say nothing about how long tasks run.
        (DEFAULT, None, State::Succeeded),
        ("other", Some(Duration::from_micros(7)), State::Succeeded),
    ] {
        ran(world, worker, queue, secs(5), span, state);
    }
    world.cancelled(world.put(submitted(world, DEFAULT, secs(5))));
    let lease = world.dispatched(worker, world.put(submitted(world, DEFAULT, secs(5)))).lease;
    world.cancelled(lease.task);
    let mut cancelled = completion(lease, State::Cancelled);
    (cancelled.outcome.started_at_us, cancelled.outcome.ended_at_us) = (Some(5), Some(micros(hours(9))));
    world.try_complete(cancelled);
    let run_times = |queues: &[&str]| -> Vec<Option<i64>> {
        demand(world, queues, secs(60)).iter().map(|of| of.run_time_us).collect()
    };
    assert_eq!(run_times(&[DEFAULT, "other"]), [Some(20_500_000), Some(7)]);
    world.queue_named("new");
    assert_eq!(run_times(&["new"]), [None]);
}
