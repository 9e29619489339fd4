//! What the services' own reads do with rows that they cannot read: neighbours are not harmed, and nothing stops.

use std::collections::BTreeSet;

use millrace_core::{READER_RANGE, foreign::Value, id::TaskId, task::State, time::Timestamp};
use millrace_store::{
    CancelResult, Claim, Claimed, DeleteMode, DeleteResult, Dispatch, Examined, LaneKey, ListFilter, RetryResult,
    StoreError,
};
use uuid::Uuid;

use crate::world::{CUT, DEFAULT, Worker, World, completion, hours, secs, sorted, strict};

/// No page of these tests is empty before the end of what it goes through, so more steps than these mean that one stands still.
const STEPS: usize = 100;

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn suspects(world: &World) -> Vec<TaskId> {
    world.foreign().take_suspects(1000)
}

fn ignored(world: &World, column: &str) -> u64 {
    world.foreign().figures().ignored.get(column).copied().unwrap_or_default()
}

/// Sets aside whatever readers have met that they could not read.
fn sweep(world: &World) {
    let mut met = suspects(world);
    met.extend(world.strays(1000).expect("looking for strays"));
    world.examine(&met).expect("examining");
}

/// Feeds a lane to its end, a few rows at a time, and returns what some reader of this build may have.
fn fed(world: &World, lane: &LaneKey, limit: i64) -> Vec<TaskId> {
    let (mut offered, mut after) = (Vec::new(), (Timestamp::MIN, TaskId(Uuid::nil())));
    for _ in 0..STEPS {
        let page = world.lane_page(DEFAULT, lane, after, None, limit).expect("reading a lane");
        let readable = page.rows.iter().filter(|row| row.min_reader <= READER_RANGE.1);
        offered.extend(readable.map(|row| row.id));
        match page.rows.last() {
            _ if page.exhausted => return offered,
            Some(last) => after = (Timestamp(last.ready_at_us), last.id),
            None => panic!("an empty page that does not end the lane"),
        }
    }
    panic!("the lane does not end")
}

fn lane() -> LaneKey {
    LaneKey { tenant: DEFAULT.into(), rank: 0 }
}

pub(crate) fn r10_a_bad_row_in_a_batch_of_claims_harms_no_neighbour(world: &mut World) {
    world.reopen(strict("N"));
    let worker = world.worker();
    let good = world.queued_many(4);
    let bad = [world.queued_with(CUT), world.queued_with(&[7; 100_000]), world.queued(), world.queued()];
    world.damage(bad[2], "attempt", Value::Null);
    world.damage(bad[3], "min_reader", Value::Null);
    let mixed: Vec<TaskId> = bad.iter().zip(&good).flat_map(|(bad, good)| [*bad, *good]).collect();
    let claims: Vec<Claim> = mixed.iter().map(|task| world.claim_of(worker, DEFAULT, *task)).collect();
    let answers = world.claim(&claims).expect("claiming");
    for (claim, answer) in claims.iter().zip(&answers) {
        match answer {
            Claimed::Won(dispatch) => {
                assert_eq!((dispatch.lease.task, dispatch.lease.token), (claim.task, claim.token))
            }
            lost => assert_eq!((lost, bad.contains(&claim.task)), (&Claimed::Stale, true), "{}", claim.task),
        }
    }
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Claimed::Won(_))).count(), good.len());
    let held = world.held_by(worker.id).expect("reading what it holds");
    assert_eq!(sorted(held.iter().map(|dispatch| dispatch.lease.task)), sorted(good));
    // A claim that looks for rows of readers up to a number never gets to see one without a number.
    world.examine(&bad).expect("examining");
    assert_eq!(world.quarantined().expect("counting"), 4);
}

pub(crate) fn r10_a_lane_is_read_past_what_cannot_be_read(world: &mut World) {
    let (bad, good) = (world.queued_many(10), world.queued_many(5));
    let later = world.queued_many(2);
    for (task, value) in bad.iter().map(|task| (*task, Value::Null)) {
        world.damage(task, "min_reader", value);
    }
    for task in &later {
        world.damage(*task, "state", Value::Integer(77));
    }
    for limit in [1, 3, 10, 100] {
        assert_eq!(fed(world, &lane(), limit), good, "pages of {limit}");
    }
    assert_eq!(world.lanes(DEFAULT, None, 10).expect("listing lanes"), [lane()]);
    assert_eq!(sorted(suspects(world)), bad);
    assert!(world.foreign().figures().too_new >= 2);
    assert!(world.foreign().figures().unreadable["min_reader"] >= 10);
    world.examine(&bad).expect("examining");
    for task in later {
        world.damage(task, "state", Value::Integer(2));
    }
    assert_eq!(fed(world, &lane(), 3).len(), 7);
}

pub(crate) fn r10_bad_rows_at_the_head_of_a_lane_do_not_stop_the_good_ones(world: &mut World) {
    world.reopen(strict("N"));
    let worker = world.worker();
    let bad: Vec<TaskId> = (0..20).map(|_| world.queued_with(CUT)).collect();
    let good = world.queued_many(20);
    let mut done = BTreeSet::new();
    // A feeder that always begins at the head, with room for a few.
    for _ in 0..STEPS {
        let after = (Timestamp::MIN, TaskId(Uuid::nil()));
        let page = world.lane_page(DEFAULT, &lane(), after, None, 3).expect("reading a lane");
        let claims: Vec<Claim> = page.rows.iter().map(|row| world.claim_of(worker, DEFAULT, row.id)).collect();
        for answer in world.claim(&claims).expect("claiming") {
            if let Claimed::Won(dispatch) = answer {
                world.completed(dispatch.lease, State::Succeeded);
                done.insert(dispatch.lease.task);
            }
        }
        if page.exhausted && page.rows.is_empty() {
            break;
        }
    }
    assert_eq!(done, good.into_iter().collect());
    assert_eq!(world.quarantine_rows().iter().map(|row| row.task).collect::<Vec<_>>(), bad);
}

pub(crate) fn r10_an_attempt_that_cannot_be_one_is_never_leased(world: &mut World) {
    let worker = world.worker();
    let bad = [-3, -1, 1_000_001, i64::from(i32::MAX), i64::from(i32::MIN)].map(|attempt| {
        let task = world.queued();
        world.damage(task, "attempt", Value::Integer(attempt));
        (task, attempt)
    });
    let good = world.queued_many(5);
    let mixed: Vec<TaskId> = bad.iter().zip(&good).flat_map(|((bad, _), good)| [*bad, *good]).collect();
    let claims: Vec<Claim> = mixed.iter().map(|task| world.claim_of(worker, DEFAULT, *task)).collect();
    for (claim, answer) in claims.iter().zip(world.claim(&claims).expect("claiming")) {
        match answer {
            Claimed::Won(dispatch) => {
                assert!(good.contains(&claim.task), "{dispatch:?}");
                assert_eq!(dispatch.lease.attempt, 1);
            }
            lost => assert_eq!((lost, good.contains(&claim.task)), (Claimed::Stale, false)),
        }
    }
    let held = world.held_by(worker.id).expect("reading what it holds");
    assert_eq!(sorted(held.iter().map(|dispatch| dispatch.lease.task)), good);
    // Whether the claim has set it aside or whoever looks next.
    sweep(world);
    for (task, attempt) in bad {
        let row = world.quarantine_row(task);
        assert_eq!((row.defect.column.as_str(), &row.row["attempt"]), ("attempt", &Value::Integer(attempt)));
    }
}

pub(crate) fn r10_a_held_attempt_that_cannot_be_one_is_nobodys_to_name(world: &mut World) {
    let worker = world.worker();
    let (bad, good) = (world.held(worker), world.held(worker));
    world.beat(worker, vec![(bad, None), (good, None)]);
    world.damage(bad.task, "attempt", Value::Integer(-3));
    let leases = |held: Vec<Dispatch>| held.into_iter().map(|dispatch| dispatch.lease).collect::<Vec<_>>();
    assert_eq!(leases(world.held_by(worker.id).expect("reading what it holds")), [good]);
    let resumed = world.resume_session(worker.id, worker.generation, "elsewhere").expect("resuming");
    let millrace_store::Resumed::Yes { session, held } = resumed else { panic!("not resumed") };
    assert_eq!(leases(held), [good]);
    let worker = Worker { id: worker.id, generation: session.generation };
    let refused = world.cancel(bad.task, "a test", None).expect_err("a row that cannot be read");
    assert!(matches!(&refused, StoreError::Unreadable(defect) if defect.column == "attempt"), "{refused:?}");
    world.cancelled(good.task);
    assert_eq!(world.beat(worker, Vec::new()), (true, vec![good]));
    assert!(matches!(world.examined(bad.task), Examined::Held(defect) if defect.column == "attempt"));
    world.close_session(worker.id, None).expect("closing");
    assert_eq!(world.orphans(10).expect("sweeping").iter().map(|row| row.lease).collect::<Vec<_>>(), [good]);
    world.set_aside(bad.task, "attempt");
}

pub(crate) fn r10_numbers_that_nobody_can_have_meant_are_ignored_where_they_are_optional(world: &mut World) {
    let worker = world.worker();
    let mut task = world.new_task();
    task.envelope.timeout_ms = Some(5000);
    task.envelope.trace_context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into();
    let task = world.put(task);
    let numbers = [
        ("timeout_ms", -5),
        ("created_at_us", i64::MIN),
        ("started_at_us", i64::MAX),
        ("failures", -1),
        ("losses", i64::from(i32::MAX)),
        ("unsupported", -7),
    ];
    for (column, number) in numbers {
        world.damage(task, column, Value::Integer(number));
    }
    world.damage(task, "trace_context", text(&"x".repeat(300_000)));
    let row = world.row(task);
    let mut columns: Vec<&str> = numbers.iter().map(|(column, _)| *column).chain(["trace_context"]).collect();
    columns.sort_unstable();
    let told = |ignored: &[millrace_core::foreign::Defect]| sorted(ignored.iter().map(|one| one.column.clone()));
    // The count of unsupported attempts is not among what people read of a task.
    let shown: Vec<&str> = columns.iter().copied().filter(|column| *column != "unsupported").collect();
    assert_eq!(told(&row.ignored).into_iter().filter(|one| one != "unsupported").collect::<Vec<_>>(), shown);
    assert!(row.ignored.iter().all(|one| one.error.len() < 200), "{:?}", row.ignored);
    assert_eq!((row.envelope.timeout_ms, row.envelope.trace_context.as_str()), (None, ""));
    assert_eq!((row.created_at_us, row.started_at_us, row.failures, row.losses), (0, None, 0, 0));
    let inspected = world.inspect(None, 10).expect("inspecting");
    assert_eq!(told(&inspected.rows[0].1.ignored), columns);
    let dispatch = world.dispatched(worker, task);
    assert_eq!((dispatch.timeout_ms, dispatch.trace_context.as_str()), (None, ""));
    let held = world.held_rows(&[dispatch.lease]).expect("reading");
    assert_eq!((held[0].failures, held[0].losses, held[0].unsupported), (0, 0, 0));
    world.completed(dispatch.lease, State::Failed);
    assert_eq!((suspects(world), world.quarantined().expect("counting")), (Vec::new(), 0));
}

pub(crate) fn r10_a_moment_that_cannot_be_one_orders_nothing_for_long(world: &mut World) {
    let good = world.queued_many(2);
    let bad = [i64::MIN, -1, i64::MAX].map(|moment| {
        let task = world.queued();
        world.damage(task, "ready_at_us", Value::Integer(moment));
        task
    });
    for limit in [1, 2, 100] {
        assert_eq!(sorted(fed(world, &lane(), limit)), good, "pages of {limit}");
    }
    sweep(world);
    for task in bad {
        assert_eq!(world.quarantine_row(task).defect.column, "ready_at_us");
    }
    let counts = world.counts(&[DEFAULT.to_owned()]).expect("counting");
    let age = counts[0].now_us - counts[0].oldest_ready_at_us.expect("two wait");
    assert!((0..3_600_000_000).contains(&age), "{age} µs");
}

pub(crate) fn r9_what_is_too_new_is_not_cancelled_or_retried(world: &mut World) {
    let newer = READER_RANGE.1 + 1;
    let (waits, unknown) = (world.queued(), world.queued());
    let held = world.dispatched(world.worker(), world.queued()).lease.task;
    let (ended, kept) = (world.queued(), world.queued());
    for task in [waits, held, ended, kept] {
        world.damage(task, "min_reader", Value::Integer(newer.into()));
    }
    world.damage(unknown, "state", Value::Integer(77));
    for (task, column) in [(waits, "min_reader"), (held, "min_reader"), (unknown, "state")] {
        match world.cancel(task, "a test", None).expect("cancelling") {
            CancelResult::TooNew(defect) => assert_eq!(defect.column, column),
            other => panic!("{other:?}"),
        }
        match world.retry(task, None).expect("retrying").value {
            RetryResult::TooNew(defect) => assert_eq!(defect.column, column),
            other => panic!("{other:?}"),
        }
    }
    // Ended before it was too new.
    world.damage(ended, "min_reader", Value::Integer(1));
    world.cancelled(ended);
    if world.sql(&format!("UPDATE finished_tasks SET min_reader = {newer}")) {
        assert!(matches!(world.retry(ended, None).expect("retrying").value, RetryResult::TooNew(_)));
        assert!(matches!(world.cancel(ended, "a test", None).expect("cancelling"), CancelResult::TooNew(_)));
    }
    // Nothing was changed.
    world.damage(unknown, "state", Value::Integer(2));
    for task in [waits, held, kept] {
        world.damage(task, "min_reader", Value::Integer(1));
    }
    assert_eq!([waits, unknown, kept].map(|task| world.state(task)), [State::Queued; 3]);
    assert_eq!(world.state(held), State::Dispatched);
    world.cancelled(waits);
}

pub(crate) fn r10_waking_and_expiring_go_past_what_cannot_be_read(world: &mut World) {
    let scheduled = || {
        let mut task = world.new_task();
        task.not_before = Some(world.now().after(hours(1)));
        world.put(task)
    };
    let expiring = || {
        let mut task = world.new_task();
        task.expire_after = Some(hours(1));
        world.put(task)
    };
    let (bad, good) = ([scheduled(), expiring()], [scheduled(), expiring()]);
    for task in bad {
        world.damage(task, "concurrency_key", Value::Null);
        world.damage(task, "tenant", Value::Null);
    }
    world.advance(hours(2));
    let (mut woken, mut expired) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        woken.extend(world.wake(1).expect("waking").into_iter().map(|(_, waiting)| waiting.id));
        expired.extend(world.expire(1).expect("expiring"));
    }
    assert_eq!(woken, good[..1]);
    assert!(expired.contains(&good[1]), "{expired:?}");
    sweep(world);
    world.examine(&bad).expect("examining");
    assert_eq!(world.state(good[0]), State::Queued);
    assert_eq!(world.state(good[1]), State::Expired);
    for task in bad {
        assert!(world.is_quarantined(task).expect("reading"), "{task} was not kept");
    }
}

pub(crate) fn r10_what_dead_sessions_hold_is_found_past_what_cannot_be_read(world: &mut World) {
    let worker = world.worker();
    let leases = [world.held(worker), world.held(worker), world.held(worker)];
    world.damage(leases[1].task, "queue", Value::Null);
    let tasks = |held: &[millrace_store::Dispatch]| sorted(held.iter().map(|dispatch| dispatch.lease.task));
    let good = sorted([leases[0].task, leases[2].task]);
    assert_eq!(tasks(&world.held_by(worker.id).expect("reading what it holds")), good);
    assert_eq!(world.held_rows(&leases).expect("reading").len(), 2);
    let resumed = world.resume_session(worker.id, worker.generation, "elsewhere").expect("resuming");
    let millrace_store::Resumed::Yes { session, held } = resumed else { panic!("not resumed") };
    assert_eq!(tasks(&held), good);
    let worker = Worker { id: worker.id, generation: session.generation };
    assert!(world.beat(worker, leases.iter().map(|lease| (*lease, None)).collect()).0);
    world.close_session(worker.id, None).expect("closing");
    let orphans = world.orphans(10).expect("sweeping");
    assert_eq!(sorted(orphans.iter().map(|row| row.lease.task)), good);
    assert_eq!(suspects(world), [leases[1].task]);
    world.set_aside(leases[1].task, "queue");
}

pub(crate) fn r10_lists_go_past_what_cannot_be_read(world: &mut World) {
    let good = world.queued_many(2);
    let bad = world.queued_many(7);
    for task in &bad {
        world.damage(*task, "concurrency_key", Value::Null);
    }
    for limit in [1, 2, 100] {
        for filter in [ListFilter::default(), ListFilter { states: vec![State::Queued], ..ListFilter::default() }] {
            let (mut found, mut below) = (Vec::new(), None);
            for _ in 0..STEPS {
                let page = world.list(&filter, below, limit).expect("listing");
                found.extend(page.rows.iter().map(|row| row.envelope.id));
                assert!(page.next.is_none_or(|next| below.is_none_or(|below| next < below)));
                below = page.next;
                if below.is_none() {
                    break;
                }
            }
            assert_eq!(sorted(found), good, "pages of {limit}");
        }
    }
    let every: Vec<TaskId> = good.iter().chain(&bad).copied().collect();
    assert_eq!(world.tasks(&every).expect("reading").len(), 2);
    sweep(world);
    assert_eq!(world.quarantined().expect("counting"), 7);
}

pub(crate) fn r10_a_bad_row_is_an_error_of_its_own_read_alone(world: &mut World) {
    let (bad, good) = (world.queued(), world.queued());
    world.damage(bad, "concurrency_key", Value::Null);
    let unreadable = |error: StoreError| match error {
        StoreError::Unreadable(defect) => defect.column,
        other => panic!("{other:?}"),
    };
    assert_eq!(unreadable(world.task(bad).expect_err("a row that cannot be read")), "concurrency_key");
    assert_eq!(
        unreadable(world.cancel(bad, "a test", None).expect_err("a row that cannot be read")),
        "concurrency_key"
    );
    assert!(world.task(good).expect("reading").is_some());
    world.cancelled(good);
    world.set_aside(bad, "concurrency_key");
    assert_eq!(world.task(bad).expect("reading"), None);
}

pub(crate) fn r10_what_readers_cannot_read_becomes_a_suspect_once(world: &mut World) {
    let bad = world.queued();
    world.damage(bad, "concurrency_key", Value::Null);
    assert_eq!(suspects(world), []);
    for _ in 0..3 {
        world.tasks(&[bad]).expect("reading");
    }
    assert_eq!(suspects(world), [bad]);
    assert_eq!(suspects(world), []);
    assert!(world.foreign().figures().unreadable["concurrency_key"] >= 3);
    world.set_aside(bad, "concurrency_key");
}

pub(crate) fn r10_an_unreadable_optional_column_is_ignored_and_counted(world: &mut World) {
    let worker = world.worker();
    let mut task = world.new_task();
    task.envelope.timeout_ms = Some(5000);
    let (odd, neighbour) = (world.put(task.clone()), {
        task.envelope.id = TaskId(Uuid::now_v7());
        world.put(task)
    });
    world.damage(odd, "timeout_ms", text("soon"));
    let row = world.row(odd);
    assert_eq!(row.ignored.iter().map(|defect| defect.column.as_str()).collect::<Vec<_>>(), ["timeout_ms"]);
    assert_eq!((row.envelope.timeout_ms, row.state), (None, State::Queued));
    let before = ignored(world, "timeout_ms");
    assert!(before > 0);
    let dispatch = world.dispatched(worker, odd);
    assert_eq!((dispatch.timeout_ms, &dispatch.spec[..]), (None, &b"spec"[..]));
    assert!(ignored(world, "timeout_ms") > before);
    assert_eq!(world.dispatched(worker, neighbour).timeout_ms, Some(5000));
    world.completed(dispatch.lease, State::Succeeded);
    assert_eq!((suspects(world), world.quarantined().expect("counting")), (Vec::new(), 0));
}

pub(crate) fn r10_an_optional_field_of_the_spec_is_ignored_and_counted(world: &mut World) {
    world.reopen(strict("N"));
    let task = world.queued_with(b"odd but sound");
    assert_eq!(world.dispatched(world.worker(), task).spec, b"odd but sound");
    assert_eq!(ignored(world, "spec.labels"), 1);
}

pub(crate) fn a_type_that_means_the_same_is_read(world: &mut World) {
    let mut task = world.new_task();
    task.envelope.exclusive = true;
    task.envelope.timeout_ms = Some(5000);
    let task = world.put(task);
    world.damage(task, "exclusive", text("true"));
    world.damage(task, "timeout_ms", text("7000"));
    let row = world.row(task);
    assert_eq!((row.envelope.exclusive, row.envelope.timeout_ms, row.ignored), (true, Some(7000), Vec::new()));
    let lease = world.dispatched(world.worker(), task).lease;
    world.completed(lease, State::Succeeded);
    assert_eq!(world.row(task).envelope.timeout_ms, Some(7000));
}

pub(crate) fn counts_moves_and_deletions_go_past_what_cannot_be_read(world: &mut World) {
    let (from, to) = (world.queue_named("from"), world.queue_named("to"));
    let tasks = [0; 3].map(|_| world.put(world.new_task_in(&from)));
    world.damage(tasks[1], "concurrency_key", Value::Null);
    assert_eq!(world.counts(std::slice::from_ref(&from)).expect("counting")[0].queued, 3);
    let deleted = world.delete_queue(&from, &DeleteMode::Move(to.clone()), None).expect("deleting");
    assert_eq!(deleted, DeleteResult::Gone);
    assert_eq!(world.row(tasks[2]).envelope.queue, to);
    assert!(world.position(tasks[2]).expect("counting").is_some());
    world.set_aside(tasks[1], "concurrency_key");
    assert_eq!(world.quarantine_row(tasks[1]).queue.as_deref(), Some("to"));
    assert_eq!(world.counts(&[to]).expect("counting")[0].queued, 2);
}

pub(crate) fn strays_are_what_no_feeder_meets(world: &mut World) {
    let good = [world.queued(), world.put(world.new_task_in(&world.queue_named("other")))];
    assert_eq!(world.strays(10).expect("looking for strays"), []);
    let strays = world.queued_many(4);
    for (task, column) in strays.iter().zip(["tenant", "rank", "queue"]) {
        world.damage(*task, column, Value::Null);
    }
    world.damage(strays[3], "queue", text("gone"));
    assert_eq!(sorted(world.strays(10).expect("looking for strays")), strays);
    assert_eq!(world.strays(1).expect("looking for strays").len(), 1);
    for (task, column) in strays.iter().zip(["tenant", "rank", "queue", "queue"]) {
        world.set_aside(*task, column);
    }
    assert_eq!(world.strays(10).expect("looking for strays"), []);
    assert_eq!(world.all(), [good[1], good[0]]);
}

pub(crate) fn drift_reports_a_changed_type(world: &mut World) {
    assert_eq!(world.drift().expect("comparing types"), []);
    if world.is_memory() {
        return;
    }
    let worker = world.worker();
    let task = world.queued();
    let expected = match world.is_postgres() {
        true => {
            world.sql("ALTER TABLE tasks ALTER COLUMN timeout_ms TYPE text USING timeout_ms::text");
            world.sql("ALTER TABLE finished_tasks ALTER COLUMN timeout_ms TYPE text USING timeout_ms::text");
            ("bigint", "text")
        }
        false => {
            world.sql(
                "PRAGMA writable_schema = ON;
                 UPDATE sqlite_schema SET sql = replace(sql, 'timeout_ms INTEGER', 'timeout_ms TEXT')
                 WHERE type = 'table' AND name IN ('tasks', 'finished_tasks');
                 PRAGMA schema_version = 4712; PRAGMA writable_schema = OFF",
            );
            ("INTEGER", "TEXT")
        }
    };
    let drift = world.drift().expect("comparing types");
    let told: Vec<_> = drift.iter().map(|drift| (drift.table.as_str(), drift.column.as_str())).collect();
    assert_eq!(told, [("tasks", "timeout_ms"), ("finished_tasks", "timeout_ms")]);
    let types = |drift: &millrace_store::Drift| (drift.expected.clone(), drift.found.clone());
    assert_eq!(types(&drift[0]), (expected.0.to_owned(), Some(expected.1.to_owned())));
    // The column is the worse for it, the service is not.
    let lease = world.dispatched(worker, task).lease;
    let mut new = world.new_task();
    new.envelope.timeout_ms = Some(60_000);
    let new = world.put(new);
    assert_eq!(world.dispatched(worker, new).timeout_ms, Some(60_000));
    world.requeued(lease, secs(0));
    let lease = world.dispatched(worker, task).lease;
    world.try_complete(completion(lease, State::Succeeded));
    assert_eq!(world.state(task), State::Succeeded);
}
