//! Migrations on live data: each applied, applied again, taken back and applied again while services work and somebody holds
//! a transaction open. No statement of the services may wait for a lock for over a second.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use diesel::{PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_query, sql_types};
use millrace_store::migrate;
use millrace_tests::{net, postgres, suite::Suite};

use crate::load::Load;

/// The longest that a statement of a service may wait for a lock.
const LIMIT: Duration = Duration::from_secs(1);

/// How long the transaction stays open under a migration: far longer than a wait may be.
const HELD: Duration = Duration::from_secs(3);

// ── The meter ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// Looks at every statement that waits for a lock, all the time.
struct Meter {
    stop: Arc<AtomicBool>,
    longest: Arc<Mutex<(Duration, String)>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(QueryableByName)]
struct Waiting {
    #[diesel(sql_type = sql_types::BigInt)]
    waited_ms: i64,
    #[diesel(sql_type = sql_types::Text)]
    statement: String,
}

impl Meter {
    /// Statements of connections that call themselves `migration` are not looked at: those may wait.
    fn start(database: &postgres::Database) -> Self {
        let (stop, longest) = <(Arc<AtomicBool>, Arc<Mutex<(Duration, String)>>)>::default();
        let (stopped, seen, mut connection) = (stop.clone(), longest.clone(), database.connect());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for wait in waiting(&mut connection) {
                    let waited = Duration::from_millis(u64::try_from(wait.waited_ms).unwrap_or(0));
                    let mut longest = seen.lock().expect("the meter's lock");
                    if waited > longest.0 {
                        *longest = (waited, wait.statement);
                    }
                }
                net::pause();
            }
        });
        Self { stop, longest, thread: Some(thread) }
    }

    /// The longest wait so far, and the statement that waited.
    fn longest(&self) -> (Duration, String) {
        self.longest.lock().expect("the meter's lock").clone()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn waiting(connection: &mut PgConnection) -> Vec<Waiting> {
    let query = "SELECT (extract(epoch FROM clock_timestamp() - l.waitstart) * 1000)::bigint AS waited_ms, a.query AS statement
        FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE NOT l.granted AND l.waitstart IS NOT NULL AND a.datname = current_database() AND a.application_name <> 'migration'";
    sql_query(query).load(connection).expect("looking at who waits")
}

/// The meter would see a service that waits too long.
#[test]
fn the_meter_sees_a_statement_that_waits() {
    let database = postgres::fresh_database();
    let meter = Meter::start(&database);
    let mut holder = database.connect();
    holder.batch_execute("BEGIN; LOCK TABLE queues IN ACCESS EXCLUSIVE MODE").expect("holding a lock");
    let mut waiter = database.connect();
    let waits = std::thread::spawn(move || waiter.batch_execute("SELECT 1 FROM queues"));
    let deadline = Instant::now() + Duration::from_secs(30);
    while meter.longest().0 <= LIMIT {
        assert!(Instant::now() < deadline, "the meter has seen {:?}", meter.longest());
        net::pause();
    }
    assert!(meter.longest().1.contains("FROM queues"));
    holder.batch_execute("ROLLBACK").expect("letting go");
    waits.join().expect("the waiter").expect("its statement");
}

// ── The migrations ──────────────────────────────────────────────────────────────────────────────────────────────────

/// Runs a migration while a transaction that has read every table stays open for a while, and returns the migrations that it ran.
async fn migrate(
    database: &postgres::Database,
    load: &Load,
    change: impl FnOnce(&str) -> millrace_store::Result<Vec<String>> + Send + 'static,
) -> Vec<String> {
    let mut held = database.connect();
    held.batch_execute(
        "BEGIN; SELECT 1 FROM tasks, finished_tasks, sessions, queues, attempts, quarantine, cluster LIMIT 1",
    )
    .expect("holding a transaction open");
    let url = format!("{}?application_name=migration", database.url());
    let began = Instant::now();
    let migration = tokio::task::spawn_blocking(move || change(&url));
    while !migration.is_finished() && began.elapsed() < HELD {
        load.progress(5).await;
    }
    held.batch_execute("COMMIT").expect("ending the transaction");
    let names = migration.await.expect("the migration's thread");
    let names =
        names.unwrap_or_else(|error| panic!("a transaction that was open for {HELD:?} has stopped it: {error}"));
    load.progress(10).await;
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_under_load_with_a_transaction_open_hold_nobody_up() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let queue = suite.queue(&[]);
    let distributors = [suite.distributor(&[]), suite.distributor(&[])];
    let endpoints = [distributors[0].endpoint.as_str(), distributors[1].endpoint.as_str()];
    let _agent = suite.agent(&endpoints, &["--slots", "4"]);
    let meter = Meter::start(&database);
    let load = Load::start(&endpoints, suite.folder().join("history"), 4);
    load.progress(20).await;
    // The first migration makes everything, so there is no live data before it.
    let later = migrate::status(&database.url()).expect("the migrations' status").len() - 1;
    for _ in 0..2 {
        for _ in 0..later {
            assert_eq!(migrate(&database, &load, |url| migrate::down(url, 1)).await.len(), 1, "taken back");
        }
        assert_eq!(migrate(&database, &load, migrate::up).await.len(), later, "applied");
        assert_eq!(migrate(&database, &load, migrate::up).await, [""; 0], "applied again");
    }
    let (tasks, slowest) = load.finish().await;
    let (longest, statement) = meter.longest();
    eprintln!(
        "live: {later} migrations, {tasks} tasks, slowest submission {slowest:?}, longest wait for a lock {longest:?}"
    );
    assert!(longest <= LIMIT, "a statement has waited for {longest:?}: {statement}");
    assert!(net::is_healthy(&queue.http));
}
