//! Calls to the database on behalf of people.

use std::{sync::Arc, time::Duration};

use millrace_runtime::{Context, status::Fault};
use millrace_store::{Audit, Store, StoreError};
use tokio::sync::Semaphore;

/// Changes that run at a time. Few: people make them, and each is short.
const CHANGES: usize = 4;

/// How long a call waits for its turn before the caller is told to come back.
const WAIT: Duration = Duration::from_secs(2);

/// Calls to the database on behalf of people. Reads and changes take turns of their own, so that dashboards cannot keep an
/// operator from overriding a pool, and neither takes what the leader needs.
#[derive(Clone)]
pub(crate) struct Calls {
    context: Context,
    reads: Arc<Semaphore>,
    changes: Arc<Semaphore>,
}

impl Calls {
    /// Calls of which `reads` reads run at a time.
    pub(crate) fn new(context: Context, reads: usize) -> Self {
        Self { context, reads: Arc::new(Semaphore::new(reads.max(1))), changes: Arc::new(Semaphore::new(CHANGES)) }
    }

    /// Reads. RESOURCE_EXHAUSTED when no turn comes in time.
    pub(crate) async fn read<T, F>(&self, call: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    {
        self.turn(&self.reads, call).await
    }

    /// Changes something, and writes the audit trail when `audit` makes an entry of the result, for calls whose store does not do so itself.
    /// The entry follows the change, so a database that fails between the two loses it; that is logged, with the entry.
    pub(crate) async fn change<T, F>(
        &self,
        call: F,
        audit: impl FnOnce(&T) -> Option<Audit> + Send + 'static,
    ) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    {
        let both = move |store: &dyn Store| {
            let result = call(store)?;
            if let Some(entry) = audit(&result)
                && let Err(error) = store.audit(&entry)
            {
                let Audit { action, subject, detail } = entry;
                tracing::error!(action, subject, detail, %error, "the audit trail could not be written");
            }
            Ok(result)
        };
        self.turn(&self.changes, both).await
    }

    async fn turn<T, F>(&self, turns: &Semaphore, call: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    {
        let Ok(turn) = tokio::time::timeout(WAIT, turns.acquire()).await else {
            let message = "too many calls are waiting for the database";
            return Err(Fault::exhausted("BUSY", message, Duration::from_secs(1)));
        };
        let _turn = turn.map_err(|_| Fault::internal("the service's turns have ended"))?;
        Ok(self.context.call(call).await?)
    }
}
