//! The services of a drill, and deploys over them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use millrace_proto::queue::v1::{
    CreateQueueRequest, PauseQueueRequest, Queue, ResumeQueueRequest, queue_service_client::QueueServiceClient,
};
use millrace_tests::{
    postgres::{self, Database},
    suite::{Process, Suite},
};
use tokio::task::block_in_place;
use tonic::transport::{Channel, Endpoint};

use crate::{
    fleet::Fleet,
    judge::Judge,
    load::{Replicas, until_answered},
    sql::Sql,
};

/// A build of the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// This release.
    This,
    /// One that expects another type of a field.
    Next,
    /// One that reads either.
    Patched,
}

impl Build {
    fn failpoints(self) -> &'static str {
        match self {
            Self::This => "",
            Self::Next => "release.next=drop",
            Self::Patched => "release.patched=drop",
        }
    }
}

/// Bytes of the largest spec that a stand takes, and that it can send to an orchestrator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpecBytes(pub(crate) u32);

/// A distributor in two replicas, a queue service and a fleet on a database of their own.
pub(crate) struct Stand {
    pub(crate) replicas: Replicas,
    pub(crate) judge: Arc<Judge>,
    queues: QueueServiceClient<Channel>,
    endpoints: Vec<String>,
    fleets: Vec<Fleet>,
    queue: Process,
    distributors: Vec<Process>,
    configs: Vec<PathBuf>,
    logs: PathBuf,
    suite: Suite,
    // Last, so that nobody is connected when it is dropped.
    pub(crate) database: Database,
}

impl Stand {
    /// Starts everything as this release.
    pub(crate) async fn start(out: &Path, limit: SpecBytes) -> Result<Self> {
        let judge = Judge::open(&out.join("commands.log"))?;
        let database = postgres::fresh_database();
        let suite = Suite::on(&database.url());
        let configs: Vec<PathBuf> =
            (0..2).map(|number| suite.folder().join(format!("distributor-{number}.toml"))).collect();
        configure(&configs, limit)?;
        let (queue, distributors) = block_in_place(|| {
            let distributor = |config: &PathBuf| suite.distributor(&["--config", &config.to_string_lossy()]);
            let queue = suite.queue(&[]);
            (queue, configs.iter().map(distributor).collect::<Vec<_>>())
        });
        let endpoints: Vec<String> = distributors.iter().map(|replica| replica.endpoint.clone()).collect();
        let queues = QueueServiceClient::new(Endpoint::from_shared(queue.endpoint.clone())?.connect_lazy());
        let replicas = Replicas::new(&endpoints);
        let fleets = vec![Fleet::start(&endpoints, "default", &judge).await?];
        let logs = out.join("logs");
        Ok(Self { replicas, judge, queues, endpoints, fleets, queue, distributors, configs, logs, suite, database })
    }

    /// Rolls a build out: each process is asked to stop, and the next one's turn comes when it serves again.
    pub(crate) fn deploy(&mut self, build: Build, limit: SpecBytes) -> Result<()> {
        configure(&self.configs, limit)?;
        let roll = |process: &mut Process, between: &dyn Fn()| {
            process.set_env("MILLRACE_FAILPOINTS", build.failpoints());
            process.stop();
            between();
            process.start();
            process.wait_serving();
        };
        block_in_place(|| {
            for (number, process) in self.distributors.iter_mut().enumerate() {
                roll(process, &|| self.replicas.set_next(number, build == Build::Next));
            }
            roll(&mut self.queue, &|| ());
        });
        Ok(())
    }

    /// Stops dispatch from the queue `default`.
    pub(crate) async fn pause(&self) -> Result<()> {
        let (name, reason) = ("default".to_owned(), "the drill sets the stage".to_owned());
        let request = PauseQueueRequest { name, reason, ..PauseQueueRequest::default() };
        let call = || async { self.queues.clone().pause_queue(request.clone()).await };
        until_answered(call).await.context("pausing the queue")?;
        Ok(())
    }

    /// Lets it go on.
    pub(crate) async fn resume(&self) -> Result<()> {
        let request = ResumeQueueRequest { name: "default".into(), ..ResumeQueueRequest::default() };
        let call = || async { self.queues.clone().resume_queue(request.clone()).await };
        until_answered(call).await.context("resuming the queue")?;
        Ok(())
    }

    /// Makes a queue, and a fleet for it.
    pub(crate) async fn add_queue(&mut self, name: &str) -> Result<()> {
        let queue = Queue { name: name.into(), ..Queue::default() };
        let request = CreateQueueRequest { request_id: String::new(), queue: Some(queue) };
        self.queues.clone().create_queue(request).await.with_context(|| format!("creating the queue `{name}`"))?;
        self.fleets.push(Fleet::start(&self.endpoints, name, &self.judge).await?);
        Ok(())
    }

    /// A channel to a replica.
    pub(crate) fn channel(&self) -> Result<Channel> {
        Ok(Endpoint::from_shared(self.endpoints[0].clone())?.connect_lazy())
    }

    /// A connection to the database.
    pub(crate) fn sql(&self) -> Result<Sql> {
        Sql::connect(&self.database)
    }

    /// Stops the fleets in order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        for fleet in std::mem::take(&mut self.fleets) {
            fleet.stop().await?;
        }
        Ok(())
    }

    /// Copies what the services have logged to where the results are: the suite's folder goes with the stand.
    fn keep_logs(&self) -> Result<()> {
        let _ = std::fs::remove_dir_all(&self.logs);
        std::fs::create_dir_all(&self.logs)?;
        for entry in std::fs::read_dir(self.suite.folder())? {
            let path = entry?.path();
            if let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|of| of == "log")) {
                std::fs::copy(&path, self.logs.join(name))?;
            }
        }
        Ok(())
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if let Err(error) = self.keep_logs() {
            eprintln!("the services' logs are lost: {error}");
        }
    }
}

/// Writes the replicas' configuration. A message has 2 MiB of room beside the largest spec, which is what the services ask for. The
/// second replica gives statements less time than locks, the first more: a hiccup then shows as either kind of timeout.
fn configure(configs: &[PathBuf], SpecBytes(limit): SpecBytes) -> Result<()> {
    for (config, time) in configs.iter().zip(["5s", "1s"]) {
        let message = limit + 2 * 1024 * 1024;
        let text = format!(
            "[distributor]\nmax_spec_bytes = {limit}\nmax_message_bytes = {message}\nstatement_timeout = \"{time}\"\n"
        );
        std::fs::write(config, text).with_context(|| format!("writing {}", config.display()))?;
    }
    Ok(())
}
