//! What the services keep in memory while tasks wait.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::sleep;

use crate::{
    payload::Kind,
    plan::{FEW_PARKED, PARKED},
    services::{self, Services},
    submission::{self, Ids},
    usage::resident,
};

/// Tenants among which the waiting tasks are spread, so that the matcher's window fills: one tenant alone gets a part of it.
const TENANTS: u64 = 18;

/// The memory of the services while so many tasks wait.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Memory {
    /// Tasks that wait.
    pub(crate) waiting: u64,
    /// Resident memory of the distributor in MB.
    pub(crate) distributor_mb: f64,
    /// Resident memory of the queue service in MB.
    pub(crate) queue_mb: f64,
    /// The part of it that it has allocated.
    pub(crate) queue_anonymous_mb: f64,
    /// Entries in the matcher's window.
    pub(crate) window: i64,
    /// The window's bound.
    pub(crate) window_capacity: i64,
}

/// Fills the queue beside and reads the memory at 1,000 and at 100,000 waiting tasks.
pub(crate) async fn fill_and_read(services: &Services, submitters: u16) -> Result<Vec<Memory>> {
    let endpoint = &services.distributor.endpoint;
    let kind = |tenant: u64| Kind::routed(&format!("parked-{tenant}"), services::PARKED);
    submission::fill(endpoint, &kind(TENANTS), Ids::Distinct, FEW_PARKED, 1).await?;
    let few = read(services, FEW_PARKED).await?;
    for tenant in 0..TENANTS {
        let share = (PARKED - FEW_PARKED) / TENANTS;
        submission::fill(endpoint, &kind(tenant), Ids::Distinct, share, submitters).await?;
    }
    Ok(vec![few, read(services, PARKED).await?])
}

/// Waits until the window has filled, and reads.
async fn read(services: &Services, waiting: u64) -> Result<Memory> {
    let (mut window, mut same) = (-1, 0);
    // It fills by offers, and by reading where those were dropped; what stays the same for a second is done.
    for _ in 0..100 {
        let now = services.stats(services::PARKED).await?.window.unwrap_or(0);
        same = if now == window { same + 1 } else { 0 };
        window = now;
        if same >= 10 {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let stats = services.stats(services::PARKED).await?;
    let memory = |pid: Option<u32>| resident(pid.context("a service has ended")?);
    let (distributor, queue) = (memory(services.distributor.pid())?, memory(services.queue.pid())?);
    Ok(Memory {
        waiting,
        distributor_mb: distributor.all_mb,
        queue_mb: queue.all_mb,
        queue_anonymous_mb: queue.anonymous_mb,
        window: stats.window.unwrap_or(0),
        window_capacity: stats.window_capacity.unwrap_or(0),
    })
}

/// Bytes that the queue service has allocated for each entry more in the window; none when it holds no more than before.
pub(crate) fn bytes_per_entry(readings: &[Memory]) -> Option<f64> {
    let [few, many] = readings else { return None };
    let entries = many.window - few.window;
    (entries > 0).then(|| (many.queue_anonymous_mb - few.queue_anonymous_mb) * 1e6 / entries as f64)
}
