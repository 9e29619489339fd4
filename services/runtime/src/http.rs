//! The HTTP side of a process: `GET /metrics` for scrapers and `GET /healthz` for probes.

use axum::{
    Router,
    extract::State as With,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    health::{Health, State},
    metrics::{Metrics, OPENMETRICS, PROMETHEUS},
    server::{Acceptor, Limits, ServeError},
    shutdown::Shutdown,
};

/// Scrapers and probes are few; more connections than this are closed at once.
const LIMITS: Limits =
    Limits { max_connections: 256, first_bytes: 16, first_bytes_within: std::time::Duration::from_secs(10) };

/// Serves metrics and health until [`Shutdown::finish`] has waited for the tracked tasks, so that a drain can be
/// watched to its end; do not track this with [`Shutdown::spawn`], or they wait for each other.
///
/// # Errors
/// When the server fails.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    shutdown: Shutdown,
) -> Result<(), ServeError> {
    let cut = CancellationToken::new();
    let acceptor = Acceptor::new(listener, LIMITS, cut.clone(), None);
    let end = shutdown.clone();
    let server = axum::serve(acceptor, router(health, metrics))
        .with_graceful_shutdown(async move { end.finished().await })
        .into_future();
    tokio::pin!(server);
    tokio::select! {
        result = &mut server => return Ok(result?),
        () = shutdown.finished() => {}
    }
    // A scrape in flight is not worth waiting for: the process is about to end.
    cut.cancel();
    Ok(server.await?)
}

fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics).with_state(metrics))
        .route("/healthz", get(show_health).with_state(health))
}

/// OpenMetrics for those who ask for it, Prometheus text for everyone else.
async fn show_metrics(With(metrics): With<Metrics>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accepted.contains("application/openmetrics-text") {
        ([(header::CONTENT_TYPE, OPENMETRICS)], metrics.encode_openmetrics())
    } else {
        ([(header::CONTENT_TYPE, PROMETHEUS)], metrics.encode())
    }
}

/// 200 with `ok`, or 503 with the reason.
async fn show_health(With(health): With<Health>) -> impl IntoResponse {
    let state = health.state();
    let code = if state == State::Serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{state}\n"))
}
