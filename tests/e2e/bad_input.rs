//! What bad input gets: a clear error that names the field, nothing stored, no neighbour harmed.

use millrace_proto::{
    common::v1::{Command, TaskSpec, task_spec::Payload},
    distributor::v1::{self as wire, batch_submit_result::Result as Outcome},
};
use millrace_tests::clients::{command, distributor, submission};
use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::commands::Dev;

fn field(status: &Status) -> String {
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>().join(",")
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

#[tokio::test]
async fn bad_submissions_are_refused_by_field_and_nothing_is_stored() {
    let dev = Dev::start(&["--without-agent"]);
    let mut client = distributor(&dev.server.endpoint);
    let span = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let good = || command(&["true"]);
    let payload = |command: Command| TaskSpec { payload: Some(Payload::Command(command)), ..good() };
    let cases: Vec<(&str, TaskSpec)> = vec![
        ("spec.command.argv", command(&[])),
        ("spec.command.argv", command(&["a\0b"])),
        (
            "spec.command.env",
            payload(Command { argv: vec!["a".into()], env: [("A=".into(), "".into())].into(), ..Default::default() }),
        ),
        ("spec.executor", TaskSpec { executor: "No Such!".into(), ..good() }),
        ("spec.tenant", TaskSpec { tenant: "a\0".into(), ..good() }),
        ("spec.priority", TaskSpec { priority: Some(5000), ..good() }),
        ("spec.timeout", TaskSpec { timeout: span(-5, 0), ..good() }),
        ("spec.expire_after", TaskSpec { expire_after: span(0, 2_000_000_000), ..good() }),
        ("spec.labels", TaskSpec { labels: (0..40).map(|n| (n.to_string(), String::new())).collect(), ..good() }),
        ("spec.payload", TaskSpec { payload: None, ..good() }),
        ("spec", command(&[&"x".repeat(300 * 1024)])),
    ];
    for (expected, spec) in &cases {
        let status = client.submit_task(submission("", spec)).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, *expected), "{status}");
    }
    let garbage = wire::SubmitTaskRequest { request_id: String::new(), spec: vec![0xFF; 10].into() };
    assert_eq!(client.submit_task(garbage).await.unwrap_err().code(), Code::InvalidArgument);
    let long = wire::SubmitTaskRequest { request_id: "x".repeat(129), spec: good().encode_to_vec().into() };
    assert_eq!(field(&client.submit_task(long).await.unwrap_err()), "request_id");
    let nowhere = TaskSpec { executor: "nobody".into(), ..good() };
    let status = client.submit_task(submission("", &nowhere)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "NO_ROUTE"));

    let mut requests: Vec<_> = cases.iter().map(|(_, spec)| submission("", spec)).collect();
    requests.insert(3, submission("", &good()));
    requests.push(submission("", &good()));
    let results =
        client.batch_submit_tasks(wire::BatchSubmitTasksRequest { requests }).await.unwrap().into_inner().results;
    let stored = results.iter().filter(|result| matches!(result.result, Some(Outcome::TaskId(_)))).count();
    assert_eq!(stored, 2, "the neighbours of bad ones are stored");
    let Some(Outcome::Refusal(refusal)) = &results[0].result else { panic!("{:?}", results[0]) };
    assert_eq!(refusal.field, "requests[0].spec.command.argv");
    let listed = client.list_tasks(wire::ListTasksRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.tasks.len(), 2, "nothing of the bad ones is stored");
}

#[tokio::test]
async fn bad_questions_are_answered_clearly() {
    let dev = Dev::start(&["--without-agent"]);
    let mut client = distributor(&dev.server.endpoint);
    let missing = "0190a0b0-0000-7000-8000-00000000002a".to_owned();
    let status = client.get_task(wire::GetTaskRequest { id: "7".into() }).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "id"));
    let status = client.get_task(wire::GetTaskRequest { id: missing.clone() }).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "NO_SUCH_TASK"));
    let page = wire::ListTasksRequest { page_token: "nonsense".into(), ..Default::default() };
    assert_eq!(field(&client.list_tasks(page).await.unwrap_err()), "page_token");
    let page = wire::ListTasksRequest { page_size: 1_000_000, ..Default::default() };
    assert_eq!(field(&client.list_tasks(page).await.unwrap_err()), "page_size");
    let page = wire::ListTasksRequest { states: vec![77], ..Default::default() };
    assert_eq!(field(&client.list_tasks(page).await.unwrap_err()), "states");
    let status = client.watch_task(wire::WatchTaskRequest { id: missing, ..Default::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    let id = client.submit_task(submission("", &command(&["true"]))).await.unwrap().into_inner().task.unwrap().id;
    let status = client.retry_task(wire::RetryTaskRequest { request_id: String::new(), id }).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "NOT_FINISHED"));
}

#[tokio::test]
async fn an_orchestrator_that_breaks_the_protocol_is_told_how() {
    use millrace_proto::distributor::v1::connect_orchestrator_request::Message as Ask;
    let dev = Dev::start(&["--without-agent"]);
    let refused = |hello: wire::Hello| {
        let endpoint = dev.server.endpoint.clone();
        async move { crate::grpc::ByHand::connect(&endpoint, hello).await.err().expect("a refusal") }
    };
    let hello = crate::grpc::hello("x");
    assert_eq!(field(&refused(wire::Hello { name: String::new(), ..hello.clone() }).await), "name");
    assert_eq!(field(&refused(wire::Hello { queues: Vec::new(), ..hello.clone() }).await), "queues");
    let unknown = refused(wire::Hello { queues: vec!["nowhere".into()], ..hello.clone() }).await;
    assert_eq!(reason(&unknown), "NO_SUCH_QUEUE");
    let ttl = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    assert_eq!(field(&refused(wire::Hello { lease_ttl: ttl, ..hello.clone() }).await), "lease_ttl");
    let first = tokio_stream::iter([wire::ConnectOrchestratorRequest {
        message: Some(Ask::Heartbeat(wire::Heartbeat::default())),
    }]);
    let status = distributor(&dev.server.endpoint).connect_orchestrator(first).await.map(drop).expect_err("a refusal");
    assert_eq!(reason(&status), "HELLO_FIRST");
}
