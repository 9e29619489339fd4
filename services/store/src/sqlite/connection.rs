//! The file, its lock, and the connections to it.

use std::{
    fs::{File, OpenOptions as FileOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use diesel::{
    connection::{Connection, SimpleConnection},
    sqlite::SqliteConnection,
};
use r2d2::ManageConnection;

use super::failure::{Failure, commit_error, connection_error};
use crate::{OpenOptions, Result, StoreError};

/// The process's clock, which never goes back while the store is open.
#[derive(Debug, Default)]
pub(super) struct Clock(AtomicI64);

impl Clock {
    /// Microseconds since 1970.
    pub(super) fn now(&self) -> i64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = i64::try_from(wall.as_micros()).unwrap_or(i64::MAX);
        self.0.fetch_max(wall, Ordering::Relaxed).max(wall)
    }
}

/// Keeps other processes out. The operating system lifts the lock when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock of the database at `path`, or says who has it.
    pub(super) fn take(path: &Path) -> Result<Self> {
        let lock_path = beside(path, "-lock");
        let mut file = FileOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| StoreError::Unavailable(format!("{}: {error}", lock_path.display())))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Who it is only makes the message better.
                let _ = file.read_to_string(&mut owner);
                let owner = owner.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (process {pid})"));
                return Err(StoreError::Config(format!(
                    "{} is in use by another process{owner}; a SQLite database serves one process",
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => {
                return Err(StoreError::Unavailable(format!("{} cannot be locked: {error}", lock_path.display())));
            }
        }
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Write,
    Read,
}

/// A connection, as long as it can go on.
pub(super) struct Link {
    connection: Option<SqliteConnection>,
}

/// Makes connections for a pool.
#[derive(Debug)]
pub(super) struct Manager {
    path: String,
    access: Access,
    lock_timeout: Duration,
}

impl Manager {
    fn establish(&self) -> Result<SqliteConnection> {
        let mut connection = SqliteConnection::establish(&self.path).map_err(connection_error)?;
        // FULL: a commit has reached the disk when it is answered. A killed process loses nothing either way.
        let pragmas = format!(
            "PRAGMA busy_timeout = {}; PRAGMA synchronous = FULL; PRAGMA foreign_keys = OFF;",
            self.lock_timeout.as_millis().min(i32::MAX as u128)
        );
        let access = match self.access {
            // The log is cut back after a burst, so that it does not keep the size of the largest one.
            Access::Write => "PRAGMA journal_mode = WAL; PRAGMA journal_size_limit = 67108864;",
            Access::Read => "PRAGMA query_only = ON;",
        };
        connection
            .batch_execute(&pragmas)
            .and_then(|()| connection.batch_execute(access))
            .map_err(|error| Failure::from(error).into_store())?;
        Ok(connection)
    }
}

impl ManageConnection for Manager {
    type Connection = Link;
    type Error = StoreError;

    fn connect(&self) -> Result<Link> {
        self.establish().map(|connection| Link { connection: Some(connection) })
    }

    fn is_valid(&self, _: &mut Link) -> Result<()> {
        Ok(())
    }

    fn has_broken(&self, link: &mut Link) -> bool {
        link.connection.is_none()
    }
}

/// Connections of one kind.
#[derive(Debug, Clone)]
pub(super) struct Pool(r2d2::Pool<Manager>);

impl Pool {
    fn new(manager: Manager, size: u32, wait: Duration) -> Result<Self> {
        r2d2::Pool::builder()
            .max_size(size.max(1))
            .min_idle(Some(0))
            .max_lifetime(None)
            .idle_timeout(None)
            .test_on_check_out(false)
            .connection_timeout(wait.max(Duration::from_millis(1)))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build(manager)
            .map(Self)
            .map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    /// Runs one transaction. The connection goes back to the pool only when the transaction has ended in order: after
    /// a panic, a failed commit or a failed rollback it is closed, which rolls back whatever is open.
    fn run<T>(
        &self,
        begin: &str,
        work: impl FnOnce(&mut SqliteConnection) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut link = self.0.get().map_err(|error| StoreError::Timeout(format!("no connection was free: {error}")))?;
        let Some(mut connection) = link.connection.take() else {
            return Err(StoreError::Unavailable("a connection was closed".into()));
        };
        connection.batch_execute(begin).map_err(|error| Failure::from(error).into_store())?;
        let value = match work(&mut connection) {
            Ok(value) => value,
            Err(failure) => {
                if connection.batch_execute("ROLLBACK").is_ok() {
                    link.connection = Some(connection);
                }
                return Err(failure.into_store());
            }
        };
        connection.batch_execute("COMMIT").map_err(commit_error)?;
        link.connection = Some(connection);
        Ok(value)
    }
}

/// The open database: its lock, its clock, the connection that writes and those that read.
#[derive(Debug)]
pub(super) struct Files {
    // Dropped before the lock, so that the file is closed when the next process gets in.
    writer: Pool,
    dispatch: Pool,
    people: Pool,
    clock: Clock,
    _lock: FileLock,
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// The services' own loops.
    Dispatch,
    /// People, who can never take the connections of dispatch.
    People,
}

impl Files {
    /// Locks and opens a database that exists.
    pub(super) fn open(path: &str, options: &OpenOptions) -> Result<Self> {
        if path.starts_with(':') || path.starts_with("file:") {
            return Err(StoreError::Config(format!("`sqlite:{path}` does not name a file")));
        }
        if !Path::new(path).is_file() {
            return Err(StoreError::Schema(format!("there is no database at {path}: migrate first")));
        }
        // One file has one lock, whatever links lead to it.
        let path = std::fs::canonicalize(path).map_err(|error| StoreError::Unavailable(format!("{path}: {error}")))?;
        let lock = FileLock::take(&path)?;
        let Some(path) = path.to_str() else {
            return Err(StoreError::Config(format!("{} is not a path in UTF-8", path.display())));
        };
        let manager = |access| Manager { path: path.to_owned(), access, lock_timeout: options.lock_timeout };
        // A connection outside the pools says what is wrong in its own words and at once.
        manager(Access::Write).establish()?;
        let reader = |connections: u32| Pool::new(manager(Access::Read), connections.min(4), options.connect_timeout);
        Ok(Self {
            writer: Pool::new(manager(Access::Write), 1, options.lock_timeout)?,
            dispatch: reader(options.dispatch_connections)?,
            people: reader(options.read_connections)?,
            clock: Clock::default(),
            _lock: lock,
        })
    }

    /// Runs a transaction that writes. There is one at a time; it gets the time, which no later transaction sees go
    /// back.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&mut SqliteConnection, i64) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        self.writer.run("BEGIN IMMEDIATE", |connection| work(connection, self.clock.now()))
    }

    /// Runs reads that see one state of the database.
    pub(super) fn read<T>(
        &self,
        who: Reader,
        work: impl FnOnce(&mut SqliteConnection, i64) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let pool = match who {
            Reader::Dispatch => &self.dispatch,
            Reader::People => &self.people,
        };
        // The time is taken first: whatever begins after the snapshot is not older than it.
        let now = self.clock.now();
        pool.run("BEGIN", |connection| work(connection, now))
    }
}
