//! Sends assignments again that no orchestrator has reported as running (R1), and tidies the live output.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use millrace_core::held::LeaseRef;
use millrace_runtime::{background, status::Fault};
use millrace_store::Dispatch;

use crate::{claims::assignable, shared::Shared};

const PERIOD: Duration = Duration::from_secs(1);

pub(super) fn start(shared: &Arc<Shared>) {
    let stop = shared.context.shutdown.clone();
    let worker = shared.clone();
    background::every("resend", PERIOD, Arc::default(), &stop, move || step(worker.clone()));
}

async fn step(shared: Arc<Shared>) -> Result<(), Fault> {
    shared.outputs.tidy(shared.now());
    shared.metrics.output_bytes.set(shared.outputs.bytes() as i64);
    shared.metrics.sessions.set(shared.sessions.len() as i64);
    for session in shared.sessions.all() {
        let overdue: BTreeSet<LeaseRef> =
            session.overdue(shared.now(), shared.settings.accept_patience).into_iter().collect();
        if overdue.is_empty() {
            continue;
        }
        let id = session.id;
        let held = shared.blocking(move |store| store.held_by(id)).await?;
        let again: Vec<Dispatch> =
            assignable(&shared, held).into_iter().filter(|dispatch| overdue.contains(&dispatch.lease)).collect();
        if !again.is_empty() {
            shared.metrics.resent.inc_by(again.len() as u64);
            tracing::info!(session = %id, attempts = again.len(), "unreported attempts are sent again");
            session.send_again(again, shared.now());
        }
    }
    Ok(())
}
