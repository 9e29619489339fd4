//! What people do to tasks.

use millrace_core::{
    READER_RANGE,
    foreign::{Defect, reader_defect, state_defect},
    id::TaskId,
    retry::OutcomeKind,
    task::State,
};
use uuid::Uuid;

use super::{
    columns::{Columns, Read},
    conn::Conn,
    foreign::{end_live, locked, unfit_to_end},
    moves::Ending,
    people::task_by_id,
    pool::Pool,
    rows::{now_us, storable, text, uuid},
    sql::sql,
    waiting::end_waiting,
};
use crate::{CancelResult, Idempotent, Result, RetryResult, StoreError, TaskRow};

/// How often a task that moves between the tables is looked for in the one and the other.
const LOOKS: usize = 3;

/// Keeps a request key; false when an earlier call has kept it. Waits for a call with the same key that is under way.
pub(super) fn keep_request(conn: &mut Conn<'_>, request: Option<Uuid>, task: Option<TaskId>) -> Result<bool> {
    let Some(key) = request else { return Ok(true) };
    let statement = sql(concat!(
        "INSERT INTO requests (key, task_id, created_at_us) VALUES ($1, $2, ",
        now_us!(),
        ") ON CONFLICT (key) DO NOTHING"
    ));
    Ok(conn.execute(statement.bind(key).bind(task.map(|id| id.0)))? > 0)
}

pub(super) fn request(people: &Pool, key: Uuid) -> Result<Option<TaskId>> {
    let statement = sql("SELECT r.task_id FROM requests r WHERE r.key = $1").bind(key);
    people.read(move |conn| Ok(conn.first(statement, |row| row.get_nullable())?.flatten().map(TaskId)))
}

// ── Cancel ──────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn cancel(pool: &Pool, id: TaskId, reason: &str, request: Option<Uuid>) -> Result<CancelResult> {
    match cancel_by(pool, id, reason, request, end_waiting_task) {
        // Another release wrote the row so that it does not fit the finished ones as it is.
        Err(StoreError::Data { .. }) => cancel_by(pool, id, reason, request, end_foreign_task),
        cancelled => cancelled,
    }
}

/// Ends a waiting task whose row is locked, with this message.
type End = fn(&mut Conn<'_>, TaskId, &str) -> Result<()>;

fn cancel_by(pool: &Pool, id: TaskId, reason: &str, request: Option<Uuid>, end: End) -> Result<CancelResult> {
    let reason = storable(reason);
    pool.transaction(move |conn| {
        let result = match keep_request(conn, request, Some(id))? {
            // Done before; what has become of the task since is not undone.
            false => task_by_id(conn, id)?.map_or(CancelResult::NotFound, |row| CancelResult::Done(Box::new(row))),
            true => cancel_once(conn, id, &reason, end)?,
        };
        if !matches!(result, CancelResult::Done(_)) {
            // Nothing was changed, and the key is not spent.
            conn.undo();
        }
        Ok(result)
    })
}

fn cancel_once(conn: &mut Conn<'_>, id: TaskId, reason: &str, end: End) -> Result<CancelResult> {
    match lock_task(conn, id)? {
        Place::Live(State::Scheduled | State::Queued) => end(conn, id, reason)?,
        Place::Live(State::Dispatched | State::Running) => {
            conn.execute(sql("UPDATE tasks t SET state = 5 WHERE t.id = $1").bind(id.0))?;
        }
        Place::Live(_) | Place::Finished(State::Cancelled) => {}
        Place::Finished(_) => return there(conn, id).map(CancelResult::Finished),
        Place::TooNew(defect) => return Ok(CancelResult::TooNew(defect)),
        Place::Nowhere => return Ok(CancelResult::NotFound),
    }
    there(conn, id).map(CancelResult::Done)
}

fn end_waiting_task(conn: &mut Conn<'_>, id: TaskId, reason: &str) -> Result<()> {
    let statement = sql(end_waiting!("SELECT $4::uuid AS id"));
    let statement = statement.bind(State::Cancelled as i16).bind(OutcomeKind::Cancelled as i16).bind(reason).bind(id.0);
    conn.rows(statement, uuid).map(drop)
}

fn end_foreign_task(conn: &mut Conn<'_>, id: TaskId, reason: &str) -> Result<()> {
    let ending = Ending::without_attempt(State::Cancelled, OutcomeKind::Cancelled, reason);
    match locked(conn, &[id])?.pop() {
        Some(row) => match unfit_to_end(&row) {
            None => end_live(conn, &row, &ending),
            Some(defect) => {
                conn.foreign().unreadable(Some(id), &defect);
                Err(StoreError::Unreadable(defect))
            }
        },
        None => Err(StoreError::Internal(format!("task {id} has gone while its row was locked"))),
    }
}

enum Place {
    Live(State),
    Finished(State),
    /// Wherever it is, only a later release may act on it (R9).
    TooNew(Defect),
    Nowhere,
}

/// The columns min_reader and state: the state to act on, or why that is left to a later release.
fn actable(row: &mut Columns<'_>) -> Read<std::result::Result<State, Defect>> {
    if let Some(defect) = reader_defect(row.get()?, READER_RANGE.1) {
        return Ok(Err(defect));
    }
    let number: i32 = row.get()?;
    let known = i16::try_from(number).ok().and_then(|number| State::try_from(number).ok());
    Ok(known.ok_or_else(|| state_defect(number)))
}

/// Finds a task and locks its row, so that it stays where it is. A task that moves from one table to the other between two looks
/// is found by the next.
fn lock_task(conn: &mut Conn<'_>, id: TaskId) -> Result<Place> {
    for _ in 0..LOOKS {
        let state = |text| sql(text).bind(id.0);
        let live = state("SELECT t.min_reader, t.state FROM tasks t WHERE t.id = $1 FOR UPDATE");
        if let Some(found) = conn.first(live, actable)? {
            return Ok(found.map_or_else(Place::TooNew, Place::Live));
        }
        let finished = state("SELECT f.min_reader, f.state FROM finished_tasks f WHERE f.id = $1 FOR UPDATE");
        if let Some(found) = conn.first(finished, actable)? {
            return Ok(found.map_or_else(Place::TooNew, Place::Finished));
        }
        let either = sql(
            "SELECT (t.id) FROM tasks t WHERE t.id = $1 UNION ALL SELECT (f.id) FROM finished_tasks f WHERE f.id = $1",
        );
        if conn.first(either.bind(id.0), uuid)?.is_none() {
            return Ok(Place::Nowhere);
        }
    }
    Err(StoreError::Conflict(format!("task {id} moves too often")))
}

/// A task whose row is locked.
fn there(conn: &mut Conn<'_>, id: TaskId) -> Result<Box<TaskRow>> {
    let row = task_by_id(conn, id)?;
    row.map(Box::new).ok_or_else(|| StoreError::Internal(format!("task {id} has gone while its row was locked")))
}

// ── Retry ───────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn retry(pool: &Pool, id: TaskId, request: Option<Uuid>) -> Result<Idempotent<RetryResult>> {
    pool.transaction(move |conn| {
        if !keep_request(conn, request, Some(id))? {
            let value = task_by_id(conn, id)?.map_or(RetryResult::NotFound, |row| RetryResult::Done(Box::new(row)));
            return Ok(Idempotent { value, repeated: true });
        }
        let value = retry_once(conn, id)?;
        if !matches!(value, RetryResult::Done(_)) {
            conn.undo();
        }
        Ok(Idempotent { value, repeated: false })
    })
}

fn retry_once(conn: &mut Conn<'_>, id: TaskId) -> Result<RetryResult> {
    // The queue is locked before the task, as everywhere, and a finished task does not change its queue.
    let queue = sql("SELECT f.queue FROM finished_tasks f WHERE f.id = $1").bind(id.0);
    if let Some(queue) = conn.first(queue, text)? {
        let open =
            sql("SELECT q.name FROM queues q WHERE q.name = $1 AND NOT q.draining FOR KEY SHARE").bind(queue.as_str());
        let open = conn.first(open, text)?.is_some();
        return match lock_task(conn, id)? {
            Place::TooNew(defect) => Ok(RetryResult::TooNew(defect)),
            Place::Finished(State::Succeeded) => there(conn, id).map(RetryResult::WrongState),
            Place::Finished(_) if !open => Ok(RetryResult::QueueClosed(queue)),
            Place::Finished(_) => {
                conn.execute(sql(RETRY).bind(id.0))?;
                there(conn, id).map(RetryResult::Done)
            }
            Place::Live(_) => there(conn, id).map(RetryResult::WrongState),
            Place::Nowhere => Ok(RetryResult::NotFound),
        };
    }
    match lock_task(conn, id)? {
        Place::TooNew(defect) => Ok(RetryResult::TooNew(defect)),
        Place::Live(_) => there(conn, id).map(RetryResult::WrongState),
        Place::Nowhere => Ok(RetryResult::NotFound),
        Place::Finished(_) => Err(StoreError::Conflict(format!("task {id} has just ended"))),
    }
}

/// Moves a finished task back. Its last attempt is kept, if there was one whose end this was; the budgets are fresh, the count
/// of attempts is not. A deadline is as far away again as it was from the submission.
const RETRY: &str = concat!(
    "WITH clock AS MATERIALIZED (
        SELECT ", now_us!(), " AS now_us
    ), was AS (
        DELETE FROM finished_tasks f WHERE f.id = $1
        RETURNING f.id, f.tenant, f.queue, f.rank, f.executor, f.resource_class, f.concurrency_key, f.exclusive, f.timeout_ms,
            f.attempt, f.token, f.session_id, f.created_at_us, f.expires_at_us, f.dispatched_at_us, f.started_at_us,
            f.trace_context, f.format, f.min_reader, f.spec, f.finished_at_us, f.outcome, f.exit_code, f.signal, f.message,
            f.output_tail, f.output_bytes, f.ended_at_us
    ), kept AS (
        INSERT INTO attempts (task_id, attempt, token, session_id, orchestrator, dispatched_at_us, recorded_at_us, outcome,
            exit_code, signal, message, output_tail, output_bytes, started_at_us, ended_at_us)
        SELECT was.id, was.attempt, was.token, was.session_id, coalesce(s.name, ''), was.dispatched_at_us,
            was.finished_at_us, was.outcome, was.exit_code, was.signal, was.message, was.output_tail, was.output_bytes,
            was.started_at_us, was.ended_at_us
        FROM was LEFT JOIN sessions s ON s.id = was.session_id WHERE was.token IS NOT NULL
        ON CONFLICT (task_id, attempt) DO NOTHING
    )
    INSERT INTO tasks (id, tenant, queue, state, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms,
        attempt, failures, losses, unsupported, created_at_us, ready_at_us, expires_at_us, dispatched_at_us, started_at_us,
        trace_context, format, min_reader, spec)
    SELECT id, tenant, queue, 2, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms, attempt, 0, 0, 0,
        created_at_us, now_us, now_us + (expires_at_us - created_at_us), dispatched_at_us, started_at_us, trace_context,
        format, min_reader, spec
    FROM was, clock"
);
