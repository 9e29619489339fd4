//! Claiming tasks for sessions.

use std::collections::{HashMap, HashSet};

use millrace_core::{READER_RANGE, id::TaskId, lease::Token};
use uuid::Uuid;

use super::{
    conn::Conn,
    pool::Pool,
    rows::{dispatch, dispatch_columns, now_us},
    sql::{Statement, sql},
};
use crate::{Claim, Claimed, Dispatch, Result, StoreError, batch::bisect};

pub(super) fn claim(pool: &Pool, batch: &[Claim]) -> Result<Vec<Claimed>> {
    // A claim brings nothing that a database could refuse; one that it refuses all the same is not won.
    let refuse = |claim: &Claim, error: StoreError| {
        tracing::warn!(task = %claim.task, %error, "the database refuses a claim");
        Ok(Claimed::Stale)
    };
    bisect(batch, |part| claim_part(pool, part), refuse)
}

fn claim_part(pool: &Pool, part: &[Claim]) -> Result<Vec<Claimed>> {
    if part.is_empty() {
        return Ok(Vec::new());
    }
    let statement = bound(part);
    let part = part.to_vec();
    pool.write(move |conn| {
        let mut seen = claimed(conn, statement)?;
        let lost: Vec<&Claim> =
            part.iter().filter(|claim| !seen.won.contains_key(&(claim.task, claim.token))).collect();
        if !lost.is_empty() {
            // An earlier try may have won them. A statement of its own, so that it sees what the first one has waited for.
            seen.won.extend(won_before(conn, &lost)?);
        }
        Ok(part.iter().map(|claim| seen.answer(claim)).collect())
    })
}

/// What a try saw under its locks.
#[derive(Default)]
struct Seen {
    won: HashMap<(TaskId, Token), Dispatch>,
    /// The queues whose gates are open, with their epochs.
    gates: HashSet<(String, i64)>,
    /// The sessions that are live, with their generations.
    sessions: HashSet<(Uuid, i64)>,
}

impl Seen {
    fn answer(&mut self, claim: &Claim) -> Claimed {
        if let Some(dispatch) = self.won.remove(&(claim.task, claim.token)) {
            Claimed::Won(Box::new(dispatch))
        } else if !self.gates.contains(&(claim.queue.clone(), claim.epoch)) {
            Claimed::GateClosed
        } else if !self.sessions.contains(&(claim.session.0, claim.generation)) {
            Claimed::SessionGone
        } else {
            Claimed::Stale
        }
    }
}

/// Locks gates, sessions and tasks, in this order and each by its key (R8); a lock that had to wait reads the row again, so
/// what is compared is what is committed and stays until this commits (R2, R5). The parts that are joined to the items stand in IN, which
/// hashes them; the tasks are found by their key. `state` is asked for and not `ready_at_us`, so that no partial index
/// over the whole queue looks like a way to find them.
const CLAIM: &str = concat!(
    "WITH item AS MATERIALIZED (
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::uuid[], $5::bigint[], $6::bigint[])
        AS item(task, queue, epoch, session, generation, token)
    ), gate AS MATERIALIZED (
        SELECT queue, epoch FROM queue_gates WHERE queue = ANY($7::text[]) AND NOT paused ORDER BY queue FOR SHARE
    ), holder AS MATERIALIZED (
        SELECT id, generation FROM sessions WHERE id = ANY($8::uuid[]) AND state = 1 ORDER BY id FOR SHARE
    ), fit AS MATERIALIZED (
        SELECT item.*, (queue, epoch) IN (SELECT queue, epoch FROM gate) AS gate_open,
            (session, generation) IN (SELECT id, generation FROM holder) AS session_live
        FROM item
    ), clock AS MATERIALIZED (
        SELECT ", now_us!(), " AS now_us
    ), won AS (
        UPDATE tasks t SET state = 3, attempt = t.attempt + 1, token = fit.token, session_id = fit.session, ready_at_us = NULL,
            dispatched_at_us = clock.now_us, started_at_us = NULL
        FROM clock, fit
        WHERE fit.gate_open AND fit.session_live AND t.id = fit.task AND t.queue = fit.queue AND t.state = 2
            AND t.min_reader <= $9 AND (t.expires_at_us IS NULL OR t.expires_at_us > clock.now_us)
        RETURNING ", dispatch_columns!(), "
    )
    SELECT 1::smallint AS kind, won.* FROM won
    UNION ALL SELECT 2::smallint, NULL, NULL, epoch, queue, NULL, NULL, NULL, NULL, NULL FROM gate
    UNION ALL SELECT 3::smallint, id, NULL, generation, NULL, NULL, NULL, NULL, NULL, NULL FROM holder"
);

fn bound(part: &[Claim]) -> Statement {
    let mut order: Vec<&Claim> = part.iter().collect();
    order.sort_by_key(|claim| claim.task);
    let claims = || order.iter().copied();
    let mut queues: Vec<&str> = claims().map(|claim| claim.queue.as_str()).collect();
    queues.sort_unstable();
    queues.dedup();
    let mut sessions: Vec<Uuid> = claims().map(|claim| claim.session.0).collect();
    sessions.sort_unstable();
    sessions.dedup();
    sql(CLAIM)
        .array(claims().map(|claim| claim.task.0))
        .array(claims().map(|claim| claim.queue.as_str()))
        .array(claims().map(|claim| claim.epoch))
        .array(claims().map(|claim| claim.session.0))
        .array(claims().map(|claim| claim.generation))
        .array(claims().map(|claim| claim.token.0))
        .array(queues)
        .array(sessions)
        .bind(READER_RANGE.1)
}

fn claimed(conn: &mut Conn<'_>, statement: Statement) -> Result<Seen> {
    enum Line {
        Won(Dispatch),
        Gate(String, i64),
        Session(Uuid, i64),
    }
    let lines = conn.readable_rows(statement, |row| match row.get::<i16>()? {
        1 => Ok(Line::Won(dispatch(row)?)),
        kind => {
            let id = row.get_nullable::<Uuid>()?;
            let _attempt = row.get_nullable::<i32>()?;
            let number = row.get()?;
            match (kind, id) {
                (3, Some(id)) => Ok(Line::Session(id, number)),
                _ => Ok(Line::Gate(row.get()?, number)),
            }
        }
    })?;
    let mut seen = Seen::default();
    for line in lines {
        match line {
            Line::Won(dispatch) => drop(seen.won.insert((dispatch.lease.task, dispatch.lease.token), dispatch)),
            Line::Gate(queue, epoch) => drop(seen.gates.insert((queue, epoch))),
            Line::Session(id, generation) => drop(seen.sessions.insert((id, generation))),
        }
    }
    Ok(seen)
}

fn won_before(conn: &mut Conn<'_>, claims: &[&Claim]) -> Result<Vec<((TaskId, Token), Dispatch)>> {
    let statement = sql(concat!(
        "SELECT ",
        dispatch_columns!(),
        " FROM unnest($1::uuid[], $2::bigint[], $3::uuid[]) AS item(task, token, session)
         JOIN tasks t ON t.id = item.task AND t.token = item.token AND t.session_id = item.session"
    ))
    .array(claims.iter().map(|claim| claim.task.0))
    .array(claims.iter().map(|claim| claim.token.0))
    .array(claims.iter().map(|claim| claim.session.0));
    let rows = conn.readable_rows(statement, dispatch)?;
    Ok(rows.into_iter().map(|dispatch| ((dispatch.lease.task, dispatch.lease.token), dispatch)).collect())
}
