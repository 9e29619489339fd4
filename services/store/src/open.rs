//! Opening a store by its URL.

use std::{sync::Arc, time::Duration};

use crate::{Reader, Result, Store, StoreError, migrate};

/// Bounds on what a process asks of its database.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Connections for submit, claim, complete, heartbeats and the background loops.
    pub dispatch_connections: u32,
    /// Connections for what people read. They can never take those of dispatch.
    pub read_connections: u32,
    /// The longest that one statement of dispatch may take.
    pub statement_timeout: Duration,
    /// The longest that one read by people may take.
    pub read_timeout: Duration,
    /// The longest wait for a lock.
    pub lock_timeout: Duration,
    /// The longest wait for a connection of a pool, and for a new connection.
    pub connect_timeout: Duration,
    /// How this build reads what others wrote.
    pub reader: Reader,
    /// The oldest migration that the caller works with, when that is newer than the oldest of its build: [`crate::migrate::FLEETS`] for
    /// the scaler.
    pub oldest_schema: &'static str,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            dispatch_connections: 8,
            read_connections: 4,
            statement_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(3),
            lock_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(3),
            reader: Reader::default(),
            oldest_schema: migrate::schema_range().0,
        }
    }
}

/// Tells whether something between here and the database at `postgres://…` pools connections by transaction, which breaks prepared
/// statements: what was seen when it does. Writes nothing.
pub fn transaction_pooling(url: &str) -> Result<Option<String>> {
    crate::postgres::transaction_pooling(url)
}

/// Opens the store at `postgres://…` (or `postgresql://…`) or `sqlite:PATH`. The schema must be one that this build can
/// work with: [`StoreError::Schema`] otherwise. Does not migrate.
pub fn open(url: &str, options: &OpenOptions) -> Result<Arc<dyn Store>> {
    let store: Arc<dyn Store> = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        Arc::new(crate::postgres::PostgresStore::open(url, options)?)
    } else {
        match url.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() => Arc::new(crate::sqlite::SqliteStore::open(path, options)?),
            _ => return Err(StoreError::Config(format!("`{url}` is neither postgres://… nor sqlite:PATH"))),
        }
    };
    if options.oldest_schema > migrate::schema_range().0 {
        migrate::reaches(&store.schema_version()?, options.oldest_schema)?;
    }
    Ok(store)
}
