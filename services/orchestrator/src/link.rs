//! The stream to a distributor: opening it, and where and when to try again.

use std::{future::pending, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use millrace_proto::distributor::v1::{
    ConnectOrchestratorRequest, ConnectOrchestratorResponse, GoAway, Hello, Welcome,
    connect_orchestrator_request::Message as Request, connect_orchestrator_response::Message as Response,
    distributor_service_client::DistributorServiceClient,
};
use rand::Rng;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::{
    Options,
    connect::{Connect, TransportError},
    outbox::OUTGOING,
};

/// The largest message taken: a distributor may put many specs into one.
const MAX_INCOMING_BYTES: usize = 64 << 20;
/// The largest message sent: Hello and Held name every attempt held, up to 100,000.
const MAX_OUTGOING_BYTES: usize = 16 << 20;

/// Where the connection stands.
pub(crate) enum Link {
    /// Nothing is to be done until this moment.
    Waiting(Instant),
    /// An endpoint is being tried.
    Opening(BoxFuture<'static, Result<Up, OpenError>>),
    /// The stream is open, and its session is ours.
    Up(Box<Up>),
}

/// An open stream.
pub(crate) struct Up {
    pub(crate) endpoint: String,
    /// Bounded by [`OUTGOING`]; when full, everything stays where it waits. None after Goodbye.
    pub(crate) requests: Option<mpsc::Sender<ConnectOrchestratorRequest>>,
    pub(crate) responses: Streaming<ConnectOrchestratorResponse>,
    pub(crate) welcome: Welcome,
    /// Whether the session is the one that was to be resumed.
    pub(crate) resumed: bool,
    /// When Hello was sent.
    pub(crate) sent_at: Instant,
}

/// What happens on a link.
pub(crate) enum LinkEvent {
    /// The wait is over.
    Ready,
    Opened(Box<Result<Up, OpenError>>),
    /// A message; none when it is of a kind that this build does not know.
    Received(Option<Response>),
    /// The stream has ended, with an error or without.
    Closed(Option<Status>),
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot connect: {0}")]
    Connect(#[source] TransportError),
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    #[error("no answer to Hello within {0:?}")]
    WelcomeTimeout(Duration),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    #[error("sent elsewhere: {}", .0.reason)]
    SentElsewhere(GoAway),
    #[error("the stream did not begin with Welcome")]
    NotWelcomed,
}

impl Link {
    /// The next event. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> LinkEvent {
        match self {
            Self::Waiting(until) => {
                sleep_until(*until).await;
                LinkEvent::Ready
            }
            Self::Opening(opening) => LinkEvent::Opened(Box::new(opening.await)),
            Self::Up(up) => received(up.responses.message().await),
        }
    }

    /// A message that is here already.
    pub(crate) fn try_next(&mut self) -> Option<LinkEvent> {
        match self {
            Self::Up(up) => futures::FutureExt::now_or_never(up.responses.message()).map(received),
            Self::Waiting(_) | Self::Opening(_) => None,
        }
    }

    pub(crate) fn up(&self) -> Option<&Up> {
        match self {
            Self::Up(up) => Some(up),
            Self::Waiting(_) | Self::Opening(_) => None,
        }
    }
}

fn received(message: Result<Option<ConnectOrchestratorResponse>, Status>) -> LinkEvent {
    match message {
        Ok(Some(response)) => LinkEvent::Received(response.message),
        Ok(None) => LinkEvent::Closed(None),
        Err(status) => LinkEvent::Closed(Some(status)),
    }
}

/// Waits until the stream takes `room` messages; resolves with false when it is closed, and never without a stream.
pub(crate) async fn writable(stream: Option<mpsc::Sender<ConnectOrchestratorRequest>>, room: usize) -> bool {
    match stream {
        Some(stream) => stream.reserve_many(room).await.is_ok(),
        None => pending().await,
    }
}

/// Connects, says Hello, and waits for Welcome.
pub(crate) async fn open(
    connector: Arc<dyn Connect>,
    endpoint: String,
    hello: Hello,
    options: Arc<Options>,
) -> Result<Up, OpenError> {
    let transport = timeout(options.connect_timeout, connector.connect(&endpoint))
        .await
        .map_err(|_| OpenError::ConnectTimeout(options.connect_timeout))?
        .map_err(OpenError::Connect)?;
    timeout(options.welcome_timeout, greet(transport, endpoint, hello))
        .await
        .map_err(|_| OpenError::WelcomeTimeout(options.welcome_timeout))?
}

async fn greet(transport: crate::Transport, endpoint: String, hello: Hello) -> Result<Up, OpenError> {
    let mut client = DistributorServiceClient::new(transport)
        .max_decoding_message_size(MAX_INCOMING_BYTES)
        .max_encoding_message_size(MAX_OUTGOING_BYTES);
    let (requests, outgoing) = mpsc::channel(OUTGOING);
    let (wanted, sent_at) = (hello.session_id.clone(), Instant::now());
    let hello = ConnectOrchestratorRequest { message: Some(Request::Hello(hello)) };
    // The channel is new and has room.
    requests.send(hello).await.map_err(|_| OpenError::NotWelcomed)?;
    let refused = |status| OpenError::Refused(Box::new(status));
    let mut responses = client.connect_orchestrator(ReceiverStream::new(outgoing)).await.map_err(refused)?.into_inner();
    match responses.message().await.map_err(refused)?.and_then(|response| response.message) {
        Some(Response::Welcome(welcome)) => {
            let resumed = !wanted.is_empty() && welcome.session_id == wanted;
            Ok(Up { endpoint, requests: Some(requests), responses, welcome, resumed, sent_at })
        }
        Some(Response::GoAway(go_away)) => Err(OpenError::SentElsewhere(go_away)),
        _ => Err(OpenError::NotWelcomed),
    }
}

/// Whether the service says that the session has expired.
pub(crate) fn is_session_gone(status: &Status) -> bool {
    const REASON: &str = "SESSION_GONE";
    status.code() == Code::FailedPrecondition
        && match status.get_details_error_info() {
            Some(info) => info.reason == REASON,
            // A proxy may have dropped the details.
            None => status.message().contains(REASON),
        }
}

/// The wait that the service asks for.
pub(crate) fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// Which endpoint to try next: one that was named by a distributor first, then each in turn, from a random one on so
/// that a fleet spreads over the replicas.
#[derive(Debug)]
pub(crate) struct Endpoints {
    list: Vec<String>,
    next: usize,
    named: Option<String>,
}

impl Endpoints {
    pub(crate) fn new(list: Vec<String>, start: usize) -> Self {
        Self { next: start % list.len().max(1), list, named: None }
    }

    /// Another replica named this one; tried once.
    pub(crate) fn prefer(&mut self, endpoint: String) {
        self.named = Some(endpoint).filter(|endpoint| !endpoint.is_empty());
    }

    pub(crate) fn next(&mut self) -> String {
        if let Some(named) = self.named.take() {
            return named;
        }
        let endpoint = self.list[self.next].clone();
        self.next = (self.next + 1) % self.list.len();
        endpoint
    }
}

/// Exponential back-off with jitter: the n-th wait is between half and all of `min * 2^n`, at most `max`.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failures: 0 }
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure.
    pub(crate) fn next(&mut self, random: &mut impl Rng) -> Duration {
        let whole = self.min.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(random.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use tonic_types::ErrorDetails;

    #[test]
    fn waits_grow_up_to_the_bound_and_differ() {
        let mut random = rand::rngs::SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for bound in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next(&mut random).as_millis();
            assert!((bound / 2..=bound).contains(&wait), "{wait} of {bound}");
        }
        backoff.reset();
        assert!(backoff.next(&mut random) <= Duration::from_millis(100));
    }

    #[test]
    fn endpoints_are_taken_in_turn_and_a_named_one_once() {
        let mut endpoints = Endpoints::new(vec!["a".into(), "b".into()], 3);
        assert_eq!((endpoints.next(), endpoints.next()), ("b".into(), "a".into()));
        endpoints.prefer("c".into());
        assert_eq!((endpoints.next(), endpoints.next()), ("c".into(), "b".into()));
        endpoints.prefer(String::new());
        assert_eq!(endpoints.next(), "a");
    }

    #[test]
    fn a_session_that_is_gone_is_told_by_its_reason() {
        let details = |reason| ErrorDetails::with_error_info(reason, "millrace", []);
        let status = |reason| Status::with_error_details(Code::FailedPrecondition, "no", details(reason));
        assert!(is_session_gone(&status("SESSION_GONE")));
        assert!(!is_session_gone(&status("QUEUE_DRAINING")));
        assert!(is_session_gone(&Status::failed_precondition("SESSION_GONE: expired")));
        assert!(!is_session_gone(&Status::unavailable("SESSION_GONE")));
    }
}
