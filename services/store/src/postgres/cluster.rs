//! The database as a whole: its row, its clock, its members, its schema.

use millrace_core::{
    id::MemberId,
    served::{ServedClock, TickRule},
    time::Timestamp,
};

use super::{
    conn::Conn,
    pool::Pool,
    rows::{member, now_us, number, text},
    sql::sql,
};
use crate::{Activated, Audit, Cluster, MemberRow, Result, StoreError, Tick, migrate};

pub(super) fn cluster(pool: &Pool) -> Result<Cluster> {
    let statement = sql("SELECT c.incarnation, c.write_format, c.route_version FROM cluster c");
    pool.read(move |conn| {
        conn.one(statement, |row| {
            Ok(Cluster { incarnation: row.get()?, write_format: row.get()?, route_version: row.get()? })
        })
    })
}

pub(super) fn tick(pool: &Pool, rule: TickRule) -> Result<Tick> {
    pool.transaction(move |conn| {
        let clock = conn
            .one(sql("SELECT c.served_ms, c.ticked_at_us, c.frozen_ms FROM served_clock c FOR UPDATE"), |row| {
                Ok(ServedClock { served_ms: row.get()?, ticked_at: Timestamp(row.get()?), frozen_ms: row.get()? })
            })?;
        // After the lock: the time of a statement that waited would be older than the tick that it waited for.
        let now = Timestamp(conn.one(sql(concat!("SELECT ", now_us!())), number)?);
        let clock = clock.tick(now, rule);
        let write = sql("UPDATE served_clock c SET served_ms = $1, ticked_at_us = $2, frozen_ms = $3");
        conn.execute(write.bind(clock.served_ms).bind(clock.ticked_at.0).bind(clock.frozen_ms))?;
        Ok(Tick { clock, now })
    })
}

/// Members are forgotten when their lease has been over for this long, in served milliseconds.
const FORGET_MEMBERS_MS: i64 = 3_600_000;

pub(super) fn renew_member(pool: &Pool, row: &MemberRow, ttl_ms: i64) -> Result<()> {
    let renew = sql(concat!(
        "INSERT INTO members (id, kind, endpoint, build, min_reader, max_reader, expires_served_ms, seen_at_us)
         SELECT $1, $2, $3, $4, $5, $6, c.served_ms + $7, ",
        now_us!(),
        " FROM served_clock c
         ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, endpoint = excluded.endpoint, build = excluded.build,
            min_reader = excluded.min_reader, max_reader = excluded.max_reader,
            expires_served_ms = excluded.expires_served_ms, seen_at_us = excluded.seen_at_us"
    ))
    .bind(row.id.0)
    .bind(row.kind as i16)
    .bind(row.endpoint.as_str())
    .bind(row.build.as_str())
    .bind(row.readers.0)
    .bind(row.readers.1)
    .bind(ttl_ms);
    let forget = sql("DELETE FROM members m WHERE m.id IN (
            SELECT f.id FROM members f WHERE f.expires_served_ms < (SELECT c.served_ms FROM served_clock c) - $1
            ORDER BY f.id FOR UPDATE SKIP LOCKED)")
    .bind(FORGET_MEMBERS_MS);
    pool.write(move |conn| {
        conn.execute(renew)?;
        conn.execute(forget).map(drop)
    })
}

pub(super) fn remove_member(pool: &Pool, id: MemberId) -> Result<()> {
    let statement = sql("DELETE FROM members m WHERE m.id = $1").bind(id.0);
    pool.write(move |conn| conn.execute(statement).map(drop))
}

const MEMBERS: &str =
    "SELECT m.id, m.kind, m.endpoint, m.build, m.min_reader, m.max_reader, m.seen_at_us FROM members m
    WHERE m.expires_served_ms >= (SELECT c.served_ms FROM served_clock c) ORDER BY m.kind, m.id";

pub(super) fn members(pool: &Pool) -> Result<Vec<MemberRow>> {
    pool.read(|conn| conn.readable_rows(sql(MEMBERS), member))
}

/// The row is locked first, so of two raises the second sees the first. A member that enters at the same time and reads less leaves the
/// new rows alone, as it does with every row that is too new.
pub(super) fn activate(pool: &Pool, format: i16, rollback_reads: i16, audit: &Audit) -> Result<Activated> {
    let audit = audit.clone();
    pool.transaction(move |conn| {
        let before = conn.one(sql("SELECT c.write_format FROM cluster c FOR UPDATE"), |row| row.get())?;
        let behind = conn.readable_rows(sql(MEMBERS), member)?;
        let behind: Vec<MemberRow> = behind.into_iter().filter(|member| member.readers.1 < format).collect();
        let refusal = match () {
            () if before >= format => Some(Activated::Already(before)),
            () if !behind.is_empty() => Some(Activated::Behind(behind)),
            () if rollback_reads < format => Some(Activated::RollbackBehind(rollback_reads)),
            () => None,
        };
        if let Some(refusal) = refusal {
            conn.undo();
            return Ok(refusal);
        }
        conn.execute(sql("UPDATE cluster c SET write_format = $1").bind(format))?;
        write_audit(conn, &audit)?;
        Ok(Activated::Done { before })
    })
}

pub(super) fn audit(pool: &Pool, entry: &Audit) -> Result<()> {
    let entry = entry.clone();
    pool.write(move |conn| write_audit(conn, &entry))
}

pub(super) fn write_audit(conn: &mut Conn<'_>, entry: &Audit) -> Result<()> {
    let statement =
        sql(concat!("INSERT INTO audit (at_us, action, subject, detail) VALUES (", now_us!(), ", $1, $2, $3)"));
    conn.execute(statement.bind(entry.action.as_str()).bind(entry.subject.as_str()).bind(entry.detail.as_str()))
        .map(drop)
}

// ── The schema ──────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn schema_version(pool: &Pool) -> Result<String> {
    pool.read(|conn| newest_migration(conn)?.ok_or_else(|| StoreError::Schema("the database has no schema yet".into())))
}

/// Refuses a database whose schema this build cannot work with.
pub(super) fn check_schema(conn: &mut Conn<'_>) -> Result<()> {
    let newest = newest_migration(conn)?;
    let needs = match &newest {
        // A column that the first migration which takes something away brings.
        Some(_) => conn.one(sql("SELECT coalesce(to_jsonb(c) ->> 'needs_schema', '') FROM cluster c"), text)?,
        None => String::new(),
    };
    migrate::check(newest.as_deref(), &needs)
}

fn newest_migration(conn: &mut Conn<'_>) -> Result<Option<String>> {
    let there = sql("SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL");
    match conn.one(there, |row| row.get::<bool>())? {
        true => {
            conn.first(sql("SELECT version::text FROM __diesel_schema_migrations ORDER BY version DESC LIMIT 1"), text)
        }
        false => Ok(None),
    }
}
