//! Queues: making, reading and changing them.

use uuid::Uuid;

use super::{
    actions::keep_request,
    cluster::write_audit,
    conn::Conn,
    pool::Pool,
    routes::raise_version,
    rows::{now_us, queue, queue_columns, text},
    sql::sql,
    unindexed::{self, waiting_as_it_is},
};
use crate::{Audit, COUNT_BOUND, QueueChange, QueueCounts, QueueRow, Result};

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn by_name(conn: &mut Conn<'_>, name: &str) -> Result<Option<QueueRow>> {
    let statement = sql(concat!(
        "SELECT ",
        queue_columns!(),
        " FROM queues q JOIN queue_gates g ON g.queue = q.name WHERE q.name = $1"
    ));
    conn.first(statement.bind(name), queue)
}

pub(super) fn one(people: &Pool, name: &str) -> Result<Option<QueueRow>> {
    let name = name.to_owned();
    people.read(move |conn| by_name(conn, &name))
}

pub(super) fn all(people: &Pool) -> Result<Vec<QueueRow>> {
    let statement = sql(concat!(
        "SELECT ",
        queue_columns!(),
        " FROM queues q JOIN queue_gates g ON g.queue = q.name ORDER BY q.name"
    ));
    people.read(move |conn| conn.readable_rows(statement, queue))
}

/// What is scheduled and held, counted over all queues at once, up to the bound `$1`.
macro_rules! elsewhere {
    () => {
        "scheduled AS MATERIALIZED (
            SELECT few.queue, count(*) AS number
            FROM (SELECT t.queue FROM tasks t WHERE t.wake_at_us IS NOT NULL LIMIT $1) AS few GROUP BY few.queue
        ), held AS MATERIALIZED (
            SELECT few.queue, count(*) AS number
            FROM (SELECT t.queue FROM tasks t WHERE t.session_id IS NOT NULL LIMIT $1) AS few GROUP BY few.queue
        )"
    };
}

const COUNTS: &str = concat!(
    "WITH ",
    elsewhere!(),
    "
    SELECT q.name, queued.number, coalesce(scheduled.number, 0), coalesce(held.number, 0), (
        WITH RECURSIVE lane AS (
            (SELECT t.tenant, t.rank, t.ready_at_us FROM tasks t WHERE t.queue = q.name AND t.ready_at_us IS NOT NULL
             ORDER BY t.tenant, t.rank, t.ready_at_us LIMIT 1)
            UNION ALL
            SELECT next.* FROM lane CROSS JOIN LATERAL (
                SELECT t.tenant, t.rank, t.ready_at_us FROM tasks t
                WHERE t.queue = q.name AND t.ready_at_us IS NOT NULL AND (t.tenant, t.rank) > (lane.tenant, lane.rank)
                ORDER BY t.tenant, t.rank, t.ready_at_us LIMIT 1) AS next
        )
        SELECT min(first.ready_at_us) FROM (SELECT ready_at_us FROM lane LIMIT $1) AS first
    ), ",
    now_us!(),
    "
    FROM queues q
    CROSS JOIN LATERAL (
        SELECT count(*) AS number FROM (
            SELECT 1 FROM tasks t WHERE t.queue = q.name AND t.ready_at_us IS NOT NULL LIMIT $1) AS few
    ) AS queued
    LEFT JOIN scheduled ON scheduled.queue = q.name
    LEFT JOIN held ON held.queue = q.name
    WHERE $2 OR q.name = ANY($3::text[])
    ORDER BY q.name"
);

/// The same without the queue's index: everything that waits is counted once.
const COUNTS_UNINDEXED: &str = concat!(
    "WITH ",
    elsewhere!(),
    ", ",
    waiting_as_it_is!(),
    "
    SELECT q.name, least(coalesce(waiting.number, 0), $1), coalesce(scheduled.number, 0), coalesce(held.number, 0),
        waiting.oldest, ",
    now_us!(),
    "
    FROM queues q
    LEFT JOIN waiting ON waiting.name = q.name
    LEFT JOIN scheduled ON scheduled.queue = q.name
    LEFT JOIN held ON held.queue = q.name
    WHERE $2 OR q.name = ANY($3::text[])
    ORDER BY q.name"
);

/// What waits is counted by the queue's index. What is scheduled and held has no index by queue, which the hot path would pay for.
pub(super) fn counts(people: &Pool, names: &[String]) -> Result<Vec<QueueCounts>> {
    let statement = sql(COUNTS).instead(unindexed::LANE, COUNTS_UNINDEXED).instead(unindexed::TIME, COUNTS_UNINDEXED);
    let statement = statement.bind(COUNT_BOUND).bind(names.is_empty()).array(names);
    people.read(move |conn| {
        conn.readable_rows(statement, |row| {
            Ok(QueueCounts {
                name: row.get()?,
                queued: row.get()?,
                scheduled: row.get()?,
                held: row.get()?,
                oldest_ready_at_us: row.get_nullable()?,
                now_us: row.get()?,
            })
        })
    })
}

// ── Making and changing ─────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn create(pool: &Pool, new: &QueueRow, request: Option<Uuid>) -> Result<Option<QueueRow>> {
    let new = new.clone();
    pool.transaction(move |conn| {
        if !keep_request(conn, request, None)? {
            return by_name(conn, &new.name);
        }
        let insert =
            sql(concat!(
            "INSERT INTO queues (name, description, default_timeout_ms, default_expire_after_ms, paused, pause_reason,
                pause_until_us, pause_since_us, draining, created_at_us, updated_at_us)
             SELECT $1, $2, $3, $4, $5, $6, $7, CASE WHEN $5 THEN now_us END, $8, now_us, now_us
             FROM (SELECT ", now_us!(), " AS now_us) AS clock
             ON CONFLICT (name) DO NOTHING"
        ));
        let pause = new.pause.as_ref();
        let insert = insert
            .bind(new.name.as_str())
            .bind(new.description.as_str())
            .bind(new.default_timeout_ms)
            .bind(new.default_expire_after_ms)
            .bind(pause.is_some())
            .bind(pause.map_or("", |pause| pause.reason.as_str()))
            .bind(pause.and_then(|pause| pause.until_us))
            .bind(new.draining);
        if conn.execute(insert)? == 0 {
            conn.undo();
            return Ok(None);
        }
        // The gate of a queue of this name that was deleted is still there: with the epoch after its last, so that a former owner
        // claims nothing.
        let gate = sql("INSERT INTO queue_gates (queue, epoch, paused) VALUES ($1, 0, $2)
            ON CONFLICT (queue) DO UPDATE SET epoch = queue_gates.epoch + 1, paused = excluded.paused");
        conn.execute(gate.bind(new.name.as_str()).bind(pause.is_some()))?;
        raise_version(conn)?;
        by_name(conn, &new.name)
    })
}

pub(super) fn update(
    pool: &Pool,
    name: &str,
    change: &QueueChange,
    audit: &Audit,
    request: Option<Uuid>,
) -> Result<Option<QueueRow>> {
    let (name, change, audit) = (name.to_owned(), change.clone(), audit.clone());
    pool.transaction(move |conn| {
        if !keep_request(conn, request, None)? {
            return by_name(conn, &name);
        }
        if !write_change(conn, &name, &change)? {
            conn.undo();
            return Ok(None);
        }
        if let Some(pause) = &change.pause {
            // Waits for claims, which hold the gate FOR SHARE: none commits after this has.
            set_gates(conn, std::slice::from_ref(&name), pause.is_some())?;
        }
        write_audit(conn, &audit)?;
        if change.default_timeout_ms.is_some() || change.default_expire_after_ms.is_some() {
            raise_version(conn)?;
        }
        by_name(conn, &name)
    })
}

/// Writes what the change names; false when there is no such queue. Deletion locks the row in a way that this waits for.
fn write_change(conn: &mut Conn<'_>, name: &str, change: &QueueChange) -> Result<bool> {
    let statement = sql(concat!(
        "UPDATE queues q SET description = coalesce($1, q.description),
            default_timeout_ms = CASE WHEN $2 THEN $3 ELSE q.default_timeout_ms END,
            default_expire_after_ms = CASE WHEN $4 THEN $5 ELSE q.default_expire_after_ms END,
            paused = CASE WHEN $6 THEN $7 ELSE q.paused END,
            pause_reason = CASE WHEN $6 THEN $8 ELSE q.pause_reason END,
            pause_until_us = CASE WHEN $6 THEN $9 ELSE q.pause_until_us END,
            pause_since_us = CASE WHEN $6 AND $7 THEN now_us WHEN $6 THEN NULL ELSE q.pause_since_us END,
            updated_at_us = now_us
         FROM (SELECT ",
        now_us!(),
        " AS now_us) AS clock WHERE q.name = $10"
    ));
    let pause = change.pause.clone().flatten();
    let statement = statement
        .bind(change.description.clone())
        .bind(change.default_timeout_ms.is_some())
        .bind(change.default_timeout_ms.flatten())
        .bind(change.default_expire_after_ms.is_some())
        .bind(change.default_expire_after_ms.flatten())
        .bind(change.pause.is_some())
        .bind(pause.is_some())
        .bind(pause.as_ref().map_or("", |(reason, _)| reason.as_str()))
        .bind(pause.as_ref().and_then(|(_, until)| *until))
        .bind(name);
    Ok(conn.execute(statement)? > 0)
}

fn set_gates(conn: &mut Conn<'_>, queues: &[String], paused: bool) -> Result<()> {
    let statement =
        sql("UPDATE queue_gates g SET paused = $1 FROM unnest($2::text[]) AS item(queue) WHERE g.queue = item.queue");
    conn.execute(statement.bind(paused).array(queues)).map(drop)
}

pub(super) fn lift_pauses(pool: &Pool) -> Result<Vec<String>> {
    pool.transaction(|conn| {
        let due = sql(concat!(
            "WITH due AS MATERIALIZED (
                SELECT q.name FROM queues q WHERE q.paused AND q.pause_until_us <= ",
            now_us!(),
            " ORDER BY q.name FOR NO KEY UPDATE
            )
            UPDATE queues q SET paused = FALSE, pause_reason = '', pause_until_us = NULL, pause_since_us = NULL
            FROM due WHERE q.name = due.name RETURNING q.name"
        ));
        let mut queues = conn.rows(due, text)?;
        if queues.is_empty() {
            conn.undo();
            return Ok(queues);
        }
        queues.sort();
        set_gates(conn, &queues, false)?;
        Ok(queues)
    })
}
