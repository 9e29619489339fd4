use millrace_core::task::State;
use millrace_proto::common::v1::{TaskSpec, TaskState};
use millrace_store::{Reader, memory};
use tonic::Code;

use super::*;
use crate::fixture::{self, Replica};

/// Five tasks of which all but the first are set aside: their `attempt` cannot be read.
fn replica() -> (Replica, Vec<TaskId>) {
    let replica = fixture::replica();
    let tasks: Vec<TaskId> = (1..=5).map(|number| replica.submit(number)).collect();
    for task in &tasks[1..] {
        replica.store.damage(*task, "attempt", Value::Text("many".into()));
    }
    assert_eq!(replica.store.examine(&tasks).unwrap().len(), 5);
    (replica, tasks)
}

fn only(tasks: &[TaskId]) -> Option<wire::QuarantineFilter> {
    Some(wire::QuarantineFilter { task_ids: tasks.iter().map(ToString::to_string).collect(), ..Default::default() })
}

fn reason(fault: Fault) -> String {
    fault.reason.into_owned()
}

#[tokio::test]
async fn rows_are_listed_page_by_page_and_shown_whole() {
    let (replica, tasks) = replica();
    let mut request = wire::ListQuarantinedRowsRequest { page_size: 3, ..Default::default() };
    let first = list(&replica.shared, request.clone()).await.unwrap();
    assert_eq!(first.rows.len(), 3);
    assert!(first.rows.iter().all(|row| row.spec_bytes.is_none() && row.spec_size > Some(0)));
    request.page_token = first.next_page_token;
    let second = list(&replica.shared, request.clone()).await.unwrap();
    assert_eq!((second.rows.len(), second.next_page_token.as_str()), (1, ""));
    request = wire::ListQuarantinedRowsRequest { filter: only(&tasks[2..3]), ..Default::default() };
    assert_eq!(list(&replica.shared, request.clone()).await.unwrap().rows[0].task_id, tasks[2].to_string());
    request.filter = Some(wire::QuarantineFilter { column: "rank".into(), ..Default::default() });
    assert!(list(&replica.shared, request).await.unwrap().rows.is_empty());

    let request = |task: TaskId| wire::GetQuarantinedRowRequest { task_id: task.to_string() };
    let row = get(&replica.shared, request(tasks[1])).await.unwrap().row.unwrap();
    let column = row.columns.iter().find(|column| column.name == "attempt").unwrap();
    assert_eq!((column.value.as_deref(), column.r#type.as_str()), (Some("many"), "text"));
    assert!(TaskSpec::decode(row.spec_bytes.unwrap()).is_ok());
    assert_eq!((row.defect.unwrap().column.as_str(), row.writer_format), ("attempt", 1));
    assert_eq!(reason(get(&replica.shared, request(tasks[0])).await.unwrap_err()), "NOT_QUARANTINED");
}

#[tokio::test]
async fn a_list_ends_where_an_answer_is_full_and_goes_on_there() {
    let flags = ["--max-message-bytes", "3000000", "--max-spec-bytes", "100000"];
    let replica = fixture::replica_with(&flags);
    let tasks: Vec<TaskId> = (1..=3).map(|number| replica.submit(number)).collect();
    for task in &tasks {
        // Ten columns of a later release, each as long as is shown whole.
        for column in 0..12 {
            replica.store.damage(*task, &format!("later{column}"), Value::Text("x".repeat(100_000)));
        }
        replica.store.quarantine(*task);
    }
    let mut request = wire::ListQuarantinedRowsRequest::default();
    let mut seen = Vec::new();
    loop {
        let page = list(&replica.shared, request.clone()).await.unwrap();
        assert!(page.encoded_len() < 3_000_000 && page.rows.len() == 1);
        seen.extend(page.rows.into_iter().map(|row| row.task_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, tasks.iter().map(ToString::to_string).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_repair_is_tried_then_done_and_the_same_request_changes_nothing_again() {
    let (replica, tasks) = replica();
    let change = |value: Option<&str>| wire::ColumnChange { name: "attempt".into(), value: value.map(Into::into) };
    let request = |value: Option<&str>, validate_only| wire::RepairQuarantinedRowRequest {
        request_id: "once".into(),
        task_id: tasks[1].to_string(),
        columns: vec![change(value)],
        spec: None,
        validate_only,
    };
    for bad in [Some("none"), None] {
        let fault = repair(&replica.shared, request(bad, false)).await.unwrap_err();
        assert!(fault.message.contains("attempt"), "{fault}");
        assert_eq!(reason(fault), "STILL_UNREADABLE");
    }
    let tried = repair(&replica.shared, request(Some("0"), true)).await.unwrap();
    assert!(tried.task.is_none() && replica.store.is_quarantined(tasks[1]).unwrap());
    let done = repair(&replica.shared, request(Some("0"), false)).await.unwrap();
    assert_eq!(done.task.as_ref().unwrap().state, TaskState::Queued as i32);
    // The answer was lost: asked again, the same is said.
    assert_eq!(repair(&replica.shared, request(Some("0"), false)).await.unwrap(), done);
    assert_eq!(reason(repair(&replica.shared, request(Some("1"), false)).await.unwrap_err()), "REQUEST_ID_REUSED");
    let audited = replica.store.audited();
    assert_eq!(audited.len(), 1);
    assert!(audited[0].detail.contains("attempt=0") && audited[0].detail.contains("once"), "{audited:?}");
}

#[tokio::test]
async fn a_repair_with_a_spec_keeps_the_bounds_of_a_submission() {
    let (replica, tasks) = replica();
    let spec = TaskSpec { executor: "process".into(), ..Default::default() };
    let request = wire::RepairQuarantinedRowRequest {
        task_id: tasks[1].to_string(),
        spec: Some(spec.encode_to_vec().into()),
        ..Default::default()
    };
    let fault = repair(&replica.shared, request.clone()).await.unwrap_err();
    assert_eq!(fault.violations[0].field, "spec.payload");
    let none = wire::RepairQuarantinedRowRequest { spec: None, ..request.clone() };
    assert_eq!(repair(&replica.shared, none).await.unwrap_err().violations[0].field, "columns");
    let fixed = wire::ColumnChange { name: "id".into(), value: None };
    let fixed = wire::RepairQuarantinedRowRequest { spec: None, columns: vec![fixed], ..request };
    assert_eq!(repair(&replica.shared, fixed).await.unwrap_err().violations[0].field, "columns[0].name");
}

#[tokio::test]
async fn a_release_counts_first_then_releases_what_can_be_read_and_names_what_cannot() {
    let (replica, tasks) = replica();
    // Two more that only another build cannot read.
    let theirs = replica.store.read_by(Reader { build: "other".into(), ..Reader::default() });
    let fine: Vec<TaskId> = (6..=7).map(|number| replica.submit(number)).collect();
    fine.iter().for_each(|task| theirs.quarantine(*task));
    let request = |dry_run| wire::ReleaseQuarantinedRowsRequest { dry_run, ..Default::default() };
    let counted = release(&replica.shared, request(true)).await.unwrap();
    assert_eq!((counted.matched, counted.released, counted.refused.len()), (6, 0, 0));
    assert_eq!(replica.store.quarantined().unwrap(), 6);
    let done = release(&replica.shared, request(false)).await.unwrap();
    assert_eq!((done.matched, done.released, done.refused.len()), (6, 2, 4));
    assert_eq!(done.refused[0].task_id, tasks[1].to_string());
    assert_eq!(done.refused[0].defect.as_ref().unwrap().column, "attempt");
    assert_eq!(replica.store.task(fine[0]).unwrap().unwrap().state, State::Queued);
    assert!(replica.shared.context.metrics.encode().contains("millrace_rows_released_total 2"));
}

#[tokio::test]
async fn a_release_goes_page_by_page_also_over_rows_that_stay() {
    let (replica, _) = replica();
    let mut request = wire::ReleaseQuarantinedRowsRequest { page_size: 3, ..Default::default() };
    let first = release(&replica.shared, request.clone()).await.unwrap();
    assert_eq!((first.matched, first.refused.len()), (3, 3));
    request.page_token = first.next_page_token;
    let second = release(&replica.shared, request).await.unwrap();
    assert_eq!((second.matched, second.next_page_token.as_str()), (1, ""));
}

#[tokio::test]
async fn a_failure_midway_tells_what_was_done_and_where_to_go_on() {
    let replica = fixture::replica();
    for number in 1..=250 {
        let task = replica.submit(number);
        replica.store.quarantine(task);
    }
    let mut calls = 0;
    replica.store.fail_when(move |method| {
        calls += u32::from(method == "release");
        (method == "release" && calls == 2).then_some(memory::Fault::BeforeCommit)
    });
    let mut request = wire::ReleaseQuarantinedRowsRequest::default();
    let first = release(&replica.shared, request.clone()).await.unwrap();
    assert_eq!((first.matched, first.released), (100, 100));
    replica.store.heal();
    request.page_token = first.next_page_token;
    let second = release(&replica.shared, request).await.unwrap();
    assert_eq!((second.matched, second.released, second.next_page_token.as_str()), (150, 150, ""));
    assert_eq!(replica.store.quarantined().unwrap(), 0);
}

#[tokio::test]
async fn a_discard_needs_a_reason_and_a_condition_and_ends_the_tasks() {
    let (replica, tasks) = replica();
    let request = |filter, reason: &str| wire::DiscardQuarantinedRowsRequest {
        request_id: "once".into(),
        filter,
        reason: reason.into(),
        ..Default::default()
    };
    let fault = discard(&replica.shared, request(None, " ")).await.unwrap_err();
    let fields: Vec<_> = fault.violations.into_iter().map(|violation| violation.field).collect();
    assert_eq!(fields, ["reason", "filter"]);
    let dry = wire::DiscardQuarantinedRowsRequest { dry_run: true, ..request(only(&tasks[1..3]), "") };
    assert_eq!(discard(&replica.shared, dry).await.unwrap().matched, 2);
    let done = discard(&replica.shared, request(only(&tasks[1..3]), "of a test")).await.unwrap();
    assert_eq!((done.matched, done.discarded), (2, 2));
    assert_eq!(discard(&replica.shared, request(only(&tasks[1..3]), "of a test")).await.unwrap(), done);
    let ended = replica.store.task(tasks[1]).unwrap().unwrap();
    assert_eq!(ended.state, State::Cancelled);
    assert!(ended.outcome.unwrap().message.contains("of a test"));
    let audited = replica.store.audited();
    assert!(audited.len() == 2 && audited[0].detail.contains("many"), "the row as it was: {audited:?}");
}

#[tokio::test]
async fn bad_filters_and_tokens_are_named() {
    let (replica, _) = replica();
    let bad = wire::ListQuarantinedRowsRequest { page_token: "x".into(), ..Default::default() };
    assert_eq!(list(&replica.shared, bad).await.unwrap_err().violations[0].field, "page_token");
    let filter = Some(wire::QuarantineFilter { task_ids: vec!["x".into()], ..Default::default() });
    let bad = wire::ReleaseQuarantinedRowsRequest { filter, ..Default::default() };
    assert_eq!(release(&replica.shared, bad).await.unwrap_err().code, Code::InvalidArgument);
}

#[tokio::test]
async fn tasks_that_are_named_and_not_set_aside_are_counted() {
    let (replica, tasks) = replica();
    let nobody = TaskId(Uuid::from_u128(99));
    let named = |tasks: &[TaskId]| wire::ReleaseQuarantinedRowsRequest { filter: only(tasks), ..Default::default() };
    // One that waits, one that never was, named twice, and one that is set aside.
    let some = [tasks[0], nobody, nobody, tasks[1]];
    for dry_run in [true, false] {
        let request = wire::ReleaseQuarantinedRowsRequest { dry_run, ..named(&some) };
        let answer = release(&replica.shared, request).await.unwrap();
        assert_eq!((answer.matched, answer.not_found), (1, 2));
    }
    // One that is there and is not meant is not missing.
    let filter = wire::QuarantineFilter { tenant: "another".into(), ..only(&tasks[1..2]).unwrap() };
    let request = wire::ReleaseQuarantinedRowsRequest { filter: Some(filter), ..Default::default() };
    let answer = release(&replica.shared, request).await.unwrap();
    assert_eq!((answer.matched, answer.not_found), (0, 0));
    let everything = release(&replica.shared, wire::ReleaseQuarantinedRowsRequest::default()).await.unwrap();
    assert_eq!(everything.not_found, 0);
    let request =
        wire::DiscardQuarantinedRowsRequest { filter: only(&some), reason: "of a test".into(), ..Default::default() };
    let answer = discard(&replica.shared, request).await.unwrap();
    assert_eq!((answer.discarded, answer.not_found), (1, 2));
}
