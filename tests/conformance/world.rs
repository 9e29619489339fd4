//! A store with what tests need around it: time that passes when they say so, and short ways to set a scene.

use std::{ops::Deref, sync::Arc, time::Duration};

use diesel::{QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_query};
use millrace_core::{
    ROW_FORMAT,
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
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
        let store = open(&database.url());
        let world = Self { store, backend: Backend::Sqlite(database) };
        world.thaw();
        world
    }

    pub(crate) fn postgres() -> Self {
        let database = postgres::fresh_database();
        let store = open(&database.url());
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

fn open(url: &str) -> Arc<dyn Store> {
    millrace_store::open(url, &OpenOptions::default()).unwrap_or_else(|error| panic!("opening {url}: {error}"))
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
const INVARIANTS: [(&str, &str); 7] = [
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

// ── Scenes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A session as the replica that holds its stream knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Worker {
    pub(crate) id: SessionId,
    pub(crate) generation: i64,
}

/// A task for the default queue and tenant, with nothing special.
pub(crate) fn new_task(route_version: i64) -> NewTask {
    NewTask {
        envelope: Envelope {
            id: TaskId(Uuid::now_v7()),
            tenant: DEFAULT.into(),
            queue: DEFAULT.into(),
            rank: 0,
            executor: "process".into(),
            resource_class: String::new(),
            concurrency_key: String::new(),
            exclusive: false,
            timeout_ms: None,
            trace_context: String::new(),
            format: ROW_FORMAT,
            min_reader: ROW_FORMAT,
        },
        spec: b"spec".to_vec(),
        request: None,
        not_before: None,
        expire_after: None,
        route_version,
    }
}

pub(crate) fn outcome(kind: OutcomeKind) -> Outcome {
    Outcome {
        kind,
        exit_code: None,
        signal: None,
        message: String::new(),
        output_tail: Vec::new(),
        output_bytes: 0,
        started_at_us: None,
        ended_at_us: None,
    }
}

pub(crate) fn completion(lease: LeaseRef, state: State) -> Completion {
    let kind = match state {
        State::Succeeded => OutcomeKind::Succeeded,
        State::Cancelled => OutcomeKind::Cancelled,
        _ => OutcomeKind::Failed,
    };
    Completion { lease, state, outcome: outcome(kind), failures: i32::from(state == State::Failed), losses: 0 }
}

pub(crate) fn requeue(lease: LeaseRef, wait: Duration) -> Requeue {
    Requeue { lease, outcome: outcome(OutcomeKind::Failed), wait, failures: 1, losses: 0, unsupported: 0 }
}

pub(crate) fn token() -> Token {
    Token::new(1, Uuid::new_v4().as_u64_pair().1)
}

pub(crate) fn request() -> Option<Uuid> {
    Some(Uuid::new_v4())
}

pub(crate) fn member() -> MemberId {
    MemberId(Uuid::new_v4())
}

pub(crate) fn new_session(ttl: Duration) -> NewSession {
    NewSession {
        id: SessionId(Uuid::now_v7()),
        name: "worker".into(),
        queues: vec![DEFAULT.into()],
        slots: 4,
        labels: Default::default(),
        ttl_ms: ttl.as_millis() as i64,
        replica: "http://127.0.0.1:7601".into(),
        build: "test".into(),
    }
}

pub(crate) fn queue_row(name: &str) -> QueueRow {
    QueueRow {
        name: name.into(),
        description: String::new(),
        default_timeout_ms: None,
        default_expire_after_ms: None,
        pause: None,
        draining: false,
        epoch: 0,
        created_at_us: 0,
        updated_at_us: 0,
    }
}

pub(crate) fn audit() -> Audit {
    Audit { action: "Test".into(), subject: DEFAULT.into(), detail: "a test".into() }
}

impl World {
    pub(crate) fn route_version(&self) -> i64 {
        self.cluster().expect("reading the cluster's row").route_version
    }

    pub(crate) fn new_task(&self) -> NewTask {
        new_task(self.route_version())
    }

    /// A task for another queue.
    pub(crate) fn new_task_in(&self, queue: &str) -> NewTask {
        let mut task = self.new_task();
        task.envelope.queue = queue.into();
        task
    }

    /// Stores one task and returns its id.
    pub(crate) fn put(&self, task: NewTask) -> TaskId {
        let id = task.envelope.id;
        let answers = self.submit(&[task], false).expect("submitting");
        assert!(matches!(answers[..], [Submitted::Stored { .. }]), "{answers:?}");
        id
    }

    /// Stores a task with nothing special.
    pub(crate) fn queued(&self) -> TaskId {
        self.put(self.new_task())
    }

    /// Stores tasks with nothing special, in the order of their ids.
    pub(crate) fn queued_many(&self, count: usize) -> Vec<TaskId> {
        let version = self.route_version();
        let batch: Vec<NewTask> = (0..count).map(|_| new_task(version)).collect();
        let answers = self.submit(&batch, false).expect("submitting");
        assert!(answers.iter().all(|answer| matches!(answer, Submitted::Stored { .. })), "{answers:?}");
        batch.iter().map(|task| task.envelope.id).collect()
    }

    /// A queue made for the test.
    pub(crate) fn queue_named(&self, name: &str) -> String {
        self.create_queue(&queue_row(name), None).expect("creating a queue").expect("a new queue");
        name.to_owned()
    }

    /// A session whose lease lasts longer than any test that does not care.
    pub(crate) fn worker(&self) -> Worker {
        self.worker_for(hours(10_000))
    }

    pub(crate) fn worker_for(&self, ttl: Duration) -> Worker {
        let session = self.open_session(&new_session(ttl)).expect("opening a session");
        Worker { id: session.session.id, generation: session.generation }
    }

    /// Makes a new member the owner of a queue.
    pub(crate) fn epoch_of(&self, queue: &str) -> i64 {
        let owner = member();
        self.own_queue(queue, owner, "http://127.0.0.1:7602", 36_000_000_000)
            .expect("owning")
            .expect("nobody else owns it")
    }

    /// The epoch in the default queue's gate now, whoever owns it.
    pub(crate) fn gate(&self, queue: &str) -> i64 {
        self.queue(queue).expect("reading a queue").expect("the queue").epoch
    }

    pub(crate) fn claim_of(&self, worker: Worker, queue: &str, task: TaskId) -> Claim {
        Claim {
            task,
            queue: queue.into(),
            epoch: self.gate(queue),
            session: worker.id,
            generation: worker.generation,
            token: token(),
        }
    }

    /// Makes one claim and returns what became of it.
    pub(crate) fn try_claim(&self, claim: &Claim) -> Claimed {
        let mut answers = self.claim(std::slice::from_ref(claim)).expect("claiming");
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    /// Claims a task of the default queue.
    pub(crate) fn dispatched(&self, worker: Worker, task: TaskId) -> Dispatch {
        self.dispatched_from(worker, DEFAULT, task)
    }

    pub(crate) fn dispatched_from(&self, worker: Worker, queue: &str, task: TaskId) -> Dispatch {
        match self.try_claim(&self.claim_of(worker, queue, task)) {
            Claimed::Won(dispatch) => *dispatch,
            lost => panic!("the claim of {task} was not won: {lost:?}"),
        }
    }

    /// Stores a task and claims it.
    pub(crate) fn held(&self, worker: Worker) -> LeaseRef {
        self.dispatched(worker, self.queued()).lease
    }

    pub(crate) fn try_complete(&self, completion: Completion) -> Completed {
        let answers = self.complete(&[completion]).expect("completing");
        assert_eq!(answers.len(), 1);
        answers[0]
    }

    pub(crate) fn completed(&self, lease: LeaseRef, state: State) {
        assert_eq!(self.try_complete(completion(lease, state)), Completed::Recorded);
    }

    /// A task that has ended in this state by itself.
    pub(crate) fn finished(&self, state: State) -> TaskId {
        let worker = self.worker();
        let lease = self.held(worker);
        self.completed(lease, state);
        self.close_session(worker.id, None).expect("closing a session");
        lease.task
    }

    pub(crate) fn try_requeue(&self, requeue: Requeue) -> Requeued {
        let mut answers = self.requeue(&[requeue]).expect("requeueing");
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    pub(crate) fn requeued(&self, lease: LeaseRef, wait: Duration) {
        let answer = self.try_requeue(requeue(lease, wait));
        assert!(matches!(answer, Requeued::Waiting { .. }), "{answer:?}");
    }

    /// Cancels a task that can be cancelled.
    pub(crate) fn cancelled(&self, task: TaskId) -> TaskRow {
        match self.cancel(task, "a test", None).expect("cancelling") {
            CancelResult::Done(row) => *row,
            other => panic!("{task} was not cancelled: {other:?}"),
        }
    }

    pub(crate) fn row(&self, task: TaskId) -> TaskRow {
        self.task(task).expect("reading a task").unwrap_or_else(|| panic!("there is no task {task}"))
    }

    pub(crate) fn state(&self, task: TaskId) -> State {
        self.row(task).state
    }

    /// Sends one heartbeat; tells whether it renewed, and what is to be stopped.
    pub(crate) fn beat(&self, worker: Worker, accepted: Vec<(LeaseRef, Option<i64>)>) -> (bool, Vec<LeaseRef>) {
        let heartbeat = Heartbeat { session: worker.id, generation: worker.generation, accepted };
        let mut answers = self.heartbeat(&[heartbeat]).expect("sending a heartbeat");
        assert_eq!(answers.len(), 1);
        let answer = answers.remove(0);
        (answer.renewed, answer.cancelling)
    }

    /// The ids of every task, newest first.
    pub(crate) fn all(&self) -> Vec<TaskId> {
        let mut ids = Vec::new();
        let mut below = None;
        loop {
            let page = self.list(&Default::default(), below, 1000).expect("listing");
            ids.extend(page.rows.iter().map(|row| row.envelope.id));
            below = page.next;
            if below.is_none() {
                return ids;
            }
        }
    }
}

/// The same values in their order, for answers that come in any.
pub(crate) fn sorted<T: Ord>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort();
    values
}

/// Calls again while the error is one after which the same call may succeed, as every caller of a store does.
pub(crate) fn again<T>(mut call: impl FnMut(bool) -> millrace_store::Result<T>) -> T {
    for attempt in 0..50 {
        match call(attempt > 0) {
            Ok(value) => return value,
            Err(error) if error.is_transient() => continue,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("50 tries met a transient error each");
}
