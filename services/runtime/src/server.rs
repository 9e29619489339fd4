//! The gRPC server that every service runs in: limits, admission, tracing and the drain.
//!
//! From the outside in, a call passes: the connection's limits (hyper's, which tonic leaves unset), tracing and
//! metrics, admission, a net for panics, the routes. Admission is one for the whole process, because tonic's own limit
//! and load shedding are per connection and so no protection at all. A call holds its place until its answer begins, so
//! a stream holds none while it is open.

mod admission;
mod listener;

use std::{any::Any, pin::pin, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use tonic_reflection::server::{v1, v1alpha};
use tower::ServiceBuilder;
use tower_http::{catch_panic::CatchPanicLayer, trace::TraceLayer};

pub(crate) use self::listener::{Acceptor, Limits};
use self::{admission::AdmissionLayer, listener::incoming};
use crate::{
    health::{self, Health},
    metrics::{Failure, Metrics, Recorder},
    shutdown::Shutdown,
    status::Fault,
    telemetry::panic_message,
};

/// The largest message a service accepts, in bytes; services apply it with `max_decoding_message_size`.
pub const MAX_DECODING_MESSAGE_SIZE: usize = 4 * 1024 * 1024;

/// The largest message a service sends, in bytes; services apply it with `max_encoding_message_size`.
pub const MAX_ENCODING_MESSAGE_SIZE: usize = 4 * 1024 * 1024;

/// A peer has this long to say its first bytes.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// An HTTP/2 connection begins with 24 fixed bytes.
const PREFACE_BYTES: usize = 24;

/// How long connections that were cut may take to notice.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);

/// The limits of a server. The defaults suit a replica of 2 cores.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Calls that may wait for the beginning of their answer, over all connections. One more is refused at once with
    /// RESOURCE_EXHAUSTED. Opening a peer's stream counts against a second limit of the same size. Health is never
    /// refused.
    pub max_concurrent_requests: usize,
    /// Connections that may be open; one more is closed as soon as it is accepted.
    pub max_connections: usize,
    /// Streams and calls that may be open on one connection; HTTP/2 holds the peer's next one back.
    pub max_concurrent_streams: u32,
    /// Streams that a peer may have reset before the server saw them; past this the connection is ended
    /// (CVE-2023-44487).
    pub max_pending_accept_reset_streams: usize,
    /// Streams that the server may have reset for a peer's errors; past this the connection is ended (CVE-2025-8671).
    pub max_local_error_reset_streams: usize,
    /// The largest set of headers of a call, in bytes.
    pub max_header_list_size: u32,
    /// How often a quiet connection is asked whether it still lives.
    pub keepalive_interval: Duration,
    /// How long the answer to that may take before the connection is closed.
    pub keepalive_timeout: Duration,
    /// How long a call may take to begin its answer; DEADLINE_EXCEEDED then. Streams that are open are not limited.
    pub request_timeout: Duration,
    /// The retry delay sent with a refused call.
    pub retry_after: Duration,
    /// After the drain has begun, new calls are served for this long before connections are told to go away, so that
    /// load balancers can notice NOT_SERVING first. Counts against the grace.
    pub drain_notice: Duration,
}

impl Default for ServeOptions {
    fn default() -> ServeOptions {
        ServeOptions {
            max_concurrent_requests: 1024,
            max_connections: 4096,
            max_concurrent_streams: 1024,
            max_pending_accept_reset_streams: 20,
            max_local_error_reset_streams: 1024,
            max_header_list_size: 16 * 1024,
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            retry_after: Duration::from_secs(1),
            drain_notice: Duration::ZERO,
        }
    }
}

/// Why a server could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors that reflection serves cannot be read.
    #[error("reflection cannot be served: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The HTTP server failed.
    #[error("the HTTP server failed: {0}")]
    Http(#[from] std::io::Error),
}

/// Adds health and both versions of reflection to a process's services and returns its routes. `services` are the full
/// names that reflection lists; health need not be among them.
///
/// # Errors
/// When the descriptors cannot be read.
pub fn routes(mut services: RoutesBuilder, health: &Health, names: &[&str]) -> Result<Routes, ServeError> {
    let (v1, v1alpha) = reflection(names)?;
    services.add_service(health.service()).add_service(v1).add_service(v1alpha);
    Ok(services.routes())
}

/// The reflection services, v1 and v1alpha, of the public contracts. They list the given services and health only.
///
/// # Errors
/// When the descriptors cannot be read.
#[allow(clippy::type_complexity, reason = "tonic names these types by `impl Trait` only")]
pub fn reflection(
    services: &[&str],
) -> Result<
    (
        v1::ServerReflectionServer<impl v1::ServerReflection>,
        v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>,
    ),
    ServeError,
> {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(millrace_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // What the details of an error are, so that a client that knows only what it is told here can show them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(health::SERVICE);
        let others = services.iter().filter(|name| **name != health::SERVICE);
        others.fold(builder, |builder, name| builder.with_service_name(*name))
    };
    Ok((builder().build_v1()?, builder().build_v1alpha()?))
}

/// Serves until the process stops.
///
/// When the drain begins, health turns to NOT_SERVING; the services see the same [`Shutdown`] and end their streams
/// with a last message. After [`ServeOptions::drain_notice`] the listener closes and every connection is told to go
/// away: no new call comes, open ones go on. When the last has ended, or when the grace is over and what is left has
/// been cut, this returns.
///
/// # Errors
/// When the transport fails. A drain that had to cut connections is no error; it is logged.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    options: ServeOptions,
    health: Health,
    metrics: Metrics,
    shutdown: Shutdown,
) -> Result<(), ServeError> {
    let grpc = metrics.grpc();
    let cut = CancellationToken::new();
    let limits = Limits {
        max_connections: options.max_connections,
        first_bytes: PREFACE_BYTES,
        first_bytes_within: PREFACE_TIMEOUT,
    };
    let acceptor = Acceptor::new(listener, limits, cut.clone(), Some(grpc.clone()));

    let trace = TraceLayer::new(Recorder(grpc.clone()))
        .make_span_with(|request: &http::Request<Body>| tracing::debug_span!("grpc", path = request.uri().path()))
        .on_request(())
        .on_response(())
        .on_body_chunk(())
        .on_eos(())
        .on_failure(log_failure);
    let layers = ServiceBuilder::new()
        .layer(trace)
        .layer(AdmissionLayer::new(&options, grpc))
        .layer(CatchPanicLayer::custom(answer_panic))
        .into_inner();
    let server = configured(&options)
        .layer(layers)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming(acceptor), go_away(&shutdown, &health, options.drain_notice));

    let mut server = pin!(server);
    tokio::select! {
        result = &mut server => return Ok(result?),
        () = shutdown.grace_over() => {}
    }
    tracing::warn!("the grace is over: open connections are cut");
    cut.cancel();
    // Connections see the cut as soon as they are polled; the bound is for those whose task is stuck in a handler.
    match tokio::time::timeout(CUT_TIMEOUT, server).await {
        Ok(result) => Ok(result?),
        Err(_) => Ok(()),
    }
}

/// Completes when connections have to be told to go away.
async fn go_away(shutdown: &Shutdown, health: &Health, notice: Duration) {
    shutdown.draining().await;
    health.set_draining();
    tokio::select! {
        () = tokio::time::sleep(notice) => {}
        () = shutdown.grace_over() => {}
    }
}

/// tonic passes none of these on by itself. Its timeout and its limits per connection stay unset: admission has them.
fn configured(options: &ServeOptions) -> Server {
    Server::builder()
        .max_concurrent_streams(options.max_concurrent_streams)
        .http2_max_pending_accept_reset_streams(Some(options.max_pending_accept_reset_streams))
        .http2_max_local_error_reset_streams(Some(options.max_local_error_reset_streams))
        .http2_max_header_list_size(options.max_header_list_size)
        .http2_keepalive_interval(Some(options.keepalive_interval))
        .http2_keepalive_timeout(Some(options.keepalive_timeout))
}

/// Codes that mean a defect on this side are errors; the others are the caller's affair, or were logged where they
/// arose.
fn log_failure(failure: Failure, latency: Duration, span: &tracing::Span) {
    use tonic::Code;
    let latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
    let code = crate::metrics::code_name(failure.code);
    let message = failure.message;
    match failure.code {
        Code::Internal | Code::Unknown | Code::DataLoss => {
            tracing::error!(parent: span, code, message, latency_ms, "call failed");
        }
        _ => tracing::debug!(parent: span, code, message, latency_ms, "call failed"),
    }
}

/// A panic in a handler fails its own call alone. The panic hook has logged it.
fn answer_panic(payload: Box<dyn Any + Send>) -> http::Response<Body> {
    tracing::debug!(message = panic_message(payload.as_ref()), "a handler panicked");
    tonic::Status::from(Fault::internal("the call met a defect of the server").with_reason("PANIC")).into_http()
}
