//! Rows that hold what no release of this age would write, which only a test can make: values kept beside the typed task.
//!
//! A value that reads as what its column is for becomes the task's own. One that does not stands in the way of every read of
//! the task if the column is required, and is read as its default if it is not, as in a database.

use std::collections::BTreeMap;

use millrace_core::{
    foreign::{self, Defect, Holder, References, Row, Value, Verdict},
    id::{SessionId, TaskId},
    lease::Token,
    task::State,
};

use super::model::{Model, Task};
use crate::{Foreign, Reader, Result, StoreError};

/// Columns by which a feeder goes from lane to lane: a row with something else there is met by none.
const LANE: [&str; 4] = ["queue", "tenant", "rank", "ready_at_us"];

/// How a task's row reads on the paths that read typed columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readable {
    Yes,
    /// Its state is one of a later release.
    Later(Defect),
    No(Defect),
}

impl Model {
    /// Puts a value into a column of a live task.
    pub(super) fn damage(&mut self, id: TaskId, column: &str, value: Value) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let damage = self.damage.entry(id).or_default();
        damage.insert(column.to_owned(), value);
        apply(task, damage, column);
        // What the task now says by itself is not kept twice.
        if damage.get(column) == typed(task).get(column) {
            damage.remove(column);
        }
        if damage.is_empty() {
            self.damage.remove(&id);
        }
    }

    /// The columns that a call has written do not hold any more what they held.
    pub(super) fn rewritten(&mut self, id: TaskId, columns: &[&str]) {
        if let Some(damage) = self.damage.get_mut(&id) {
            damage.retain(|column, _| !columns.contains(&column.as_str()));
        }
    }

    /// A live task's row, whole.
    pub(super) fn raw(&self, task: &Task) -> Row {
        raw(task, self.damage.get(&task.envelope.id))
    }

    /// Why only a later release may act on a task, if so.
    pub(super) fn too_new(&self, id: TaskId) -> Option<Defect> {
        let task = self.tasks.get(&id).or_else(|| self.finished.get(&id).map(|finished| &finished.task))?;
        let later = || match self.readable(task) {
            Readable::Later(defect) => Some(defect),
            Readable::Yes | Readable::No(_) => None,
        };
        foreign::reader_defect(task.envelope.min_reader, millrace_core::READER_RANGE.1).or_else(later)
    }

    /// How a live task's row reads, its spec and what it refers to aside.
    pub(super) fn readable(&self, task: &Task) -> Readable {
        if !self.damage.contains_key(&task.envelope.id) {
            return Readable::Yes;
        }
        let references = References { queue: true, holder: Holder::Live };
        match foreign::judge(&self.raw(task), references, i16::MAX, &|_| Default::default()).verdict {
            Verdict::Readable => Readable::Yes,
            Verdict::TooNew(defect) => Readable::Later(defect),
            Verdict::Unreadable(defect) => Readable::No(defect),
        }
    }

    /// The same for a batch read, which leaves out what it cannot read and notes it.
    pub(super) fn reads(&self, foreign: &Foreign, task: &Task) -> bool {
        self.defects(task).iter().for_each(|defect| foreign.ignored(&defect.column));
        match self.readable(task) {
            Readable::Yes => return true,
            Readable::Later(_) => foreign.too_new(1),
            Readable::No(defect) => foreign.unreadable(Some(task.envelope.id), &defect),
        }
        false
    }

    /// The same for a read of this one task.
    pub(super) fn must_read(&self, foreign: &Foreign, id: TaskId) -> Result<()> {
        let Some(task) = self.tasks.get(&id) else { return Ok(()) };
        self.reads(foreign, task);
        match self.readable(task) {
            Readable::Yes => Ok(()),
            Readable::Later(defect) | Readable::No(defect) => Err(StoreError::Unreadable(defect)),
        }
    }

    /// What is read without.
    pub(super) fn defects(&self, task: &Task) -> Vec<Defect> {
        match self.damage.contains_key(&task.envelope.id) {
            true => Reader::default().judge(&self.raw(task), References { queue: true, holder: Holder::Live }).ignored,
            false => Vec::new(),
        }
    }

    /// Whether a feeder meets the task in its lane.
    pub(super) fn is_in_a_lane(&self, task: &Task) -> bool {
        let Some(damage) = self.damage.get(&task.envelope.id) else { return true };
        let holds = |column: &&str| match (damage.get(*column), *column) {
            (None, _) => true,
            (Some(_), "queue" | "tenant") => foreign::text(damage, column).is_ok(),
            (Some(_), "rank") => foreign::integer::<i32>(damage, column).is_ok(),
            (Some(_), _) => foreign::integer::<i64>(damage, column).is_ok(),
        };
        LANE.iter().all(holds)
    }

    /// What is known of the things that a live task's row refers to.
    pub(super) fn references(&self, row: &Row) -> References {
        let queue = foreign::text(row, "queue").is_ok_and(|queue| self.queues.contains_key(&queue));
        let holder = match foreign::uuid(row, "session_id").ok().and_then(|id| self.sessions.get(&SessionId(id))) {
            Some(session) if session.over_at_us.is_none() => Holder::Live,
            Some(_) => Holder::Over,
            None => Holder::Gone,
        };
        References { queue, holder }
    }
}

/// A row: the task's columns, and what stands in some of them instead.
pub(super) fn raw(task: &Task, damage: Option<&Row>) -> Row {
    let mut row = typed(task);
    row.extend(damage.into_iter().flatten().map(|(column, value)| (column.clone(), value.clone())));
    row
}

/// The task's columns as this release writes them.
fn typed(task: &Task) -> Row {
    let integer = |number: i64| Value::Integer(number);
    let maybe = |number: Option<i64>| number.map_or(Value::Null, Value::Integer);
    let text = |text: &str| Value::Text(text.to_owned());
    let envelope = &task.envelope;
    let columns = [
        ("id", Value::Bytes(envelope.id.0.as_bytes().to_vec())),
        ("tenant", text(&envelope.tenant)),
        ("queue", text(&envelope.queue)),
        ("state", integer(task.state as i64)),
        ("rank", integer(envelope.rank.into())),
        ("executor", text(&envelope.executor)),
        ("resource_class", text(&envelope.resource_class)),
        ("concurrency_key", text(&envelope.concurrency_key)),
        ("exclusive", Value::Bool(envelope.exclusive)),
        ("timeout_ms", maybe(envelope.timeout_ms)),
        ("attempt", integer(task.attempt.into())),
        ("token", maybe(task.token.map(|token| token.0))),
        ("session_id", task.session.map_or(Value::Null, |id| Value::Bytes(id.0.as_bytes().to_vec()))),
        ("failures", integer(task.failures.into())),
        ("losses", integer(task.losses.into())),
        ("unsupported", integer(task.unsupported.into())),
        ("created_at_us", integer(task.created_at_us)),
        ("ready_at_us", maybe(task.ready_at_us)),
        ("wake_at_us", maybe(task.wake_at_us)),
        ("expires_at_us", maybe(task.expires_at_us)),
        ("dispatched_at_us", maybe(task.dispatched_at_us)),
        ("started_at_us", maybe(task.started_at_us)),
        ("trace_context", text(&envelope.trace_context)),
        ("format", integer(envelope.format.into())),
        ("min_reader", integer(envelope.min_reader.into())),
        ("spec", Value::Bytes(task.spec.clone())),
    ];
    columns.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>()
}

/// Sets the typed column to what the row has there, as far as it can be read; an optional one that cannot, to its default.
pub(super) fn apply(task: &mut Task, row: &Row, column: &str) {
    fn set<T>(field: &mut T, value: std::result::Result<T, Defect>) {
        if let Ok(value) = value {
            *field = value;
        }
    }
    let maybe = |column: &str| match row.get(column) {
        Some(Value::Null) => Ok(None),
        _ => foreign::integer::<i64>(row, column).map(Some),
    };
    let maybe_within = |column: &str, bounds| match row.get(column) {
        Some(Value::Null) => Ok(None),
        _ => foreign::within::<i64>(row, column, bounds).map(Some),
    };
    let count = |column: &str| foreign::within(row, column, &foreign::COUNT).unwrap_or_default();
    let envelope = &mut task.envelope;
    match column {
        "tenant" => set(&mut envelope.tenant, foreign::text(row, column)),
        "queue" => set(&mut envelope.queue, foreign::text(row, column)),
        "state" => {
            let state = foreign::integer::<i16>(row, column).ok().and_then(|number| State::try_from(number).ok());
            set(&mut task.state, state.ok_or_else(|| Defect::new(column, "is not known")));
        }
        "rank" => set(&mut envelope.rank, foreign::integer(row, column)),
        "executor" => envelope.executor = foreign::text(row, column).unwrap_or_default(),
        "resource_class" => envelope.resource_class = foreign::text(row, column).unwrap_or_default(),
        "concurrency_key" => set(&mut envelope.concurrency_key, foreign::text(row, column)),
        "exclusive" => envelope.exclusive = foreign::boolean(row, column).unwrap_or_default(),
        "timeout_ms" => envelope.timeout_ms = maybe_within(column, &foreign::TIMEOUT_MS).unwrap_or_default(),
        "attempt" => set(&mut task.attempt, foreign::within(row, column, foreign::attempt_in(task.state))),
        "token" => set(&mut task.token, maybe(column).map(|token| token.map(Token))),
        "session_id" => {
            let session = match row.get(column) {
                Some(Value::Null) => Ok(None),
                _ => foreign::uuid(row, column).map(|id| Some(SessionId(id))),
            };
            set(&mut task.session, session);
        }
        "failures" => task.failures = count(column),
        "losses" => task.losses = count(column),
        "unsupported" => task.unsupported = count(column),
        "created_at_us" => task.created_at_us = foreign::within(row, column, &foreign::MOMENT).unwrap_or_default(),
        "ready_at_us" => set(&mut task.ready_at_us, maybe_within(column, &foreign::MOMENT)),
        "wake_at_us" => set(&mut task.wake_at_us, maybe_within(column, &foreign::MOMENT)),
        "expires_at_us" => task.expires_at_us = maybe(column).unwrap_or_default(),
        "dispatched_at_us" => task.dispatched_at_us = maybe_within(column, &foreign::MOMENT).unwrap_or_default(),
        "started_at_us" => task.started_at_us = maybe_within(column, &foreign::MOMENT).unwrap_or_default(),
        "trace_context" => envelope.trace_context = foreign::traceparent(row, column).unwrap_or_default(),
        "format" => envelope.format = foreign::integer(row, column).unwrap_or_default(),
        "min_reader" => set(&mut envelope.min_reader, foreign::integer(row, column)),
        "spec" => set(&mut task.spec, foreign::bytes(row, column).map(<[u8]>::to_vec)),
        // One of a later release: it is in the row and nowhere else.
        _ => {}
    }
}
