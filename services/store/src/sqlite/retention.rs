//! What is dropped in the end.

use std::{collections::BTreeSet, time::Duration};

use diesel::prelude::*;
use millrace_core::{id::TaskId, time::micros};
use uuid::Uuid;

use super::{
    failure::Outcome,
    reading::{all_rows, good_rows, one_row},
    schema::{attempts, cluster, requests},
    statement::sql,
};

/// How many rows of a slot go in one transaction, so that nobody waits long for the connection that writes.
const ROWS_AT_ONCE: i64 = 2_000;

/// Slots in the time for which finished tasks are kept; there are two more, one that fills and one that is emptied.
const SLICES: u32 = 6;

/// Sets the width of a slot and finds a slot of which every row is older than `keep`.
pub(super) fn due_slot(connection: &mut SqliteConnection, now: i64, keep: Duration) -> Outcome<Option<i64>> {
    let slice_us = micros(keep / SLICES).max(1);
    diesel::update(cluster::table.filter(cluster::slice_us.ne(slice_us)))
        .set(cluster::slice_us.eq(slice_us))
        .execute(connection)?;
    let slots = sql("SELECT DISTINCT slot FROM finished_tasks ORDER BY slot");
    for slot in all_rows(connection, slots, |row| row.integer("slot"))? {
        let newest = sql("SELECT max(finished_at_us) FROM finished_tasks WHERE slot = ?").integer(slot);
        let newest = one_row(connection, newest, |row| Ok(row.optional_integer("finished_at_us").ok().flatten()))?;
        if newest.flatten().is_some_and(|newest| newest < now.saturating_sub(micros(keep))) {
            return Ok(Some(slot));
        }
    }
    Ok(None)
}

/// Deletes a piece of a slot; returns whether there may be more. Rows that joined the slot since it was found due are
/// not old and stay.
pub(super) fn empty_slot(connection: &mut SqliteConnection, now: i64, keep: Duration, slot: i64) -> Outcome<bool> {
    let dropped = sql("DELETE FROM finished_tasks WHERE rowid IN (\
                           SELECT rowid FROM finished_tasks WHERE slot = ? AND finished_at_us < ? LIMIT ?)")
    .integer(slot)
    .integer(now.saturating_sub(micros(keep)))
    .integer(ROWS_AT_ONCE)
    .execute(connection)?;
    Ok(i64::try_from(dropped).unwrap_or(0) >= ROWS_AT_ONCE)
}

pub(super) fn trim_requests(
    connection: &mut SqliteConnection,
    now: i64,
    keep: Duration,
    after: Option<Uuid>,
    limit: i64,
) -> Outcome<Option<Uuid>> {
    let before = now.saturating_sub(micros(keep));
    let after = after.map_or(Vec::new(), |key| key.as_bytes().to_vec());
    // The empty blob stands before every key.
    let query = requests::table
        .filter(requests::key.gt(after))
        .order(requests::key)
        .select((requests::key, requests::created_at_us));
    let read = good_rows(connection, query, limit, |row| Ok((row.uuid("key")?, row.integer("created_at_us")?)))?;
    for &(key, created_at_us) in &read.rows {
        if created_at_us < before {
            // That of a task which is set aside stays: the task was stored, and has not had its end yet.
            sql("DELETE FROM requests WHERE key = ? \
                     AND NOT EXISTS (SELECT 1 FROM quarantine WHERE quarantine.task_id = requests.task_id)")
            .uuid(&key)
            .execute(connection)?;
        }
    }
    Ok(read.rows.last().map(|(key, _)| *key).filter(|_| !read.exhausted))
}

pub(super) fn trim_attempts(
    connection: &mut SqliteConnection,
    after: Option<TaskId>,
    limit: i64,
) -> Outcome<Option<TaskId>> {
    let after = after.map_or(Vec::new(), |id| id.0.as_bytes().to_vec());
    let query = attempts::table
        .filter(attempts::task_id.gt(after))
        .order((attempts::task_id, attempts::attempt))
        .select(attempts::task_id);
    let read = good_rows(connection, query, limit, |row| row.task_id("task_id"))?;
    // Every attempt of a task goes at once: the limit may have cut between two of the same one.
    for id in read.rows.iter().copied().collect::<BTreeSet<_>>() {
        sql("DELETE FROM attempts WHERE task_id = ? \
                 AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = task_id) \
                 AND NOT EXISTS (SELECT 1 FROM finished_tasks WHERE finished_tasks.id = task_id) \
                 AND NOT EXISTS (SELECT 1 FROM quarantine WHERE quarantine.task_id = attempts.task_id)")
        .uuid(&id.0)
        .execute(connection)?;
    }
    Ok(read.rows.last().copied().filter(|_| !read.exhausted))
}
