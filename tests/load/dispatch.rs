//! From the submit call to the start of the command, at a steady rate.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use millrace_proto::distributor::v1::SubmitTaskRequest;
use tokio::{runtime::Handle, sync::mpsc};
use tonic::{Status, transport::Channel};

use crate::{
    closed::{histogram, quantile_ms, record},
    fleet::{Fleet, Shape},
    life::now_us,
    pace,
    payload::Kind,
    plan::{CONNECTIONS, DISPATCH_RATE},
    services::{Services, until},
    spawning::Spawning,
    submission::{Client, Ids, channels},
};

/// Slots of the orchestrator; far more than are ever taken.
const SLOTS: u32 = 64;

/// Quantiles of a latency in milliseconds.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Latency {
    /// Half were faster.
    pub(crate) p50: f64,
    /// 99 of 100 were faster.
    pub(crate) p99: f64,
    /// The slowest.
    pub(crate) max: f64,
    /// How many were timed.
    pub(crate) tasks: u64,
}

impl Latency {
    fn of(latency: &Histogram<u64>) -> Self {
        Self {
            p50: quantile_ms(latency, 0.5),
            p99: quantile_ms(latency, 0.99),
            max: latency.max() as f64 / 1000.0,
            tasks: latency.len(),
        }
    }
}

/// What was measured with the client crate.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Dispatch {
    /// From the scheduled submit call until the start of the process had returned.
    pub(crate) to_spawn: Latency,
    /// From the scheduled submit call to its answer.
    pub(crate) to_answer: Latency,
}

/// A submission that was answered.
struct Answered {
    number: u64,
    due: Instant,
    due_us: i64,
    at: Instant,
    task: String,
}

/// Submits on a schedule and starts each command with an orchestrator in this process, so that one monotonic clock sees both
/// ends. The first second is for warming up.
pub(crate) async fn by_client(services: &Services, time: Duration) -> Result<Dispatch> {
    let executor = Arc::new(Spawning::default());
    let shape = Shape { count: 1, slots: SLOTS };
    let fleet = Fleet::start(&services.distributor.endpoint, &shape, Arc::clone(&executor)).await?;
    let answered = submit(services, "dispatch", time).await?;
    until("the last command to start", || async { Ok(executor.count() >= answered.len()) }).await?;
    fleet.stop().await?;

    let started: HashMap<u64, Instant> = executor.started().into_iter().collect();
    let (mut to_spawn, mut to_answer) = (histogram()?, histogram()?);
    for one in answered.iter().filter(|one| one.number >= u64::from(DISPATCH_RATE)) {
        let start = started.get(&one.number).with_context(|| format!("task {} was not started", one.task))?;
        record(&mut to_spawn, start.saturating_duration_since(one.due));
        record(&mut to_answer, one.at.saturating_duration_since(one.due));
    }
    Ok(Dispatch { to_spawn: Latency::of(&to_spawn), to_answer: Latency::of(&to_answer) })
}

/// The same with the agent, a process of its own. It reports when it took each attempt up, just before it starts the process,
/// by the machine's clock.
pub(crate) async fn by_agent(services: &Services, time: Duration) -> Result<Latency> {
    let _agent = services.start_agent(SLOTS).await?;
    let answered = submit(services, "agent", time).await?;
    let database = &services.database;
    let live = "SELECT count(*) FROM tasks WHERE tenant = 'agent'";
    until("the last command to end", || async { Ok(database.number(live).await? == 0) }).await?;
    let rows = database
        .psql("SELECT id, started_at_us FROM finished_tasks WHERE tenant = 'agent' AND state = 6 AND attempt = 1")
        .await?;
    let started: HashMap<&str, i64> = rows
        .lines()
        .filter_map(|row| row.split_once('|'))
        .filter_map(|(id, at)| Some((id, at.parse().ok()?)))
        .collect();
    let mut latency = histogram()?;
    for one in answered.iter().filter(|one| one.number >= u64::from(DISPATCH_RATE)) {
        let start =
            started.get(one.task.as_str()).with_context(|| format!("task {} did not succeed at once", one.task))?;
        record(&mut latency, Duration::from_micros(u64::try_from(start - one.due_us).unwrap_or(0)));
    }
    Ok(Latency::of(&latency))
}

/// Submits 200 tasks a second for a time, after a second of warming up, each with a number from 0.
async fn submit(services: &Services, tenant: &str, time: Duration) -> Result<Vec<Answered>> {
    let count = (time.as_secs() + 1) * u64::from(DISPATCH_RATE);
    let channels = channels(&services.distributor.endpoint, CONNECTIONS).await?;
    let (runtime, kind) = (Handle::current(), Kind::of(tenant));
    // Bounded by the number of calls; it ends when the schedule and every call have dropped their senders.
    let (answers, mut results) = mpsc::unbounded_channel();
    let _pace = pace::keep(f64::from(DISPATCH_RATE), count, move |number, due| {
        // What is due was due a moment ago by the other clock as well.
        let due_us = now_us().map(|now| now - i64::try_from(due.elapsed().as_micros()).unwrap_or(0));
        let channel = channels[number as usize % channels.len()].clone();
        let request = SubmitTaskRequest { request_id: Ids::Distinct.next(), spec: kind.numbered(number) };
        let answers = answers.clone();
        runtime.spawn(async move {
            let answer = call(channel, request).await.map(|task| (task, Instant::now()));
            let _ = answers.send((number, due, due_us, answer));
        });
    });
    let mut answered = Vec::with_capacity(count as usize);
    while let Some((number, due, due_us, answer)) = results.recv().await {
        let (task, at) = answer.context("a submission failed")?;
        answered.push(Answered { number, due, due_us: due_us?, at, task });
    }
    match answered.len() as u64 == count {
        true => Ok(answered),
        false => bail!("{} of {count} submissions were answered", answered.len()),
    }
}

async fn call(channel: Channel, request: SubmitTaskRequest) -> Result<String, Status> {
    let response = Client::new(channel).submit_task(request).await?;
    let task = response.into_inner().task;
    task.map(|task| task.id).ok_or_else(|| Status::internal("an answer without a task"))
}
