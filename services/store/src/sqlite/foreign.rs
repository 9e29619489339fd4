//! Rows of tasks that this build may not be able to read: read whole and raw, judged, and set aside (R10).

use diesel::prelude::*;
use millrace_core::{
    foreign::{self, Defect, Verdict},
    id::TaskId,
};

use super::{
    failure::Outcome,
    raw::{self, RawTask, columns_of},
    reading::all_rows,
    schema::{Key, tasks},
    statement::sql,
    values::Cell,
};
use crate::{Drift, Examined, Inspected, Reader, may_run};

pub(super) fn examine(
    connection: &mut SqliteConnection,
    now: i64,
    reader: &Reader,
    tasks: &[TaskId],
) -> Outcome<Vec<Examined>> {
    tasks.iter().map(|&task| examine_one(connection, now, reader, task)).collect()
}

/// When the session that a row names was last heard of.
fn heard(connection: &mut SqliteConnection, row: &foreign::Row) -> Outcome<Option<i64>> {
    let Ok(session) = foreign::uuid(row, "session_id") else { return Ok(None) };
    let query = sql("SELECT seen_at_us FROM sessions WHERE id = ?").uuid(&session);
    Ok(super::reading::one_row(connection, query, |row| row.optional_integer("seen_at_us"))?.flatten())
}

/// Judges a row and sets it aside when it cannot be read and nobody runs it. The transaction is the only one that writes, so the
/// row is the one that was judged.
pub(super) fn examine_one(
    connection: &mut SqliteConnection,
    now: i64,
    reader: &Reader,
    task: TaskId,
) -> Outcome<Examined> {
    let Some(task) = raw::live(connection, task)? else { return Ok(Examined::Gone) };
    let row = task.row();
    Ok(match reader.judge(&row, task.references).verdict {
        Verdict::Readable => Examined::Readable,
        Verdict::TooNew(defect) => Examined::TooNew(defect),
        Verdict::Unreadable(defect) if may_run(&row, task.references.holder, heard(connection, &row)?) => {
            Examined::Held(defect)
        }
        Verdict::Unreadable(defect) => {
            set_aside(connection, now, reader, &task, &defect)?;
            Examined::Quarantined(defect)
        }
    })
}

/// Moves a row into the quarantine.
fn set_aside(
    connection: &mut SqliteConnection,
    now: i64,
    reader: &Reader,
    task: &RawTask,
    defect: &Defect,
) -> Outcome<()> {
    let (id, row) = (task.id, task.row());
    let mut cells = task.cells.clone();
    let spec = match cells.remove("spec") {
        Some(Cell::Blob(spec)) => Some(spec),
        Some(other) => {
            cells.insert("spec".into(), other);
            None
        }
        None => None,
    };
    let (tenant, queue) = (foreign::text(&row, "tenant").ok(), foreign::text(&row, "queue").ok());
    let (raw, refused_by) = (raw::to_json(&cells), serde_json::Value::from(reader.refused_too(&[])).to_string());
    sql("INSERT INTO quarantine (task_id, tenant, queue, raw, spec, error, column_name, writer_format, refused_by, \
             first_seen_us) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (task_id) DO UPDATE SET tenant = excluded.tenant, queue = excluded.queue, raw = excluded.raw, \
             spec = excluded.spec, error = excluded.error, column_name = excluded.column_name, \
             writer_format = excluded.writer_format, refused_by = excluded.refused_by")
    .uuid(&id.0)
    .text(tenant.as_deref())
    .text(queue.as_deref())
    .text(raw.as_str())
    .blob(spec.as_deref())
    .text(defect.error.as_str())
    .text(defect.column.as_str())
    .integer(foreign::integer::<i16>(&row, "format").ok().map(i64::from))
    .text(refused_by.as_str())
    .integer(now)
    .execute(connection)?;
    diesel::delete(tasks::table.filter(tasks::id.eq(Key(id.0)))).execute(connection)?;
    tracing::warn!(task = %id, %defect, "a row was set aside: this build cannot read it");
    Ok(())
}

// ── Looking for them ────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn inspect(
    connection: &mut SqliteConnection,
    reader: &Reader,
    after: Option<TaskId>,
    limit: i64,
) -> Outcome<Inspected> {
    let limit = limit.max(1);
    let found = raw::live_after(connection, after, limit)?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let next = found.last().filter(|_| full).map(|task| task.id);
    let rows = found.iter().map(|task| (task.id, reader.judge(&task.row(), task.references))).collect();
    Ok(Inspected { rows, next })
}

/// Steps from queue to queue, tenant to tenant and rank to rank through the index over what waits, whatever they are: a column
/// holds values of any type, and the index orders them as nothing, numbers, text, blobs. What holds nothing is not met by
/// stepping and is looked up by itself; a moment that is no number stands behind all numbers.
pub(super) const STRAYS: &str = "WITH RECURSIVE \
     q(queue) AS ( \
         SELECT (SELECT min(queue) FROM tasks WHERE ready_at_us IS NOT NULL) \
         UNION ALL \
         SELECT (SELECT min(t.queue) FROM tasks t WHERE t.ready_at_us IS NOT NULL AND t.queue > q.queue) \
         FROM q WHERE q.queue IS NOT NULL), \
     t(queue, tenant) AS ( \
         SELECT q.queue, (SELECT min(tenant) FROM tasks WHERE tasks.queue = q.queue AND ready_at_us IS NOT NULL) \
         FROM q WHERE q.queue IS NOT NULL \
         UNION ALL \
         SELECT t.queue, (SELECT min(n.tenant) FROM tasks n \
             WHERE n.queue = t.queue AND n.ready_at_us IS NOT NULL AND n.tenant > t.tenant) \
         FROM t WHERE t.tenant IS NOT NULL), \
     r(queue, tenant, rank) AS ( \
         SELECT t.queue, t.tenant, (SELECT min(rank) FROM tasks \
             WHERE tasks.queue = t.queue AND tasks.tenant = t.tenant AND ready_at_us IS NOT NULL) \
         FROM t WHERE t.tenant IS NOT NULL \
         UNION ALL \
         SELECT r.queue, r.tenant, (SELECT min(n.rank) FROM tasks n \
             WHERE n.queue = r.queue AND n.tenant = r.tenant AND n.ready_at_us IS NOT NULL AND n.rank > r.rank) \
         FROM r WHERE r.rank IS NOT NULL) \
     SELECT id FROM ( \
         SELECT id FROM tasks WHERE queue IS NULL AND ready_at_us IS NOT NULL \
         UNION ALL \
         SELECT tasks.id FROM q CROSS JOIN tasks ON tasks.queue = q.queue AND ready_at_us IS NOT NULL \
         WHERE typeof(q.queue) <> 'text' OR NOT EXISTS (SELECT 1 FROM queues WHERE queues.name = q.queue) \
         UNION ALL \
         SELECT tasks.id FROM q CROSS JOIN tasks ON tasks.queue = q.queue AND tenant IS NULL AND ready_at_us IS NOT NULL \
         UNION ALL \
         SELECT tasks.id FROM t CROSS JOIN tasks \
             ON tasks.queue = t.queue AND tasks.tenant = t.tenant AND ready_at_us IS NOT NULL \
         WHERE typeof(t.tenant) <> 'text' \
         UNION ALL \
         SELECT tasks.id FROM t CROSS JOIN tasks \
             ON tasks.queue = t.queue AND tasks.tenant = t.tenant AND rank IS NULL AND ready_at_us IS NOT NULL \
         UNION ALL \
         SELECT tasks.id FROM r CROSS JOIN tasks \
             ON tasks.queue = r.queue AND tasks.tenant = r.tenant AND tasks.rank = r.rank AND ready_at_us IS NOT NULL \
         WHERE typeof(r.rank) <> 'integer' OR r.rank NOT BETWEEN -2147483648 AND 2147483647 \
         UNION ALL \
         SELECT tasks.id FROM r CROSS JOIN tasks \
             ON tasks.queue = r.queue AND tasks.tenant = r.tenant AND tasks.rank = r.rank \
                 AND ready_at_us > 9223372036854775807 \
         UNION ALL \
         SELECT id FROM tasks WHERE wake_at_us > 9223372036854775807) \
     LIMIT ?";

pub(super) fn strays(connection: &mut SqliteConnection, limit: i64) -> Outcome<Vec<TaskId>> {
    Ok(all_rows(connection, sql(STRAYS).integer(limit.max(0)), |row| row.task_id("id"))?)
}

// ── Types that drifted ──────────────────────────────────────────────────────────────────────────────────────────────

/// The columns of both tables of tasks, by their type.
const BOTH: [(&str, &[&str]); 3] = [
    (
        "INTEGER",
        &[
            "state",
            "rank",
            "exclusive",
            "timeout_ms",
            "attempt",
            "token",
            "failures",
            "losses",
            "unsupported",
            "created_at_us",
            "expires_at_us",
            "dispatched_at_us",
            "started_at_us",
            "format",
            "min_reader",
        ],
    ),
    ("TEXT", &["tenant", "queue", "executor", "resource_class", "concurrency_key", "trace_context"]),
    ("BLOB", &["id", "session_id", "spec"]),
];

const LIVE: [(&str, &[&str]); 1] = [("INTEGER", &["ready_at_us", "wake_at_us"])];

const FINISHED: [(&str, &[&str]); 3] = [
    ("INTEGER", &["slot", "finished_at_us", "outcome", "exit_code", "signal", "output_bytes", "ended_at_us"]),
    ("TEXT", &["message"]),
    ("BLOB", &["output_tail"]),
];

pub(super) fn drift(connection: &mut SqliteConnection) -> Outcome<Vec<Drift>> {
    let mut drift = Vec::new();
    for (table, more) in [("tasks", &LIVE[..]), ("finished_tasks", &FINISHED[..])] {
        let found = columns_of(connection, table)?;
        for (expected, columns) in BOTH.iter().chain(more) {
            for &column in *columns {
                let found = found.iter().find(|(name, _)| name == column).map(|(_, of)| of.clone());
                if found.as_deref() != Some(*expected) {
                    let (table, column, expected) = (table.to_owned(), column.to_owned(), (*expected).to_owned());
                    drift.push(Drift { table, column, expected, found });
                }
            }
        }
    }
    Ok(drift)
}
