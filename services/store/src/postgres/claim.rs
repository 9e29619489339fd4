//! Claiming tasks for sessions.

use std::collections::{BTreeSet, HashMap, HashSet};

use millrace_core::{READER_RANGE, foreign::Defect, id::TaskId, lease::Token};
use uuid::Uuid;

use super::{
    conn::{Conn, TaskRows},
    foreign::{runnable, set_claimed_aside},
    pool::Pool,
    rows::{dispatch, dispatch_columns, now_us, uuid},
    sql::{Statement, sql},
};
use crate::{Claim, Claimed, Dispatch, Reader, Result, StoreError, batch::bisect};

pub(super) fn claim(pool: &Pool, reader: &Reader, batch: &[Claim]) -> Result<Vec<Claimed>> {
    // A claim brings nothing that a database could refuse; one that it refuses all the same is not won.
    let refuse = |claim: &Claim, error: StoreError| {
        tracing::warn!(task = %claim.task, %error, "the database refuses a claim");
        Ok(Claimed::Stale)
    };
    bisect(batch, |part| claim_part(pool, reader, part), refuse)
}

fn claim_part(pool: &Pool, reader: &Reader, part: &[Claim]) -> Result<Vec<Claimed>> {
    if part.is_empty() {
        return Ok(Vec::new());
    }
    let statement = bound(part);
    let claims = part.to_vec();
    let (judge, judging, by) = (reader.spec, reader.clone(), reader.clone());
    let (answers, unread) = pool.write(move |conn| {
        let TaskRows { read, unread } = conn.task_rows(statement, dispatch)?;
        let mut unread: Vec<(TaskId, Defect)> =
            unread.into_iter().filter_map(|(task, defect)| Some((task?, defect))).collect();
        let mut won: HashMap<(TaskId, Token), Dispatch> = HashMap::with_capacity(read.len());
        for dispatch in read {
            let reading = judge(&dispatch.spec);
            reading.ignored.iter().for_each(|defect| conn.foreign().ignored(&defect.column));
            match reading.defect {
                None => drop(won.insert((dispatch.lease.task, dispatch.lease.token), dispatch)),
                Some(defect) => {
                    conn.foreign().unreadable(Some(dispatch.lease.task), &defect);
                    unread.push((dispatch.lease.task, defect));
                }
            }
        }
        let bad: HashSet<TaskId> = unread.iter().map(|(task, _)| *task).collect();
        let tokens: HashMap<TaskId, Token> = claims.iter().map(|claim| (claim.task, claim.token)).collect();
        let is_unread = |claim: &Claim| bad.contains(&claim.task);
        let lost: Vec<&Claim> =
            claims.iter().filter(|claim| !won.contains_key(&(claim.task, claim.token)) && !is_unread(claim)).collect();
        let reasons = match lost.is_empty() {
            true => Reasons::default(),
            // A statement of its own, so that it sees what the first one has waited for.
            false => look_up(conn, &lost)?,
        };
        let before = runnable(conn, &judging, reasons.won_before.clone());
        won.extend(before.into_iter().map(by_lease));
        let answer = |claim: &Claim| match won.remove(&(claim.task, claim.token)) {
            Some(dispatch) => Claimed::Won(Box::new(dispatch)),
            None if is_unread(claim) => Claimed::Stale,
            None => reasons.answer(claim),
        };
        let answers = claims.iter().map(answer).collect();
        let aside = unread.into_iter().filter_map(|(task, defect)| Some((task, *tokens.get(&task)?, defect)));
        Ok((answers, aside.collect::<Vec<_>>()))
    })?;
    if !unread.is_empty() {
        // The others are claimed, so a failure here costs nobody else; a row that stays behind is examined by and by.
        let aside = pool.transaction(move |conn| set_claimed_aside(conn, &by, &unread));
        if let Err(error) = aside {
            tracing::warn!(%error, "rows that were claimed and cannot be read are not set aside yet");
        }
    }
    Ok(answers)
}

fn by_lease(dispatch: Dispatch) -> ((TaskId, Token), Dispatch) {
    ((dispatch.lease.task, dispatch.lease.token), dispatch)
}

/// Locks gates and sessions, each by its key, and then the tasks (R8); a lock that had to wait reads the row again, so
/// what is compared is what is committed, and stays until this commits (R2, R5). What is joined to the items stands in `(… IN …) IS
/// TRUE`, which hashes it; the tasks are found by their key. `state` is asked for and not `ready_at_us`, so that no partial index
/// over the whole queue looks like a way to find them. A number of attempts that nobody can have counted is left as it is: raised, it
/// might end the statement, and as it is, it is no attempt's, so that the row is set aside with it.
const CLAIM: &str = concat!(
    "WITH gate AS MATERIALIZED (
        SELECT g.queue, g.epoch FROM queue_gates g WHERE g.queue = ANY($1::text[]) AND NOT g.paused ORDER BY g.queue FOR SHARE
    ), holder AS MATERIALIZED (
        SELECT s.id, s.generation FROM sessions s WHERE s.id = ANY($2::uuid[]) AND s.state = 1 ORDER BY s.id FOR SHARE
    ), clock AS MATERIALIZED (
        SELECT ", now_us!(), " AS now_us
    )
    UPDATE tasks t SET state = 3, attempt = t.attempt + (t.attempt BETWEEN 0 AND 999999)::int, token = item.token, session_id = item.session, ready_at_us = NULL,
        dispatched_at_us = (SELECT now_us FROM clock), started_at_us = NULL
    FROM unnest($3::uuid[], $4::text[], $5::bigint[], $6::uuid[], $7::bigint[], $8::bigint[])
        AS item(task, queue, epoch, session, generation, token)
    WHERE ((item.queue, item.epoch) IN (SELECT queue, epoch FROM gate)) IS TRUE
        AND ((item.session, item.generation) IN (SELECT id, generation FROM holder)) IS TRUE
        AND t.id = item.task AND t.queue = item.queue AND t.state = 2 AND t.min_reader <= $9
        AND (t.expires_at_us IS NULL OR t.expires_at_us > (SELECT now_us FROM clock))
    RETURNING ", dispatch_columns!()
);

fn bound(part: &[Claim]) -> Statement {
    let mut order: Vec<&Claim> = part.iter().collect();
    order.sort_by_key(|claim| claim.task);
    let claims = || order.iter().copied();
    sql(CLAIM)
        .array(queues_of(&order))
        .array(sessions_of(&order))
        .array(claims().map(|claim| claim.task.0))
        .array(claims().map(|claim| claim.queue.as_str()))
        .array(claims().map(|claim| claim.epoch))
        .array(claims().map(|claim| claim.session.0))
        .array(claims().map(|claim| claim.generation))
        .array(claims().map(|claim| claim.token.0))
        .bind(READER_RANGE.1)
}

fn queues_of<'a>(claims: &[&'a Claim]) -> BTreeSet<&'a String> {
    claims.iter().map(|claim| &claim.queue).collect()
}

fn sessions_of(claims: &[&Claim]) -> BTreeSet<Uuid> {
    claims.iter().map(|claim| claim.session.0).collect()
}

// ── Why a claim was not won ─────────────────────────────────────────────────────────────────────────────────────────

/// What there is of claims that were not won, as it is after the try.
#[derive(Default)]
struct Reasons {
    /// Those that an earlier try of the same claim has won.
    won_before: Vec<Dispatch>,
    /// Tasks that wait in the queue of their claim and could be had: the gate or the session was in the way.
    waiting: HashSet<TaskId>,
    /// The queues whose gates are open, with their epochs.
    gates: HashSet<(String, i64)>,
    /// The sessions that are live, with their generations.
    sessions: HashSet<(Uuid, i64)>,
}

impl Reasons {
    fn answer(&self, claim: &Claim) -> Claimed {
        let gate_open = self.gates.contains(&(claim.queue.clone(), claim.epoch));
        let session_live = self.sessions.contains(&(claim.session.0, claim.generation));
        match (gate_open, session_live) {
            (false, _) => Claimed::GateClosed,
            (_, false) => Claimed::SessionGone,
            // A pause that has been lifted between the two looks.
            _ if self.waiting.contains(&claim.task) => Claimed::GateClosed,
            _ => Claimed::Stale,
        }
    }
}

fn look_up(conn: &mut Conn<'_>, claims: &[&Claim]) -> Result<Reasons> {
    let won_before = sql(concat!(
        "SELECT ",
        dispatch_columns!(),
        " FROM unnest($1::uuid[], $2::bigint[], $3::uuid[]) AS item(task, token, session)
         JOIN tasks t ON t.id = item.task AND t.token = item.token AND (t.session_id = item.session) IS TRUE"
    ))
    .array(claims.iter().map(|claim| claim.task.0))
    .array(claims.iter().map(|claim| claim.token.0))
    .array(claims.iter().map(|claim| claim.session.0));
    let waiting = sql(concat!(
        "SELECT t.id FROM unnest($1::uuid[], $2::text[]) AS item(task, queue)
         JOIN tasks t ON t.id = item.task AND t.queue = item.queue
         WHERE t.state = 2 AND t.min_reader <= $3 AND (t.expires_at_us IS NULL OR t.expires_at_us > ",
        now_us!(),
        ")"
    ))
    .array(claims.iter().map(|claim| claim.task.0))
    .array(claims.iter().map(|claim| claim.queue.as_str()))
    .bind(READER_RANGE.1);
    let gates = sql("SELECT g.queue, g.epoch FROM queue_gates g WHERE g.queue = ANY($1::text[]) AND NOT g.paused");
    let sessions = sql("SELECT s.id, s.generation FROM sessions s WHERE s.id = ANY($1::uuid[]) AND s.state = 1");
    Ok(Reasons {
        won_before: conn.task_rows(won_before, dispatch)?.read,
        waiting: conn.rows(waiting, uuid)?.into_iter().map(TaskId).collect(),
        gates: conn.rows(gates.array(queues_of(claims)), |row| Ok((row.get()?, row.get()?)))?.into_iter().collect(),
        sessions: conn
            .rows(sessions.array(sessions_of(claims)), |row| Ok((row.get()?, row.get()?)))?
            .into_iter()
            .collect(),
    })
}
