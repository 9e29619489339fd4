//! The served clock and the leases that it ends (R7), members, and the cluster's row.

use millrace_core::served::TickRule;
use millrace_store::{Activated, MemberKind, MemberRow};

use crate::world::{DEFAULT, RULE, SECOND_MS, Worker, World, audit, hours, member, secs, sorted};

pub(crate) fn r7_a_lease_ends_when_served_time_has_passed_it(world: &World) {
    let (short, long) = (world.worker_for(hours(1)), world.worker_for(hours(3)));
    world.serve(secs(3500));
    assert_eq!(world.reap_sessions(10).expect("reaping"), []);
    world.serve(secs(200));
    assert_eq!(world.reap_sessions(10).expect("reaping"), [short.id]);
    assert_eq!(world.reap_sessions(10).expect("reaping"), []);
    assert!(!world.beat(short, vec![]).0);
    assert!(!world.beat(Worker { generation: 2, ..short }, vec![]).0);
    assert!(world.beat(long, vec![]).0);
}

pub(crate) fn r7_a_heartbeat_renews_the_lease(world: &World) {
    let worker = world.worker_for(hours(1));
    for _ in 0..3 {
        world.serve(secs(3500));
        assert_eq!(world.reap_sessions(10).expect("reaping"), []);
        assert!(world.beat(worker, vec![]).0);
        let row = &world.sessions(10).expect("listing")[0];
        let left_ms = row.expires_served_ms - world.served_ms();
        assert!(left_ms > 3590 * SECOND_MS && left_ms <= 3600 * SECOND_MS, "{left_ms} ms left");
        assert!(row.seen_at_us >= world.now().before(secs(10)).0);
    }
}

pub(crate) fn r7_a_gap_ages_no_lease(world: &World) {
    let worker = world.worker_for(hours(1));
    // Before it has counted anything there is no lease that a gap could age.
    world.serve(secs(1));
    let served = world.served_ms();
    // Nobody ticks for longer than a gap takes.
    world.advance(hours(200));
    let tick = world.tick(RULE).expect("ticking");
    assert!(tick.clock.is_frozen() && tick.clock.served_ms - served < 60 * SECOND_MS, "{tick:?}");
    assert_eq!(world.reap_sessions(10).expect("reaping"), []);
    world.thaw();
    assert_eq!(world.reap_sessions(10).expect("reaping"), []);
    assert!(world.beat(worker, vec![]).0);
    world.serve(secs(3500));
    assert_eq!(world.reap_sessions(10).expect("reaping"), []);
}

pub(crate) fn r7_nothing_is_reaped_while_the_clock_stands_still(world: &World) {
    let (late, dead) = (world.worker_for(hours(1)), world.worker_for(hours(1)));
    world.serve(hours(2));
    // Both have run out, and before anybody reaps, everything is down for long.
    world.advance(hours(200));
    assert!(world.tick(RULE).expect("ticking").clock.is_frozen());
    assert_eq!(world.reap_sessions(10).expect("reaping"), []);
    assert!(world.beat(late, vec![]).0, "who comes back in time keeps its lease");
    world.thaw();
    assert_eq!(world.reap_sessions(10).expect("reaping"), [dead.id]);
}

pub(crate) fn r7_a_session_that_ran_out_and_was_not_reaped_may_resume(world: &World) {
    let (resumed, beating) = (world.worker_for(hours(1)), world.worker_for(hours(1)));
    world.serve(hours(2));
    let answer = world.resume_session(resumed.id, resumed.generation, "elsewhere").expect("resuming");
    assert!(matches!(answer, millrace_store::Resumed::Yes { .. }), "{answer:?}");
    assert!(world.beat(beating, vec![]).0);
    assert_eq!(world.reap_sessions(10).expect("reaping"), []);
    world.serve(secs(3500));
    assert_eq!(world.reap_sessions(10).expect("reaping"), [], "the resume has renewed the lease");
}

pub(crate) fn r7_a_slow_tick_counts_as_one(world: &World) {
    let rule = TickRule { tick_ms: 500, ..RULE };
    let served = world.served_ms();
    world.advance(secs(100));
    let tick = world.tick(rule).expect("ticking");
    assert_eq!((tick.clock.served_ms - served, tick.clock.is_frozen()), (500, false));
    // What it did not count is not made up for: the clock has only been idle for as long as the calls took since.
    world.advance(secs(1));
    assert_eq!(world.tick(rule).expect("ticking").clock.served_ms - served, 1000);
}

pub(crate) fn r7_ticks_at_the_same_time_count_once(world: &World) {
    let before = world.served_ms();
    world.advance(hours(1));
    let ticks: Vec<i64> = (0..5).map(|_| world.tick(RULE).expect("ticking").clock.served_ms - before).collect();
    let hour_ms = 3600 * SECOND_MS;
    assert!(ticks.iter().all(|served| (hour_ms..hour_ms + 60 * SECOND_MS).contains(served)), "{ticks:?}");
    assert!(ticks.is_sorted());
}

pub(crate) fn reaping_is_bounded(world: &World) {
    let workers: Vec<Worker> = (0..3).map(|_| world.worker_for(hours(1))).collect();
    world.serve(hours(2));
    let mut reaped = world.reap_sessions(2).expect("reaping");
    assert_eq!(reaped.len(), 2);
    reaped.extend(world.reap_sessions(2).expect("reaping"));
    assert_eq!(sorted(reaped), sorted(workers.iter().map(|worker| worker.id)));
    assert_eq!(world.reap_sessions(2).expect("reaping"), []);
}

fn member_row(kind: MemberKind, port: u16) -> MemberRow {
    MemberRow {
        id: member(),
        kind,
        endpoint: format!("http://127.0.0.1:{port}"),
        build: "0.1.0+abc".into(),
        readers: (1, 3),
        seen_at_us: 0,
    }
}

/// Members as they were entered, without the time at which they were seen.
fn listed(world: &World) -> Vec<MemberRow> {
    let rows = world.members().expect("listing members");
    let now = world.now();
    let seen = |row: &MemberRow| row.seen_at_us > 0 && row.seen_at_us <= now.0;
    assert!(rows.iter().all(seen), "{rows:?}");
    rows.into_iter().map(|row| MemberRow { seen_at_us: 0, ..row }).collect()
}

pub(crate) fn members_are_listed_while_their_lease_lasts(world: &World) {
    let mut rows = vec![
        member_row(MemberKind::Queue, 7602),
        member_row(MemberKind::Distributor, 7601),
        member_row(MemberKind::Distributor, 7603),
    ];
    for row in &rows {
        world.renew_member(row, 3600 * SECOND_MS).expect("renewing");
    }
    rows.sort_by_key(|row| (row.kind as i16, row.id));
    assert_eq!(listed(world), rows, "by kind and id");
    // The second renews, with a changed endpoint, and the third leaves.
    world.serve(secs(3000));
    rows[1].endpoint = "http://127.0.0.1:9999".into();
    world.renew_member(&rows[1], 3600 * SECOND_MS).expect("renewing");
    world.remove_member(rows[2].id).expect("removing");
    world.remove_member(rows[2].id).expect("removing again");
    assert_eq!(listed(world), rows[..2]);
    world.serve(secs(1000));
    assert_eq!(listed(world), rows[1..2]);
    // One whose lease has ended may come back, even after those that ended long ago were removed.
    world.serve(hours(3));
    for row in [&rows[0], &rows[1]] {
        world.renew_member(row, 3600 * SECOND_MS).expect("renewing");
        assert!(listed(world).contains(row));
    }
}

pub(crate) fn r7_a_gap_ages_no_member_and_no_owner(world: &World) {
    let row = member_row(MemberKind::Distributor, 7601);
    world.renew_member(&row, 3600 * SECOND_MS).expect("renewing");
    let epoch = world.own_queue(DEFAULT, row.id, &row.endpoint, 3600 * SECOND_MS).expect("owning");
    assert!(epoch.is_some());
    world.advance(hours(200));
    world.thaw();
    assert_eq!(listed(world), [row]);
    assert_eq!(world.own_queue(DEFAULT, member(), "elsewhere", 3600 * SECOND_MS).expect("owning"), None);
}

pub(crate) fn the_cluster_describes_itself(world: &World) {
    let cluster = world.cluster().expect("reading the cluster's row");
    assert!(cluster.incarnation >= 1, "{cluster:?}");
    assert_eq!(cluster.write_format, millrace_core::ROW_FORMAT);
    assert!(!world.schema_version().expect("reading the version").is_empty());
}

pub(crate) fn r14_the_write_format_is_raised_once_every_live_reader_reads_it(world: &World) {
    let raise = |format: i16, rollback_reads: i16| {
        world.activate(format, rollback_reads, &audit()).expect("raising the write format")
    };
    let format = || world.cluster().expect("reading the cluster's row").write_format;
    let old = millrace_core::ROW_FORMAT;
    let (mut behind, mut ahead) = (member_row(MemberKind::Queue, 7602), member_row(MemberKind::Distributor, 7601));
    (behind.readers, ahead.readers) = ((1, old), (1, old + 1));
    for row in [&behind, &ahead] {
        world.renew_member(row, 3600 * SECOND_MS).expect("renewing");
    }
    assert_eq!(raise(old, old), Activated::Already(old));
    match raise(old + 1, old + 1) {
        Activated::Behind(rows) => assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [behind.id]),
        other => panic!("{other:?}"),
    }
    // Its lease ends, and so does its say.
    world.serve(hours(1));
    world.renew_member(&ahead, 36_000 * SECOND_MS).expect("renewing");
    world.serve(hours(2));
    assert_eq!(raise(old + 1, old), Activated::RollbackBehind(old));
    assert_eq!(format(), old);
    assert_eq!(world.audited("Test"), []);
    assert_eq!(raise(old + 1, old + 1), Activated::Done { before: old });
    assert_eq!(format(), old + 1);
    assert_eq!(raise(old + 1, old + 1), Activated::Already(old + 1));
    assert_eq!(world.audited("Test"), [audit()]);
}
