//! An orchestrator by hand, which holds attempts for as long as a test needs it to.

use std::time::Duration;

use millrace_proto::{
    common::v1::Outcome,
    distributor::v1::{
        self as wire, connect_orchestrator_request::Message as Ask, connect_orchestrator_response::Message as Answer,
    },
};
use millrace_tests::clients::distributor;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An orchestrator by hand, with a session on a distributor.
pub(crate) struct Hand {
    ask: mpsc::Sender<wire::ConnectOrchestratorRequest>,
    answers: Streaming<wire::ConnectOrchestratorResponse>,
    /// What the distributor answered its hello with.
    pub(crate) welcome: wire::Welcome,
    grants: u64,
    received: u64,
}

impl Hand {
    pub(crate) async fn connect(endpoint: &str, hello: wire::Hello) -> Self {
        // Full when the distributor reads nothing, which a test would wait for in vain.
        let (ask, asked) = mpsc::channel(100);
        ask.send(wire::ConnectOrchestratorRequest { message: Some(Ask::Hello(hello)) }).await.expect("room");
        let answers = distributor(endpoint).connect_orchestrator(ReceiverStream::new(asked)).await;
        let mut answers = answers.expect("a stream").into_inner();
        match answers.message().await.expect("no error") {
            Some(wire::ConnectOrchestratorResponse { message: Some(Answer::Welcome(welcome)) }) => {
                Self { ask, answers, welcome, grants: 0, received: 0 }
            }
            other => panic!("no welcome: {other:?}"),
        }
    }

    /// A new session for this queue.
    pub(crate) async fn of(endpoint: &str, name: &str, queue: &str) -> Self {
        let labels = [("zone".to_owned(), "a".to_owned())].into();
        let (name, queues) = (name.to_owned(), vec![queue.to_owned()]);
        // So long that no test has to renew it.
        let lease_ttl = Some(prost_types::Duration { seconds: 600, nanos: 0 });
        let build = "by hand".to_owned();
        Self::connect(endpoint, wire::Hello { name, queues, labels, slots: 4, lease_ttl, build, ..Default::default() })
            .await
    }

    pub(crate) async fn say(&self, message: Ask) {
        self.send(Some(message)).await;
    }

    /// Sends a message as a build sees it that does not know its kind: as one without content.
    pub(crate) async fn say_something_new(&self) {
        self.send(None).await;
    }

    async fn send(&self, message: Option<Ask>) {
        self.ask.send(wire::ConnectOrchestratorRequest { message }).await.expect("the stream is there");
    }

    async fn hear(&mut self) -> Answer {
        let next = tokio::time::timeout(PATIENCE, self.answers.message());
        next.await.expect("an answer in time").expect("no error").expect("no end").message.expect("a message")
    }

    /// Asks for one assignment and waits for it.
    pub(crate) async fn take(&mut self) -> wire::Assignment {
        self.grants += 1;
        let grant = wire::Grant { seq: self.grants, credits: 1, acked_seq: self.received, queues: Vec::new() };
        self.say(Ask::Grant(grant)).await;
        loop {
            if let Answer::Assignments(mut assignments) = self.hear().await {
                let assignment = assignments.assignments.remove(0);
                self.received = assignment.seq;
                return assignment;
            }
        }
    }

    /// Says that these run; a heartbeat writes it. Waits until it is written.
    pub(crate) async fn accept(&mut self, leases: &[wire::LeaseRef]) {
        self.say(Ask::Accepted(wire::Accepted { leases: leases.to_vec() })).await;
        self.say(Ask::Heartbeat(wire::Heartbeat { seq: 1, ..Default::default() })).await;
        while !matches!(self.hear().await, Answer::HeartbeatResult(_)) {}
    }

    /// Reports the end of an attempt and returns the status of the answer.
    pub(crate) async fn complete(&mut self, lease: wire::LeaseRef, outcome: Outcome) -> i32 {
        let completion = wire::Completion { lease: Some(lease), outcome: Some(outcome) };
        self.say(Ask::Completions(wire::Completions { completions: vec![completion] })).await;
        loop {
            if let Answer::CompletionResults(results) = self.hear().await {
                return results.results[0].status;
            }
        }
    }

    /// Waits until it is told to stop an attempt.
    pub(crate) async fn cancelled(&mut self) -> wire::LeaseRef {
        loop {
            if let Answer::CancelAttempts(mut cancel) = self.hear().await {
                return cancel.leases.remove(0);
            }
        }
    }

    /// Ends the session for good.
    pub(crate) async fn goodbye(mut self) {
        self.say(Ask::Goodbye(wire::Goodbye {})).await;
        while let Ok(Some(_)) = self.answers.message().await {}
    }
}

pub(crate) fn lease_of(assignment: &wire::Assignment) -> wire::LeaseRef {
    wire::LeaseRef {
        task_id: assignment.task_id.clone(),
        attempt: assignment.attempt,
        lease_token: assignment.lease_token.clone(),
    }
}
