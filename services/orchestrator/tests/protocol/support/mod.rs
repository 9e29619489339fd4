//! A distributor that does what a test says, message by message, with no network between it and the orchestrator.

#![allow(dead_code, unreachable_pub, missing_docs)]

mod executor;
pub mod scaler;
mod server;

/// The crate under test, under the name by which the fake scaler knows it.
use millrace_orchestrator as lib;

pub use executor::{Instant as InstantExecutor, Manual};
pub use server::Network;

use std::{collections::BTreeMap, time::Duration};

use millrace_orchestrator::{Options, Orchestrator, Payload, RunError, TaskSpec};
use millrace_proto::{
    common::v1::Command,
    distributor::v1::{
        Accepted, Assignment, Assignments, CancelAttempts, Completion, CompletionResult, CompletionResults,
        Completions, ConnectOrchestratorRequest, ConnectOrchestratorResponse, GoAway, Grant, Held, Hello, LeaseRef,
        Progress, RevokeAttempts, SendHeld, Welcome, completion_result::Status as ResultStatus,
        connect_orchestrator_request::Message as Request, connect_orchestrator_response::Message as Response,
    },
};
use prost::Message as _;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use uuid::Uuid;

/// Longer than anything a test waits for, on the paused clock.
const NEVER: Duration = Duration::from_secs(3600);

pub fn task(number: u128) -> String {
    Uuid::from_u128(number).to_string()
}

pub fn lease(number: u128, attempt: i32) -> LeaseRef {
    LeaseRef { task_id: task(number), attempt, lease_token: format!("token-{number}-{attempt}") }
}

pub fn spec() -> TaskSpec {
    let command = Command { argv: vec!["run".into()], ..Command::default() };
    TaskSpec { executor: "fake".into(), payload: Some(Payload::Command(command)), ..TaskSpec::default() }
}

pub fn assignment(seq: u64, number: u128, attempt: i32) -> Assignment {
    let LeaseRef { task_id, attempt, lease_token } = lease(number, attempt);
    let spec = spec().encode_to_vec().into();
    Assignment { seq, task_id, attempt, lease_token, queue: "default".into(), spec, ..Assignment::default() }
}

pub fn exclusive(mut assignment: Assignment) -> Assignment {
    assignment.spec = TaskSpec { exclusive: true, ..spec() }.encode_to_vec().into();
    assignment
}

pub fn resent(mut assignment: Assignment) -> Assignment {
    assignment.resent = true;
    assignment
}

pub fn options(slots: u32) -> Options {
    Options {
        endpoints: vec!["http://one".into()],
        name: "test".into(),
        slots,
        labels: BTreeMap::from([("os".into(), "any".into())]),
        ..Options::default()
    }
}

/// An orchestrator that runs, and the ends of it that a test holds.
pub struct World {
    pub network: Network,
    pub shutdown: CancellationToken,
    pub running: JoinHandle<Result<(), RunError>>,
    pub status: tokio::sync::watch::Receiver<millrace_orchestrator::Status>,
}

impl World {
    pub fn start(options: Options, executor: impl millrace_orchestrator::Executor) -> Self {
        let (network, connector) = Network::new();
        let shutdown = CancellationToken::new();
        let orchestrator = Orchestrator::new(options, executor).connect_with(connector);
        let status = orchestrator.status();
        let running = tokio::spawn(orchestrator.run(shutdown.clone()));
        Self { network, shutdown, running, status }
    }

    /// The next stream; its first message has been read.
    pub async fn accept(&mut self) -> Conversation {
        self.network.accept().await
    }

    /// The next stream, welcomed to the session `s`.
    pub async fn welcome(&mut self, generation: i64) -> Conversation {
        let mut conversation = self.accept().await;
        conversation.welcome(SESSION, generation, &[]).await;
        conversation
    }
}

pub const SESSION: &str = "00000000-0000-0000-0000-0000000000aa";

/// One stream, from the distributor's side.
pub struct Conversation {
    pub endpoint: String,
    pub hello: Hello,
    requests: Streaming<ConnectOrchestratorRequest>,
    responses: mpsc::Sender<Result<ConnectOrchestratorResponse, Status>>,
    /// Whether heartbeats are answered while the test reads.
    pub answers_heartbeats: bool,
    /// Messages that were read, heartbeats among them.
    pub log: Vec<Request>,
}

impl Conversation {
    pub async fn send(&mut self, message: Response) {
        self.responses.send(Ok(ConnectOrchestratorResponse { message: Some(message) })).await.expect("stream is open");
    }

    pub async fn welcome(&mut self, session: &str, generation: i64, revoked: &[LeaseRef]) {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let welcome = Welcome {
            session_id: session.into(),
            generation,
            heartbeat_interval: seconds(5),
            lease_ttl: seconds(15),
            revoked: revoked.to_vec(),
            replica_id: "replica".into(),
        };
        self.send(Response::Welcome(welcome)).await;
    }

    pub async fn refuse(self, status: Status) {
        self.responses.send(Err(status)).await.expect("stream is open");
    }

    pub async fn assign(&mut self, assignments: Vec<Assignment>) {
        self.send(Response::Assignments(Assignments { assignments })).await;
    }

    pub async fn cancel(&mut self, leases: Vec<LeaseRef>) {
        self.send(Response::CancelAttempts(CancelAttempts { leases })).await;
    }

    pub async fn revoke(&mut self, leases: Vec<LeaseRef>) {
        self.send(Response::RevokeAttempts(RevokeAttempts { leases })).await;
    }

    pub async fn go_away(&mut self, delay_seconds: i64, endpoint: &str) {
        let delay = Some(prost_types::Duration { seconds: delay_seconds, nanos: 0 });
        self.send(Response::GoAway(GoAway { reason: "drill".into(), delay, endpoint: endpoint.into() })).await;
    }

    pub async fn answer(&mut self, completion: &Completion, status: ResultStatus) {
        let result = CompletionResult { lease: completion.lease.clone(), status: status as i32 };
        self.send(Response::CompletionResults(CompletionResults { results: vec![result] })).await;
    }

    /// Reads until a message that `pick` takes.
    pub async fn next<T>(&mut self, pick: impl Fn(&Request) -> Option<T>) -> T {
        let read = async {
            loop {
                let message = self.requests.message().await.expect("stream is whole").expect("stream is open");
                let message = message.message.expect("message is known");
                if let (Request::Heartbeat(beat), true) = (&message, self.answers_heartbeats) {
                    let seq = beat.seq;
                    let result = millrace_proto::distributor::v1::HeartbeatResult { seq };
                    self.send(Response::HeartbeatResult(result)).await;
                }
                let picked = pick(&message);
                self.log.push(message);
                if let Some(picked) = picked {
                    return picked;
                }
            }
        };
        timeout(NEVER, read).await.expect("the message comes")
    }

    pub async fn completions(&mut self) -> Vec<Completion> {
        let pick = |message: &Request| match message {
            Request::Completions(Completions { completions }) => Some(completions.clone()),
            _ => None,
        };
        self.next(pick).await
    }

    pub async fn completion(&mut self) -> Completion {
        let mut completions = self.completions().await;
        assert_eq!(completions.len(), 1);
        completions.remove(0)
    }

    pub async fn accepted(&mut self) -> Vec<LeaseRef> {
        let pick = |message: &Request| match message {
            Request::Accepted(Accepted { leases }) => Some(leases.clone()),
            _ => None,
        };
        self.next(pick).await
    }

    /// The next grant as (credits, acked seq).
    pub async fn grant(&mut self) -> (u32, u64) {
        let pick = |message: &Request| match message {
            Request::Grant(Grant { credits, acked_seq, .. }) => Some((*credits, *acked_seq)),
            _ => None,
        };
        self.next(pick).await
    }

    pub async fn progress(&mut self) -> Progress {
        let pick = |message: &Request| match message {
            Request::Progress(progress) => Some(progress.clone()),
            _ => None,
        };
        self.next(pick).await
    }

    /// The next heartbeat as (seq, count, digest).
    pub async fn heartbeat(&mut self) -> (u64, u32, u64) {
        let pick = |message: &Request| match message {
            Request::Heartbeat(beat) => Some((beat.seq, beat.held_count, beat.held_digest)),
            _ => None,
        };
        self.next(pick).await
    }

    /// Asks for what is held. Everything sent before the answer is in the log by then.
    pub async fn held(&mut self) -> Vec<LeaseRef> {
        self.send(Response::SendHeld(SendHeld {})).await;
        let pick = |message: &Request| match message {
            Request::Held(Held { leases }) => Some(leases.clone()),
            _ => None,
        };
        let mut leases = self.next(pick).await;
        leases.sort_by(|a, b| a.task_id.cmp(&b.task_id));
        leases
    }

    pub async fn goodbye(&mut self) {
        self.next(|message| matches!(message, Request::Goodbye(_)).then_some(())).await;
    }

    /// How many completions were read so far.
    pub fn completions_seen(&self) -> usize {
        let count = |message: &Request| match message {
            Request::Completions(completions) => completions.completions.len(),
            _ => 0,
        };
        self.log.iter().map(count).sum()
    }
}
