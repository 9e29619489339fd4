//! Calls over gRPC that the CLI does not make.

use std::collections::BTreeSet;

use millrace_proto::distributor::v1::{
    self as wire, connect_orchestrator_request::Message as Ask, connect_orchestrator_response::Message as Answer,
};
use millrace_tests::{
    clients::{command, distributor, submission, unknown_field},
    suite::Suite,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

use crate::commands::Dev;

/// An orchestrator by hand.
pub(crate) struct ByHand {
    ask: mpsc::Sender<wire::ConnectOrchestratorRequest>,
    answers: Streaming<wire::ConnectOrchestratorResponse>,
    pub(crate) welcome: wire::Welcome,
}

impl ByHand {
    pub(crate) async fn connect(endpoint: &str, hello: wire::Hello) -> Result<Self, tonic::Status> {
        let (ask, asked) = mpsc::channel(100);
        ask.send(wire::ConnectOrchestratorRequest { message: Some(Ask::Hello(hello)) }).await.unwrap();
        let mut answers = distributor(endpoint).connect_orchestrator(ReceiverStream::new(asked)).await?.into_inner();
        match answers.message().await? {
            Some(wire::ConnectOrchestratorResponse { message: Some(Answer::Welcome(welcome)) }) => {
                Ok(Self { ask, answers, welcome })
            }
            other => panic!("no welcome: {other:?}"),
        }
    }

    pub(crate) async fn say(&self, message: Ask) {
        self.ask.send(wire::ConnectOrchestratorRequest { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> Answer {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), self.answers.message());
        next.await.expect("an answer in time").expect("no error").expect("no end").message.expect("a message")
    }

    pub(crate) async fn assignment(&mut self) -> wire::Assignment {
        loop {
            if let Answer::Assignments(mut assignments) = self.hear().await {
                return assignments.assignments.remove(0);
            }
        }
    }

    pub(crate) async fn complete(&mut self, lease: wire::LeaseRef, kind: i32) -> i32 {
        let outcome = millrace_proto::common::v1::Outcome { kind, ..Default::default() };
        let completion = wire::Completion { lease: Some(lease), outcome: Some(outcome) };
        self.say(Ask::Completions(wire::Completions { completions: vec![completion] })).await;
        loop {
            if let Answer::CompletionResults(results) = self.hear().await {
                return results.results[0].status;
            }
        }
    }
}

pub(crate) fn hello(name: &str) -> wire::Hello {
    wire::Hello { name: name.into(), queues: vec!["default".into()], slots: 1, ..Default::default() }
}

pub(crate) fn grant(seq: u64, credits: u32, acked_seq: u64) -> Ask {
    Ask::Grant(wire::Grant { seq, credits, acked_seq, queues: Vec::new() })
}

pub(crate) fn lease_of(assignment: &wire::Assignment) -> wire::LeaseRef {
    wire::LeaseRef {
        task_id: assignment.task_id.clone(),
        attempt: assignment.attempt,
        lease_token: assignment.lease_token.clone(),
    }
}

const SUCCEEDED: i32 = 1;
const RECORDED: i32 = 1;
const STALE_LEASE: i32 = 2;

#[tokio::test]
async fn r12_an_orchestrator_receives_a_field_that_no_release_knows() {
    let dev = Dev::start(&["--without-agent"]);
    let mut spec = command(&["true"]).encode_to_vec();
    spec.extend(unknown_field(b"from the future"));
    let request = wire::SubmitTaskRequest { request_id: String::new(), spec: spec.clone().into() };
    let task = distributor(&dev.server.endpoint).submit_task(request).await.unwrap().into_inner().task.unwrap();
    assert_eq!(task.spec, spec, "the answer carries it too");
    let mut orchestrator = ByHand::connect(&dev.server.endpoint, hello("by-hand")).await.unwrap();
    orchestrator.say(grant(1, 1, 0)).await;
    let assignment = orchestrator.assignment().await;
    assert_eq!(assignment.spec, spec, "byte for byte");
    assert_eq!(orchestrator.complete(lease_of(&assignment), SUCCEEDED).await, RECORDED);
    let stored = distributor(&dev.server.endpoint).get_task(wire::GetTaskRequest { id: task.id }).await.unwrap();
    assert_eq!(stored.into_inner().task.unwrap().spec, spec);
}

#[tokio::test]
async fn a_stale_token_changes_nothing_and_gets_a_clear_answer() {
    let dev = Dev::start(&["--without-agent"]);
    let mut client = distributor(&dev.server.endpoint);
    let id = client.submit_task(submission("", &command(&["true"]))).await.unwrap().into_inner().task.unwrap().id;
    let mut orchestrator = ByHand::connect(&dev.server.endpoint, hello("by-hand")).await.unwrap();
    orchestrator.say(grant(1, 1, 0)).await;
    let lease = lease_of(&orchestrator.assignment().await);
    let forged = wire::LeaseRef { lease_token: "0000000000000001".into(), ..lease.clone() };
    assert_eq!(orchestrator.complete(forged, SUCCEEDED).await, STALE_LEASE);
    let earlier = wire::LeaseRef { attempt: 2, ..lease.clone() };
    assert_eq!(orchestrator.complete(earlier, SUCCEEDED).await, STALE_LEASE);
    let task = client.get_task(wire::GetTaskRequest { id }).await.unwrap().into_inner().task.unwrap();
    assert!(task.outcome.is_none());
    assert_eq!(orchestrator.complete(lease.clone(), SUCCEEDED).await, RECORDED);
    assert_eq!(orchestrator.complete(lease, SUCCEEDED).await, RECORDED, "a repeat of the same end is the same end");
}

#[tokio::test]
async fn r2_an_orchestrator_that_restarts_closes_its_previous_session() {
    let dev = Dev::start(&["--without-agent"]);
    let mut client = distributor(&dev.server.endpoint);
    client.submit_task(submission("", &command(&["true"]))).await.unwrap();
    let mut first = ByHand::connect(&dev.server.endpoint, hello("first")).await.unwrap();
    first.say(grant(1, 1, 0)).await;
    let lost = first.assignment().await;
    let previous_session_id = first.welcome.session_id.clone();
    let mut second =
        ByHand::connect(&dev.server.endpoint, wire::Hello { previous_session_id, ..hello("first") }).await.unwrap();
    second.say(grant(1, 1, 0)).await;
    let again = second.assignment().await;
    assert_eq!((again.task_id.as_str(), again.attempt), (lost.task_id.as_str(), 2));
    assert_eq!(first.complete_or_end(lease_of(&lost)).await, None, "the old session has ended");
    assert_eq!(second.complete(lease_of(&again), SUCCEEDED).await, RECORDED);
}

impl ByHand {
    /// The status of a completion, or none when the stream ended first.
    async fn complete_or_end(&mut self, lease: wire::LeaseRef) -> Option<i32> {
        let outcome = millrace_proto::common::v1::Outcome { kind: SUCCEEDED, ..Default::default() };
        let completion = wire::Completion { lease: Some(lease), outcome: Some(outcome) };
        let message = Ask::Completions(wire::Completions { completions: vec![completion] });
        let _ = self.ask.send(wire::ConnectOrchestratorRequest { message: Some(message) }).await;
        loop {
            match self.answers.message().await {
                Ok(Some(wire::ConnectOrchestratorResponse { message: Some(Answer::CompletionResults(results)) })) => {
                    match results.results[0].status {
                        STALE_LEASE => continue,
                        status => return Some(status),
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

#[tokio::test]
async fn r1_an_assignment_that_was_lost_with_its_stream_is_sent_again_on_resume() {
    let dev = Dev::start(&["--without-agent"]);
    let mut client = distributor(&dev.server.endpoint);
    client.submit_task(submission("", &command(&["true"]))).await.unwrap();
    let mut first = ByHand::connect(&dev.server.endpoint, hello("one")).await.unwrap();
    first.say(grant(1, 1, 0)).await;
    let sent = first.assignment().await;
    let (session_id, generation) = (first.welcome.session_id.clone(), first.welcome.generation);
    drop(first);
    // It resumes and names nothing: the answer to its grant had been lost.
    let resume = wire::Hello { session_id: session_id.clone(), generation, ..hello("one") };
    let mut second = ByHand::connect(&dev.server.endpoint, resume.clone()).await.unwrap();
    assert_eq!(second.welcome.generation, generation + 1);
    let again = second.assignment().await;
    assert!(again.resent);
    assert_eq!(lease_of(&again), lease_of(&sent), "the same attempt with the same token");
    // Had the Welcome been lost, it would know only the generation before, and resume once more.
    let mut third = ByHand::connect(&dev.server.endpoint, resume.clone()).await.unwrap();
    assert_eq!(third.welcome.generation, generation + 2);
    assert_eq!(lease_of(&third.assignment().await), lease_of(&sent));
    assert_eq!(third.complete(lease_of(&again), SUCCEEDED).await, RECORDED);
    third.say(Ask::Goodbye(wire::Goodbye {})).await;
    while third.answers.message().await.is_ok_and(|answer| answer.is_some()) {}
    let refused = ByHand::connect(&dev.server.endpoint, resume).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "SESSION_GONE");
}

#[tokio::test]
async fn a_slow_orchestrator_holds_no_more_than_its_credits() {
    let dev = Dev::start(&["--without-agent"]);
    let mut client = distributor(&dev.server.endpoint);
    let requests = (0..20).map(|_| submission("", &command(&["true"]))).collect();
    client.batch_submit_tasks(wire::BatchSubmitTasksRequest { requests }).await.unwrap();
    let mut slow = ByHand::connect(&dev.server.endpoint, hello("slow")).await.unwrap();
    slow.say(grant(1, 3, 0)).await;
    let mut quick = ByHand::connect(&dev.server.endpoint, hello("quick")).await.unwrap();
    let (mut seq, mut done) = (0, BTreeSet::new());
    // The slow one reads nothing; everything else is done by the quick one.
    while done.len() < 17 {
        seq += 1;
        quick.say(grant(seq, 1, done.len() as u64)).await;
        let assignment = quick.assignment().await;
        assert_eq!(quick.complete(lease_of(&assignment), SUCCEEDED).await, RECORDED);
        done.insert(assignment.task_id);
    }
    for _ in 0..3 {
        let held = slow.hear().await;
        if let Answer::Assignments(assignments) = held {
            for assignment in assignments.assignments {
                assert!(done.insert(assignment.task_id));
            }
        }
        if done.len() == 20 {
            break;
        }
    }
    assert_eq!(done.len(), 20);
}

#[tokio::test]
async fn r11_a_repeated_request_gets_the_same_task_and_other_content_is_refused() {
    let dev = Dev::start(&["--without-agent"]);
    let mut client = distributor(&dev.server.endpoint);
    let spec = command(&["true"]);
    let first = client.submit_task(submission("once", &spec)).await.unwrap().into_inner();
    let again = client.submit_task(submission("once", &spec)).await.unwrap().into_inner();
    assert!(!first.existing && again.existing);
    assert_eq!(first.task.unwrap().id, again.task.unwrap().id);
    // The same message in other bytes: the fields in another order.
    let mut shuffled = Vec::new();
    prost::encoding::string::encode(2, &"process".to_string(), &mut shuffled);
    let mut rest = spec.clone();
    rest.executor.clear();
    let mut other_order = rest.encode_to_vec();
    other_order.extend(shuffled);
    let request = wire::SubmitTaskRequest { request_id: "once".into(), spec: other_order.into() };
    assert!(client.submit_task(request).await.unwrap().into_inner().existing);
    let refused = client.submit_task(submission("once", &command(&["false"]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "REQUEST_ID_REUSED");
    // Another tenant's ids are its own.
    let elsewhere = millrace_proto::common::v1::TaskSpec { tenant: "other".into(), ..command(&["false"]) };
    assert!(!client.submit_task(submission("once", &elsewhere)).await.unwrap().into_inner().existing);
}

#[test]
fn both_reflections_and_health_answer_grpcurl() {
    let dev = Dev::start(&["--without-agent"]);
    let address = dev.server.endpoint.trim_start_matches("http://");
    let grpcurl = |args: &[&str]| {
        let output = millrace_tests::tools::grpcurl().args(args).output().expect("running grpcurl");
        assert!(output.status.success(), "{args:?}: {}", millrace_tests::suite::said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed = grpcurl(&["-plaintext", address, "list"]);
    for service in
        ["millrace.distributor.v1.DistributorService", "millrace.queue.v1.QueueService", "grpc.health.v1.Health"]
    {
        assert!(listed.contains(service), "{listed}");
    }
    let described = grpcurl(&["-plaintext", address, "describe", "millrace.distributor.v1.SubmitTaskRequest"]);
    assert!(described.contains("Makes repeats harmless") && described.contains("TaskSpec spec"), "{described}");
    let health = grpcurl(&[
        "-plaintext",
        "-d",
        r#"{"service":"millrace.queue.v1.QueueService"}"#,
        address,
        "grpc.health.v1.Health/Check",
    ]);
    assert!(health.contains("SERVING"), "{health}");
    // The details of an error in words.
    let id = r#"{"id":"0190a0b0-0000-7000-8000-00000000002a"}"#;
    let refused = millrace_tests::tools::grpcurl()
        .args(["-plaintext", "-d", id, address, "millrace.distributor.v1.DistributorService/GetTask"])
        .output()
        .expect("running grpcurl");
    let told = millrace_tests::suite::said(&refused);
    assert!(told.contains("NO_SUCH_TASK") && told.contains("google.rpc.ErrorInfo"), "{told}");
}

#[test]
fn each_service_serves_only_its_own_package() {
    let database = millrace_tests::postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let (queue, distributor) = (suite.queue(&[]), suite.distributor(&[]));
    let listed = |endpoint: &str| {
        let address = endpoint.trim_start_matches("http://");
        let output = millrace_tests::tools::grpcurl().args(["-plaintext", address, "list"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(!listed(&distributor.endpoint).contains("millrace.queue"), "{}", listed(&distributor.endpoint));
    assert!(!listed(&queue.endpoint).contains("millrace.distributor"), "{}", listed(&queue.endpoint));
}
