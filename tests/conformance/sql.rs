//! What only a database can do to a row or a call: columns that no release of this age would write, locks that others
//! hold, connections that break.

use std::{thread, time::Duration};

use diesel::{PgConnection, RunQueryDsl, connection::SimpleConnection, sql_query};
use millrace_core::{id::TaskId, task::State};
use millrace_store::{Claimed, OpenOptions, StoreError};

use crate::world::{DEFAULT, SECOND_MS, World, completion, hours, member, requeue, secs, sorted};

/// The task's id as SQL of both databases reads it: `x'…'` is a blob to SQLite, and PostgreSQL casts the text.
fn id(world: &World, task: TaskId) -> String {
    match world.is_postgres() {
        true => format!("'{task}'"),
        false => format!("x'{}'", task.0.simple()),
    }
}

macro_rules! on_both {
    ($($(#[$attribute:meta])* fn $name:ident($world:ident: &World) $body:block)*) => {
        $(fn $name($world: &World) $body)*
        mod sqlite { $(#[test] fn $name() { super::$name(&super::World::sqlite()); })* }
        mod postgres { $(#[test] fn $name() { super::$name(&super::World::postgres()); })* }
    };
}

on_both! {
    fn r9_a_state_that_this_build_does_not_know_harms_no_neighbour(world: &World) {
        let worker = world.worker();
        let (strange, good) = (world.queued(), world.queued());
        let held = world.held(worker);
        world.sql(&format!("UPDATE tasks SET state = 77 WHERE id = {}", id(world, strange)));
        let claims = [strange, good].map(|task| world.claim_of(worker, DEFAULT, task));
        let answers = world.claim(&claims).expect("claiming");
        assert_eq!(answers[0], Claimed::Stale);
        assert!(matches!(answers[1], Claimed::Won(_)), "{answers:?}");
        // Batch reads skip it, a read of it alone says that it cannot be read.
        assert_eq!(world.all(), sorted([good, held.task]).into_iter().rev().collect::<Vec<_>>());
        assert_eq!(world.tasks(&[strange, good]).expect("reading").len(), 1);
        let error = world.task(strange).expect_err("a row that cannot be read");
        assert!(matches!(&error, StoreError::Unreadable(defect) if defect.column == "state"), "{error:?}");
        // It is left as it is, for a build that knows it.
        world.sql(&format!("UPDATE tasks SET state = 2 WHERE id = {}", id(world, strange)));
        assert_eq!(world.state(strange), State::Queued);
    }

    fn r9_a_held_row_that_this_build_cannot_read_harms_no_neighbour(world: &World) {
        let worker = world.worker();
        let (strange, good) = (world.held(worker), world.held(worker));
        world.sql(&format!("UPDATE tasks SET state = 77 WHERE id = {}", id(world, strange.task)));
        assert_eq!(world.held_by(worker.id).expect("reading").len(), 1);
        assert_eq!(world.held_rows(&[strange, good]).expect("reading").len(), 1);
        assert!(world.beat(worker, vec![(strange, None), (good, None)]).0);
        assert_eq!(world.state(good.task), State::Running);
        world.close_session(worker.id, None).expect("closing");
        assert_eq!(world.orphans(10).expect("sweeping").len(), 1);
        world.completed(good, State::Succeeded);
        assert_eq!(world.sql_number("SELECT count(*) AS number FROM tasks WHERE state = 77"), 1);
    }

    fn r9_a_finished_row_with_an_unknown_outcome_harms_no_neighbour(world: &World) {
        let (strange, good) = (world.finished(State::Failed), world.finished(State::Failed));
        world.sql(&format!("UPDATE finished_tasks SET outcome = 77 WHERE id = {}", id(world, strange)));
        assert_eq!(world.all(), [good]);
        assert!(matches!(world.task(strange), Err(StoreError::Unreadable(_))));
    }

    fn quarantined_rows_are_seen(world: &World) {
        let (aside, other) = (world.queued(), world.queued());
        world.sql(&format!(
            "INSERT INTO quarantine (task_id, raw, error, column_name, refused_by, first_seen_us)
             VALUES ({}, '{{}}', 'no such state', 'state', 'test', 1)",
            id(world, aside)
        ));
        assert!(world.is_quarantined(aside).expect("reading"));
        assert!(!world.is_quarantined(other).expect("reading"));
        assert_eq!(world.quarantined().expect("counting"), 1);
    }

    fn members_gone_for_an_hour_are_removed(world: &World) {
        let row = |port: u16| millrace_store::MemberRow {
            id: member(),
            kind: millrace_store::MemberKind::Queue,
            endpoint: format!("http://127.0.0.1:{port}"),
            build: "test".into(),
            readers: (1, 1),
            seen_at_us: 0,
        };
        world.renew_member(&row(1), 10 * SECOND_MS).expect("renewing");
        world.serve(hours(2));
        world.renew_member(&row(2), 10 * SECOND_MS).expect("renewing");
        assert_eq!(world.sql_number("SELECT count(*) AS number FROM members"), 1);
    }

    fn a_finished_task_leaves_nothing_in_the_hot_table(world: &World) {
        let worker = world.worker();
        for lease in [world.held(worker), world.held(worker)] {
            world.try_requeue(requeue(lease, secs(0)));
            let lease = world.dispatched(worker, lease.task).lease;
            world.try_complete(completion(lease, State::Succeeded));
        }
        assert_eq!(world.sql_number("SELECT count(*) AS number FROM tasks"), 0);
        assert_eq!(world.sql_number("SELECT count(*) AS number FROM finished_tasks"), 2);
    }
}

// ── PostgreSQL alone ────────────────────────────────────────────────────────────────────────────────────────────────

/// Waits until another connection waits for a lock, which is how a test sees that a call has come to where it must wait.
fn await_a_waiter(connection: &mut PgConnection) {
    #[derive(diesel::QueryableByName)]
    struct Waiters {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        waiters: i64,
    }
    for _ in 0..100_000 {
        let rows: Vec<Waiters> = sql_query(
            "SELECT count(*) AS waiters FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .load(connection)
        .expect("looking for waiters");
        if rows[0].waiters > 0 {
            return;
        }
        thread::yield_now();
    }
    panic!("nobody waits for a lock");
}

/// Holds a lock as a claim in flight does, and checks that the call waits for it and then sees what it did.
fn waits_for(world: &World, lock: &str, call: impl FnOnce() + Send) {
    let database = world.postgres_database();
    let mut in_flight = database.connect();
    let mut watcher = database.connect();
    in_flight.batch_execute(&format!("BEGIN; {lock}")).expect("holding the lock");
    thread::scope(|scope| {
        let caller = scope.spawn(call);
        await_a_waiter(&mut watcher);
        assert!(!caller.is_finished());
        in_flight.batch_execute("COMMIT").expect("committing");
        caller.join().expect("the call");
    });
}

#[test]
fn r5_raising_the_epoch_waits_for_claims_in_flight() {
    let world = World::postgres();
    let old = world.gate(DEFAULT);
    waits_for(&world, "SELECT 1 FROM queue_gates WHERE queue = 'default' FOR SHARE", || {
        let new = world.own_queue(DEFAULT, member(), "here", 1000).expect("owning");
        assert!(new > Some(old));
    });
}

#[test]
fn r5_renewing_an_ownership_waits_for_no_claim() {
    let world = World::postgres();
    let owner = member();
    let epoch = world.own_queue(DEFAULT, owner, "here", 1000).expect("owning").expect("an epoch");
    let mut in_flight = world.postgres_database().connect();
    in_flight
        .batch_execute("BEGIN; SELECT 1 FROM queue_gates WHERE queue = 'default' FOR SHARE")
        .expect("holding the lock");
    // Under the lock: if it needed the gate, it would end in a timeout.
    assert_eq!(world.own_queue(DEFAULT, owner, "here", 1000).expect("renewing"), Some(epoch));
    assert_eq!(world.renew_queues(owner, &[(DEFAULT.into(), epoch)], 1000).expect("renewing"), [""; 0]);
    in_flight.batch_execute("COMMIT").expect("committing");
}

#[test]
fn r5_taking_the_scalers_lease_waits_for_a_save_in_flight_and_renewing_it_does_not() {
    let world = World::postgres();
    let (first, second) = (member(), member());
    let taken = world.lead("scaler", first, "here", 3_600_000).expect("taking");
    let saving = "SELECT 1 FROM scaler_leases FOR KEY SHARE";
    let mut in_flight = world.postgres_database().connect();
    in_flight.batch_execute(&format!("BEGIN; {saving}")).expect("holding the lock");
    // Under the lock: if it needed more of the row, it would end in a timeout.
    assert_eq!(world.lead("scaler", first, "here", 3_600_000).expect("renewing").epoch, taken.epoch);
    assert_eq!(world.lead("scaler", second, "there", 3_600_000).expect("asking").owner, first);
    assert!(world.save_fleet("scaler", taken.epoch, &millrace_store::FleetBatch::default()).expect("saving"));
    world.resign("scaler", first).expect("resigning");
    in_flight.batch_execute("COMMIT").expect("committing");
    waits_for(&world, saving, || {
        let next = world.lead("scaler", second, "there", 3_600_000).expect("taking");
        assert_eq!((next.owner, next.epoch), (second, taken.epoch + 1));
    });
}

#[test]
fn r5_a_save_waits_for_whoever_takes_the_lease_and_then_writes_nothing() {
    let world = World::postgres();
    let taken = world.lead("scaler", member(), "here", 3_600_000).expect("taking");
    let taking = "SELECT 1 FROM scaler_leases FOR UPDATE; UPDATE scaler_leases SET epoch = epoch + 1";
    waits_for(&world, taking, || {
        assert!(!world.save_fleet("scaler", taken.epoch, &millrace_store::FleetBatch::default()).expect("saving"));
    });
}

#[test]
fn r2_ending_a_session_waits_for_claims_in_flight() {
    let world = World::postgres();
    let worker = world.worker();
    waits_for(&world, "SELECT 1 FROM sessions FOR SHARE", || {
        assert!(world.close_session(worker.id, None).expect("closing"));
    });
}

#[test]
fn r2_reaping_a_session_waits_for_claims_in_flight() {
    let world = World::postgres();
    let worker = world.worker_for(hours(1));
    world.serve(hours(2));
    // Skipped, a session for which there is always a claim under way would never end.
    waits_for(&world, "SELECT 1 FROM sessions FOR SHARE", || {
        assert_eq!(world.reap_sessions(10).expect("reaping"), [worker.id]);
    });
}

#[test]
fn claims_do_not_wait_for_each_other() {
    let world = World::postgres();
    let claim = world.claim_of(world.worker(), DEFAULT, world.queued());
    let mut in_flight = world.postgres_database().connect();
    in_flight
        .batch_execute(
            "BEGIN; SELECT 1 FROM queue_gates WHERE queue = 'default' FOR SHARE; SELECT 1 FROM sessions FOR SHARE",
        )
        .expect("holding the locks");
    assert!(matches!(world.try_claim(&claim), Claimed::Won(_)));
    in_flight.batch_execute("COMMIT").expect("committing");
}

#[test]
fn sweeps_skip_rows_that_others_have_locked() {
    let world = World::postgres();
    let mut scheduled = world.new_task();
    scheduled.not_before = Some(world.now().after(hours(1)));
    let mut expiring = world.new_task();
    expiring.expire_after = Some(hours(1));
    world.put(scheduled);
    world.put(expiring);
    world.advance(hours(2));
    let mut other = world.postgres_database().connect();
    other.batch_execute("BEGIN; SELECT 1 FROM tasks FOR UPDATE").expect("locking");
    assert_eq!(world.wake(10).expect("waking"), []);
    assert_eq!(world.expire(10).expect("expiring"), []);
    other.batch_execute("COMMIT").expect("committing");
    assert_eq!(world.wake(10).expect("waking").len(), 1);
    assert_eq!(world.expire(10).expect("expiring").len(), 1);
}

#[test]
fn a_lock_that_is_not_given_up_ends_in_a_timeout_and_changes_nothing() {
    let world = World::postgres();
    let options = OpenOptions { lock_timeout: Duration::from_millis(100), ..OpenOptions::default() };
    let store = millrace_store::open(&world.postgres_database().url(), &options).expect("opening");
    let claim = world.claim_of(world.worker(), DEFAULT, world.queued());
    let mut other = world.postgres_database().connect();
    other.batch_execute("BEGIN; SELECT 1 FROM tasks FOR UPDATE").expect("locking");
    let error = store.claim(std::slice::from_ref(&claim)).expect_err("the row is locked");
    assert!(matches!(error, StoreError::Timeout(_)) && error.is_transient(), "{error:?}");
    other.batch_execute("ROLLBACK").expect("giving up");
    assert!(matches!(store.claim(&[claim]).expect("claiming")[..], [Claimed::Won(_)]));
}

#[test]
fn broken_connections_are_thrown_away() {
    let world = World::postgres();
    world.queued();
    // Every connection of the store's pools is cut, as a restart of the server does.
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    world.postgres_database().connect().batch_execute(cut).expect("cutting connections");
    // Each cut connection may cost one call, and says that the call may be made again.
    let version = crate::world::again(|_| world.cluster()).route_version;
    let task = crate::world::new_task(version);
    crate::world::again(|repeat| world.submit(std::slice::from_ref(&task), repeat));
    assert_eq!(crate::world::again(|_| world.tasks(&[task.envelope.id])).len(), 1);
}
