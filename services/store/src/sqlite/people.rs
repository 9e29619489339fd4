//! What people call. The reads are bounded by what they look at: rows of a list, waiting tasks of a count, lanes of a
//! position.

use std::ops::ControlFlow;

use diesel::prelude::*;
use millrace_core::{
    READER_RANGE,
    foreign::{Defect, reader_defect},
    id::{SessionId, TaskId},
    retry::OutcomeKind,
    task::{Event, State},
};
use uuid::Uuid;

use super::{
    cluster::{remember, repeated},
    failure::Outcome,
    moves::{Ending, finish, revive},
    queues::takes_tasks,
    reading::{all_rows, each_row, good_row, noted, one_row, task_row},
    rows,
    schema::{Key, attempts, finished_tasks, sessions, tasks},
    statement::sql,
    values::Columns,
    waiting::{count_lane, each_lane, never_ran},
};
use crate::{
    COUNT_BOUND, Foreign, LIST_SCAN_BOUND,
    types::{AttemptRow, CancelResult, Idempotent, ListFilter, ListPage, RetryResult, TaskRow},
};

pub(super) fn task(connection: &mut SqliteConnection, foreign: &Foreign, id: TaskId) -> Outcome<Option<TaskRow>> {
    let live = tasks::table.filter(tasks::id.eq(Key(id.0))).select(rows::LIVE_TASK);
    let mut found = task_row(connection, foreign, live, rows::live_task)?;
    if found.is_none() {
        let finished = finished_tasks::table.filter(finished_tasks::id.eq(Key(id.0))).select(rows::FINISHED_TASK);
        found = task_row(connection, foreign, finished, rows::finished_task)?;
    }
    if let Some(task) = &mut found
        && let Some(session) = task.session
        && let Some((orchestrator, replica)) = names(connection, session)?
    {
        (task.orchestrator, task.replica) = (orchestrator, replica);
    }
    Ok(found)
}

/// A session's orchestrator and the replica that holds its stream, if it is still known.
fn names(connection: &mut SqliteConnection, session: SessionId) -> Outcome<Option<(String, String)>> {
    let query = sessions::table.filter(sessions::id.eq(Key(session.0))).select((sessions::name, sessions::replica));
    Ok(good_row(connection, query, |row| Ok((row.text("name")?, row.text("replica")?)))?)
}

pub(super) fn tasks(connection: &mut SqliteConnection, foreign: &Foreign, ids: &[TaskId]) -> Outcome<Vec<TaskRow>> {
    let mut found = Vec::with_capacity(ids.len());
    for &id in ids {
        found.extend(good_task(connection, foreign, id)?);
    }
    Ok(found)
}

/// The task, unless its row cannot be read.
fn good_task(connection: &mut SqliteConnection, foreign: &Foreign, id: TaskId) -> Outcome<Option<TaskRow>> {
    match task(connection, foreign, id) {
        Err(super::failure::Failure::Row(bad)) => {
            tracing::debug!(task = %id, error = %bad, "a row that cannot be read was left out");
            Ok(None)
        }
        other => other,
    }
}

pub(super) fn is_quarantined(connection: &mut SqliteConnection, id: TaskId) -> Outcome<bool> {
    let query = sql("SELECT count(*) FROM quarantine WHERE task_id = ?").uuid(&id.0);
    Ok(one_row(connection, query, |row| row.integer("count"))? > Some(0))
}

pub(super) fn quarantined(connection: &mut SqliteConnection) -> Outcome<i64> {
    let query = sql("SELECT count(*) FROM (SELECT 1 FROM quarantine LIMIT ?)").integer(COUNT_BOUND);
    Ok(one_row(connection, query, |row| row.integer("count"))?.unwrap_or_default())
}

pub(super) fn attempts(connection: &mut SqliteConnection, id: TaskId) -> Outcome<Vec<AttemptRow>> {
    let query = attempts::table.filter(attempts::task_id.eq(Key(id.0))).order(attempts::attempt).select(rows::ATTEMPT);
    Ok(all_rows(connection, query, rows::attempt)?)
}

/// Both tables at once, newest first. SQLite merges them as it goes: what is not looked at is not read.
pub(super) const LIST: &str = "SELECT id, tenant, queue, state FROM tasks WHERE id < ? \
     UNION ALL SELECT id, tenant, queue, state FROM finished_tasks WHERE id < ? \
     ORDER BY 1 DESC LIMIT ?";

pub(super) fn list(
    connection: &mut SqliteConnection,
    foreign: &Foreign,
    filter: &ListFilter,
    below: Option<TaskId>,
    limit: i64,
) -> Outcome<ListPage> {
    let limit = usize::try_from(limit).unwrap_or(0);
    let below = below.map_or(Uuid::max(), |id| id.0);
    let query = sql(LIST).uuid(&below).uuid(&below).integer(LIST_SCAN_BOUND + 1);
    let mut ids = Vec::new();
    let (mut looked_at, mut last, mut more) = (0, None, false);
    each_row(connection, query, |row| {
        if ids.len() == limit || looked_at == LIST_SCAN_BOUND {
            more = true;
            return false;
        }
        looked_at += 1;
        // One that cannot be read matches nothing, and the next page starts below it all the same.
        last = row.peek_task_id().or(last);
        let listed = noted(foreign, row, |row| {
            let (id, tenant, queue) = (row.task_id("id")?, row.text("tenant")?, row.text("queue")?);
            let state = row.state("state")?;
            Ok(Some(id).filter(|_| takes(filter, &tenant, &queue, state)))
        });
        ids.extend(listed.ok().flatten());
        true
    })?;
    Ok(ListPage { rows: tasks(connection, foreign, &ids)?, next: last.filter(|_| more) })
}

fn takes(filter: &ListFilter, tenant: &str, queue: &str, state: State) -> bool {
    filter.tenant.as_deref().is_none_or(|wanted| wanted == tenant)
        && filter.queue.as_deref().is_none_or(|wanted| wanted == queue)
        && (filter.states.is_empty() || filter.states.contains(&state))
}

pub(super) fn position(connection: &mut SqliteConnection, foreign: &Foreign, id: TaskId) -> Outcome<Option<i64>> {
    let query = tasks::table.filter(tasks::id.eq(Key(id.0)).and(tasks::ready_at_us.is_not_null())).select((
        tasks::id,
        tasks::queue,
        tasks::rank,
        tasks::ready_at_us,
    ));
    let found = task_row(connection, foreign, query, |row| {
        row.task_id("id")?;
        Ok((row.text("queue")?, row.narrow::<i32>("rank")?, row.integer("ready_at_us")?))
    })?;
    let Some((queue, rank, ready_at_us)) = found else { return Ok(None) };
    let (mut ahead, mut lanes) = (0, 0);
    each_lane(connection, &queue, None, |connection, lane| {
        lanes += 1;
        let before = (lane.rank == i64::from(rank)).then_some((ready_at_us, id));
        if lane.rank <= i64::from(rank) {
            ahead += count_lane(connection, &queue, lane, before, COUNT_BOUND - ahead)?;
        }
        let bounded = ahead >= COUNT_BOUND || lanes >= LIST_SCAN_BOUND;
        Ok(if bounded { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(Some(ahead))
}

pub(super) fn cancel(
    connection: &mut SqliteConnection,
    now: i64,
    foreign: &Foreign,
    id: TaskId,
    reason: &str,
    request: Option<Uuid>,
) -> Outcome<CancelResult> {
    let repeated = repeated(connection, request)?;
    if !repeated && let Some(defect) = too_new(connection, id)? {
        return Ok(CancelResult::TooNew(defect));
    }
    let Some(before) = task(connection, foreign, id)? else { return Ok(CancelResult::NotFound) };
    if repeated {
        return Ok(CancelResult::Done(Box::new(before)));
    }
    let Ok(state) = before.state.next(Event::Cancel) else {
        return Ok(CancelResult::Finished(Box::new(before)));
    };
    if before.state.is_waiting() {
        let outcome = never_ran(OutcomeKind::Cancelled, reason);
        finish(connection, now, id, &Ending { state, outcome: &outcome, failures: None, losses: None })?;
    } else if before.state.is_held() {
        diesel::update(tasks::table.filter(tasks::id.eq(Key(id.0))))
            .set(tasks::state.eq(state as i16))
            .execute(connection)?;
    }
    remember(connection, now, request, Some(id))?;
    Ok(task(connection, foreign, id)?.map_or(CancelResult::NotFound, |after| CancelResult::Done(Box::new(after))))
}

/// Why only a later release may act on the task, if so. Looked at before its other columns, which may mean anything then.
fn too_new(connection: &mut SqliteConnection, id: TaskId) -> Outcome<Option<Defect>> {
    let judge = |row: &mut Columns| {
        let reader = reader_defect(row.narrow("min_reader")?, READER_RANGE.1);
        Ok(reader.or_else(|| row.state("state").err().filter(|bad| bad.later).map(|bad| bad.defect())))
    };
    let live = tasks::table.filter(tasks::id.eq(Key(id.0))).select((tasks::min_reader, tasks::state));
    if let Some(found) = good_row(connection, live, judge)? {
        return Ok(found);
    }
    let finished = finished_tasks::table
        .filter(finished_tasks::id.eq(Key(id.0)))
        .select((finished_tasks::min_reader, finished_tasks::state));
    Ok(good_row(connection, finished, judge)?.flatten())
}

pub(super) fn retry(
    connection: &mut SqliteConnection,
    now: i64,
    foreign: &Foreign,
    id: TaskId,
    request: Option<Uuid>,
) -> Outcome<Idempotent<RetryResult>> {
    let repeated = repeated(connection, request)?;
    let value = retry_once(connection, now, foreign, id, request, repeated)?;
    Ok(Idempotent { value, repeated })
}

fn retry_once(
    connection: &mut SqliteConnection,
    now: i64,
    foreign: &Foreign,
    id: TaskId,
    request: Option<Uuid>,
    repeated: bool,
) -> Outcome<RetryResult> {
    if !repeated && let Some(defect) = too_new(connection, id)? {
        return Ok(RetryResult::TooNew(defect));
    }
    let Some(before) = task(connection, foreign, id)? else { return Ok(RetryResult::NotFound) };
    if repeated {
        return Ok(RetryResult::Done(Box::new(before)));
    }
    if before.state.next(Event::Retry).is_err() {
        return Ok(RetryResult::WrongState(Box::new(before)));
    }
    if !takes_tasks(connection, &before.envelope.queue)? {
        return Ok(RetryResult::QueueClosed(before.envelope.queue));
    }
    revive(connection, now, id)?;
    remember(connection, now, request, Some(id))?;
    Ok(task(connection, foreign, id)?.map_or(RetryResult::NotFound, |after| RetryResult::Done(Box::new(after))))
}
