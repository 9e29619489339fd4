//! Lifts pauses whose time has come.

use std::{sync::Arc, time::Duration};

use millrace_runtime::{Context, background};
use millrace_store::StoreError;

use crate::Host;

const PERIOD: Duration = Duration::from_secs(1);

pub(super) fn start(context: &Context, host: &Host) {
    let (lifting, host) = (context.clone(), host.clone());
    background::every("lift pauses", PERIOD, Arc::default(), &context.shutdown, move || {
        let (context, host) = (lifting.clone(), host.clone());
        async move {
            for queue in context.call(|store| store.lift_pauses()).await? {
                tracing::info!(queue, "pause over");
                host.set_paused(&queue, false);
            }
            Ok::<(), StoreError>(())
        }
    });
}
