//! Tasks that wait: what the feeder reads, and what time does to them.

use millrace_core::{
    READER_RANGE,
    foreign::{Defect, MOMENT},
    id::TaskId,
    retry::OutcomeKind,
    task::State,
    time::Timestamp,
};
use uuid::Uuid;

use super::{
    columns::{Columns, Read},
    foreign::{end_live, locked, unfit_to_end},
    moves::Ending,
    pool::Pool,
    rows::{now_us, uuid, waiting},
    sql::sql,
    unindexed,
};
use crate::{LaneKey, LanePage, Result, StoreError, Waiting, foreign::state_of};

/// Steps from lane to lane through the index (a "loose index scan"), so it costs a lane and not its tasks. A rank that no lane of
/// this build can have is passed over: its rows are strays. The order is that of
/// bytes, by the columns' collation.
pub(super) fn lanes(pool: &Pool, queue: &str, after: Option<&LaneKey>, limit: i64) -> Result<Vec<LaneKey>> {
    let statement = sql("WITH RECURSIVE lane AS (
            (SELECT t.tenant, t.rank FROM tasks t
             WHERE t.queue = $1 AND t.ready_at_us IS NOT NULL AND (t.tenant, t.rank) > ($2, $3)
                AND t.rank BETWEEN -2147483648::bigint AND 2147483647::bigint
             ORDER BY t.tenant, t.rank LIMIT 1)
            UNION ALL
            SELECT next.tenant, next.rank FROM lane CROSS JOIN LATERAL (
                SELECT t.tenant, t.rank FROM tasks t
                WHERE t.queue = $1 AND t.ready_at_us IS NOT NULL AND (t.tenant, t.rank) > (lane.tenant, lane.rank)
                    AND t.rank BETWEEN -2147483648::bigint AND 2147483647::bigint
                ORDER BY t.tenant, t.rank LIMIT 1) AS next
        )
        SELECT tenant, rank FROM lane LIMIT $4")
    .instead(unindexed::LANE, unindexed::LANES);
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
            page.id, page.ready_at_us, page.expires_at_us, page.min_reader, page.state
        FROM (SELECT 1) AS always LEFT JOIN LATERAL (
            SELECT t.id, t.ready_at_us, t.expires_at_us, t.min_reader, t.state FROM tasks t
            WHERE t.queue = $1 AND t.tenant = $2 AND t.rank = $3 AND t.ready_at_us IS NOT NULL
                AND (t.ready_at_us, t.id) > ($4, $5) AND (t.ready_at_us, t.id) <= ($6, $7)
            ORDER BY t.ready_at_us, t.id LIMIT $8) AS page ON TRUE")
    .instead(unindexed::LANE, unindexed::LANE_PAGE)
    .instead(unindexed::TIME, unindexed::LANE_PAGE_BY_TIME);
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
    let lane = lane.clone();
    pool.read(move |conn| {
        let lines = conn.rows(statement, |row| {
            let now = row.get::<i64>()?;
            Ok((now, row.get_nullable::<Uuid>()?.map(|id| waiting_in(&lane, TaskId(id), row))))
        })?;
        let now = Timestamp(lines.first().map_or(0, |(now, _)| *now));
        let mut rows: Vec<(Waiting, Option<Defect>)> =
            lines.into_iter().filter_map(|(_, row)| row).collect::<Read<_>>().map_err(StoreError::Unreadable)?;
        let exhausted = rows.len() as i64 <= limit;
        rows.truncate(limit as usize);
        let note = |(row, defect): (Waiting, Option<Defect>)| {
            match defect {
                Some(defect) => conn.foreign().unreadable(Some(row.id), &defect),
                None if row.min_reader > READER_RANGE.1 => conn.foreign().too_new(1),
                None => {}
            }
            row
        };
        Ok(LanePage { rows: rows.into_iter().map(note).collect(), exhausted, now })
    })
}

/// A row that this build cannot act on keeps its place, so that a page is never empty because of such rows, but no reader
/// there is takes it: it is too new, or cannot be read.
fn waiting_in(lane: &LaneKey, id: TaskId, row: &mut Columns<'_>) -> Read<(Waiting, Option<Defect>)> {
    let (ready_at_us, expires_at_us): (i64, _) = (row.get()?, row.spare_nullable());
    let min_reader: Read<i16> = row.get();
    let state: Read<i16> = row.get();
    let known = |state: i16| State::try_from(state).is_ok();
    let (min_reader, defect) = match (min_reader, state) {
        (Ok(min_reader), Ok(state)) if known(state) && min_reader <= READER_RANGE.1 && !MOMENT.hold(ready_at_us) => {
            (i16::MAX, Some(Defect::new("ready_at_us", format!("holds {ready_at_us}, not {}", MOMENT.expected))))
        }
        (Ok(min_reader), Ok(state)) if known(state) => (min_reader, None),
        (Ok(_), Ok(_)) => (i16::MAX, None),
        (Err(defect), _) | (_, Err(defect)) => (i16::MAX, Some(defect)),
    };
    let LaneKey { tenant, rank } = lane.clone();
    Ok((Waiting { id, tenant, rank, ready_at_us, expires_at_us, min_reader }, defect))
}

pub(super) fn wake(pool: &Pool, limit: i64) -> Result<Vec<(String, Waiting)>> {
    let statement = sql(concat!(
        "WITH clock AS MATERIALIZED (SELECT ",
        now_us!(),
        " AS now_us),
        due AS MATERIALIZED (
            SELECT t.id FROM tasks t WHERE t.wake_at_us IS NOT NULL AND t.wake_at_us <= (SELECT now_us FROM clock)
                AND t.state = 1 AND t.min_reader <= $1
            ORDER BY t.wake_at_us LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        UPDATE tasks t SET state = 2, wake_at_us = NULL, ready_at_us = clock.now_us FROM clock, due WHERE t.id = due.id
        RETURNING t.queue, t.id, t.tenant, t.rank, t.ready_at_us, t.expires_at_us, t.min_reader"
    ));
    let statement = statement.bind(READER_RANGE.1).bind(limit.max(0));
    pool.write(move |conn| Ok(conn.task_rows(statement, |row| Ok((row.get()?, waiting(row)?)))?.read))
}

/// Moves waiting tasks to the finished ones without an attempt; `$1` is the state, `$2` the outcome and `$3` the message.
/// `due` says which, by id, and is locked.
macro_rules! end_waiting {
    ($due:expr) => {
        concat!(
            "WITH clock AS MATERIALIZED (
                SELECT now_us, ((now_us / c.slice_us) % 8)::smallint AS slot
                FROM cluster c, (SELECT ", $crate::postgres::rows::now_us!(), " AS now_us) AS now
            ), ending AS MATERIALIZED (
                SELECT $1::smallint AS state, $2::smallint AS outcome, $3::text AS message
            ), due AS MATERIALIZED (", $due, "),
            ended AS (
                DELETE FROM tasks t USING due WHERE t.id = due.id
                RETURNING t.id, t.tenant, t.queue, t.rank, t.executor, t.resource_class, t.concurrency_key, t.exclusive,
                    t.timeout_ms, t.attempt, t.failures, t.losses, t.unsupported, t.created_at_us, t.expires_at_us,
                    t.dispatched_at_us, t.started_at_us, t.trace_context, t.format, t.min_reader, t.spec
            )
            INSERT INTO finished_tasks AS f (slot, finished_at_us, state, outcome, message, output_tail, output_bytes, id,
                tenant, queue, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms, attempt, failures,
                losses, unsupported, created_at_us, expires_at_us, dispatched_at_us, started_at_us, trace_context, format,
                min_reader, spec)
            SELECT clock.slot, clock.now_us, ending.state, ending.outcome, ending.message, ''::bytea, 0, ended.id,
                ended.tenant, ended.queue, ended.rank, ended.executor, ended.resource_class, ended.concurrency_key,
                ended.exclusive, ended.timeout_ms, ended.attempt, ended.failures, ended.losses, ended.unsupported,
                ended.created_at_us, ended.expires_at_us, ended.dispatched_at_us, ended.started_at_us, ended.trace_context,
                ended.format, ended.min_reader, ended.spec
            FROM clock, ending, ended
            RETURNING f.id"
        )
    };
}
pub(super) use end_waiting;

/// The tasks whose time is over, locked.
macro_rules! overdue {
    () => {
        "SELECT t.id FROM tasks t WHERE t.\"expires_at_us\" IS NOT NULL AND t.expires_at_us <= (SELECT now_us FROM clock)
            AND t.session_id IS NULL
            AND t.state IN (1, 2) AND t.min_reader <= $4 ORDER BY t.expires_at_us LIMIT $5 FOR UPDATE SKIP LOCKED"
    };
}

const TOO_LATE: &str = "the task waited past its deadline";

pub(super) fn expire(pool: &Pool, limit: i64) -> Result<Vec<TaskId>> {
    let statement = sql(end_waiting!(overdue!()))
        .bind(State::Expired as i16)
        .bind(OutcomeKind::Expired as i16)
        .bind(TOO_LATE)
        .bind(READER_RANGE.1)
        .bind(limit.max(0));
    match pool.write(move |conn| Ok(conn.rows(statement, uuid)?.into_iter().map(TaskId).collect())) {
        Err(StoreError::Data { .. }) => expire_foreign(pool, limit),
        expired => expired,
    }
}

/// Rows that are not fit to end and are passed over by one call. They are on their way into the quarantine.
const PASSED_OVER: i64 = 1000;

/// The same one by one: a row among them was written by another release so that it does not fit the finished ones.
fn expire_foreign(pool: &Pool, limit: i64) -> Result<Vec<TaskId>> {
    let due = sql(concat!(
        "SELECT t.id FROM tasks t WHERE t.\"expires_at_us\" IS NOT NULL AND t.expires_at_us <= ",
        now_us!(),
        " AND t.session_id IS NULL AND t.state IN (1, 2) AND t.min_reader <= $1 ORDER BY t.expires_at_us LIMIT $2"
    ));
    let due = due.bind(READER_RANGE.1).bind(limit.max(0).saturating_add(PASSED_OVER));
    let due = pool.read(move |conn| Ok(conn.rows(due, uuid)?.into_iter().map(TaskId).collect::<Vec<_>>()))?;
    let mut expired = Vec::new();
    for task in due {
        if expired.len() as i64 >= limit {
            break;
        }
        match expire_one(pool, task) {
            Ok(true) => expired.push(task),
            Ok(false) => {}
            Err(error) if error.is_transient() => return Err(error),
            // It stays, and must not keep those behind it.
            Err(error) => tracing::error!(%task, %error, "a task whose time is over cannot be ended"),
        }
    }
    Ok(expired)
}

/// Ends one waiting task column by column; false when it does not wait any more, or is not fit to end here.
fn expire_one(pool: &Pool, task: TaskId) -> Result<bool> {
    pool.transaction(move |conn| {
        let Some(row) = locked(conn, &[task])?.pop() else { return Ok(false) };
        if let Some(defect) = unfit_to_end(&row) {
            conn.foreign().unreadable(Some(task), &defect);
            return Ok(false);
        }
        if !matches!(state_of(&row.row), Some(State::Scheduled | State::Queued)) {
            return Ok(false);
        }
        end_live(conn, &row, &Ending::without_attempt(State::Expired, OutcomeKind::Expired, TOO_LATE))?;
        Ok(true)
    })
}
