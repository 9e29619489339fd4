//! What PostgreSQL's errors mean to a caller.
//!
//! Diesel keeps the SQLSTATE of an error to itself and passes on a kind, which tells of class 23, 40001 and lost connections, and
//! the message. The rest is told by the message, which the pool asks for in English.

use diesel::result::{DatabaseErrorKind, Error};

use super::drift::Cause;
use crate::StoreError;

/// What an error says about the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    /// It can go on.
    Sound,
    /// The server has answered, but another connection may do better.
    Useless,
    /// It is gone, and with it the answer to what was sent last.
    Lost,
}

/// The error of a statement, and what it says about the connection.
pub(super) fn from_diesel(error: Error) -> (StoreError, Connection) {
    match error {
        Error::DatabaseError(kind, information) => from_server(kind, information.message()),
        other => (StoreError::Internal(other.to_string()), Connection::Sound),
    }
}

/// Whether the types of columns may be why the server refused a statement, and which kind of look at them may help. PostgreSQL has many
/// words for types that do not go together, so this is whatever it says of a statement that is neither about data nor about trouble.
pub(super) fn by_types(error: &StoreError) -> Option<Cause> {
    match error {
        StoreError::Conflict(text) if text.contains(STALE_PLAN) => Some(Cause::Stale),
        StoreError::Internal(_) => Some(Cause::Refused),
        // A literal may be no value of the type that it is now compared with.
        StoreError::Data { sqlstate, .. } if sqlstate == MISMATCH || sqlstate.starts_with("22") => Some(Cause::Refused),
        _ => None,
    }
}

/// A message as one line.
pub(super) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The words of an error whose meaning changes with what was under way.
pub(super) fn words(error: StoreError) -> String {
    match error {
        StoreError::Unavailable(text) | StoreError::Timeout(text) | StoreError::Conflict(text) => text,
        error => error.to_string(),
    }
}

fn from_server(kind: DatabaseErrorKind, message: &str) -> (StoreError, Connection) {
    let text = one_line(message);
    let lost = matches!(kind, DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand)
        || LOST.iter().any(|part| text.contains(part));
    match (lost, kind) {
        (true, _) => (StoreError::Unavailable(text), Connection::Lost),
        // A column's type was changed since the connection prepared the statement.
        _ if text.contains(STALE_PLAN) => (StoreError::Conflict(text), Connection::Sound),
        // A standby, or a primary that has become one: another connection may lead to the primary.
        (_, DatabaseErrorKind::ReadOnlyTransaction) => (StoreError::Unavailable(text), Connection::Useless),
        _ => (by_kind(kind, text), Connection::Sound),
    }
}

fn by_kind(kind: DatabaseErrorKind, text: String) -> StoreError {
    let data = |sqlstate: &str| StoreError::Data { sqlstate: sqlstate.into(), message: text.clone() };
    match kind {
        DatabaseErrorKind::UniqueViolation => data("23505"),
        DatabaseErrorKind::ForeignKeyViolation => data("23503"),
        DatabaseErrorKind::NotNullViolation => data("23502"),
        DatabaseErrorKind::CheckViolation => data("23514"),
        DatabaseErrorKind::RestrictViolation => data("23001"),
        DatabaseErrorKind::ExclusionViolation => data("23P01"),
        DatabaseErrorKind::SerializationFailure => StoreError::Conflict(text),
        _ => by_message(text),
    }
}

/// Beginnings and parts of messages, with the SQLSTATE that PostgreSQL sends with them. Data (R10): class 22, and 54000 for
/// values that fit no page of an index or a table.
const DATA: [(&str, &str); 16] = [
    // A column's type was changed; a row that is written column by column may still fit.
    ("but expression is of type", MISMATCH),
    ("invalid byte sequence for encoding", "22021"),
    ("has no equivalent in encoding", "22P05"),
    ("unsupported Unicode escape sequence", "22P05"),
    ("out of range", "22003"),
    ("numeric field overflow", "22003"),
    ("cannot cast jsonb", "22023"),
    ("expected JSON array", "22P02"),
    ("value too long for type", "22001"),
    ("invalid input syntax", "22P02"),
    ("invalid input value", "22P02"),
    ("incorrect binary data format", "22P03"),
    ("insufficient data left in message", "22P03"),
    ("division by zero", "22012"),
    ("index row size", "54000"),
    ("index row requires", "54000"),
];

/// The SQLSTATE of a value of one type for a column of another.
const MISMATCH: &str = "42804";

const TIMEOUT: [&str; 2] = ["canceling statement due to", "could not obtain lock on"];

const CONFLICT: [&str; 2] = ["deadlock detected", "could not serialize access"];

const STALE_PLAN: &str = "cached plan must not change result type";

/// The connection is gone, or the server is about to close it.
const LOST: [&str; 9] = [
    "terminating connection",
    "the database system is",
    "server closed the connection",
    "no connection to the server",
    "connection to server",
    "could not receive data from server",
    "could not send data to server",
    "SSL connection has been closed",
    "SSL SYSCALL error",
];

/// The server lives and cannot do it now.
const UNAVAILABLE: [&str; 5] = [
    "too many clients already",
    "remaining connection slots are reserved",
    "No space left on device",
    "out of memory",
    "out of shared memory",
];

fn by_message(text: String) -> StoreError {
    let says = |part: &&str| text.contains(*part);
    if TIMEOUT.iter().any(says) {
        StoreError::Timeout(text)
    } else if CONFLICT.iter().any(says) {
        StoreError::Conflict(text)
    } else if UNAVAILABLE.iter().any(says) {
        StoreError::Unavailable(text)
    } else if let Some((_, sqlstate)) = DATA.iter().find(|(part, _)| says(part)) {
        StoreError::Data { sqlstate: (*sqlstate).into(), message: text }
    } else if (text.starts_with("relation ") || text.starts_with("column ")) && text.ends_with("does not exist") {
        StoreError::Schema(format!(
            "the database's schema is not one that this build works with ({text}): run `millrace migrate up`"
        ))
    } else {
        StoreError::Internal(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(message: &str) -> StoreError {
        from_server(DatabaseErrorKind::Unknown, message).0
    }

    #[test]
    fn r10_only_errors_about_data_are_data() {
        for message in [
            "invalid byte sequence for encoding \"UTF8\": 0x00",
            "integer out of range",
            "index row size 5624 exceeds btree version 4 maximum 2704 for index \"tasks_waiting\"",
        ] {
            assert!(matches!(sorted(message), StoreError::Data { .. }), "{message}");
        }
        for message in [
            "canceling statement due to statement timeout",
            "canceling statement due to lock timeout",
            "canceling statement due to user request",
        ] {
            assert!(matches!(sorted(message), StoreError::Timeout(_)), "{message}");
        }
        assert!(matches!(sorted("deadlock detected"), StoreError::Conflict(_)));
        for message in [
            "terminating connection due to administrator command",
            "the database system is shutting down",
            "server closed the connection unexpectedly\n\tThis probably means",
            "could not extend file \"base/1/2\": No space left on device",
        ] {
            assert!(matches!(sorted(message), StoreError::Unavailable(_)), "{message}");
        }
        let server = |message: &str| from_server(DatabaseErrorKind::Unknown, message).1;
        assert_eq!(server("terminating connection due to administrator command"), Connection::Lost);
        assert!(matches!(sorted("cached plan must not change result type"), StoreError::Conflict(_)));
        assert_eq!(server("could not extend file \"base/1/2\": No space left on device"), Connection::Sound);
        assert!(matches!(sorted("relation \"tasks\" does not exist"), StoreError::Schema(_)));
        assert!(matches!(sorted("something new"), StoreError::Internal(_)));
    }

    #[test]
    fn r10_what_may_be_due_to_changed_types_is_told_from_data_and_trouble() {
        let cause = |message: &str| by_types(&sorted(message));
        assert_eq!(cause("cached plan must not change result type"), Some(Cause::Stale));
        for message in [
            "operator does not exist: text = integer",
            "column \"rank\" is of type jsonb but expression is of type integer",
            "UNION types text and bigint cannot be matched",
            "argument of NOT must be type boolean, not type text",
            "invalid input syntax for type json",
        ] {
            assert_eq!(cause(message), Some(Cause::Refused), "{message}");
        }
        for message in ["deadlock detected", "canceling statement due to lock timeout", "index row size 5624 exceeds"] {
            assert_eq!(cause(message), None, "{message}");
        }
    }
}
