//! A connection during one call: statements, the transaction around them, and what their errors mean.

use std::time::Duration;

use diesel::{
    PgConnection,
    connection::{Connection, DefaultLoadingMode, LoadConnection, SimpleConnection},
};

use millrace_core::{foreign::Defect, id::TaskId};

use super::{
    Known,
    columns::{Columns, Read},
    drift::{Cause, Edition, Found, Next, Shape, line, looking},
    failure::{self, by_types, from_diesel, words},
    link::Watch,
    pool::Pace,
    sql::Statement,
};
use crate::{Foreign, Result, StoreError};

/// What the statements of a call are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Reads, each by itself.
    Read,
    /// Reads in one snapshot.
    Snapshot,
    /// Statements that commit by themselves.
    Write,
    /// One transaction, READ COMMITTED.
    Transaction,
}

/// How often a statement, or a transaction, is tried that was refused for types which turn out to be others each time: a release that
/// changes two tables changes them one after the other.
const TRIES: usize = 3;

/// Rows of tasks.
pub(super) struct TaskRows<T> {
    /// Those that could be read.
    pub(super) read: Vec<T>,
    /// The others: their ids, as far as these could be read, and why.
    pub(super) unread: Vec<(Option<TaskId>, Defect)>,
}

/// A connection for the length of a call.
pub(super) struct Conn<'l> {
    pg: &'l mut PgConnection,
    watch: &'l Watch,
    known: &'l Known,
    mode: Mode,
    patience: Duration,
    /// A statement that commits by itself has succeeded in this call.
    wrote: bool,
    /// The connection cannot be used again.
    lost: bool,
    /// The transaction is to be rolled back although the call succeeds.
    undo: bool,
    /// A statement of the transaction was refused for types, and which of them it was fitted to.
    refused: Option<(Edition, Cause)>,
}

impl<'l> Conn<'l> {
    pub(super) fn new(
        pg: &'l mut PgConnection,
        watch: &'l Watch,
        known: &'l Known,
        mode: Mode,
        patience: Duration,
    ) -> Self {
        Self { pg, watch, known, mode, patience, wrote: false, lost: false, undo: false, refused: None }
    }

    /// Sets the session for statements that find no index while columns have other types, and back once they have not. The types are looked
    /// at first when it is time to.
    pub(super) fn set_pace(&mut self, pace: &Pace) -> Result<()> {
        if self.shape().is_due() {
            // Whatever comes of it: the call tells by itself whether it can be done.
            let _ = self.look_for(Cause::Routine, None);
        }
        let reading = self.shape().is_fitted();
        if reading {
            self.patience *= pace.patience;
        }
        if self.watch.set_reading(reading) {
            self.watch.statement(self.patience).inspect_err(|_| self.lost = true)?;
            let settings = if reading { &pace.reading } else { &pace.searching };
            let set = self.pg.batch_execute(settings);
            // A session that is set halfway is of no use.
            set.map_err(|error| self.failed(error, false)).inspect_err(|_| self.lost = true)?;
        }
        Ok(())
    }

    /// Does the work in its mode. Also tells whether the connection can be used again.
    pub(super) fn perform<T>(mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> (Result<T>, bool) {
        let mut result = work(&mut self);
        if self.mode == Mode::Write && self.wrote {
            let wrote_before = |error: StoreError| match error.is_transient() {
                // An earlier statement of the call is committed, so it is not true that nothing was changed.
                true => StoreError::UnknownOutcome(words(error)),
                false => error,
            };
            result = result.map_err(wrote_before);
        }
        (result, !self.lost)
    }

    /// Does the work in a transaction, and again in another when a statement was refused for the types of columns and these turn out to be
    /// others than they were.
    pub(super) fn transaction<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T> + Clone) -> Result<T> {
        for _ in 1..TRIES {
            let result = self.transact(work.clone());
            match self.refused.take() {
                Some((edition, cause)) if result.is_err() && !self.lost && self.knows_better(edition, cause) => {
                    self.undo = false;
                }
                _ => return result,
            }
        }
        self.transact(work)
    }

    fn transact<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.simple(match self.mode {
            Mode::Snapshot => "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            _ => "BEGIN",
        })?;
        let result = work(self);
        if result.is_err() || self.undo {
            // Without an answer to the ROLLBACK the connection is thrown away, which rolls back as well.
            if self.lost || self.simple("ROLLBACK").is_err() {
                self.lost = true;
            }
            return result;
        }
        self.watch.commit(self.patience).inspect_err(|_| self.lost = true)?;
        let committed = self.pg.batch_execute("COMMIT");
        committed.map_err(|error| self.failed(error, self.mode == Mode::Transaction))?;
        result
    }

    /// Ends the transaction without a change although the call succeeds.
    pub(super) fn undo(&mut self) {
        self.undo = true;
    }

    /// Lets the statements that follow take this long. For the rest of a transaction, whose own `SET LOCAL` it follows.
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Runs text without values.
    pub(super) fn simple(&mut self, text: &str) -> Result<()> {
        self.announce()?;
        let done = self.pg.batch_execute(text);
        done.map_err(|error| self.failed(error, self.mode == Mode::Write))
    }

    /// Runs a statement and returns the number of rows that it touched.
    pub(super) fn execute(&mut self, statement: Statement) -> Result<usize> {
        self.run(statement, |pg, statement| pg.execute_returning_count(statement))
    }

    /// What is noticed of rows that cannot be read.
    pub(super) fn foreign(&self) -> &Foreign {
        &self.known.foreign
    }

    /// What is known of the types of columns.
    pub(super) fn shape(&self) -> &Shape {
        &self.known.shape
    }

    /// Reads every row. One that cannot be read fails the call.
    pub(super) fn rows<T>(
        &mut self,
        statement: Statement,
        read: impl Fn(&mut Columns<'_>) -> Read<T>,
    ) -> Result<Vec<T>> {
        let rows = self.load(statement, |columns| read(columns))?;
        let rows: Read<Vec<T>> = rows.into_iter().collect();
        rows.map_err(|defect| {
            self.shape().doubt();
            StoreError::Unreadable(defect)
        })
    }

    /// Reads the rows that can be read. One that cannot be must not cost its neighbours: it is left out and said so.
    pub(super) fn readable_rows<T>(
        &mut self,
        statement: Statement,
        read: impl Fn(&mut Columns<'_>) -> Read<T>,
    ) -> Result<Vec<T>> {
        let known = self.known;
        let foreign = &known.foreign;
        let rows = self.load(statement, |columns| {
            let row = read(columns);
            note(known, columns);
            row
        })?;
        let keep = |row: Read<T>| {
            row.inspect_err(|defect| {
                foreign.unreadable(None, defect);
                known.shape.doubt();
                tracing::warn!(column = %defect.column, error = %defect.error, "a row cannot be read and is left out");
            })
            .ok()
        };
        Ok(rows.into_iter().filter_map(keep).collect())
    }

    /// The same for rows of tasks, with the column `id` among theirs: one that cannot be read becomes a suspect.
    pub(super) fn task_rows<T>(
        &mut self,
        statement: Statement,
        read: impl Fn(&mut Columns<'_>) -> Read<T>,
    ) -> Result<TaskRows<T>> {
        let known = self.known;
        let foreign = &known.foreign;
        let rows = self.load(statement, |columns| {
            let row = read(columns);
            note(known, columns);
            row.map_err(|defect| (columns.task_id(), defect, columns.is_too_new()))
        })?;
        let mut all = TaskRows { read: Vec::with_capacity(rows.len()), unread: Vec::new() };
        for row in rows {
            match row {
                Ok(row) => all.read.push(row),
                Err((task, defect, too_new)) => {
                    known.shape.doubt();
                    match too_new {
                        true => foreign.too_new(1),
                        false => foreign.unreadable(task, &defect),
                    }
                    tracing::debug!(?task, %defect, "a task's row cannot be read");
                    all.unread.push((task, defect));
                }
            }
        }
        Ok(all)
    }

    /// Reads the first row, if there is one. It fails the call when it cannot be read.
    pub(super) fn first<T>(
        &mut self,
        statement: Statement,
        read: impl Fn(&mut Columns<'_>) -> Read<T>,
    ) -> Result<Option<T>> {
        Ok(self.rows(statement, read)?.into_iter().next())
    }

    /// Reads the one row that there must be.
    pub(super) fn one<T>(&mut self, statement: Statement, read: impl Fn(&mut Columns<'_>) -> Read<T>) -> Result<T> {
        self.first(statement, read)?.ok_or_else(|| StoreError::Internal("a row that must be there is missing".into()))
    }

    fn load<T>(&mut self, statement: Statement, read: impl Fn(&mut Columns<'_>) -> T) -> Result<Vec<T>> {
        self.run(statement, |pg, statement| {
            let rows = LoadConnection::<DefaultLoadingMode>::load(pg, statement)?;
            rows.map(|row| row.map(|row| read(&mut Columns::new(&row)))).collect()
        })
    }

    /// Runs a statement, fitted to the types of the columns, and again when it was refused for types and these turn out to be others than
    /// they were.
    fn run<T>(
        &mut self,
        mut statement: Statement,
        send: impl Fn(&mut PgConnection, &Statement) -> diesel::QueryResult<T>,
    ) -> Result<T> {
        let mut left = TRIES;
        loop {
            let edition = statement.fit(self.shape());
            left -= 1;
            match self.send(&statement, &send) {
                Ok(done) => {
                    self.wrote |= self.mode == Mode::Write;
                    return Ok(done);
                }
                Err(error) => match by_types(&error) {
                    Some(cause) if left > 0 && self.may_run_again(edition, cause) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    fn send<T>(
        &mut self,
        statement: &Statement,
        send: &impl Fn(&mut PgConnection, &Statement) -> diesel::QueryResult<T>,
    ) -> Result<T> {
        self.announce()?;
        send(self.pg, statement).map_err(|error| self.failed(error, self.mode == Mode::Write))
    }

    /// Whether a statement that was refused for types is to be tried again at once. A transaction is over with its first error, so
    /// that is tried again as a whole.
    fn may_run_again(&mut self, edition: Edition, cause: Cause) -> bool {
        match self.mode {
            Mode::Read | Mode::Write => self.knows_better(edition, cause),
            Mode::Snapshot | Mode::Transaction => {
                self.refused = Some((edition, cause));
                false
            }
        }
    }

    /// Whether more is known of the types, or comes to be known by looking, than a statement was fitted to.
    fn knows_better(&mut self, edition: Edition, cause: Cause) -> bool {
        match self.shape().refused(edition, cause) {
            Next::RunAgain => true,
            Next::Look => self.look_for(cause, Some(edition)).is_ok_and(|(_, better)| better),
            Next::GiveUp => false,
        }
    }

    /// Looks at the types of the columns. Not within a transaction.
    pub(super) fn look(&mut self) -> Result<Found> {
        Ok(self.look_for(Cause::Routine, None)?.0)
    }

    fn look_for(&mut self, cause: Cause, edition: Option<Edition>) -> Result<(Found, bool)> {
        self.watch.statement(self.patience).inspect_err(|_| self.lost = true)?;
        let rows = LoadConnection::<DefaultLoadingMode>::load(&mut *self.pg, looking()).and_then(|rows| {
            rows.map(|row| row.map(|row| line(&mut Columns::new(&row)))).collect::<diesel::QueryResult<Vec<_>>>()
        });
        let lines = rows.map_err(|error| self.failed(error, false))?;
        let lines = lines.into_iter().collect::<Read<Vec<_>>>().map_err(StoreError::Unreadable)?;
        let found = Found::of(lines);
        let better = self.shape().note(found.clone(), cause, edition);
        Ok((found, better))
    }

    fn announce(&mut self) -> Result<()> {
        let announced = match self.mode {
            Mode::Write => self.watch.commit(self.patience),
            _ => self.watch.statement(self.patience),
        };
        announced.inspect_err(|_| self.lost = true)
    }

    /// What an error means. `committing` when what failed would have committed: if its answer is lost, so is its outcome.
    fn failed(&mut self, error: diesel::result::Error, committing: bool) -> StoreError {
        let (error, connection) = from_diesel(error);
        self.lost |= connection != failure::Connection::Sound;
        match (connection, committing) {
            (failure::Connection::Lost, true) => StoreError::UnknownOutcome(words(error)),
            _ => error,
        }
    }
}

fn note(known: &Known, columns: &Columns<'_>) {
    for defect in columns.ignored() {
        known.foreign.ignored(&defect.column);
        known.shape.doubt();
    }
}
