//! The frame around every process that serves: configuration in, ports bound, database opened, services run, drained.

mod args;
mod database;

use std::time::Duration;

use millrace_runtime::health::Health;
use millrace_runtime::metrics::Metrics;
use millrace_runtime::shutdown::Shutdown;
use millrace_runtime::{Context, failpoint, http, server, telemetry};
use tokio::net::TcpListener;
use tonic::service::RoutesBuilder;
use uuid::Uuid;

pub(crate) use args::ProcessArgs;
pub(crate) use database::{DatabaseArgs, redacted, store_failure};

use crate::exit::Failure;
use crate::version;

/// A process that is about to serve.
pub(crate) struct Plan<'a> {
    /// What it is, in messages.
    pub(crate) what: &'static str,
    /// Where gRPC listens: HOST:PORT.
    pub(crate) listen: &'a str,
    /// Where /metrics and /healthz listen.
    pub(crate) http_listen: &'a str,
    /// The flags that every process has.
    pub(crate) process: &'a ProcessArgs,
    /// The database.
    pub(crate) url: &'a str,
    /// Full names of the gRPC services, for health and reflection.
    pub(crate) services: Vec<&'static str>,
    /// Ends the process.
    pub(crate) shutdown: Shutdown,
}

/// Where a process serves, once it does.
pub(crate) struct Serving {
    /// Where gRPC is, as a client dials it.
    pub(crate) endpoint: String,
    /// Where HTTP is.
    pub(crate) http: String,
}

/// Whether a process would start with these flags, as far as can be told without a port and a database.
pub(crate) fn check(listen: &str, http_listen: &str, url: Option<&str>, process: &ProcessArgs) -> Result<(), Failure> {
    check_environment()?;
    process.check()?;
    url.map_or(Ok(()), database::check_url)?;
    let host = check_address(listen, "--listen")?;
    check_address(http_listen, "--http-listen")?;
    match &process.advertise {
        Some(advertise) => check_advertise(advertise).map(drop),
        None if host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_unspecified()) => Err(nobody_dials(listen)),
        None => Ok(()),
    }
}

/// Whether the variables can be read that no flag stands for.
pub(crate) fn check_environment() -> Result<(), Failure> {
    telemetry::check().map_err(|error| Failure::Usage(error.to_string()))?;
    // Arming them is the only way to check them, and harmless in a process that serves nothing.
    failpoint::init().map_err(|error| Failure::Usage(error.to_string()))
}

/// The host of HOST:PORT.
fn check_address<'a>(address: &'a str, flag: &str) -> Result<&'a str, Failure> {
    let parts = address.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    let (host, _) = parts.ok_or_else(|| Failure::Usage(format!("{flag}: '{address}' is not HOST:PORT")))?;
    Ok(host.trim_start_matches('[').trim_end_matches(']'))
}

fn check_advertise(advertise: &str) -> Result<String, Failure> {
    crate::endpoint::parse(advertise)
        .map_err(|why| Failure::Usage(format!("--advertise: '{advertise}' is no endpoint: {why}")))
}

fn nobody_dials(listen: &str) -> Failure {
    Failure::Usage(format!(
        "--listen {listen} is every address of this machine: say with --advertise at which one peers reach it"
    ))
}

/// Starts what every process needs before anything else: logs, failpoints and signals.
pub(crate) fn prepare(process: &ProcessArgs) -> Result<Shutdown, Failure> {
    telemetry::init(process.log_format).map_err(|error| Failure::Usage(error.to_string()))?;
    failpoint::init().map_err(|error| Failure::Usage(error.to_string()))?;
    Shutdown::on_signals(process.drain_grace)
        .map_err(|error| Failure::Unavailable(format!("cannot listen for signals: {error}")))
}

/// Serves until the shutdown. `start` makes the services with contexts of the frame, adds them to the routes, and
/// returns what must live as long as they are served.
pub(crate) async fn serve<R>(
    plan: Plan<'_>,
    start: impl AsyncFnOnce(&Frame, &mut RoutesBuilder, &Serving) -> Result<R, Failure>,
) -> Result<(), Failure> {
    let listener = bind(plan.listen, "--listen").await?;
    let http_listener = bind(plan.http_listen, "--http-listen").await?;
    let serving = Serving {
        endpoint: endpoint_of(plan.process.advertise.as_deref(), plan.listen, &listener)?,
        http: format!("http://{}", local(&http_listener)?),
    };
    let health = Health::new(&plan.services);
    let metrics = Metrics::new();
    metrics.set_build(&version::build());
    let shutdown = plan.shutdown.clone();
    let http = tokio::spawn(http::serve(http_listener, health.clone(), metrics.clone(), shutdown.clone()));

    tracing::info!(service = plan.what, listen = %local(&listener)?, http = %serving.http, "starting");
    let Some(store) = database::open(plan.url, &plan.process.database, &listener, &shutdown).await? else {
        return finish(plan.what, &shutdown, plan.process.drain_grace, http).await;
    };
    let endpoint = serving.endpoint.clone();
    let frame = Frame { store, endpoint, health: health.clone(), metrics: metrics.clone(), shutdown: shutdown.clone() };
    let mut builder = RoutesBuilder::default();
    let running = start(&frame, &mut builder, &serving).await?;
    let routes =
        server::routes(builder, &health, &plan.services).map_err(|error| Failure::Request(error.to_string()))?;
    tracing::info!(
        service = plan.what,
        listen = %local(&listener)?,
        http = %serving.http,
        advertise = %serving.endpoint,
        database = %redacted(plan.url),
        build = %version::build(),
        "serving"
    );
    let served = server::serve(listener, routes, plan.process.options(), health, metrics, shutdown.clone()).await;
    let finished = finish(plan.what, &shutdown, plan.process.drain_grace, http).await;
    drop(running);
    served.map_err(|error| Failure::Unavailable(error.to_string()))?;
    finished
}

/// Waits for the background tasks, within the grace, and for the HTTP side, which answers to the end.
async fn finish(
    what: &str,
    shutdown: &Shutdown,
    grace: Duration,
    http: tokio::task::JoinHandle<Result<(), server::ServeError>>,
) -> Result<(), Failure> {
    shutdown.finish(grace).await;
    if let Ok(Err(error)) = http.await {
        tracing::warn!(%error, "the HTTP side failed");
    }
    match shutdown.failure() {
        Some(task) => Err(Failure::Request(format!("the {what} stopped because its task `{task}` ended"))),
        None => Ok(()),
    }
}

/// What contexts are made of.
pub(crate) struct Frame {
    store: std::sync::Arc<dyn millrace_store::Store>,
    endpoint: String,
    health: Health,
    metrics: Metrics,
    shutdown: Shutdown,
}

impl Frame {
    /// A context for one service. Each has a member id of its own: a process that runs several is several members.
    pub(crate) fn context(&self) -> Context {
        Context {
            store: self.store.clone(),
            member_id: Uuid::now_v7(),
            endpoint: self.endpoint.clone(),
            build: version::build(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        }
    }
}

/// Binds a port, or says whose flag to change.
async fn bind(address: &str, flag: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::Unavailable(format!(
            "cannot listen on {address}: the port is in use; stop what listens there, or choose another with {flag}"
        )),
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::NotFound => {
            Failure::Usage(format!("{flag}: '{address}' is not HOST:PORT"))
        }
        _ => Failure::Unavailable(format!("cannot listen on {address}: {error}; choose another address with {flag}")),
    })
}

fn local(listener: &TcpListener) -> Result<std::net::SocketAddr, Failure> {
    listener.local_addr().map_err(|error| Failure::Unavailable(format!("the listener has no address: {error}")))
}

/// Where peers dial this process: what the operator says, else where it listens, which must then be one address.
fn endpoint_of(advertise: Option<&str>, listen: &str, listener: &TcpListener) -> Result<String, Failure> {
    if let Some(advertise) = advertise {
        return check_advertise(advertise);
    }
    let address = local(listener)?;
    if address.ip().is_unspecified() {
        return Err(nobody_dials(listen));
    }
    Ok(format!("http://{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_one_clear_line() {
        let first = bind("127.0.0.1:0", "--listen").await.unwrap();
        let address = local(&first).unwrap().to_string();
        let failure = bind(&address, "--listen").await.unwrap_err();
        assert_eq!(failure.code(), 69);
        assert!(failure.to_string().contains(&format!("cannot listen on {address}: the port is in use")), "{failure}");
    }

    #[tokio::test]
    async fn peers_are_given_an_address_that_can_be_dialled() {
        let any = bind("0.0.0.0:0", "--listen").await.unwrap();
        assert_eq!(endpoint_of(None, "0.0.0.0:0", &any).unwrap_err().code(), 64);
        assert_eq!(endpoint_of(Some("db-1:7601"), "0.0.0.0:0", &any).unwrap(), "http://db-1:7601");
        assert_eq!(endpoint_of(Some("nowhere"), "0.0.0.0:0", &any).unwrap_err().code(), 64);
        let one = bind("127.0.0.1:0", "--listen").await.unwrap();
        assert_eq!(endpoint_of(None, "127.0.0.1:0", &one).unwrap(), format!("http://{}", local(&one).unwrap()));
    }
}
