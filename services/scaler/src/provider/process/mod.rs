//! Nodes that are agents on this machine, each a process of its own.
//!
//! Everything that is known of a node stands in files of its own directory, which any number of providers may share and which outlives
//! them: agents go on when the scaler restarts, and are found again. What a crash at any moment leaves behind is told apart by two
//! things that the agent's own process sees to before it becomes the agent:
//!
//! - it writes its identity (its process id and, on Linux, the time of its start, so that a reused id is never taken for it) into
//!   `process`, so no agent runs that is not recorded;
//! - it inherits a lock on `alive`, so a directory without an identity is known to be of a process that is being made (somebody holds
//!   the lock) or of one that never was (nobody does: it is removed, and a repeated request starts it).
//!
//! The files of `nodes/NODE_ID`: `intent.json` (what was asked, written first), `process`, `alive`, `agent.log` and `agent.log.1` (its
//! output, bounded), `stop.json` (it is being ended), `ended.json` (it has ended by itself, and with what error), `state` (the agent's
//! own). Calls of several providers take turns by a lock on `lock` beside `nodes`.
//!
//! What a pool's template may say: `boot`, a shell command that the agent runs before it takes work; `health`, a shell command that
//! succeeds while it is fit for work; `labels`, as KEY=VALUE with commas between; `env.NAME`, a variable.

mod agent;
mod files;
mod local;
mod log;
mod options;
mod round;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use millrace_proto::provider::v1::{
    DescribeNodesRequest, DescribeNodesResponse, RequestNodesRequest, RequestNodesResponse, TerminateNodesRequest,
    TerminateNodesResponse, node_provider_service_server::NodeProviderService,
};
use millrace_runtime::{
    failpoint::{self, Failure},
    status::Fault,
};
use tonic::{Request, Response, Status};

pub use files::FilesError;
pub use options::ProcessOptions;

use self::local::Local;

/// How often the agents are looked after: the ended reaped, the stopped killed once their grace is over, the logs cut.
const EVERY: Duration = Duration::from_secs(1);

/// How often the end of all agents is looked for.
const WATCH: Duration = Duration::from_millis(50);

/// Runs agents on this machine. Dropping it ends none of them: [`Process::end_all`] does.
#[derive(Debug)]
pub struct Process {
    local: Arc<Local>,
}

impl Process {
    /// Makes the directory and looks after what is in it from then on. To be called within a tokio runtime.
    ///
    /// # Errors
    /// A directory that cannot be made or read.
    pub fn open(options: ProcessOptions) -> Result<Self, FilesError> {
        let local = Arc::new(Local::open(options)?);
        tokio::spawn(look_after(Arc::downgrade(&local)));
        Ok(Self { local })
    }

    /// Takes no more orders, tells every agent to end, and waits until all have: those that still run after the grace are killed.
    ///
    /// # Errors
    /// A directory that cannot be read or written; what could be told has been told.
    pub async fn end_all(&self) -> Result<(), FilesError> {
        self.local.close();
        while self.run(Local::end_all).await? > 0 {
            // Ends by itself: the agents are killed when their grace is over.
            tokio::time::sleep(WATCH).await;
        }
        Ok(())
    }

    /// Runs what touches files and processes where it may block. It runs to its end also when the caller goes away.
    async fn run<T, E>(&self, work: impl FnOnce(&Local) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<FilesError> + Send + 'static,
    {
        let local = Arc::clone(&self.local);
        match tokio::task::spawn_blocking(move || work(&local)).await {
            Ok(done) => done,
            Err(_) => Err(FilesError::Interrupted.into()),
        }
    }
}

/// Ends when nobody holds the provider any more.
async fn look_after(local: Weak<Local>) {
    let mut failing = false;
    loop {
        tokio::time::sleep(EVERY).await;
        let Some(local) = local.upgrade() else { return };
        let done = tokio::task::spawn_blocking(move || local.look_after()).await;
        match done {
            Ok(Ok(())) => failing = false,
            Ok(Err(error)) if !failing => {
                failing = true;
                tracing::warn!(%error, "the agents on this machine cannot be looked after");
            }
            Ok(Err(_)) => {}
            // The runtime shuts down.
            Err(_) => return,
        }
    }
}

#[tonic::async_trait]
impl NodeProviderService for Process {
    async fn describe_nodes(
        &self,
        request: Request<DescribeNodesRequest>,
    ) -> Result<Response<DescribeNodesResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.run(move |local| local.describe(&request)).await?))
    }

    async fn request_nodes(
        &self,
        request: Request<RequestNodesRequest>,
    ) -> Result<Response<RequestNodesResponse>, Status> {
        let request = request.into_inner();
        let answer = self.run(move |local| local.request(&request)).await?;
        delivered("provider.process.requested")?;
        Ok(Response::new(answer))
    }

    async fn terminate_nodes(
        &self,
        request: Request<TerminateNodesRequest>,
    ) -> Result<Response<TerminateNodesResponse>, Status> {
        let request = request.into_inner();
        let answer = self.run(move |local| local.terminate(&request)).await?;
        delivered("provider.process.terminated")?;
        Ok(Response::new(answer))
    }
}

/// Where a drill loses an acknowledgement.
fn delivered(point: &str) -> Result<(), Fault> {
    match failpoint::hit(point) {
        Some(Failure::Drop) => Err(Fault::unavailable("the answer was lost", Duration::ZERO)),
        None => Ok(()),
    }
}
