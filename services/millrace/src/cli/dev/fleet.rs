//! The fleet of `millrace dev`: agents that are processes of this machine, in a pool that is created at the first start.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millrace_proto::scaler::v1::scaler_service_client::ScalerServiceClient;
use millrace_proto::scaler::v1::{CreatePoolRequest, Pool};
use millrace_runtime::shutdown::Shutdown;
use millrace_scaler::provider::{Kind, Spec};
use millrace_scaler::{Scaler, Settings};
use tonic::{Code, Status};

use crate::client::{Backoff, request_id};
use crate::exit::Failure;
use crate::status;
use crate::time::to_proto;

/// The pool's name.
pub(super) const POOL: &str = "default";
/// The provider of its nodes.
const PROVIDER: &str = "local";
/// The queue that it serves; a new database has it.
const QUEUE: &str = "default";
/// How long a task may wait before another agent is worth it.
const TARGET_WAIT: Duration = Duration::from_secs(5);
/// Agents that are not needed for so long go; on one machine they come back within a second.
const SCALE_DOWN_AFTER: Duration = Duration::from_secs(20);
/// How long a node's commands may go on after Ctrl-C before they are stopped and handed back; as for the built-in agent.
const DRAIN: &str = "5s";
/// The file in the data directory which says that the pool was created, so that one that was deleted stays deleted.
const MARKER: &str = "default-pool";

/// The nodes that this process has made or found.
#[derive(Debug, Clone, Default)]
pub(super) struct Fleet(Arc<OnceLock<Scaler>>);

/// The scaler's settings. Its variables count; the provider of agents on this machine is added.
pub(super) fn settings(data_dir: &Path) -> Result<Settings, Failure> {
    let mut settings = super::defaults::<Settings>()?;
    if settings.provider.iter().all(|provider| provider.name != PROVIDER) {
        settings.provider.push(Spec { name: PROVIDER.into(), kind: Kind::Process });
    }
    let most = usize::try_from(most()).unwrap_or(usize::MAX);
    Ok(Settings { agent_dir: data_dir.join("nodes"), agent_max: settings.agent_max.max(most), ..settings })
}

/// The settings once it is known where this process serves.
pub(super) fn connected(settings: Settings, endpoint: &str) -> Settings {
    Settings { agent_distributor: vec![endpoint.to_owned()], ..settings }
}

/// How many agents the pool may have: two for each CPU.
pub(super) fn most() -> i32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    i32::try_from(cpus * 2).unwrap_or(i32::MAX).min(1000)
}

impl Fleet {
    /// The scaler runs; its pool is created once it serves.
    pub(super) fn runs(&self, scaler: Scaler, data_dir: &Path, endpoint: &str, services: &Shutdown) {
        // Set once: this is called once.
        let _ = self.0.set(scaler);
        let marker = data_dir.join(MARKER);
        if !marker.exists() {
            drop(services.spawn("default-pool", first_start(endpoint.to_owned(), marker, services.clone())));
        }
    }

    /// Ends every node that runs on this machine, after its drain.
    pub(super) async fn end(&self) {
        let Some(scaler) = self.0.get() else { return };
        for provider in scaler.providers() {
            if let Err(error) = provider.end_all().await {
                tracing::warn!(%error, provider = %provider.name, "nodes cannot be ended");
            }
        }
    }
}

/// Creates the pool, and leaves a note that it was.
async fn first_start(endpoint: String, marker: PathBuf, services: Shutdown) {
    let created = tokio::select! {
        created = create(&endpoint) => created,
        () = services.draining() => return,
    };
    let note = match created {
        Ok(()) => "The pool was created at the first start. Delete this file to have it created again.\n",
        Err(status) if status.code() == Code::AlreadyExists => "There was a pool of that name at the first start.\n",
        Err(status) => {
            let error = status.message();
            return tracing::warn!(error, "the pool {POOL} was not created; `millrace pool create` makes one");
        }
    };
    match tokio::fs::write(&marker, note).await {
        Ok(()) => {}
        Err(error) => tracing::warn!(path = %marker.display(), %error, "the first start cannot be noted"),
    }
}

async fn create(endpoint: &str) -> Result<(), Status> {
    let request = CreatePoolRequest { request_id: request_id(), pool: Some(pool()) };
    let mut backoff = Backoff::default();
    loop {
        // This very process: until it serves, the connection is refused or waits.
        let status = match ScalerServiceClient::connect(endpoint.to_owned()).await {
            Ok(mut client) => match client.create_pool(request.clone()).await {
                Ok(_) => return Ok(()),
                Err(status) if !status::is_transient(&status) => return Err(status),
                Err(status) => status,
            },
            Err(error) => Status::unavailable(error.to_string()),
        };
        tracing::debug!(error = status.message(), "the pool is not created yet");
        tokio::time::sleep(backoff.next(status::retry_delay(&status)).unwrap_or(TARGET_WAIT)).await;
    }
}

fn pool() -> Pool {
    Pool {
        name: POOL.into(),
        description: "agents of millrace dev on this machine".into(),
        queues: vec![QUEUE.into()],
        provider: PROVIDER.into(),
        template: [("env.MILLRACE_DRAIN_TIMEOUT".to_owned(), DRAIN.to_owned())].into(),
        slots_per_node: Some(1),
        min_nodes: Some(0),
        max_nodes: Some(most()),
        target_wait: Some(to_proto(TARGET_WAIT)),
        scale_down_after: Some(to_proto(SCALE_DOWN_AFTER)),
        ..Pool::default()
    }
}
