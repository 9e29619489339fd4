//! Tasks that wait: what the feeder reads, and what time does to them.

use millrace_core::{READER_RANGE, id::TaskId, retry::OutcomeKind, task::State, time::Timestamp};
use uuid::Uuid;

use super::{
    pool::Pool,
    rows::{now_us, uuid, waiting},
    sql::{Columns, Read, sql},
};
use crate::{LaneKey, LanePage, Result, Waiting};

/// Steps from lane to lane through the index (a "loose index scan"), so it costs a lane and not its tasks. The order is that of
/// bytes, by the columns' collation.
pub(super) fn lanes(pool: &Pool, queue: &str, after: Option<&LaneKey>, limit: i64) -> Result<Vec<LaneKey>> {
    let statement = sql("WITH RECURSIVE lane AS (
            (SELECT tenant, rank FROM tasks
             WHERE queue = $1 AND ready_at_us IS NOT NULL AND (tenant, rank) > ($2, $3)
             ORDER BY tenant, rank LIMIT 1)
            UNION ALL
            SELECT next.tenant, next.rank FROM lane CROSS JOIN LATERAL (
                SELECT tenant, rank FROM tasks
                WHERE queue = $1 AND ready_at_us IS NOT NULL AND (tenant, rank) > (lane.tenant, lane.rank)
                ORDER BY tenant, rank LIMIT 1) AS next
        )
        SELECT tenant, rank FROM lane LIMIT $4");
    // No tenant is named by the empty text.
    let (tenant, rank) = after.map_or(("", i32::MIN), |lane| (&lane.tenant, lane.rank));
    let statement = statement.bind(queue).bind(tenant).bind(rank).bind(limit.max(0));
    pool.read(move |conn| conn.readable_rows(statement, |row| Ok(LaneKey { tenant: row.get()?, rank: row.get()? })))
}

pub(super) fn lane_page(
    pool: &Pool,
    queue: &str,
    lane: &LaneKey,
    after: (Timestamp, TaskId),
    up_to: Option<(Timestamp, TaskId)>,
    limit: i64,
) -> Result<LanePage> {
    // The time is that at which the statement arrived, so nothing that this page could not see is older than it, except
    // what was not committed. One row more than asked for tells whether there are more.
    let statement = sql("SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint,
            t.id, t.tenant, t.rank, t.ready_at_us, t.expires_at_us, t.min_reader
        FROM (SELECT 1) AS always LEFT JOIN LATERAL (
            SELECT * FROM tasks
            WHERE queue = $1 AND tenant = $2 AND rank = $3 AND ready_at_us IS NOT NULL
                AND (ready_at_us, id) > ($4, $5) AND (ready_at_us, id) <= ($6, $7)
            ORDER BY ready_at_us, id LIMIT $8) AS t ON TRUE");
    let (last, last_id) = up_to.unwrap_or((Timestamp(i64::MAX), TaskId(Uuid::max())));
    let limit = limit.max(0);
    let statement = statement
        .bind(queue)
        .bind(lane.tenant.as_str())
        .bind(lane.rank)
        .bind(after.0.0)
        .bind(after.1.0)
        .bind(last.0)
        .bind(last_id.0)
        .bind(limit.saturating_add(1));
    pool.read(move |conn| {
        // A row that cannot be read still counts for the page's length, or the page after it would never be asked for.
        let lines = conn.rows(statement, |row| {
            let now = row.get::<i64>()?;
            let there = row.get_nullable::<Uuid>();
            Ok((now, there.transpose().map(|id| id.and_then(|id| waiting_after(TaskId(id), row)))))
        })?;
        let now = Timestamp(lines.first().map_or(0, |(now, _)| *now));
        let mut rows: Vec<_> = lines.into_iter().filter_map(|(_, row)| row).collect();
        let exhausted = rows.len() as i64 <= limit;
        rows.truncate(limit as usize);
        let readable = |row: Read<Waiting>| {
            row.inspect_err(|bad| tracing::warn!(error = %bad, "a waiting row cannot be read and is left out")).ok()
        };
        Ok(LanePage { rows: rows.into_iter().filter_map(readable).collect(), exhausted, now })
    })
}

fn waiting_after(id: TaskId, row: &mut Columns<'_>) -> Read<Waiting> {
    Ok(Waiting {
        id,
        tenant: row.get()?,
        rank: row.get()?,
        ready_at_us: row.get()?,
        expires_at_us: row.get_nullable()?,
        min_reader: row.get()?,
    })
}

pub(super) fn wake(pool: &Pool, limit: i64) -> Result<Vec<(String, Waiting)>> {
    let statement = sql(concat!(
        "WITH clock AS MATERIALIZED (SELECT ",
        now_us!(),
        " AS now_us),
        due AS MATERIALIZED (
            SELECT id FROM tasks WHERE wake_at_us <= (SELECT now_us FROM clock) AND state = 1 AND min_reader <= $1
            ORDER BY wake_at_us LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        UPDATE tasks t SET state = 2, wake_at_us = NULL, ready_at_us = clock.now_us FROM clock, due WHERE t.id = due.id
        RETURNING t.queue, t.id, t.tenant, t.rank, t.ready_at_us, t.expires_at_us, t.min_reader"
    ));
    let statement = statement.bind(READER_RANGE.1).bind(limit.max(0));
    pool.write(move |conn| conn.readable_rows(statement, |row| Ok((row.get()?, waiting(row)?))))
}

/// Moves waiting tasks to the finished ones without an attempt; `$1` is the state, `$2` the outcome and `$3` the message.
/// `due` says which, by id, and is locked.
macro_rules! end_waiting {
    ($due:literal) => {
        concat!(
            "WITH clock AS MATERIALIZED (
                SELECT now_us, ((now_us / slice_us) % 8)::smallint AS slot
                FROM cluster, (SELECT ", $crate::postgres::rows::now_us!(), " AS now_us) AS now
            ), ending AS MATERIALIZED (
                SELECT $1::smallint AS state, $2::smallint AS outcome, $3::text AS message
            ), due AS MATERIALIZED (", $due, "),
            ended AS (
                DELETE FROM tasks t USING due WHERE t.id = due.id
                RETURNING t.id, t.tenant, t.queue, t.rank, t.executor, t.resource_class, t.concurrency_key, t.exclusive,
                    t.timeout_ms, t.attempt, t.failures, t.losses, t.unsupported, t.created_at_us, t.expires_at_us,
                    t.dispatched_at_us, t.started_at_us, t.trace_context, t.format, t.min_reader, t.spec
            )
            INSERT INTO finished_tasks (slot, finished_at_us, state, outcome, message, output_tail, output_bytes, id,
                tenant, queue, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms, attempt, failures,
                losses, unsupported, created_at_us, expires_at_us, dispatched_at_us, started_at_us, trace_context, format,
                min_reader, spec)
            SELECT clock.slot, clock.now_us, ending.state, ending.outcome, ending.message, ''::bytea, 0, ended.*
            FROM clock, ending, ended
            RETURNING id"
        )
    };
}
pub(super) use end_waiting;

pub(super) fn expire(pool: &Pool, limit: i64) -> Result<Vec<TaskId>> {
    let statement = sql(end_waiting!(
        "SELECT id FROM tasks WHERE expires_at_us <= (SELECT now_us FROM clock) AND session_id IS NULL
            AND state IN (1, 2) AND min_reader <= $4 ORDER BY expires_at_us LIMIT $5 FOR UPDATE SKIP LOCKED"
    ));
    let statement = statement
        .bind(State::Expired as i16)
        .bind(OutcomeKind::Expired as i16)
        .bind("the task waited past its deadline")
        .bind(READER_RANGE.1)
        .bind(limit.max(0));
    pool.write(move |conn| Ok(conn.rows(statement, uuid)?.into_iter().map(TaskId).collect()))
}
