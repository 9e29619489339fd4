//! Pools and their statuses.

use uuid::Uuid;

use super::super::{
    actions::keep_request,
    cluster::write_audit,
    columns::{Columns, Read},
    conn::Conn,
    pool::Pool,
    rows::{now_us, number, text},
    sql::sql,
};
use crate::{
    Audit, COUNT_BOUND, NewPool, PoolChange, PoolDeletion, PoolRow, PoolStatusRow, PoolUpdate, Pools, Result,
    books::POOLS_BOUND,
};

/// The columns of a [`PoolRow`].
macro_rules! pool_columns {
    () => {
        "name, spec, override, deleting, version, created_at_us, updated_at_us"
    };
}

fn row(row: &mut Columns<'_>) -> Read<PoolRow> {
    let name = row.get()?;
    rest(row, name)
}

fn rest(row: &mut Columns<'_>, name: String) -> Read<PoolRow> {
    Ok(PoolRow {
        name,
        spec: row.get()?,
        override_: row.get_nullable()?,
        deleting: row.get()?,
        version: row.get()?,
        created_at_us: row.get()?,
        updated_at_us: row.get()?,
    })
}

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

fn by_name(conn: &mut Conn<'_>, name: &str) -> Result<Option<PoolRow>> {
    conn.first(sql(concat!("SELECT ", pool_columns!(), " FROM pools WHERE name = $1")).bind(name), row)
}

pub(super) fn one(people: &Pool, name: &str) -> Result<Option<PoolRow>> {
    let name = name.to_owned();
    people.read(move |conn| by_name(conn, &name))
}

pub(super) fn all(people: &Pool) -> Result<Pools> {
    let statement = sql(concat!("SELECT ", pool_columns!(), " FROM pools ORDER BY name LIMIT $1")).bind(POOLS_BOUND);
    people.read(move |conn| {
        let mut pools = Pools { now_us: conn.one(sql(concat!("SELECT ", now_us!())), number)?, ..Pools::default() };
        let rows = conn.rows(statement, |row| {
            let name: String = row.get()?;
            Ok(rest(row, name.clone()).map_err(|defect| (name, defect.to_string())))
        })?;
        for row in rows {
            match row {
                Ok(row) => pools.rows.push(row),
                Err(unreadable) => pools.unreadable.push(unreadable),
            }
        }
        Ok(pools)
    })
}

pub(super) fn statuses(people: &Pool, names: &[String]) -> Result<Vec<PoolStatusRow>> {
    let statement = sql("SELECT pool, status, as_of_us FROM pool_statuses WHERE $1 OR pool = ANY($2::text[])
        ORDER BY pool LIMIT $3");
    let statement = statement.bind(names.is_empty()).array(names).bind(POOLS_BOUND);
    people.read(move |conn| {
        conn.readable_rows(statement, |row| {
            Ok(PoolStatusRow { pool: row.get()?, status: row.get()?, as_of_us: row.get()? })
        })
    })
}

// ── Making and changing ─────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn create(pool: &Pool, new: &NewPool, request: Option<Uuid>) -> Result<Option<PoolRow>> {
    let new = new.clone();
    pool.transaction(move |conn| {
        if !keep_request(conn, request, None)? {
            return by_name(conn, &new.name);
        }
        let insert = sql(concat!(
            "INSERT INTO pools (name, spec, deleting, version, created_at_us, updated_at_us)
             SELECT $1, $2, FALSE, 1, now_us, now_us FROM (SELECT ",
            now_us!(),
            " AS now_us) AS clock
             ON CONFLICT (name) DO NOTHING"
        ));
        if conn.execute(insert.bind(new.name.as_str()).bind(new.spec))? == 0 {
            conn.undo();
            return Ok(None);
        }
        by_name(conn, &new.name)
    })
}

pub(super) fn update(
    pool: &Pool,
    (name, version): (&str, i64),
    change: &PoolChange,
    audit: &Audit,
    request: Option<Uuid>,
) -> Result<PoolUpdate> {
    let (name, change, audit) = (name.to_owned(), change.clone(), audit.clone());
    pool.transaction(move |conn| {
        let changed = keep_request(conn, request, None)?;
        if changed && !write_change(conn, &name, version, &change)? {
            conn.undo();
            let there = sql("SELECT name FROM pools WHERE name = $1").bind(name.as_str());
            return Ok(conn.first(there, text)?.map_or(PoolUpdate::Missing, |_| PoolUpdate::Moved));
        }
        if changed {
            write_audit(conn, &audit)?;
        }
        Ok(by_name(conn, &name)?.map_or(PoolUpdate::Missing, PoolUpdate::Changed))
    })
}

/// Writes the change; false when there is no pool of this name at this version.
fn write_change(conn: &mut Conn<'_>, name: &str, version: i64, change: &PoolChange) -> Result<bool> {
    // An override is an array of one, whose element may be NULL.
    let statement = match change {
        PoolChange::Spec(spec) => sql(concat!(
            "UPDATE pools SET spec = $1, version = version + 1, updated_at_us = ",
            now_us!(),
            " WHERE name = $2 AND version = $3"
        ))
        .bind(spec.clone()),
        PoolChange::Override(override_) => sql(concat!(
            "UPDATE pools SET override = ($1::bytea[])[1], version = version + 1, updated_at_us = ",
            now_us!(),
            " WHERE name = $2 AND version = $3"
        ))
        .array([override_.as_deref()]),
    };
    Ok(conn.execute(statement.bind(name).bind(version))? > 0)
}

// ── Deleting ────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn delete(
    pool: &Pool,
    name: &str,
    drain: bool,
    audit: &Audit,
    request: Option<Uuid>,
) -> Result<PoolDeletion> {
    let (name, audit) = (name.to_owned(), audit.clone());
    pool.transaction(move |conn| {
        let deletion = match keep_request(conn, request, None)? {
            false => still_draining(conn, &name)?,
            true => delete_once(conn, &name, drain, &audit)?,
        };
        if !matches!(deletion, PoolDeletion::Gone | PoolDeletion::Draining(_)) {
            conn.undo();
        }
        Ok(deletion)
    })
}

fn delete_once(conn: &mut Conn<'_>, name: &str, drain: bool, audit: &Audit) -> Result<PoolDeletion> {
    let lock = sql("SELECT name FROM pools WHERE name = $1 FOR UPDATE").bind(name);
    if conn.first(lock, text)?.is_none() {
        return Ok(PoolDeletion::Missing);
    }
    let count = sql("SELECT count(*) FROM (SELECT 1 FROM nodes WHERE pool = $1 AND state <> 8 LIMIT $2) AS few");
    let nodes = conn.one(count.bind(name).bind(COUNT_BOUND), number)?;
    if nodes > 0 && !drain {
        return Ok(PoolDeletion::NotEmpty(nodes));
    }
    if nodes == 0 {
        write_audit(conn, audit)?;
        remove(conn, &[name.to_owned()])?;
        return Ok(PoolDeletion::Gone);
    }
    let mark = sql(concat!(
        "UPDATE pools SET deleting = TRUE, version = version + 1, updated_at_us = ",
        now_us!(),
        " WHERE name = $1 AND NOT deleting"
    ));
    if conn.execute(mark.bind(name))? > 0 {
        write_audit(conn, audit)?;
    }
    still_draining(conn, name)
}

/// What has become of a pool that was deleted, or marked, before. One of its name that is not being deleted was made since.
fn still_draining(conn: &mut Conn<'_>, name: &str) -> Result<PoolDeletion> {
    let row = by_name(conn, name)?.filter(|row| row.deleting);
    Ok(row.map_or(PoolDeletion::Gone, PoolDeletion::Draining))
}

/// Deletes those of these pools that are being deleted and have no node that is not gone.
pub(super) fn remove_emptied(conn: &mut Conn<'_>, names: &[String]) -> Result<()> {
    let empty = sql("WITH marked AS MATERIALIZED (
            SELECT name FROM pools WHERE name = ANY($1::text[]) AND deleting ORDER BY name FOR UPDATE
        )
        SELECT name FROM marked WHERE NOT EXISTS (SELECT 1 FROM nodes n WHERE n.pool = marked.name AND n.state <> 8)");
    let empty = conn.rows(empty.array(names), text)?;
    remove(conn, &empty)
}

/// Deletes pools whose rows are locked.
fn remove(conn: &mut Conn<'_>, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    conn.execute(sql("DELETE FROM pool_statuses WHERE pool = ANY($1::text[])").array(names))?;
    conn.execute(sql("DELETE FROM pools WHERE name = ANY($1::text[])").array(names)).map(drop)
}
