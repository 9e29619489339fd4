//! A connection during one call: statements, the transaction around them, and what their errors mean.

use std::time::Duration;

use diesel::{
    PgConnection,
    connection::{Connection, DefaultLoadingMode, LoadConnection, SimpleConnection},
};

use millrace_core::{foreign::Defect, id::TaskId};

use super::{
    columns::{Columns, Read},
    failure::{self, from_diesel, words},
    link::Watch,
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
    foreign: &'l Foreign,
    mode: Mode,
    patience: Duration,
    /// A statement that commits by itself has succeeded in this call.
    wrote: bool,
    /// The connection cannot be used again.
    lost: bool,
    /// The transaction is to be rolled back although the call succeeds.
    undo: bool,
}

impl<'l> Conn<'l> {
    pub(super) fn new(
        pg: &'l mut PgConnection,
        watch: &'l Watch,
        foreign: &'l Foreign,
        mode: Mode,
        patience: Duration,
    ) -> Self {
        Self { pg, watch, foreign, mode, patience, wrote: false, lost: false, undo: false }
    }

    /// Does the work in its mode. Also tells whether the connection can be used again.
    pub(super) fn perform<T>(mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> (Result<T>, bool) {
        let result = match self.mode {
            Mode::Read => work(&mut self),
            Mode::Write => {
                let wrote_before = |error: StoreError, wrote: bool| match wrote && error.is_transient() {
                    // An earlier statement of the call is committed, so it is not true that nothing was changed.
                    true => StoreError::UnknownOutcome(words(error)),
                    false => error,
                };
                let result = work(&mut self);
                result.map_err(|error| wrote_before(error, self.wrote))
            }
            Mode::Transaction => self.transaction("BEGIN", work),
            Mode::Snapshot => self.transaction("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", work),
        };
        (result, !self.lost)
    }

    fn transaction<T>(&mut self, begin: &str, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.simple(begin)?;
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
        self.announce()?;
        let done = self.pg.execute_returning_count(&statement);
        let count = done.map_err(|error| self.failed(error, self.mode == Mode::Write))?;
        self.wrote |= self.mode == Mode::Write;
        Ok(count)
    }

    /// What is noticed of rows that cannot be read.
    pub(super) fn foreign(&self) -> &Foreign {
        self.foreign
    }

    /// Reads every row. One that cannot be read fails the call.
    pub(super) fn rows<T>(
        &mut self,
        statement: Statement,
        read: impl Fn(&mut Columns<'_>) -> Read<T>,
    ) -> Result<Vec<T>> {
        let rows = self.load(statement, |columns| read(columns))?;
        rows.into_iter().map(|row| row.map_err(StoreError::Unreadable)).collect()
    }

    /// Reads the rows that can be read. One that cannot be must not cost its neighbours: it is left out and said so.
    pub(super) fn readable_rows<T>(
        &mut self,
        statement: Statement,
        read: impl Fn(&mut Columns<'_>) -> Read<T>,
    ) -> Result<Vec<T>> {
        let foreign = self.foreign;
        let rows = self.load(statement, |columns| {
            let row = read(columns);
            note(foreign, columns);
            row
        })?;
        let keep = |row: Read<T>| {
            row.inspect_err(|defect| {
                foreign.unreadable(None, defect);
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
        let foreign = self.foreign;
        let rows = self.load(statement, |columns| {
            let row = read(columns);
            note(foreign, columns);
            row.map_err(|defect| (columns.task_id(), defect, columns.is_too_new()))
        })?;
        let mut all = TaskRows { read: Vec::with_capacity(rows.len()), unread: Vec::new() };
        for row in rows {
            match row {
                Ok(row) => all.read.push(row),
                Err((task, defect, too_new)) => {
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
        self.announce()?;
        let loaded = LoadConnection::<DefaultLoadingMode>::load(&mut *self.pg, statement).and_then(|rows| {
            rows.map(|row| row.map(|row| read(&mut Columns::new(&row)))).collect::<diesel::QueryResult<Vec<_>>>()
        });
        let rows = loaded.map_err(|error| self.failed(error, self.mode == Mode::Write))?;
        self.wrote |= self.mode == Mode::Write;
        Ok(rows)
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

fn note(foreign: &Foreign, columns: &Columns<'_>) {
    for defect in columns.ignored() {
        foreign.ignored(&defect.column);
    }
}
