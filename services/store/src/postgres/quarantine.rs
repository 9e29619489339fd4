//! The quarantine: rows that were set aside, and their way back.
//!
//! A row goes back by the names of its columns, those of later releases too; what changes is only where it is in its life.
//! Rows are locked in the order of their ids.

use std::collections::BTreeMap;

use millrace_core::{
    foreign::{self, Defect, Row, Value},
    id::TaskId,
    retry::OutcomeKind,
    task::State,
};
use uuid::Uuid;

use super::{
    cluster::write_audit,
    columns::{Columns, Read},
    conn::Conn,
    foreign::{columns_of, from_json},
    moves::{Ending, finish, json_of},
    pool::Pool,
    rows::{now_us, uuid},
    sql::sql,
};
use crate::{
    Audit, LIST_SCAN_BOUND, QuarantineFilter, QuarantinePage, QuarantinedRow, Reader, Reexamined, Released, Repair,
    Repaired, Result, StoreError, foreign::state_of,
};

/// A quarantined row with what is needed to judge it and to put it back.
struct Held {
    row: QuarantinedRow,
    /// The columns as they are kept.
    raw: String,
    /// Whether its queue exists.
    queue: bool,
}

macro_rules! select_held {
    ($rest:literal) => {
        concat!(
            "SELECT q.task_id AS id, q.task_id, q.tenant, q.queue, q.raw, q.spec, q.error, q.column_name, q.writer_format, q.refused_by,
                q.first_seen_us,
                EXISTS (SELECT 1 FROM queues k WHERE k.name = q.raw::jsonb ->> 'queue') AS queue_known
             FROM quarantine q ",
            $rest
        )
    };
}

fn held(columns: &mut Columns<'_>) -> Read<Held> {
    // Once more under the name by which suspects are known.
    columns.get::<Uuid>()?;
    let task = TaskId(columns.get()?);
    let (tenant, queue) = (columns.get_nullable()?, columns.get_nullable()?);
    let raw: String = columns.get()?;
    let row = from_json(&raw).map_err(|error| Defect::new("raw", error))?;
    let spec = columns.get_nullable()?;
    let error: String = columns.get()?;
    let column: String = columns.get()?;
    let writer_format = columns.get_nullable()?;
    let refused_by: String = columns.get()?;
    let first_seen_us = columns.get()?;
    let row = QuarantinedRow {
        task,
        tenant,
        queue,
        row,
        spec,
        defect: Defect { column, error },
        writer_format,
        // Written by builds alone; a list that cannot be read is one of nobody.
        refused_by: serde_json::from_str(&refused_by).unwrap_or_default(),
        first_seen_us,
    };
    Ok(Held { row, raw, queue: columns.get()? })
}

impl Held {
    /// Why this build cannot release the row.
    fn refusal(&self, reader: &Reader) -> Option<Defect> {
        let mut row = self.row.row.clone();
        if let Some(spec) = &self.row.spec {
            row.insert("spec".into(), Value::Bytes(spec.clone()));
        }
        reader.refusal(&row, self.queue)
    }
}

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn page(
    people: &Pool,
    filter: &QuarantineFilter,
    after: Option<TaskId>,
    limit: i64,
) -> Result<QuarantinePage> {
    let after = after.map_or(Uuid::nil(), |task| task.0);
    let limit = limit.max(1);
    // The last row that this page may look at; none when there are fewer.
    let bound = sql("SELECT q.task_id FROM quarantine q WHERE q.task_id > $1 ORDER BY q.task_id OFFSET $2 LIMIT 1")
        .bind(after)
        .bind(LIST_SCAN_BOUND - 1);
    let filter = filter.clone();
    people.read(move |conn| {
        let bound = conn.first(bound, uuid)?;
        let statement = sql(select_held!(
            "WHERE q.task_id > $1 AND q.task_id <= $2 AND ($3::boolean OR q.task_id = ANY($4::uuid[]))
                AND ($5::text IS NULL OR q.tenant = $5) AND ($6::text IS NULL OR q.queue = $6)
                AND ($7::text IS NULL OR q.column_name = $7) AND ($8::bigint IS NULL OR q.first_seen_us < $8)
             ORDER BY q.task_id LIMIT $9"
        ));
        let statement = statement
            .bind(after)
            .bind(bound.unwrap_or(Uuid::max()))
            .bind(filter.tasks.is_empty())
            .array(filter.tasks.iter().map(|task| task.0))
            .bind(filter.tenant.clone())
            .bind(filter.queue.clone())
            .bind(filter.column.clone())
            .bind(filter.before_us)
            .bind(limit + 1);
        // The cursor goes by what was met, readable or not.
        let mut met = conn.rows(statement, |row| Ok((row.task_id(), held(row))))?;
        let full = met.len() as i64 > limit;
        met.truncate(limit as usize);
        let next = match full {
            true => met.last().and_then(|(task, _)| *task),
            false => bound.map(TaskId),
        };
        let readable = |(_, held): (_, Read<Held>)| {
            held.inspect_err(|defect| tracing::error!(%defect, "a row of the quarantine cannot be read")).ok()
        };
        let rows = met.into_iter().filter_map(readable).map(|held| held.row).collect();
        Ok(QuarantinePage { rows, next })
    })
}

// ── Releasing ───────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn reexamine(pool: &Pool, reader: &Reader, after: Option<TaskId>, limit: i64) -> Result<Reexamined> {
    let limit = limit.max(1);
    let page = sql("SELECT q.task_id, q.refused_by FROM quarantine q WHERE q.task_id > $1 ORDER BY q.task_id LIMIT $2")
        .bind(after.map_or(Uuid::nil(), |task| task.0))
        .bind(limit);
    let page = pool.read(move |conn| conn.rows(page, |row| Ok((TaskId(row.get()?), row.get::<String>()?))))?;
    let next = page.last().filter(|_| page.len() as i64 == limit).map(|(task, _)| *task);
    let refused =
        |list: &str| serde_json::from_str::<Vec<String>>(list).is_ok_and(|builds| builds.contains(&reader.build));
    let fresh: Vec<TaskId> = page.iter().filter(|(_, list)| !refused(list)).map(|(task, _)| *task).collect();
    let released = match try_release(pool, reader, &fresh, Of::Rows, None) {
        Err(error) if !error.is_transient() => one_by_one(pool, reader, &fresh)?,
        released => released?,
    };
    let rows = fresh.into_iter().zip(released).filter(|(_, what)| *what != Released::NotFound).collect();
    Ok(Reexamined { rows, next })
}

/// The same when a row among them makes the server itself fail: that one stays, and is said so.
fn one_by_one(pool: &Pool, reader: &Reader, tasks: &[TaskId]) -> Result<Vec<Released>> {
    let mut released = Vec::with_capacity(tasks.len());
    for task in tasks {
        released.push(match try_release(pool, reader, &[*task], Of::Rows, None) {
            Ok(mut one) => one.pop().unwrap_or(Released::NotFound),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                tracing::error!(%task, %error, "a row of the quarantine cannot be examined");
                Released::NotFound
            }
        });
    }
    Ok(released)
}

pub(super) fn release(pool: &Pool, reader: &Reader, tasks: &[TaskId], audit: &Audit) -> Result<Vec<Released>> {
    try_release(pool, reader, tasks, Of::Waits, Some(audit))
}

/// What a release does about a row that another has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// It waits.
    Waits,
    /// It leaves it out.
    Rows,
}

/// Releases rows together; when the database refuses one for its data, that one alone is refused (R8).
fn try_release(pool: &Pool, reader: &Reader, tasks: &[TaskId], of: Of, audit: Option<&Audit>) -> Result<Vec<Released>> {
    let refuse = |task: &TaskId, error: StoreError| {
        let StoreError::Data { message, .. } = error else { return Err(error) };
        let defect = Defect::new("row", format!("is refused by the database: {message}"));
        let (task, reader, known) = (*task, reader.clone(), defect.clone());
        pool.transaction(move |conn| match lock(conn, &[task], of)?.pop() {
            Some(held) => remember_refusals(conn, &reader, &[(&held, known)]),
            None => Ok(()),
        })?;
        Ok(Released::Refused(defect))
    };
    let run = |part: &[TaskId]| {
        if part.is_empty() {
            return Ok(Vec::new());
        }
        let (tasks, reader, audit) = (part.to_vec(), reader.clone(), audit.cloned());
        pool.transaction(move |conn| release_part(conn, &reader, &tasks, of, audit.as_ref()))
    };
    crate::batch::bisect(tasks, run, refuse)
}

fn release_part(
    conn: &mut Conn<'_>,
    reader: &Reader,
    tasks: &[TaskId],
    of: Of,
    audit: Option<&Audit>,
) -> Result<Vec<Released>> {
    let found = lock(conn, tasks, of)?;
    let mut answers: BTreeMap<TaskId, Released> = BTreeMap::new();
    let (mut back, mut refused) = (Vec::new(), Vec::new());
    for held in &found {
        match held.refusal(reader) {
            None => {
                back.push(held);
                answers.insert(held.row.task, Released::Done);
            }
            Some(defect) => {
                answers.insert(held.row.task, Released::Refused(defect.clone()));
                refused.push((held, defect));
            }
        }
    }
    put_back(conn, &back)?;
    remember_refusals(conn, reader, &refused)?;
    for held in &back {
        if let Some(audit) = audit {
            write_audit(conn, &Audit { subject: held.row.task.to_string(), ..audit.clone() })?;
        }
    }
    Ok(tasks.iter().map(|task| answers.remove(task).unwrap_or(Released::NotFound)).collect())
}

fn lock(conn: &mut Conn<'_>, tasks: &[TaskId], of: Of) -> Result<Vec<Held>> {
    let statement = match of {
        Of::Waits => sql(select_held!("WHERE q.task_id = ANY($1::uuid[]) ORDER BY q.task_id FOR UPDATE OF q")),
        Of::Rows => {
            sql(select_held!("WHERE q.task_id = ANY($1::uuid[]) ORDER BY q.task_id FOR UPDATE OF q SKIP LOCKED"))
        }
    };
    conn.rows(statement.array(tasks.iter().map(|task| task.0)), held)
}

fn remember_refusals(conn: &mut Conn<'_>, reader: &Reader, refused: &[(&Held, Defect)]) -> Result<()> {
    if refused.is_empty() {
        return Ok(());
    }
    let remembered = |held: &Held| serde_json::Value::from(reader.refused_too(&held.row.refused_by)).to_string();
    let statement =
        sql("UPDATE quarantine q SET refused_by = item.refused_by, error = item.error, column_name = item.column_name
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS item(task_id, refused_by, error, column_name)
        WHERE q.task_id = item.task_id")
        .array(refused.iter().map(|(held, _)| held.row.task.0))
        .array(refused.iter().map(|(held, _)| remembered(held)))
        .array(refused.iter().map(|(_, defect)| defect.error.as_str()))
        .array(refused.iter().map(|(_, defect)| defect.column.as_str()));
    conn.execute(statement).map(drop)
}

/// Puts locked rows back among the live tasks and takes them out of the quarantine. One that was being cancelled ends.
fn put_back(conn: &mut Conn<'_>, rows: &[&Held]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (ending, waiting): (Vec<&Held>, Vec<&Held>) =
        rows.iter().partition(|held| state_of(&held.row.row) == Some(State::Cancelling));
    let cancelled = Ending::without_attempt(
        State::Cancelled,
        OutcomeKind::Cancelled,
        "its cancellation was under way when its row was set aside",
    );
    for held in ending {
        finish(conn, held.row.task, &held.row.row, held.row.spec.as_deref().unwrap_or_default(), &cancelled)?;
    }
    let columns = columns_of(conn, "tasks")?;
    // Rows of different releases may have different columns, and what a row does not have gets the column's default.
    let mut alike: BTreeMap<Vec<&str>, Vec<&Held>> = BTreeMap::new();
    for held in waiting {
        let has = |name: &str| name == "spec" && held.row.spec.is_some() || held.row.row.contains_key(name);
        let names = columns.iter().map(|(name, _)| name.as_str()).filter(|name| has(name)).collect();
        alike.entry(names).or_default().push(held);
    }
    for (names, rows) in alike {
        insert(conn, &names, &rows)?;
    }
    forget(conn, rows.iter().map(|held| held.row.task))
}

fn insert(conn: &mut Conn<'_>, names: &[&str], rows: &[&Held]) -> Result<()> {
    let quoted = |prefix: &str| {
        let quote = |name: &&str| format!("{prefix}\"{}\"", name.replace('"', "\"\""));
        names.iter().map(quote).collect::<Vec<_>>().join(", ")
    };
    let statement = format!(
        "INSERT INTO tasks ({}) SELECT {} FROM unnest($1::text[], $2::bytea[], $3::boolean[]) AS item(raw, spec, waits)
         CROSS JOIN LATERAL jsonb_populate_record(NULL::tasks,
            item.raw::jsonb || CASE WHEN item.spec IS NULL THEN '{{}}'
                ELSE jsonb_build_object('spec', '\\x' || encode(item.spec, 'hex')) END
            || CASE WHEN item.waits THEN '{{}}' ELSE jsonb_build_object('state', 2, 'wake_at_us', NULL, 'ready_at_us', {}) END
            || jsonb_build_object('token', NULL, 'session_id', NULL)) AS r",
        quoted(""),
        quoted("r."),
        now_us!()
    );
    let waits = |held: &&&Held| state_of(&held.row.row) == Some(State::Scheduled);
    let statement = sql(statement)
        .array(rows.iter().map(|held| held.raw.as_str()))
        .array(rows.iter().map(|held| held.row.spec.as_deref()))
        .array(rows.iter().map(|held| waits(&held)));
    conn.execute(statement).map(drop)
}

fn forget(conn: &mut Conn<'_>, tasks: impl Iterator<Item = TaskId>) -> Result<()> {
    conn.execute(sql("DELETE FROM quarantine q WHERE q.task_id = ANY($1::uuid[])").array(tasks.map(|task| task.0)))
        .map(drop)
}

// ── Repairing ───────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn repair(
    pool: &Pool,
    reader: &Reader,
    task: TaskId,
    repair: &Repair,
    only_try: bool,
    audit: &Audit,
) -> Result<Repaired> {
    let (reader, repair, audit) = (reader.clone(), repair.clone(), audit.clone());
    let repaired = pool.transaction(move |conn| {
        let repaired = repair_locked(conn, &reader, task, &repair, &audit)?;
        if only_try || repaired != Repaired::Done {
            conn.undo();
        }
        Ok(repaired)
    });
    match repaired {
        Err(StoreError::Data { message, .. }) => Ok(Repaired::Refused(message)),
        repaired => repaired,
    }
}

fn repair_locked(
    conn: &mut Conn<'_>,
    reader: &Reader,
    task: TaskId,
    repair: &Repair,
    audit: &Audit,
) -> Result<Repaired> {
    let Some(mut held) = lock(conn, &[task], Of::Waits)?.pop() else { return Ok(Repaired::NotFound) };
    let columns = columns_of(conn, "tasks")?;
    for name in repair.columns.keys() {
        if name == "id" || name == "spec" || !columns.iter().any(|(column, _)| column == name) {
            return Ok(Repaired::Refused(format!("{name} is not a column of tasks that can be changed")));
        }
    }
    held.row.row.extend(repair.columns.clone());
    if let Some(spec) = &repair.spec {
        held.row.spec = Some(spec.clone());
        held.row.row.remove("spec");
    }
    held.raw = to_json(&held.row.row);
    let queue = foreign::text(&held.row.row, "queue").unwrap_or_default();
    let known = sql("SELECT q.name FROM queues q WHERE q.name = $1").bind(queue.as_str());
    held.queue = conn.first(known, super::rows::text)?.is_some();
    if let Some(defect) = held.refusal(reader) {
        return Ok(Repaired::StillUnreadable(defect));
    }
    put_back(conn, &[&held])?;
    write_audit(conn, audit)?;
    Ok(Repaired::Done)
}

/// The columns as a JSON object, as PostgreSQL writes a row.
fn to_json(row: &Row) -> String {
    row.iter().map(|(name, value)| (name.clone(), json_of(value))).collect::<serde_json::Value>().to_string()
}

// ── Discarding ──────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn discard(pool: &Pool, tasks: &[TaskId], reason: &str, audit: &Audit) -> Result<Vec<TaskId>> {
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let (tasks, audit) = (tasks.to_vec(), audit.clone());
    let message = format!("discarded from quarantine: {reason}");
    let ending = Ending::without_attempt(State::Cancelled, OutcomeKind::Cancelled, &message);
    pool.transaction(move |conn| {
        let found = lock(conn, &tasks, Of::Waits)?;
        for held in &found {
            let row = &held.row;
            finish(conn, row.task, &row.row, row.spec.as_deref().unwrap_or_default(), &ending)?;
            let detail = serde_json::json!({
                "detail": audit.detail, "error": held.row.defect.to_string(), "raw": held.raw,
            });
            let entry = Audit { subject: held.row.task.to_string(), detail: detail.to_string(), ..audit.clone() };
            write_audit(conn, &entry)?;
        }
        forget(conn, found.iter().map(|held| held.row.task))?;
        Ok(found.into_iter().map(|held| held.row.task).collect())
    })
}
