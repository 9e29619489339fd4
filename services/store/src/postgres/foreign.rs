//! Rows of tasks that this build may not be able to read: read whole and raw, judged, and set aside (R10).

use millrace_core::{
    foreign::{self, Defect, Holder, References, Row, Value, Verdict},
    id::TaskId,
    lease::Token,
};
use uuid::Uuid;

use super::{
    columns::{Columns, Read},
    conn::Conn,
    moves::{Ending, finish},
    pool::Pool,
    rows::{now_us, text, uuid},
    sql::{Statement, sql},
    unindexed,
};
use crate::{Dispatch, Examined, Inspected, Reader, Result, StoreError, foreign::may_run};

/// A live row, whole.
pub(super) struct RawTask {
    pub(super) id: TaskId,
    /// The columns but for the spec, as a JSON object: as they are kept, and put back.
    pub(super) raw: String,
    /// The same as values, with the spec.
    pub(super) row: Row,
    pub(super) references: References,
    /// When its session was last heard of.
    pub(super) heard_us: Option<i64>,
}

/// Reads rows whole, as JSON, which has a form for every type; the spec apart, because its bytes are judged. What a row refers to is
/// compared as text, so that it is found whatever type a column has.
macro_rules! select_raw {
    ($rest:literal) => {
        concat!(
            "SELECT t.id,
                CASE WHEN pg_typeof(t.spec) = 'bytea'::regtype THEN to_jsonb(t) - 'spec' ELSE to_jsonb(t) END::text AS raw, t.spec,
                EXISTS (SELECT 1 FROM queues q WHERE q.name = t.queue::text) AS queue_known,
                (SELECT s.state FROM sessions s WHERE s.id = t.session_id) AS holder,
                (SELECT s.seen_at_us FROM sessions s WHERE s.id = t.session_id) AS heard_us FROM tasks t ",
            $rest
        )
    };
}

fn raw_task(columns: &mut Columns<'_>) -> Read<RawTask> {
    let id = TaskId(columns.get()?);
    let raw: String = columns.get()?;
    let mut row = from_json(&raw).map_err(|error| Defect::new("raw", error))?;
    // A spec of another type than bytes is among the columns, as they are kept.
    match columns.get_nullable::<Vec<u8>>() {
        Ok(Some(bytes)) => drop(row.insert("spec".into(), Value::Bytes(bytes))),
        Ok(None) => drop(row.insert("spec".into(), Value::Null)),
        Err(_) => {}
    }
    let queue = columns.get()?;
    let holder = holder(columns.get_nullable()?);
    Ok(RawTask { id, raw, row, references: References { queue, holder }, heard_us: columns.get_nullable()? })
}

/// Rows as this build may judge them.
fn whole(conn: &mut Conn<'_>, statement: Statement) -> Result<Vec<RawTask>> {
    let mut tasks = conn.rows(statement, raw_task)?;
    for task in &mut tasks {
        conn.shape().hide_bytes(&mut task.row);
    }
    Ok(tasks)
}

pub(super) fn holder(state: Option<i16>) -> Holder {
    match state {
        Some(1) => Holder::Live,
        Some(_) => Holder::Over,
        None => Holder::Gone,
    }
}

/// A JSON object as the columns of a row.
pub(super) fn from_json(text: &str) -> std::result::Result<Row, String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(object.into_iter().map(|(name, value)| (name, from_json_value(value))).collect())
}

fn from_json_value(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Value::Integer(number),
            (None, Some(number)) => Value::Real(number),
            (None, None) => Value::Other(number.to_string()),
        },
        serde_json::Value::String(text) => Value::Text(text),
        other => Value::Other(other.to_string()),
    }
}

// ── Examining ───────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn examine(pool: &Pool, reader: &Reader, tasks: &[TaskId]) -> Result<Vec<Examined>> {
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let (reader, tasks) = (reader.clone(), tasks.to_vec());
    pool.transaction(move |conn| {
        let found = locked_at_once(conn, &tasks)?;
        let mut examined: std::collections::BTreeMap<TaskId, Examined> = Default::default();
        let mut aside = Vec::new();
        for task in &found {
            let what = match reader.judge(&task.row, task.references).verdict {
                Verdict::Readable => Examined::Readable,
                Verdict::TooNew(defect) => Examined::TooNew(defect),
                Verdict::Unreadable(defect) if may_run(&task.row, task.references.holder, task.heard_us) => {
                    Examined::Held(defect)
                }
                Verdict::Unreadable(defect) => {
                    aside.push((task, defect.clone()));
                    Examined::Quarantined(defect)
                }
            };
            examined.insert(task.id, what);
        }
        set_aside(conn, &reader, &aside)?;
        Ok(tasks.iter().map(|task| examined.get(task).cloned().unwrap_or(Examined::Gone)).collect())
    })
}

/// Sets aside rows that this call has just claimed and that cannot be read: nobody has been told of the claim. Only what is still held by
/// this very claim: the session may have ended meanwhile, and another build may run the task.
pub(super) fn set_claimed_aside(
    conn: &mut Conn<'_>,
    reader: &Reader,
    claimed: &[(TaskId, Token, Defect)],
) -> Result<()> {
    let ids: Vec<TaskId> = claimed.iter().map(|(task, ..)| *task).collect();
    let found = locked(conn, &ids)?;
    let why = |task: &RawTask| {
        let token = foreign::integer::<i64>(&task.row, "token").ok()?;
        let ours = |(id, with, _): &&(TaskId, Token, Defect)| *id == task.id && with.0 == token;
        claimed.iter().find(ours).map(|(.., defect)| defect.clone())
    };
    let aside: Vec<(&RawTask, Defect)> = found.iter().filter_map(|task| Some((task, why(task)?))).collect();
    set_aside(conn, reader, &aside)
}

/// Live rows, whole, locked in the order of their ids. What they refer to is read by a statement of its own, so that it is as new as the
/// rows for which this has waited.
pub(super) fn locked(conn: &mut Conn<'_>, tasks: &[TaskId]) -> Result<Vec<RawTask>> {
    let lock = sql("SELECT t.id FROM tasks t WHERE t.id = ANY($1::uuid[]) ORDER BY t.id FOR UPDATE");
    read_locked(conn, lock, tasks)
}

/// The same without rows that others have locked: nobody is to wait for an examination, nor it for them.
fn locked_at_once(conn: &mut Conn<'_>, tasks: &[TaskId]) -> Result<Vec<RawTask>> {
    let lock = sql("SELECT t.id FROM tasks t WHERE t.id = ANY($1::uuid[]) ORDER BY t.id FOR UPDATE SKIP LOCKED");
    read_locked(conn, lock, tasks)
}

fn read_locked(conn: &mut Conn<'_>, lock: Statement, tasks: &[TaskId]) -> Result<Vec<RawTask>> {
    let ids = conn.rows(lock.array(tasks.iter().map(|task| task.0)), uuid)?;
    match ids.is_empty() {
        true => Ok(Vec::new()),
        false => {
            let statement = sql(select_raw!("WHERE t.id = ANY($1::uuid[]) ORDER BY t.id"));
            whole(conn, statement.array(ids))
        }
    }
}

/// Moves locked rows into the quarantine.
fn set_aside(conn: &mut Conn<'_>, reader: &Reader, rows: &[(&RawTask, Defect)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let all = || rows.iter();
    let spec = |row: &Row| foreign::bytes(row, "spec").map(<[u8]>::to_vec).ok();
    let statement = sql(concat!(
        "INSERT INTO quarantine (task_id, tenant, queue, raw, spec, error, column_name, writer_format, refused_by, first_seen_us)
         SELECT item.task_id, item.tenant, item.queue, item.raw, item.spec, item.error, item.column_name, item.writer_format, $1, ",
        now_us!(),
        " FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::text[], $8::text[], $9::smallint[])
         AS item(task_id, tenant, queue, raw, spec, error, column_name, writer_format)
         ON CONFLICT (task_id) DO UPDATE SET tenant = excluded.tenant, queue = excluded.queue, raw = excluded.raw,
            spec = excluded.spec, error = excluded.error, column_name = excluded.column_name,
            writer_format = excluded.writer_format, refused_by = excluded.refused_by"
    ));
    let specs: Vec<Option<Vec<u8>>> = all().map(|(task, _)| spec(&task.row)).collect();
    let statement = statement
        .bind(serde_json::json!([reader.build]).to_string())
        .array(all().map(|(task, _)| task.id.0))
        .array(all().map(|(task, _)| foreign::text(&task.row, "tenant").ok()))
        .array(all().map(|(task, _)| foreign::text(&task.row, "queue").ok()))
        .array(all().map(|(task, _)| task.raw.as_str()))
        .array(specs.iter().map(|spec| spec.as_deref()))
        .array(all().map(|(_, defect)| defect.error.as_str()))
        .array(all().map(|(_, defect)| defect.column.as_str()))
        .array(all().map(|(task, _)| foreign::integer::<i16>(&task.row, "format").ok()));
    conn.execute(statement)?;
    let gone = sql("DELETE FROM tasks t WHERE t.id = ANY($1::uuid[])").array(all().map(|(task, _)| task.id.0));
    conn.execute(gone)?;
    for (task, defect) in rows {
        tracing::warn!(task = %task.id, %defect, "a row was set aside: this build cannot read it");
    }
    Ok(())
}

/// Why a waiting row must not end here: it is to be set aside, or left to a later release. Its spec does not matter to its end.
pub(super) fn unfit_to_end(task: &RawTask) -> Option<Defect> {
    match Reader::default().judge(&task.row, task.references).verdict {
        Verdict::Readable => None,
        Verdict::TooNew(defect) | Verdict::Unreadable(defect) => Some(defect),
    }
}

/// Moves a locked row to the finished tasks, column by column.
pub(super) fn end_live(conn: &mut Conn<'_>, task: &RawTask, ending: &Ending) -> Result<()> {
    let spec = foreign::bytes(&task.row, "spec").unwrap_or_default();
    finish(conn, task.id, &task.row, spec, ending)?;
    conn.execute(sql("DELETE FROM tasks t WHERE t.id = $1").bind(task.id.0)).map(drop)
}

// ── Looking for them ────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn inspect(people: &Pool, reader: &Reader, after: Option<TaskId>, limit: i64) -> Result<Inspected> {
    let limit = limit.max(1);
    let statement: Statement = sql(select_raw!("WHERE t.id > $1 ORDER BY t.id LIMIT $2"));
    let statement = statement.bind(after.map_or(Uuid::nil(), |task| task.0)).bind(limit);
    let by = reader.clone();
    let page = people.read(move |conn| {
        let found = whole(conn, statement)?;
        let next = found.last().filter(|_| found.len() as i64 == limit).map(|task| task.id);
        let judged = |task: RawTask| (task.id, by.judge(&task.row, task.references));
        Ok(Inspected { rows: found.into_iter().map(judged).collect(), next })
    });
    match page {
        Err(error) if !error.is_transient() => inspect_one_by_one(people, reader, after, limit, &error),
        page => page,
    }
}

/// The same when a row among them makes the server itself fail: that one is passed over, and said so.
fn inspect_one_by_one(
    people: &Pool,
    reader: &Reader,
    after: Option<TaskId>,
    limit: i64,
    error: &StoreError,
) -> Result<Inspected> {
    tracing::error!(%error, "a row in a page cannot even be fetched; its neighbours are read one by one");
    let page = sql("SELECT t.id FROM tasks t WHERE t.id > $1 ORDER BY t.id LIMIT $2")
        .bind(after.map_or(Uuid::nil(), |task| task.0))
        .bind(limit);
    let ids = people.read(move |conn| conn.rows(page, uuid))?;
    let next = ids.last().filter(|_| ids.len() as i64 == limit).copied().map(TaskId);
    let mut rows = Vec::new();
    for id in ids {
        let statement = sql(select_raw!("WHERE t.id = $1")).bind(id);
        match people.read(move |conn| whole(conn, statement)) {
            Ok(found) => {
                rows.extend(found.into_iter().map(|task| (task.id, reader.judge(&task.row, task.references))));
            }
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => tracing::error!(task = %id, %error, "a row cannot even be fetched"),
        }
    }
    Ok(Inspected { rows, next })
}

/// Held tasks with specs that this build can run; the others become suspects, and are not sent to anybody.
pub(super) fn runnable(conn: &Conn<'_>, reader: &Reader, dispatches: Vec<Dispatch>) -> Vec<Dispatch> {
    let fit = |dispatch: &Dispatch| match (reader.spec)(&dispatch.spec).defect {
        None => true,
        Some(defect) => {
            conn.foreign().unreadable(Some(dispatch.lease.task), &defect);
            false
        }
    };
    dispatches.into_iter().filter(fit).collect()
}

/// Steps from (queue, tenant) to (queue, tenant) through the index over what waits. Its order puts what holds nothing last, where no
/// comparison finds it, so that is looked up by itself.
const STRAYS: &str = "WITH RECURSIVE lane AS (
        (SELECT t.queue, t.tenant FROM tasks t WHERE t.ready_at_us IS NOT NULL AND t.queue IS NOT NULL AND t.tenant IS NOT NULL
         ORDER BY t.queue, t.tenant LIMIT 1)
        UNION ALL
        SELECT next.queue, next.tenant FROM lane CROSS JOIN LATERAL (
            SELECT t.queue, t.tenant FROM tasks t
            WHERE t.ready_at_us IS NOT NULL AND (t.queue, t.tenant) > (lane.queue, lane.tenant)
                AND t.queue IS NOT NULL AND t.tenant IS NOT NULL
            ORDER BY t.queue, t.tenant LIMIT 1) AS next
    ), queue AS MATERIALIZED (
        SELECT DISTINCT lane.queue AS name FROM lane UNION SELECT q.name FROM queues q
    )
    SELECT strays.id FROM (
        SELECT stray.id FROM queue CROSS JOIN LATERAL (
            SELECT t.id FROM tasks t WHERE t.queue = queue.name AND t.ready_at_us IS NOT NULL LIMIT $1) AS stray
        WHERE NOT EXISTS (SELECT 1 FROM queues q WHERE q.name = queue.name)
        UNION ALL
        (SELECT t.id FROM tasks t WHERE t.queue IS NULL AND t.ready_at_us IS NOT NULL LIMIT $1)
        UNION ALL
        SELECT stray.id FROM queue CROSS JOIN LATERAL (
            SELECT t.id FROM tasks t WHERE t.queue = queue.name AND t.tenant IS NULL AND t.ready_at_us IS NOT NULL
            LIMIT $1) AS stray
        UNION ALL
        SELECT stray.id FROM lane CROSS JOIN LATERAL (
            SELECT t.id FROM tasks t WHERE t.queue = lane.queue AND t.tenant = lane.tenant AND t.rank IS NULL
                AND t.ready_at_us IS NOT NULL LIMIT $1) AS stray
        UNION ALL
        SELECT stray.id FROM lane CROSS JOIN LATERAL (
            SELECT t.id FROM tasks t WHERE t.queue = lane.queue AND t.tenant = lane.tenant AND t.rank > 2147483647::bigint
                AND t.ready_at_us IS NOT NULL LIMIT $1) AS stray
        UNION ALL
        SELECT stray.id FROM lane CROSS JOIN LATERAL (
            SELECT t.id FROM tasks t WHERE t.queue = lane.queue AND t.tenant = lane.tenant AND t.rank < -2147483648::bigint
                AND t.ready_at_us IS NOT NULL LIMIT $1) AS stray
    ) AS strays LIMIT $1";

pub(super) fn strays(pool: &Pool, limit: i64) -> Result<Vec<TaskId>> {
    let statement = sql(STRAYS).instead(unindexed::LANE, unindexed::STRAYS).bind(limit.max(0));
    pool.read(move |conn| Ok(conn.rows(statement, uuid)?.into_iter().map(TaskId).collect()))
}

/// A table's columns with their types, in the words of the database.
pub(super) fn columns_of(conn: &mut Conn<'_>, table: &str) -> Result<Vec<(String, String)>> {
    let statement = sql("SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
        WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum");
    let columns = conn.rows(statement.bind(table), |row| Ok((text(row)?, text(row)?)))?;
    match columns.is_empty() {
        true => Err(StoreError::Internal(format!("the table {table} has no columns"))),
        false => Ok(columns),
    }
}
