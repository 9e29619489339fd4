//! What every service of a process is started with.

use std::sync::Arc;

use millrace_store::{Store, StoreError};
use uuid::Uuid;

use crate::{health::Health, metrics::Metrics, shutdown::Shutdown};

/// What every service of a process is started with. Clones share everything.
#[derive(Clone)]
pub struct Context {
    /// The database.
    pub store: Arc<dyn Store>,
    /// This process, as it enters itself in the table of members.
    pub member_id: Uuid,
    /// Where peers reach this process, as they dial it: `http://127.0.0.1:7601`.
    pub endpoint: String,
    /// The build that runs, for people and for R9.
    pub build: String,
    /// The process's health.
    pub health: Health,
    /// The process's metrics.
    pub metrics: Metrics,
    /// The process's end.
    pub shutdown: Shutdown,
}

impl Context {
    /// Runs a call to the database, which blocks, on a thread that may block. How many run at a time is bounded by the
    /// store's pools, which answer [`StoreError::Timeout`] when no connection comes free in time.
    ///
    /// # Errors
    /// Those of the call; [`StoreError::Internal`] when it panics.
    pub async fn call<T, F>(&self, call: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || call(store.as_ref())).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Internal(format!("a call to the database did not end: {error}"))),
        }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("member_id", &self.member_id)
            .field("endpoint", &self.endpoint)
            .field("build", &self.build)
            .finish_non_exhaustive()
    }
}
