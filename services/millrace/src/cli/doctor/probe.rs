//! One look at one endpoint of a service.

use std::time::{Duration, Instant, SystemTime};

use millrace_proto::distributor::v1::{GetStatusRequest, GetStatusResponse};
use millrace_proto::queue::v1::Queue;
use serde_json::{Value, json};
use tonic::Code;

use crate::cli::queue::all;
use crate::client::{Client, ClientArgs};
use crate::endpoint::{Service, unreachable};
use crate::exit::Failure;
use crate::status;
use crate::time::short;

/// What an endpoint answered.
pub(crate) struct Probe<T> {
    /// What is there.
    pub(crate) service: Service,
    /// Where.
    pub(crate) endpoint: String,
    /// The answer and how long it took, or what was wrong.
    pub(crate) answer: Result<(T, Duration), Wrong>,
}

/// Why there is no answer, or none of use.
pub(crate) struct Wrong {
    /// In a few words.
    pub(crate) why: String,
    /// As the end of the command.
    pub(crate) failure: Failure,
}

/// What a distributor tells, and when it was told: ages count to that moment, however long other services take.
pub(crate) struct Told {
    /// Its answer.
    pub(crate) status: GetStatusResponse,
    /// When it came.
    pub(crate) at: SystemTime,
}

impl<T> Probe<T> {
    /// How it went, for people.
    pub(crate) fn text(&self) -> String {
        match &self.answer {
            Ok((_, took)) => format!("answers in {}", short(*took)),
            Err(wrong) => wrong.why.clone(),
        }
    }

    /// How it went, for programs.
    pub(crate) fn json(&self) -> Value {
        let mut value =
            json!({"service": self.service.name(), "endpoint": self.endpoint, "answers": self.answer.is_ok()});
        match &self.answer {
            Ok((_, took)) => value["seconds"] = took.as_secs_f64().into(),
            Err(wrong) => value["why"] = wrong.why.as_str().into(),
        }
        value
    }
}

/// Looks at every endpoint of the distributor, at the same time.
pub(crate) async fn distributors(args: &ClientArgs) -> Result<Vec<Probe<Told>>, Failure> {
    let endpoints = Client::endpoints(args, Service::Distributor)?;
    Ok(futures::future::join_all(endpoints.into_iter().map(|endpoint| distributor(args, endpoint))).await)
}

/// Looks at every endpoint of the queue service, at the same time.
pub(crate) async fn queue_services(args: &ClientArgs) -> Result<Vec<Probe<Vec<Queue>>>, Failure> {
    let endpoints = Client::endpoints(args, Service::Queue)?;
    Ok(futures::future::join_all(endpoints.into_iter().map(|endpoint| queue_service(args, endpoint))).await)
}

async fn distributor(args: &ClientArgs, endpoint: String) -> Probe<Told> {
    let (service, asked) = (Service::Distributor, Instant::now());
    let answer = async {
        let client = connect(args, service, &endpoint).await?;
        let answer = client.open(|| {
            let mut calls = client.distributor();
            async move { calls.get_status(GetStatusRequest {}).await }
        });
        match answer.await {
            Ok(status) => Ok((Told { status, at: SystemTime::now() }, asked.elapsed())),
            // It is there and cannot work: that is an answer, and what is wrong is not the way to it.
            Err(status) if status.code() == Code::Unavailable && std::error::Error::source(&status).is_none() => {
                let why = format!("answers, and its database does not: {}", status.message());
                let text = format!("nothing moves: the distributor at {endpoint} {why}");
                Err(Wrong { why, failure: Failure::Request(text) })
            }
            Err(status) => Err(Wrong { why: status::cause(&status), failure: client.failure(&status) }),
        }
    };
    Probe { service, answer: answer.await, endpoint }
}

async fn queue_service(args: &ClientArgs, endpoint: String) -> Probe<Vec<Queue>> {
    let (service, asked) = (Service::Queue, Instant::now());
    let answer = async {
        let client = connect(args, service, &endpoint).await?;
        match all(&client).await {
            Ok(queues) => Ok((queues, asked.elapsed())),
            Err(status) => Err(Wrong { why: status::cause(&status), failure: client.failure(&status) }),
        }
    };
    Probe { service, answer: answer.await, endpoint }
}

pub(super) async fn connect(args: &ClientArgs, service: Service, endpoint: &str) -> Result<Client, Wrong> {
    match Client::connect_to(args, service, &[endpoint.to_owned()]).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(reasons)) => {
            let why = reasons.join("; ");
            let failure = Failure::Unavailable(unreachable(service, &[(endpoint, why.clone())]));
            Err(Wrong { why, failure })
        }
        Err(failure) => Err(Wrong { why: failure.to_string(), failure }),
    }
}
