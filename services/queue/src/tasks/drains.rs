//! Moves what waits in queues that are being deleted, and deletes those that have become empty.

use std::{sync::Arc, time::Duration};

use millrace_runtime::{Context, background};
use millrace_store::StoreError;

use crate::Host;

const PERIOD: Duration = Duration::from_secs(1);

/// Tasks that one step moves at most.
const MOVED: i64 = 1_000;

pub(super) fn start(context: &Context, host: &Host) {
    let (draining, host) = (context.clone(), host.clone());
    background::every("drain queues", PERIOD, Arc::default(), &context.shutdown, move || {
        let (context, host) = (draining.clone(), host.clone());
        async move {
            let gone = context.call(|store| store.drain_queues(MOVED)).await?;
            for queue in &gone {
                tracing::info!(queue, "queue deleted");
            }
            if !gone.is_empty() {
                // Their matchers end now rather than with the next round.
                host.nudge();
            }
            Ok::<(), StoreError>(())
        }
    });
}
