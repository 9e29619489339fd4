//! The connection of a client command: where it goes, how long a call may take, and how often it is tried.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millrace_proto::distributor::v1::distributor_service_client::DistributorServiceClient;
use millrace_proto::distributor::v1::quarantine_service_client::QuarantineServiceClient;
use millrace_proto::queue::v1::queue_service_client::QueueServiceClient;
use millrace_proto::scaler::v1::scaler_service_client::ScalerServiceClient;
use rand::Rng;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::endpoint::{self, EndpointFlag, Service};
use crate::exit::Failure;
use crate::output::Format;
use crate::status;
use crate::time::{parse_duration, short};

/// How long mutations are tried again when the caller does not say.
const RETRY_FOR: Duration = Duration::from_secs(30);
/// How long a service may take to say that it lives, when a call got no answer.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// A message of a full batch answer or a page of large tasks; the services' own bound is on what they receive.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Flags that every client command has.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    endpoint: EndpointFlag,
    /// How long to try to connect, to each endpoint.
    #[arg(long, value_name = "DURATION", env = "MILLRACE_CONNECT_TIMEOUT", default_value = "2s", value_parser = parse_timeout)]
    pub(crate) connect_timeout: Duration,
    /// How long one call may take. Watches may last for ever; they only have to begin within it.
    #[arg(long, value_name = "DURATION", env = "MILLRACE_CALL_TIMEOUT", default_value = "5s", value_parser = parse_timeout)]
    pub(crate) call_timeout: Duration,
    /// How long to try a change again while the service is overloaded or away; repeats are harmless. Without it: 30s,
    /// but a service that cannot be reached at all, or shows no sign of life, is reported at once.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) retry_for: Option<Duration>,
    /// How to print: `table` is for people, `json` is the contracts' protobuf JSON, one object, or one a line.
    #[arg(long, short = 'o', value_name = "FORMAT", value_enum, default_value_t = Format::Table, env = "MILLRACE_OUTPUT")]
    pub(crate) output: Format,
}

/// Reads a time limit, which zero cannot be.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("a call needs some time".to_owned()),
        limit => Ok(limit),
    }
}

/// Connections to one service: one is used, and the next when it does not answer.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    service: Service,
    /// Where the service is; at least one.
    peers: Arc<[Peer]>,
    /// Which of them is used.
    current: Arc<AtomicUsize>,
    /// Whether it was said that one of them does not serve; once is enough.
    said: Arc<AtomicBool>,
    call_timeout: Duration,
    retry_for: Duration,
    /// Whether the caller said how long to try, and so means it.
    insists: bool,
}

/// Which of a client's endpoints it was that did not serve.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At(usize);

/// One endpoint.
#[derive(Debug)]
struct Peer {
    endpoint: String,
    channel: Channel,
}

impl Client {
    /// Connects to a service, wherever the flags and the environment say it is.
    pub(crate) async fn connect(args: &ClientArgs, service: Service) -> Result<Client, Failure> {
        let endpoints = Self::endpoints(args, service)?;
        // Someone who says how long to try means it from the start, as a script does that runs through a deploy.
        let deadline = Instant::now() + args.retry_for.unwrap_or(Duration::ZERO);
        let mut backoff = Backoff::default();
        loop {
            let reasons = match Self::connect_to(args, service, &endpoints).await? {
                Ok(client) => return Ok(client),
                Err(reasons) => reasons,
            };
            match backoff.next(None).filter(|delay| Instant::now() + *delay < deadline) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => {
                    let tried: Vec<_> = endpoints.iter().map(String::as_str).zip(reasons).collect();
                    return Err(Failure::Unavailable(endpoint::unreachable(service, &tried)));
                }
            }
        }
    }

    /// The endpoints that a command would try.
    pub(crate) fn endpoints(args: &ClientArgs, service: Service) -> Result<Vec<String>, Failure> {
        endpoint::resolve(&args.endpoint, service, |name| std::env::var(name).ok())
    }

    /// Connects to the first of these endpoints that can be reached, with the others in reserve, or says for each why it
    /// cannot be.
    pub(crate) async fn connect_to(
        args: &ClientArgs,
        service: Service,
        endpoints: &[String],
    ) -> Result<Result<Client, Vec<String>>, Failure> {
        let mut reasons = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            match endpoint::connect(&endpoint::dial(endpoint, args.connect_timeout)?, args.connect_timeout).await {
                Ok(channel) => return Self::with(args, service, endpoints, (index, channel)).map(Ok),
                Err(reason) => reasons.push(reason),
            }
        }
        Ok(Err(reasons))
    }

    /// A client that uses this connection; the others are made when they are needed.
    fn with(
        args: &ClientArgs,
        service: Service,
        endpoints: &[String],
        (current, channel): (usize, Channel),
    ) -> Result<Client, Failure> {
        let peer = |(index, endpoint): (usize, &String)| {
            let channel = match index == current {
                true => channel.clone(),
                false => endpoint::dial(endpoint, args.connect_timeout)?.connect_lazy(),
            };
            Ok(Peer { endpoint: endpoint.clone(), channel })
        };
        Ok(Client {
            service,
            peers: endpoints.iter().enumerate().map(peer).collect::<Result<_, Failure>>()?,
            current: Arc::new(AtomicUsize::new(current)),
            said: Arc::default(),
            call_timeout: args.call_timeout,
            retry_for: args.retry_for.unwrap_or(RETRY_FOR),
            insists: args.retry_for.is_some(),
        })
    }

    fn peer(&self) -> &Peer {
        &self.peers[self.at().0]
    }

    /// Which endpoint is used now.
    pub(crate) fn at(&self) -> At {
        At(self.current.load(Ordering::Relaxed) % self.peers.len())
    }

    /// The distributor's calls, at the endpoint that is used now.
    pub(crate) fn distributor(&self) -> DistributorServiceClient<Channel> {
        DistributorServiceClient::new(self.peer().channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The distributor's calls about what is set aside, at the endpoint that is used now.
    pub(crate) fn quarantine(&self) -> QuarantineServiceClient<Channel> {
        QuarantineServiceClient::new(self.peer().channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The queue service's calls, at the endpoint that is used now.
    pub(crate) fn queue(&self) -> QueueServiceClient<Channel> {
        QueueServiceClient::new(self.peer().channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The scaler's calls, at the endpoint that is used now.
    pub(crate) fn scaler(&self) -> ScalerServiceClient<Channel> {
        ScalerServiceClient::new(self.peer().channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Makes a call that reads, once at each endpoint until one answers.
    pub(crate) async fn read<T, F>(&self, call: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.open(call).await.map_err(|status| self.failure(&status))
    }

    /// `read`, for callers that look at the status themselves. The answer may be a stream, whose beginning alone has to
    /// come in time.
    pub(crate) async fn open<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        for _ in 1..self.peers.len() {
            let at = self.at();
            match self.bounded(call()).await {
                Err(status) if status::is_away(&status) => self.turn(at, &status),
                answer => return answer,
            }
        }
        self.bounded(call()).await
    }

    /// Makes a call that changes something, again and again while that can help and the budget lasts. `call` must send
    /// the same request_id each time.
    pub(crate) async fn change<T, F>(&self, call: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.try_change(call).await.map_err(|status| self.failure(&status))
    }

    /// `change`, for callers that look at the status themselves.
    pub(crate) async fn try_change<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.retry_for;
        let mut backoff = Backoff::default();
        loop {
            let status = match self.open(&mut call).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            // A replica that waits for its database is worth waiting for; a process that hangs is not.
            if status.code() == Code::DeadlineExceeded && !self.insists && !self.shows_life().await {
                return Err(Status::deadline_exceeded(format!("{}; it may have taken effect", status.message())));
            }
            let delay = backoff.next(status::retry_delay(&status));
            match delay.filter(|delay| status::is_transient(&status) && Instant::now() + *delay < deadline) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(status),
            }
            if status::is_away(&status) {
                self.turn(self.at(), &status);
            }
        }
    }

    /// Leaves the endpoint that gave this status for the next, if there is another, and says why the first time. Of several
    /// calls that fail together only one turns: the others would turn back.
    pub(crate) fn turn(&self, At(from): At, status: &Status) {
        let to = (from + 1) % self.peers.len();
        let turned = self.current.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if from != to && turned && !self.said.swap(true, Ordering::Relaxed) {
            let (from, to) = (&self.peers[from].endpoint, &self.peers[to].endpoint);
            let why = status::cause(status);
            eprintln!("millrace: the {} at {from} does not serve: {why}; going on with {to}", self.service.name());
        }
    }

    /// Whether the process at the other end runs at all. Any answer about its health shows that, also none that it knows.
    async fn shows_life(&self) -> bool {
        let mut health = HealthClient::new(self.peer().channel.clone());
        let asked = health.check(HealthCheckRequest::default());
        match tokio::time::timeout(SIGN_OF_LIFE.min(self.call_timeout), asked).await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) => !status::is_away(&status),
            Err(_) => false,
        }
    }

    /// Waits for a call, but not for ever: a service that took the request and fell silent counts as one that is away.
    async fn bounded<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        match tokio::time::timeout(self.call_timeout, call).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {}", short(self.call_timeout)))),
        }
    }

    /// The failure that a status of this service is.
    pub(crate) fn failure(&self, status: &Status) -> Failure {
        status::failure(status, self.service, &self.peer().endpoint)
    }

    /// How long changes are tried again.
    pub(crate) fn retry_for(&self) -> Duration {
        self.retry_for
    }
}

/// The waits between tries: from 100 ms, doubling to 5 s, each with a random part so that many clients do not come back
/// together.
#[derive(Debug)]
pub(crate) struct Backoff {
    base: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// The next wait. `asked` is the service's own word, which is kept to and never cut short, whatever the doubling
    /// has come to.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let spread = rand::rng().random_range(0.5..1.0);
        let own = self.base.mul_f64(spread);
        self.base = (self.base * 2).min(Self::LONGEST);
        match asked {
            Some(asked) => asked.checked_add(own),
            None => Some(own),
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { base: Self::FIRST }
    }
}

/// A request_id for one invocation of a command; all tries of it share it.
pub(crate) fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_bounds_and_respect_the_service() {
        let mut backoff = Backoff::default();
        let mut base = Backoff::FIRST;
        for _ in 0..12 {
            let wait = backoff.next(None).unwrap();
            assert!(wait >= base.mul_f64(0.5) && wait < base, "{wait:?} of {base:?}");
            base = (base * 2).min(Backoff::LONGEST);
        }
        assert!(Backoff::default().next(Some(Duration::from_secs(9))).unwrap() >= Duration::from_secs(9));
        assert_eq!(Backoff::default().next(Some(Duration::MAX)), None);
    }
}
