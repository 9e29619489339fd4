//! Pools and their statuses.

use diesel::prelude::*;
use uuid::Uuid;

use super::super::{
    cluster::{audit, plain, remember, repeated},
    failure::Outcome,
    reading::{all_rows, good_row, one_row},
    statement::sql,
    values::{BadColumn, Columns},
};
use crate::{
    COUNT_BOUND, NewPool, PoolChange, PoolDeletion, PoolRow, PoolStatusRow, PoolUpdate, Pools, books::POOLS_BOUND,
    types::Audit,
};

fn row(row: &mut Columns) -> Result<PoolRow, BadColumn> {
    let name = row.text("name")?;
    rest(row, name)
}

fn rest(row: &mut Columns, name: String) -> Result<PoolRow, BadColumn> {
    Ok(PoolRow {
        name,
        spec: row.blob("spec")?,
        override_: row.optional_blob("override")?,
        deleting: row.boolean("deleting")?,
        version: row.integer("version")?,
        created_at_us: row.integer("created_at_us")?,
        updated_at_us: row.integer("updated_at_us")?,
    })
}

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn one(connection: &mut SqliteConnection, name: &str) -> Outcome<Option<PoolRow>> {
    let query =
        sql("SELECT name, spec, override, deleting, version, created_at_us, updated_at_us FROM pools WHERE name = ?");
    one_row(connection, query.text(name), row)
}

pub(super) fn all(connection: &mut SqliteConnection, now: i64) -> Outcome<Pools> {
    let query = sql("SELECT name, spec, override, deleting, version, created_at_us, updated_at_us FROM pools \
                     ORDER BY name LIMIT ?");
    let rows = all_rows(connection, query.integer(POOLS_BOUND), |row| {
        let name = row.text("name")?;
        Ok(rest(row, name.clone()).map_err(|bad| (name, bad.defect().to_string())))
    })?;
    let mut pools = Pools { now_us: now, ..Pools::default() };
    for row in rows {
        match row {
            Ok(row) => pools.rows.push(row),
            Err(unreadable) => pools.unreadable.push(unreadable),
        }
    }
    Ok(pools)
}

pub(super) fn statuses(connection: &mut SqliteConnection, names: &[String]) -> Outcome<Vec<PoolStatusRow>> {
    let query = sql("SELECT pool, status, as_of_us FROM pool_statuses ORDER BY pool LIMIT ?").integer(POOLS_BOUND);
    let mut rows = all_rows(connection, query, |row| {
        Ok(PoolStatusRow { pool: row.text("pool")?, status: row.blob("status")?, as_of_us: row.integer("as_of_us")? })
    })?;
    rows.retain(|row| names.is_empty() || names.contains(&row.pool));
    Ok(rows)
}

// ── Making and changing ─────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn create(
    connection: &mut SqliteConnection,
    now: i64,
    new: &NewPool,
    request: Option<Uuid>,
) -> Outcome<Option<PoolRow>> {
    plain(&[&new.name])?;
    if repeated(connection, request)? {
        return one(connection, &new.name);
    }
    let made = sql("INSERT INTO pools (name, spec, deleting, version, created_at_us, updated_at_us) \
                    VALUES (?, ?, 0, 1, ?, ?) ON CONFLICT DO NOTHING")
    .text(new.name.as_str())
    .blob(new.spec.as_slice())
    .integer(now)
    .integer(now)
    .execute(connection)?;
    if made == 0 {
        return Ok(None);
    }
    remember(connection, now, request, None)?;
    one(connection, &new.name)
}

pub(super) fn update(
    connection: &mut SqliteConnection,
    now: i64,
    (name, version): (&str, i64),
    change: &PoolChange,
    entry: &Audit,
    request: Option<Uuid>,
) -> Outcome<PoolUpdate> {
    if !repeated(connection, request)? {
        if !write_change(connection, now, (name, version), change)? {
            let there = exists(connection, name)?;
            return Ok(if there { PoolUpdate::Moved } else { PoolUpdate::Missing });
        }
        audit(connection, now, entry)?;
        remember(connection, now, request, None)?;
    }
    Ok(one(connection, name)?.map_or(PoolUpdate::Missing, PoolUpdate::Changed))
}

/// Writes the change; false when there is no pool of this name at this version.
fn write_change(
    connection: &mut SqliteConnection,
    now: i64,
    (name, version): (&str, i64),
    change: &PoolChange,
) -> Outcome<bool> {
    let statement = match change {
        PoolChange::Spec(spec) => sql("UPDATE pools SET spec = ?, version = version + 1, updated_at_us = ? \
                                       WHERE name = ? AND version = ?")
        .blob(spec.as_slice()),
        PoolChange::Override(value) => sql("UPDATE pools SET override = ?, version = version + 1, updated_at_us = ? \
                                            WHERE name = ? AND version = ?")
        .blob(value.as_deref()),
    };
    Ok(statement.integer(now).text(name).integer(version).execute(connection)? > 0)
}

fn exists(connection: &mut SqliteConnection, name: &str) -> Outcome<bool> {
    let query = sql("SELECT EXISTS (SELECT 1 FROM pools WHERE name = ?)").text(name);
    Ok(good_row(connection, query, |row| row.boolean("there"))? == Some(true))
}

// ── Deleting ────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn delete(
    connection: &mut SqliteConnection,
    now: i64,
    (name, drain): (&str, bool),
    entry: &Audit,
    request: Option<Uuid>,
) -> Outcome<PoolDeletion> {
    if repeated(connection, request)? {
        return still_draining(connection, name);
    }
    if !exists(connection, name)? {
        return Ok(PoolDeletion::Missing);
    }
    let nodes = nodes_of(connection, name)?;
    if nodes > 0 && !drain {
        return Ok(PoolDeletion::NotEmpty(nodes));
    }
    remember(connection, now, request, None)?;
    if nodes == 0 {
        audit(connection, now, entry)?;
        remove(connection, name)?;
        return Ok(PoolDeletion::Gone);
    }
    let marked =
        sql("UPDATE pools SET deleting = 1, version = version + 1, updated_at_us = ? WHERE name = ? AND deleting = 0")
            .integer(now)
            .text(name)
            .execute(connection)?;
    if marked > 0 {
        audit(connection, now, entry)?;
    }
    still_draining(connection, name)
}

/// What has become of a pool that was deleted, or marked, before. One of its name that is not being deleted was made since.
fn still_draining(connection: &mut SqliteConnection, name: &str) -> Outcome<PoolDeletion> {
    let row = one(connection, name)?.filter(|row| row.deleting);
    Ok(row.map_or(PoolDeletion::Gone, PoolDeletion::Draining))
}

/// How many nodes of a pool are not gone, up to the bound of counts.
fn nodes_of(connection: &mut SqliteConnection, pool: &str) -> Outcome<i64> {
    let query = sql("SELECT count(*) FROM (SELECT 1 FROM nodes WHERE pool = ? AND state <> 8 LIMIT ?)");
    Ok(one_row(connection, query.text(pool).integer(COUNT_BOUND), |row| row.integer("count"))?.unwrap_or_default())
}

/// Deletes those of these pools that are being deleted and have no node that is not gone.
pub(super) fn remove_emptied(connection: &mut SqliteConnection, names: &[String]) -> Outcome<()> {
    for name in names {
        let marked = sql("SELECT EXISTS (SELECT 1 FROM pools WHERE name = ? AND deleting = 1)").text(name.as_str());
        let marked = good_row(connection, marked, |row| row.boolean("there"))? == Some(true);
        if marked && nodes_of(connection, name)? == 0 {
            remove(connection, name)?;
        }
    }
    Ok(())
}

fn remove(connection: &mut SqliteConnection, name: &str) -> Outcome<()> {
    sql("DELETE FROM pool_statuses WHERE pool = ?").text(name).execute(connection)?;
    sql("DELETE FROM pools WHERE name = ?").text(name).execute(connection)?;
    Ok(())
}
