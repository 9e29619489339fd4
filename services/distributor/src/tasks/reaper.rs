//! Ends sessions whose lease has run out, and gives their tasks another attempt (R2).

use std::{sync::Arc, time::Duration};

use millrace_core::retry::OutcomeKind;
use millrace_runtime::{background, status::Fault};

use crate::{ends, shared::Shared};

const PERIOD: Duration = Duration::from_millis(500);

/// Rows of one statement.
const PAGE: i64 = 500;

pub(super) fn start(shared: &Arc<Shared>) {
    let stop = shared.context.shutdown.clone();
    let worker = shared.clone();
    background::every("reaper", PERIOD, shared.reap.clone(), &stop, move || step(worker.clone()));
}

async fn step(shared: Arc<Shared>) -> Result<(), Fault> {
    let dead = shared.blocking(|store| store.reap_sessions(PAGE)).await?;
    shared.metrics.leases_lost.inc_by(dead.len() as u64);
    for session in dead {
        tracing::warn!(%session, "an orchestrator has fallen silent; its tasks get another attempt");
        if let Some(here) = shared.sessions.by_id(session) {
            here.end(Some(crate::notices::session_gone()));
        }
    }
    // Every sweep looks at all sessions that are over, not only at those it has just ended: a replica may have died
    // between the two.
    loop {
        let orphans = shared.blocking(|store| store.orphans(PAGE)).await?;
        let full = orphans.len() as i64 == PAGE;
        if orphans.is_empty() {
            return Ok(());
        }
        let ended: Vec<_> = orphans
            .into_iter()
            .map(|row| (row.lease, ends::own_outcome(OutcomeKind::Lost, "its orchestrator fell silent")))
            .collect();
        let worker = shared.clone();
        let recorded = tokio::task::spawn_blocking(move || ends::record(&worker, &ended)).await;
        let stuck = recorded
            .map_err(|_| Fault::internal("recording lost attempts panicked"))?
            .into_iter()
            .any(|recorded| recorded == ends::Recorded::Unavailable);
        if stuck || !full {
            return Ok(());
        }
    }
}
