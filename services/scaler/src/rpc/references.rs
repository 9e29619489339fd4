//! What a pool names must exist when it is named: queues, fallback pools, and its provider.
//!
//! The provider is looked up among those of the replica that is asked: all replicas are to have the same ones, because any of them may
//! come to lead. A pool whose provider is taken away later stays, launches nothing, and says so.

use millrace_proto::scaler::v1::Pool;
use millrace_runtime::status::Fault;
use millrace_store::{Store, StoreError};

use super::Rpc;

/// The first thing that is named and does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Absent {
    Queue(String),
    Pool(String),
}

/// Looks for queues and pools in the database.
pub(super) fn look(store: &dyn Store, queues: &[String], pools: &[String]) -> Result<Option<Absent>, StoreError> {
    for queue in queues {
        if store.queue(queue)?.is_none() {
            return Ok(Some(Absent::Queue(queue.clone())));
        }
    }
    for pool in pools {
        if store.pool(pool)?.is_none() {
            return Ok(Some(Absent::Pool(pool.clone())));
        }
    }
    Ok(None)
}

impl Absent {
    /// FAILED_PRECONDITION that names it.
    pub(super) fn refusal(&self) -> Fault {
        match self {
            Self::Queue(queue) => {
                let message = format!("there is no queue `{queue}`: create it first, or correct the name");
                Fault::precondition("QUEUE_NOT_FOUND", message).with_metadata("queue", queue)
            }
            Self::Pool(pool) => {
                let message =
                    format!("there is no pool `{pool}` to fall back on: create it first, or correct the name");
                Fault::precondition("FALLBACK_NOT_FOUND", message).with_metadata("pool", pool)
            }
        }
    }
}

/// Whether this replica has the pool's provider.
pub(super) fn provider(rpc: &Rpc, pool: &Pool) -> Result<(), Fault> {
    if rpc.providers.has(&pool.provider) {
        return Ok(());
    }
    let mut names: Vec<&str> = rpc.providers.names().collect();
    names.sort_unstable();
    let there = match names.is_empty() {
        true => "it has none: start it with --provider".into(),
        false => format!("it has {}", names.join(", ")),
    };
    let message = format!("this scaler has no provider `{}`; {there}", pool.provider);
    Err(Fault::precondition("PROVIDER_UNKNOWN", message).with_metadata("provider", &pool.provider))
}
