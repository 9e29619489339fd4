//! Drops what is past its time, a little at a time.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use millrace_core::id::TaskId;
use millrace_runtime::{background, status::Fault};
use uuid::Uuid;

use crate::shared::{Shared, lock};

const PERIOD: Duration = Duration::from_secs(10);

/// Rows that one statement looks at.
const PAGE: i64 = 2_000;

/// How long one step goes on.
const BUDGET: Duration = Duration::from_secs(1);

/// How long sessions that are over are kept for people to look at.
const SESSIONS: Duration = Duration::from_secs(24 * 3600);

/// Where the resumable sweeps go on.
#[derive(Default, Clone, Copy)]
struct Cursors {
    requests: Option<Uuid>,
    attempts: Option<TaskId>,
}

pub(super) fn start(shared: &Arc<Shared>) {
    let stop = shared.context.shutdown.clone();
    let worker = shared.clone();
    let cursors = Arc::new(Mutex::new(Cursors::default()));
    background::every("retention", PERIOD, Arc::default(), &stop, move || step(worker.clone(), cursors.clone()));
}

async fn step(shared: Arc<Shared>, cursors: Arc<Mutex<Cursors>>) -> Result<(), Fault> {
    let (retention, requests) = (shared.settings.retention, shared.settings.request_retention);
    let from = *lock(&cursors);
    let to = shared
        .blocking(move |store| {
            store.trim_finished(retention)?;
            store.trim_sessions(SESSIONS, PAGE)?;
            let mut at = from;
            let began = Instant::now();
            // Keys lie in no order of time, so every pass looks at all of them: it takes a tenth of one connection.
            while began.elapsed() < BUDGET {
                at.requests = store.trim_requests(requests, at.requests, PAGE)?;
                at.attempts = store.trim_attempts(at.attempts, PAGE)?;
                if at.requests.is_none() && at.attempts.is_none() {
                    break;
                }
            }
            Ok(at)
        })
        .await?;
    *lock(&cursors) = to;
    Ok(())
}
