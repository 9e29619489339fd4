//! Dropping what is old.

use std::time::Duration;

use millrace_core::{id::TaskId, time::micros};
use uuid::Uuid;

use super::{
    columns::{Columns, Read},
    conn::Conn,
    pool::Pool,
    rows::now_us,
    sql::sql,
};
use crate::Result;

/// The number of partitions of `finished_tasks`: six that are kept, the one being filled, and the one being emptied.
const SLOTS: i64 = 8;

/// How many slots' widths finished tasks are kept for.
const KEPT_SLOTS: i64 = 6;

/// How long emptying a slot may take. It reads the slot once to be sure, and holds up nothing but retries of its tasks meanwhile.
const EMPTYING: Duration = Duration::from_secs(120);

/// How long emptying a slot may wait for those who read it. Whoever wants to read it next waits as long.
const LOCK_WAIT_MS: u32 = 300;

pub(super) fn trim_finished(pool: &Pool, keep: Duration) -> Result<i64> {
    let keep_us = micros(keep).min(i64::MAX / 2);
    pool.transaction(move |conn| {
        conn.simple(&format!(
            "SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {LOCK_WAIT_MS}; SET LOCAL enable_seqscan = on",
            EMPTYING.as_millis()
        ))?;
        conn.set_patience(EMPTYING);
        let slice_us = (keep_us / KEPT_SLOTS).max(1);
        conn.execute(sql("UPDATE cluster c SET slice_us = $1 WHERE c.slice_us <> $1").bind(slice_us))?;
        let now_us: i64 = conn.one(sql(concat!("SELECT ", now_us!())), |row| row.get())?;
        let age = Age { slice_us, window: now_us.div_euclid(slice_us), cutoff_us: now_us - keep_us };
        // From the one that is filled next, which should be the oldest, to the one being filled.
        for ahead in 1..=SLOTS {
            if empty_if_due(conn, &age, ahead)? {
                return Ok(1);
            }
        }
        Ok(0)
    })
}

struct Age {
    slice_us: i64,
    /// The number of the slice of time that is now; its slot is this modulo the number of slots.
    window: i64,
    /// What ended before is dropped.
    cutoff_us: i64,
}

/// Empties a slot when every row of it is due. Whether it is due is told by its rows and never by arithmetic alone, because the
/// width of slots changes with the time for which tasks are kept, and clocks are set.
fn empty_if_due(conn: &mut Conn<'_>, age: &Age, ahead: i64) -> Result<bool> {
    let slot = (age.window + ahead).rem_euclid(SLOTS) as i16;
    let any = sql("SELECT f.finished_at_us FROM finished_tasks f WHERE f.slot = $1 LIMIT 1").bind(slot);
    let Some(finished_at_us) = conn.first(any, |row| row.get::<i64>())? else {
        return Ok(false);
    };
    // The slice of time for which the slot was filled last, if its rows are of this width.
    let filled = age.window + ahead - SLOTS;
    let will_be_due = finished_at_us.div_euclid(age.slice_us) == filled && (filled + 1) * age.slice_us > age.cutoff_us;
    if finished_at_us >= age.cutoff_us || will_be_due {
        return Ok(false);
    }
    // The lock keeps writers out while the slot is read; the slot being filled is first read without.
    if ahead == SLOTS && has_young(conn, slot, age)? {
        return Ok(false);
    }
    conn.simple(&format!("LOCK TABLE finished_tasks_{slot} IN SHARE MODE"))?;
    if has_young(conn, slot, age)? {
        return Ok(false);
    }
    conn.simple(&format!("TRUNCATE finished_tasks_{slot}"))?;
    Ok(true)
}

fn has_young(conn: &mut Conn<'_>, slot: i16, age: &Age) -> Result<bool> {
    let young = sql("SELECT EXISTS (SELECT 1 FROM finished_tasks f WHERE f.slot = $1 AND f.finished_at_us >= $2)");
    conn.one(young.bind(slot).bind(age.cutoff_us), |row| row.get())
}

pub(super) fn trim_requests(pool: &Pool, keep: Duration, after: Option<Uuid>, limit: i64) -> Result<Option<Uuid>> {
    let statement = sql(concat!(
        "WITH page AS MATERIALIZED (
            SELECT r.key, r.task_id, r.created_at_us FROM requests r WHERE r.key > $1 ORDER BY r.key LIMIT $2
        ), dropped AS (
            DELETE FROM requests r USING page WHERE r.key = page.key AND page.created_at_us < ",
        now_us!(),
        " - $3
                AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.task_id = page.task_id)
        )
        SELECT (SELECT count(*) FROM page), (SELECT key FROM page ORDER BY key DESC LIMIT 1)"
    ));
    let statement = statement.bind(after.unwrap_or_default()).bind(limit.max(1)).bind(micros(keep).min(i64::MAX / 2));
    pool.write(move |conn| conn.one(statement, |row| next_page(row, limit.max(1))))
}

pub(super) fn trim_attempts(pool: &Pool, after: Option<TaskId>, limit: i64) -> Result<Option<TaskId>> {
    let statement = sql("WITH page AS MATERIALIZED (
            SELECT a.task_id FROM attempts a WHERE a.task_id > $1 ORDER BY a.task_id, a.attempt LIMIT $2
        ), gone AS MATERIALIZED (
            SELECT DISTINCT page.task_id FROM page
            WHERE NOT EXISTS (SELECT 1 FROM tasks t WHERE t.id = page.task_id)
                AND NOT EXISTS (SELECT 1 FROM finished_tasks f WHERE f.id = page.task_id)
                AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.task_id = page.task_id)
            ORDER BY page.task_id
        ), dropped AS (
            DELETE FROM attempts a USING gone WHERE a.task_id = gone.task_id
        )
        SELECT (SELECT count(*) FROM page), (SELECT task_id FROM page ORDER BY task_id DESC LIMIT 1)");
    let statement = statement.bind(after.map_or(Uuid::nil(), |id| id.0)).bind(limit.max(1));
    pool.write(move |conn| Ok(conn.one(statement, |row| next_page(row, limit.max(1)))?.map(TaskId)))
}

/// The last key of a page, when the page was full.
fn next_page(row: &mut Columns<'_>, limit: i64) -> Read<Option<Uuid>> {
    let (count, last): (i64, Option<Uuid>) = (row.get()?, row.get_nullable()?);
    Ok(last.filter(|_| count >= limit))
}
