//! Rows read column by column.
//!
//! A column of SQLite may hold a value of any type, and SQLite turns what it holds into what is asked for: a word in a
//! column of numbers reads as 0. So every value is asked for its own type first. What means the same is read all the same, as
//! [`millrace_core::foreign`] reads it; what does not is an error of that row alone.

use std::collections::{BTreeMap, VecDeque};

use diesel::sqlite::{SqliteType, SqliteValue};
use millrace_core::{
    READER_RANGE,
    foreign::{self, Bounds, Defect, Value, in_bytes},
    id::{MemberId, SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    task::State,
};
use uuid::Uuid;

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
    /// A later release may know what it means.
    pub(super) later: bool,
}

impl BadColumn {
    fn new(column: &'static str, expected: &'static str, found: &Cell) -> Self {
        Self { column, expected, found: found.describe(), later: false }
    }

    /// A number outside of what the column can mean.
    pub(super) fn outside(column: &'static str, bounds: &Bounds, number: impl Into<i64>) -> Self {
        Self::new(column, bounds.expected, &Cell::Integer(number.into()))
    }

    /// A number to which a later release may have given a meaning.
    pub(super) fn later(column: &'static str, expected: &'static str, number: i16) -> Self {
        Self { later: true, ..Self::new(column, expected, &Cell::Integer(number.into())) }
    }

    /// The same as callers of the store know it.
    pub(super) fn defect(&self) -> Defect {
        Defect::new(self.column, format!("holds {}, not {}", self.found, self.expected))
    }
}

/// A value as SQLite keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    /// Text that is not UTF-8.
    BadText(Vec<u8>),
    Blob(Vec<u8>),
}

impl Cell {
    pub(super) fn read(value: Option<SqliteValue<'_, '_, '_>>) -> Self {
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
            Cell::Text(text) => format!("text of {}", in_bytes(text.len())),
            Cell::BadText(_) => "text that is not UTF-8".into(),
            Cell::Blob(bytes) => format!("a blob of {}", in_bytes(bytes.len())),
        }
    }

    /// The same as every database's values are judged.
    pub(super) fn value(&self) -> Value {
        match self {
            Cell::Null => Value::Null,
            Cell::Integer(number) => Value::Integer(*number),
            Cell::Real(number) => Value::Real(*number),
            Cell::Text(text) => Value::Text(text.clone()),
            Cell::BadText(bytes) | Cell::Blob(bytes) => Value::Bytes(bytes.clone()),
        }
    }
}

fn text(mut value: SqliteValue<'_, '_, '_>) -> Cell {
    let text = value.read_text();
    // Diesel puts replacement characters where text is not UTF-8; only then is it worth reading the bytes.
    if !text.contains(char::REPLACEMENT_CHARACTER) {
        return Cell::Text(text.to_owned());
    }
    String::from_utf8(value.read_blob().to_vec()).map_or_else(|bad| Cell::BadText(bad.into_bytes()), Cell::Text)
}

/// The values of a row, taken in the order of its select clause. The names are for the errors.
#[derive(Debug, Default)]
pub(super) struct Columns {
    cells: VecDeque<Cell>,
    ignored: Vec<Defect>,
}

impl Columns {
    /// Takes the next row.
    pub(super) fn set(&mut self, cells: impl Iterator<Item = Cell>) {
        self.cells.clear();
        self.cells.extend(cells);
        self.ignored.clear();
    }

    /// The task's id, when that is the next column.
    pub(super) fn peek_task_id(&self) -> Option<TaskId> {
        match self.cells.front() {
            Some(Cell::Blob(bytes)) => Uuid::from_slice(bytes).ok().map(TaskId),
            _ => None,
        }
    }

    /// A column without which the row is as good: when it cannot be read that is noted, and its default stands for it.
    pub(super) fn spare<T: Default>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, BadColumn>) -> T {
        read(self).unwrap_or_else(|bad| {
            self.ignored.push(bad.defect());
            T::default()
        })
    }

    /// What has been read without until now.
    pub(super) fn ignored(&self) -> &[Defect] {
        &self.ignored
    }

    /// The next value as it is.
    pub(super) fn next(&mut self) -> Cell {
        self.cells.pop_front().unwrap_or(Cell::Null)
    }

    pub(super) fn optional_integer(&mut self, column: &'static str) -> Result<Option<i64>, BadColumn> {
        let cell = self.next();
        let number = match &cell {
            Cell::Null => return Ok(None),
            Cell::Integer(number) => Some(*number),
            Cell::Text(text) => text.trim().parse().ok(),
            Cell::Real(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
            _ => None,
        };
        number.map(Some).ok_or_else(|| BadColumn::new(column, "an integer", &cell))
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

    /// An integer that lies within bounds.
    pub(super) fn within<T: TryFrom<i64>>(&mut self, column: &'static str, bounds: &Bounds) -> Result<T, BadColumn> {
        present(column, bounds.expected, self.optional_within(column, bounds)?)
    }

    pub(super) fn optional_within<T: TryFrom<i64>>(
        &mut self,
        column: &'static str,
        bounds: &Bounds,
    ) -> Result<Option<T>, BadColumn> {
        let Some(number) = self.optional_integer(column)? else { return Ok(None) };
        let inside = Some(number).filter(|number| bounds.hold(*number)).and_then(|number| T::try_from(number).ok());
        inside.map(Some).ok_or_else(|| BadColumn::outside(column, bounds, number))
    }

    /// A traceparent, or the empty text.
    pub(super) fn traceparent(&mut self, column: &'static str) -> Result<String, BadColumn> {
        let text = self.text(column)?;
        match text.is_empty() || foreign::is_traceparent(&text) {
            true => Ok(text),
            false => Err(BadColumn::new(column, "a W3C traceparent", &Cell::Text(text))),
        }
    }

    pub(super) fn boolean(&mut self, column: &'static str) -> Result<bool, BadColumn> {
        let cell = self.next();
        match &cell {
            Cell::Integer(0) => Ok(false),
            Cell::Integer(1) => Ok(true),
            Cell::Text(text) if matches!(text.as_str(), "true" | "t") => Ok(true),
            Cell::Text(text) if matches!(text.as_str(), "false" | "f") => Ok(false),
            _ => Err(BadColumn::new(column, "0 or 1", &cell)),
        }
    }

    pub(super) fn optional_text(&mut self, column: &'static str) -> Result<Option<String>, BadColumn> {
        match self.next() {
            Cell::Text(text) => Ok(Some(text)),
            Cell::Integer(number) => Ok(Some(number.to_string())),
            Cell::Null => Ok(None),
            other => Err(BadColumn::new(column, "text", &other)),
        }
    }

    pub(super) fn text(&mut self, column: &'static str) -> Result<String, BadColumn> {
        present(column, "text", self.optional_text(column)?)
    }

    pub(super) fn optional_blob(&mut self, column: &'static str) -> Result<Option<Vec<u8>>, BadColumn> {
        match self.next() {
            Cell::Blob(bytes) | Cell::BadText(bytes) => Ok(Some(bytes)),
            Cell::Null => Ok(None),
            other => Err(BadColumn::new(column, "a blob", &other)),
        }
    }

    pub(super) fn blob(&mut self, column: &'static str) -> Result<Vec<u8>, BadColumn> {
        present(column, "a blob", self.optional_blob(column)?)
    }

    pub(super) fn optional_uuid(&mut self, column: &'static str) -> Result<Option<Uuid>, BadColumn> {
        let cell = self.next();
        let id = match &cell {
            Cell::Null => return Ok(None),
            Cell::Blob(bytes) | Cell::BadText(bytes) => Uuid::from_slice(bytes).ok(),
            Cell::Text(text) => Uuid::try_parse(text).ok(),
            _ => None,
        };
        id.map(Some).ok_or_else(|| BadColumn::new(column, "a UUID", &cell))
    }

    pub(super) fn uuid(&mut self, column: &'static str) -> Result<Uuid, BadColumn> {
        present(column, "a UUID", self.optional_uuid(column)?)
    }

    /// The id by which a row is found again: only as its 16 bytes, because nothing else finds it.
    pub(super) fn task_id(&mut self, column: &'static str) -> Result<TaskId, BadColumn> {
        match (self.peek_task_id(), self.next()) {
            (Some(id), _) => Ok(id),
            (None, other) => Err(BadColumn::new(column, "the 16 bytes of a UUID", &other)),
        }
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

    /// A state that this build knows. Another is of a later release, never a default.
    pub(super) fn state(&mut self, column: &'static str) -> Result<State, BadColumn> {
        let number: i32 = self.narrow(column)?;
        let known = i16::try_from(number).ok().and_then(|number| State::try_from(number).ok());
        known.ok_or_else(|| BadColumn {
            later: true,
            ..BadColumn::new(column, "a state that this build knows", &Cell::Integer(number.into()))
        })
    }

    /// A state that is one of these.
    pub(super) fn state_of(&mut self, states: &[State], column: &'static str) -> Result<State, BadColumn> {
        let state = self.state(column)?;
        let expected = "a state in which such a row is";
        match states.contains(&state) {
            true => Ok(state),
            false => Err(BadColumn::new(column, expected, &Cell::Integer((state as i16).into()))),
        }
    }

    /// The oldest reader that may act on a row, when this build is one.
    pub(super) fn own_reader(&mut self, column: &'static str) -> Result<i16, BadColumn> {
        match self.narrow(column)? {
            reader if reader > READER_RANGE.1 => Err(BadColumn::later(column, "a reader of this build's", reader)),
            reader => Ok(reader),
        }
    }

    /// A kind of outcome that this build knows.
    pub(super) fn outcome_kind(&mut self, column: &'static str) -> Result<OutcomeKind, BadColumn> {
        let number: i16 = self.narrow(column)?;
        OutcomeKind::try_from(number).map_err(|_| BadColumn::later(column, "an outcome that this build knows", number))
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
    BadColumn { column, expected, found: format!("text of {}", in_bytes(text.len())), later: false }
}

fn present<T>(column: &'static str, expected: &'static str, value: Option<T>) -> Result<T, BadColumn> {
    value.ok_or_else(|| BadColumn::new(column, expected, &Cell::Null))
}

fn narrowed<T: TryFrom<i64>>(column: &'static str, number: i64) -> Result<T, BadColumn> {
    T::try_from(number).map_err(|_| BadColumn::new(column, "an integer of its range", &Cell::Integer(number)))
}

#[cfg(test)]
mod tests {
    use millrace_core::foreign::Row;

    use super::*;

    /// A value of each sort that a column may hold.
    fn cells() -> Vec<Cell> {
        let texts = [
            "",
            "a",
            " 7 ",
            "-7",
            "1.0",
            "true",
            "f",
            "99999999999",
            "0198c0de-0000-7000-8000-000000000001",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ];
        let mut cells: Vec<Cell> = texts.iter().map(|text| Cell::Text((*text).into())).collect();
        cells.extend([0, 1, 2, -1, 77, 1 << 20, 1 << 40].map(Cell::Integer));
        cells.extend([0.0, 1.0, 0.5, -3.0, 1e18, f64::INFINITY].map(Cell::Real));
        cells.extend([Cell::Null, Cell::BadText(vec![0xff]), Cell::Blob(vec![1; 16]), Cell::Blob(vec![1])]);
        cells
    }

    #[test]
    fn the_fast_paths_read_what_the_judgement_reads() {
        for cell in cells() {
            let row: Row = [("c".to_owned(), cell.value())].into();
            let columns = || {
                let mut columns = Columns::default();
                columns.set([cell.clone()].into_iter());
                columns
            };
            assert_eq!(columns().integer("c").ok(), foreign::integer(&row, "c").ok(), "{cell:?}");
            assert_eq!(columns().narrow::<i16>("c").ok(), foreign::integer(&row, "c").ok(), "{cell:?}");
            assert_eq!(columns().text("c").ok(), foreign::text(&row, "c").ok(), "{cell:?}");
            assert_eq!(columns().traceparent("c").ok(), foreign::traceparent(&row, "c").ok(), "{cell:?}");
            for bounds in [foreign::HELD_ATTEMPT, foreign::MOMENT] {
                let read = columns().within::<i32>("c", &bounds).ok();
                assert_eq!(read, foreign::within(&row, "c", &bounds).ok(), "{cell:?}");
            }
            assert_eq!(columns().boolean("c").ok(), foreign::boolean(&row, "c").ok(), "{cell:?}");
            assert_eq!(columns().uuid("c").ok(), foreign::uuid(&row, "c").ok(), "{cell:?}");
            let bytes = foreign::bytes(&row, "c").ok().map(<[u8]>::to_vec);
            assert_eq!(columns().blob("c").ok(), bytes, "{cell:?}");
        }
    }
}
