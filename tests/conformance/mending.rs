//! The ways out of the quarantine: release, repair, discard.

use millrace_core::{foreign::Value, id::TaskId, retry::OutcomeKind, task::State};
use millrace_store::{Audit, DeleteMode, DeleteResult, Released, Repair, Repaired};
use uuid::Uuid;

use crate::world::{CUT, DEFAULT, World, audit, hours, lenient, sorted, strict};

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn by(action: &str) -> Audit {
    Audit { action: action.into(), subject: "the operator".into(), detail: "because of a test".into() }
}

fn released(world: &World, task: TaskId) -> Released {
    let mut answers = world.release(&[task], &by("Release")).expect("releasing");
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

fn column(name: &str, value: Value) -> Repair {
    Repair { columns: [(name.to_owned(), value)].into(), spec: None }
}

fn repaired(world: &World, task: TaskId, repair: &Repair) -> Repaired {
    let tried = world.repair(task, repair, true, &by("Repair")).expect("trying a repair");
    let before = world.quarantined().expect("counting");
    let done = world.repair(task, repair, false, &by("Repair")).expect("repairing");
    assert_eq!(tried, done, "what was tried and what was done");
    assert_eq!(before - world.quarantined().expect("counting"), i64::from(done == Repaired::Done));
    done
}

pub(crate) fn released_rows_run_with_their_bytes_and_unknown_columns_intact(world: &mut World) {
    world.reopen(strict("N"));
    if !world.is_memory() {
        world.add_column("colour");
    }
    let spec: Vec<u8> = CUT.iter().copied().chain(0..=255).collect();
    let mut task = world.new_task();
    task.spec = spec.clone();
    task.envelope.rank = -7;
    task.envelope.timeout_ms = Some(5000);
    task.envelope.concurrency_key = "key".into();
    let task = world.put(task);
    let before = world.row(task);
    world.damage(task, "colour", text("réd"));
    world.set_aside(task, "spec.payload");
    assert_eq!(world.quarantine_row(task).row["colour"], text("réd"));
    world.reopen(lenient("N+1"));
    let since = world.now();
    assert_eq!(released(world, task), Released::Done);
    let row = world.row(task);
    assert!(row.ready_at_us >= Some(since.0), "it joins its queue now");
    assert_eq!(row, millrace_store::TaskRow { ready_at_us: row.ready_at_us, ..before });
    // Set aside once more, it still has the column of the later release.
    world.reopen(strict("N"));
    world.set_aside(task, "spec.payload");
    assert_eq!(world.quarantine_row(task).row["colour"], text("réd"));
    world.reopen(lenient("N+1"));
    assert_eq!(released(world, task), Released::Done);
    let dispatch = world.dispatched(world.worker(), task);
    assert_eq!((dispatch.spec, dispatch.timeout_ms, dispatch.lease.attempt), (spec, Some(5000), 1));
    world.completed(dispatch.lease, State::Succeeded);
    assert_eq!(world.audited("Release").len(), 2);
    assert_eq!(world.audited("Release")[0].subject, task.to_string());
}

pub(crate) fn a_released_row_goes_on_where_it_was(world: &mut World) {
    world.reopen(lenient("N"));
    let worker = world.worker();
    let mut scheduled = world.new_task();
    scheduled.spec = CUT.to_vec();
    scheduled.not_before = Some(world.now().after(hours(3)));
    let scheduled = world.put(scheduled);
    let running = world.dispatched(worker, world.queued_with(CUT)).lease;
    world.beat(worker, vec![(running, None)]);
    let before = [scheduled, running.task].map(|task| world.row(task));
    world.close_session(worker.id, None).expect("closing");
    world.reopen(strict("N+1"));
    world.set_aside(scheduled, "spec.payload");
    world.set_aside(running.task, "spec.payload");
    assert_eq!(world.orphans(10).expect("sweeping"), []);
    world.reopen(lenient("N+2"));
    let answers = world.release(&[running.task, scheduled], &audit()).expect("releasing");
    assert_eq!(answers, [Released::Done, Released::Done]);
    let after = world.row(scheduled);
    assert_eq!((after.state, after.wake_at_us, after.ready_at_us), (State::Scheduled, before[0].wake_at_us, None));
    let after = world.row(running.task);
    assert_eq!((after.state, after.attempt, after.token, after.session), (State::Queued, 1, None, None));
    world.advance(hours(4));
    assert_eq!(world.wake(10).expect("waking").len(), 1);
    for task in [scheduled, running.task] {
        world.dispatched(world.worker(), task);
    }
}

pub(crate) fn r10_what_was_being_cancelled_ends_with_its_release(world: &mut World) {
    world.reopen(lenient("N"));
    let worker = world.worker();
    let lease = world.dispatched(worker, world.queued_with(CUT)).lease;
    world.cancelled(lease.task);
    world.close_session(worker.id, None).expect("closing");
    world.reopen(strict("N+1"));
    world.set_aside(lease.task, "spec.payload");
    world.reopen(lenient("N+2"));
    assert_eq!(released(world, lease.task), Released::Done);
    let row = world.row(lease.task);
    assert_eq!((row.state, row.outcome.expect("an outcome").kind), (State::Cancelled, OutcomeKind::Cancelled));
    assert_eq!(row.spec, CUT);
}

pub(crate) fn a_release_is_refused_while_the_row_cannot_be_read(world: &mut World) {
    world.reopen(strict("N"));
    let (cut, damaged) = (world.aside(), world.queued());
    world.damage(damaged, "concurrency_key", Value::Null);
    world.set_aside(damaged, "concurrency_key");
    let answers = world.release(&[damaged, cut, TaskId(Uuid::now_v7())], &by("Release")).expect("releasing");
    let columns: Vec<&str> = answers
        .iter()
        .map(|answer| match answer {
            Released::Refused(defect) => defect.column.as_str(),
            Released::NotFound => "not found",
            Released::Done => "done",
        })
        .collect();
    assert_eq!(columns, ["concurrency_key", "spec.payload", "not found"]);
    assert_eq!((world.quarantined().expect("counting"), world.audited("Release")), (2, Vec::new()));
}

pub(crate) fn a_row_whose_queue_is_gone_is_not_released(world: &mut World) {
    world.reopen(strict("N"));
    let other = world.queue_named("other");
    let mut task = world.new_task_in(&other);
    task.spec = CUT.to_vec();
    let task = world.put(task);
    world.set_aside(task, "spec.payload");
    assert_eq!(world.delete_queue(&other, &DeleteMode::Refuse, None).expect("deleting"), DeleteResult::Gone);
    world.reopen(lenient("N+1"));
    match released(world, task) {
        Released::Refused(defect) => assert_eq!(defect.column, "queue"),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.quarantine_row(task).defect.column, "queue");
    assert!(matches!(repaired(world, task, &column("queue", text("nowhere"))), Repaired::StillUnreadable(_)));
    assert_eq!(repaired(world, task, &column("queue", text(DEFAULT))), Repaired::Done);
    world.dispatched(world.worker(), task);
}

pub(crate) fn releasing_again_changes_nothing(world: &mut World) {
    world.reopen(strict("N"));
    let task = world.aside();
    world.reopen(lenient("N+1"));
    assert_eq!(released(world, task), Released::Done);
    let row = world.row(task);
    world.advance(hours(1));
    assert_eq!(released(world, task), Released::NotFound);
    assert_eq!(world.row(task).state, row.state);
    assert_eq!(world.release(&[], &audit()).expect("releasing"), []);
    assert_eq!(world.audited("Release").len(), 1);
}

// ── Repairing ───────────────────────────────────────────────────────────────────────────────────────────────────────

pub(crate) fn a_repair_is_judged_before_it_releases(world: &mut World) {
    let task = world.queued();
    world.damage(task, "attempt", Value::Null);
    world.damage(task, "concurrency_key", Value::Null);
    world.set_aside(task, "concurrency_key");
    let half = column("concurrency_key", text("key"));
    let defect = match repaired(world, task, &half) {
        Repaired::StillUnreadable(defect) => defect,
        other => panic!("{other:?}"),
    };
    assert_eq!(defect.column, "attempt");
    // Nothing was changed, not even the column that would be right now.
    assert_eq!(world.quarantine_row(task).row["concurrency_key"], Value::Null);
    let mut whole = half;
    whole.columns.insert("attempt".into(), Value::Integer(3));
    let tried = world.repair(task, &whole, true, &by("Repair")).expect("trying a repair");
    assert_eq!((tried, world.quarantined().expect("counting")), (Repaired::Done, 1));
    assert_eq!(world.quarantine_row(task).row["attempt"], Value::Null);
    assert_eq!(world.audited("Repair"), []);
    assert_eq!(repaired(world, task, &whole), Repaired::Done);
    let row = world.row(task);
    assert_eq!((row.state, row.attempt, row.envelope.concurrency_key.as_str()), (State::Queued, 3, "key"));
    assert_eq!(world.audited("Repair"), [by("Repair")]);
    assert_eq!(world.dispatched(world.worker(), task).lease.attempt, 4);
    assert_eq!(repaired(world, task, &whole), Repaired::NotFound);
}

pub(crate) fn a_row_that_joined_its_queue_at_no_moment_joins_it_with_its_release(world: &mut World) {
    let (task, twice) = (world.queued(), world.queued());
    for task in [task, twice] {
        world.damage(task, "ready_at_us", Value::Integer(i64::MIN));
    }
    world.set_aside(task, "ready_at_us");
    world.damage(twice, "attempt", Value::Integer(-3));
    assert!(matches!(world.examined(twice), millrace_store::Examined::Quarantined(_)));
    let since = world.now();
    assert_eq!(released(world, task), Released::Done);
    assert!(world.row(task).ready_at_us >= Some(since.0));
    world.dispatched(world.worker(), task);
    // What is wrong beside it still stands in the way.
    assert!(matches!(released(world, twice), Released::Refused(defect) if defect.column == "attempt"));
    let repaired = |attempt| repaired(world, twice, &column("attempt", Value::Integer(attempt)));
    assert!(matches!(repaired(-1), Repaired::StillUnreadable(_)));
    assert_eq!(repaired(1), Repaired::Done);
    assert_eq!(world.dispatched(world.worker(), twice).lease.attempt, 2);
}

pub(crate) fn a_row_that_a_claim_has_set_aside_is_mended_as_one_that_waits(world: &mut World) {
    let (worker, task) = (world.worker(), world.queued());
    world.damage(task, "attempt", Value::Integer(-3));
    assert_eq!(world.try_claim(&world.claim_of(worker, DEFAULT, task)), millrace_store::Claimed::Stale);
    world.examine(&[task]).expect("examining");
    assert_eq!(repaired(world, task, &column("attempt", Value::Integer(0))), Repaired::Done);
    assert_eq!(world.dispatched(worker, task).lease.attempt, 1);
}

pub(crate) fn a_repaired_spec_runs(world: &mut World) {
    world.reopen(strict("N"));
    let task = world.aside();
    let spec = |bytes: &[u8]| Repair { spec: Some(bytes.to_vec()), ..Repair::default() };
    assert!(matches!(repaired(world, task, &spec(CUT)), Repaired::StillUnreadable(_)));
    assert_eq!(repaired(world, task, &spec(b"mended")), Repaired::Done);
    assert_eq!(world.dispatched(world.worker(), task).spec, b"mended");
}

pub(crate) fn a_repair_of_what_is_no_column_is_refused(world: &mut World) {
    world.reopen(strict("N"));
    let task = world.aside();
    for (name, value) in [("id", text(&Uuid::now_v7().to_string())), ("nonsense", text("a")), ("spec", text("a"))] {
        let answer = repaired(world, task, &column(name, value));
        assert!(matches!(answer, Repaired::Refused(_)), "{name}: {answer:?}");
    }
    assert!(matches!(repaired(world, task, &column("rank", text("high"))), Repaired::StillUnreadable(_)));
    assert_eq!(world.quarantined().expect("counting"), 1);
}

// ── Discarding ──────────────────────────────────────────────────────────────────────────────────────────────────────

pub(crate) fn discarding_ends_the_task_and_keeps_the_row(world: &mut World) {
    world.reopen(strict("N"));
    let mut cut = world.new_task();
    cut.spec = CUT.to_vec();
    cut.envelope.rank = -7;
    let (cut, damaged, kept) = (world.put(cut), world.queued(), world.aside());
    world.damage(damaged, "tenant", Value::Null);
    world.damage(damaged, "concurrency_key", Value::Null);
    world.set_aside(cut, "spec.payload");
    world.set_aside(damaged, "tenant");
    let gone = world.discard(&[cut, damaged], "nobody «needs» them", &by("Discard")).expect("discarding");
    assert_eq!(sorted(gone), [cut, damaged]);
    for task in [cut, damaged] {
        let row = world.row(task);
        assert_eq!((row.state, row.ready_at_us, row.token, row.session), (State::Cancelled, None, None, None));
        let outcome = row.outcome.expect("an outcome");
        assert_eq!(outcome.kind, OutcomeKind::Cancelled);
        assert_eq!(outcome.message, "discarded from quarantine: nobody «needs» them");
    }
    let row = world.row(cut);
    assert_eq!((row.envelope.tenant.as_str(), row.envelope.rank, &row.spec[..]), (DEFAULT, -7, CUT));
    // The row as it was, for whoever asks later.
    let audited = world.audited("Discard");
    assert_eq!(sorted(audited.iter().map(|entry| entry.subject.clone())), [cut.to_string(), damaged.to_string()]);
    for entry in audited {
        let said = ["because of a test", "concurrency_key", "trace_context"].map(|part| entry.detail.contains(part));
        assert_eq!(said, [true; 3], "{}", entry.detail);
    }
    assert_eq!(world.quarantine_rows().iter().map(|row| row.task).collect::<Vec<_>>(), [kept]);
    assert_eq!(world.lanes(DEFAULT, None, 10).expect("listing lanes"), []);
}

pub(crate) fn discarding_again_changes_nothing(world: &mut World) {
    world.reopen(strict("N"));
    let task = world.aside();
    assert_eq!(world.discard(&[task], "a test", &by("Discard")).expect("discarding"), [task]);
    let row = world.row(task);
    world.advance(hours(1));
    let nobody = world.discard(&[task, TaskId(Uuid::now_v7())], "another", &by("Discard")).expect("discarding");
    assert_eq!((nobody, world.row(task).outcome), (Vec::new(), row.outcome));
    assert_eq!(world.audited("Discard").len(), 1);
}
