//! One stream to a scaler.

use std::time::Duration;

use millrace_proto::scaler::v1::{
    AttachNodeRequest, AttachNodeResponse, NodeGoAway, NodeHello, NodeWelcome, attach_node_request::Message as Request,
    attach_node_response::Message as Response, scaler_service_client::ScalerServiceClient,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::{Connect, TransportError};

/// Messages that may wait for the transport. When as many do, the next is chosen when there is room, from what is so then.
const OUTGOING: usize = 4;
/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for the answer to Hello, which a standby may have to fetch from the leader.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// An open stream.
pub(super) struct Stream {
    /// None once everything is said.
    pub(super) requests: Option<mpsc::Sender<AttachNodeRequest>>,
    pub(super) responses: Streaming<AttachNodeResponse>,
    pub(super) welcome: NodeWelcome,
}

/// Why a stream could not be opened, or has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("cannot connect: {0}")]
    Connect(#[source] TransportError),
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    #[error("no answer to Hello within {WELCOME_TIMEOUT:?}")]
    WelcomeTimeout,
    #[error("the stream did not begin with Welcome")]
    NotWelcomed,
    #[error("sent away: {}", .0.reason)]
    SentAway(NodeGoAway),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
    #[error("the scaler ended the stream")]
    Ended,
}

/// What a scaler says of a node that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// It was, and is no more.
    Gone,
    /// It never was, or its end was too long ago.
    Unknown,
}

impl Lost {
    /// The wait that the scaler asks for.
    pub(super) fn delay(&self) -> Duration {
        match self {
            Self::SentAway(away) => away.reconnect_after.and_then(|delay| delay.try_into().ok()).unwrap_or_default(),
            Self::Status(status) => {
                status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default()
            }
            _ => Duration::ZERO,
        }
    }

    /// Whether the scaler says that the node is not on its books.
    pub(super) fn missing(&self) -> Option<Missing> {
        let Self::Status(status) = self else { return None };
        if !matches!(status.code(), Code::FailedPrecondition | Code::NotFound) {
            return None;
        }
        let reason = status.get_details_error_info().map(|info| info.reason);
        // A proxy may have dropped the details; then the message has to do.
        let is = |name: &str| match &reason {
            Some(reason) => reason == name,
            None => status.message().contains(name),
        };
        match (is("NODE_GONE"), is("NODE_UNKNOWN")) {
            (true, _) => Some(Missing::Gone),
            (_, true) => Some(Missing::Unknown),
            _ => None,
        }
    }
}

impl From<Status> for Lost {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Connects, says Hello, and waits for Welcome.
pub(super) async fn open(connector: &dyn Connect, endpoint: &str, hello: NodeHello) -> Result<Stream, Lost> {
    let transport = timeout(CONNECT_TIMEOUT, connector.connect(endpoint))
        .await
        .map_err(|_| Lost::ConnectTimeout)?
        .map_err(Lost::Connect)?;
    let client = ScalerServiceClient::new(transport);
    timeout(WELCOME_TIMEOUT, greet(client, hello)).await.map_err(|_| Lost::WelcomeTimeout)?
}

async fn greet(mut client: ScalerServiceClient<crate::Transport>, hello: NodeHello) -> Result<Stream, Lost> {
    let (requests, outgoing) = mpsc::channel(OUTGOING);
    let hello = AttachNodeRequest { message: Some(Request::Hello(hello)) };
    // The channel is new and has room.
    requests.send(hello).await.map_err(|_| Lost::NotWelcomed)?;
    let mut responses = client.attach_node(ReceiverStream::new(outgoing)).await?.into_inner();
    match responses.message().await?.and_then(|response| response.message) {
        Some(Response::Welcome(welcome)) => Ok(Stream { requests: Some(requests), responses, welcome }),
        Some(Response::GoAway(away)) => Err(Lost::SentAway(away)),
        _ => Err(Lost::NotWelcomed),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_node_that_is_not_on_the_books_is_told_by_the_reason() {
        let details = |reason| ErrorDetails::with_error_info(reason, "millrace", []);
        let missing = |code, reason| Lost::from(Status::with_error_details(code, "no", details(reason))).missing();
        assert_eq!(missing(Code::FailedPrecondition, "NODE_GONE"), Some(Missing::Gone));
        assert_eq!(missing(Code::NotFound, "NODE_UNKNOWN"), Some(Missing::Unknown));
        assert_eq!(missing(Code::FailedPrecondition, "WRONG_POOL"), None);
        assert_eq!(missing(Code::Unavailable, "NODE_GONE"), None);
        assert_eq!(Lost::from(Status::not_found("NODE_GONE: it ended")).missing(), Some(Missing::Gone));
        assert_eq!(Lost::Ended.missing(), None);
    }
}
