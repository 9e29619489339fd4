//! `millrace quarantine` against a distributor that has set rows aside.

mod fake;

use fake::{Fake, ID, quarantine::row, run};
use millrace_proto::common::v1::{Command, TaskSpec, task_spec::Payload};
use prost::Message;

/// Five rows, of which the service can read three.
async fn served() -> (std::sync::Arc<Fake>, String) {
    let fake = Fake::default();
    let columns = ["attempt", "rank", "attempt", "rank", "attempt"];
    *fake.quarantine.rows.lock().unwrap() =
        columns.iter().enumerate().map(|(number, column)| row(&format!("task-{number}"), column)).collect();
    fake.serve().await
}

#[tokio::test]
async fn rows_are_listed_as_a_table_and_as_json() {
    let (_fake, endpoint) = served().await;
    let all = run(&endpoint, &["quarantine", "list"]).await;
    assert_eq!(all.code, 0, "{}", all.stderr);
    let lines: Vec<&str> = all.stdout.lines().collect();
    assert!(lines.len() == 6 && lines[0].starts_with("TASK"), "{}", all.stdout);
    assert!(lines[1].contains("task-0") && lines[1].contains("builds") && lines[1].contains("0.2 and 1 more"));
    let some = run(&endpoint, &["quarantine", "list", "--column", "rank", "-o", "json"]).await;
    let rows: Vec<serde_json::Value> = some.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["defect"]["column"], "rank");
    let none = run(&endpoint, &["quarantine", "list", "--column", "x"]).await;
    assert_eq!((none.code, none.stdout.as_str()), (0, ""));
    assert!(none.stderr.contains("no row that matches"), "{}", none.stderr);
}

#[tokio::test]
async fn a_row_is_shown_with_every_column_and_its_spec() {
    let (fake, endpoint) = served().await;
    let command = Command { argv: vec!["make".into()], ..Default::default() };
    let spec = TaskSpec { payload: Some(Payload::Command(command)), ..Default::default() }.encode_to_vec();
    {
        let mut rows = fake.quarantine.rows.lock().unwrap();
        (rows[0].spec_size, rows[0].spec_bytes) = (Some(spec.len() as i64), Some(spec.into()));
        (rows[1].spec_size, rows[1].spec_bytes) = (Some(2), Some(vec![0xFF, 0xFF].into()));
    }
    let shown = run(&endpoint, &["quarantine", "show", "task-0"]).await;
    for part in ["attempt is not a whole number", "0.1, 0.2", "2023-11-14T22:13:20Z", "token", "null", "\"make\""] {
        assert!(shown.stdout.contains(part), "{part} in {}", shown.stdout);
    }
    assert!(shown.stdout.contains("ma\\u{1b}ny"), "what a terminal would act on is escaped: {}", shown.stdout);
    let broken = run(&endpoint, &["quarantine", "show", "task-1"]).await;
    assert!(broken.stdout.contains("2 bytes, which do not decode"), "{}", broken.stdout);
    let json = run(&endpoint, &["quarantine", "show", "task-1", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json.stdout).unwrap()["specBytes"], "//8=");
    let gone = run(&endpoint, &["quarantine", "show", "x"]).await;
    assert_eq!((gone.code, gone.stdout.as_str()), (1, ""));
    assert!(gone.stderr.contains("not set aside"), "{}", gone.stderr);
}

#[tokio::test]
async fn a_repair_sends_values_nothing_and_the_spec() {
    let (fake, endpoint) = served().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("spec.json");
    std::fs::write(&file, r#"{"executor": "process", "command": {"argv": ["make"]}}"#).unwrap();
    let flags = ["--column", "queue=builds", "--column", "tenant=", "--null", "timeout_ms"];
    let args = [&["quarantine", "repair", ID, "--spec", file.to_str().unwrap()], &flags[..]].concat();
    let tried = run(&endpoint, &[&args[..], &["--dry-run"]].concat()).await;
    assert_eq!((tried.code, tried.stdout.as_str()), (0, "the row can be read with that; nothing was changed yet\n"));
    let done = run(&endpoint, &args).await;
    assert_eq!((done.code, done.stdout), (0, format!("task {ID} is released: queued\n")));
    let repairs = fake.quarantine.repairs.lock().unwrap().clone();
    let sent: Vec<_> = repairs[1].columns.iter().map(|one| (one.name.as_str(), one.value.as_deref())).collect();
    assert_eq!(sent, [("queue", Some("builds")), ("tenant", Some("")), ("timeout_ms", None)]);
    let spec = TaskSpec::decode(repairs[1].spec.clone().unwrap()).unwrap();
    assert_eq!(spec.executor, "process");
    assert!(repairs[0].validate_only && !repairs[1].validate_only && !repairs[1].request_id.is_empty());
}

#[tokio::test]
async fn a_release_counts_without_changing_then_goes_page_by_page_and_names_what_stays() {
    let (fake, endpoint) = served().await;
    let counted = run(&endpoint, &["quarantine", "release", "--all", "--dry-run"]).await;
    assert_eq!((counted.code, counted.stdout.as_str()), (0, "5 rows match; nothing was changed\n"));
    assert!(fake.quarantine.releases.lock().unwrap().iter().all(|request| request.dry_run));
    let done = run(&endpoint, &["quarantine", "release", "--all", "--rate", "1000"]).await;
    assert_eq!(done.code, 1, "some stay");
    assert!(done.stdout.starts_with("released 3 of 5 rows\n"), "{}", done.stdout);
    assert!(done.stdout.contains("task-1") && done.stdout.contains("task-3"), "{}", done.stdout);
    assert_eq!(done.stderr, "error: 2 rows stay: the service cannot read them\n");
    let requests = fake.quarantine.releases.lock().unwrap().clone();
    let ids: std::collections::BTreeSet<_> =
        requests.iter().filter(|request| !request.dry_run).map(|request| request.request_id.clone()).collect();
    assert_eq!(ids.len(), 3, "each page has a request id of its own");
    let fine = run(&endpoint, &["quarantine", "release", "--column", "attempt", "--rate", "0"]).await;
    assert_eq!((fine.code, fine.stdout.as_str()), (0, "released 3 of 3 rows\n"));
}

#[tokio::test]
async fn a_discard_carries_its_reason() {
    let (fake, endpoint) = served().await;
    let args = ["quarantine", "discard", "--column", "rank", "--reason", "of a test"];
    let done = run(&endpoint, &args).await;
    assert_eq!((done.code, done.stdout.as_str()), (0, "discarded 2 rows\n"));
    let all = run(&endpoint, &["quarantine", "discard", "--all", "--reason", "r", "-o", "json"]).await;
    assert_eq!((all.code, all.stdout.lines().count()), (0, 3));
    let discards = fake.quarantine.discards.lock().unwrap().clone();
    assert_eq!(discards[0].reason, "of a test");
    assert!(discards[0].filter.as_ref().unwrap().before.is_none());
    assert!(discards[1].filter.as_ref().unwrap().before.is_some(), "what comes later was not meant");
    let counted = run(&endpoint, &["quarantine", "discard", "--task", "x", "--dry-run"]).await;
    assert_eq!(counted.code, 0, "{}", counted.stderr);
}
