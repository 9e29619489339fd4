//! How providers of other processes are reached.

use std::{future::Future, time::Duration};

use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

/// How long a call to another process may take.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(5);

/// The largest answer that is read: a page of 10,000 instances has about 2 MB. A larger one fails its call.
pub(super) const MAX_ANSWER: usize = 16 << 20;

/// The text is not the address of a gRPC server.
#[derive(Debug, thiserror::Error)]
#[error("`{endpoint}` is not an address such as http://127.0.0.1:7700")]
pub struct InvalidEndpoint {
    endpoint: String,
    source: tonic::transport::Error,
}

/// Connects with the first call, and anew whenever the connection is lost; keepalive pings notice a dead peer within 20 s. To be
/// called within a tokio runtime.
pub(super) fn channel(endpoint: &str) -> Result<Channel, InvalidEndpoint> {
    let invalid = |source| InvalidEndpoint { endpoint: endpoint.to_owned(), source };
    Ok(Endpoint::from_shared(endpoint.to_owned())
        .map_err(invalid)?
        .tcp_nodelay(true)
        .connect_timeout(CALL_LIMIT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect_lazy())
}

/// Waits for an answer no longer than the limit. What the peer did is not known then.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {limit:?}"))),
    }
}
