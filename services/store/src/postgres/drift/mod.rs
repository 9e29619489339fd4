//! Columns whose type in the database is not the expected one.
//!
//! Such a column degrades, the service does not. The statements are texts that are written for the expected types, and while every
//! column has one that they take, they run as they are. The types are looked at when a store is opened, when the server refuses a
//! statement for types, and when a value cannot be read. Statements over a table with a column that they do not take are then fitted to it
//! ([`rewrite`]): values that mean the same are read and written ([`cast`]), and the others are NULL to a search, which is how a row
//! that cannot be read costs nobody but itself.
//!
//! A search by an expression has no index. Keys are therefore compared as they are spelled, and lanes are stepped through as they stand in
//! the index ([`unindexed`](super::unindexed)); what is left reads more than it returns, and gets the time for it: a lane whose
//! `ready_at_us` has another type is read whole for each page, some 4 µs a row, and sessions, requests and queues are few. Whole numbers
//! of another width and texts of another length are taken as they are, and cost nothing.
//!
//! What cannot be helped: a type into which this build's values cannot be written (text as bytes may be, a state as a boolean not) refuses
//! new rows, and what a cast has thrown away (a token as a float) is gone.

mod cast;
mod expected;
mod look;
mod rewrite;
mod scope;
#[cfg(test)]
mod tests;
mod tree;

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_core::foreign::{Row, Value};

use super::sql::Instead;

use self::{
    cast::{Family, Kind},
    rewrite::Tables,
};

pub(super) use self::{
    expected::BOTH,
    look::{Found, drift, line, looking},
};

/// How often the types are looked at again while statements are fitted, so that these are as fast as ever once the types are back, or
/// there are values that cannot be read.
const AGAIN: Duration = Duration::from_secs(5);

/// After a look that explained nothing there is none for this long, so that a statement that is refused for itself costs no more.
const QUIET: Duration = Duration::from_secs(1);

/// What a store knows of the types of its columns. Shared by its connections.
#[derive(Debug)]
pub(super) struct Shape {
    /// Statements run as they are: all that the hot path asks.
    plain: AtomicBool,
    /// A value could not be read: its column may be of another type, although no statement was refused.
    doubtful: AtomicBool,
    seen: RwLock<Arc<Seen>>,
    looks: Mutex<Looks>,
}

/// What was seen last.
#[derive(Debug, Default)]
struct Seen {
    found: Found,
    /// The columns that statements do not take.
    tables: Tables,
    /// Raised by every change, and written into the statements: a prepared one goes on with the types of its results, and the server
    /// refuses it once these change.
    edition: u64,
}

#[derive(Debug, Default)]
struct Looks {
    last: Option<Instant>,
    /// When a look explained nothing.
    in_vain: Option<Instant>,
    editions: u64,
}

/// The edition of what a statement was fitted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edition(u64);

/// Why the types are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It is time to, or somebody has asked.
    Routine,
    /// The server has refused a statement for its types.
    Refused,
    /// The types of a statement's results have changed since it was prepared, which every new edition mends.
    Stale,
}

/// What to do about a statement that the server refused for types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// What is known is newer than what it was fitted to.
    RunAgain,
    /// Nothing newer is known.
    Look,
    /// It was looked at just now.
    GiveUp,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            plain: AtomicBool::new(true),
            doubtful: AtomicBool::new(false),
            seen: RwLock::default(),
            looks: Mutex::default(),
        }
    }
}

impl Shape {
    /// The statement that does for the columns as they are what this one does for the expected ones; none when it does itself.
    pub(super) fn fit(&self, text: &str, instead: &[Instead]) -> (Option<String>, Edition) {
        if self.plain.load(Ordering::Acquire) {
            return (None, Edition(0));
        }
        let seen = self.seen();
        let edition = Edition(seen.edition);
        if seen.edition == 0 {
            return (None, edition);
        }
        let changed = |column: &&str| seen.tables.get("tasks").is_some_and(|table| table.contains_key(*column));
        let text = instead.iter().find(|(columns, _)| columns.iter().any(changed)).map_or(text, |(_, text)| text);
        let text = match seen.tables.keys().any(|table| text.contains(table.as_str())) {
            true => rewrite::rewrite(text, &seen.tables),
            false => text.to_owned(),
        };
        (Some(format!("{text} /* types {} */", seen.edition)), edition)
    }

    /// Whether there are columns that statements are fitted to.
    pub(super) fn is_fitted(&self) -> bool {
        !self.plain.load(Ordering::Acquire) && !self.seen().tables.is_empty()
    }

    /// What to do about a statement that was refused for types.
    pub(super) fn refused(&self, edition: Edition, cause: Cause) -> Next {
        if edition.0 != self.seen().edition {
            return Next::RunAgain;
        }
        let in_vain = self.looks().in_vain.is_some_and(|at| at.elapsed() < QUIET);
        match in_vain && cause == Cause::Refused {
            true => Next::GiveUp,
            false => Next::Look,
        }
    }

    /// Whether it is time to look again. True for one caller a time.
    pub(super) fn is_due(&self) -> bool {
        let doubtful = self.doubtful.load(Ordering::Relaxed);
        if !doubtful && !self.is_fitted() {
            return false;
        }
        let mut looks = self.looks();
        let due = looks.last.is_none_or(|at| at.elapsed() >= AGAIN);
        if due {
            looks.last = Some(Instant::now());
            self.doubtful.store(false, Ordering::Relaxed);
        }
        due
    }

    /// A value could not be read.
    pub(super) fn doubt(&self) {
        self.doubtful.store(true, Ordering::Relaxed);
    }

    /// Takes note of a look; tells whether a statement that was refused, fitted to this edition, may do better now.
    pub(super) fn note(&self, found: Found, cause: Cause, edition: Option<Edition>) -> bool {
        let mut looks = self.looks();
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let first = looks.last.is_none();
        looks.last = Some(Instant::now());
        let changed = seen.found != found;
        if !changed && edition.is_some_and(|edition| edition.0 != seen.edition) {
            // Another call has looked meanwhile.
            return true;
        }
        if !changed && cause != Cause::Stale {
            if cause == Cause::Refused {
                looks.in_vain = Some(Instant::now());
            }
            return false;
        }
        looks.in_vain = None;
        let tables = found.tables();
        // Before the first look nothing can be prepared for other types.
        let as_expected = cause != Cause::Stale && (found.is_empty() || first && tables.is_empty());
        looks.editions += 1;
        let edition = if as_expected { 0 } else { looks.editions };
        if changed && !first || !tables.is_empty() {
            tracing::warn!(columns = %found, "the types of columns are not as they were; statements are fitted to them");
        }
        *seen = Arc::new(Seen { found, tables, edition });
        self.plain.store(as_expected, Ordering::Release);
        true
    }

    /// Hides what no release can mean by a live task's column from whoever judges the row: bytes look like text in JSON.
    pub(super) fn hide_bytes(&self, row: &mut Row) {
        if self.plain.load(Ordering::Acquire) {
            return;
        }
        let seen = self.seen();
        let columns = seen.tables.get("tasks").into_iter().flatten();
        for (name, _) in columns.filter(|(_, column)| column.family == Family::Bytes && column.kind != Kind::Bytes) {
            if let Some(value @ Value::Text(_)) = row.get_mut(name)
                && let Value::Text(text) = std::mem::replace(value, Value::Null)
            {
                *value = Value::Other(text);
            }
        }
    }

    fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn looks(&self) -> std::sync::MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
