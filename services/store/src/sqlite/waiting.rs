//! Tasks that wait: lanes, pages of them, and what time does to them.

use std::ops::ControlFlow;

use diesel::prelude::*;
use millrace_core::{
    READER_RANGE,
    foreign::{LAST_ATTEMPT, MOMENT},
    id::TaskId,
    retry::OutcomeKind,
    task::{Event, State},
    time::Timestamp,
};
use uuid::Uuid;

use super::{
    failure,
    moves::{Ending, finish},
    reading::{one_row, task_rows},
    schema::{Key, tasks},
    statement::{Statement, sql},
    values::{BadColumn, Columns},
};
use crate::{
    Foreign,
    types::{LaneKey, LanePage, Outcome, Waiting},
};

const FIRST_LANE: &str = "SELECT CAST(tenant AS BLOB), rank FROM tasks \
     WHERE queue = ? AND ready_at_us IS NOT NULL AND typeof(tenant) = 'text' AND typeof(rank) = 'integer' \
     ORDER BY tenant, rank LIMIT 1";

/// Goes to the first entry after a lane in the index, past all of the lane's own.
pub(super) const NEXT_LANE: &str = "SELECT CAST(tenant AS BLOB), rank FROM tasks \
     WHERE queue = ? AND ready_at_us IS NOT NULL AND (tenant, rank) > (CAST(? AS TEXT), ?) \
         AND typeof(tenant) = 'text' AND typeof(rank) = 'integer' \
     ORDER BY tenant, rank LIMIT 1";

/// A part of a lane, by its two ends.
pub(super) const PAGE: &str = "SELECT id, ready_at_us, expires_at_us, min_reader, state FROM tasks \
     WHERE queue = ? AND tenant = ? AND rank = ? AND ready_at_us IS NOT NULL \
         AND (ready_at_us, id) > (?, ?) AND (ready_at_us, id) <= (?, ?) \
     ORDER BY ready_at_us, id";

/// A lane by the bytes of its index, which need not be readable.
#[derive(Debug, Clone)]
pub(super) struct RawLane {
    pub(super) tenant: Vec<u8>,
    pub(super) rank: i64,
}

/// Visits the lanes of a queue in the order of (tenant, rank), one step in the index each, however many tasks they hold.
pub(super) fn each_lane(
    connection: &mut SqliteConnection,
    queue: &str,
    after: Option<RawLane>,
    mut visit: impl FnMut(&mut SqliteConnection, &RawLane) -> failure::Outcome<ControlFlow<()>>,
) -> failure::Outcome<()> {
    let mut last = after;
    loop {
        let query = match &last {
            None => sql(FIRST_LANE).text(queue),
            Some(lane) => sql(NEXT_LANE).text(queue).blob(lane.tenant.as_slice()).integer(lane.rank),
        };
        let next =
            one_row(connection, query, |row| Ok(RawLane { tenant: row.blob("tenant")?, rank: row.integer("rank")? }))?;
        let Some(lane) = next else { return Ok(()) };
        if visit(connection, &lane)?.is_break() {
            return Ok(());
        }
        last = Some(lane);
    }
}

pub(super) fn lanes(
    connection: &mut SqliteConnection,
    queue: &str,
    after: Option<&LaneKey>,
    limit: i64,
) -> failure::Outcome<Vec<LaneKey>> {
    let limit = usize::try_from(limit).unwrap_or(0);
    let mut found = Vec::new();
    if limit == 0 {
        return Ok(found);
    }
    let after = after.map(|lane| RawLane { tenant: lane.tenant.as_bytes().to_vec(), rank: i64::from(lane.rank) });
    each_lane(connection, queue, after, |_, lane| {
        // A lane whose name cannot be read is left out.
        if let (Ok(tenant), Ok(rank)) = (str::from_utf8(&lane.tenant), i32::try_from(lane.rank)) {
            found.push(LaneKey { tenant: tenant.to_owned(), rank });
        }
        Ok(if found.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(found)
}

/// A part of a lane that is asked for.
pub(super) struct Part<'a> {
    pub(super) queue: &'a str,
    pub(super) lane: &'a LaneKey,
    pub(super) after: (Timestamp, TaskId),
    pub(super) up_to: Option<(Timestamp, TaskId)>,
    pub(super) limit: i64,
}

pub(super) fn lane_page(
    connection: &mut SqliteConnection,
    now: i64,
    foreign: &Foreign,
    part: &Part<'_>,
) -> failure::Outcome<LanePage> {
    let (last_ready, last_id) = part.up_to.unwrap_or((Timestamp(i64::MAX), TaskId(Uuid::max())));
    let query = sql(PAGE)
        .text(part.queue)
        .text(part.lane.tenant.as_str())
        .integer(i64::from(part.lane.rank))
        .integer(part.after.0.0)
        .uuid(&part.after.1.0)
        .integer(last_ready.0)
        .uuid(&last_id.0);
    let page = task_rows(connection, foreign, query, part.limit, |row| waiting_in(foreign, part.lane, row))?;
    Ok(LanePage { rows: page.rows, exhausted: page.exhausted, now: Timestamp(now) })
}

/// A row that this build cannot act on keeps its place, so that whoever goes through the lane gets past it, but no reader there
/// is takes it: it is too new, or cannot be read.
fn waiting_in(foreign: &Foreign, lane: &LaneKey, row: &mut Columns) -> Result<Waiting, BadColumn> {
    let (id, ready_at_us) = (row.task_id("id")?, row.integer("ready_at_us")?);
    let expires_at_us = row.spare(|row| row.optional_integer("expires_at_us"));
    let mut read = row.narrow::<i16>("min_reader").and_then(|min_reader| row.state("state").map(|_| min_reader));
    if !MOMENT.hold(ready_at_us) && matches!(read, Ok(min_reader) if min_reader <= READER_RANGE.1) {
        read = Err(BadColumn::outside("ready_at_us", &MOMENT, ready_at_us));
    }
    match &read {
        Ok(min_reader) if *min_reader > READER_RANGE.1 => foreign.too_new(1),
        Ok(_) => {}
        Err(bad) if bad.later => foreign.too_new(1),
        Err(bad) => foreign.unreadable(Some(id), &bad.defect()),
    }
    let LaneKey { tenant, rank } = lane.clone();
    Ok(Waiting { id, tenant, rank, ready_at_us, expires_at_us, min_reader: read.unwrap_or(i16::MAX) })
}

pub(super) fn wake(
    connection: &mut SqliteConnection,
    now: i64,
    foreign: &Foreign,
    limit: i64,
) -> failure::Outcome<Vec<(String, Waiting)>> {
    let query = tasks::table.filter(tasks::wake_at_us.le(now)).order(tasks::wake_at_us).select((
        tasks::id,
        tasks::min_reader,
        tasks::state,
        tasks::queue,
        tasks::tenant,
        tasks::rank,
        tasks::expires_at_us,
    ));
    let woken = task_rows(connection, foreign, query, limit, |row| {
        let id = row.task_id("id")?;
        let min_reader = row.own_reader("min_reader")?;
        row.state_of(&[State::Scheduled], "state")?;
        let queue = row.text("queue")?;
        let waiting = Waiting {
            id,
            tenant: row.text("tenant")?,
            rank: row.narrow("rank")?,
            ready_at_us: now,
            expires_at_us: row.spare(|row| row.optional_integer("expires_at_us")),
            min_reader,
        };
        Ok((queue, waiting))
    })?
    .rows;
    let Ok(state) = State::Scheduled.next(Event::Wake) else { return Ok(Vec::new()) };
    for (_, waiting) in &woken {
        diesel::update(tasks::table.filter(tasks::id.eq(Key(waiting.id.0))))
            .set((tasks::state.eq(state as i16), tasks::wake_at_us.eq(None::<i64>), tasks::ready_at_us.eq(now)))
            .execute(connection)?;
    }
    Ok(woken)
}

pub(super) fn expire(
    connection: &mut SqliteConnection,
    now: i64,
    foreign: &Foreign,
    limit: i64,
) -> failure::Outcome<Vec<TaskId>> {
    // Read whole: what cannot be read does not end, it is set aside.
    let query = tasks::table
        .filter(tasks::expires_at_us.le(now).and(tasks::session_id.is_null()))
        .order(tasks::expires_at_us)
        .select((
            tasks::id,
            tasks::min_reader,
            tasks::state,
            tasks::tenant,
            tasks::queue,
            tasks::rank,
            tasks::concurrency_key,
            tasks::attempt,
            tasks::spec,
        ));
    let expired = task_rows(connection, foreign, query, limit, |row| {
        let id = row.task_id("id")?;
        row.own_reader("min_reader")?;
        row.state_of(&[State::Scheduled, State::Queued], "state")?;
        row.text("tenant")?;
        row.text("queue")?;
        row.narrow::<i32>("rank")?;
        row.text("concurrency_key")?;
        row.within::<i32>("attempt", &LAST_ATTEMPT)?;
        row.blob("spec")?;
        Ok(id)
    })?
    .rows;
    let outcome = never_ran(OutcomeKind::Expired, "waited past its deadline");
    for &id in &expired {
        let ending = Ending { state: State::Expired, outcome: &outcome, failures: None, losses: None };
        finish(connection, now, id, &ending)?;
    }
    Ok(expired)
}

/// The outcome of a task that ended while it waited.
pub(super) fn never_ran(kind: OutcomeKind, message: &str) -> Outcome {
    Outcome {
        kind,
        exit_code: None,
        signal: None,
        message: message.to_owned(),
        output_tail: Vec::new(),
        output_bytes: 0,
        started_at_us: None,
        ended_at_us: None,
    }
}

/// Counts the tasks of a lane up to a position, at most `bound`.
pub(super) fn count_lane(
    connection: &mut SqliteConnection,
    queue: &str,
    lane: &RawLane,
    before: Option<(i64, TaskId)>,
    bound: i64,
) -> failure::Outcome<i64> {
    let (ready, id) = before.unwrap_or((i64::MAX, TaskId(Uuid::max())));
    let count: Statement<'_> = sql("SELECT count(*) FROM (\
                                        SELECT 1 FROM tasks \
                                        WHERE queue = ? AND tenant = CAST(? AS TEXT) AND rank = ? \
                                            AND ready_at_us IS NOT NULL AND (ready_at_us, id) < (?, ?) \
                                        LIMIT ?)")
    .text(queue)
    .blob(lane.tenant.as_slice())
    .integer(lane.rank)
    .integer(ready)
    .uuid(&id.0)
    .integer(bound);
    Ok(one_row(connection, count, |row| row.integer("count"))?.unwrap_or_default())
}
