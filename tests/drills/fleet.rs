//! Orchestrators of the real client crate, in this process.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use millrace_orchestrator::{Options, Orchestrator, RunError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::judge::{Commands, Judge};

/// Slots of each orchestrator; a slot is free again once its result is recorded.
const SLOTS: u32 = 64;

/// Orchestrators that are connected: one to each replica at first, and each knows all. They stop when this is dropped, and in order
/// by [`Fleet::stop`].
pub(crate) struct Fleet {
    running: JoinSet<Result<(), RunError>>,
    shutdown: CancellationToken,
}

impl Fleet {
    /// Starts an orchestrator for each replica and waits until each has its session.
    pub(crate) async fn start(endpoints: &[String], queue: &str, judge: &Arc<Judge>) -> Result<Self> {
        let (mut running, shutdown) = (JoinSet::new(), CancellationToken::new());
        let mut statuses = Vec::new();
        for number in 0..endpoints.len() {
            let mut endpoints = endpoints.to_vec();
            endpoints.rotate_left(number);
            let options = Options {
                endpoints,
                name: format!("drill-{queue}-{number}"),
                queues: vec![queue.to_owned()],
                slots: SLOTS,
                ..Options::default()
            };
            let orchestrator = Orchestrator::new(options, Commands(judge.clone()));
            statuses.push(orchestrator.status());
            running.spawn(orchestrator.run(shutdown.clone()));
        }
        for mut status in statuses {
            let connected = status.wait_for(|status| status.endpoint.is_some());
            let connected = tokio::time::timeout(Duration::from_secs(30), connected).await;
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
