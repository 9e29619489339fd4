//! What people read of tasks. Every read here is by people's pool.

use millrace_core::{id::TaskId, task::State};
use uuid::Uuid;

use super::{
    conn::Conn,
    pool::Pool,
    rows::{attempt, number, select_tasks, task, uuid},
    sql::sql,
    unindexed,
};
use crate::{AttemptRow, COUNT_BOUND, LIST_SCAN_BOUND, ListFilter, ListPage, Result, StoreError, TaskRow};

/// One task, live or finished.
pub(super) fn task_by_id(conn: &mut Conn<'_>, id: TaskId) -> Result<Option<TaskRow>> {
    let mut rows = conn.task_rows(sql(select_tasks!("t.id = $1")).bind(id.0), task)?;
    match rows.unread.pop() {
        Some((_, defect)) if rows.read.is_empty() => Err(StoreError::Unreadable(defect)),
        _ => Ok(rows.read.pop()),
    }
}

pub(super) fn one(people: &Pool, id: TaskId) -> Result<Option<TaskRow>> {
    people.read(move |conn| task_by_id(conn, id))
}

pub(super) fn many(people: &Pool, ids: &[TaskId]) -> Result<Vec<TaskRow>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    people.read(move |conn| tasks_by_ids(conn, &ids))
}

fn tasks_by_ids(conn: &mut Conn<'_>, ids: &[Uuid]) -> Result<Vec<TaskRow>> {
    Ok(conn.task_rows(sql(select_tasks!("t.id = ANY($1::uuid[])")).array(ids.iter().copied()), task)?.read)
}

pub(super) fn is_quarantined(people: &Pool, id: TaskId) -> Result<bool> {
    let statement = sql("SELECT q.task_id FROM quarantine q WHERE q.task_id = $1").bind(id.0);
    people.read(move |conn| Ok(conn.first(statement, uuid)?.is_some()))
}

pub(super) fn quarantined(people: &Pool) -> Result<i64> {
    let statement = sql("SELECT count(*) FROM (SELECT 1 FROM quarantine q LIMIT $1) AS few").bind(COUNT_BOUND);
    people.read(move |conn| conn.one(statement, number))
}

pub(super) fn attempts(people: &Pool, id: TaskId) -> Result<Vec<AttemptRow>> {
    let statement =
        sql("SELECT a.attempt, a.orchestrator, a.dispatched_at_us, a.recorded_at_us, a.outcome, a.exit_code, a.signal, a.message,
            a.output_tail, a.output_bytes, a.started_at_us, a.ended_at_us
        FROM attempts a WHERE a.task_id = $1 ORDER BY a.attempt")
        .bind(id.0);
    people.read(move |conn| conn.readable_rows(statement, attempt))
}

/// Steps from tenant to tenant through the queue's index and counts in each what stands before the task, so it costs the tasks
/// that are counted and not those that wait.
pub(super) fn position(people: &Pool, id: TaskId) -> Result<Option<i64>> {
    let statement = sql("WITH RECURSIVE this AS MATERIALIZED (
            SELECT t.queue, t.rank, t.ready_at_us, t.id FROM tasks t WHERE t.id = $1 AND t.ready_at_us IS NOT NULL
        ), tenants AS (
            SELECT first.tenant FROM this CROSS JOIN LATERAL (
                SELECT t.tenant FROM tasks t WHERE t.queue = this.queue AND t.ready_at_us IS NOT NULL
                ORDER BY t.tenant LIMIT 1) AS first
            UNION ALL
            SELECT next.tenant FROM tenants, this CROSS JOIN LATERAL (
                SELECT t.tenant FROM tasks t
                WHERE t.queue = this.queue AND t.ready_at_us IS NOT NULL AND t.tenant > tenants.tenant
                ORDER BY t.tenant LIMIT 1) AS next
        ), before AS (
            SELECT 1 FROM this, tenants CROSS JOIN LATERAL (
                SELECT 1 FROM tasks t
                WHERE t.queue = this.queue AND t.tenant = tenants.tenant AND t.ready_at_us IS NOT NULL
                    AND (t.rank, t.ready_at_us, t.id) < (this.rank, this.ready_at_us, this.id)) AS one
            LIMIT $2
        )
        SELECT (SELECT count(*) FROM before) FROM this")
    .instead(unindexed::LANE, unindexed::POSITION);
    let statement = statement.bind(id.0).bind(COUNT_BOUND);
    people.read(move |conn| conn.first(statement, number))
}

// ── Lists ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// What of a row a filter looks at.
struct Candidate {
    id: Uuid,
    tenant: String,
    queue: String,
    state: i16,
}

/// How many rows one step of a list looks at.
const STEP: i64 = 1000;

pub(super) fn list(people: &Pool, filter: &ListFilter, below: Option<TaskId>, limit: i64) -> Result<ListPage> {
    let filter = filter.clone();
    people.read(move |conn| {
        let (ids, next) = matching(conn, &filter, below, limit.max(1))?;
        let mut rows = match ids.is_empty() {
            true => Vec::new(),
            false => tasks_by_ids(conn, &ids)?,
        };
        // A task may have gone on between the two statements; it is listed as it is now, where the page had it.
        rows.sort_by_key(|row| std::cmp::Reverse(row.envelope.id));
        Ok(ListPage { rows, next })
    })
}

/// Ids that match, newest first, and below which id the next page starts.
fn matching(
    conn: &mut Conn<'_>,
    filter: &ListFilter,
    below: Option<TaskId>,
    limit: i64,
) -> Result<(Vec<Uuid>, Option<TaskId>)> {
    let mut ids = Vec::new();
    let mut below = below.map(|id| id.0);
    let mut looked_at = 0;
    while looked_at < LIST_SCAN_BOUND {
        // A filter that lets everything through needs no more than it lists.
        let step = match *filter == ListFilter::default() {
            true => (limit - ids.len() as i64 + 1).min(STEP),
            false => STEP.min(LIST_SCAN_BOUND - looked_at),
        };
        let candidates = candidates(conn, below, step)?;
        let last_step = (candidates.len() as i64) < step;
        looked_at += candidates.len() as i64;
        let count = candidates.len();
        for (at, candidate) in candidates.into_iter().enumerate() {
            below = Some(candidate.id);
            if fits(filter, &candidate) {
                ids.push(candidate.id);
                if ids.len() as i64 == limit {
                    let more = !last_step || at + 1 < count;
                    return Ok((ids, below.filter(|_| more).map(TaskId)));
                }
            }
        }
        if last_step {
            return Ok((ids, None));
        }
    }
    Ok((ids, below.map(TaskId)))
}

fn candidates(conn: &mut Conn<'_>, below: Option<Uuid>, step: i64) -> Result<Vec<Candidate>> {
    // Above every version 7 UUID, and no task has it.
    let below = below.unwrap_or(Uuid::max());
    // Each table by itself in the order of its key: over both at once the planner sorts all of them.
    let statement =
        sql("(SELECT t.id, t.tenant, t.queue, t.state FROM tasks t WHERE t.id < $1 ORDER BY t.id DESC LIMIT $2)
        UNION ALL
        (SELECT f.id, f.tenant, f.queue, f.state FROM finished_tasks f WHERE f.id < $1 ORDER BY f.id DESC LIMIT $2)
        ORDER BY id DESC LIMIT $2");
    conn.readable_rows(statement.bind(below).bind(step), |row| {
        // What cannot be read matches no filter, and keeps its place, so that the cursor passes it.
        Ok(Candidate { id: row.get()?, tenant: row.spare(), queue: row.spare(), state: row.spare() })
    })
}

fn fits(filter: &ListFilter, candidate: &Candidate) -> bool {
    let same = |wanted: &Option<String>, given: &String| wanted.as_ref().is_none_or(|wanted| wanted == given);
    let states: &[State] = &filter.states;
    same(&filter.tenant, &candidate.tenant)
        && same(&filter.queue, &candidate.queue)
        && (states.is_empty() || states.iter().any(|state| *state as i16 == candidate.state))
}
