//! What a queue needs beyond its matcher: pauses end at their time, and queues that drain go when they are empty. Every host
//! does it, so that it is done wherever matchers run, with a queue service or without; the database decides each once.

use std::{sync::Arc, time::Duration};

use millrace_runtime::background;
use millrace_store::StoreError;

use super::Host;

const PERIOD: Duration = Duration::from_secs(1);

/// Tasks that one step moves at most.
const MOVED: i64 = 1_000;

/// Starts both loops; they end with the host's process.
pub(super) fn start(host: &Host) {
    let (lifting, draining) = (host.clone(), host.clone());
    let shutdown = &host.shared.shutdown;
    background::every("lift pauses", PERIOD, Arc::default(), shutdown, move || lift(lifting.clone()));
    background::every("drain queues", PERIOD, Arc::default(), shutdown, move || drain(draining.clone()));
}

/// Lifts pauses whose time has come.
async fn lift(host: Host) -> Result<(), StoreError> {
    for queue in host.shared.call(|store| store.lift_pauses()).await? {
        tracing::info!(queue, "pause over");
        host.set_paused(&queue, false);
    }
    Ok(())
}

/// Moves what waits in queues that drain into others, and deletes those that have become empty.
async fn drain(host: Host) -> Result<(), StoreError> {
    let gone = host.shared.call(|store| store.drain_queues(MOVED)).await?;
    for queue in &gone {
        tracing::info!(queue, "queue deleted");
    }
    if !gone.is_empty() {
        // Their matchers end now rather than with the next round.
        host.nudge();
    }
    Ok(())
}
