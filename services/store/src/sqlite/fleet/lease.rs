//! Who leads.

use diesel::prelude::*;
use millrace_core::id::MemberId;

use super::super::{cluster::plain, failure::Outcome, reading::good_row, statement::sql};
use crate::Lead;

pub(super) fn lead(
    connection: &mut SqliteConnection,
    now: i64,
    name: &str,
    owner: MemberId,
    endpoint: &str,
    ttl_ms: i64,
) -> Outcome<Lead> {
    plain(&[name, endpoint])?;
    let epoch = match current(connection, now, name)? {
        Some(other) if other.owner != owner => return Ok(other),
        Some(own) => own.epoch,
        None => last_epoch(connection, name)? + 1,
    };
    let expires_at_us = now.saturating_add(ttl_ms.saturating_mul(1000));
    sql("INSERT OR REPLACE INTO scaler_leases (name, owner, endpoint, epoch, expires_at_us) VALUES (?, ?, ?, ?, ?)")
        .text(name)
        .uuid(&owner.0)
        .text(endpoint)
        .integer(epoch)
        .integer(expires_at_us)
        .execute(connection)?;
    Ok(Lead { owner, endpoint: endpoint.to_owned(), epoch, expires_at_us, now_us: now })
}

/// The lease, when somebody has it and it has not ended. One that cannot be read is nobody's.
pub(super) fn current(connection: &mut SqliteConnection, now: i64, name: &str) -> Outcome<Option<Lead>> {
    let query =
        sql("SELECT owner, endpoint, epoch, expires_at_us FROM scaler_leases WHERE name = ? AND owner IS NOT NULL");
    let lease = good_row(connection, query.text(name), |row| {
        Ok(Lead {
            owner: row.member_id("owner")?,
            endpoint: row.text("endpoint")?,
            epoch: row.integer("epoch")?,
            expires_at_us: row.integer("expires_at_us")?,
            now_us: now,
        })
    })?;
    Ok(lease.filter(|lease| lease.expires_at_us > now))
}

fn last_epoch(connection: &mut SqliteConnection, name: &str) -> Outcome<i64> {
    let query = sql("SELECT epoch FROM scaler_leases WHERE name = ?").text(name);
    Ok(good_row(connection, query, |row| row.integer("epoch"))?.unwrap_or(0))
}

pub(super) fn resign(connection: &mut SqliteConnection, name: &str, owner: MemberId) -> Outcome<()> {
    sql("UPDATE scaler_leases SET owner = NULL, endpoint = '', expires_at_us = 0 WHERE name = ? AND owner = ?")
        .text(name)
        .uuid(&owner.0)
        .execute(connection)?;
    Ok(())
}
