//! Closed-loop load: so many callers, each of which waits for its answer before it calls again.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tonic::Status;

/// The longest latency that is told from longer ones, in microseconds.
const LONGEST_US: u64 = 60_000_000;

/// A caller: one thing in flight at a time.
pub(crate) trait Call: Send + 'static {
    /// Calls once and returns how many items were done.
    fn call(&mut self) -> impl Future<Output = Result<u64, Status>> + Send;
}

/// What a loop came to.
#[derive(Debug)]
pub(crate) struct Loop {
    /// Items done within the measured time.
    pub(crate) items: u64,
    /// The measured time.
    pub(crate) seconds: f64,
    /// Latencies of single calls in microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Loop {
    /// Items a second.
    pub(crate) fn per_s(&self) -> f64 {
        self.items as f64 / self.seconds
    }

    /// A quantile of the latency in milliseconds.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.latency, quantile)
    }
}

/// An empty histogram of microseconds.
pub(crate) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).map_err(|error| anyhow!("making a histogram: {error}"))
}

/// Adds a latency.
pub(crate) fn record(latency: &mut Histogram<u64>, span: Duration) {
    latency.saturating_record(u64::try_from(span.as_micros()).unwrap_or(LONGEST_US));
}

/// A quantile in milliseconds.
pub(crate) fn quantile_ms(latency: &Histogram<u64>, quantile: f64) -> f64 {
    latency.value_at_quantile(quantile) as f64 / 1000.0
}

/// Runs the callers for a time, and counts what ends after the warm-up.
///
/// # Errors
/// The first call that fails: a figure with failures in it would be none.
pub(crate) async fn for_time<C: Call>(callers: Vec<C>, warm_up: Duration, measured: Duration) -> Result<Loop> {
    let from = Instant::now() + warm_up;
    let until = from + measured;
    let mut running = JoinSet::new();
    for mut caller in callers {
        running.spawn(async move {
            let (mut items, mut latency) = (0, histogram()?);
            loop {
                let start = Instant::now();
                if start >= until {
                    return Ok((items, latency));
                }
                let done = caller.call().await?;
                let end = Instant::now();
                if (from..until).contains(&end) {
                    items += done;
                    record(&mut latency, end - start);
                }
            }
        });
    }
    let (items, latency) = merge(running).await?;
    Ok(Loop { items, seconds: measured.as_secs_f64(), latency })
}

/// Runs the callers until they have made so many calls together.
///
/// # Errors
/// The first call that fails.
pub(crate) async fn for_calls<C: Call>(callers: Vec<C>, calls: u64) -> Result<Loop> {
    let left = Arc::new(AtomicU64::new(calls));
    let begin = Instant::now();
    let mut running = JoinSet::new();
    for mut caller in callers {
        let left = Arc::clone(&left);
        running.spawn(async move {
            let (mut items, mut latency) = (0, histogram()?);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let start = Instant::now();
                items += caller.call().await?;
                record(&mut latency, start.elapsed());
            }
            Ok((items, latency))
        });
    }
    let (items, latency) = merge(running).await?;
    Ok(Loop { items, seconds: begin.elapsed().as_secs_f64(), latency })
}

async fn merge(mut running: JoinSet<Result<(u64, Histogram<u64>)>>) -> Result<(u64, Histogram<u64>)> {
    let (mut items, mut latency) = (0, histogram()?);
    while let Some(ended) = running.join_next().await {
        let (done, of_one) = ended??;
        items += done;
        latency.add(&of_one).map_err(|error| anyhow!("adding latencies: {error}"))?;
    }
    Ok((items, latency))
}
