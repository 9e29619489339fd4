//! Rows that another release wrote and this build may not be able to read: what readers noticed of them, and what the
//! quarantine holds. The judgement itself is [`millrace_core::foreign::judge`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use millrace_core::{
    READER_RANGE,
    foreign::{self, Defect, Holder, Reading, References, Row, SpecReading, Value, Verdict},
    id::TaskId,
    task::State,
};

use crate::MemberRow;

/// Suspects kept until they are examined. More of them are let go: whoever reads such a row next notes it again.
const SUSPECTS: usize = 10_000;

/// Columns and fields that are counted by name; those beyond are counted together.
const NAMES: usize = 100;

/// How a build reads, which no row can tell it.
#[derive(Clone)]
pub struct Reader {
    /// The build's name: what `refused_by` of a quarantined row holds.
    pub build: String,
    /// Judges the bytes of a spec.
    pub spec: fn(&[u8]) -> SpecReading,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("build", &self.build).finish_non_exhaustive()
    }
}

impl Default for Reader {
    /// A reader that takes any spec.
    fn default() -> Self {
        Self { build: String::new(), spec: |_| SpecReading::default() }
    }
}

/// What the readers of a store have noticed. Shared by every call on it; nothing here is durable.
#[derive(Debug, Default)]
pub struct Foreign {
    noticed: Mutex<Noticed>,
}

#[derive(Debug, Default)]
struct Noticed {
    suspects: BTreeSet<TaskId>,
    figures: Figures,
}

/// Counts since the process started, by column or field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Reads of a row that were given up because of this column.
    pub unreadable: BTreeMap<String, u64>,
    /// Reads that went on without this column or field.
    pub ignored: BTreeMap<String, u64>,
    /// Rows left to a later release, as they were met.
    pub too_new: u64,
    /// Suspects that were let go because too many were waiting.
    pub let_go: u64,
}

impl Foreign {
    /// Notes that a task's row could not be read. Without an id the row cannot be examined, and only counts.
    pub fn unreadable(&self, task: Option<TaskId>, defect: &Defect) {
        let mut noticed = self.noticed();
        count(&mut noticed.figures.unreadable, &defect.column);
        let Some(task) = task else { return };
        if noticed.suspects.len() < SUSPECTS {
            noticed.suspects.insert(task);
        } else if !noticed.suspects.contains(&task) {
            noticed.figures.let_go += 1;
        }
    }

    /// Notes that a column or a field was ignored.
    pub fn ignored(&self, column: &str) {
        count(&mut self.noticed().figures.ignored, column);
    }

    /// Notes rows that are left to a later release.
    pub fn too_new(&self, rows: u64) {
        self.noticed().figures.too_new += rows;
    }

    /// Takes up to `limit` suspects, for [`crate::Store::examine`].
    pub fn take_suspects(&self, limit: usize) -> Vec<TaskId> {
        let mut noticed = self.noticed();
        let taken: Vec<TaskId> = noticed.suspects.iter().take(limit).copied().collect();
        for task in &taken {
            noticed.suspects.remove(task);
        }
        taken
    }

    /// Counts until now.
    pub fn figures(&self) -> Figures {
        self.noticed().figures.clone()
    }

    fn noticed(&self) -> MutexGuard<'_, Noticed> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    let name = if counts.len() < NAMES || counts.contains_key(name) { name } else { "others" };
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => drop(counts.insert(name.to_owned(), 1)),
    }
}

/// What became of a row that was examined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Examined {
    /// This build can act on it.
    Readable,
    /// It is left to a later release.
    TooNew(Defect),
    /// It cannot be read, but a live session runs it and may end it: it stays where it is.
    Held(Defect),
    /// It was set aside.
    Quarantined(Defect),
    /// It is not among the live tasks.
    Gone,
}

/// Live rows as judged, in the order of their ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspected {
    /// Each with its judgement. Rows without a readable id are not among them.
    pub rows: Vec<(TaskId, Reading)>,
    /// The id after which to go on; none at the end.
    pub next: Option<TaskId>,
}

/// A row that was set aside, whole.
#[derive(Debug, Clone, PartialEq)]
pub struct QuarantinedRow {
    /// The task.
    pub task: TaskId,
    /// The tenant, as far as it can be read.
    pub tenant: Option<String>,
    /// The queue, as far as it can be read.
    pub queue: Option<String>,
    /// Every column as it was, the spec apart when it is bytes.
    pub row: Row,
    /// The spec's bytes.
    pub spec: Option<Vec<u8>>,
    /// Why it was set aside, as the build saw it that did so or that examined it last.
    pub defect: Defect,
    /// The format of the row's writer, as far as it can be read.
    pub writer_format: Option<i16>,
    /// Builds that have examined it and cannot read it, the latest last.
    pub refused_by: Vec<String>,
    /// When it was set aside.
    pub first_seen_us: i64,
}

/// Which quarantined rows are meant. Every condition that is set must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuarantineFilter {
    /// Only these tasks; none means all.
    pub tasks: Vec<TaskId>,
    /// Only of this tenant.
    pub tenant: Option<String>,
    /// Only of this queue.
    pub queue: Option<String>,
    /// Only for this column or field.
    pub column: Option<String>,
    /// Only set aside before this moment.
    pub before_us: Option<i64>,
}

/// A page of the quarantine, in the order of the tasks' ids.
#[derive(Debug, Clone, PartialEq)]
pub struct QuarantinePage {
    /// The rows.
    pub rows: Vec<QuarantinedRow>,
    /// The id after which to go on; none at the end.
    pub next: Option<TaskId>,
}

/// What an operator changes in a quarantined row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Repair {
    /// Columns and their new values. Not `id`.
    pub columns: Row,
    /// New bytes for the spec.
    pub spec: Option<Vec<u8>>,
}

/// What became of a repair.
#[derive(Debug, Clone, PartialEq)]
pub enum Repaired {
    /// The row reads well with the change, and waits in its queue again unless it was only tried.
    Done,
    /// With the change the row is still not readable. Nothing was changed.
    StillUnreadable(Defect),
    /// The database has no such column, or refuses the value. Nothing was changed.
    Refused(String),
    /// It is not in quarantine.
    NotFound,
}

/// What became of the release of a quarantined row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// It waits again, or has ended as CANCELLED when that had been asked for before it was set aside.
    Done,
    /// This build cannot read it; the row stays.
    Refused(Defect),
    /// It is not in quarantine.
    NotFound,
}

/// A part of the quarantine as a build has examined it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reexamined {
    /// What became of those that this build had not refused before.
    pub rows: Vec<(TaskId, Released)>,
    /// The id after which to go on; none at the end.
    pub next: Option<TaskId>,
}

/// What became of the raise of the write format (R14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activated {
    /// Rows are written in the new format from now on; this was the one before.
    Done {
        /// The format before.
        before: i16,
    },
    /// Rows are written in this format already, which is not below the one asked for. Nothing was changed.
    Already(i16),
    /// These live processes cannot read the format. Nothing was changed.
    Behind(Vec<MemberRow>),
    /// The release to roll back to reads no further than this. Nothing was changed.
    RollbackBehind(i16),
}

/// A column whose type in the database is not the one that this build expects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// The type that this build expects, in the database's words.
    pub expected: String,
    /// The type that it has; none when the column is missing.
    pub found: Option<String>,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, column, expected, found } = self;
        match found {
            Some(found) => write!(f, "{table}.{column} is {found}, not {expected}"),
            None => write!(f, "{table}.{column} is missing"),
        }
    }
}

// ── What the backends share ─────────────────────────────────────────────────────────────────────────────────────────

/// How long a claimed task may stay unaccepted before a row that cannot be read counts as held by nobody: no build that could
/// read it has got it to run.
const UNACCEPTED_US: i64 = 60_000_000;

/// Builds that a quarantined row remembers.
const REFUSALS: usize = 20;

impl Reader {
    /// What this build makes of a live task's row.
    pub(crate) fn judge(&self, row: &Row, references: References) -> Reading {
        foreign::judge(row, references, READER_RANGE.1, &|spec| (self.spec)(spec))
    }

    /// What it makes of one that is set aside, as it would be among the live ones again; its defect, if it cannot be released.
    pub(crate) fn refusal(&self, row: &Row, queue: bool) -> Option<Defect> {
        let mut row = row.clone();
        if state_of(&row).is_some_and(|state| state == State::Queued || state.is_held()) {
            // It joins its queue with the release, or ends, whatever stands there of an earlier time.
            row.insert("state".into(), Value::Integer(State::Queued as i64));
            row.insert("ready_at_us".into(), Value::Integer(0));
        }
        match self.judge(&row, References { queue, holder: Holder::Over }).verdict {
            Verdict::Readable => None,
            Verdict::TooNew(defect) | Verdict::Unreadable(defect) => Some(defect),
        }
    }

    /// The builds that have refused a row, this one last.
    pub(crate) fn refused_too(&self, before: &[String]) -> Vec<String> {
        let mut builds: Vec<String> = before.iter().filter(|build| **build != self.build).cloned().collect();
        builds.push(self.build.clone());
        let from = builds.len().saturating_sub(REFUSALS);
        builds.split_off(from)
    }
}

/// Whether somebody may be running a task whose row cannot be read. One that was claimed, and was still not accepted when its session was
/// heard of long after, is with nobody: acceptance is written with the heartbeats, so an outage alone makes nothing of it.
pub(crate) fn may_run(row: &Row, holder: Holder, heard_us: Option<i64>) -> bool {
    if holder != Holder::Live || row.get("session_id").is_none_or(|id| *id == Value::Null) {
        return false;
    }
    let dispatched = state_of(row) == Some(State::Dispatched);
    let since = foreign::integer::<i64>(row, "dispatched_at_us").ok();
    let late = heard_us.zip(since).is_some_and(|(heard, since)| heard.saturating_sub(since) >= UNACCEPTED_US);
    !(dispatched && late)
}

/// The state that a row names, when this build knows it.
pub(crate) fn state_of(row: &Row) -> Option<State> {
    foreign::integer::<i16>(row, "state").ok().and_then(|number| State::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspects_are_taken_once_and_their_number_is_bounded() {
        let foreign = Foreign::default();
        let task = |number: usize| TaskId(uuid::Uuid::from_u128(number as u128));
        let defect = Defect::new("rank", "is null");
        for number in 0..SUSPECTS + 2 {
            foreign.unreadable(Some(task(number)), &defect);
        }
        foreign.unreadable(Some(task(0)), &defect);
        foreign.unreadable(None, &defect);
        assert_eq!(foreign.figures().unreadable["rank"], SUSPECTS as u64 + 4);
        assert_eq!(foreign.figures().let_go, 2);
        assert_eq!(foreign.take_suspects(3), [task(0), task(1), task(2)]);
        assert_eq!(foreign.take_suspects(usize::MAX).len(), SUSPECTS - 3);
        assert!(foreign.take_suspects(1).is_empty());
    }

    #[test]
    fn names_that_are_counted_are_bounded() {
        let foreign = Foreign::default();
        for number in 0..NAMES + 5 {
            foreign.ignored(&format!("column {number}"));
        }
        let figures = foreign.figures();
        assert_eq!((figures.ignored.len(), figures.ignored["others"]), (NAMES + 1, 5));
    }
}
