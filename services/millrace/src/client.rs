//! The connection of a client command: where it goes, and how often a call is tried.

use std::future::Future;
use std::time::Duration;

use millrace_proto::distributor::v1::distributor_service_client::DistributorServiceClient;
use millrace_proto::queue::v1::queue_service_client::QueueServiceClient;
use rand::Rng;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::endpoint::{self, EndpointFlag, Service};
use crate::exit::Failure;
use crate::output::Format;
use crate::status;
use crate::time::parse_duration;

/// How long mutations are tried again when the caller does not say.
const RETRY_FOR: Duration = Duration::from_secs(30);
/// How long one call may take. Every call that is not a stream ends well below it.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A message of a full batch answer or a page of large tasks; the services' own bound is on what they receive.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Flags that every client command has.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    endpoint: EndpointFlag,
    /// How long to try to connect.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub(crate) connect_timeout: Duration,
    /// How long to try a change again while the service is overloaded or away; repeats are harmless. Without it: 30s,
    /// but a service that cannot be reached at all is reported at once.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) retry_for: Option<Duration>,
    /// How to print: `table` is for people, `json` is the contracts' protobuf JSON, one object, or one a line.
    #[arg(long, short = 'o', value_name = "FORMAT", value_enum, default_value_t = Format::Table, env = "MILLRACE_OUTPUT")]
    pub(crate) output: Format,
}

/// A connection to one service.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    service: Service,
    endpoint: String,
    channel: Channel,
    retry_for: Duration,
}

impl Client {
    /// Connects to a service, wherever the flags and the environment say it is.
    pub(crate) async fn connect(args: &ClientArgs, service: Service) -> Result<Client, Failure> {
        let endpoint = endpoint::resolve(&args.endpoint, service, |name| std::env::var(name).ok())?;
        // Someone who says how long to try means it from the start, as a script does that runs through a deploy.
        let deadline = Instant::now() + args.retry_for.unwrap_or(Duration::ZERO);
        let mut backoff = Backoff::default();
        let channel = loop {
            match endpoint::connect(service, &endpoint, args.connect_timeout).await {
                Ok(channel) => break channel,
                Err(failure @ Failure::Usage(_)) => return Err(failure),
                Err(failure) => match backoff.next(None).filter(|delay| Instant::now() + *delay < deadline) {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => return Err(failure),
                },
            }
        };
        Ok(Client { service, endpoint, channel, retry_for: args.retry_for.unwrap_or(RETRY_FOR) })
    }

    /// Where it goes.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The distributor's calls.
    pub(crate) fn distributor(&self) -> DistributorServiceClient<Channel> {
        DistributorServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The queue service's calls.
    pub(crate) fn queue(&self) -> QueueServiceClient<Channel> {
        QueueServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Makes a call that reads, once.
    pub(crate) async fn read<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        bounded(call).await.map_err(|status| self.failure(&status))
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
            let status = match bounded(call()).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            let delay = backoff.next(status::retry_delay(&status));
            match delay.filter(|delay| status::is_transient(&status) && Instant::now() + *delay < deadline) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(status),
            }
        }
    }

    /// The failure that a status of this service is.
    pub(crate) fn failure(&self, status: &Status) -> Failure {
        status::failure(status, self.service, &self.endpoint)
    }

    /// How long changes are tried again.
    pub(crate) fn retry_for(&self) -> Duration {
        self.retry_for
    }
}

/// Waits for a call, but not for ever: a service that took the request and fell silent counts as one that is away.
async fn bounded<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {}", crate::time::short(CALL_TIMEOUT)))),
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
