//! The real services: separate processes of the `millrace` binary on one database.

use std::{
    fs::File,
    future::Future,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use millrace_proto::{
    distributor::v1::{GetStatusRequest, Route, SetRouteRequest},
    queue::v1::{CreateQueueRequest, GetQueueRequest, Queue, QueueStats, queue_service_client::QueueServiceClient},
};
use millrace_tests::net::free_port;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::sleep,
};
use tonic::transport::Channel;

use crate::{
    postgres::{Database, Server},
    submission::{Client, channels},
    usage::Watched,
};

/// The queue, and the executor that is routed to it, whose tasks wait throughout the run: nobody serves it.
pub(crate) const PARKED: &str = "parked";

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// One distributor and one queue service on a new database. All of it ends with this value.
pub(crate) struct Services {
    pub(crate) distributor: Process,
    pub(crate) queue: Process,
    pub(crate) database: Database,
    binary: PathBuf,
    logs: PathBuf,
    queues: QueueServiceClient<Channel>,
    client: Client,
}

/// A process that was started; killed when dropped.
pub(crate) struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
    /// Where it serves gRPC.
    pub(crate) endpoint: String,
    http: String,
}

impl Services {
    /// Migrates a new database, starts the services and waits until they serve and the queue `default` has an owner.
    pub(crate) async fn start(server: &Server, binary: &Path, logs: &Path) -> Result<Self> {
        let database = server.create("services").await?;
        let migrated = command(binary, &["migrate", "up", "--database-url", &database.url()]).output().await;
        let migrated = migrated.with_context(|| format!("starting {}", binary.display()))?;
        if !migrated.status.success() {
            bail!("`millrace migrate up` failed: {}", String::from_utf8_lossy(&migrated.stderr).trim());
        }
        let queue = Process::serve(binary, logs, "queue", &database)?;
        let mut queue = queue.healthy().await?;
        let distributor = Process::serve(binary, logs, "distributor", &database)?;
        let mut distributor = distributor.healthy().await?;
        let to = |endpoint: &str| {
            let endpoint = endpoint.to_owned();
            async move { Ok::<_, anyhow::Error>(channels(&endpoint, 1).await?.remove(0)) }
        };
        let queues = QueueServiceClient::new(to(&queue.endpoint).await?);
        let client = Client::new(to(&distributor.endpoint).await?);
        queue.alive()?;
        distributor.alive()?;
        let services = Self { distributor, queue, database, binary: binary.into(), logs: logs.into(), queues, client };
        services.park().await?;
        for name in ["default", PARKED] {
            let owned = || async { Ok(!services.stats(name).await?.owner.is_empty()) };
            until(&format!("an owner of the queue `{name}`"), owned).await?;
        }
        Ok(services)
    }

    /// Makes the queue beside, and the route to it.
    async fn park(&self) -> Result<()> {
        let queue = Queue { name: PARKED.into(), ..Queue::default() };
        let request = CreateQueueRequest { request_id: String::new(), queue: Some(queue) };
        self.queues.clone().create_queue(request).await.context("creating the queue beside")?;
        let route = Route { name: PARKED.into(), executor: PARKED.into(), queue: PARKED.into(), ..Route::default() };
        let request = SetRouteRequest { request_id: String::new(), route: Some(route) };
        self.client.clone().set_route(request).await.context("setting the route to it")?;
        Ok(())
    }

    /// A queue's figures.
    pub(crate) async fn stats(&self, queue: &str) -> Result<QueueStats> {
        let request = GetQueueRequest { name: queue.into() };
        let response = self.queues.clone().get_queue(request).await.with_context(|| format!("reading `{queue}`"))?;
        response.into_inner().queue.and_then(|queue| queue.stats).context("the queue has no figures")
    }

    /// Orchestrators that are connected.
    pub(crate) async fn sessions(&self) -> Result<usize> {
        let status = self.client.clone().get_status(GetStatusRequest {}).await.context("reading the status")?;
        Ok(status.into_inner().sessions.len())
    }

    /// Starts the agent of the same binary with so many slots, and waits until it is connected.
    pub(crate) async fn start_agent(&self, slots: u32) -> Result<Process> {
        let endpoint = self.distributor.endpoint.clone();
        let slots = slots.to_string();
        let arguments = ["orchestrator", "--endpoint", &endpoint, "--slots", &slots, "--name", "bench-agent"];
        let agent =
            Process::spawn(&self.binary, &self.logs, "orchestrator", &arguments, endpoint.clone(), String::new())?;
        let connected = || async { Ok(self.sessions().await? > 0) };
        until("the agent to connect", connected).await?;
        Ok(agent)
    }

    /// The processes whose CPU is of interest, beside PostgreSQL.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        let one = |name, pid: Option<u32>| pid.map(|pid| Watched { name, pid, with_children: false });
        let bench = Some(std::process::id());
        [one("distributor", self.distributor.pid()), one("queue", self.queue.pid()), one("clients", bench)]
            .into_iter()
            .flatten()
            .collect()
    }
}

impl Process {
    /// Starts a service with ports of its own.
    fn serve(binary: &Path, logs: &Path, name: &'static str, database: &Database) -> Result<Self> {
        let (listen, http) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let url = database.url();
        let arguments = [name, "--database-url", &url, "--listen", &listen, "--http-listen", &http];
        Self::spawn(binary, logs, name, &arguments, format!("http://{listen}"), http.clone())
    }

    fn spawn(
        binary: &Path,
        logs: &Path,
        name: &'static str,
        arguments: &[&str],
        endpoint: String,
        http: String,
    ) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let child = command(binary, arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {} {name}", binary.display()))?;
        Ok(Self { child, name, log, endpoint, http })
    }

    /// Waits until /healthz says so.
    async fn healthy(mut self) -> Result<Self> {
        let begin = Instant::now();
        loop {
            self.alive()?;
            if get_ok(&self.http).await {
                return Ok(self);
            }
            if begin.elapsed() > PATIENCE {
                bail!("the {} is not healthy after {PATIENCE:?}; its log is {}", self.name, self.log.display());
            }
            sleep(LOOK).await;
        }
    }

    /// Fails when the process has ended.
    fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("the {} ended with {status}:\n{}", self.name, tail.join("\n"));
        }
        Ok(())
    }

    /// Its process id; none when it has ended.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }
}

/// The binary without any setting of the caller's: what is measured are the defaults.
fn command(binary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("MILLRACE_")) {
        command.env_remove(key);
    }
    command.args(arguments);
    command
}

/// Looks until it holds, or fails when that takes too long.
pub(crate) async fn until<F: Future<Output = Result<bool>>>(what: &str, holds: impl Fn() -> F) -> Result<()> {
    let begin = Instant::now();
    while !holds().await? {
        if begin.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} for {what} in vain");
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Whether GET /healthz is answered with 200.
async fn get_ok(address: &str) -> bool {
    let answer = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        std::io::Result::Ok(text)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), answer).await;
    matches!(answer, Ok(Ok(text)) if text.starts_with("HTTP/1.1 200"))
}
