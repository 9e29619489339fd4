//! Who leads.
//!
//! Taking locks the row FOR UPDATE, which waits for the leader's writes ([`fence`]); renewing does not.

use millrace_core::id::MemberId;

use super::super::{
    columns::{Columns, Read},
    conn::Conn,
    pool::Pool,
    rows::{now_us, number},
    sql::sql,
};
use crate::{Lead, Result};

/// The columns of a [`Lead`].
macro_rules! lead_columns {
    () => {
        concat!("owner, endpoint, epoch, expires_at_us, ", now_us!())
    };
}

fn row(row: &mut Columns<'_>) -> Read<Lead> {
    Ok(Lead {
        owner: MemberId(row.get()?),
        endpoint: row.get()?,
        epoch: row.get()?,
        expires_at_us: row.get()?,
        now_us: row.get()?,
    })
}

pub(super) fn lead(pool: &Pool, name: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Lead> {
    let (name, endpoint, ttl_us) =
        (name.to_owned(), endpoint.to_owned(), ttl_ms.saturating_mul(1000).min(i64::MAX / 2));
    pool.transaction(move |conn| {
        let renew = sql(concat!(
            "UPDATE scaler_leases SET endpoint = $1, expires_at_us = ",
            now_us!(),
            " + $2
             WHERE name = $3 AND owner = $4 AND expires_at_us > ",
            now_us!(),
            " RETURNING ",
            lead_columns!()
        ));
        let renew = renew.bind(endpoint.as_str()).bind(ttl_us).bind(name.as_str()).bind(owner.0);
        if let Some(renewed) = conn.first(renew, row)? {
            return Ok(renewed);
        }
        // Most calls end here, and lock nothing.
        if let Some(other) = current(conn, &name)? {
            return Ok(other);
        }
        take(conn, &name, owner, &endpoint, ttl_us)
    })
}

/// Takes a lease that nobody has, unless somebody does meanwhile.
fn take(conn: &mut Conn<'_>, name: &str, owner: MemberId, endpoint: &str, ttl_us: i64) -> Result<Lead> {
    let enter =
        sql("INSERT INTO scaler_leases (name, owner, endpoint, epoch, expires_at_us) VALUES ($1, NULL, '', 0, 0)
        ON CONFLICT (name) DO NOTHING");
    conn.execute(enter.bind(name))?;
    conn.one(sql("SELECT epoch FROM scaler_leases WHERE name = $1 FOR UPDATE").bind(name), number)?;
    // In a statement of its own: what one sees that has waited for a lock is from before its wait.
    if let Some(other) = current(conn, name)? {
        return Ok(other);
    }
    let take = sql(concat!(
        "UPDATE scaler_leases SET owner = $1, endpoint = $2, epoch = epoch + 1, expires_at_us = ",
        now_us!(),
        " + $3
         WHERE name = $4 RETURNING ",
        lead_columns!()
    ));
    conn.one(take.bind(owner.0).bind(endpoint).bind(ttl_us).bind(name), row)
}

/// The lease, when somebody has it and it has not ended.
fn current(conn: &mut Conn<'_>, name: &str) -> Result<Option<Lead>> {
    let statement = sql(concat!(
        "SELECT ",
        lead_columns!(),
        " FROM scaler_leases
         WHERE name = $1 AND owner IS NOT NULL AND expires_at_us > ",
        now_us!()
    ));
    conn.first(statement.bind(name), row)
}

pub(super) fn leader(people: &Pool, name: &str) -> Result<Option<Lead>> {
    let name = name.to_owned();
    people.read(move |conn| current(conn, &name))
}

pub(super) fn resign(pool: &Pool, name: &str, owner: MemberId) -> Result<()> {
    let statement = sql("UPDATE scaler_leases SET owner = NULL, endpoint = '', expires_at_us = 0
        WHERE name = $1 AND owner = $2");
    let statement = statement.bind(name).bind(owner.0);
    pool.write(move |conn| conn.execute(statement).map(drop))
}

/// Whether the lease is in force at this epoch; if so, nobody takes it before the transaction has ended. The condition is looked at again
/// after a wait for somebody who takes it.
pub(super) fn fence(conn: &mut Conn<'_>, name: &str, epoch: i64) -> Result<bool> {
    let statement = sql(concat!(
        "SELECT epoch FROM scaler_leases WHERE name = $1 AND epoch = $2 AND owner IS NOT NULL AND expires_at_us > ",
        now_us!(),
        " FOR KEY SHARE"
    ));
    Ok(conn.first(statement.bind(name).bind(epoch), number)?.is_some())
}
