//! Millrace's persistence: one trait, [`Store`], over PostgreSQL, SQLite and a model in memory.
//!
//! Every call is one transaction, blocks its thread, and is bounded by the store's statement and lock timeouts. Calls that
//! take a batch answer in the order of the batch, lock rows in the order of their ids, and are safe to repeat with the
//! same ids after an error that [`StoreError::is_transient`]: a repeat finds what the first try did (R8).
//!
//! SQL lives in `postgres/` and `sqlite/` only. What the backends must do is written as tests in
//! `tests/conformance`, which run on all three.

mod batch;
mod books;
mod error;
mod fleet;
mod foreign;
pub mod memory;
pub mod migrate;
mod open;
mod postgres;
mod sqlite;
mod types;

pub use error::{Result, StoreError};
pub use fleet::*;
pub use foreign::*;
pub use memory::MemoryStore;
pub use open::{OpenOptions, open, transaction_pooling};
pub use types::*;

use std::time::Duration;

use millrace_core::{
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    route::Route,
    served::TickRule,
    time::Timestamp,
};
use uuid::Uuid;

/// Counts of waiting and running tasks stop here, so that a deep queue costs no more than this to look at.
pub const COUNT_BOUND: i64 = 100_000;

/// How many rows one page of a list looks at before it ends, full or not.
pub const LIST_SCAN_BOUND: i64 = 10_000;

/// What Millrace needs of a database.
pub trait Store: FleetStore + Send + Sync + 'static {
    // ── The whole ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// Reads the cluster's row. Also the cheapest way to ask whether the database answers.
    fn cluster(&self) -> Result<Cluster>;

    /// Advances the served clock by one tick (R7) and returns it.
    fn tick(&self, rule: TickRule) -> Result<Tick>;

    /// Renews, or enters, a member's lease of `ttl_ms` of served time, and removes members whose lease ended over an
    /// hour of served time ago.
    fn renew_member(&self, member: &MemberRow, ttl_ms: i64) -> Result<()>;

    /// Removes a member that stops.
    fn remove_member(&self, member: MemberId) -> Result<()>;

    /// Members whose lease has not ended, by kind and id.
    fn members(&self) -> Result<Vec<MemberRow>>;

    /// The newest migration applied, as text.
    fn schema_version(&self) -> Result<String>;

    // ── The hot path ───────────────────────────────────────────────────────────────────────────────────────────────

    /// Stores tasks. An item whose data the database refuses is found by bisecting and fails alone. With `repeat` the
    /// same batch was tried before and its outcome is not known: tasks that are already there, even finished, count as
    /// stored.
    fn submit(&self, batch: &[NewTask], repeat: bool) -> Result<Vec<Submitted>>;

    /// Claims tasks for sessions, each only where the row is still QUEUED in the queue, not expired and readable
    /// ([`millrace_core::READER_RANGE`]), the queue's gate has the claim's epoch and is not paused, and the session is
    /// live with the claim's generation. The gate and the session are locked FOR SHARE until the commit (R2, R5).
    fn claim(&self, batch: &[Claim]) -> Result<Vec<Claimed>>;

    /// Ends tasks: each only where the row is held with this very lease. The row moves to the finished tasks.
    fn complete(&self, batch: &[Completion]) -> Result<Vec<Completed>>;

    /// Puts tasks back after an attempt, and keeps the attempt: each only where the row is held with this very lease and
    /// is not CANCELLING.
    fn requeue(&self, batch: &[Requeue]) -> Result<Vec<Requeued>>;

    /// Renews sessions' leases: expiry becomes served time now plus the session's ttl. Accepted attempts become RUNNING.
    fn heartbeat(&self, batch: &[Heartbeat]) -> Result<Vec<HeartbeatResult>>;

    /// The rows of these leases that are still held with them, in any order.
    fn held_rows(&self, leases: &[LeaseRef]) -> Result<Vec<HeldRow>>;

    // ── Sessions ───────────────────────────────────────────────────────────────────────────────────────────────────

    /// Opens a session with generation 1. Opening it again with the same id, while its generation is still 1, returns it.
    fn open_session(&self, session: &NewSession) -> Result<SessionRow>;

    /// Takes a session over under a new generation, renews its lease, and lists what it holds. Only a live session, by any
    /// generation that it has had: an orchestrator whose Welcome was lost knows only the one before. A lease that has run out but has not been reaped yet may be resumed.
    fn resume_session(&self, session: SessionId, generation: i64, replica: &str) -> Result<Resumed>;

    /// Ends a session: `Some(generation)` only that generation, `None` whichever. What it holds is left for [`Store::orphans`].
    /// Returns whether a live session was ended.
    fn close_session(&self, session: SessionId, generation: Option<i64>) -> Result<bool>;

    /// Ends sessions whose lease has run out, at most `limit`, and returns those that this call has ended. Does nothing while the clock
    /// is frozen. Waits for claims under way on them, so that a session which is claimed for all the time ends all the same.
    fn reap_sessions(&self, limit: i64) -> Result<Vec<SessionId>>;

    /// Tasks held by sessions that are over, at most `limit` (R2), in any order.
    fn orphans(&self, limit: i64) -> Result<Vec<HeldRow>>;

    /// What a session holds.
    fn held_by(&self, session: SessionId) -> Result<Vec<Dispatch>>;

    /// Live sessions, at most `limit`, with the number of tasks that each holds. By people's pool.
    fn sessions(&self, limit: i64) -> Result<Vec<SessionRow>>;

    /// Drops sessions that have been over for longer than `keep`, at most `limit`. Returns how many.
    fn trim_sessions(&self, keep: Duration, limit: i64) -> Result<i64>;

    // ── Waiting tasks ──────────────────────────────────────────────────────────────────────────────────────────────

    /// Lanes of a queue in which tasks wait, after this one in the order of (tenant, rank), at most `limit`. Costs per lane, not
    /// per task.
    fn lanes(&self, queue: &str, after: Option<&LaneKey>, limit: i64) -> Result<Vec<LaneKey>>;

    /// Tasks of a lane after a position, up to and including another, in the order of (ready_at, id).
    fn lane_page(
        &self,
        queue: &str,
        lane: &LaneKey,
        after: (Timestamp, TaskId),
        up_to: Option<(Timestamp, TaskId)>,
        limit: i64,
    ) -> Result<LanePage>;

    /// Makes SCHEDULED tasks whose moment has come QUEUED, at most `limit`, and returns them by queue. Rows locked by another are
    /// skipped.
    fn wake(&self, limit: i64) -> Result<Vec<(String, Waiting)>>;

    /// Ends waiting tasks whose deadline has passed as EXPIRED, at most `limit`. Rows locked by another are skipped.
    fn expire(&self, limit: i64) -> Result<Vec<TaskId>>;

    // ── People's calls ─────────────────────────────────────────────────────────────────────────────────────────────

    /// Reads a task, live or finished. By people's pool, like every read below.
    fn task(&self, id: TaskId) -> Result<Option<TaskRow>>;

    /// Reads the tasks that exist of these, in any order; for watchers.
    fn tasks(&self, ids: &[TaskId]) -> Result<Vec<TaskRow>>;

    /// Whether the task is set aside in quarantine.
    fn is_quarantined(&self, id: TaskId) -> Result<bool>;

    /// How many rows are set aside, counted up to [`COUNT_BOUND`].
    fn quarantined(&self) -> Result<i64>;

    /// Earlier attempts of a task, oldest first.
    fn attempts(&self, id: TaskId) -> Result<Vec<AttemptRow>>;

    /// Tasks with ids below `below`, newest first: at most `limit` that match, looking at no more than [`LIST_SCAN_BOUND`] rows.
    fn list(&self, filter: &ListFilter, below: Option<TaskId>, limit: i64) -> Result<ListPage>;

    /// How many tasks stand before this one in its queue (lower rank, or the same rank and earlier), counted up to [`COUNT_BOUND`].
    /// None when it is not QUEUED.
    fn position(&self, id: TaskId) -> Result<Option<i64>>;

    /// Stops a task: a waiting one is CANCELLED at once, a held one becomes CANCELLING. Cancelling one that is CANCELLED or
    /// CANCELLING changes nothing.
    fn cancel(&self, id: TaskId, reason: &str, request: Option<Uuid>) -> Result<CancelResult>;

    /// Queues a finished task that did not succeed, with fresh budgets; its attempts go on counting.
    fn retry(&self, id: TaskId, request: Option<Uuid>) -> Result<Idempotent<RetryResult>>;

    /// Looks up an idempotency key.
    fn request(&self, key: Uuid) -> Result<Option<TaskId>>;

    // ── Routes and queues ──────────────────────────────────────────────────────────────────────────────────────────

    /// Reads routes and queues with their version, in one snapshot. By the dispatch pool.
    fn routing(&self) -> Result<Routing>;

    /// Creates or replaces a route.
    fn set_route(&self, route: &Route, request: Option<Uuid>) -> Result<RouteResult>;

    /// Deletes a route. With a request key that has deleted it before: Done.
    fn delete_route(&self, name: &str, request: Option<Uuid>) -> Result<RouteResult>;

    /// Creates a queue, or returns None when there is one of that name (unless this request key made it).
    fn create_queue(&self, queue: &QueueRow, request: Option<Uuid>) -> Result<Option<QueueRow>>;

    /// Reads a queue.
    fn queue(&self, name: &str) -> Result<Option<QueueRow>>;

    /// Reads every queue, by name.
    fn queues(&self) -> Result<Vec<QueueRow>>;

    /// Changes a queue and writes the audit trail. None when there is no such queue. A repeated request key changes nothing.
    fn update_queue(
        &self,
        name: &str,
        change: &QueueChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<Option<QueueRow>>;

    /// Deletes a queue. With [`DeleteMode::Move`] at most 10,000 waiting tasks move with the call and the rest with [`Store::drain_queues`].
    /// With a request key that has deleted it before: Gone.
    fn delete_queue(&self, name: &str, mode: &DeleteMode, request: Option<Uuid>) -> Result<DeleteResult>;

    /// Moves what still waits in queues that are being moved, at most `limit` tasks, and deletes draining queues that have become empty.
    fn drain_queues(&self, limit: i64) -> Result<Vec<String>>;

    /// Lifts pauses whose time has come. Returns the queues.
    fn lift_pauses(&self) -> Result<Vec<String>>;

    /// Counts what waits and runs in every queue, or in these.
    fn counts(&self, names: &[String]) -> Result<Vec<QueueCounts>>;

    // ── Ownership of queues (R5) ───────────────────────────────────────────────────────────────────────────────────

    /// Who owns each queue now, by name.
    fn owners(&self) -> Result<Vec<OwnerRow>>;

    /// Takes, or renews, the ownership of a queue for `ttl_ms` of served time. Taking raises the epoch in the queue's gate, which waits for
    /// claims of the epoch before; renewing touches only the lease. None when another's lease has not ended.
    fn own_queue(&self, queue: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Option<i64>>;

    /// Renews the ownership of these queues and epochs at once; returns those that are no longer the owner's.
    fn renew_queues(&self, owner: MemberId, queues: &[(String, i64)], ttl_ms: i64) -> Result<Vec<String>>;

    /// Gives up the ownership of these queues.
    fn release_queues(&self, owner: MemberId, queues: &[String]) -> Result<()>;

    // ── Retention ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// Empties the slots of finished tasks that are older than `keep` (a whole slot at a time, no long delete), at most one
    /// slot a call, and returns the number of slots emptied. Slots are `keep / 6` wide.
    fn trim_finished(&self, keep: Duration) -> Result<i64>;

    /// Drops idempotency keys older than `keep` among at most `limit` keys after the given one; returns where to go on, None at
    /// the end.
    fn trim_requests(&self, keep: Duration, after: Option<Uuid>, limit: i64) -> Result<Option<Uuid>>;

    /// Drops attempts of tasks that exist no longer among at most `limit` attempts after the given task; returns where to go on,
    /// None at the end.
    fn trim_attempts(&self, after: Option<TaskId>, limit: i64) -> Result<Option<TaskId>>;

    // ── Rows of other releases (R8–R10) ────────────────────────────────────────────────────────────────────────────

    /// What the readers of this store have noticed.
    fn foreign(&self) -> &Foreign;

    /// Reads live rows whole, under their locks, judges them, and moves those that this build cannot read into the
    /// quarantine. In the order of the ids; one that a live session holds stays where it is.
    fn examine(&self, tasks: &[TaskId]) -> Result<Vec<Examined>>;

    /// Judges at most `limit` live rows after an id, in the order of the ids, and changes nothing. By people's pool.
    fn inspect(&self, after: Option<TaskId>, limit: i64) -> Result<Inspected>;

    /// Waiting rows that no feeder meets: their queue does not exist, or a column by which rows are fed holds nothing. At most `limit`,
    /// found by the index over what waits, so that it costs a queue and not its tasks.
    fn strays(&self, limit: i64) -> Result<Vec<TaskId>>;

    /// Quarantined rows that match, after an id in the order of the ids, at most `limit`, looking at no more than [`LIST_SCAN_BOUND`]. By
    /// people's pool.
    fn quarantine(&self, filter: &QuarantineFilter, after: Option<TaskId>, limit: i64) -> Result<QuarantinePage>;

    /// Looks at `limit` quarantined rows after an id in the order of the ids, and examines those that this build has not
    /// refused (R9): what it can read is released, the others remember that it has refused them. Rows locked by another are skipped.
    fn reexamine(&self, after: Option<TaskId>, limit: i64) -> Result<Reexamined>;

    /// Releases quarantined rows that this build can read, whatever it thought of them before, and writes the audit trail for each that was
    /// released. In the order of the ids.
    fn release(&self, tasks: &[TaskId], audit: &Audit) -> Result<Vec<Released>>;

    /// Changes a quarantined row, and releases it if this build can read it then; changes nothing otherwise. With `only_try` it changes nothing
    /// in any case.
    fn repair(&self, task: TaskId, repair: &Repair, only_try: bool, audit: &Audit) -> Result<Repaired>;

    /// Ends quarantined tasks as CANCELLED with this reason; the row as it was goes into the audit trail. Returns those that
    /// were there.
    fn discard(&self, tasks: &[TaskId], reason: &str, audit: &Audit) -> Result<Vec<TaskId>>;

    /// Columns of the tasks' tables whose types are not those that this build expects. By people's pool.
    fn drift(&self) -> Result<Vec<Drift>>;

    /// Raises the format in which rows are written (R14). Refused while a live member reads no further than an older one, or
    /// when the declared rollback target, which reads up to `rollback_reads`, does not read it. Writes the audit trail.
    fn activate(&self, format: i16, rollback_reads: i16, audit: &Audit) -> Result<Activated>;

    /// Writes the audit trail.
    fn audit(&self, entry: &Audit) -> Result<()>;
}
