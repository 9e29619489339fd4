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
    let within = |name: &str, bounds: &Bounds| within::<i64>(row, name, bounds).map(drop);
    let maybe = |name: &str, bounds: &Bounds| match row.get(name) {
        None | Some(Value::Null) => Ok(()),
        Some(_) => within(name, bounds),
    };
    let read = [
        text("executor"),
        boolean(row, "exclusive").map(drop),
        integer::<i32>(row, "format").map(drop),
        text("resource_class"),
        traceparent(row, "trace_context").map(drop),
        maybe("timeout_ms", &TIMEOUT_MS),
        within("created_at_us", &MOMENT),
        maybe("expires_at_us", &ANY),
        maybe("dispatched_at_us", &MOMENT),
        maybe("started_at_us", &MOMENT),
        within("failures", &COUNT),
        within("losses", &COUNT),
        within("unsupported", &COUNT),
    ];
    read.into_iter().filter_map(Result::err).collect()
}

fn required(row: &Row, references: References, newest: i16) -> Result<&[u8], Verdict> {
    let unreadable = Verdict::Unreadable;
    // First of all, who may judge: what a later release means by the other columns is not known here.
    let min_reader: i16 = integer(row, "min_reader").map_err(unreadable)?;
    if let Some(defect) = reader_defect(min_reader, newest) {
        return Err(Verdict::TooNew(defect));
    }
    let state: i32 = integer(row, "state").map_err(unreadable)?;
    let state = i16::try_from(state)
        .ok()
        .and_then(|number| State::try_from(number).ok())
        .ok_or_else(|| Verdict::TooNew(state_defect(state)))?;
    uuid(row, "id").map_err(unreadable)?;
    name(row, "tenant").map_err(unreadable)?;
    name(row, "queue").map_err(unreadable)?;
    integer::<i32>(row, "rank").map_err(unreadable)?;
    text(row, "concurrency_key").map_err(unreadable)?;
    life(row, state).map_err(unreadable)?;
    within::<i32>(row, "attempt", attempt_in(state)).map_err(unreadable)?;
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
        State::Scheduled => within::<i64>(row, "wake_at_us", &MOMENT).map(drop),
        State::Queued => within::<i64>(row, "ready_at_us", &MOMENT).map(drop),
        state if state.is_held() => {
            uuid(row, "session_id")?;
            integer::<i64>(row, "token").map(drop)
        }
        _ => Err(Defect::new("state", format!("is {state}, which only a finished task can be, and this one is not"))),
    }
}

/// Why a build that reads formats up to `newest` must leave a row alone, if it must.
pub fn reader_defect(min_reader: i16, newest: i16) -> Option<Defect> {
    let error = || format!("is {min_reader}: only a later release may act on this row; this one reads up to {newest}");
    (min_reader > newest).then(|| Defect::new("min_reader", error()))
}

/// A state that no release up to this one has given a row.
pub fn state_defect(state: i32) -> Defect {
    Defect::new("state", format!("is {state}, which this build does not know"))
}

// ── Bounds ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Numbers that mean something in a column. Another one was written by nobody: acting on it would send it on to those who cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    low: i64,
    high: i64,
    /// What a number within them is, for people.
    pub expected: &'static str,
}

impl Bounds {
    /// Whether a number lies within them.
    pub fn hold(&self, number: impl Into<i64>) -> bool {
        (self.low..=self.high).contains(&number.into())
    }
}

/// A number of an attempt, or of attempts, that nothing reaches by trying: a higher one is damage, and is far from the end of its
/// type, where it could not be raised any more.
const MANY: i64 = 1_000_000;

/// The number of the attempt that an orchestrator has: the first is 1.
pub const HELD_ATTEMPT: Bounds = Bounds { low: 1, high: MANY, expected: "the number of an attempt, from 1 to 1000000" };

/// The number of the last attempt while another is still to come.
pub const LAST_ATTEMPT: Bounds =
    Bounds { low: 0, high: MANY - 1, expected: "the number of attempts so far, from 0 to 999999" };

/// How often something happened to a task.
pub const COUNT: Bounds = Bounds { low: 0, high: MANY, expected: "a count from 0 to 1000000" };

/// A moment that every part of the suite can write, in microseconds since 1970: Protobuf's time ends with the year 9999.
pub const MOMENT: Bounds =
    Bounds { low: 0, high: 253_402_300_799_999_999, expected: "a moment between 1970 and 9999, in microseconds" };

/// How long an attempt may run, in milliseconds; Protobuf's spans end with 10,000 years.
pub const TIMEOUT_MS: Bounds =
    Bounds { low: 1, high: 315_576_000_000_000, expected: "a time of 1 to 315576000000000 milliseconds" };

/// Any number. A deadline that lies far away is one: it was missed long ago, or never is.
const ANY: Bounds = Bounds { low: i64::MIN, high: i64::MAX, expected: "a whole number" };

/// The bounds of the number of attempts in a row of this state.
pub fn attempt_in(state: State) -> &'static Bounds {
    if state.is_held() { &HELD_ATTEMPT } else { &LAST_ATTEMPT }
}

/// Whether text is a W3C traceparent (Trace Context, level 1): four fields of lower-case hexadecimal digits, neither of the two ids
/// zero. Anything else is dropped, as the standard asks.
pub fn is_traceparent(text: &str) -> bool {
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |text: &str, length: usize| hex(text, length) && text.bytes().any(|byte| byte != b'0');
    // The length first: nothing is to be split that is a megabyte long.
    let fields: Vec<&str> = if text.len() == 55 { text.split('-').collect() } else { Vec::new() };
    matches!(fields[..], [version, trace, span, flags]
        if hex(version, 2) && version != "ff" && id(trace, 32) && id(span, 16) && hex(flags, 2))
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

/// Reads a whole number that lies within bounds.
pub fn within<T: TryFrom<i64>>(row: &Row, column: &str, bounds: &Bounds) -> Result<T, Defect> {
    let number = integer::<i64>(row, column)?;
    let number = Some(number).filter(|number| bounds.hold(*number)).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| wrong(row, column, bounds.expected))
}

/// Reads a traceparent, or nothing.
pub fn traceparent(row: &Row, column: &str) -> Result<String, Defect> {
    let text = text(row, column)?;
    match text.is_empty() || is_traceparent(&text) {
        true => Ok(text),
        false => Err(wrong(row, column, "a W3C traceparent")),
    }
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
        Some(Value::Text(text)) => format!("the text {:?}", start_of(text)),
        Some(Value::Bytes(bytes)) => in_bytes(bytes.len()),
        Some(Value::Other(text)) => start_of(text),
    };
    Defect::new(column, format!("holds {found}, not {expected}"))
}

/// As much of a text as a sentence can hold.
fn start_of(text: &str) -> String {
    const MOST: usize = 40;
    let start: String = text.chars().take(MOST).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}

/// A number of bytes in words.
pub fn in_bytes(count: usize) -> String {
    if count == 1 { "1 byte".to_owned() } else { format!("{count} bytes") }
}

#[cfg(test)]
mod tests;
