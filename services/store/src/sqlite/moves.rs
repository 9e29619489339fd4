//! Moving a task between the live and the finished ones. Rows move inside the database, so that a row which this build
//! cannot read whole still moves whole. Where a live row holds nothing although it should, the finished one gets a default:
//! the end of an attempt is not lost to it.

use diesel::prelude::*;
use millrace_core::{id::TaskId, task::State};

use super::{
    failure,
    schema::{Key, finished_tasks, tasks},
    statement::sql,
};
use crate::types::Outcome;

/// How a task ends.
pub(super) struct Ending<'a> {
    pub(super) state: State,
    pub(super) outcome: &'a Outcome,
    /// Attempts that failed; `None` leaves the row's count.
    pub(super) failures: Option<i32>,
    /// The same for attempts lost.
    pub(super) losses: Option<i32>,
}

/// Moves a live task to the finished ones.
pub(super) fn finish(
    connection: &mut SqliteConnection,
    now: i64,
    id: TaskId,
    ending: &Ending<'_>,
) -> failure::Outcome<()> {
    let outcome = ending.outcome;
    // A sentence must never cost the outcome that it describes.
    let message = outcome.message.replace('\0', "\u{FFFD}");
    sql("INSERT INTO finished_tasks (slot, finished_at_us, state, failures, losses, outcome, exit_code, signal, message, \
             output_tail, output_bytes, ended_at_us, started_at_us, id, tenant, queue, rank, executor, resource_class, \
             concurrency_key, exclusive, timeout_ms, attempt, token, session_id, unsupported, created_at_us, \
             expires_at_us, dispatched_at_us, trace_context, format, min_reader, spec) \
         SELECT (? / (SELECT max(slice_us, 1) FROM cluster)) % 8, ?, ?, max(coalesce(failures, 0), coalesce(?, 0)), \
             max(coalesce(losses, 0), coalesce(?, 0)), ?, ?, ?, ?, ?, ?, ?, coalesce(?, started_at_us), id, \
             coalesce(tenant, ''), coalesce(queue, ''), coalesce(rank, 0), coalesce(executor, ''), \
             coalesce(resource_class, ''), coalesce(concurrency_key, ''), coalesce(exclusive, 0), timeout_ms, \
             coalesce(attempt, 0), token, session_id, coalesce(unsupported, 0), coalesce(created_at_us, 0), expires_at_us, \
             dispatched_at_us, coalesce(trace_context, ''), coalesce(format, 1), coalesce(min_reader, 1), \
             coalesce(spec, x'') \
         FROM tasks WHERE id = ?")
    .integer(now)
    .integer(now)
    .integer(i64::from(ending.state as i16))
    .integer(ending.failures.map(i64::from))
    .integer(ending.losses.map(i64::from))
    .integer(i64::from(outcome.kind as i16))
    .integer(outcome.exit_code.map(i64::from))
    .integer(outcome.signal.map(i64::from))
    .text(message.as_str())
    .blob(outcome.output_tail.as_slice())
    .integer(outcome.output_bytes)
    .integer(outcome.ended_at_us)
    .integer(outcome.started_at_us)
    .uuid(&id.0)
    .execute(connection)?;
    diesel::delete(tasks::table.filter(tasks::id.eq(Key(id.0)))).execute(connection)?;
    Ok(())
}

/// Moves a finished task back to its queue, with fresh budgets and a fresh deadline of the same length. Its last attempt
/// joins the earlier ones; an end that was no attempt's, as that of a waiting task, does not.
pub(super) fn revive(connection: &mut SqliteConnection, now: i64, id: TaskId) -> failure::Outcome<()> {
    sql("INSERT INTO attempts (task_id, attempt, token, session_id, orchestrator, dispatched_at_us, recorded_at_us, outcome, \
             exit_code, signal, message, output_tail, output_bytes, started_at_us, ended_at_us) \
         SELECT id, attempt, token, session_id, coalesce((SELECT name FROM sessions WHERE sessions.id = session_id), ''), \
             dispatched_at_us, finished_at_us, outcome, exit_code, signal, message, output_tail, output_bytes, \
             started_at_us, ended_at_us \
         FROM finished_tasks WHERE id = ? AND session_id IS NOT NULL \
         ON CONFLICT DO NOTHING")
    .uuid(&id.0)
    .execute(connection)?;
    sql("INSERT INTO tasks (state, ready_at_us, expires_at_us, failures, losses, unsupported, id, tenant, queue, rank, \
             executor, resource_class, concurrency_key, exclusive, timeout_ms, attempt, created_at_us, dispatched_at_us, \
             started_at_us, trace_context, format, min_reader, spec) \
         SELECT ?, ?, ? + min(expires_at_us - created_at_us, 9223372036854775807 - ?), 0, 0, 0, id, tenant, queue, rank, executor, resource_class, \
             concurrency_key, exclusive, timeout_ms, attempt, created_at_us, dispatched_at_us, started_at_us, \
             trace_context, format, min_reader, spec \
         FROM finished_tasks WHERE id = ?")
    .integer(i64::from(State::Queued as i16))
    .integer(now)
    .integer(now)
    .integer(now)
    .uuid(&id.0)
    .execute(connection)?;
    diesel::delete(finished_tasks::table.filter(finished_tasks::id.eq(Key(id.0)))).execute(connection)?;
    Ok(())
}
