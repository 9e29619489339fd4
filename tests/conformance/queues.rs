//! Queues: their rows, pauses and counts.

use millrace_core::{task::State, time::Timestamp};
use millrace_store::{PauseRow, QueueChange, QueueCounts, QueueRow};
use uuid::Uuid;

use crate::world::{DEFAULT, World, audit, hours, queue_row, request, secs};

fn update(world: &World, name: &str, change: &QueueChange, request: Option<Uuid>) -> Option<QueueRow> {
    world.update_queue(name, change, &audit(), request).expect("changing a queue")
}

fn pausing(reason: &str, until_us: Option<i64>) -> QueueChange {
    QueueChange { pause: Some(Some((reason.into(), until_us))), ..QueueChange::default() }
}

fn resuming() -> QueueChange {
    QueueChange { pause: Some(None), ..QueueChange::default() }
}

fn pause_of(world: &World, queue: &str) -> Option<PauseRow> {
    world.queue(queue).expect("reading a queue").expect("the queue").pause
}

pub(crate) fn queues_are_created_once_and_read_by_name(world: &World) {
    let mut wanted = queue_row("mac.m2");
    wanted.description = "Macs «M2»".into();
    wanted.default_timeout_ms = Some(3_600_000);
    wanted.default_expire_after_ms = Some(86_400_000);
    let before = world.now();
    let created = world.create_queue(&wanted, None).expect("creating").expect("a new queue");
    let at = created.created_at_us;
    assert!(at >= before.0 && at <= world.now().0);
    assert_eq!(created, QueueRow { created_at_us: at, updated_at_us: created.updated_at_us, ..wanted.clone() });
    assert_eq!(world.queue("mac.m2").expect("reading"), Some(created));
    assert_eq!(world.create_queue(&wanted, None).expect("creating"), None);
    assert_eq!(world.create_queue(&queue_row(DEFAULT), None).expect("creating"), None);
    assert_eq!(world.queue("nowhere").expect("reading"), None);
    for name in ["mac-m2", "mac_m2", "macm2", "mac"] {
        world.queue_named(name);
    }
    let names: Vec<String> = world.queues().expect("reading").into_iter().map(|queue| queue.name).collect();
    assert_eq!(names, ["default", "mac", "mac-m2", "mac.m2", "mac_m2", "macm2"], "in the order of bytes");
}

pub(crate) fn r11_a_repeated_creation_returns_the_queue(world: &World) {
    let key = request();
    let created = world.create_queue(&queue_row("other"), key).expect("creating").expect("a new queue");
    assert_eq!(world.create_queue(&queue_row("other"), key).expect("creating again"), Some(created));
    assert_eq!(world.create_queue(&queue_row("other"), request()).expect("creating"), None);
    assert_eq!(world.queues().expect("reading").len(), 2);
    // A refusal is no success to be repeated.
    let key = request();
    assert_eq!(world.create_queue(&queue_row("other"), key).expect("creating"), None);
    assert_eq!(world.create_queue(&queue_row("other"), key).expect("creating again"), None);
}

pub(crate) fn a_change_sets_only_what_it_names(world: &World) {
    let queue = world.queue_named("other");
    let before = world.queue(&queue).expect("reading").expect("the queue");
    let change = QueueChange {
        description: Some("new".into()),
        default_timeout_ms: Some(Some(1000)),
        default_expire_after_ms: Some(Some(2000)),
        pause: None,
    };
    let changed = update(world, &queue, &change, None).expect("the queue");
    assert_eq!(
        changed,
        QueueRow {
            description: "new".into(),
            default_timeout_ms: Some(1000),
            default_expire_after_ms: Some(2000),
            updated_at_us: changed.updated_at_us,
            ..before.clone()
        }
    );
    assert!(changed.updated_at_us >= before.updated_at_us);
    let clearing = QueueChange { default_timeout_ms: Some(None), ..QueueChange::default() };
    let cleared = update(world, &queue, &clearing, None).expect("the queue");
    assert_eq!((cleared.default_timeout_ms, cleared.default_expire_after_ms), (None, Some(2000)));
    assert_eq!(cleared.description, "new");
    let nothing = update(world, &queue, &QueueChange::default(), None).expect("the queue");
    assert_eq!(QueueRow { updated_at_us: cleared.updated_at_us, ..nothing }, cleared);
    assert_eq!(update(world, "nowhere", &change, None), None);
}

pub(crate) fn a_pause_is_set_replaced_and_lifted(world: &World) {
    let before = world.now();
    let until = before.after(hours(1)).0;
    let paused = update(world, DEFAULT, &pausing("an upgrade", Some(until)), None).expect("the queue");
    let pause = paused.pause.clone().expect("a pause");
    assert_eq!((pause.reason.as_str(), pause.until_us), ("an upgrade", Some(until)));
    assert!(pause.since_us >= before.0 && pause.since_us <= world.now().0);
    assert_eq!(world.queue(DEFAULT).expect("reading"), Some(paused));
    let replaced = update(world, DEFAULT, &pausing("still", None), None).expect("the queue").pause.expect("a pause");
    assert_eq!((replaced.reason.as_str(), replaced.until_us), ("still", None));
    // A pause stops dispatch, not submissions; a change of something else leaves it alone.
    let task = world.queued();
    update(world, DEFAULT, &QueueChange { description: Some("x".into()), ..QueueChange::default() }, None);
    assert_eq!(pause_of(world, DEFAULT), Some(replaced));
    assert_eq!(update(world, DEFAULT, &resuming(), None).expect("the queue").pause, None);
    assert_eq!(update(world, DEFAULT, &resuming(), None).expect("the queue").pause, None);
    world.dispatched(world.worker(), task);
}

pub(crate) fn pauses_end_by_themselves(world: &World) {
    let (other, open) = (world.queue_named("other"), world.queue_named("open"));
    let now = world.now();
    update(world, DEFAULT, &pausing("a", Some(now.after(hours(1)).0)), None);
    update(world, &other, &pausing("b", Some(now.after(hours(50)).0)), None);
    update(world, &open, &pausing("c", None), None);
    let task = world.queued();
    assert_eq!(world.lift_pauses().expect("lifting"), [""; 0]);
    world.advance(hours(2));
    assert_eq!(world.lift_pauses().expect("lifting"), [DEFAULT]);
    assert_eq!(world.lift_pauses().expect("lifting"), [""; 0]);
    assert_eq!(pause_of(world, DEFAULT), None);
    assert!(pause_of(world, &other).is_some() && pause_of(world, &open).is_some());
    world.dispatched(world.worker(), task);
}

pub(crate) fn r11_a_repeated_change_changes_nothing(world: &World) {
    let key = request();
    let paused = update(world, DEFAULT, &pausing("once", None), key).expect("the queue");
    assert!(paused.pause.is_some());
    update(world, DEFAULT, &resuming(), request());
    let repeated = update(world, DEFAULT, &pausing("once", None), key);
    assert_eq!(repeated.expect("the queue").pause, None);
    world.held(world.worker());
}

pub(crate) fn counts_tell_what_waits_and_runs(world: &World) {
    let (other, empty) = (world.queue_named("other"), world.queue_named("empty"));
    let worker = world.worker();
    let mut scheduled = world.new_task();
    scheduled.not_before = Some(world.now().after(hours(1)));
    world.put(scheduled);
    let oldest = world.queued();
    world.advance(secs(60));
    world.queued();
    let running = world.held(worker);
    world.beat(worker, vec![(running, None)]);
    world.held(worker);
    let cancelling = world.held(worker);
    world.cancelled(cancelling.task);
    world.finished(State::Failed);
    world.put(world.new_task_in(&other));
    let counts = |names: &[String]| -> Vec<QueueCounts> {
        let mut counts = world.counts(names).expect("counting");
        counts.sort_by(|a, b| a.name.cmp(&b.name));
        counts
    };
    let all = counts(&[]);
    let figures: Vec<_> = all.iter().map(|of| (of.name.as_str(), of.queued, of.scheduled, of.held)).collect();
    assert_eq!(figures, [(DEFAULT, 2, 1, 3), ("empty", 0, 0, 0), ("other", 1, 0, 0)]);
    assert_eq!(all[0].oldest_ready_at_us, world.row(oldest).ready_at_us);
    assert_eq!(all[1].oldest_ready_at_us, None);
    let age = Timestamp(all[0].now_us).since(Timestamp(all[0].oldest_ready_at_us.expect("the oldest")));
    assert!(age >= secs(60) && age < hours(1), "{age:?}");
    let some = counts(&[other, empty]);
    let figures: Vec<_> = some.iter().map(|of| (of.name.as_str(), of.queued)).collect();
    assert_eq!(figures, [("empty", 0), ("other", 1)]);
}

pub(crate) fn the_audit_trail_takes_entries(world: &World) {
    world.audit(&audit()).expect("writing the audit trail");
    update(world, DEFAULT, &pausing("why", None), request());
    if world.sql("SELECT 1") {
        let entries =
            world.sql_number("SELECT count(*) AS number FROM audit WHERE action = 'Test' AND detail = 'a test'");
        assert_eq!(entries, 2, "the entry itself, and that of the change");
    }
}
