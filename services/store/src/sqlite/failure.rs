//! What SQLite's errors mean. Diesel passes on their words, not their numbers.

use diesel::result::{ConnectionError, DatabaseErrorKind, Error};

use super::values::BadColumn;
use crate::StoreError;

/// Why a transaction is rolled back.
#[derive(Debug)]
pub(super) enum Failure {
    /// SQLite's error.
    Sqlite(Error),
    /// A row that had to be read could not be.
    Row(BadColumn),
    /// The store's own verdict.
    Store(StoreError),
}

pub(super) type Outcome<T> = std::result::Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<BadColumn> for Failure {
    fn from(bad: BadColumn) -> Self {
        Self::Row(bad)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    /// The error as callers of the store know it.
    pub(super) fn into_store(self) -> StoreError {
        match self {
            Failure::Store(error) => error,
            Failure::Row(bad) => StoreError::Unreadable(bad.defect()),
            Failure::Sqlite(Error::DatabaseError(kind, information)) => by_words(kind, information.message()),
            Failure::Sqlite(other) => StoreError::Internal(other.to_string()),
        }
    }
}

/// The error of a connection that could not be made.
pub(super) fn connection_error(error: ConnectionError) -> StoreError {
    match error {
        ConnectionError::CouldntSetupConfiguration(error) => Failure::from(error).into_store(),
        ConnectionError::BadConnection(message) => by_words(DatabaseErrorKind::Unknown, &message),
        other => StoreError::Unavailable(other.to_string()),
    }
}

/// The error of a commit. When the disk failed under it, its frames may still be found whole after a restart, so
/// nobody knows; a full disk is told before the commit's mark is written.
pub(super) fn commit_error(error: Error) -> StoreError {
    match Failure::from(error).into_store() {
        StoreError::Unavailable(message) if message.contains("I/O") => StoreError::UnknownOutcome(message),
        other => other,
    }
}

fn by_words(kind: DatabaseErrorKind, message: &str) -> StoreError {
    let data = |sqlstate: &str| StoreError::Data { sqlstate: sqlstate.into(), message: message.into() };
    match kind {
        DatabaseErrorKind::UniqueViolation => return data("23505"),
        DatabaseErrorKind::NotNullViolation => return data("23502"),
        DatabaseErrorKind::CheckViolation => return data("23514"),
        DatabaseErrorKind::ForeignKeyViolation => return data("23503"),
        _ => {}
    }
    let says = |words: &str| message.contains(words);
    if says("string or blob too big") {
        data("54000")
    } else if says("is locked") || says("interrupted") {
        StoreError::Timeout(message.into())
    } else if says("disk is full")
        || says("disk I/O error")
        || says("readonly database")
        || says("unable to open database file")
        || says("out of memory")
    {
        StoreError::Unavailable(message.into())
    } else if says("no such table") || says("no such column") || says("has no column") {
        StoreError::Schema(format!("the schema is not one that this build can work with: {message}"))
    } else {
        StoreError::Internal(message.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted_by_what_the_caller_may_do() {
        let sorted = |message| by_words(DatabaseErrorKind::Unknown, message);
        for message in [
            "database or disk is full",
            "disk I/O error",
            "attempt to write a readonly database",
            "unable to open database file",
        ] {
            assert!(matches!(sorted(message), StoreError::Unavailable(_)), "{message}");
        }
        assert!(matches!(sorted("database is locked"), StoreError::Timeout(_)));
        assert!(matches!(sorted("no such table: tasks"), StoreError::Schema(_)));
        for message in ["database disk image is malformed", "file is not a database", "something new"] {
            assert!(matches!(sorted(message), StoreError::Internal(_)), "{message}");
        }
        assert!(matches!(by_words(DatabaseErrorKind::UniqueViolation, ""), StoreError::Data { .. }));
    }

    #[test]
    fn r8_a_commit_that_the_disk_failed_leaves_the_outcome_unknown() {
        let failed = |message: &str| {
            commit_error(Error::DatabaseError(DatabaseErrorKind::Unknown, Box::new(message.to_owned())))
        };
        assert!(matches!(failed("disk I/O error"), StoreError::UnknownOutcome(_)));
        assert!(matches!(failed("database or disk is full"), StoreError::Unavailable(_)));
    }
}
