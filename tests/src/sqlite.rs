//! SQLite databases for tests.

use std::path::PathBuf;

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use tempfile::TempDir;

/// A migrated database in a folder of its own, removed with this value.
pub struct Database {
    folder: TempDir,
}

/// Makes a migrated database.
///
/// # Panics
/// When it cannot be made.
pub fn fresh() -> Database {
    let database = Database { folder: tempfile::tempdir().expect("making a temporary folder") };
    if let Err(error) = millrace_store::migrate::up(&database.url()) {
        panic!("migrating {}: {error}", database.url());
    }
    database
}

impl Database {
    /// Its URL, as the store takes it.
    pub fn url(&self) -> String {
        format!("sqlite:{}", self.path().display())
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("millrace.db")
    }

    /// Another connection to it, for what a test does behind the store's back.
    pub fn connect(&self) -> SqliteConnection {
        let path = self.path();
        let mut connection = SqliteConnection::establish(&path.to_string_lossy())
            .unwrap_or_else(|error| panic!("opening {}: {error}", path.display()));
        connection.batch_execute("PRAGMA busy_timeout = 30000").expect("setting the busy timeout");
        connection
    }
}
