//! Sessions of orchestrators, and what they hold.

use std::time::Duration;

use diesel::prelude::*;
use millrace_core::{
    held::LeaseRef,
    id::SessionId,
    task::{Event, State},
    time::{Timestamp, micros},
};

use super::{
    cluster::{plain, served},
    failure::Outcome,
    reading::{good_rows, one_row, task_rows},
    rows,
    schema::{Key, SESSION_LIVE, SESSION_OVER, sessions, tasks},
    statement::sql,
    values::{list_json, map_json},
};
use crate::{
    Foreign, StoreError,
    types::{Dispatch, Heartbeat, HeartbeatResult, HeldRow, NewSession, Resumed, SessionRow},
};

pub(super) fn open_session(connection: &mut SqliteConnection, now: i64, new: &NewSession) -> Outcome<SessionRow> {
    let labels = map_json(&new.labels);
    let queues = list_json(&new.queues);
    plain(&[&new.name, &new.replica, &new.build])?;
    plain(
        &new.queues.iter().chain(new.labels.keys()).chain(new.labels.values()).map(String::as_str).collect::<Vec<_>>(),
    )?;
    let expires_served_ms = served(connection)?.served_ms.saturating_add(new.ttl_ms);
    diesel::insert_into(sessions::table)
        .values((
            sessions::id.eq(Key(new.id.0)),
            sessions::generation.eq(1),
            sessions::state.eq(SESSION_LIVE),
            sessions::name.eq(&new.name),
            sessions::queues.eq(queues),
            sessions::labels.eq(labels),
            sessions::slots.eq(new.slots),
            sessions::ttl_ms.eq(new.ttl_ms),
            sessions::expires_served_ms.eq(expires_served_ms),
            sessions::replica.eq(&new.replica),
            sessions::build.eq(&new.build),
            sessions::created_at_us.eq(now),
            sessions::seen_at_us.eq(now),
        ))
        .on_conflict_do_nothing()
        .execute(connection)?;
    match session(connection, new.id)? {
        Some(row) if row.live && row.generation == 1 => Ok(row),
        _ => Err(StoreError::Data {
            sqlstate: "23505".into(),
            message: format!("session {} was opened before and has gone on", new.id),
        }
        .into()),
    }
}

fn session(connection: &mut SqliteConnection, id: SessionId) -> Outcome<Option<SessionRow>> {
    one_row(connection, sessions::table.filter(sessions::id.eq(Key(id.0))).select(rows::SESSION), rows::session)
}

pub(super) fn resume_session(
    connection: &mut SqliteConnection,
    now: i64,
    foreign: &Foreign,
    id: SessionId,
    generation: i64,
    replica: &str,
) -> Outcome<Resumed> {
    plain(&[replica])?;
    if generation < 1 {
        return Ok(Resumed::Gone);
    }
    let served_ms = served(connection)?.served_ms;
    let resumed = diesel::update(sessions::table)
        .filter(sessions::id.eq(Key(id.0)))
        .filter(sessions::state.eq(SESSION_LIVE).and(sessions::generation.ge(generation)))
        .set((
            sessions::generation.eq(sessions::generation + 1),
            sessions::expires_served_ms.eq(sessions::ttl_ms + served_ms),
            sessions::seen_at_us.eq(now),
            sessions::replica.eq(replica),
        ))
        .execute(connection)?;
    if resumed == 0 {
        return Ok(Resumed::Gone);
    }
    match session(connection, id)? {
        Some(session) => Ok(Resumed::Yes { session, held: held_by(connection, foreign, id)? }),
        None => Ok(Resumed::Gone),
    }
}

pub(super) fn close_session(
    connection: &mut SqliteConnection,
    now: i64,
    id: SessionId,
    generation: Option<i64>,
) -> Outcome<bool> {
    let closed = sql("UPDATE sessions SET state = ?, generation = generation + 1, over_at_us = ? \
                      WHERE id = ? AND state = ? AND generation = coalesce(?, generation)")
    .integer(i64::from(SESSION_OVER))
    .integer(now)
    .uuid(&id.0)
    .integer(i64::from(SESSION_LIVE))
    .integer(generation)
    .execute(connection)?;
    Ok(closed > 0)
}

pub(super) fn reap_sessions(connection: &mut SqliteConnection, now: i64, limit: i64) -> Outcome<Vec<SessionId>> {
    let clock = served(connection)?;
    if clock.is_frozen() {
        return Ok(Vec::new());
    }
    let query = sessions::table
        .filter(sessions::state.eq(SESSION_LIVE).and(sessions::expires_served_ms.lt(clock.served_ms)))
        .order(sessions::id)
        .select(sessions::id);
    let ids = good_rows(connection, query, limit, |row| row.session_id("id"))?.rows;
    for &id in &ids {
        close_session(connection, now, id, None)?;
    }
    Ok(ids)
}

pub(super) fn heartbeat(
    connection: &mut SqliteConnection,
    now: i64,
    foreign: &Foreign,
    batch: &[Heartbeat],
) -> Outcome<Vec<HeartbeatResult>> {
    let served_ms = served(connection)?.served_ms;
    batch
        .iter()
        .map(|beat| {
            let renewed = diesel::update(sessions::table)
                .filter(sessions::id.eq(Key(beat.session.0)))
                .filter(sessions::state.eq(SESSION_LIVE).and(sessions::generation.eq(beat.generation)))
                .set((sessions::expires_served_ms.eq(sessions::ttl_ms + served_ms), sessions::seen_at_us.eq(now)))
                .execute(connection)?;
            if renewed == 0 {
                return Ok(HeartbeatResult { renewed: false, cancelling: Vec::new() });
            }
            for &(lease, started_at_us) in &beat.accepted {
                accept(connection, beat.session, lease, started_at_us)?;
            }
            Ok(HeartbeatResult { renewed: true, cancelling: cancelling(connection, foreign, beat.session)? })
        })
        .collect()
}

fn accept(
    connection: &mut SqliteConnection,
    session: SessionId,
    lease: LeaseRef,
    started_at_us: Option<i64>,
) -> Outcome<()> {
    // A task that runs already, or is being cancelled, stays as it is.
    let Ok(state) = State::Dispatched.next(Event::Accept) else { return Ok(()) };
    diesel::update(tasks::table)
        .filter(tasks::id.eq(Key(lease.task.0)).and(tasks::session_id.eq(Key(session.0))))
        .filter(tasks::attempt.eq(lease.attempt).and(tasks::token.eq(lease.token.0)))
        .filter(tasks::state.eq(State::Dispatched as i16))
        .set((tasks::state.eq(state as i16), tasks::started_at_us.eq(started_at_us)))
        .execute(connection)?;
    Ok(())
}

fn cancelling(connection: &mut SqliteConnection, foreign: &Foreign, session: SessionId) -> Outcome<Vec<LeaseRef>> {
    let query = tasks::table
        .filter(tasks::session_id.eq(Key(session.0)).and(tasks::state.eq(State::Cancelling as i16)))
        .order(tasks::id)
        .select(rows::LEASE);
    Ok(task_rows(connection, foreign, query, i64::MAX, rows::lease)?.rows)
}

pub(super) fn held_by(
    connection: &mut SqliteConnection,
    foreign: &Foreign,
    session: SessionId,
) -> Outcome<Vec<Dispatch>> {
    let query = tasks::table.filter(tasks::session_id.eq(Key(session.0))).order(tasks::id).select(rows::DISPATCH);
    Ok(task_rows(connection, foreign, query, i64::MAX, rows::dispatch)?.rows)
}

pub(super) fn held_rows(
    connection: &mut SqliteConnection,
    foreign: &Foreign,
    leases: &[LeaseRef],
) -> Outcome<Vec<HeldRow>> {
    let mut held = Vec::with_capacity(leases.len());
    for lease in leases {
        let query = tasks::table
            .filter(
                tasks::id
                    .eq(Key(lease.task.0))
                    .and(tasks::attempt.eq(lease.attempt))
                    .and(tasks::token.eq(lease.token.0))
                    .and(tasks::session_id.is_not_null()),
            )
            .select(rows::HELD);
        held.extend(task_rows(connection, foreign, query, 1, rows::held)?.rows);
    }
    Ok(held)
}

pub(super) fn orphans(connection: &mut SqliteConnection, foreign: &Foreign, limit: i64) -> Outcome<Vec<HeldRow>> {
    // A session that is not there at all is over, too.
    let query =
        sql("SELECT id, attempt, token, state, session_id, queue, tenant, rank, min_reader, expires_at_us, spec, \
                         failures, losses, unsupported \
                     FROM tasks \
                     WHERE session_id IS NOT NULL \
                         AND NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.id = session_id AND sessions.state = ?)")
        .integer(i64::from(SESSION_LIVE));
    Ok(task_rows(connection, foreign, query, limit, rows::held)?.rows)
}

pub(super) fn sessions(connection: &mut SqliteConnection, limit: i64) -> Outcome<Vec<SessionRow>> {
    let query = sessions::table
        .filter(sessions::state.eq(SESSION_LIVE))
        .order((sessions::name, sessions::id))
        .select(rows::SESSION);
    let mut rows = good_rows(connection, query, limit, rows::session)?.rows;
    for row in &mut rows {
        let count = sql("SELECT count(*) FROM tasks WHERE session_id = ?").uuid(&row.session.id.0);
        row.held = one_row(connection, count, |row| row.narrow("held"))?.unwrap_or_default();
    }
    Ok(rows)
}

pub(super) fn trim_sessions(connection: &mut SqliteConnection, now: i64, keep: Duration, limit: i64) -> Outcome<i64> {
    let before = Timestamp(now).0.saturating_sub(micros(keep));
    // One that still holds something is kept: its name belongs to what becomes of that.
    let dropped = sql("DELETE FROM sessions WHERE id IN (\
                           SELECT id FROM sessions \
                           WHERE over_at_us < ? AND state = ? \
                               AND NOT EXISTS (SELECT 1 FROM tasks WHERE session_id = sessions.id) \
                           LIMIT ?)")
    .integer(before)
    .integer(i64::from(SESSION_OVER))
    .integer(limit)
    .execute(connection)?;
    Ok(i64::try_from(dropped).unwrap_or(i64::MAX))
}
