//! Orchestrators of the real client crate that do nothing, as fast as they can.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use millrace_orchestrator::{Attempt, AttemptHandle, Executor, Options, Orchestrator, Outcome, RunError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Orchestrators that are connected. They stop when this is dropped, and in order by [`Fleet::stop`].
pub(crate) struct Fleet {
    running: JoinSet<Result<(), RunError>>,
    shutdown: CancellationToken,
}

/// How a fleet is made.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Orchestrators.
    pub(crate) count: usize,
    /// Slots of each.
    pub(crate) slots: u32,
}

impl Fleet {
    /// Starts orchestrators for the queue `default` and waits until each has its session.
    pub(crate) async fn start<E: Executor>(endpoint: &str, shape: &Shape, executor: Arc<E>) -> Result<Self> {
        let (mut running, shutdown) = (JoinSet::new(), CancellationToken::new());
        let mut statuses = Vec::new();
        for number in 0..shape.count {
            let options = Options {
                endpoints: vec![endpoint.to_owned()],
                name: format!("bench-{number}"),
                slots: shape.slots,
                ..Options::default()
            };
            let orchestrator = Orchestrator::new(options, Arc::clone(&executor));
            statuses.push(orchestrator.status());
            running.spawn(orchestrator.run(shutdown.clone()));
        }
        for mut status in statuses {
            let connected = status.wait_for(|status| status.endpoint.is_some());
            let connected = tokio::time::timeout(Duration::from_secs(15), connected).await;
            connected.context("an orchestrator did not connect")?.context("an orchestrator ended at once")?;
        }
        Ok(Self { running, shutdown })
    }

    /// Ends the sessions in order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.shutdown.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// Succeeds at once, in the connection's own loop.
#[derive(Debug, Default)]
pub(crate) struct NoOp {
    runs: AtomicU64,
}

impl NoOp {
    /// Attempts run so far.
    fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Waits until so many attempts have been run.
    ///
    /// # Errors
    /// None for 20 s.
    pub(crate) async fn reach(&self, runs: u64) -> Result<()> {
        const PATIENCE: u32 = 2000;
        let (mut seen, mut idle) = (self.runs(), 0);
        while seen < runs {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = self.runs();
            idle = if now == seen { idle + 1 } else { 0 };
            if idle > PATIENCE {
                bail!("nothing moves: {now} of {runs} tasks were run");
            }
            seen = now;
        }
        Ok(())
    }
}

impl Executor for NoOp {
    fn name(&self) -> &str {
        "process"
    }

    fn run(&self, _: AttemptHandle) -> BoxFuture<'_, Outcome> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Outcome::succeeded()))
    }

    fn run_inline(&self, _: &Attempt) -> Option<Outcome> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        Some(Outcome::succeeded())
    }
}
