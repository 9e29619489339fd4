//! What goes into the store and comes out of it. Times are `i64` microseconds since 1970 by the database's clock where
//! nothing else is said (`*_us`), served time is in milliseconds (`*_served_ms`).

use std::{collections::BTreeMap, time::Duration};

use millrace_core::{
    foreign::Defect,
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    route::Route,
    served::ServedClock,
    task::State,
    time::Timestamp,
};
use uuid::Uuid;

/// The one row that describes the whole database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Changed after a restore from a backup (R15).
    pub incarnation: i16,
    /// The format in which rows are written (R14).
    pub write_format: i16,
    /// Raised by every change of a route or of a queue's defaults.
    pub route_version: i64,
}

/// The envelope of a task: the typed columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The id.
    pub id: TaskId,
    /// The tenant.
    pub tenant: String,
    /// The queue.
    pub queue: String,
    /// Minus the priority: lower is dispatched first.
    pub rank: i32,
    /// The executor.
    pub executor: String,
    /// The resource class; empty for none.
    pub resource_class: String,
    /// The concurrency key; empty for none.
    pub concurrency_key: String,
    /// Whether two attempts must never overlap.
    pub exclusive: bool,
    /// How long one attempt may run, the queue's default included, in milliseconds.
    pub timeout_ms: Option<i64>,
    /// The W3C traceparent of the submission; empty for none.
    pub trace_context: String,
    /// The format of the row's writer.
    pub format: i16,
    /// The oldest reader that may act on the row.
    pub min_reader: i16,
}

/// A task to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTask {
    /// The envelope; the id is the caller's to choose, and repeats of the call keep it.
    pub envelope: Envelope,
    /// The spec, byte for byte as submitted.
    pub spec: Vec<u8>,
    /// The idempotency key, if the submission had one.
    pub request: Option<Uuid>,
    /// The task stays SCHEDULED until this moment.
    pub not_before: Option<Timestamp>,
    /// It expires when it has waited this long.
    pub expire_after: Option<Duration>,
    /// The version of the routes that chose the queue.
    pub route_version: i64,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// Stored, by this call or by an earlier try of the same one.
    Stored {
        /// When it was stored.
        created_at_us: i64,
        /// SCHEDULED or QUEUED.
        state: State,
        /// When it joined its queue, if it did.
        ready_at_us: Option<i64>,
        /// When it expires, if it does.
        expires_at_us: Option<i64>,
    },
    /// The idempotency key had stored this other task before; the caller compares the contents.
    Existing(TaskId),
    /// The queue does not exist or takes no more tasks. Nothing was stored.
    QueueClosed,
    /// The routes have changed since the queue was chosen. Nothing was stored: route again.
    RoutesChanged,
    /// The database refuses this item's data; its neighbours are not harmed (R8). Nothing was stored.
    Refused(String),
}

/// A task to be claimed for a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The task.
    pub task: TaskId,
    /// The queue.
    pub queue: String,
    /// The epoch of the owner that matched it.
    pub epoch: i64,
    /// The session that gets it.
    pub session: SessionId,
    /// The session's generation.
    pub generation: i64,
    /// The token of the lease; repeats of the call keep it.
    pub token: Token,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum Claimed {
    /// The task is the session's, by this call or by an earlier try of the same one.
    Won(Box<Dispatch>),
    /// The row does not wait in this queue any more (or has expired, or is too new for this build).
    Stale,
    /// The queue's epoch is another, or the queue is paused.
    GateClosed,
    /// The session has another generation, or is over.
    SessionGone,
}

/// What an orchestrator needs to run an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// The attempt and its token.
    pub lease: LeaseRef,
    /// The queue.
    pub queue: String,
    /// The spec, byte for byte as submitted.
    pub spec: Vec<u8>,
    /// How long the attempt may run, in milliseconds.
    pub timeout_ms: Option<i64>,
    /// The W3C traceparent; empty for none.
    pub trace_context: String,
    /// When it was claimed.
    pub dispatched_at_us: i64,
    /// DISPATCHED, RUNNING or CANCELLING.
    pub state: State,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The kind.
    pub kind: OutcomeKind,
    /// A command's exit code.
    pub exit_code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// A sentence for people.
    pub message: String,
    /// The end of the output.
    pub output_tail: Vec<u8>,
    /// How much output there was in all.
    pub output_bytes: i64,
    /// When it started, by the orchestrator's clock.
    pub started_at_us: Option<i64>,
    /// When it ended, by the orchestrator's clock.
    pub ended_at_us: Option<i64>,
}

/// The end of a task by the end of its attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The attempt; all three must match the row.
    pub lease: LeaseRef,
    /// The terminal state.
    pub state: State,
    /// How the attempt ended.
    pub outcome: Outcome,
    /// What has been spent, this attempt included; the row's own count stays when it is higher, so a success can say 0.
    pub failures: i32,
    /// The same for attempts lost.
    pub losses: i32,
}

/// What became of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// Recorded, by this call or by an earlier one with the same lease.
    Recorded,
    /// The lease is not the row's: nothing was changed.
    Stale,
}

/// An attempt that ended and is to be followed by another.
#[derive(Debug, Clone, PartialEq)]
pub struct Requeue {
    /// The attempt; all three must match the row, which must not be CANCELLING.
    pub lease: LeaseRef,
    /// How it ended; kept as a row of `attempts`.
    pub outcome: Outcome,
    /// SCHEDULED after this wait, or QUEUED at once when it is zero.
    pub wait: Duration,
    /// What has been spent, this attempt included.
    pub failures: i32,
    /// Attempts lost.
    pub losses: i32,
    /// Attempts that ended as unsupported.
    pub unsupported: i32,
}

/// What became of a requeue.
#[derive(Debug, Clone, PartialEq)]
pub enum Requeued {
    /// It waits again, by this call or by an earlier one with the same lease.
    Waiting {
        /// When it joined its queue, if it did.
        ready_at_us: Option<i64>,
    },
    /// The lease is not the row's: nothing was changed.
    Stale,
    /// The task is being cancelled: nothing was changed, decide again.
    Cancelling,
}

/// A task that waits, as much of it as the matcher needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The task.
    pub id: TaskId,
    /// The tenant.
    pub tenant: String,
    /// Minus the priority.
    pub rank: i32,
    /// When it joined its queue.
    pub ready_at_us: i64,
    /// When it expires.
    pub expires_at_us: Option<i64>,
    /// The oldest reader that may act on the row.
    pub min_reader: i16,
}

/// A part of a lane, in the lane's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanePage {
    /// The rows after the position asked for, ordered by (ready_at, id).
    pub rows: Vec<Waiting>,
    /// True when there was nothing more to read at the time.
    pub exhausted: bool,
    /// The database's time of the read.
    pub now: Timestamp,
}

/// A lane: the tasks of one tenant and one rank in a queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneKey {
    /// The tenant.
    pub tenant: String,
    /// Minus the priority.
    pub rank: i32,
}

/// Held tasks as the recovery and failure paths read them.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldRow {
    /// The attempt and its token.
    pub lease: LeaseRef,
    /// DISPATCHED, RUNNING or CANCELLING.
    pub state: State,
    /// The session.
    pub session: SessionId,
    /// The queue.
    pub queue: String,
    /// The tenant.
    pub tenant: String,
    /// Minus the priority.
    pub rank: i32,
    /// The oldest reader that may act on the row.
    pub min_reader: i16,
    /// When it expires while it waits.
    pub expires_at_us: Option<i64>,
    /// The spec; holds the retry policy.
    pub spec: Vec<u8>,
    /// Attempts that failed.
    pub failures: i32,
    /// Attempts lost.
    pub losses: i32,
    /// Attempts that ended as unsupported.
    pub unsupported: i32,
}

/// A task as people read it: live or finished.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRow {
    /// The envelope.
    pub envelope: Envelope,
    /// The spec.
    pub spec: Vec<u8>,
    /// The state.
    pub state: State,
    /// The number of the current or last attempt; 0 before the first.
    pub attempt: i32,
    /// The token of the current attempt.
    pub token: Option<Token>,
    /// The session that holds it, or held the last attempt.
    pub session: Option<SessionId>,
    /// The name of that session's orchestrator; empty when not known.
    pub orchestrator: String,
    /// The endpoint of the replica that holds, or held, that session's stream; empty when not known.
    pub replica: String,
    /// Attempts that failed.
    pub failures: i32,
    /// Attempts lost.
    pub losses: i32,
    /// When it was stored.
    pub created_at_us: i64,
    /// When it joined its queue; set while QUEUED.
    pub ready_at_us: Option<i64>,
    /// Until when it waits; set while SCHEDULED.
    pub wake_at_us: Option<i64>,
    /// When it expires.
    pub expires_at_us: Option<i64>,
    /// When the last attempt was claimed.
    pub dispatched_at_us: Option<i64>,
    /// When the last attempt started, by the orchestrator's clock.
    pub started_at_us: Option<i64>,
    /// When it ended.
    pub finished_at_us: Option<i64>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Columns that could not be read and are not needed; they have their defaults here.
    pub ignored: Vec<Defect>,
}

/// An attempt that was not the last word.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRow {
    /// Its number.
    pub attempt: i32,
    /// The orchestrator's name; empty when not known.
    pub orchestrator: String,
    /// When it was claimed.
    pub dispatched_at_us: Option<i64>,
    /// When its end was recorded.
    pub recorded_at_us: i64,
    /// How it ended.
    pub outcome: Outcome,
}

/// Which tasks to list, newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ListFilter {
    /// Only this tenant's.
    pub tenant: Option<String>,
    /// Only this queue's.
    pub queue: Option<String>,
    /// Only in these states; none means all.
    pub states: Vec<State>,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct ListPage {
    /// Rows that match, newest id first.
    pub rows: Vec<TaskRow>,
    /// Where the next page starts: only ids below this one. None when there is nothing more to look at.
    pub next: Option<TaskId>,
}

/// A session to be opened.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSession {
    /// The id, the caller's to choose.
    pub id: SessionId,
    /// The orchestrator's name.
    pub name: String,
    /// The queues it serves.
    pub queues: Vec<String>,
    /// How many tasks it can run.
    pub slots: i32,
    /// What it offers.
    pub labels: BTreeMap<String, String>,
    /// How long its lease outlives its last heartbeat, in served milliseconds.
    pub ttl_ms: i64,
    /// The endpoint of the replica that holds its stream.
    pub replica: String,
    /// The build of its client library.
    pub build: String,
}

/// A session as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRow {
    /// What it was opened with; `replica` is that of the last open or resume.
    pub session: NewSession,
    /// Raised by each resume and by its end.
    pub generation: i64,
    /// Whether it has neither expired nor been closed.
    pub live: bool,
    /// Served time at which its lease ends.
    pub expires_served_ms: i64,
    /// When it last renewed.
    pub seen_at_us: i64,
    /// How many tasks it holds; filled by lists only.
    pub held: i32,
}

/// What became of a resume.
#[expect(clippy::large_enum_variant, reason = "one value a reconnect; a box would only be in the way")]
#[derive(Debug, Clone, PartialEq)]
pub enum Resumed {
    /// It is this replica's now, under a new generation, with the attempts it holds.
    Yes {
        /// The session with its new generation.
        session: SessionRow,
        /// What it holds.
        held: Vec<Dispatch>,
    },
    /// There is no such live session, or it never had that generation.
    Gone,
}

/// A session's renewal.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// The session.
    pub session: SessionId,
    /// Its generation.
    pub generation: i64,
    /// Attempts that have been accepted since the last heartbeat: they become RUNNING, with their start by the
    /// orchestrator's clock when it is known.
    pub accepted: Vec<(LeaseRef, Option<i64>)>,
}

/// What the heartbeats brought, in the order of the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatResult {
    /// False when the session has another generation or is over: its stream must end.
    pub renewed: bool,
    /// Its attempts that are to be stopped (R13).
    pub cancelling: Vec<LeaseRef>,
}

/// What became of a cancellation.
#[derive(Debug, Clone, PartialEq)]
pub enum CancelResult {
    /// The task as it is now, CANCELLED or CANCELLING.
    Done(Box<TaskRow>),
    /// It had ended otherwise.
    Finished(Box<TaskRow>),
    /// Only a later release may act on its row (R9). Nothing was changed.
    TooNew(Defect),
    /// There is no such task.
    NotFound,
}

/// What became of a retry.
#[derive(Debug, Clone, PartialEq)]
pub enum RetryResult {
    /// The task, QUEUED again.
    Done(Box<TaskRow>),
    /// Its state does not allow it.
    WrongState(Box<TaskRow>),
    /// Its queue does not exist any more or takes no more tasks.
    QueueClosed(String),
    /// Only a later release may act on its row (R9): this one would lose what it does not know of it. Nothing was changed.
    TooNew(Defect),
    /// There is no such task.
    NotFound,
}

/// A queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueRow {
    /// The name.
    pub name: String,
    /// A sentence for people.
    pub description: String,
    /// For tasks that set no timeout.
    pub default_timeout_ms: Option<i64>,
    /// For tasks that set no expire_after.
    pub default_expire_after_ms: Option<i64>,
    /// Set while dispatch is stopped.
    pub pause: Option<PauseRow>,
    /// Whether it takes no more tasks and goes once it is empty.
    pub draining: bool,
    /// The epoch of its ownership.
    pub epoch: i64,
    /// When it was created.
    pub created_at_us: i64,
    /// When it was last changed.
    pub updated_at_us: i64,
}

/// Why and until when a queue is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PauseRow {
    /// For people.
    pub reason: String,
    /// When it resumes by itself.
    pub until_us: Option<i64>,
    /// Since when.
    pub since_us: i64,
}

/// A change of a queue. Every field of the form `Some(value)` is set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueueChange {
    /// The description.
    pub description: Option<String>,
    /// The default timeout.
    pub default_timeout_ms: Option<Option<i64>>,
    /// The default of expire_after.
    pub default_expire_after_ms: Option<Option<i64>>,
    /// The pause: set, or lifted. Takes effect in the gate, so that no claim commits after this call has returned.
    pub pause: Option<Option<(String, Option<i64>)>>,
}

/// What happens to the work of a queue that is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeleteMode {
    /// Only when nothing waits or runs.
    Refuse,
    /// Take no more tasks, go once empty.
    Drain,
    /// Move what waits to this queue, go once empty.
    Move(String),
}

/// What became of a deletion.
#[derive(Debug, Clone, PartialEq)]
pub enum DeleteResult {
    /// It is gone.
    Gone,
    /// It drains.
    Draining(Box<QueueRow>),
    /// Work waits or runs in it.
    NotEmpty,
    /// A route names it.
    Routed(String),
    /// The queue to move to does not exist, or is this one, or drains.
    NoTarget,
    /// There is no such queue.
    NotFound,
}

/// The figures of a queue as the database counts them, each up to [`crate::COUNT_BOUND`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueCounts {
    /// The queue.
    pub name: String,
    /// Tasks that wait for an orchestrator.
    pub queued: i64,
    /// Tasks that wait for a moment.
    pub scheduled: i64,
    /// Tasks that orchestrators have.
    pub held: i64,
    /// When the longest-waiting of them joined.
    pub oldest_ready_at_us: Option<i64>,
    /// The database's time of the count.
    pub now_us: i64,
}

/// Which kind of process a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum MemberKind {
    /// A distributor replica.
    Distributor = 1,
    /// A queue service.
    Queue = 2,
}

/// A process of the suite, renewed as a lease in served time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// Its id, new with each start.
    pub id: MemberId,
    /// Its kind.
    pub kind: MemberKind,
    /// Where peers reach it.
    pub endpoint: String,
    /// Its build.
    pub build: String,
    /// The row formats that it can read.
    pub readers: (i16, i16),
    /// When it last renewed; filled by lists only.
    pub seen_at_us: i64,
}

/// The ownership of a queue's matching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerRow {
    /// The queue.
    pub queue: String,
    /// The epoch, raised by each change of owner.
    pub epoch: i64,
    /// The owner, if its lease has not ended.
    pub owner: Option<(MemberId, String)>,
}

/// A change that happened to a task, for watchers.
#[derive(Debug, Clone, PartialEq)]
pub struct Idempotent<T> {
    /// The answer.
    pub value: T,
    /// True when an earlier call with the same request key had done it.
    pub repeated: bool,
}

/// What a tick of the served clock found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// The clock after the tick.
    pub clock: ServedClock,
    /// The database's time.
    pub now: Timestamp,
}

/// Routes and queue defaults of one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// The version.
    pub version: i64,
    /// The routes, in no particular order.
    pub routes: Vec<Route>,
    /// Every queue.
    pub queues: Vec<QueueRow>,
}

/// What became of a change of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteResult {
    /// Done.
    Done,
    /// Its queue does not exist or drains.
    NoSuchQueue,
    /// There is no such route.
    NotFound,
}

/// An entry of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// The call.
    pub action: String,
    /// What it was about.
    pub subject: String,
    /// The reason given, or details.
    pub detail: String,
}
