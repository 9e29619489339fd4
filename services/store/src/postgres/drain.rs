//! Deleting queues, and emptying those that go once they are empty.

use uuid::Uuid;

use super::{
    actions::keep_request,
    conn::Conn,
    pool::Pool,
    queues::by_name,
    routes::raise_version,
    rows::{now_us, text},
    sql::sql,
};
use crate::{DeleteMode, DeleteResult, Result};

/// How many waiting tasks move with the call that deletes their queue.
const MOVED_AT_ONCE: i64 = 10_000;

pub(super) fn delete(pool: &Pool, name: &str, mode: &DeleteMode, request: Option<Uuid>) -> Result<DeleteResult> {
    let (name, mode) = (name.to_owned(), mode.clone());
    pool.transaction(move |conn| {
        let target = match &mode {
            DeleteMode::Move(target) => Some(target.as_str()),
            _ => None,
        };
        let locked = lock(conn, &name, target)?;
        let result = match keep_request(conn, request, None)? {
            // Deleted, or set to drain, by an earlier call.
            false => still_draining(conn, &name)?,
            true if !locked.queue => DeleteResult::NotFound,
            true => delete_locked(conn, &name, &mode, locked)?,
        };
        if !matches!(result, DeleteResult::Gone | DeleteResult::Draining(_)) {
            conn.undo();
        }
        Ok(result)
    })
}

/// What of a queue and its target is there and locked.
#[derive(Debug, Clone, Copy, Default)]
struct Locked {
    queue: bool,
    /// The target is there, is another queue, and takes tasks.
    target: bool,
}

/// Locks the queue against submissions and everything else that puts tasks into it, and the target against its own deletion, in
/// the order of their names.
fn lock(conn: &mut Conn<'_>, name: &str, target: Option<&str>) -> Result<Locked> {
    let mut locked = Locked::default();
    let mut names = vec![name];
    names.extend(target.filter(|target| *target != name));
    names.sort_unstable();
    for one in names {
        if one == name {
            let statement = sql("SELECT q.name FROM queues q WHERE q.name = $1 FOR UPDATE").bind(one);
            locked.queue = conn.first(statement, text)?.is_some();
        } else {
            let statement =
                sql("SELECT q.name FROM queues q WHERE q.name = $1 AND NOT q.draining FOR KEY SHARE").bind(one);
            locked.target = conn.first(statement, text)?.is_some();
        }
    }
    Ok(locked)
}

fn delete_locked(conn: &mut Conn<'_>, name: &str, mode: &DeleteMode, locked: Locked) -> Result<DeleteResult> {
    let routed = sql("SELECT r.name FROM routes r WHERE r.queue = $1 ORDER BY r.name LIMIT 1").bind(name);
    if let Some(route) = conn.first(routed, text)? {
        return Ok(DeleteResult::Routed(route));
    }
    let target = match mode {
        DeleteMode::Move(_) if !locked.target => return Ok(DeleteResult::NoTarget),
        DeleteMode::Move(target) => Some(target.clone()),
        DeleteMode::Refuse | DeleteMode::Drain => None,
    };
    if is_busy(conn, name)? {
        if *mode == DeleteMode::Refuse {
            return Ok(DeleteResult::NotEmpty);
        }
        let drain = sql(concat!(
            "UPDATE queues q SET draining = TRUE, move_to = $1, updated_at_us = ",
            now_us!(),
            " WHERE q.name = $2"
        ));
        conn.execute(drain.bind(target.clone()).bind(name))?;
        if let Some(target) = &target {
            move_waiting(conn, name, target, MOVED_AT_ONCE)?;
        }
        if target.is_none() || is_busy(conn, name)? {
            raise_version(conn)?;
            return still_draining(conn, name);
        }
    }
    remove(conn, name)?;
    Ok(DeleteResult::Gone)
}

fn still_draining(conn: &mut Conn<'_>, name: &str) -> Result<DeleteResult> {
    Ok(match by_name(conn, name)? {
        Some(row) if row.draining => DeleteResult::Draining(Box::new(row)),
        // Gone, or made again since.
        _ => DeleteResult::Gone,
    })
}

/// The gate stays: its epoch refuses the claims of whoever owned the queue, should there be one of this name again.
fn remove(conn: &mut Conn<'_>, name: &str) -> Result<()> {
    conn.execute(sql("DELETE FROM queue_leases l WHERE l.queue = $1").bind(name))?;
    conn.execute(sql("DELETE FROM queues q WHERE q.name = $1").bind(name))?;
    raise_version(conn)
}

/// Whether anything waits or runs in the queue, in one snapshot, so that a task that goes from the one to the other is seen.
fn is_busy(conn: &mut Conn<'_>, name: &str) -> Result<bool> {
    let statement = sql("SELECT EXISTS (SELECT 1 FROM tasks t WHERE t.queue = $1 AND t.ready_at_us IS NOT NULL)
            OR EXISTS (SELECT 1 FROM tasks t WHERE t.queue = $1 AND t.session_id IS NOT NULL)
            OR EXISTS (SELECT 1 FROM tasks t WHERE t.queue = $1 AND t.wake_at_us IS NOT NULL)");
    conn.one(statement.bind(name), |row| row.get())
}

/// Moves waiting tasks, at most `limit`; they join the other queue now. Returns how many.
fn move_waiting(conn: &mut Conn<'_>, from: &str, to: &str, limit: i64) -> Result<i64> {
    let queued = sql(concat!(
        "WITH moving AS MATERIALIZED (
            SELECT t.id FROM tasks t WHERE t.queue = $1 AND t.ready_at_us IS NOT NULL
            ORDER BY t.tenant, t.rank, t.ready_at_us, t.id LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        UPDATE tasks t SET queue = $3, ready_at_us = clock.now_us
        FROM (SELECT ",
        now_us!(),
        " AS now_us) AS clock, moving WHERE t.id = moving.id"
    ));
    let moved = conn.execute(queued.bind(from).bind(limit).bind(to))? as i64;
    let scheduled = sql("WITH moving AS MATERIALIZED (
            SELECT t.id FROM tasks t WHERE t.queue = $1 AND t.wake_at_us IS NOT NULL
            ORDER BY t.wake_at_us LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        UPDATE tasks t SET queue = $3 FROM moving WHERE t.id = moving.id");
    let scheduled = conn.execute(scheduled.bind(from).bind(limit - moved).bind(to))? as i64;
    Ok(moved + scheduled)
}

/// A transaction for each queue that drains, so that no more than two queues are locked at a time. Returns those that are gone now.
pub(super) fn drain(pool: &Pool, limit: i64) -> Result<Vec<String>> {
    let draining = sql("SELECT q.name, q.move_to FROM queues q WHERE q.draining ORDER BY q.name");
    let draining =
        pool.read(move |conn| conn.rows(draining, |row| Ok((row.get::<String>()?, row.get_nullable::<String>()?))))?;
    let mut gone = Vec::new();
    let mut left = limit.max(0);
    for (name, target) in draining {
        let queue = name.clone();
        let (moved, empty) = pool.transaction(move |conn| drain_one(conn, &queue, target.as_deref(), left))?;
        left -= moved;
        if empty {
            gone.push(name);
        }
    }
    Ok(gone)
}

/// Tells how many tasks moved and whether the queue is gone.
fn drain_one(conn: &mut Conn<'_>, name: &str, target: Option<&str>, limit: i64) -> Result<(i64, bool)> {
    let locked = lock(conn, name, target)?;
    let drains = match locked.queue {
        true => by_name(conn, name)?.is_some_and(|row| row.draining),
        false => false,
    };
    if !drains {
        return Ok((0, false));
    }
    // A target that has been deleted or drains itself takes nothing: what waits is dispatched from where it is.
    let moved = match target.filter(|_| locked.target) {
        Some(target) => move_waiting(conn, name, target, limit)?,
        None => 0,
    };
    if is_busy(conn, name)? {
        return Ok((moved, false));
    }
    remove(conn, name)?;
    Ok((moved, true))
}
