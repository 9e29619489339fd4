//! `millrace-bench submit`: load for any distributor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};
use tonic::Status;

use crate::{
    cli::SubmitArgs,
    closed::{Call, histogram, quantile_ms, record},
    pace,
    payload::Kind,
    submission::{Batch, Ids, Unary, channels},
};

/// Calls of the open loop in flight; past it a call is not made and counted as dropped, so that a server that hangs does
/// not fill this process.
const MAX_IN_FLIGHT: usize = 10_000;

/// Submits as the flags say and prints one line of JSON. Calls that fail are counted, not repeated.
pub(crate) async fn submit(args: SubmitArgs) -> Result<()> {
    let channels = channels(&args.endpoint, usize::from(args.connections)).await?;
    let kind = Kind { tenant: args.tenant, executor: args.executor, argv: args.command, bytes: args.bytes };
    let ids = if args.without_ids { Ids::None } else { Ids::Distinct };
    let limit = args.count.map_or(u64::MAX, |tasks| tasks.div_ceil(u64::from(args.batch)));
    let size = usize::from(args.batch);
    let count = args.closed.map_or(channels.len(), usize::from);
    let callers: Vec<Caller> = match size {
        1 => Unary::callers(&channels, count, &kind, ids).into_iter().map(Caller::Unary).collect(),
        _ => Batch::callers(&channels, count, &kind, ids, size).into_iter().map(Caller::Batch).collect(),
    };
    let begin = Instant::now();
    let (mut tally, dropped) = match args.rate {
        Some(rate) => open(callers, rate, args.duration, limit).await?,
        None => (closed(callers, args.duration, limit).await?, 0),
    };
    let seconds = begin.elapsed().as_secs_f64();
    let latency = tally.latency.take().map_or_else(histogram, Ok)?;
    let line = json!({
        "tasks": tally.tasks, "seconds": seconds, "tasks_per_s": tally.tasks as f64 / seconds,
        "failed_calls": tally.failed, "dropped_calls": dropped, "first_failure": tally.first_failure,
        "latency_ms": {"p50": quantile_ms(&latency, 0.5), "p99": quantile_ms(&latency, 0.99), "max": latency.max() as f64 / 1000.0},
    });
    println!("{line}");
    match tally.failed + dropped {
        0 => Ok(()),
        failed => bail!("{failed} calls failed or were dropped"),
    }
}

#[derive(Clone)]
enum Caller {
    Unary(Unary),
    Batch(Batch),
}

impl Call for Caller {
    async fn call(&mut self) -> Result<u64, Status> {
        match self {
            Self::Unary(unary) => unary.call().await,
            Self::Batch(batch) => batch.call().await,
        }
    }
}

/// What the calls came to.
#[derive(Default)]
struct Tally {
    tasks: u64,
    failed: u64,
    first_failure: Option<String>,
    latency: Option<Histogram<u64>>,
}

impl Tally {
    fn add(&mut self, result: Result<u64, Status>, span: Duration) -> Result<()> {
        match result {
            Ok(tasks) => {
                self.tasks += tasks;
                let latency = match self.latency.take() {
                    Some(latency) => latency,
                    None => histogram()?,
                };
                record(self.latency.insert(latency), span);
            }
            Err(status) => {
                self.failed += 1;
                self.first_failure.get_or_insert_with(|| format!("{:?}: {}", status.code(), status.message()));
            }
        }
        Ok(())
    }
}

/// Each caller waits for its answer.
async fn closed(callers: Vec<Caller>, time: Duration, limit: u64) -> Result<Tally> {
    let (until, left) = (Instant::now() + time, Arc::new(AtomicU64::new(limit)));
    // When it is full callers wait to report, which is how a closed loop should bear it.
    let (reports, mut results) = mpsc::channel(1024);
    for mut caller in callers {
        let (left, reports) = (Arc::clone(&left), reports.clone());
        tokio::spawn(async move {
            let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            while Instant::now() < until && take() {
                let begin = Instant::now();
                let result = caller.call().await;
                if reports.send((result, begin.elapsed())).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(reports);
    let mut tally = Tally::default();
    while let Some((result, span)) = results.recv().await {
        tally.add(result, span)?;
    }
    Ok(tally)
}

/// Calls on a schedule. Returns also how many were dropped.
async fn open(callers: Vec<Caller>, rate: u32, time: Duration, limit: u64) -> Result<(Tally, u64)> {
    let count = (f64::from(rate) * time.as_secs_f64()).ceil() as u64;
    let count = count.min(limit);
    if count == 0 {
        bail!("that makes no call at all");
    }
    let (runtime, room) = (Handle::current(), Arc::new(Semaphore::new(MAX_IN_FLIGHT)));
    // When it is full calls wait to report and keep their room, so that the next ones are dropped and counted.
    let (reports, mut results) = mpsc::channel(1024);
    let dropped = Arc::new(AtomicU64::new(0));
    let drops = Arc::clone(&dropped);
    let _pace = pace::keep(f64::from(rate), count, move |number, due| {
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            drops.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (mut caller, reports) = (callers[number as usize % callers.len()].clone(), reports.clone());
        runtime.spawn(async move {
            let result = caller.call().await;
            let _ = reports.send((result, due.elapsed())).await;
            drop(permit);
        });
    });
    // Ends when the schedule and every call have dropped their senders.
    let mut tally = Tally::default();
    while let Some((result, span)) = results.recv().await {
        tally.add(result, span)?;
    }
    Ok((tally, dropped.load(Ordering::Relaxed)))
}
