//! Rows that cannot be read are set aside, each alone, and looked at again by builds that have not refused them.

use std::time::Duration;

use millrace_core::{
    READER_RANGE,
    foreign::{self, Value, Verdict},
    id::TaskId,
    retry::OutcomeKind,
    task::State,
    time::Timestamp,
};
use millrace_store::{
    Claimed, Completed, Examined, LaneKey, OpenOptions, QuarantineFilter, QuarantinedRow, Released, Submitted, TaskRow,
};
use uuid::Uuid;

use crate::world::{CUT, DEFAULT, World, audit, completion, hours, lenient, request, requeue, secs, sorted, strict};

/// A task of which no column that a row need not have is empty.
fn full(world: &World, spec: &[u8]) -> TaskId {
    let mut task = world.new_task();
    task.envelope.rank = -7;
    task.envelope.resource_class = "large".into();
    task.envelope.concurrency_key = "key".into();
    task.envelope.exclusive = true;
    task.envelope.timeout_ms = Some(5000);
    task.envelope.trace_context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into();
    task.expire_after = Some(hours(5));
    task.spec = spec.to_vec();
    world.put(task)
}

/// Checks that a quarantined row has every column that the task had.
fn check_columns(row: &QuarantinedRow, before: &TaskRow, spec: &[u8], but: &str) {
    let (envelope, columns) = (&before.envelope, &row.row);
    let texts = [
        ("tenant", &envelope.tenant),
        ("queue", &envelope.queue),
        ("executor", &envelope.executor),
        ("resource_class", &envelope.resource_class),
        ("concurrency_key", &envelope.concurrency_key),
        ("trace_context", &envelope.trace_context),
    ];
    for (column, text) in texts.into_iter().filter(|(column, _)| *column != but) {
        assert_eq!(foreign::text(columns, column).as_ref(), Ok(text), "{column}");
    }
    let numbers = [
        ("rank", Some(envelope.rank.into())),
        ("state", Some(before.state as i64)),
        ("timeout_ms", envelope.timeout_ms),
        ("attempt", Some(before.attempt.into())),
        ("token", before.token.map(|token| token.0)),
        ("failures", Some(before.failures.into())),
        ("losses", Some(before.losses.into())),
        ("unsupported", Some(0)),
        ("created_at_us", Some(before.created_at_us)),
        ("ready_at_us", before.ready_at_us),
        ("wake_at_us", before.wake_at_us),
        ("expires_at_us", before.expires_at_us),
        ("dispatched_at_us", before.dispatched_at_us),
        ("started_at_us", before.started_at_us),
        ("format", Some(envelope.format.into())),
        ("min_reader", Some(envelope.min_reader.into())),
    ];
    for (column, number) in numbers.into_iter().filter(|(column, _)| *column != but) {
        assert!(columns.contains_key(column), "{column}");
        assert_eq!(foreign::integer::<i64>(columns, column).ok(), number, "{column}");
    }
    assert_eq!(foreign::uuid(columns, "id"), Ok(envelope.id.0));
    assert_eq!(foreign::boolean(columns, "exclusive"), Ok(envelope.exclusive));
    assert!(columns.contains_key("session_id"));
    assert_eq!(row.spec.as_deref(), Some(spec));
}

pub(crate) fn r10_a_bad_row_alone_is_set_aside_with_every_column_and_byte(world: &mut World) {
    world.reopen(lenient("before"));
    let worker = world.worker();
    let neighbours = [world.queued(), world.held(worker).task];
    let unknown = Value::Text(Uuid::now_v7().to_string());
    let long: Vec<u8> = (0..100_000).map(|number: u32| number as u8).collect();
    // What is wrong, the spec, and the column with what stands in it.
    let kinds = [
        ("attempt", &b"nothing"[..], Some(("attempt", Value::Null))),
        ("spec.payload", CUT, None),
        ("spec", &long[..], None),
        ("queue", &b"an orphan"[..], Some(("queue", Value::Text("gone".into())))),
        ("session_id", &b"held"[..], Some(("session_id", unknown))),
        // The last one, because PostgreSQL changes the type of every row's column for it.
        ("concurrency_key", &b"of another type"[..], Some(("concurrency_key", Value::Other("{}".into())))),
    ];
    let tasks: Vec<TaskId> = kinds.iter().map(|(_, spec, _)| full(world, spec)).collect();
    let lease = world.dispatched(worker, tasks[4]).lease;
    world.beat(worker, vec![(lease, Some(1))]);
    let rows: Vec<TaskRow> = tasks.iter().map(|task| world.row(*task)).collect();
    for (task, (_, _, change)) in tasks.iter().zip(&kinds) {
        if let Some((column, value)) = change {
            world.damage(*task, column, value.clone());
        }
    }
    world.reopen(strict("N"));
    let beside = neighbours.map(|task| world.row(task));
    let since = world.now();
    for ((task, before), (defect, spec, change)) in tasks.iter().zip(&rows).zip(&kinds) {
        world.set_aside(*task, defect);
        let row = world.quarantine_row(*task);
        check_columns(&row, before, spec, change.as_ref().map_or("", |(column, _)| column));
        assert_eq!((row.defect.column.as_str(), row.defect.error.is_empty()), (*defect, false));
        assert_eq!((&row.refused_by[..], row.writer_format), (&["N".to_owned()][..], Some(1)));
        assert!(row.first_seen_us >= since.0 && row.first_seen_us <= world.now().0);
        assert_eq!((world.task(*task).expect("reading"), world.is_quarantined(*task).expect("reading")), (None, true));
        assert_eq!(world.foreign().take_suspects(10), [], "nothing is left to be met");
        assert_eq!(neighbours.map(|task| world.row(task)), beside);
    }
    assert_eq!(world.quarantine_row(tasks[0]).row["attempt"], Value::Null);
    assert_eq!(world.quarantine_row(tasks[3]).queue.as_deref(), Some("gone"));
    assert_eq!(world.quarantined().expect("counting"), 6);
    assert_eq!(sorted(world.all()), sorted(neighbours));
}

pub(crate) fn r10_a_claim_sets_aside_what_it_cannot_run(world: &mut World) {
    world.reopen(strict("N"));
    let worker = world.worker();
    let task = full(world, CUT);
    let claim = world.claim_of(worker, DEFAULT, task);
    for _ in 0..2 {
        assert_eq!(world.try_claim(&claim), Claimed::Stale);
        assert_eq!(world.quarantine_row(task).defect.column, "spec.payload");
        assert_eq!(world.held_by(worker.id).expect("reading what it holds"), []);
    }
}

pub(crate) fn r9_what_is_too_new_is_left_alone_and_counted(world: &mut World) {
    let newer = READER_RANGE.1 + 1;
    let (state, reader) = (world.queued(), world.queued());
    world.damage(state, "state", Value::Integer(77));
    world.damage(reader, "min_reader", Value::Integer(newer.into()));
    for (task, column) in [(state, "state"), (reader, "min_reader")] {
        match world.examined(task) {
            Examined::TooNew(defect) => assert_eq!(defect.column, column),
            other => panic!("{other:?}"),
        }
        let claim = world.claim_of(world.worker(), DEFAULT, task);
        assert_eq!(world.try_claim(&claim), Claimed::Stale);
    }
    let before = world.foreign().figures().too_new;
    let lane = LaneKey { tenant: DEFAULT.into(), rank: 0 };
    let start = (Timestamp::MIN, TaskId(Uuid::nil()));
    let page = world.lane_page(DEFAULT, &lane, start, None, 10).expect("reading a lane");
    assert!(page.rows.iter().all(|row| row.min_reader >= newer), "{page:?}");
    assert_eq!(world.foreign().figures().too_new, before + 2);
    assert_eq!((world.quarantined().expect("counting"), world.strays(10).expect("looking for strays")), (0, vec![]));
    // A build that knows them finds them as they were.
    world.damage(state, "state", Value::Integer(2));
    world.damage(reader, "min_reader", Value::Integer(1));
    for task in [state, reader] {
        world.dispatched(world.worker(), task);
    }
}

pub(crate) fn r10_a_row_that_a_live_session_holds_stays_and_can_complete(world: &mut World) {
    let worker = world.worker();
    let (odd, cut) = (world.held(worker), world.dispatched(worker, world.queued_with(CUT)).lease);
    world.beat(worker, vec![(odd, None), (cut, None)]);
    world.damage(odd.task, "concurrency_key", Value::Other("{}".into()));
    world.reopen(strict("N"));
    for (lease, column) in [(odd, "concurrency_key"), (cut, "spec.payload")] {
        match world.examined(lease.task) {
            Examined::Held(defect) => assert_eq!(defect.column, column),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.quarantined().expect("counting"), 0);
    assert!(world.beat(worker, vec![]).0);
    let mut succeeded = completion(odd, State::Succeeded);
    succeeded.outcome.output_tail = b"done".to_vec();
    for _ in 0..2 {
        assert_eq!(world.try_complete(succeeded.clone()), Completed::Recorded);
    }
    assert_eq!(world.examined(odd.task), Examined::Gone);
    // The one whose session ends is nobody's any more.
    world.close_session(worker.id, None).expect("closing");
    world.set_aside(cut.task, "spec.payload");
    assert_eq!(world.try_complete(completion(cut, State::Succeeded)), Completed::Stale);
}

pub(crate) fn r10_a_held_row_with_nothing_where_something_should_be_can_complete(world: &mut World) {
    let worker = world.worker();
    let (odd, neighbour) = (world.held(worker), world.held(worker));
    world.damage(odd.task, "executor", Value::Null);
    world.damage(odd.task, "concurrency_key", Value::Null);
    let batch = [odd, neighbour].map(|lease| completion(lease, State::Succeeded));
    assert_eq!(world.complete(&batch).expect("completing"), [Completed::Recorded; 2]);
    assert_eq!(world.complete(&batch).expect("completing again"), [Completed::Recorded; 2]);
    assert_eq!([odd, neighbour].map(|lease| world.state(lease.task)), [State::Succeeded; 2]);
}

pub(crate) fn r10_a_row_that_nobody_has_got_to_run_is_with_nobody(world: &mut World) {
    let worker = world.worker();
    let lease = world.dispatched(worker, world.queued_with(CUT)).lease;
    world.reopen(strict("N"));
    assert!(matches!(world.examined(lease.task), Examined::Held(_)));
    // Long ago, and nothing was heard since: an outage is no reason to take it away.
    world.advance(secs(90));
    assert!(matches!(world.examined(lease.task), Examined::Held(_)));
    // Heard of, and still not accepted.
    assert!(world.beat(worker, Vec::new()).0);
    world.set_aside(lease.task, "spec.payload");
    assert!(world.beat(worker, vec![(lease, None)]).0);
}

pub(crate) fn r10_a_transient_error_quarantines_nothing(world: &mut World) {
    world.reopen(lenient("before"));
    let (bad, good) = (world.queued_with(CUT), world.queued());
    let lock_timeout = Duration::from_millis(100);
    world.reopen_with(OpenOptions { lock_timeout, reader: strict("N"), ..OpenOptions::default() });
    let error = world.failing(|| world.examine(&[bad, good])).expect_err("the database fails");
    assert!(error.is_transient(), "{error:?}");
    assert_eq!(world.quarantined().expect("counting"), 0);
    assert_eq!(sorted(world.all()), [bad, good]);
    world.set_aside(bad, "spec.payload");
    assert_eq!(world.examined(good), Examined::Readable);
}

pub(crate) fn r10_examining_again_changes_nothing(world: &mut World) {
    world.reopen(strict("N"));
    let task = world.aside();
    let row = world.quarantine_row(task);
    world.advance(secs(1));
    assert_eq!(world.examine(&[task, TaskId(Uuid::now_v7())]).expect("examining"), [Examined::Gone, Examined::Gone]);
    let again = world.quarantine_row(task);
    assert_eq!((again.row.len(), again.spec, again.refused_by), (row.row.len(), row.spec, row.refused_by));
    assert_eq!(world.examine(&[]).expect("examining"), []);
}

pub(crate) fn r10_inspecting_changes_nothing_and_pages_through_every_row(world: &mut World) {
    world.reopen(strict("N"));
    let tasks = world.queued_many(5);
    let cut = world.queued_with(CUT);
    world.damage(tasks[1], "concurrency_key", Value::Null);
    world.damage(tasks[2], "state", Value::Integer(77));
    world.damage(tasks[3], "queue", Value::Text("gone".into()));
    world.damage(tasks[4], "timeout_ms", Value::Text("soon".into()));
    let (mut judged, mut after) = (Vec::new(), None);
    loop {
        let page = world.inspect(after, 2).expect("inspecting");
        assert!(page.rows.len() <= 2);
        judged.extend(page.rows);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let verdicts: Vec<_> = judged.iter().map(|(task, reading)| (*task, &reading.verdict)).collect();
    let column = |at: usize| match verdicts[at].1 {
        Verdict::Readable => "",
        Verdict::TooNew(defect) | Verdict::Unreadable(defect) => defect.column.as_str(),
    };
    assert_eq!(verdicts.iter().map(|(task, _)| *task).collect::<Vec<_>>(), [tasks.clone(), vec![cut]].concat());
    assert_eq!([0, 1, 2, 3, 4, 5].map(column), ["", "concurrency_key", "state", "queue", "", "spec.payload"]);
    assert!(matches!(verdicts[2].1, Verdict::TooNew(_)));
    assert_eq!(judged[4].1.ignored.iter().map(|defect| &defect.column).collect::<Vec<_>>(), ["timeout_ms"]);
    assert_eq!(world.quarantined().expect("counting"), 0);
    world.damage(tasks[2], "state", Value::Integer(2));
    world.examine(&[tasks[1], tasks[3], cut]).expect("examining");
    assert_eq!(world.quarantined().expect("counting"), 3);
}

// ── Other builds ────────────────────────────────────────────────────────────────────────────────────────────────────

fn reexamined(world: &World) -> Vec<(TaskId, Released)> {
    let page = world.reexamine(None, 100).expect("examining again");
    assert_eq!(page.next, None);
    page.rows
}

pub(crate) fn r9_a_build_that_has_refused_a_row_does_not_examine_it_again_and_another_does(world: &mut World) {
    world.reopen(strict("N"));
    let task = world.aside();
    let spec = world.quarantine_row(task).spec;
    for _ in 0..2 {
        assert_eq!(reexamined(world), []);
    }
    world.reopen(strict("N+1"));
    assert!(matches!(&reexamined(world)[..], [(refused, Released::Refused(_))] if *refused == task));
    assert_eq!(world.quarantine_row(task).refused_by, ["N", "N+1"]);
    assert_eq!(reexamined(world), []);
    // Neither does the first one, in a mixed fleet.
    world.reopen(strict("N"));
    assert_eq!(reexamined(world), []);
    world.reopen(lenient("N+2"));
    assert_eq!(reexamined(world), [(task, Released::Done)]);
    assert_eq!(world.quarantined().expect("counting"), 0);
    let dispatch = world.dispatched(world.worker(), task);
    assert_eq!(Some(dispatch.spec), spec);
}

pub(crate) fn r9_reexamining_goes_on_from_page_to_page(world: &mut World) {
    world.reopen(strict("N"));
    let tasks: Vec<TaskId> = (0..5).map(|_| world.aside()).collect();
    world.reopen(lenient("N+1"));
    let (mut released, mut after) = (Vec::new(), None);
    for _ in 0..10 {
        let page = world.reexamine(after, 2).expect("examining again");
        assert!(page.rows.len() <= 2);
        released.extend(page.rows.into_iter().filter(|(_, what)| *what == Released::Done).map(|(task, _)| task));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(sorted(released), tasks);
}

pub(crate) fn r9_a_row_remembers_a_bounded_number_of_builds(world: &mut World) {
    world.reopen(strict("N"));
    let task = world.aside();
    for number in 0..25 {
        world.reopen(strict(&format!("N+{number}")));
        reexamined(world);
    }
    let builds = world.quarantine_row(task).refused_by;
    assert_eq!((builds.len(), builds.last().map(String::as_str)), (20, Some("N+24")));
    // An operator may let a build look again that has refused it; it is remembered once.
    assert!(matches!(world.release(&[task], &audit()).expect("releasing")[..], [Released::Refused(_)]));
    assert_eq!(world.quarantine_row(task).refused_by, builds);
}

pub(crate) fn the_quarantine_is_filtered_and_paged(world: &mut World) {
    world.reopen(strict("N"));
    let other = world.queue_named("other");
    let (mut of_other, mut of_acme) = (world.new_task_in(&other), world.new_task());
    of_other.spec = CUT.to_vec();
    of_acme.spec = CUT.to_vec();
    of_acme.envelope.tenant = "acme".into();
    let tasks = [world.aside(), world.put(of_other), world.put(of_acme), world.queued(), world.aside()];
    world.damage(tasks[3], "concurrency_key", Value::Null);
    world.examine(&tasks).expect("examining");
    let listed = |filter: QuarantineFilter, limit: i64| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = world.quarantine(&filter, after, limit).expect("reading the quarantine");
            assert!(page.rows.len() as i64 <= limit);
            found.extend(page.rows.iter().map(|row| row.task));
            after = page.next;
            if after.is_none() {
                return found;
            }
        }
    };
    let all = QuarantineFilter::default;
    for limit in [1, 2, 5, 100] {
        assert_eq!(listed(all(), limit), sorted(tasks), "pages of {limit}");
        assert_eq!(listed(QuarantineFilter { tenant: Some("acme".into()), ..all() }, limit), [tasks[2]]);
        assert_eq!(listed(QuarantineFilter { queue: Some(other.clone()), ..all() }, limit), [tasks[1]]);
        let column = Some("concurrency_key".to_owned());
        assert_eq!(listed(QuarantineFilter { column, ..all() }, limit), [tasks[3]]);
        let some = vec![tasks[4], tasks[0], TaskId(Uuid::now_v7())];
        assert_eq!(listed(QuarantineFilter { tasks: some, ..all() }, limit), sorted([tasks[0], tasks[4]]));
    }
    let first_seen_us = world.quarantine_row(tasks[0]).first_seen_us;
    assert_eq!(listed(QuarantineFilter { before_us: Some(first_seen_us), ..all() }, 10), [] as [TaskId; 0]);
    let later = world.now().after(hours(1)).0;
    assert_eq!(listed(QuarantineFilter { before_us: Some(later), ..all() }, 10).len(), 5);
}

// ── What else knows of the task ─────────────────────────────────────────────────────────────────────────────────────

pub(crate) fn r11_a_quarantined_task_still_has_its_request_key(world: &mut World) {
    world.reopen(strict("N"));
    let mut task = world.new_task();
    task.spec = CUT.to_vec();
    task.request = request();
    let id = world.put(task.clone());
    world.set_aside(id, "spec.payload");
    let mut again = task.clone();
    again.envelope.id = TaskId(Uuid::now_v7());
    assert_eq!(world.submit(&[again], false).expect("submitting"), [Submitted::Existing(id)]);
    // The submission itself, whose answer was lost.
    let repeated = world.submit(&[task], true).expect("submitting again");
    assert!(matches!(repeated[..], [Submitted::Stored { .. }]), "{repeated:?}");
    assert_eq!((world.task(id).expect("reading"), world.quarantined().expect("counting")), (None, 1));
}

pub(crate) fn retention_spares_what_is_set_aside(world: &mut World) {
    let mut task = world.new_task();
    task.spec = CUT.to_vec();
    task.request = request();
    let (key, mut other) = (task.request.expect("a key"), world.new_task());
    other.request = request();
    let other_key = other.request.expect("a key");
    let (id, ended) = (world.put(task), world.put(other));
    world.try_requeue(requeue(world.dispatched(world.worker(), id).lease, secs(0)));
    world.cancelled(ended);
    world.reopen(strict("N"));
    world.set_aside(id, "spec.payload");
    world.advance(hours(100));
    let mut after = None;
    loop {
        after = world.trim_requests(hours(24), after, 10).expect("trimming");
        if after.is_none() {
            break;
        }
    }
    while world.trim_attempts(None, 10).expect("trimming").is_some() {}
    world.trim_finished(hours(24)).expect("trimming");
    assert_eq!([key, other_key].map(|key| world.request(key).expect("reading a key")), [Some(id), None]);
    world.reopen(lenient("N+1"));
    assert_eq!(world.release(&[id], &audit()).expect("releasing"), [Released::Done]);
    let attempts = world.attempts(id).expect("reading attempts");
    assert_eq!(attempts.iter().map(|attempt| attempt.outcome.kind).collect::<Vec<_>>(), [OutcomeKind::Failed]);
    let lease = world.dispatched(world.worker(), id).lease;
    assert_eq!(lease.attempt, 2);
}
