//! The client commands, run as a user runs them, against a distributor that answers as each test needs it.

mod fake;

use std::time::Duration;

use fake::{End, Fake, ID, Script, ended, millrace, output, run, state, task};
use millrace_proto::common::v1::{OutcomeKind, OutputStream, TaskSpec, TaskState, task_spec};
use millrace_proto::distributor::v1::batch_submit_result::Result as Item;
use millrace_proto::distributor::v1::{BatchSubmitResult, BatchSubmitTasksResponse, Refusal, SubmitTaskResponse, Task};
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

fn script(events: Vec<millrace_proto::distributor::v1::WatchTaskResponse>, end: End) -> Script {
    Script { events, end }
}

#[tokio::test]
async fn run_prints_live_output_and_exits_as_the_command() {
    let events = vec![
        state(task(TaskState::Queued)),
        output(OutputStream::Stdout, 0, "hello\n"),
        output(OutputStream::Stderr, 6, "oops\n"),
        state(ended(TaskState::Failed, OutcomeKind::Failed, Some(3), "hello\noops\n", 11)),
    ];
    let (fake, endpoint) = Fake::watching([script(events, End::Close)]).serve().await;
    let ran = run(&endpoint, &["task", "run", "--env", "A=1", "--", "sh", "-c", "echo hello"]).await;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (3, "hello\n", "oops\n"));
    let submitted = fake.submitted.lock().unwrap();
    let spec = TaskSpec::decode(submitted[0].spec.clone()).unwrap();
    assert_eq!(spec.executor, "process");
    assert!(!submitted[0].request_id.is_empty());
    match spec.payload {
        Some(task_spec::Payload::Command(command)) => assert_eq!(command.argv, ["sh", "-c", "echo hello"]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn run_survives_broken_watches_without_repeats_and_counts_what_is_lost() {
    let first = vec![state(task(TaskState::Running)), output(OutputStream::Stdout, 0, "0123456789")];
    let second = vec![
        state(task(TaskState::Running)),
        output(OutputStream::Stdout, 5, "56789abcde"),
        output(OutputStream::Stdout, 35, "later"),
    ];
    let last = vec![state(ended(TaskState::Succeeded, OutcomeKind::Succeeded, Some(0), "later, and the end\n", 54))];
    let scripts = [
        script(first, End::Error(Status::unavailable("restarting"))),
        script(second, End::Close),
        script(last, End::Close),
    ];
    let (_fake, endpoint) = Fake::watching(scripts).serve().await;
    let ran = run(&endpoint, &["task", "run", "--", "x"]).await;
    assert_eq!(ran.stdout, "0123456789abcdelater, and the end\n", "{}", ran.stderr);
    assert!(ran.stderr.contains("[20 bytes dropped]") && ran.stderr.contains("reconnecting"), "{}", ran.stderr);
    assert_eq!(ran.code, 0);
}

#[tokio::test]
async fn run_tells_ends_that_are_not_the_commands_own() {
    for (state_, kind, code, word) in [
        (TaskState::Failed, OutcomeKind::TimedOut, 124, "timeout"),
        (TaskState::Expired, OutcomeKind::Expired, 125, "expired"),
        (TaskState::Failed, OutcomeKind::NotStarted, 125, "not started"),
    ] {
        let events = vec![state(ended(state_, kind, None, "", 0))];
        let (_fake, endpoint) = Fake::watching([script(events, End::Close)]).serve().await;
        let ran = run(&endpoint, &["task", "run", "--", "x"]).await;
        assert_eq!(ran.code, code, "{}", ran.stderr);
        assert!(ran.stderr.contains(word), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn an_interrupt_cancels_the_task_and_its_end_is_awaited() {
    let events = vec![state(task(TaskState::Running)), output(OutputStream::Stdout, 0, "working\n")];
    let (fake, endpoint) = Fake::watching([script(events, End::Cancelled)]).serve().await;
    let child = millrace(&endpoint, &["task", "run", "--", "sleep", "100"]).spawn().unwrap();
    fake.watched.notified().await;
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ran: fake::Ran = child.wait_with_output().await.unwrap().into();
    assert_eq!((ran.code, ran.stdout.as_str()), (125, "working\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("cancelling task") && ran.stderr.contains("cancelled"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_submission_is_repeated_with_the_same_id_when_the_service_asks_for_it() {
    let fake = Fake::watching([]);
    let wait = ErrorDetails::with_retry_info(Some(Duration::from_millis(20)));
    fake.submit.lock().unwrap().push_front(Err(Status::with_error_details(Code::ResourceExhausted, "full", wait)));
    let (fake, endpoint) = fake.serve().await;
    let ran = run(&endpoint, &["task", "submit", "--", "true"]).await;
    assert_eq!((ran.code, ran.stdout.trim()), (0, ID), "{}", ran.stderr);
    let submitted = fake.submitted.lock().unwrap();
    assert_eq!(submitted.len(), 2);
    assert_eq!(submitted[0], submitted[1]);
}

#[tokio::test]
async fn the_budget_for_repeats_is_kept() {
    let fake = Fake::default();
    *fake.submit.lock().unwrap() = (0..100).map(|_| Err(Status::unavailable("the database does not answer"))).collect();
    let (_fake, endpoint) = fake.serve().await;
    let ran = run(&endpoint, &["task", "submit", "--retry-for", "200ms", "--", "true"]).await;
    assert_eq!(ran.code, 69);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("the database does not answer; try again"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_refusal_names_the_field_and_is_exit_code_1() {
    let fake = Fake::default();
    let details = ErrorDetails::with_bad_request_violation("spec.executor", "must not be empty");
    let refused = Status::with_error_details(Code::InvalidArgument, "the spec breaks a bound", details);
    fake.submit.lock().unwrap().push_back(Err(refused));
    let (_fake, endpoint) = fake.serve().await;
    let ran = run(&endpoint, &["task", "submit", "--", "true"]).await;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stderr, "error: the spec breaks a bound; spec.executor: must not be empty\n");
}

#[tokio::test]
async fn json_is_the_public_contract_with_the_whole_spec() {
    let any = prost_types::Any { type_url: "x/acme.Vm".into(), value: vec![1, 2, 3] };
    let spec = TaskSpec { executor: "vm".into(), payload: Some(task_spec::Payload::Custom(any)), ..Default::default() };
    let stored = Task { spec: spec.encode_to_vec().into(), ..task(TaskState::Queued) };
    let fake = Fake { tasks: vec![stored].into(), ..Default::default() };
    let (_fake, endpoint) = fake.serve().await;
    let ran = run(&endpoint, &["task", "get", ID, "--output", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["state"], "TASK_STATE_QUEUED");
    assert_eq!(json["spec"]["custom"], serde_json::json!({"@type": "x/acme.Vm", "value": "AQID"}));
    let missing = run(&endpoint, &["task", "get", "nothing"]).await;
    assert_eq!((missing.code, missing.stdout.as_str()), (1, ""));
}

#[tokio::test]
async fn lists_go_through_every_page() {
    let tasks: Vec<_> = (0..5).map(|n| Task { id: format!("task-{n}"), ..task(TaskState::Queued) }).collect();
    let (_fake, endpoint) = Fake { tasks: tasks.into(), ..Default::default() }.serve().await;
    let ran = run(&endpoint, &["task", "list", "-o", "json", "--limit", "0"]).await;
    assert_eq!(ran.stdout.lines().count(), 4, "the fake's third page is short: {}", ran.stdout);
    assert!(ran.stdout.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    let ran = run(&endpoint, &["task", "list"]).await;
    assert!(
        ran.stdout.starts_with("ID") && ran.stdout.contains("task-1") && !ran.stdout.contains('\u{1b}'),
        "{}",
        ran.stdout
    );
}

#[tokio::test]
async fn a_file_is_submitted_whole_and_refused_lines_are_named() {
    let accepted = |id: &str, existing| BatchSubmitResult { result: Some(Item::TaskId(id.into())), existing };
    let refused = |code: Code, field: &str| BatchSubmitResult {
        result: Some(Item::Refusal(Refusal {
            code: code as i32,
            message: "no".into(),
            field: field.into(),
            ..Default::default()
        })),
        existing: false,
    };
    let fake = Fake::default();
    let first =
        vec![accepted("a", false), refused(Code::InvalidArgument, "spec.executor"), refused(Code::Unavailable, "")];
    let second = vec![accepted("c", true)];
    *fake.batch.lock().unwrap() =
        [first, second].into_iter().map(|results| Ok(BatchSubmitTasksResponse { results })).collect();
    let (fake, endpoint) = fake.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.jsonl");
    std::fs::write(&path, "{\"executor\":\"a\"}\n\n{\"executor\":\"b\"}\n{\"executor\":\"c\"}\n").unwrap();
    let ran = run(&endpoint, &["task", "submit", "--idempotency-key", "k", "--file", path.to_str().unwrap()]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "a\nc\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("line 3: spec.executor: no"), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 submitted, 1 submitted earlier, 1 refused"), "{}", ran.stderr);
    // Only what was refused for a cause that passes is sent again, with its own id.
    let batches = fake.batches.lock().unwrap();
    let ids =
        |batch: usize| batches[batch].requests.iter().map(|request| request.request_id.as_str()).collect::<Vec<_>>();
    assert_eq!((ids(0), ids(1)), (vec!["k:1", "k:3", "k:4"], vec!["k:4"]));
}

#[tokio::test]
async fn a_wrong_line_keeps_the_whole_file_back() {
    let (fake, endpoint) = Fake::default().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.jsonl");
    std::fs::write(&path, "{\"executor\":\"a\"}\n{\"executor\":\n").unwrap();
    let ran = run(&endpoint, &["task", "submit", "--file", path.to_str().unwrap()]).await;
    assert_eq!(ran.code, 64);
    assert!(ran.stderr.contains("line 2: not JSON") && ran.stderr.contains("nothing was submitted"), "{}", ran.stderr);
    assert!(fake.batches.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_wrong_line_is_named_with_file_line_and_field() {
    let (fake, endpoint) = Fake::default().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.jsonl");
    let lines = [
        r#"{"executor":"a"}"#,
        r#"{"executor":"a","command":{"argv":["x",7]}}"#,
        r#"{"requestId":"r","spec":{"priority":"high"}}"#,
    ];
    std::fs::write(&path, lines.join("\n")).unwrap();
    let ran = run(&endpoint, &["task", "submit", "--file", path.to_str().unwrap()]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (64, ""));
    for part in [
        path.to_str().unwrap(),
        "line 2: not a TaskSpec: command.argv[1]: ",
        "line 3: not a SubmitTaskRequest: spec.priority: ",
        "nothing was submitted",
    ] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    assert!(fake.batches.lock().unwrap().is_empty());
    let help = run(&endpoint, &["task", "submit", "--help"]).await.stdout;
    assert!(help.contains("nothing is submitted") && help.contains("64"), "{help}");
}

#[tokio::test]
async fn keys_that_come_twice_in_a_file_are_pointed_out() {
    let fake = Fake::default();
    let accepted = BatchSubmitResult { result: Some(Item::TaskId("a".into())), existing: false };
    let reused = Refusal {
        code: Code::AlreadyExists as i32,
        reason: "REQUEST_ID_REUSED".into(),
        message: "the key stands for another content".into(),
        ..Default::default()
    };
    let refused = BatchSubmitResult { result: Some(Item::Refusal(reused)), existing: false };
    fake.batch.lock().unwrap().push_back(Ok(BatchSubmitTasksResponse { results: vec![accepted, refused] }));
    let (_fake, endpoint) = fake.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.jsonl");
    let line = |executor: &str| format!(r#"{{"requestId":"r","spec":{{"executor":"{executor}"}}}}"#);
    std::fs::write(&path, format!("{}\n{}\n", line("a"), line("b"))).unwrap();
    let ran = run(&endpoint, &["task", "submit", "--file", path.to_str().unwrap()]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "a\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("line 2 has the requestId of line 1"), "{}", ran.stderr);
    assert!(ran.stderr.contains("line 1 has the same requestId: give each line its own"), "{}", ran.stderr);
    assert!(ran.stderr.contains("error: 1 of 2 lines was refused"), "{}", ran.stderr);
}

#[tokio::test]
async fn an_input_that_no_task_can_hold_is_refused_with_the_bound() {
    let (fake, endpoint) = Fake::watching([]).serve().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    std::fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    for command in ["submit", "run"] {
        let mut ran = millrace(&endpoint, &["task", command, "--stdin-file", "-", "--", "cat"]);
        ran.stdin(std::fs::File::open(&path).unwrap());
        let ran: fake::Ran = ran.output().await.unwrap().into();
        assert_eq!(ran.code, 64, "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        let bound = "standard input is too large: a task has at most 256 KiB";
        assert!(ran.stderr.contains(bound), "{}", ran.stderr);
    }
    assert!(fake.submitted.lock().unwrap().is_empty());
    // A deployment that takes more says so.
    std::fs::File::create(&path).unwrap().set_len(300 << 10).unwrap();
    let path = path.to_str().unwrap();
    let args = ["task", "submit", "--max-spec-bytes", "1048576", "--stdin-file", path, "--", "cat"];
    assert_eq!(run(&endpoint, &args).await.code, 0);
}

#[tokio::test]
async fn a_task_is_named_once_in_a_refusal() {
    let (_fake, endpoint) = Fake::default().serve().await;
    let ran = run(&endpoint, &["task", "retry", ID]).await;
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (1, format!("error: task {ID} has not ended: it is RUNNING\n").as_str())
    );
}

#[tokio::test]
async fn waiting_for_a_file_tells_what_did_not_succeed() {
    let fake = Fake::watching([
        script(vec![state(ended(TaskState::Succeeded, OutcomeKind::Succeeded, Some(0), "", 0))], End::Close),
        script(vec![state(ended(TaskState::Failed, OutcomeKind::Failed, Some(2), "", 0))], End::Close),
    ]);
    let accepted = |id: &str| BatchSubmitResult { result: Some(Item::TaskId(id.into())), existing: false };
    fake.batch.lock().unwrap().push_back(Ok(BatchSubmitTasksResponse { results: vec![accepted("a"), accepted("b")] }));
    let (_fake, endpoint) = fake.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.jsonl");
    std::fs::write(&path, "{\"executor\":\"a\"}\n{\"executor\":\"b\"}\n").unwrap();
    let ran = run(&endpoint, &["task", "submit", "--wait", "--file", path.to_str().unwrap()]).await;
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stdout.contains("failed, exit code 2"), "{}", ran.stdout);
    assert!(ran.stderr.contains("1 failed, 1 succeeded"), "{}", ran.stderr);
}

#[tokio::test]
async fn an_earlier_submission_is_said_and_its_id_given() {
    let fake = Fake::default();
    let earlier = SubmitTaskResponse { task: Some(task(TaskState::Queued)), existing: true };
    fake.submit.lock().unwrap().push_back(Ok(earlier));
    let (fake, endpoint) = fake.serve().await;
    let ran = run(&endpoint, &["task", "submit", "--idempotency-key", "mine", "--", "true"]).await;
    assert_eq!((ran.code, ran.stdout.trim()), (0, ID));
    assert!(ran.stderr.contains("already"), "{}", ran.stderr);
    assert_eq!(fake.submitted.lock().unwrap()[0].request_id, "mine");
}

#[tokio::test]
async fn doctor_tells_a_database_that_is_down_from_a_service_that_is() {
    let (_fake, endpoint) = Fake::default().serve().await;
    let ran = run(&endpoint, &["doctor"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("its database does not"), "{}", ran.stderr);
}
