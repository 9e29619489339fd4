//! Calls to the store, which block, from code that must not.

use std::sync::Arc;

use millrace_store::{Store, StoreError};

/// Makes one call to the database on a thread that may block. How many wait at a time is bounded by the caller.
///
/// # Errors
/// Those of the call; [`StoreError::Internal`] when it panics.
pub(crate) async fn call<T, F>(store: Arc<dyn Store>, call: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
{
    match tokio::task::spawn_blocking(move || call(store.as_ref())).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Internal(format!("a call to the database did not end: {error}"))),
    }
}
