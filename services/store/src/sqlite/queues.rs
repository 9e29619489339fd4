//! Queues: what they are, their pauses, and how they go.

use diesel::{prelude::*, query_builder::QueryFragment, sqlite::Sqlite};
use uuid::Uuid;

use super::{
    cluster::{audit, plain, raise_route_version, remember, repeated},
    failure::Outcome,
    reading::{all_rows, good_row, one_row},
    rows,
    schema::{queue_gates, queue_leases, queues, routes},
    statement::sql,
};
use crate::types::{Audit, DeleteMode, DeleteResult, QueueChange, QueueRow};

/// How many tasks move in the call that deletes their queue.
const MOVED_AT_ONCE: i64 = 10_000;

pub(super) fn queue(connection: &mut SqliteConnection, name: &str) -> Outcome<Option<QueueRow>> {
    let query = queues::table
        .inner_join(queue_gates::table.on(queue_gates::queue.eq(queues::name)))
        .filter(queues::name.eq(name))
        .select(rows::QUEUE);
    one_row(connection, query, rows::queue)
}

pub(super) fn queues(connection: &mut SqliteConnection) -> Outcome<Vec<QueueRow>> {
    let query = queues::table
        .inner_join(queue_gates::table.on(queue_gates::queue.eq(queues::name)))
        .order(queues::name)
        .select(rows::QUEUE);
    Ok(all_rows(connection, query, rows::queue)?)
}

/// Whether the queue is there and takes tasks.
pub(super) fn takes_tasks(connection: &mut SqliteConnection, name: &str) -> Outcome<bool> {
    let query = queues::table.filter(queues::name.eq(name)).select(queues::draining);
    Ok(good_row(connection, query, |row| row.boolean("draining"))? == Some(false))
}

pub(super) fn create_queue(
    connection: &mut SqliteConnection,
    now: i64,
    new: &QueueRow,
    request: Option<Uuid>,
) -> Outcome<Option<QueueRow>> {
    let pause = new.pause.as_ref();
    plain(&[&new.name, &new.description, pause.map_or("", |pause| &pause.reason)])?;
    if let Some(existing) = queue(connection, &new.name)? {
        return Ok(repeated(connection, request)?.then_some(existing));
    }
    diesel::insert_into(queues::table)
        .values((
            queues::name.eq(&new.name),
            queues::description.eq(&new.description),
            queues::default_timeout_ms.eq(new.default_timeout_ms),
            queues::default_expire_after_ms.eq(new.default_expire_after_ms),
            queues::paused.eq(pause.is_some()),
            queues::pause_reason.eq(pause.map_or("", |pause| &pause.reason)),
            queues::pause_until_us.eq(pause.and_then(|pause| pause.until_us)),
            queues::pause_since_us.eq(pause.map(|_| now)),
            queues::draining.eq(new.draining),
            queues::created_at_us.eq(now),
            queues::updated_at_us.eq(now),
        ))
        .execute(connection)?;
    // The gate of an earlier queue of this name may still be there: its epochs go on, so that no match of that time fits.
    diesel::insert_into(queue_gates::table)
        .values((queue_gates::queue.eq(&new.name), queue_gates::epoch.eq(0), queue_gates::paused.eq(pause.is_some())))
        .on_conflict(queue_gates::queue)
        .do_update()
        .set((queue_gates::epoch.eq(queue_gates::epoch + 1), queue_gates::paused.eq(pause.is_some())))
        .execute(connection)?;
    raise_route_version(connection)?;
    remember(connection, now, request, None)?;
    queue(connection, &new.name)
}

pub(super) fn update_queue(
    connection: &mut SqliteConnection,
    now: i64,
    name: &str,
    change: &QueueChange,
    entry: &Audit,
    request: Option<Uuid>,
) -> Outcome<Option<QueueRow>> {
    let Some(before) = queue(connection, name)? else { return Ok(None) };
    if repeated(connection, request)? {
        return Ok(Some(before));
    }
    if let Some(description) = &change.description {
        plain(&[description])?;
        set(connection, name, queues::description.eq(description))?;
    }
    if let Some(timeout_ms) = change.default_timeout_ms {
        set(connection, name, queues::default_timeout_ms.eq(timeout_ms))?;
    }
    if let Some(expire_after_ms) = change.default_expire_after_ms {
        set(connection, name, queues::default_expire_after_ms.eq(expire_after_ms))?;
    }
    if let Some(pause) = &change.pause {
        set_pause(connection, now, name, pause.as_ref())?;
    }
    set(connection, name, queues::updated_at_us.eq(now))?;
    if change.default_timeout_ms.is_some() || change.default_expire_after_ms.is_some() {
        raise_route_version(connection)?;
    }
    audit(connection, now, entry)?;
    remember(connection, now, request, None)?;
    queue(connection, name)
}

/// Sets columns of one queue.
fn set<C>(connection: &mut SqliteConnection, name: &str, columns: C) -> Outcome<()>
where
    C: AsChangeset<Target = queues::table>,
    C::Changeset: QueryFragment<Sqlite>,
{
    diesel::update(queues::table.filter(queues::name.eq(name))).set(columns).execute(connection)?;
    Ok(())
}

/// Pauses a queue or lifts its pause, in its gate as well: no claim commits after this transaction has.
fn set_pause(
    connection: &mut SqliteConnection,
    now: i64,
    name: &str,
    pause: Option<&(String, Option<i64>)>,
) -> Outcome<()> {
    let reason = pause.map_or("", |(reason, _)| reason);
    plain(&[reason])?;
    set(
        connection,
        name,
        (
            queues::paused.eq(pause.is_some()),
            queues::pause_reason.eq(reason),
            queues::pause_until_us.eq(pause.and_then(|(_, until_us)| *until_us)),
            queues::pause_since_us.eq(pause.map(|_| now)),
        ),
    )?;
    diesel::update(queue_gates::table.filter(queue_gates::queue.eq(name)))
        .set(queue_gates::paused.eq(pause.is_some()))
        .execute(connection)?;
    Ok(())
}

pub(super) fn lift_pauses(connection: &mut SqliteConnection, now: i64) -> Outcome<Vec<String>> {
    let query = queues::table
        .filter(queues::paused.eq(true).and(queues::pause_until_us.le(now)))
        .order(queues::name)
        .select(queues::name);
    let due = all_rows(connection, query, |row| row.text("name"))?;
    for name in &due {
        set_pause(connection, now, name, None)?;
    }
    Ok(due)
}

pub(super) fn delete_queue(
    connection: &mut SqliteConnection,
    now: i64,
    name: &str,
    mode: &DeleteMode,
    request: Option<Uuid>,
) -> Outcome<DeleteResult> {
    let repeated = repeated(connection, request)?;
    let Some(row) = queue(connection, name)? else {
        return Ok(if repeated { DeleteResult::Gone } else { DeleteResult::NotFound });
    };
    if repeated {
        // A queue of this name that takes tasks was made after this call.
        return Ok(if row.draining { DeleteResult::Draining(Box::new(row)) } else { DeleteResult::Gone });
    }
    if let Some(route) = route_to(connection, name)? {
        return Ok(DeleteResult::Routed(route));
    }
    let move_to = match mode {
        DeleteMode::Refuse if !is_empty(connection, name)? => return Ok(DeleteResult::NotEmpty),
        DeleteMode::Refuse | DeleteMode::Drain => None,
        DeleteMode::Move(target) if target == name || !takes_tasks(connection, target)? => {
            return Ok(DeleteResult::NoTarget);
        }
        DeleteMode::Move(target) => Some(target.as_str()),
    };
    set(connection, name, (queues::draining.eq(true), queues::move_to.eq(move_to), queues::updated_at_us.eq(now)))?;
    if let Some(target) = move_to {
        move_waiting(connection, now, name, target, MOVED_AT_ONCE)?;
    }
    raise_route_version(connection)?;
    remember(connection, now, request, None)?;
    if is_empty(connection, name)? {
        drop_queue(connection, name)?;
        return Ok(DeleteResult::Gone);
    }
    Ok(queue(connection, name)?.map_or(DeleteResult::NotFound, |row| DeleteResult::Draining(Box::new(row))))
}

fn route_to(connection: &mut SqliteConnection, queue: &str) -> Outcome<Option<String>> {
    let query = routes::table.filter(routes::queue.eq(queue)).order(routes::name).limit(1).select(routes::name);
    one_row(connection, query, |row| row.text("name"))
}

/// Whether nothing waits or runs in the queue.
fn is_empty(connection: &mut SqliteConnection, queue: &str) -> Outcome<bool> {
    let query = sql("SELECT EXISTS (SELECT 1 FROM tasks WHERE queue = ? AND ready_at_us IS NOT NULL) \
                         OR EXISTS (SELECT 1 FROM tasks WHERE queue = ? AND wake_at_us IS NOT NULL) \
                         OR EXISTS (SELECT 1 FROM tasks WHERE queue = ? AND session_id IS NOT NULL)")
    .text(queue)
    .text(queue)
    .text(queue);
    Ok(one_row(connection, query, |row| row.boolean("occupied"))? == Some(false))
}

fn drop_queue(connection: &mut SqliteConnection, name: &str) -> Outcome<()> {
    diesel::delete(queues::table.filter(queues::name.eq(name))).execute(connection)?;
    diesel::delete(queue_leases::table.filter(queue_leases::queue.eq(name))).execute(connection)?;
    Ok(())
}

/// Moves what waits in a queue, at most `limit` tasks. What joins the other queue joins it now.
fn move_waiting(connection: &mut SqliteConnection, now: i64, from: &str, to: &str, limit: i64) -> Outcome<i64> {
    let queued = sql("UPDATE tasks SET queue = ?, ready_at_us = ? \
                      WHERE id IN (SELECT id FROM tasks WHERE queue = ? AND ready_at_us IS NOT NULL LIMIT ?)")
    .text(to)
    .integer(now)
    .text(from)
    .integer(limit)
    .execute(connection)?;
    let queued = i64::try_from(queued).unwrap_or(limit);
    let scheduled = sql("UPDATE tasks SET queue = ? \
                         WHERE id IN (SELECT id FROM tasks WHERE queue = ? AND wake_at_us IS NOT NULL LIMIT ?)")
    .text(to)
    .text(from)
    .integer(limit - queued)
    .execute(connection)?;
    Ok(queued + i64::try_from(scheduled).unwrap_or(limit))
}

pub(super) fn drain_queues(connection: &mut SqliteConnection, now: i64, limit: i64) -> Outcome<Vec<String>> {
    let query =
        queues::table.filter(queues::draining.eq(true)).order(queues::name).select((queues::name, queues::move_to));
    let draining = all_rows(connection, query, |row| Ok((row.text("name")?, row.optional_text("move_to")?)))?;
    let mut left = limit.max(0);
    let mut gone = Vec::new();
    for (name, move_to) in draining {
        if let Some(target) = move_to
            && left > 0
            && takes_tasks(connection, &target)?
        {
            left -= move_waiting(connection, now, &name, &target, left)?;
        }
        if is_empty(connection, &name)? {
            drop_queue(connection, &name)?;
            gone.push(name);
        }
    }
    if !gone.is_empty() {
        raise_route_version(connection)?;
    }
    Ok(gone)
}
