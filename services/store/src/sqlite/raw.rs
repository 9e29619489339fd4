//! Rows of tasks as SQLite holds them: every column by its name, those of later releases too, and whatever is in it. They go
//! out of the table of tasks and back into it, and in between they are kept as JSON, without a change of a byte.

use std::collections::BTreeMap;

use diesel::{
    prelude::*,
    sql_types::{BigInt, Binary, Double, Nullable, Text},
    sqlite::Sqlite,
};
use millrace_core::{
    foreign::{Holder, References, Row},
    id::TaskId,
};
use serde_json::{Value as Json, json};

use super::{
    failure::Outcome,
    reading::{all_rows, named_rows},
    statement::{Statement, sql},
    values::Cell,
};

/// A row's columns.
pub(super) type Cells = BTreeMap<String, Cell>;

/// A live row, whole.
#[derive(Debug)]
pub(super) struct RawTask {
    pub(super) id: TaskId,
    pub(super) cells: Cells,
    pub(super) references: References,
}

impl RawTask {
    /// The row as it is judged.
    pub(super) fn row(&self) -> Row {
        row_of(&self.cells)
    }
}

/// Columns as they are judged.
pub(super) fn row_of(cells: &Cells) -> Row {
    cells.iter().map(|(name, cell)| (name.clone(), cell.value())).collect()
}

macro_rules! select_raw {
    ($rest:literal) => {
        concat!(
            "SELECT EXISTS (SELECT 1 FROM queues WHERE queues.name = t.queue) AS queue_is_known, \
                 (SELECT sessions.state FROM sessions WHERE sessions.id = t.session_id) AS holder, t.* \
             FROM tasks t ",
            $rest
        )
    };
}

/// A live row.
pub(super) fn live(connection: &mut SqliteConnection, id: TaskId) -> Outcome<Option<RawTask>> {
    Ok(raw_tasks(connection, sql(select_raw!("WHERE t.id = ?")).uuid(&id.0))?.pop())
}

/// Live rows after an id, in the order of the ids. Rows whose id is not one are not among them.
pub(super) fn live_after(
    connection: &mut SqliteConnection,
    after: Option<TaskId>,
    limit: i64,
) -> Outcome<Vec<RawTask>> {
    // The empty blob stands before every id.
    let after = after.map_or(Vec::new(), |id| id.0.as_bytes().to_vec());
    let query =
        sql(select_raw!("WHERE t.id > ? AND typeof(t.id) = 'blob' AND length(t.id) = 16 ORDER BY t.id LIMIT ?"))
            .blob(after.as_slice())
            .integer(limit);
    raw_tasks(connection, query)
}

fn raw_tasks(connection: &mut SqliteConnection, query: Statement<'_>) -> Outcome<Vec<RawTask>> {
    Ok(named_rows(connection, query)?.into_iter().filter_map(raw_task).collect())
}

fn raw_task(columns: Vec<(String, Cell)>) -> Option<RawTask> {
    let mut columns = columns.into_iter();
    let (queue, holder) = (columns.next()?.1, columns.next()?.1);
    let cells: Cells = columns.collect();
    let Some(Cell::Blob(id)) = cells.get("id") else { return None };
    let id = TaskId(uuid::Uuid::from_slice(id).ok()?);
    let holder = match holder {
        Cell::Null => Holder::Gone,
        Cell::Integer(state) if state == i64::from(super::schema::SESSION_LIVE) => Holder::Live,
        _ => Holder::Over,
    };
    Some(RawTask { id, cells, references: References { queue: queue == Cell::Integer(1), holder } })
}

/// A table's columns with their declared types.
pub(super) fn columns_of(connection: &mut SqliteConnection, table: &str) -> Outcome<Vec<(String, String)>> {
    let query = sql("SELECT name, type FROM pragma_table_info(?)").text(table);
    Ok(all_rows(connection, query, |row| Ok((row.text("name")?, row.text("type")?)))?)
}

/// Puts a row among the live tasks. Columns that the table does not have any more stay behind; those that the row does not
/// have get their defaults.
pub(super) fn insert(connection: &mut SqliteConnection, table: &[(String, String)], cells: &Cells) -> Outcome<()> {
    let values: Vec<(&str, &Cell)> =
        table.iter().filter_map(|(name, _)| Some((name.as_str(), cells.get(name)?))).collect();
    let names: Vec<String> = values.iter().map(|(name, _)| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    let places: Vec<&str> = values.iter().map(|(_, cell)| place(cell)).collect();
    let text = format!("INSERT INTO tasks ({}) VALUES ({})", names.join(", "), places.join(", "));
    let mut query = diesel::sql_query(text).into_boxed::<Sqlite>();
    for (_, cell) in values {
        query = match cell {
            Cell::Null => query.bind::<Nullable<BigInt>, _>(None::<i64>),
            Cell::Integer(number) => query.bind::<BigInt, _>(*number),
            Cell::Real(number) => query.bind::<Double, _>(*number),
            Cell::Text(text) => query.bind::<Text, _>(text.as_str()),
            Cell::BadText(bytes) | Cell::Blob(bytes) => query.bind::<Binary, _>(bytes.as_slice()),
        };
    }
    query.execute(connection)?;
    Ok(())
}

fn place(cell: &Cell) -> &'static str {
    match cell {
        Cell::BadText(_) => "CAST(? AS TEXT)",
        _ => "?",
    }
}

// ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Columns as a JSON object. What JSON has no form for is an object of one member: `blob`, or `text` that is not UTF-8, in
/// hexadecimal, and `real` for numbers that would not come back the same.
pub(super) fn to_json(cells: &Cells) -> String {
    cells.iter().map(|(name, cell)| (name.clone(), json_of(cell))).collect::<Json>().to_string()
}

fn json_of(cell: &Cell) -> Json {
    match cell {
        Cell::Null => Json::Null,
        Cell::Integer(number) => json!(number),
        Cell::Real(number) => match serde_json::from_str(&json!(number).to_string()) {
            Ok(back) if Some(*number) == back => json!(number),
            _ => json!({ "real": number.to_string() }),
        },
        Cell::Text(text) => json!(text),
        Cell::BadText(bytes) => json!({ "text": hex(bytes) }),
        Cell::Blob(bytes) => json!({ "blob": hex(bytes) }),
    }
}

/// Columns out of a JSON object; the error says why they are not.
pub(super) fn from_json(text: &str) -> Result<Cells, String> {
    let object: serde_json::Map<String, Json> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(object.into_iter().map(|(name, json)| (name, cell_of(json))).collect())
}

fn cell_of(json: Json) -> Cell {
    match json {
        Json::Null => Cell::Null,
        Json::Bool(value) => Cell::Integer(value.into()),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Cell::Integer(number),
            None => number.as_f64().map_or(Cell::Text(number.to_string()), Cell::Real),
        },
        Json::String(text) => Cell::Text(text),
        Json::Array(_) => Cell::Text(json.to_string()),
        Json::Object(object) => special(&object).unwrap_or_else(|| Cell::Text(Json::Object(object).to_string())),
    }
}

fn special(object: &serde_json::Map<String, Json>) -> Option<Cell> {
    let (name, value) = object.iter().next().filter(|_| object.len() == 1)?;
    let value = value.as_str()?;
    match name.as_str() {
        "blob" => unhex(value).map(Cell::Blob),
        "text" => unhex(value).map(Cell::BadText),
        "real" => value.parse().ok().map(Cell::Real),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.as_bytes().chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_as_json_comes_back_the_same() {
        let cells = [
            Cell::Null,
            Cell::Integer(i64::MIN),
            Cell::Integer(i64::MAX),
            Cell::Real(0.1),
            Cell::Real(-5.0),
            Cell::Real(f64::MAX),
            Cell::Real(f64::MIN_POSITIVE),
            Cell::Real(f64::INFINITY),
            Cell::Text(String::new()),
            Cell::Text("{\"blob\":\"00\"} \0 ü".into()),
            Cell::BadText(vec![0xff, 0]),
            Cell::Blob(Vec::new()),
            Cell::Blob((0..=255).collect()),
        ];
        let cells: Cells = cells.into_iter().enumerate().map(|(number, cell)| (format!("c{number}"), cell)).collect();
        assert_eq!(from_json(&to_json(&cells)), Ok(cells));
    }

    #[test]
    fn json_that_is_no_row_says_so() {
        for text in ["", "[]", "7", "{"] {
            assert!(from_json(text).is_err(), "{text}");
        }
    }
}
