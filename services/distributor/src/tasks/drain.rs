//! Leaves in good order: orchestrators are sent elsewhere before their streams are cut, and no task is stopped.

use std::{sync::Arc, time::Duration};

use crate::{notices, shared::Shared};

/// How often it is looked whether everybody has left.
const LOOK: Duration = Duration::from_millis(20);

pub(super) async fn run(shared: Arc<Shared>) {
    shared.context.shutdown.draining().await;
    for session in shared.sessions.all() {
        session.go_away(notices::go_away("this replica is stopping", shared.other_replica()));
    }
    let deadline = tokio::time::Instant::now() + shared.settings.leave_grace;
    while shared.sessions.len() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    for session in shared.sessions.all() {
        session.end(None);
    }
    let id = shared.id();
    if let Err(fault) = shared.blocking(move |store| store.remove_member(id)).await {
        tracing::debug!(%fault, "the membership was not removed; its lease ends by itself");
    }
}
