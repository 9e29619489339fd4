//! Sessions of orchestrators.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use millrace_core::{
    held::LeaseRef,
    id::{SessionId, TaskId},
    lease::Token,
    time::micros,
};
use uuid::Uuid;

use super::{
    foreign::runnable,
    pool::Pool,
    rows::{
        dispatch, dispatch_columns, held, held_columns, list_json, map_json, now_us, session, session_columns, uuid,
    },
    sql::{Statement, sql},
};
use crate::{
    Dispatch, Heartbeat, HeartbeatResult, HeldRow, NewSession, Reader, Result, Resumed, SessionRow, StoreError,
};

// ── Its life ────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn open(pool: &Pool, new: &NewSession) -> Result<SessionRow> {
    let insert = sql(concat!(
        "INSERT INTO sessions AS s (id, generation, state, name, queues, labels, slots, ttl_ms, expires_served_ms, replica, build,
            created_at_us, seen_at_us)
         SELECT $1, 1, 1, $2, $3, $4, $5, $6, c.served_ms + $6, $7, $8, now_us, now_us
         FROM served_clock c, (SELECT ", now_us!(), " AS now_us) AS clock
         ON CONFLICT (id) DO NOTHING
         RETURNING ", session_columns!()
    ))
    .bind(new.id.0)
    .bind(new.name.as_str())
    .bind(list_json(&new.queues))
    .bind(map_json(&new.labels))
    .bind(new.slots)
    .bind(new.ttl_ms)
    .bind(new.replica.as_str())
    .bind(new.build.as_str());
    let read = sql(concat!("SELECT ", session_columns!(), " FROM sessions s WHERE s.id = $1")).bind(new.id.0);
    let id = new.id;
    pool.write(move |conn| {
        if let Some(opened) = conn.first(insert, session)? {
            return Ok(opened);
        }
        let there = conn.one(read, session)?;
        match there.live && there.generation == 1 {
            true => Ok(there),
            false => Err(StoreError::Internal(format!("session {id} was opened before and has gone on since"))),
        }
    })
}

pub(super) fn resume(pool: &Pool, reader: &Reader, id: SessionId, generation: i64, replica: &str) -> Result<Resumed> {
    // Waits for claims that hold the row FOR SHARE, so the second statement, whose snapshot is newer, sees what they won.
    let take =
        sql(concat!(
        "UPDATE sessions s SET generation = s.generation + 1, replica = $1, expires_served_ms = c.served_ms + s.ttl_ms,
            seen_at_us = ", now_us!(), "
         FROM served_clock c WHERE s.id = $2 AND $3 BETWEEN 1 AND s.generation AND s.state = 1
         RETURNING ", session_columns!()
    ));
    let take = take.bind(replica).bind(id.0).bind(generation);
    let reader = reader.clone();
    pool.transaction(move |conn| match conn.first(take, session)? {
        Some(session) => {
            let held = conn.task_rows(held_by_statement(id), dispatch)?.read;
            Ok(Resumed::Yes { session, held: runnable(conn, &reader, held) })
        }
        None => Ok(Resumed::Gone),
    })
}

pub(super) fn close(pool: &Pool, id: SessionId, generation: Option<i64>) -> Result<bool> {
    let statement = sql(concat!(
        "UPDATE sessions s SET state = 2, generation = s.generation + 1, over_at_us = ",
        now_us!(),
        "
         WHERE s.id = $1 AND s.state = 1 AND ($2::bigint IS NULL OR s.generation = $2)"
    ));
    let statement = statement.bind(id.0).bind(generation);
    pool.write(move |conn| Ok(conn.execute(statement)? > 0))
}

/// Waits for claims that hold a row FOR SHARE (skipped, a session that is claimed for steadily would never end), and passes over
/// rows that another reaper has ended meanwhile.
pub(super) fn reap(pool: &Pool, limit: i64) -> Result<Vec<SessionId>> {
    let statement = sql(concat!(
        "WITH dead AS MATERIALIZED (
            SELECT s.id FROM sessions s
            WHERE s.state = 1 AND s.expires_served_ms < (SELECT c.served_ms FROM served_clock c WHERE c.frozen_ms = 0)
            ORDER BY s.id LIMIT $1 FOR UPDATE
        )
        UPDATE sessions s SET state = 2, generation = s.generation + 1, over_at_us = ",
        now_us!(),
        "
        FROM dead WHERE s.id = dead.id RETURNING s.id"
    ));
    let statement = statement.bind(limit);
    pool.write(move |conn| Ok(conn.rows(statement, uuid)?.into_iter().map(SessionId).collect()))
}

/// Sessions that hold something are kept until it has been put back, so that no held task is without its session.
pub(super) fn trim(pool: &Pool, keep: Duration, limit: i64) -> Result<i64> {
    let statement = sql(concat!(
        "WITH old AS MATERIALIZED (
            SELECT s.id FROM sessions s WHERE s.over_at_us < ",
        now_us!(),
        " - $1
                AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.session_id = s.id AND t.session_id IS NOT NULL)
            ORDER BY s.over_at_us LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        DELETE FROM sessions s USING old WHERE s.id = old.id"
    ));
    let statement = statement.bind(micros(keep).min(i64::MAX / 2)).bind(limit);
    pool.write(move |conn| Ok(conn.execute(statement)? as i64))
}

// ── Heartbeats ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// Sessions first and tasks second, each in the order of their ids, as claims lock them (R8). What is being cancelled is
/// reported with the renewal (R13), in columns of the same types, whatever types those of tasks have: hence the parentheses (see
/// `drift`).
const HEARTBEAT: &str = concat!(
    "WITH beat AS MATERIALIZED (
        SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS beat(session, generation)
    ), clock AS MATERIALIZED (
        SELECT c.served_ms, ",
    now_us!(),
    " AS now_us FROM served_clock c
    ), renewed AS (
        UPDATE sessions s SET expires_served_ms = clock.served_ms + s.ttl_ms, seen_at_us = clock.now_us
        FROM clock, beat WHERE s.id = beat.session AND s.generation = beat.generation AND s.state = 1
        RETURNING s.id, s.generation
    ), accepted AS MATERIALIZED (
        SELECT item.*, item.session IN (SELECT id FROM renewed) AS renewed
        FROM unnest($3::uuid[], $4::integer[], $5::bigint[], $6::uuid[], $7::bigint[])
        AS item(id, attempt, token, session, started_at_us)
    ), running AS (
        UPDATE tasks t SET state = 4, started_at_us = accepted.started_at_us
        FROM accepted WHERE accepted.renewed AND t.id = accepted.id AND t.attempt = accepted.attempt
            AND t.token = accepted.token AND (t.session_id = accepted.session) IS TRUE AND t.state = 3
    )
    SELECT id, NULL::integer, generation, NULL::uuid FROM renewed
    UNION ALL SELECT (t.id), (t.attempt), (t.token), (t.session_id) FROM tasks t WHERE t.session_id = ANY($1)
        AND t.session_id IS NOT NULL AND t.state = 5"
);

pub(super) fn heartbeat(pool: &Pool, batch: &[Heartbeat]) -> Result<Vec<HeartbeatResult>> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let mut order: Vec<&Heartbeat> = batch.iter().collect();
    order.sort_by_key(|beat| (beat.session, beat.generation));
    let mut accepted: Vec<(LeaseRef, Uuid, Option<i64>)> = order
        .iter()
        .flat_map(|beat| beat.accepted.iter().map(|(lease, started)| (*lease, beat.session.0, *started)))
        .collect();
    accepted.sort_unstable();
    let statement = sql(HEARTBEAT)
        .array(order.iter().map(|beat| beat.session.0))
        .array(order.iter().map(|beat| beat.generation))
        .array(accepted.iter().map(|(lease, _, _)| lease.task.0))
        .array(accepted.iter().map(|(lease, _, _)| lease.attempt))
        .array(accepted.iter().map(|(lease, _, _)| lease.token.0))
        .array(accepted.iter().map(|(_, session, _)| *session))
        .array(accepted.iter().map(|(_, _, started)| *started));
    let beats: Vec<(Uuid, i64)> = batch.iter().map(|beat| (beat.session.0, beat.generation)).collect();
    pool.write(move |conn| {
        enum Line {
            Renewed(Uuid, i64),
            Cancelling(Uuid, LeaseRef),
        }
        let lines = conn.readable_rows(statement, |row| {
            let (id, attempt, number) = (row.get()?, row.get_nullable()?, row.get()?);
            Ok(match attempt {
                None => Line::Renewed(id, number),
                Some(attempt) => Line::Cancelling(row.get()?, lease_of(id, attempt, number)),
            })
        })?;
        let mut renewed = HashSet::new();
        let mut cancelling: HashMap<Uuid, Vec<LeaseRef>> = HashMap::new();
        for line in lines {
            match line {
                Line::Renewed(session, generation) => drop(renewed.insert((session, generation))),
                Line::Cancelling(session, lease) => cancelling.entry(session).or_default().push(lease),
            }
        }
        let answer = |beat: &(Uuid, i64)| match renewed.contains(beat) {
            true => HeartbeatResult { renewed: true, cancelling: cancelling.get(&beat.0).cloned().unwrap_or_default() },
            false => HeartbeatResult { renewed: false, cancelling: Vec::new() },
        };
        Ok(beats.iter().map(answer).collect())
    })
}

fn lease_of(task: Uuid, attempt: i32, token: i64) -> LeaseRef {
    LeaseRef { task: TaskId(task), attempt, token: Token(token) }
}

// ── What they hold ──────────────────────────────────────────────────────────────────────────────────────────────────

/// Driven by the sessions that are over, which are few, and not by the tasks that are held.
pub(super) fn orphans(pool: &Pool, limit: i64) -> Result<Vec<HeldRow>> {
    let statement = sql(concat!(
        "SELECT ",
        held_columns!(),
        " FROM sessions s JOIN tasks t ON t.session_id = s.id AND t.session_id IS NOT NULL
         WHERE s.over_at_us IS NOT NULL AND s.state = 2 AND t.state IN (3, 4, 5) LIMIT $1"
    ));
    let statement = statement.bind(limit);
    pool.read(move |conn| Ok(conn.task_rows(statement, held)?.read))
}

fn held_by_statement(id: SessionId) -> Statement {
    sql(concat!("SELECT ", dispatch_columns!(), " FROM tasks t WHERE t.session_id = $1 AND t.session_id IS NOT NULL"))
        .bind(id.0)
}

pub(super) fn held_by(pool: &Pool, reader: &Reader, id: SessionId) -> Result<Vec<Dispatch>> {
    let reader = reader.clone();
    pool.read(move |conn| {
        let held = conn.task_rows(held_by_statement(id), dispatch)?.read;
        Ok(runnable(conn, &reader, held))
    })
}

pub(super) fn list(people: &Pool, limit: i64) -> Result<Vec<SessionRow>> {
    let statement = sql(concat!(
        "SELECT ",
        session_columns!(),
        ", held.number FROM (SELECT l.id FROM sessions l WHERE l.state = 1 ORDER BY l.id LIMIT $1) AS live
         JOIN sessions s ON s.id = live.id
         CROSS JOIN LATERAL (SELECT count(*)::integer AS number FROM tasks t
            WHERE t.session_id = s.id AND t.session_id IS NOT NULL) AS held
         ORDER BY s.id"
    ));
    let statement = statement.bind(limit);
    people.read(move |conn| {
        conn.readable_rows(statement, |row| {
            let mut session = session(row)?;
            session.held = row.get()?;
            Ok(session)
        })
    })
}
