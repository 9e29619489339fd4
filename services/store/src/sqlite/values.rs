//! Rows read column by column.
//!
//! A column of SQLite may hold a value of any type, and SQLite turns what it holds into what is asked for: a word in a
//! column of numbers reads as 0. So every value is asked for its own type first, and a row with a wrong one is an error
//! of that row alone.

use std::collections::{BTreeMap, VecDeque};

use diesel::{
    connection::{DefaultLoadingMode, LoadConnection},
    expression::QueryMetadata,
    query_builder::{AsQuery, QueryFragment, QueryId},
    result::QueryResult,
    row::{Field, Row},
    sqlite::{Sqlite, SqliteConnection, SqliteType, SqliteValue},
};
use millrace_core::{
    id::{MemberId, SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    task::State,
};
use uuid::Uuid;

use super::failure::Outcome;

/// A value that is not what its column is for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column} holds {found}, not {expected}")]
pub(super) struct BadColumn {
    /// The column.
    pub(super) column: &'static str,
    /// What should be there.
    pub(super) expected: &'static str,
    /// What is there.
    pub(super) found: String,
}

/// A value as SQLite keeps it.
#[derive(Debug)]
enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    /// Text that is not UTF-8.
    BadText,
    Blob(Vec<u8>),
}

impl Cell {
    fn read(value: Option<SqliteValue<'_, '_, '_>>) -> Self {
        let Some(mut value) = value else { return Cell::Null };
        match value.value_type() {
            None => Cell::Null,
            Some(SqliteType::Integer | SqliteType::SmallInt | SqliteType::Long) => Cell::Integer(value.read_long()),
            Some(SqliteType::Float | SqliteType::Double) => Cell::Real(value.read_double()),
            Some(SqliteType::Binary) => Cell::Blob(value.read_blob().to_vec()),
            Some(SqliteType::Text) => text(value),
        }
    }

    fn describe(&self) -> String {
        match self {
            Cell::Null => "nothing".into(),
            Cell::Integer(number) => format!("the integer {number}"),
            Cell::Real(number) => format!("the number {number}"),
            Cell::Text(text) => format!("text of {} bytes", text.len()),
            Cell::BadText => "text that is not UTF-8".into(),
            Cell::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
        }
    }
}

fn text(mut value: SqliteValue<'_, '_, '_>) -> Cell {
    let text = value.read_text();
    // Diesel puts replacement characters where text is not UTF-8; only then is it worth reading the bytes.
    if !text.contains(char::REPLACEMENT_CHARACTER) {
        return Cell::Text(text.to_owned());
    }
    String::from_utf8(value.read_blob().to_vec()).map_or(Cell::BadText, Cell::Text)
}

/// The values of a row, taken in the order of its select clause. The names are for the errors.
#[derive(Debug, Default)]
pub(super) struct Columns {
    cells: VecDeque<Cell>,
}

impl Columns {
    fn next(&mut self) -> Cell {
        self.cells.pop_front().unwrap_or(Cell::Null)
    }

    pub(super) fn optional_integer(&mut self, column: &'static str) -> Result<Option<i64>, BadColumn> {
        match self.next() {
            Cell::Integer(number) => Ok(Some(number)),
            Cell::Null => Ok(None),
            other => Err(BadColumn { column, expected: "an integer", found: other.describe() }),
        }
    }

    pub(super) fn integer(&mut self, column: &'static str) -> Result<i64, BadColumn> {
        present(column, "an integer", self.optional_integer(column)?)
    }

    /// An integer of a narrower type.
    pub(super) fn narrow<T: TryFrom<i64>>(&mut self, column: &'static str) -> Result<T, BadColumn> {
        let number = self.integer(column)?;
        narrowed(column, number)
    }

    pub(super) fn optional_narrow<T: TryFrom<i64>>(&mut self, column: &'static str) -> Result<Option<T>, BadColumn> {
        self.optional_integer(column)?.map(|number| narrowed(column, number)).transpose()
    }

    pub(super) fn boolean(&mut self, column: &'static str) -> Result<bool, BadColumn> {
        match self.integer(column)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(BadColumn { column, expected: "0 or 1", found: Cell::Integer(other).describe() }),
        }
    }

    pub(super) fn optional_text(&mut self, column: &'static str) -> Result<Option<String>, BadColumn> {
        match self.next() {
            Cell::Text(text) => Ok(Some(text)),
            Cell::Null => Ok(None),
            other => Err(BadColumn { column, expected: "text", found: other.describe() }),
        }
    }

    pub(super) fn text(&mut self, column: &'static str) -> Result<String, BadColumn> {
        present(column, "text", self.optional_text(column)?)
    }

    pub(super) fn optional_blob(&mut self, column: &'static str) -> Result<Option<Vec<u8>>, BadColumn> {
        match self.next() {
            Cell::Blob(bytes) => Ok(Some(bytes)),
            Cell::Null => Ok(None),
            other => Err(BadColumn { column, expected: "a blob", found: other.describe() }),
        }
    }

    pub(super) fn blob(&mut self, column: &'static str) -> Result<Vec<u8>, BadColumn> {
        present(column, "a blob", self.optional_blob(column)?)
    }

    pub(super) fn optional_uuid(&mut self, column: &'static str) -> Result<Option<Uuid>, BadColumn> {
        let Some(bytes) = self.optional_blob(column)? else { return Ok(None) };
        Uuid::from_slice(&bytes).map(Some).map_err(|_| BadColumn {
            column,
            expected: "the 16 bytes of a UUID",
            found: Cell::Blob(bytes).describe(),
        })
    }

    pub(super) fn uuid(&mut self, column: &'static str) -> Result<Uuid, BadColumn> {
        present(column, "the 16 bytes of a UUID", self.optional_uuid(column)?)
    }

    pub(super) fn task_id(&mut self, column: &'static str) -> Result<TaskId, BadColumn> {
        self.uuid(column).map(TaskId)
    }

    pub(super) fn session_id(&mut self, column: &'static str) -> Result<SessionId, BadColumn> {
        self.uuid(column).map(SessionId)
    }

    pub(super) fn optional_session_id(&mut self, column: &'static str) -> Result<Option<SessionId>, BadColumn> {
        self.optional_uuid(column).map(|id| id.map(SessionId))
    }

    pub(super) fn member_id(&mut self, column: &'static str) -> Result<MemberId, BadColumn> {
        self.uuid(column).map(MemberId)
    }

    pub(super) fn token(&mut self, column: &'static str) -> Result<Token, BadColumn> {
        self.integer(column).map(Token)
    }

    pub(super) fn optional_token(&mut self, column: &'static str) -> Result<Option<Token>, BadColumn> {
        self.optional_integer(column).map(|token| token.map(Token))
    }

    /// A JSON array of texts.
    pub(super) fn list(&mut self, column: &'static str) -> Result<Vec<String>, BadColumn> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|_| not_json(column, "a JSON array of texts", &text))
    }

    /// A JSON object of texts.
    pub(super) fn map(&mut self, column: &'static str) -> Result<BTreeMap<String, String>, BadColumn> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|_| not_json(column, "a JSON object of texts", &text))
    }

    /// A state that this build knows; another is an error, never a default.
    pub(super) fn state(&mut self, column: &'static str) -> Result<State, BadColumn> {
        let number: i16 = self.narrow(column)?;
        State::try_from(number).map_err(|_| BadColumn {
            column,
            expected: "a state that this build knows",
            found: Cell::Integer(number.into()).describe(),
        })
    }

    /// A kind of outcome that this build knows.
    pub(super) fn outcome_kind(&mut self, column: &'static str) -> Result<OutcomeKind, BadColumn> {
        let number: i16 = self.narrow(column)?;
        OutcomeKind::try_from(number).map_err(|_| BadColumn {
            column,
            expected: "an outcome that this build knows",
            found: Cell::Integer(number.into()).describe(),
        })
    }
}

/// A list as its column holds it.
pub(super) fn list_json(list: &[String]) -> String {
    serde_json::Value::from(list.to_vec()).to_string()
}

/// A map as its column holds it.
pub(super) fn map_json(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect::<serde_json::Value>().to_string()
}

fn not_json(column: &'static str, expected: &'static str, text: &str) -> BadColumn {
    BadColumn { column, expected, found: format!("text of {} bytes", text.len()) }
}

fn present<T>(column: &'static str, expected: &'static str, value: Option<T>) -> Result<T, BadColumn> {
    value.ok_or_else(|| BadColumn { column, expected, found: Cell::Null.describe() })
}

fn narrowed<T: TryFrom<i64>>(column: &'static str, number: i64) -> Result<T, BadColumn> {
    T::try_from(number).map_err(|_| BadColumn {
        column,
        expected: "an integer of its range",
        found: Cell::Integer(number).describe(),
    })
}

/// Rows of a batch read.
#[derive(Debug)]
pub(super) struct Rows<T> {
    /// Those that could be read.
    pub(super) rows: Vec<T>,
    /// Whether the query had no more.
    pub(super) exhausted: bool,
}

/// Reads up to `limit` rows that can be decoded and leaves out those that cannot: they neither fail nor crowd out their
/// neighbours.
pub(super) fn good_rows<Q, T>(
    connection: &mut SqliteConnection,
    query: Q,
    limit: i64,
    mut decode: impl FnMut(&mut Columns) -> Result<T, BadColumn>,
) -> QueryResult<Rows<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    let limit = usize::try_from(limit).unwrap_or(0);
    let mut rows = Vec::new();
    let mut exhausted = true;
    each_row(connection, query, |columns| {
        if rows.len() == limit {
            exhausted = false;
            return false;
        }
        match decode(columns) {
            Ok(row) => rows.push(row),
            Err(bad) => tracing::debug!(error = %bad, "a row that cannot be read was left out"),
        }
        true
    })?;
    Ok(Rows { rows, exhausted })
}

/// Reads every row that can be decoded, of a query that is bounded itself.
pub(super) fn all_rows<Q, T>(
    connection: &mut SqliteConnection,
    query: Q,
    decode: impl FnMut(&mut Columns) -> Result<T, BadColumn>,
) -> QueryResult<Vec<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    good_rows(connection, query, i64::MAX, decode).map(|read| read.rows)
}

/// Reads the first row; one that cannot be decoded is an error.
pub(super) fn one_row<Q, T>(
    connection: &mut SqliteConnection,
    query: Q,
    decode: impl FnOnce(&mut Columns) -> Result<T, BadColumn>,
) -> Outcome<Option<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    let mut decode = Some(decode);
    let mut found = None;
    each_row(connection, query, |columns| {
        found = decode.take().map(|decode| decode(columns));
        false
    })?;
    Ok(found.transpose()?)
}

/// Reads the first row that can be decoded.
pub(super) fn good_row<Q, T>(
    connection: &mut SqliteConnection,
    query: Q,
    decode: impl FnMut(&mut Columns) -> Result<T, BadColumn>,
) -> QueryResult<Option<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    good_rows(connection, query, 1, decode).map(|mut read| read.rows.pop())
}

/// Steps through a query until `visit` returns false.
pub(super) fn each_row<Q>(
    connection: &mut SqliteConnection,
    query: Q,
    mut visit: impl FnMut(&mut Columns) -> bool,
) -> QueryResult<()>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    let rows = LoadConnection::<DefaultLoadingMode>::load(connection, query.as_query())?;
    let mut columns = Columns::default();
    for row in rows {
        let row = row?;
        columns.cells.clear();
        columns.cells.extend((0..row.field_count()).map(|index| match row.get(index) {
            Some(field) => Cell::read(field.value()),
            None => Cell::Null,
        }));
        if !visit(&mut columns) {
            break;
        }
    }
    Ok(())
}
