//! What can go wrong between a service and its database.

use millrace_core::foreign::Defect;

/// An error of the database, sorted by what the caller may do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection, or the server is going down. Nothing was changed, or an attempt to commit was never made: try again.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The statement, or the wait for a lock or a connection, took longer than its bound. Nothing was changed.
    #[error("the database took too long: {0}")]
    Timeout(String),
    /// The commit was sent and its answer did not come: it may have happened. Repeat with the same ids before answering
    /// anyone (R8).
    #[error("the database did not answer a commit: {0}")]
    UnknownOutcome(String),
    /// Two transactions met (deadlock, serialization). Nothing was changed: try again.
    #[error("the transaction met another: {0}")]
    Conflict(String),
    /// The database refuses the data itself (SQLSTATE class 22 or 23). Bisected before it reaches a caller, so it
    /// speaks of the one item that it is returned for.
    #[error("the database refuses the data: {message} (SQLSTATE {sqlstate})")]
    Data {
        /// The five characters of the standard; "?????" when the database gives none.
        sqlstate: String,
        /// The database's words.
        message: String,
    },
    /// The row of this one thing holds what this build cannot read, whether another release wrote it or it is damaged.
    #[error("the row cannot be read: {0}")]
    Unreadable(Defect),
    /// The schema is older or newer than this build can work with.
    #[error("{0}")]
    Schema(String),
    /// The URL or an option is not one that this build can use.
    #[error("{0}")]
    Config(String),
    /// Anything else: a defect of the build or of the database.
    #[error("the database failed: {0}")]
    Internal(String),
}

impl StoreError {
    /// Whether the same call may succeed if it is made again with the same ids.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            StoreError::Unavailable(_)
                | StoreError::Timeout(_)
                | StoreError::UnknownOutcome(_)
                | StoreError::Conflict(_)
        )
    }
}

/// The result of a call to the store.
pub type Result<T> = std::result::Result<T, StoreError>;
