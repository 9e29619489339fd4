//! A store with what tests need around it: time that passes when they say so, and short ways to set a scene.

mod damage;
mod scenes;

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use diesel::{QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_query};
use millrace_core::{
    ROW_FORMAT,
    held::LeaseRef,
    id::{MemberId, NodeId, SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    served::TickRule,
    task::State,
    time::{Timestamp, micros},
};
use millrace_store::{
    Audit, CancelResult, Claim, Claimed, Completed, Completion, Dispatch, Envelope, Heartbeat, LaneKey, MemoryStore,
    NewSession, NewTask, OpenOptions, Outcome, QueueRow, Requeue, Requeued, Store, Submitted, TaskRow,
};
use millrace_tests::{postgres, sqlite};
use uuid::Uuid;

pub(crate) use damage::{CUT, lenient, strict};
pub(crate) use scenes::*;

/// A second, in milliseconds.
pub(crate) const SECOND_MS: i64 = 1000;

/// How tests drive the served clock: one tick may count up to 100 h, a gap is longer than that.
pub(crate) const RULE: TickRule = TickRule { tick_ms: 360_000_000, gap_ms: 360_000_000, freeze_ms: 10_000 };

/// The queue and tenant of scenes that care for neither.
pub(crate) const DEFAULT: &str = "default";

/// A store of its own, migrated and empty.
pub(crate) struct World {
    store: Arc<dyn Store>,
    backend: Backend,
}

enum Backend {
    /// The model, and what moves its clock.
    Memory(MemoryStore, Box<dyn Fn(Duration) + Send + Sync>),
    Sqlite(sqlite::Database),
    Postgres(postgres::Database),
}

impl Deref for World {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

// ── The backends ────────────────────────────────────────────────────────────────────────────────────────────────────

impl World {
    pub(crate) fn memory() -> Self {
        let (store, clock) = MemoryStore::settable(Timestamp(1_700_000_000_000_000));
        let world = Self {
            store: Arc::new(store.clone()),
            backend: Backend::Memory(store, Box::new(move |span| clock.advance(span))),
        };
        world.thaw();
        world
    }

    pub(crate) fn sqlite() -> Self {
        let database = sqlite::fresh();
        let store = open(&database.url(), &OpenOptions::default());
        let world = Self { store, backend: Backend::Sqlite(database) };
        world.thaw();
        world
    }

    pub(crate) fn postgres() -> Self {
        let database = postgres::fresh_database();
        let store = open(&database.url(), &OpenOptions::default());
        let world = Self { store, backend: Backend::Postgres(database) };
        world.thaw();
        world
    }

    /// Lets time pass. A database's clock cannot be set, so every moment that it has written moves into the past instead.
    pub(crate) fn advance(&self, span: Duration) {
        let span_us = micros(span);
        match &self.backend {
            Backend::Memory(_, advance) => advance(span),
            Backend::Sqlite(database) => {
                let mut connection = database.connect();
                let shifts: Vec<Line> = sql_query(SQLITE_SHIFTS).load(&mut connection).expect("finding the moments");
                let updates: String =
                    shifts.iter().map(|shift| shift.line.replace("SPAN", &span_us.to_string()) + ";").collect();
                connection.batch_execute(&format!("BEGIN IMMEDIATE; {updates} COMMIT")).expect("moving the moments");
            }
            Backend::Postgres(database) => {
                let shift = POSTGRES_SHIFT.replace("SPAN", &span_us.to_string());
                database.connect().batch_execute(&shift).expect("moving the moments");
            }
        }
    }

    /// Runs SQL behind the store's back; tells whether the backend has any.
    pub(crate) fn sql(&self, sql: &str) -> bool {
        let result = match &self.backend {
            Backend::Memory(..) => return false,
            Backend::Sqlite(database) => database.connect().batch_execute(sql),
            Backend::Postgres(database) => database.connect().batch_execute(sql),
        };
        result.unwrap_or_else(|error| panic!("{sql}: {error}"));
        true
    }

    /// Counts behind the store's back; the query names its one column `number`.
    pub(crate) fn sql_number(&self, sql: &str) -> i64 {
        let rows: Vec<Number> = match &self.backend {
            Backend::Memory(..) => panic!("the model has no SQL"),
            Backend::Sqlite(database) => sql_query(sql).load(&mut database.connect()),
            Backend::Postgres(database) => sql_query(sql).load(&mut database.connect()),
        }
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows[0].number
    }

    /// Whether SQL here is PostgreSQL's.
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.backend, Backend::Postgres(_))
    }

    /// The PostgreSQL database, for what only it has.
    pub(crate) fn postgres_database(&self) -> &postgres::Database {
        match &self.backend {
            Backend::Postgres(database) => database,
            _ => panic!("not a world on PostgreSQL"),
        }
    }

    /// Checks what holds between any two calls.
    pub(crate) fn check_invariants(&self) {
        match &self.backend {
            Backend::Memory(store, _) => {
                if let Err(broken) = store.check_invariants() {
                    panic!("{broken}");
                }
            }
            Backend::Sqlite(_) | Backend::Postgres(_) => {
                for (rule, query) in INVARIANTS {
                    assert_eq!(self.sql_number(query), 0, "rows that break the rule: {rule}");
                }
            }
        }
    }
}

fn open(url: &str, options: &OpenOptions) -> Arc<dyn Store> {
    millrace_store::open(url, options).unwrap_or_else(|error| panic!("opening {url}: {error}"))
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = diesel::sql_types::Text)]
    line: String,
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    number: i64,
}

/// Columns that end in `_us` are moments by the database's clock, except these: a width, and two by the orchestrator's.
const SQLITE_SHIFTS: &str = r"
    SELECT 'UPDATE ' || t.name || ' SET ' || group_concat(c.name || ' = ' || c.name || ' - SPAN', ', ') AS line
    FROM sqlite_master t JOIN pragma_table_info(t.name) c
    WHERE t.type = 'table' AND c.name LIKE '%\_us' ESCAPE '\' AND c.name NOT IN ('slice_us', 'started_at_us', 'ended_at_us')
    GROUP BY t.name";

const POSTGRES_SHIFT: &str = r"
    DO $$ DECLARE shift record; BEGIN
        FOR shift IN
            SELECT c.attrelid::regclass AS name, string_agg(format('%1$I = %1$I - SPAN', c.attname), ', ') AS sets
            FROM pg_attribute c JOIN pg_class t ON t.oid = c.attrelid
            WHERE t.relnamespace = 'public'::regnamespace AND t.relkind IN ('r', 'p') AND NOT t.relispartition
              AND c.attnum > 0 AND NOT c.attisdropped
              AND c.attname LIKE '%\_us' AND c.attname NOT IN ('slice_us', 'started_at_us', 'ended_at_us')
            GROUP BY c.attrelid
        LOOP
            EXECUTE format('UPDATE %s SET %s', shift.name, shift.sets);
        END LOOP;
    END $$";

/// What no row may break, as queries that count those that do. Columns that say the same twice must agree.
const INVARIANTS: [(&str, &str); 9] = [
    (
        "ready_at_us is set exactly while QUEUED",
        "SELECT count(*) AS number FROM tasks WHERE (ready_at_us IS NOT NULL) <> (state = 2)",
    ),
    (
        "wake_at_us is set exactly while SCHEDULED",
        "SELECT count(*) AS number FROM tasks WHERE (wake_at_us IS NOT NULL) <> (state = 1)",
    ),
    (
        "session_id and token are set exactly while held",
        "SELECT count(*) AS number FROM tasks WHERE (session_id IS NOT NULL) <> (state IN (3, 4, 5))
            OR (token IS NOT NULL) <> (state IN (3, 4, 5))",
    ),
    (
        "live and finished states stay in their tables",
        "SELECT (SELECT count(*) FROM tasks WHERE state NOT BETWEEN 1 AND 5 AND state < 10)
            + (SELECT count(*) FROM finished_tasks WHERE state NOT BETWEEN 6 AND 9) AS number",
    ),
    (
        "a task is in one table, once",
        "SELECT count(*) AS number FROM (SELECT id FROM (SELECT id FROM tasks UNION ALL SELECT id FROM finished_tasks) every_task
            GROUP BY id HAVING count(*) > 1) twice",
    ),
    (
        "the session of a held task exists",
        "SELECT count(*) AS number FROM tasks t WHERE t.session_id IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.id = t.session_id)",
    ),
    (
        "an event is of a node that there is",
        "SELECT count(*) AS number FROM node_events e WHERE NOT EXISTS (SELECT 1 FROM nodes n WHERE n.id = e.node_id)",
    ),
    (
        "a status is of a pool that there is",
        "SELECT count(*) AS number FROM pool_statuses s WHERE NOT EXISTS (SELECT 1 FROM pools p WHERE p.name = s.pool)",
    ),
    (
        "the queue of a live task exists",
        "SELECT count(*) AS number FROM tasks t WHERE NOT EXISTS (SELECT 1 FROM queues q WHERE q.name = t.queue)",
    ),
];

// ── Time ────────────────────────────────────────────────────────────────────────────────────────────────────────────

impl World {
    /// The database's time.
    pub(crate) fn now(&self) -> Timestamp {
        // Any read that tells it will do.
        let lane = LaneKey { tenant: DEFAULT.into(), rank: 0 };
        let end = (Timestamp(i64::MAX), TaskId(Uuid::max()));
        self.lane_page(DEFAULT, &lane, end, None, 1).expect("reading a lane").now
    }

    /// Lets time pass and counts it as served, at most 100 h a call.
    pub(crate) fn serve(&self, span: Duration) {
        self.advance(span);
        let tick = self.tick(RULE).expect("ticking");
        assert!(!tick.clock.is_frozen(), "the clock stands still: {tick:?}");
    }

    /// Gets a clock that stands still going again.
    pub(crate) fn thaw(&self) {
        for _ in 0..10 {
            if !self.tick(RULE).expect("ticking").clock.is_frozen() {
                return;
            }
            self.advance(Duration::from_millis(RULE.freeze_ms as u64 + 1000));
        }
        panic!("the served clock does not thaw");
    }

    /// Served time now, in milliseconds.
    pub(crate) fn served_ms(&self) -> i64 {
        self.tick(RULE).expect("ticking").clock.served_ms
    }
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

/// The same values in their order, for answers that come in any.
pub(crate) fn sorted<T: Ord>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort();
    values
}

/// Calls again while the error is one after which the same call may succeed, as every caller of a store does, for ten seconds: a store
/// whose connections were cut while one more was being made says for a moment that the server is gone.
pub(crate) fn again<T>(mut call: impl FnMut(bool) -> millrace_store::Result<T>) -> T {
    let late = Instant::now() + Duration::from_secs(10);
    let mut attempt = 0;
    loop {
        match call(attempt > 0) {
            Ok(value) => return value,
            Err(error) if error.is_transient() && (attempt < 50 || Instant::now() < late) => attempt += 1,
            Err(error) => panic!("after {attempt} tries: {error}"),
        }
        millrace_tests::net::pause();
    }
}
