//! Putting tasks back after an attempt, and reading what is held.

use std::collections::HashMap;

use millrace_core::{held::LeaseRef, time::micros};

use super::{
    complete::{with_leases, with_outcomes},
    conn::Conn,
    pool::Pool,
    rows::{held, held_columns, lease_ref, now_us},
    sql::{Statement, sql},
};
use crate::{HeldRow, Requeue, Requeued, Result, StoreError, batch::bisect};

pub(super) fn requeue(pool: &Pool, batch: &[Requeue]) -> Result<Vec<Requeued>> {
    // As with completions, what is sent has been made storable.
    let refuse = |requeue: &Requeue, error: StoreError| {
        tracing::error!(task = %requeue.lease.task, %error, "the database refuses a requeue");
        Ok(Requeued::Stale)
    };
    bisect(batch, |part| requeue_part(pool, part), refuse)
}

fn requeue_part(pool: &Pool, part: &[Requeue]) -> Result<Vec<Requeued>> {
    if part.is_empty() {
        return Ok(Vec::new());
    }
    let statement = bound(part);
    let leases: Vec<LeaseRef> = part.iter().map(|requeue| requeue.lease).collect();
    pool.write(move |conn| {
        let done = conn.rows(statement, |row| Ok((lease_ref(row)?, row.get_nullable()?)))?;
        let waiting = |(lease, ready_at_us)| (lease, Requeued::Waiting { ready_at_us });
        let mut answers: HashMap<LeaseRef, Requeued> = done.into_iter().map(waiting).collect();
        let missing: Vec<LeaseRef> = leases.iter().filter(|lease| !answers.contains_key(lease)).copied().collect();
        if !missing.is_empty() {
            answers.extend(why_not(conn, &missing)?);
        }
        Ok(leases.iter().map(|lease| answers.get(lease).cloned().unwrap_or(Requeued::Stale)).collect())
    })
}

/// The row is locked as it was first, because the attempt that is kept needs what the update takes away.
const REQUEUE: &str = concat!(
    "WITH item AS MATERIALIZED (
        SELECT * FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::bigint[], $5::integer[], $6::integer[], $7::integer[],
            $8::smallint[], $9::integer[], $10::integer[], $11::text[], $12::bytea[], $13::bigint[], $14::bigint[], $15::bigint[])
        AS item(id, attempt, token, wait_us, failures, losses, unsupported,
            outcome, exit_code, signal, message, output_tail, output_bytes, started_at_us, ended_at_us)
    ), clock AS MATERIALIZED (
        SELECT ", now_us!(), " AS now_us
    ), was AS MATERIALIZED (
        SELECT item.*, t.session_id, t.dispatched_at_us, coalesce(item.started_at_us, t.started_at_us) AS began_at_us, clock.now_us
        FROM clock, item JOIN tasks t ON t.id = item.id AND t.attempt = item.attempt AND t.token = item.token
        WHERE t.state IN (3, 4)
        FOR UPDATE OF t
    ), back AS (
        UPDATE tasks t SET state = CASE WHEN was.wait_us > 0 THEN 1 ELSE 2 END, token = NULL, session_id = NULL,
            ready_at_us = CASE WHEN was.wait_us > 0 THEN NULL ELSE was.now_us END,
            wake_at_us = CASE WHEN was.wait_us > 0 THEN was.now_us + was.wait_us END,
            started_at_us = was.began_at_us, failures = was.failures, losses = was.losses, unsupported = was.unsupported
        FROM was WHERE t.id = was.id
        RETURNING was.id, was.attempt, was.token, t.ready_at_us
    ), kept AS (
        INSERT INTO attempts (task_id, attempt, token, session_id, orchestrator, dispatched_at_us, recorded_at_us, outcome,
            exit_code, signal, message, output_tail, output_bytes, started_at_us, ended_at_us)
        SELECT was.id, was.attempt, was.token, was.session_id, coalesce(s.name, ''), was.dispatched_at_us, was.now_us,
            was.outcome, was.exit_code, was.signal, coalesce(was.message, ''), coalesce(was.output_tail, ''),
            coalesce(was.output_bytes, 0), was.began_at_us, was.ended_at_us
        FROM was LEFT JOIN sessions s ON s.id = was.session_id
        ON CONFLICT (task_id, attempt) DO NOTHING
    )
    SELECT id, attempt, token, ready_at_us FROM back"
);

fn bound(part: &[Requeue]) -> Statement {
    let mut order: Vec<&Requeue> = part.iter().collect();
    order.sort_by_key(|requeue| requeue.lease);
    // A lease that stands twice in the batch would keep its attempt twice.
    order.dedup_by_key(|requeue| requeue.lease);
    let items = || order.iter().copied();
    let statement = with_leases(sql(REQUEUE), items().map(|item| &item.lease))
        .array(items().map(|item| micros(item.wait).min(i64::MAX / 2)))
        .array(items().map(|item| item.failures))
        .array(items().map(|item| item.losses))
        .array(items().map(|item| item.unsupported));
    with_outcomes(statement, &items().map(|item| &item.outcome).collect::<Vec<_>>())
}

/// Of leases that were not put back: those whose tasks are being cancelled, and those that an earlier call put back.
fn why_not(conn: &mut Conn<'_>, leases: &[LeaseRef]) -> Result<Vec<(LeaseRef, Requeued)>> {
    let before = sql("SELECT a.task_id, a.attempt, a.token, CASE WHEN t.attempt = a.attempt THEN t.ready_at_us END
        FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) AS item(id, attempt, token)
        JOIN attempts a ON a.task_id = item.id AND a.attempt = item.attempt AND a.token = item.token
        LEFT JOIN tasks t ON t.id = item.id");
    let before = conn.rows(with_leases(before, leases.iter()), |row| {
        Ok((lease_ref(row)?, Requeued::Waiting { ready_at_us: row.get_nullable()? }))
    })?;
    let cancelling = sql("SELECT t.id, t.attempt, t.token
        FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) AS item(id, attempt, token)
        JOIN tasks t ON t.id = item.id AND t.attempt = item.attempt AND t.token = item.token
        WHERE t.state = 5");
    let cancelling = conn.rows(with_leases(cancelling, leases.iter()), lease_ref)?;
    Ok(before.into_iter().chain(cancelling.into_iter().map(|lease| (lease, Requeued::Cancelling))).collect())
}

/// The rows of these leases that are still held with them.
pub(super) fn held_rows(pool: &Pool, leases: &[LeaseRef]) -> Result<Vec<HeldRow>> {
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    let statement = sql(concat!(
        "SELECT ",
        held_columns!(),
        " FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) AS item(id, attempt, token)
         JOIN tasks t ON t.id = item.id AND t.attempt = item.attempt AND t.token = item.token
         WHERE t.state IN (3, 4, 5)"
    ));
    let statement = with_leases(statement, leases.iter());
    pool.read(move |conn| Ok(conn.task_rows(statement, held)?.read))
}
