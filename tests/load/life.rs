//! The whole life of tasks through the services, and the drain of a backlog.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use crate::{
    fleet::{Fleet, NoOp, Shape},
    payload::Kind,
    services::{Services, until},
    submission::{self, Ids},
    usage::{self, Used, Watched},
};

/// What it came to.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Lives {
    /// Lives a second.
    pub(crate) per_s: f64,
    /// Lives, counted in the table of finished tasks.
    pub(crate) tasks: u64,
    /// The time from the first submit call, or the first claim of a drain, to the last completion.
    pub(crate) seconds: f64,
    /// Submissions a second: while the fleet drained, or before it did.
    pub(crate) submit_per_s: f64,
    /// Who used the CPU.
    pub(crate) used: Vec<Used>,
}

/// What the two measurements have in common.
pub(crate) struct Bench<'a> {
    /// The services.
    pub(crate) services: &'a Services,
    /// Whose CPU is of interest.
    pub(crate) watched: &'a [Watched],
    /// The orchestrators that drain.
    pub(crate) shape: Shape,
    /// Calls of BatchSubmitTasks in flight.
    pub(crate) submitters: u16,
}

impl Bench<'_> {
    /// Submits in batches of 500 while a fleet runs what comes.
    pub(crate) async fn whole(&self, tenant: &str, tasks: u64, ids: Ids) -> Result<Lives> {
        self.services.database.psql("CHECKPOINT").await?;
        let executor = Arc::new(NoOp::default());
        let fleet = Fleet::start(&self.services.distributor.endpoint, &self.shape, Arc::clone(&executor)).await?;
        let before = usage::snapshot(self.watched);
        let begin_us = now_us()?;
        let submitted = self.fill(tenant, tasks, ids).await?;
        executor.reach(tasks).await?;
        let used = usage::since(self.watched, &before, tasks);
        let end_us = self.finished(tenant, tasks).await?.1;
        fleet.stop().await?;
        let seconds = (end_us - begin_us) as f64 / 1e6;
        Ok(Lives { per_s: tasks as f64 / seconds, tasks, seconds, submit_per_s: submitted, used })
    }

    /// Submits first, and then has a fleet run it all. The time counts from the first claim.
    pub(crate) async fn drain(&self, tenant: &str, tasks: u64) -> Result<Lives> {
        let submitted = self.fill(tenant, tasks, Ids::Distinct).await?;
        self.services.database.psql("CHECKPOINT").await?;
        let executor = Arc::new(NoOp::default());
        let before = usage::snapshot(self.watched);
        let fleet = Fleet::start(&self.services.distributor.endpoint, &self.shape, Arc::clone(&executor)).await?;
        executor.reach(tasks).await?;
        let used = usage::since(self.watched, &before, tasks);
        let (begin_us, end_us) = self.finished(tenant, tasks).await?;
        fleet.stop().await?;
        let seconds = (end_us - begin_us) as f64 / 1e6;
        Ok(Lives { per_s: tasks as f64 / seconds, tasks, seconds, submit_per_s: submitted, used })
    }

    /// Runs whatever waits in the queue `default`, so that the next measurement begins with an empty one.
    pub(crate) async fn empty(&self) -> Result<()> {
        let fleet = Fleet::start(&self.services.distributor.endpoint, &self.shape, Arc::new(NoOp::default())).await?;
        let left = "SELECT count(*) FROM tasks WHERE queue = 'default'";
        let mut before = i64::MAX;
        loop {
            let now = self.services.database.number(left).await?;
            if now == 0 {
                break;
            }
            if now >= before {
                bail!("nothing moves: {now} tasks are left over");
            }
            before = now;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        fleet.stop().await
    }

    async fn fill(&self, tenant: &str, tasks: u64, ids: Ids) -> Result<f64> {
        let endpoint = &self.services.distributor.endpoint;
        let filled = submission::fill(endpoint, &Kind::of(tenant), ids, tasks, self.submitters).await?;
        match filled.items == tasks {
            true => Ok(filled.per_s()),
            false => bail!("{} of {tasks} tasks were acknowledged", filled.items),
        }
    }

    /// Waits until every task of the tenant has ended, and makes sure that each succeeded at its first attempt. Returns the first
    /// claim and the last completion, by the database's clock in microseconds.
    async fn finished(&self, tenant: &str, tasks: u64) -> Result<(i64, i64)> {
        let database = &self.services.database;
        let live = format!("SELECT count(*) FROM tasks WHERE tenant = '{tenant}'");
        until("the last completions", || async { Ok(database.number(&live).await? == 0) }).await?;
        let line = database
            .psql(&format!(
                "SELECT count(*), count(*) FILTER (WHERE state = 6 AND attempt = 1), min(dispatched_at_us), max(finished_at_us)
                 FROM finished_tasks WHERE tenant = '{tenant}'"
            ))
            .await?;
        let figures: Vec<i64> =
            line.split('|').map(str::parse).collect::<Result<_, _>>().with_context(|| line.clone())?;
        match figures[..] {
            [all, first, begin_us, end_us] if all == first && all as u64 == tasks => Ok((begin_us, end_us)),
            _ => bail!("{tasks} tasks were submitted; finished, succeeded at once, first claim, last end: {line}"),
        }
    }
}

/// The time in microseconds since 1970. The database is on this machine and has the same clock.
pub(crate) fn now_us() -> Result<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    Ok(i64::try_from(now.as_micros())?)
}
