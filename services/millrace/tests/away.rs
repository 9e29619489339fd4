//! Services that hang or are not there: how long a command waits, what it says, and where else it goes.

mod fake;

use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use fake::{Fake, ID, Silent, millrace, run};
use millrace_proto::distributor::v1::{GetStatusResponse, Member};
use millrace_proto::queue::v1::Queue;

/// Nothing listens here.
const NOWHERE: &str = "http://127.0.0.1:1";
/// Long enough for a busy machine to answer in, where an answer comes.
const SHORT: &str = "700ms";

async fn with(variables: &[(&str, &str)], args: &[&str]) -> fake::Ran {
    let mut command = millrace(NOWHERE, args);
    command.envs(variables.iter().copied());
    command.output().await.unwrap().into()
}

#[tokio::test]
async fn a_service_that_hangs_is_69_in_time_and_named() {
    let silent = Silent::new();
    for (args, service) in [
        (&["task", "get", ID][..], "distributor"),
        (&["task", "list"], "distributor"),
        (&["task", "submit", "--", "true"], "distributor"),
        (&["task", "watch", ID], "distributor"),
        (&["task", "cancel", ID], "distributor"),
        (&["route", "list"], "distributor"),
        (&["queue", "list"], "queue service"),
        (&["queue", "watch"], "queue service"),
        (&["queue", "create", "q"], "queue service"),
    ] {
        let began = Instant::now();
        let variables = [("MILLRACE_ENDPOINT", silent.endpoint.as_str()), ("MILLRACE_CALL_TIMEOUT", "300ms")];
        let ran = with(&variables, args).await;
        assert_eq!(ran.code, 69, "{args:?}: {}", ran.stderr);
        let said = format!("error: the {service} at {}: no answer within 300ms", silent.endpoint);
        assert!(ran.stderr.starts_with(&said), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{args:?}: {}", ran.stderr);
        assert!(began.elapsed() < Duration::from_secs(10), "{args:?}");
    }
}

#[tokio::test]
async fn the_time_for_a_call_can_be_set_and_is_not_zero() {
    let silent = Silent::new();
    let list = ["task", "list"];
    let ran = with(&[("MILLRACE_ENDPOINT", &silent.endpoint), ("MILLRACE_CALL_TIMEOUT", "200ms")], &list).await;
    assert!(ran.code == 69 && ran.stderr.contains("no answer within 200ms"), "{}", ran.stderr);
    assert_eq!(run(NOWHERE, &["task", "list", "--call-timeout", "0"]).await.code, 64);
    let help = run(NOWHERE, &["task", "list", "--help"]).await.stdout;
    assert!(help.contains("MILLRACE_CALL_TIMEOUT") && help.contains("MILLRACE_CONNECT_TIMEOUT"), "{help}");
}

#[tokio::test]
async fn a_service_that_is_only_slow_is_asked_again_with_the_same_id() {
    let fake = Fake { unanswered: AtomicU32::new(1), ..Fake::watching([]) };
    let (fake, endpoint) = fake.serve().await;
    let ran = run(&endpoint, &["task", "submit", "--call-timeout", SHORT, "--", "true"]).await;
    assert_eq!((ran.code, ran.stdout.trim()), (0, ID), "{}", ran.stderr);
    let submitted = fake.submitted.lock().unwrap();
    assert_eq!(submitted.len(), 2);
    assert_eq!(submitted[0], submitted[1]);
}

#[tokio::test]
async fn the_next_endpoint_is_tried_when_one_does_not_answer() {
    let silent = Silent::new();
    let (fake, endpoint) = Fake::watching([]).serve().await;
    let submit = ["task", "submit", "--call-timeout", SHORT, "--", "true"];
    // One that cannot be reached is passed over without a word, one that hangs with one.
    let list = format!("{NOWHERE},{},{endpoint}", silent.endpoint);
    let ran = with(&[("MILLRACE_ENDPOINT", &list)], &submit).await;
    assert_eq!((ran.code, ran.stdout.trim()), (0, ID), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    let said = format!("the distributor at {} does not serve: no answer within 700ms; going on with", silent.endpoint);
    assert!(ran.stderr.contains(&said), "{}", ran.stderr);
    assert_eq!(fake.submitted.lock().unwrap().len(), 1);
    let own = with(&[("MILLRACE_DISTRIBUTOR_ENDPOINT", &list)], &["task", "list", "--call-timeout", SHORT]).await;
    assert_eq!(own.code, 0, "{}", own.stderr);
    let flags = ["task", "list", "--endpoint", NOWHERE, "--endpoint", &endpoint];
    assert_eq!(run(NOWHERE, &flags).await.code, 0);
    let none = with(&[("MILLRACE_ENDPOINT", "127.0.0.1:1,127.0.0.1:2")], &["task", "list"]).await;
    assert_eq!(none.code, 69);
    let both = none.stderr.contains("at http://127.0.0.1:1: ") && none.stderr.contains(", nor at http://127.0.0.1:2: ");
    assert!(both && none.stderr.lines().count() == 1, "{}", none.stderr);
}

#[tokio::test]
async fn doctor_has_a_line_for_every_endpoint_whether_it_answers_or_not() {
    let silent = Silent::new();
    let seen = std::time::SystemTime::now() - Duration::from_secs(7205);
    let member = Member { kind: "distributor".into(), seen_time: Some(seen.into()), ..Default::default() };
    let status = GetStatusResponse { members: vec![member], ..Default::default() };
    let queues = vec![Queue { name: "builds".into(), ..Default::default() }];
    let (_fake, endpoint) =
        Fake { status: Some(status).into(), queues: queues.into(), ..Default::default() }.serve().await;
    let doctor = ["doctor", "--call-timeout", SHORT];
    let line = |text: &str, service: &str, endpoint: &str| {
        let line = text.lines().find(|line| line.starts_with(service) && line.contains(endpoint));
        line.unwrap_or_else(|| panic!("no line for the {service} at {endpoint}: {text}")).to_owned()
    };

    let ran = with(&[("MILLRACE_ENDPOINT", &endpoint), ("MILLRACE_QUEUE_ENDPOINT", &silent.endpoint)], &doctor).await;
    assert_eq!(ran.code, 69, "{}", ran.stderr);
    assert!(line(&ran.stdout, "distributor", &endpoint).contains("answers in "));
    assert!(line(&ran.stdout, "queue service", &silent.endpoint).contains("no answer within 700ms"));
    assert!(ran.stdout.contains("2h00m ago"), "{}", ran.stdout);
    assert!(ran.stderr.starts_with(&format!("error: the queue service at {}", silent.endpoint)), "{}", ran.stderr);

    let ran = with(&[("MILLRACE_ENDPOINT", &endpoint), ("MILLRACE_DISTRIBUTOR_ENDPOINT", NOWHERE)], &doctor).await;
    assert_eq!(ran.code, 69);
    assert!(line(&ran.stdout, "distributor", NOWHERE).contains("refused"), "{}", ran.stdout);
    assert!(line(&ran.stdout, "queue service", &endpoint).contains("answers in "));
    assert!(ran.stdout.contains("builds"), "{}", ran.stdout);

    // One endpoint of several that does not answer is told, and does not keep the others' figures back.
    let list = format!("{NOWHERE},{endpoint}");
    let ran = with(&[("MILLRACE_ENDPOINT", &list)], &[&doctor[..], &["-o", "json"]].concat()).await;
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["stuck"], false);
    let answers: Vec<_> = report["services"].as_array().unwrap().iter().map(|one| one["answers"].clone()).collect();
    assert_eq!(answers, [false, true, false, true]);
}
