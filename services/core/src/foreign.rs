//! What this build makes of a row that another release may have written.
//!
//! A row is read whole, as names and raw values, and every column is judged by itself. A column that running the task does
//! not need is ignored when it cannot be read; a required one, or a reference to something that is not there, makes the row
//! unreadable; a number that a later release may have given a meaning makes it too new. The fast paths read typed columns
//! and leave out what they cannot read: this is what then decides about it, and the only place that does.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::task::State;

/// A value as a database gives it, whatever the column's type was meant to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Another number.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes; also text that is not UTF-8.
    Bytes(Vec<u8>),
    /// Something of a type that no column ever had, as the database writes it.
    Other(String),
}

/// A row: its columns by name, those of later releases too.
pub type Row = BTreeMap<String, Value>;

/// A column, or a field of the spec (`spec.timeout`), that does not hold what this build expects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Defect {
    /// Which.
    pub column: String,
    /// What is wrong with it.
    pub error: String,
}

impl std::fmt::Display for Defect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.column, self.error)
    }
}

impl Defect {
    /// A defect of a column.
    pub fn new(column: impl Into<String>, error: impl Into<String>) -> Self {
        Self { column: column.into(), error: error.into() }
    }
}

/// What this build can do with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Act on it.
    Readable,
    /// Leave it to a later release.
    TooNew(Defect),
    /// Nothing; it is to be set aside.
    Unreadable(Defect),
}

/// A row as judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What can be done with it.
    pub verdict: Verdict,
    /// What is ignored of it.
    pub ignored: Vec<Defect>,
}

/// What a reader of specs makes of one: the defect that makes it unreadable, if any, and what is ignored of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecReading {
    /// Why it cannot be run.
    pub defect: Option<Defect>,
    /// Fields that cannot be read and are not needed.
    pub ignored: Vec<Defect>,
}

/// Whether the session that a row names is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// It is live: the task is its business until it ends.
    Live,
    /// It is over; what it held is on its way back.
    Over,
    /// There is no such session, or the row names none.
    Gone,
}

/// What is known of the things that a row refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct References {
    /// Whether its queue exists.
    pub queue: bool,
    /// Its session.
    pub holder: Holder,
}

/// Judges a live task's row for a build that reads formats up to `newest`. `spec` judges the spec's bytes.
pub fn judge(row: &Row, references: References, newest: i16, spec: &dyn Fn(&[u8]) -> SpecReading) -> Reading {
    let mut ignored = optional(row);
    let verdict = match required(row, references, newest) {
        Ok(bytes) => {
            let reading = spec(bytes);
            ignored.extend(reading.ignored);
            reading.defect.map_or(Verdict::Readable, Verdict::Unreadable)
        }
        Err(verdict) => verdict,
    };
    Reading { verdict, ignored }
}

/// The columns that a task runs without; what the spec says as well is among them.
pub const OPTIONAL: [&str; 13] = [
    "executor",
    "exclusive",
    "format",
    "resource_class",
    "timeout_ms",
    "trace_context",
    "created_at_us",
    "expires_at_us",
    "dispatched_at_us",
    "started_at_us",
    "failures",
    "losses",
    "unsupported",
];

fn optional(row: &Row) -> Vec<Defect> {
    let text = |name: &str| text(row, name).map(drop);
    let number = |name: &str| integer::<i64>(row, name).map(drop);
    let maybe = |name: &str| match row.get(name) {
        None | Some(Value::Null) => Ok(()),
        Some(_) => integer::<i64>(row, name).map(drop),
    };
    let small = |name: &str| integer::<i32>(row, name).map(drop);
    let read = [
        text("executor"),
        boolean(row, "exclusive").map(drop),
        small("format"),
        text("resource_class"),
        text("trace_context"),
        maybe("timeout_ms"),
        number("created_at_us"),
        maybe("expires_at_us"),
        maybe("dispatched_at_us"),
        maybe("started_at_us"),
        small("failures"),
        small("losses"),
        small("unsupported"),
    ];
    read.into_iter().filter_map(Result::err).collect()
}

fn required(row: &Row, references: References, newest: i16) -> Result<&[u8], Verdict> {
    let unreadable = Verdict::Unreadable;
    // First of all, who may judge: what a later release means by the other columns is not known here.
    let min_reader: i16 = integer(row, "min_reader").map_err(unreadable)?;
    if min_reader > newest {
        let error =
            format!("only a release that reads format {min_reader} may act on this row; this one reads up to {newest}");
        return Err(Verdict::TooNew(Defect::new("min_reader", error)));
    }
    let state: i32 = integer(row, "state").map_err(unreadable)?;
    let state = i16::try_from(state)
        .ok()
        .and_then(|number| State::try_from(number).ok())
        .ok_or_else(|| Verdict::TooNew(Defect::new("state", format!("state {state} is not known to this build"))))?;
    uuid(row, "id").map_err(unreadable)?;
    name(row, "tenant").map_err(unreadable)?;
    name(row, "queue").map_err(unreadable)?;
    integer::<i32>(row, "rank").map_err(unreadable)?;
    text(row, "concurrency_key").map_err(unreadable)?;
    integer::<i32>(row, "attempt").map_err(unreadable)?;
    life(row, state).map_err(unreadable)?;
    if !references.queue {
        return Err(unreadable(Defect::new("queue", "names a queue that does not exist")));
    }
    if state.is_held() && references.holder == Holder::Gone {
        return Err(unreadable(Defect::new("session_id", "names a session that does not exist")));
    }
    bytes(row, "spec").map_err(unreadable)
}

/// What a state requires of its columns: without it nothing would ever find the row.
fn life(row: &Row, state: State) -> Result<(), Defect> {
    match state {
        State::Scheduled => integer::<i64>(row, "wake_at_us").map(drop),
        State::Queued => integer::<i64>(row, "ready_at_us").map(drop),
        state if state.is_held() => {
            uuid(row, "session_id")?;
            integer::<i64>(row, "token").map(drop)
        }
        _ => Err(Defect::new("state", format!("{state} is a state of finished tasks, and the task is not among them"))),
    }
}

// ── Values ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Reads a whole number, also out of text: a release may have changed the column's type in either direction.
pub fn integer<T: TryFrom<i64>>(row: &Row, column: &str) -> Result<T, Defect> {
    let number = match value(row, column)? {
        Value::Integer(number) => Some(*number),
        Value::Text(text) => text.trim().parse().ok(),
        Value::Real(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
        _ => None,
    };
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| wrong(row, column, "a whole number of its range"))
}

/// Reads text, also out of a number.
pub fn text(row: &Row, column: &str) -> Result<String, Defect> {
    match value(row, column)? {
        Value::Text(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        _ => Err(wrong(row, column, "text")),
    }
}

/// Reads true or false, also out of 0 and 1 and the words.
pub fn boolean(row: &Row, column: &str) -> Result<bool, Defect> {
    match value(row, column)? {
        Value::Bool(value) => Ok(*value),
        Value::Integer(0) => Ok(false),
        Value::Integer(1) => Ok(true),
        Value::Text(text) if matches!(text.as_str(), "true" | "t") => Ok(true),
        Value::Text(text) if matches!(text.as_str(), "false" | "f") => Ok(false),
        _ => Err(wrong(row, column, "true or false")),
    }
}

/// Reads bytes.
pub fn bytes<'r>(row: &'r Row, column: &str) -> Result<&'r [u8], Defect> {
    match value(row, column)? {
        Value::Bytes(bytes) => Ok(bytes),
        _ => Err(wrong(row, column, "bytes")),
    }
}

/// Reads a UUID, as its 16 bytes or in its usual spelling.
pub fn uuid(row: &Row, column: &str) -> Result<Uuid, Defect> {
    let read = match value(row, column)? {
        Value::Bytes(bytes) => Uuid::from_slice(bytes).ok(),
        Value::Text(text) => Uuid::try_parse(text).ok(),
        _ => None,
    };
    read.ok_or_else(|| wrong(row, column, "a UUID"))
}

fn name(row: &Row, column: &str) -> Result<String, Defect> {
    match text(row, column)? {
        name if name.is_empty() => Err(Defect::new(column, "is empty")),
        name => Ok(name),
    }
}

fn value<'r>(row: &'r Row, column: &str) -> Result<&'r Value, Defect> {
    match row.get(column) {
        None => Err(Defect::new(column, "is missing")),
        Some(Value::Null) => Err(Defect::new(column, "is null")),
        Some(value) => Ok(value),
    }
}

fn wrong(row: &Row, column: &str, expected: &str) -> Defect {
    let found = match row.get(column) {
        None | Some(Value::Null) => "nothing".to_owned(),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Integer(number)) => number.to_string(),
        Some(Value::Real(number)) => number.to_string(),
        Some(Value::Text(text)) => format!("the text {text:.40?}"),
        Some(Value::Bytes(bytes)) => format!("{} bytes", bytes.len()),
        Some(Value::Other(text)) => format!("{text:.40}"),
    };
    Defect::new(column, format!("holds {found}, not {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: References = References { queue: true, holder: Holder::Gone };

    fn any_spec(_: &[u8]) -> SpecReading {
        SpecReading::default()
    }

    fn queued() -> Row {
        let integer = |number| Value::Integer(number);
        let text = |text: &str| Value::Text(text.into());
        [
            ("id", text("0198c0de-0000-7000-8000-000000000001")),
            ("tenant", text("default")),
            ("queue", text("default")),
            ("state", integer(2)),
            ("rank", integer(0)),
            ("executor", text("process")),
            ("resource_class", text("")),
            ("concurrency_key", text("")),
            ("exclusive", Value::Bool(false)),
            ("timeout_ms", Value::Null),
            ("attempt", integer(0)),
            ("failures", integer(0)),
            ("losses", integer(0)),
            ("unsupported", integer(0)),
            ("created_at_us", integer(1)),
            ("ready_at_us", integer(1)),
            ("trace_context", text("")),
            ("format", integer(1)),
            ("min_reader", integer(1)),
            ("spec", Value::Bytes(vec![1])),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    fn with(column: &str, value: Value) -> Reading {
        let mut row = queued();
        row.insert(column.into(), value);
        judge(&row, FINE, 1, &any_spec)
    }

    fn unreadable(reading: &Reading) -> Option<&str> {
        match &reading.verdict {
            Verdict::Unreadable(defect) => Some(&defect.column),
            _ => None,
        }
    }

    #[test]
    fn a_row_of_this_release_is_readable_and_so_is_one_with_columns_of_a_later_one() {
        assert_eq!(
            with("colour", Value::Text("red".into())),
            Reading { verdict: Verdict::Readable, ignored: Vec::new() }
        );
    }

    #[test]
    fn every_required_column_that_is_null_or_missing_makes_the_row_unreadable_and_names_it() {
        let required = [
            "id",
            "tenant",
            "queue",
            "state",
            "rank",
            "concurrency_key",
            "attempt",
            "ready_at_us",
            "min_reader",
            "spec",
        ];
        for column in required {
            assert_eq!(unreadable(&with(column, Value::Null)), Some(column));
            let mut row = queued();
            row.remove(column);
            assert_eq!(unreadable(&judge(&row, FINE, 1, &any_spec)), Some(column));
        }
    }

    #[test]
    fn an_optional_column_that_cannot_be_read_is_ignored_and_named() {
        for column in OPTIONAL {
            let reading = with(column, Value::Real(0.5));
            assert_eq!(reading.verdict, Verdict::Readable, "{column}");
            assert_eq!(reading.ignored.iter().map(|defect| defect.column.as_str()).collect::<Vec<_>>(), [column]);
        }
    }

    #[test]
    fn a_type_that_was_widened_or_became_text_is_read() {
        assert_eq!(with("rank", Value::Text("-7".into())).verdict, Verdict::Readable);
        assert_eq!(with("exclusive", Value::Integer(1)).verdict, Verdict::Readable);
        assert_eq!(unreadable(&with("rank", Value::Text("high".into()))), Some("rank"));
        assert_eq!(unreadable(&with("rank", Value::Integer(1 << 40))), Some("rank"));
    }

    #[test]
    fn what_a_later_release_may_have_meant_is_too_new_whatever_else_is_wrong() {
        assert!(
            matches!(with("state", Value::Integer(42)).verdict, Verdict::TooNew(defect) if defect.column == "state")
        );
        let mut row = queued();
        row.insert("min_reader".into(), Value::Integer(2));
        row.insert("tenant".into(), Value::Null);
        assert!(matches!(judge(&row, FINE, 1, &any_spec).verdict, Verdict::TooNew(_)));
        assert_eq!(unreadable(&judge(&row, FINE, 2, &any_spec)), Some("tenant"));
    }

    #[test]
    fn a_broken_reference_makes_the_row_unreadable() {
        let no_queue = References { queue: false, holder: Holder::Gone };
        assert_eq!(unreadable(&judge(&queued(), no_queue, 1, &any_spec)), Some("queue"));
        let mut held = queued();
        held.insert("state".into(), Value::Integer(4));
        held.insert("token".into(), Value::Integer(1));
        held.insert("session_id".into(), Value::Bytes(vec![1; 16]));
        assert_eq!(unreadable(&judge(&held, FINE, 1, &any_spec)), Some("session_id"));
        for holder in [Holder::Live, Holder::Over] {
            let references = References { queue: true, holder };
            assert_eq!(judge(&held, references, 1, &any_spec).verdict, Verdict::Readable);
        }
    }

    #[test]
    fn a_row_that_nothing_would_find_is_unreadable() {
        for (state, column) in [(1, "wake_at_us"), (3, "session_id"), (6, "state")] {
            assert_eq!(unreadable(&with("state", Value::Integer(state))), Some(column));
        }
    }

    #[test]
    fn the_spec_is_judged_last_and_by_its_own_reader() {
        let broken = |_: &[u8]| SpecReading {
            defect: Some(Defect::new("spec.payload", "is cut short")),
            ignored: vec![Defect::new("spec.labels", "has another type")],
        };
        let reading = judge(&queued(), FINE, 1, &broken);
        assert_eq!(unreadable(&reading), Some("spec.payload"));
        assert_eq!(reading.ignored.len(), 1);
    }
}
