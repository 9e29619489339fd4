//! The rows that there is one of, the members, the idempotency keys and the audit trail.

use diesel::{prelude::*, upsert::excluded};
use millrace_core::{
    id::{MemberId, TaskId},
    served::{ServedClock, TickRule},
    time::Timestamp,
};
use uuid::Uuid;

use super::{
    failure::{Failure, Outcome},
    reading::{all_rows, one_row},
    schema::{Key, audit, cluster, members, requests, served_clock},
    statement::sql,
};
use crate::{
    Activated, StoreError,
    types::{Audit, Cluster, MemberKind, MemberRow, Tick},
};

/// A member whose lease ended this long ago is forgotten, in served milliseconds.
const MEMBER_KEPT_MS: i64 = 3_600_000;

fn missing(what: &str) -> Failure {
    StoreError::Internal(format!("the row of {what} is missing")).into()
}

pub(super) fn cluster(connection: &mut SqliteConnection) -> Outcome<Cluster> {
    let query = cluster::table.select((cluster::incarnation, cluster::write_format, cluster::route_version));
    one_row(connection, query, |row| {
        Ok(Cluster {
            incarnation: row.narrow("incarnation")?,
            write_format: row.narrow("write_format")?,
            route_version: row.integer("route_version")?,
        })
    })?
    .ok_or_else(|| missing("the cluster"))
}

/// Tells every replica to read routes and queues again.
pub(super) fn raise_route_version(connection: &mut SqliteConnection) -> Outcome<()> {
    diesel::update(cluster::table).set(cluster::route_version.eq(cluster::route_version + 1)).execute(connection)?;
    Ok(())
}

pub(super) fn served(connection: &mut SqliteConnection) -> Outcome<ServedClock> {
    let query =
        served_clock::table.select((served_clock::served_ms, served_clock::ticked_at_us, served_clock::frozen_ms));
    one_row(connection, query, |row| {
        Ok(ServedClock {
            served_ms: row.integer("served_ms")?,
            ticked_at: Timestamp(row.integer("ticked_at_us")?),
            frozen_ms: row.integer("frozen_ms")?,
        })
    })?
    .ok_or_else(|| missing("the served clock"))
}

pub(super) fn tick(connection: &mut SqliteConnection, now: i64, rule: TickRule) -> Outcome<Tick> {
    let now = Timestamp(now);
    let clock = served(connection)?.tick(now, rule);
    diesel::update(served_clock::table)
        .set((
            served_clock::served_ms.eq(clock.served_ms),
            served_clock::ticked_at_us.eq(clock.ticked_at.0),
            served_clock::frozen_ms.eq(clock.frozen_ms),
        ))
        .execute(connection)?;
    Ok(Tick { clock, now })
}

pub(super) fn renew_member(
    connection: &mut SqliteConnection,
    now: i64,
    member: &MemberRow,
    ttl_ms: i64,
) -> Outcome<()> {
    plain(&[&member.endpoint, &member.build])?;
    let served_ms = served(connection)?.served_ms;
    diesel::insert_into(members::table)
        .values((
            members::id.eq(Key(member.id.0)),
            members::kind.eq(member.kind as i16),
            members::endpoint.eq(&member.endpoint),
            members::build.eq(&member.build),
            members::reader_min.eq(member.readers.0),
            members::reader_max.eq(member.readers.1),
            members::expires_served_ms.eq(served_ms.saturating_add(ttl_ms)),
            members::seen_at_us.eq(now),
        ))
        .on_conflict(members::id)
        .do_update()
        .set((
            members::kind.eq(excluded(members::kind)),
            members::endpoint.eq(excluded(members::endpoint)),
            members::build.eq(excluded(members::build)),
            members::reader_min.eq(excluded(members::reader_min)),
            members::reader_max.eq(excluded(members::reader_max)),
            members::expires_served_ms.eq(excluded(members::expires_served_ms)),
            members::seen_at_us.eq(excluded(members::seen_at_us)),
        ))
        .execute(connection)?;
    let forgotten = members::expires_served_ms.lt(served_ms.saturating_sub(MEMBER_KEPT_MS));
    diesel::delete(members::table.filter(forgotten)).execute(connection)?;
    Ok(())
}

pub(super) fn remove_member(connection: &mut SqliteConnection, member: MemberId) -> Outcome<()> {
    diesel::delete(members::table.filter(members::id.eq(Key(member.0)))).execute(connection)?;
    Ok(())
}

/// Forgets every member.
pub(super) fn forget_members(connection: &mut SqliteConnection) -> Outcome<()> {
    diesel::delete(members::table).execute(connection)?;
    Ok(())
}

pub(super) fn members(connection: &mut SqliteConnection) -> Outcome<Vec<MemberRow>> {
    let served_ms = served(connection)?.served_ms;
    let query =
        members::table.filter(members::expires_served_ms.ge(served_ms)).order((members::kind, members::id)).select((
            members::id,
            members::kind,
            members::endpoint,
            members::build,
            members::reader_min,
            members::reader_max,
            members::seen_at_us,
        ));
    let rows = all_rows(connection, query, |row| {
        let (id, kind) = (row.member_id("id")?, row.narrow::<i16>("kind")?);
        Ok((
            kind,
            MemberRow {
                id,
                // Of a kind that this build does not know: left out below.
                kind: if kind == MemberKind::Queue as i16 { MemberKind::Queue } else { MemberKind::Distributor },
                endpoint: row.text("endpoint")?,
                build: row.text("build")?,
                readers: (row.narrow("reader_min")?, row.narrow("reader_max")?),
                seen_at_us: row.integer("seen_at_us")?,
            },
        ))
    })?;
    Ok(rows.into_iter().filter(|(number, row)| *number == row.kind as i16).map(|(_, row)| row).collect())
}

pub(super) fn schema_version(connection: &mut SqliteConnection) -> Outcome<String> {
    let query = sql("SELECT max(version) FROM __diesel_schema_migrations");
    Ok(one_row(connection, query, |row| row.optional_text("version"))?.flatten().unwrap_or_default())
}

/// The migration that a build must know to work with the database; empty until a migration takes something away.
pub(super) fn needs_schema(connection: &mut SqliteConnection) -> Outcome<String> {
    let there = sql("SELECT count(*) FROM pragma_table_info('cluster') WHERE name = 'needs_schema'");
    if one_row(connection, there, |row| row.integer("count"))?.unwrap_or_default() == 0 {
        return Ok(String::new());
    }
    Ok(one_row(connection, sql("SELECT needs_schema FROM cluster"), |row| row.text("needs_schema"))?
        .unwrap_or_default())
}

/// The transaction is the only one that writes, so of two raises the second sees the first. A member that enters afterwards and
/// reads less leaves the new rows alone, as it does with every row that is too new.
pub(super) fn activate(
    connection: &mut SqliteConnection,
    now: i64,
    format: i16,
    rollback_reads: i16,
    entry: &Audit,
) -> Outcome<Activated> {
    let before = cluster(connection)?.write_format;
    if before >= format {
        return Ok(Activated::Already(before));
    }
    let behind: Vec<MemberRow> = members(connection)?.into_iter().filter(|member| member.readers.1 < format).collect();
    if !behind.is_empty() {
        return Ok(Activated::Behind(behind));
    }
    if rollback_reads < format {
        return Ok(Activated::RollbackBehind(rollback_reads));
    }
    diesel::update(cluster::table).set(cluster::write_format.eq(format)).execute(connection)?;
    audit(connection, now, entry)?;
    Ok(Activated::Done { before })
}

pub(super) fn audit(connection: &mut SqliteConnection, now: i64, entry: &Audit) -> Outcome<()> {
    plain(&[&entry.action, &entry.subject, &entry.detail])?;
    diesel::insert_into(audit::table)
        .values((
            audit::at_us.eq(now),
            audit::action.eq(&entry.action),
            audit::subject.eq(&entry.subject),
            audit::detail.eq(&entry.detail),
        ))
        .execute(connection)?;
    Ok(())
}

/// Looks an idempotency key up: `None` when it is new, else the task it is about, if it is about one.
pub(super) fn request(connection: &mut SqliteConnection, key: Uuid) -> Outcome<Option<Option<TaskId>>> {
    let query = requests::table.filter(requests::key.eq(Key(key))).select(requests::task_id);
    Ok(one_row(connection, query, |row| row.optional_uuid("task_id"))?.map(|task| task.map(TaskId)))
}

/// Whether a call with this key was carried out before.
pub(super) fn repeated(connection: &mut SqliteConnection, key: Option<Uuid>) -> Outcome<bool> {
    match key {
        Some(key) => Ok(request(connection, key)?.is_some()),
        None => Ok(false),
    }
}

/// Remembers that a call with this key was carried out.
pub(super) fn remember(
    connection: &mut SqliteConnection,
    now: i64,
    key: Option<Uuid>,
    task: Option<TaskId>,
) -> Outcome<()> {
    let Some(key) = key else { return Ok(()) };
    diesel::insert_into(requests::table)
        .values((
            requests::key.eq(Key(key)),
            requests::task_id.eq(task.map(|task| Key(task.0))),
            requests::created_at_us.eq(now),
        ))
        .on_conflict_do_nothing()
        .execute(connection)?;
    Ok(())
}

/// Refuses text with a NUL in it. SQLite would keep it, but PostgreSQL cannot, and what one takes the other must take.
pub(super) fn plain(texts: &[&str]) -> Result<(), StoreError> {
    match texts.iter().any(|text| text.contains('\0')) {
        true => Err(StoreError::Data {
            sqlstate: "22021".into(),
            message: "invalid byte sequence for encoding \"UTF8\": 0x00".into(),
        }),
        false => Ok(()),
    }
}
