//! Data that is not what it should be.

use super::*;

#[test]
fn a_damaged_file_fails_calls_and_nothing_else() {
    let bed = Bed::new();
    let tasks = bed.submit(2000);
    let session = bed.session();
    let leases: Vec<LeaseRef> = bed.claim(session, &tasks[..10]).iter().map(lease_of).collect();
    let Bed { folder, store } = bed;
    drop(store);
    let path = folder.path().join("millrace.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // The first pages stay, so that the file opens and has its schema.
    let intact = 4096 * 60;
    assert!(bytes.len() > 2 * intact);
    bytes[intact..].iter_mut().step_by(3).for_each(|byte| *byte = !*byte);
    std::fs::write(&path, bytes).unwrap();
    let bed = Bed { store: open(&path), folder };
    let mut failed = 0;
    let mut note = |result: Result<()>| match result {
        Ok(()) => {}
        Err(StoreError::Internal(_) | StoreError::Unreadable(_)) => failed += 1,
        Err(other) => panic!("{other}"),
    };
    note(bed.store.tasks(&tasks).map(drop));
    note(bed.store.list(&ListFilter::default(), None, 5000).map(drop));
    note(bed.store.counts(&[]).map(drop));
    note(bed.store.lanes("default", None, 10).map(drop));
    note(bed.store.held_by(session).map(drop));
    note(bed.store.orphans(10).map(drop));
    note(bed.store.cancel(tasks[1000], "a test", None).map(drop));
    let completion =
        |lease| Completion { lease, state: State::Succeeded, outcome: succeeded(), failures: 0, losses: 0 };
    note(bed.store.complete(&leases.into_iter().map(completion).collect::<Vec<_>>()).map(drop));
    note(bed.store.submit(&[new_task()], false).map(drop));
    assert!(failed > 0);
}

#[test]
fn r8_text_with_a_nul_fails_alone() {
    let bed = Bed::new();
    let mut batch: Vec<NewTask> = (0..3).map(|_| new_task()).collect();
    batch[1].envelope.tenant = "ten\0ant".into();
    let submitted = bed.store.submit(&batch, false).unwrap();
    assert!(matches!(&submitted[1], Submitted::Refused(reason) if reason.contains("0x00")), "{submitted:?}");
    assert_eq!(bed.waiting(), [batch[0].envelope.id, batch[2].envelope.id]);
    assert_eq!(bed.store.task(batch[1].envelope.id).unwrap(), None);
    let refused =
        bed.store.audit(&Audit { action: "a\0b".into(), subject: String::new(), detail: String::new() }).unwrap_err();
    assert!(matches!(&refused, StoreError::Data { sqlstate, .. } if sqlstate == "22021"), "{refused}");
}

/// Every way in which SQLite lets a column hold what it is not for.
const BAD: [&str; 10] = [
    "rank = 'high'",
    "rank = 99999999999",
    "attempt = 'first'",
    "attempt = 1.5",
    "tenant = x'ff00'",
    "tenant = CAST(x'ff' AS TEXT)",
    "spec = 'words'",
    "state = 77",
    "min_reader = 'new'",
    "concurrency_key = x'00'",
];

#[test]
fn a_row_with_a_wrong_type_is_left_out_and_its_neighbours_are_not() {
    for bad in BAD {
        let bed = Bed::new();
        let tasks = bed.submit(3);
        bed.vandalize(&format!("UPDATE tasks SET {bad} WHERE id = x'{}'", tasks[1].0.simple()));
        let good = [tasks[0], tasks[2]];
        let lanes = bed.store.lanes("default", None, 10).unwrap();
        assert!(lanes.contains(&LaneKey { tenant: "tenant".into(), rank: 0 }), "{bad}: {lanes:?}");
        let seen = bed.waiting();
        assert!(good.iter().all(|task| seen.contains(task)), "{bad}: {seen:?}");
        let claimed = bed.claim(bed.session(), &tasks);
        assert!(matches!(&claimed[0], Claimed::Won(_)) && matches!(&claimed[2], Claimed::Won(_)), "{bad}: {claimed:?}");
        assert_eq!(claimed[1], Claimed::Stale, "{bad}");
        let found: Vec<TaskId> = bed.store.tasks(&tasks).unwrap().iter().map(|row| row.envelope.id).collect();
        assert!(good.iter().all(|task| found.contains(task)), "{bad}");
        let listed = bed.store.list(&ListFilter::default(), None, 10).unwrap().rows;
        assert!(listed.len() >= 2, "{bad}");
        // The claim has set it aside, unless a later release may know what it means.
        let later = bad == "state = 77";
        assert_eq!(bed.store.is_quarantined(tasks[1]).unwrap(), !later, "{bad}");
        assert_eq!(bed.store.task(tasks[1]).is_err(), later, "{bad}");
        bed.store.counts(&[]).unwrap();
        bed.store.position(tasks[2]).unwrap();
        bed.store.wake(10).unwrap();
        bed.store.expire(10).unwrap();
    }
}

#[test]
fn a_row_that_is_looked_at_alone_says_what_is_wrong_with_it() {
    for bad in BAD {
        let bed = Bed::new();
        let tasks = bed.submit(1);
        bed.vandalize(&format!("UPDATE tasks SET {bad}"));
        let column = bad.split(' ').next().unwrap();
        match bed.store.task(tasks[0]) {
            Err(StoreError::Unreadable(defect)) => assert_eq!(defect.column, column),
            other => panic!("{bad}: {other:?}"),
        }
        let judged = bed.store.inspect(None, 10).unwrap().rows;
        assert!(!matches!(judged[0].1.verdict, millrace_core::foreign::Verdict::Readable), "{bad}: {judged:?}");
    }
}

#[test]
fn a_column_that_a_task_runs_without_never_stops_it() {
    for column in millrace_core::foreign::OPTIONAL {
        // A claim writes these two anew.
        if matches!(column, "dispatched_at_us" | "started_at_us") {
            continue;
        }
        let bed = Bed::new();
        let tasks = bed.submit(1);
        bed.vandalize(&format!("UPDATE tasks SET {column} = x'00'"));
        let claimed = bed.claim(bed.session(), &tasks);
        let row = bed.store.task(tasks[0]).unwrap().unwrap();
        // People are not told of attempts that were not supported.
        if column != "unsupported" {
            assert_eq!(row.ignored.iter().map(|defect| defect.column.as_str()).collect::<Vec<_>>(), [column]);
            assert!(bed.store.foreign().figures().ignored[column] > 0);
        }
        let completion = Completion {
            lease: lease_of(&claimed[0]),
            state: State::Succeeded,
            outcome: succeeded(),
            failures: 0,
            losses: 0,
        };
        assert_eq!(bed.store.complete(&[completion]).unwrap(), [Completed::Recorded], "{column}");
    }
}

#[test]
fn strays_are_found_whatever_stands_in_the_index() {
    let bad = [
        "tenant = x'ff00'",
        "rank = 'high'",
        "rank = 1.5",
        "rank = 99999999999",
        "queue = x'00'",
        "queue = 'gone'",
        "ready_at_us = 'soon'",
        "ready_at_us = NULL, wake_at_us = 'soon'",
    ];
    for bad in bad {
        let bed = Bed::new();
        let tasks = bed.submit(3);
        bed.vandalize(&format!("UPDATE tasks SET {bad} WHERE id = x'{}'", tasks[1].0.simple()));
        assert_eq!(bed.store.strays(10).unwrap(), [tasks[1]], "{bad}");
        assert!(matches!(bed.store.examine(&tasks[1..2]).unwrap()[0], Examined::Quarantined(_)), "{bad}");
        assert_eq!(bed.store.strays(10).unwrap(), [], "{bad}");
    }
}

#[test]
fn what_was_set_aside_comes_back_to_the_byte() {
    let bed = Bed::new();
    let tasks = bed.submit(1);
    bed.vandalize("ALTER TABLE tasks ADD COLUMN colour");
    bed.vandalize(
        "UPDATE tasks SET colour = CAST(x'ff00' AS TEXT), trace_context = x'0001', created_at_us = 1.5, \
             concurrency_key = x'00'",
    );
    let whole = "SELECT hex(CAST(colour AS BLOB)) || typeof(colour) || hex(trace_context) || created_at_us || rank \
                     || hex(spec) || executor || format AS line FROM tasks";
    let before = bed.line(whole);
    assert!(matches!(bed.store.examine(&tasks).unwrap()[0], Examined::Quarantined(_)));
    let audit = Audit { action: "Repair".into(), subject: String::new(), detail: String::new() };
    let columns = [("concurrency_key".to_owned(), millrace_core::foreign::Value::Text(String::new()))].into();
    let repair = Repair { columns, spec: None };
    assert_eq!(bed.store.repair(tasks[0], &repair, false, &audit).unwrap(), Repaired::Done);
    assert_eq!(bed.line(whole), before);
}

#[test]
fn a_held_row_with_a_wrong_type_still_ends_and_harms_no_neighbour() {
    let bed = Bed::new();
    let tasks = bed.submit(3);
    let session = bed.session();
    let claimed = bed.claim(session, &tasks);
    bed.vandalize(&format!("UPDATE tasks SET trace_context = x'00', rank = 'x' WHERE id = x'{}'", tasks[1].0.simple()));
    // What an orchestrator needs of the row can be read.
    assert_eq!(bed.store.held_by(session).unwrap().len(), 3);
    let leases: Vec<LeaseRef> = claimed.iter().map(lease_of).collect();
    assert_eq!(bed.store.held_rows(&leases).unwrap().len(), 2);
    bed.store.close_session(session, None).unwrap();
    assert_eq!(bed.store.orphans(2).unwrap().len(), 2);
    let batch: Vec<Completion> = leases
        .into_iter()
        .map(|lease| Completion { lease, state: State::Succeeded, outcome: succeeded(), failures: 0, losses: 0 })
        .collect();
    assert_eq!(bed.store.complete(&batch).unwrap(), [Completed::Recorded; 3]);
}

#[test]
fn bad_rows_of_the_small_tables_close_what_they_are_about_and_nothing_else() {
    let bed = Bed::new();
    let tasks = bed.submit(2);
    let session = bed.session();
    bed.vandalize("UPDATE sessions SET generation = 'new'");
    let other = bed.session();
    assert_eq!(bed.claim(session, &tasks[..1]), [Claimed::SessionGone]);
    assert!(matches!(bed.claim(other, &tasks[..1])[..], [Claimed::Won(_)]));
    assert_eq!(bed.store.sessions(10).unwrap().len(), 1);
    bed.vandalize("UPDATE routes SET labels = '{'");
    assert!(bed.store.routing().unwrap().routes.is_empty());
    bed.vandalize("UPDATE queue_gates SET epoch = 'first'");
    assert!(bed.store.owners().unwrap().is_empty());
    bed.vandalize("UPDATE served_clock SET served_ms = 'noon'");
    assert!(matches!(bed.store.tick(TickRule::default()), Err(StoreError::Unreadable(_))));
}

#[test]
fn a_member_of_an_unknown_kind_is_left_out() {
    let bed = Bed::new();
    for kind in [MemberKind::Distributor, MemberKind::Queue] {
        let member = MemberRow {
            id: MemberId(Uuid::now_v7()),
            kind,
            endpoint: "http://127.0.0.1:1".into(),
            build: "test".into(),
            readers: (1, 1),
            seen_at_us: 0,
        };
        bed.store.renew_member(&member, 1000).unwrap();
    }
    bed.vandalize("UPDATE members SET kind = 9 WHERE kind = 2");
    let kinds: Vec<MemberKind> = bed.store.members().unwrap().iter().map(|member| member.kind).collect();
    assert_eq!(kinds, [MemberKind::Distributor]);
}
