//! The quarantine: rows that were set aside, and their way back.
//!
//! A row goes back by the names of its columns, those of later releases too; what changes is only where it is in its life.

use std::collections::BTreeSet;

use diesel::{connection::SimpleConnection, prelude::*};
use millrace_core::{
    foreign::{self, Defect, Row, Value},
    id::TaskId,
    retry::OutcomeKind,
    task::State,
};

use super::{
    cluster::audit,
    failure::{Failure, Outcome},
    moves::{Ending, finish},
    raw::{self, Cells, columns_of, row_of},
    reading::{each_row, good_row, one_row},
    statement::sql,
    values::{BadColumn, Cell, Columns},
    waiting::never_ran,
};
use crate::{
    Audit, Foreign, LIST_SCAN_BOUND, QuarantineFilter, QuarantinePage, QuarantinedRow, Reader, Reexamined, Released,
    Repair, Repaired, StoreError, state_of,
};

/// A quarantined row.
struct Aside {
    /// As it is shown.
    shown: QuarantinedRow,
    /// Its columns, the spec among them.
    cells: Cells,
}

const COLUMNS: &str = "SELECT task_id, tenant, queue, raw, spec, error, column_name, writer_format, refused_by, \
                           first_seen_us \
                       FROM quarantine WHERE task_id > ? ORDER BY task_id";

const ONE: &str = "SELECT task_id, tenant, queue, raw, spec, error, column_name, writer_format, refused_by, first_seen_us \
                   FROM quarantine WHERE task_id = ?";

fn aside(row: &mut Columns) -> Result<Aside, BadColumn> {
    let task = row.task_id("task_id")?;
    let tenant = row.spare(|row| row.optional_text("tenant"));
    let queue = row.spare(|row| row.optional_text("queue"));
    let raw = row.text("raw")?;
    let mut cells = raw::from_json(&raw).map_err(|error| BadColumn {
        column: "raw",
        expected: "a JSON object",
        found: error,
        later: false,
    })?;
    let shown = row_of(&cells);
    let spec = row.optional_blob("spec")?;
    if let Some(spec) = &spec {
        cells.insert("spec".into(), Cell::Blob(spec.clone()));
    }
    let (error, column) = (row.text("error")?, row.text("column_name")?);
    let shown = QuarantinedRow {
        task,
        tenant,
        queue,
        row: shown,
        spec,
        defect: Defect { column, error },
        writer_format: row.spare(|row| row.optional_narrow("writer_format")),
        // Written by builds alone; a list that cannot be read is one of nobody.
        refused_by: row.spare(|row| row.list("refused_by")),
        first_seen_us: row.integer("first_seen_us")?,
    };
    Ok(Aside { shown, cells })
}

fn find(connection: &mut SqliteConnection, task: TaskId) -> Outcome<Option<Aside>> {
    one_row(connection, sql(ONE).uuid(&task.0), aside)
}

impl Aside {
    /// Why this build cannot release it, if it cannot.
    fn refusal(&self, connection: &mut SqliteConnection, reader: &Reader) -> Outcome<Option<Defect>> {
        let row = row_of(&self.cells);
        let queue = match foreign::text(&row, "queue") {
            Ok(queue) => queue_exists(connection, &queue)?,
            Err(_) => false,
        };
        Ok(reader.refusal(&row, queue))
    }
}

fn queue_exists(connection: &mut SqliteConnection, name: &str) -> Outcome<bool> {
    let query = sql("SELECT 1 FROM queues WHERE name = ?").text(name);
    Ok(good_row(connection, query, |row| row.integer("known"))?.is_some())
}

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn page(
    connection: &mut SqliteConnection,
    noticed: &Foreign,
    filter: &QuarantineFilter,
    after: Option<TaskId>,
    limit: i64,
) -> Outcome<QuarantinePage> {
    let limit = usize::try_from(limit.max(1)).unwrap_or(usize::MAX);
    let after = after.map_or(Vec::new(), |id| id.0.as_bytes().to_vec());
    let wanted: BTreeSet<TaskId> = filter.tasks.iter().copied().collect();
    let mut rows: Vec<QuarantinedRow> = Vec::new();
    let (mut looked_at, mut last, mut more) = (0, None, false);
    each_row(connection, sql(COLUMNS).blob(after.as_slice()), |row| {
        if rows.len() == limit || looked_at == LIST_SCAN_BOUND {
            more = true;
            return false;
        }
        looked_at += 1;
        last = row.peek_task_id().or(last);
        if wanted.is_empty() || last.is_some_and(|task| wanted.contains(&task)) {
            match aside(row) {
                Ok(found) => rows.extend(Some(found.shown).filter(|row| fits(filter, row))),
                Err(bad) => noticed.unreadable(None, &bad.defect()),
            }
        }
        true
    })?;
    Ok(QuarantinePage { rows, next: last.filter(|_| more) })
}

fn fits(filter: &QuarantineFilter, row: &QuarantinedRow) -> bool {
    let is = |wanted: &Option<String>, given: Option<&String>| wanted.is_none() || wanted.as_ref() == given;
    is(&filter.tenant, row.tenant.as_ref())
        && is(&filter.queue, row.queue.as_ref())
        && is(&filter.column, Some(&row.defect.column))
        && filter.before_us.is_none_or(|moment| row.first_seen_us < moment)
}

// ── Releasing ───────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn reexamine(
    connection: &mut SqliteConnection,
    now: i64,
    reader: &Reader,
    after: Option<TaskId>,
    limit: i64,
) -> Outcome<Reexamined> {
    let limit = usize::try_from(limit.max(1)).unwrap_or(usize::MAX);
    let after = after.map_or(Vec::new(), |id| id.0.as_bytes().to_vec());
    let (mut fresh, mut looked_at, mut last, mut more) = (Vec::new(), 0, None, false);
    let query = sql("SELECT task_id, refused_by FROM quarantine WHERE task_id > ? ORDER BY task_id");
    each_row(connection, query.blob(after.as_slice()), |row| {
        more = looked_at == limit;
        if more {
            return false;
        }
        looked_at += 1;
        if let Ok(task) = row.task_id("task_id") {
            last = Some(task);
            let refused = row.spare(|row| row.list("refused_by"));
            fresh.extend((!refused.contains(&reader.build)).then_some(task));
        }
        true
    })?;
    let mut rows = Vec::with_capacity(fresh.len());
    for task in fresh {
        rows.push((task, release_one(connection, now, reader, task, None)?));
    }
    Ok(Reexamined { rows, next: last.filter(|_| more) })
}

pub(super) fn release(
    connection: &mut SqliteConnection,
    now: i64,
    reader: &Reader,
    tasks: &[TaskId],
    entry: &Audit,
) -> Outcome<Vec<Released>> {
    tasks.iter().map(|&task| release_one(connection, now, reader, task, Some(entry))).collect()
}

fn release_one(
    connection: &mut SqliteConnection,
    now: i64,
    reader: &Reader,
    task: TaskId,
    entry: Option<&Audit>,
) -> Outcome<Released> {
    let Some(aside) = find(connection, task)? else { return Ok(Released::NotFound) };
    let refusal = match aside.refusal(connection, reader)? {
        None => match put_back(connection, now, &aside) {
            Ok(()) => None,
            // The statement that put it back has left nothing behind.
            Err(failure) => match failure.into_store() {
                StoreError::Data { message, .. } => {
                    Some(Defect::new("row", format!("is refused by the database: {message}")))
                }
                other => return Err(other.into()),
            },
        },
        refusal => refusal,
    };
    match (refusal, entry) {
        (Some(defect), _) => {
            remember_refusal(connection, reader, &aside.shown, &defect)?;
            Ok(Released::Refused(defect))
        }
        (None, Some(entry)) => {
            audit(connection, now, &Audit { subject: task.to_string(), ..entry.clone() })?;
            Ok(Released::Done)
        }
        (None, None) => Ok(Released::Done),
    }
}

fn remember_refusal(
    connection: &mut SqliteConnection,
    reader: &Reader,
    row: &QuarantinedRow,
    defect: &Defect,
) -> Outcome<()> {
    let refused_by = serde_json::Value::from(reader.refused_too(&row.refused_by)).to_string();
    sql("UPDATE quarantine SET refused_by = ?, error = ?, column_name = ? WHERE task_id = ?")
        .text(refused_by.as_str())
        .text(defect.error.as_str())
        .text(defect.column.as_str())
        .uuid(&row.task.0)
        .execute(connection)?;
    Ok(())
}

/// Puts a row back among the live tasks and takes it out of the quarantine. One that was being cancelled ends.
fn put_back(connection: &mut SqliteConnection, now: i64, aside: &Aside) -> Outcome<()> {
    let state = state_of(&row_of(&aside.cells));
    let mut cells = aside.cells.clone();
    cells.insert("token".into(), Cell::Null);
    cells.insert("session_id".into(), Cell::Null);
    if state != Some(State::Scheduled) {
        cells.insert("state".into(), Cell::Integer((State::Queued as i16).into()));
        cells.insert("wake_at_us".into(), Cell::Null);
        cells.insert("ready_at_us".into(), Cell::Integer(now));
    }
    let columns = columns_of(connection, "tasks")?;
    raw::insert(connection, &columns, &cells)?;
    if state == Some(State::Cancelling) {
        let outcome = never_ran(OutcomeKind::Cancelled, "its cancellation was under way when its row was set aside");
        let ending = Ending { state: State::Cancelled, outcome: &outcome, failures: None, losses: None };
        finish(connection, now, aside.shown.task, &ending)?;
    }
    forget(connection, aside.shown.task)
}

fn forget(connection: &mut SqliteConnection, task: TaskId) -> Outcome<()> {
    sql("DELETE FROM quarantine WHERE task_id = ?").uuid(&task.0).execute(connection)?;
    Ok(())
}

// ── Repairing ───────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn repair(
    connection: &mut SqliteConnection,
    now: i64,
    reader: &Reader,
    task: TaskId,
    repair: &Repair,
    only_try: bool,
    entry: &Audit,
) -> Outcome<Repaired> {
    connection.batch_execute("SAVEPOINT repair")?;
    let repaired = match repair_now(connection, now, reader, task, repair, entry).map_err(Failure::into_store) {
        Err(StoreError::Data { message, .. }) => Repaired::Refused(message),
        Err(other) => return Err(other.into()),
        Ok(repaired) => repaired,
    };
    if only_try || repaired != Repaired::Done {
        connection.batch_execute("ROLLBACK TO repair")?;
    }
    connection.batch_execute("RELEASE repair")?;
    Ok(repaired)
}

fn repair_now(
    connection: &mut SqliteConnection,
    now: i64,
    reader: &Reader,
    task: TaskId,
    repair: &Repair,
    entry: &Audit,
) -> Outcome<Repaired> {
    let Some(mut aside) = find(connection, task)? else { return Ok(Repaired::NotFound) };
    let columns = columns_of(connection, "tasks")?;
    for name in repair.columns.keys() {
        if name == "id" || name == "spec" || !columns.iter().any(|(column, _)| column == name) {
            return Ok(Repaired::Refused(format!("{name} is not a column of tasks that can be changed")));
        }
    }
    aside.cells.extend(repair.columns.iter().map(|(name, value)| (name.clone(), cell_of(value))));
    if let Some(spec) = &repair.spec {
        aside.cells.insert("spec".into(), Cell::Blob(spec.clone()));
    }
    if let Some(defect) = aside.refusal(connection, reader)? {
        return Ok(Repaired::StillUnreadable(defect));
    }
    put_back(connection, now, &aside)?;
    audit(connection, now, entry)?;
    Ok(Repaired::Done)
}

fn cell_of(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::Bool(value) => Cell::Integer((*value).into()),
        Value::Integer(number) => Cell::Integer(*number),
        Value::Real(number) => Cell::Real(*number),
        Value::Text(text) | Value::Other(text) => Cell::Text(text.clone()),
        Value::Bytes(bytes) => Cell::Blob(bytes.clone()),
    }
}

// ── Discarding ──────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn discard(
    connection: &mut SqliteConnection,
    now: i64,
    tasks: &[TaskId],
    reason: &str,
    entry: &Audit,
) -> Outcome<Vec<TaskId>> {
    let message = format!("discarded from quarantine: {reason}").replace('\0', "\u{FFFD}");
    let mut discarded = Vec::new();
    for &task in tasks {
        let Some(aside) = find(connection, task)? else { continue };
        end(connection, now, &aside, &message)?;
        let detail = serde_json::json!({
            "detail": entry.detail,
            "error": aside.shown.defect.to_string(),
            "raw": raw::to_json(&aside.cells),
        });
        let entry = Audit { subject: task.to_string(), detail: detail.to_string(), ..entry.clone() };
        audit(connection, now, &entry)?;
        forget(connection, task)?;
        discarded.push(task);
    }
    Ok(discarded)
}

/// Ends a task as CANCELLED with what can be read of its row.
fn end(connection: &mut SqliteConnection, now: i64, aside: &Aside, message: &str) -> Outcome<()> {
    let row = row_of(&aside.cells);
    let text = |name: &str| foreign::text(&row, name).unwrap_or_default();
    let rank = i64::from(foreign::integer::<i32>(&row, "rank").unwrap_or_default());
    let count = |name: &str| foreign::within::<i64>(&row, name, &foreign::COUNT).unwrap_or_default();
    let moment = |name: &str| foreign::within::<i64>(&row, name, &foreign::MOMENT).ok();
    let trace_context = foreign::traceparent(&row, "trace_context").unwrap_or_default();
    let [tenant, queue, executor, resource_class, concurrency_key] =
        ["tenant", "queue", "executor", "resource_class", "concurrency_key"].map(text);
    sql("INSERT INTO finished_tasks (slot, finished_at_us, state, outcome, message, output_tail, output_bytes, id, tenant, \
             queue, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms, attempt, failures, losses, \
             unsupported, created_at_us, expires_at_us, dispatched_at_us, started_at_us, trace_context, format, \
             min_reader, spec) \
         VALUES ((? / (SELECT max(slice_us, 1) FROM cluster)) % 8, ?, ?, ?, ?, x'', 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, \
             ?, ?, ?, ?, ?, ?, ?, 1, ?) \
         ON CONFLICT DO NOTHING")
    .integer(now)
    .integer(now)
    .integer(i64::from(State::Cancelled as i16))
    .integer(i64::from(OutcomeKind::Cancelled as i16))
    .text(message)
    .uuid(&aside.shown.task.0)
    .text(tenant.as_str())
    .text(queue.as_str())
    .integer(rank)
    .text(executor.as_str())
    .text(resource_class.as_str())
    .text(concurrency_key.as_str())
    .integer(i64::from(foreign::boolean(&row, "exclusive").unwrap_or_default()))
    .integer(foreign::within::<i64>(&row, "timeout_ms", &foreign::TIMEOUT_MS).ok())
    .integer(count("attempt"))
    .integer(count("failures"))
    .integer(count("losses"))
    .integer(count("unsupported"))
    .integer(moment("created_at_us").unwrap_or_default())
    .integer(moment("expires_at_us"))
    .integer(moment("dispatched_at_us"))
    .integer(moment("started_at_us"))
    .text(trace_context.as_str())
    .integer(i64::from(foreign::integer::<i16>(&row, "format").unwrap_or(1)))
    .blob(spec_of(&row))
    .execute(connection)?;
    Ok(())
}

fn spec_of(row: &Row) -> &[u8] {
    foreign::bytes(row, "spec").unwrap_or_default()
}
