//! How the client reaches a distributor.

use futures::future::BoxFuture;
use tonic::{body::Body, transport::Endpoint};
use tower::{ServiceExt, util::BoxCloneService};

/// A transport failed, or could not be had. Wraps whatever error it gave.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl TransportError {
    /// Wraps an error, or a sentence for people.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// A gRPC transport: a tonic `Channel`, or any other service of that shape, boxed with [`BoxCloneService::new`].
pub type Transport = BoxCloneService<http::Request<Body>, http::Response<Body>, TransportError>;

/// Reaches an endpoint. Implement it for transports with certificates of your own, or to test without a network.
pub trait Connect: Send + Sync + 'static {
    /// Connects to the endpoint, one of the options' or one that a distributor named. The options' connect timeout is
    /// applied around it.
    fn connect(&self, endpoint: &str) -> BoxFuture<'static, Result<Transport, TransportError>>;
}

/// Plain HTTP/2 over TCP, with keepalive pings that notice a dead peer within 20 s.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnect;

impl Connect for TcpConnect {
    fn connect(&self, endpoint: &str) -> BoxFuture<'static, Result<Transport, TransportError>> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned());
        Box::pin(async move {
            let channel = endpoint
                .map_err(TransportError::new)?
                .tcp_nodelay(true)
                .http2_keep_alive_interval(std::time::Duration::from_secs(10))
                .keep_alive_timeout(std::time::Duration::from_secs(10))
                .keep_alive_while_idle(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(2 << 20)
                .connect()
                .await
                .map_err(causes)?;
            Ok(BoxCloneService::new(channel.map_err(causes)))
        })
    }
}

/// tonic's own text stops at "transport error"; the causes say what happened.
fn causes(error: tonic::transport::Error) -> TransportError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    TransportError::new(text)
}
