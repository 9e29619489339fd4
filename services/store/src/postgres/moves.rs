//! Moving a task to the finished ones by the names of its columns: for rows that the one statement cannot move, because another
//! release has written, or changed the type of, a column that ending a task does not need.
//!
//! Every value is read as this build means it and written as text, which the database turns into whatever type the column has
//! now; what cannot be read gets its default. An end is never lost for a column that nobody needs any more.

use millrace_core::{
    foreign::{self, Row, Value},
    id::TaskId,
    retry::OutcomeKind,
    task::State,
};
use serde_json::{Map, Value as Json, json};

use super::{
    conn::Conn,
    drift::BOTH,
    foreign::columns_of,
    rows::{now_us, storable},
    sql::sql,
};
use crate::{Outcome, Result};

/// How a task ends.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub(super) state: State,
    pub(super) outcome: Outcome,
    /// What has been spent; the row's own counts stay when they are higher.
    pub(super) failures: i32,
    pub(super) losses: i32,
}

impl Ending {
    /// The end of a task that no attempt ended.
    pub(super) fn without_attempt(state: State, kind: OutcomeKind, message: &str) -> Self {
        let outcome = Outcome {
            kind,
            exit_code: None,
            signal: None,
            message: message.to_owned(),
            output_tail: Vec::new(),
            output_bytes: 0,
            started_at_us: None,
            ended_at_us: None,
        };
        Self { state, outcome, failures: 0, losses: 0 }
    }
}

/// Writes a finished task out of the columns of a row that is, or was, among the live ones. The caller takes that row away.
pub(super) fn finish(conn: &mut Conn<'_>, task: TaskId, row: &Row, spec: &[u8], ending: &Ending) -> Result<()> {
    let mut values = normal(row);
    values.insert("id".into(), task.to_string().into());
    values.insert("spec".into(), hex(spec).into());
    values.extend(ended(row, ending));
    let columns = columns_of(conn, "finished_tasks")?;
    let names: Vec<&str> = columns
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| values.contains_key(*name) || matches!(*name, "slot" | "finished_at_us"))
        .collect();
    let quoted = |prefix: &str| {
        let quote = |name: &&str| format!("{prefix}\"{}\"", name.replace('"', "\"\""));
        names.iter().map(quote).collect::<Vec<_>>().join(", ")
    };
    let text = format!(
        "INSERT INTO finished_tasks ({}) SELECT {} FROM cluster c, (SELECT {} AS now_us) AS clock
         CROSS JOIN LATERAL jsonb_populate_record(NULL::finished_tasks, $1::text::jsonb
            || jsonb_build_object('slot', (now_us / c.slice_us) % 8, 'finished_at_us', now_us)) AS r
         ON CONFLICT (id, slot) DO NOTHING",
        quoted(""),
        quoted("r."),
        now_us!()
    );
    conn.execute(sql(text).bind(Json::from(values).to_string())).map(drop)
}

fn ended(row: &Row, ending: &Ending) -> Map<String, Json> {
    let Ending { state, outcome, failures, losses } = ending;
    let spent = |name: &str, spent: i32| foreign::integer::<i32>(row, name).unwrap_or(0).max(spent);
    let started = outcome.started_at_us.or(foreign::integer(row, "started_at_us").ok());
    let values = json!({
        "state": *state as i16,
        "outcome": outcome.kind as i16,
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "message": storable(&outcome.message),
        "output_tail": hex(&outcome.output_tail),
        "output_bytes": outcome.output_bytes,
        "started_at_us": started,
        "ended_at_us": outcome.ended_at_us,
        "failures": spent("failures", *failures),
        "losses": spent("losses", *losses),
    });
    match values {
        Json::Object(values) => values,
        _ => Map::new(),
    }
}

/// The columns that both tables have, as this build means them, and those of later releases as they are.
fn normal(row: &Row) -> Map<String, Json> {
    let mut values = Map::new();
    for (name, of) in BOTH.iter().copied() {
        let null = matches!(row.get(name), None | Some(Value::Null));
        let may_be_null = matches!(
            name,
            "timeout_ms" | "token" | "session_id" | "expires_at_us" | "dispatched_at_us" | "started_at_us"
        );
        let value: Json = match of {
            _ if null && may_be_null => Json::Null,
            "text" => foreign::text(row, name).unwrap_or_default().into(),
            "boolean" => foreign::boolean(row, name).unwrap_or_default().into(),
            "uuid" => foreign::uuid(row, name).map_or(Json::Null, |id| id.to_string().into()),
            "bytea" => continue,
            _ => match whole(row, name, of) {
                Ok(number) => number.into(),
                Err(_) if may_be_null => Json::Null,
                Err(_) => 0.into(),
            },
        };
        values.insert(name.to_owned(), value);
    }
    for (name, value) in row {
        if !values.contains_key(name) && !matches!(name.as_str(), "spec" | "ready_at_us" | "wake_at_us") {
            values.insert(name.clone(), json_of(value));
        }
    }
    values
}

/// A whole number that fits its column's own type; one that does not would be refused with the whole row.
fn whole(row: &Row, name: &str, of: &str) -> std::result::Result<i64, foreign::Defect> {
    match of {
        "smallint" => foreign::integer::<i16>(row, name).map(i64::from),
        "integer" => foreign::integer::<i32>(row, name).map(i64::from),
        _ => foreign::integer(row, name),
    }
}

/// A value as PostgreSQL writes it into JSON.
pub(super) fn json_of(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Integer(number) => (*number).into(),
        Value::Real(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bytes(bytes) => hex(bytes).into(),
        Value::Other(text) => serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        // Writing into a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
