use millrace_core::{
    foreign::{Defect, Value},
    time::Timestamp,
};
use millrace_store::{MemoryStore, NewTask, Store, memory};
use uuid::Uuid;

use super::*;
use crate::{health::Health, metrics::Metrics, shutdown::Shutdown};

fn context(store: &MemoryStore) -> Context {
    Context {
        store: Arc::new(store.clone()),
        member_id: Uuid::from_u128(1),
        endpoint: "http://here".into(),
        build: "test".into(),
        health: Health::new(&[]),
        metrics: Metrics::new(),
        shutdown: Shutdown::new(Duration::from_secs(1)),
    }
}

fn submit(store: &MemoryStore, number: u128) -> TaskId {
    let id = TaskId(Uuid::from_u128(number));
    let envelope = millrace_store::Envelope {
        id,
        tenant: "default".into(),
        queue: "default".into(),
        rank: 0,
        executor: "process".into(),
        resource_class: String::new(),
        concurrency_key: String::new(),
        exclusive: false,
        timeout_ms: None,
        trace_context: String::new(),
        format: 1,
        min_reader: 1,
    };
    let task = NewTask {
        envelope,
        spec: vec![1],
        request: None,
        not_before: None,
        expire_after: None,
        route_version: store.routing().unwrap().version,
    };
    store.submit(&[task], false).unwrap();
    id
}

#[tokio::test]
async fn suspects_are_examined_and_those_that_cannot_be_read_are_set_aside_and_counted() {
    let (store, _clock) = MemoryStore::settable(Timestamp(1_700_000_000_000_000));
    let context = context(&store);
    let rows = context.metrics.group(ForeignRows::register);
    let (good, bad) = (submit(&store, 1), submit(&store, 2));
    store.damage(bad, "rank", Value::Null);
    for task in [good, bad] {
        store.foreign().unreadable(Some(task), &Defect::new("rank", "is null"));
    }
    store.foreign().ignored("timeout_ms");
    rows.step(&context).await.unwrap();
    assert!(store.is_quarantined(bad).unwrap() && !store.is_quarantined(good).unwrap());
    assert_eq!(rows.quarantined(), 1);
    let text = context.metrics.encode();
    for line in [
        r#"millrace_rows_unreadable_total{column="rank"} 2"#,
        r#"millrace_fields_ignored_total{field="timeout_ms"} 1"#,
        "millrace_rows_quarantined_total 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn r10_suspects_survive_a_database_that_does_not_answer() {
    let (store, _clock) = MemoryStore::settable(Timestamp(1_700_000_000_000_000));
    let context = context(&store);
    let rows = context.metrics.group(ForeignRows::register);
    let bad = submit(&store, 1);
    store.damage(bad, "rank", Value::Null);
    store.foreign().unreadable(Some(bad), &Defect::new("rank", "is null"));
    store.fail_when(|method| (method == "examine").then_some(memory::Fault::BeforeCommit));
    assert!(rows.step(&context).await.is_err());
    assert!(!store.is_quarantined(bad).unwrap());
    store.heal();
    rows.step(&context).await.unwrap();
    assert!(store.is_quarantined(bad).unwrap());
}

#[test]
fn what_is_shown_is_what_holds_now() {
    let metrics = Metrics::new();
    let rows = metrics.group(ForeignRows::register);
    let drift =
        |column: &str| Drift { table: "tasks".into(), column: column.into(), expected: "integer".into(), found: None };
    rows.show_drift(&[drift("rank")]);
    rows.show_suspects(["2"]);
    let text = metrics.encode();
    assert!(text.contains(r#"millrace_schema_drift{table="tasks",column="rank"} 1"#), "{text}");
    assert!(text.contains(r#"millrace_quarantine_suspect_deploy{build="2"} 1"#), "{text}");
    rows.show_drift(&[]);
    rows.show_suspects([]);
    let text = metrics.encode();
    assert!(!text.contains("column=\"rank\"") && !text.contains("build=\"2\""), "{text}");
}

#[tokio::test]
async fn where_many_rows_cannot_be_read_those_after_a_suspect_are_set_aside_with_it() {
    let (store, _clock) = MemoryStore::settable(Timestamp(1_700_000_000_000_000));
    let context = context(&store);
    let rows = context.metrics.group(ForeignRows::register);
    let ids: Vec<TaskId> = (1..=40).map(|number| submit(&store, number)).collect();
    let (bad, good) = ids.split_at(30);
    for task in bad {
        store.damage(*task, "rank", Value::Null);
    }
    store.foreign().unreadable(Some(bad[0]), &Defect::new("rank", "is null"));
    rows.step(&context).await.unwrap();
    assert!(bad.iter().all(|task| store.is_quarantined(*task).unwrap()));
    assert!(good.iter().all(|task| !store.is_quarantined(*task).unwrap()));
    assert_eq!(rows.quarantined(), bad.len() as u64);
}

#[tokio::test]
async fn one_bad_row_among_many_good_ones_is_no_reason_to_read_them_all() {
    let (store, _clock) = MemoryStore::settable(Timestamp(1_700_000_000_000_000));
    let context = context(&store);
    let rows = context.metrics.group(ForeignRows::register);
    let ids: Vec<TaskId> = (1..=2 * AHEAD.0 as u128).map(|number| submit(&store, number)).collect();
    for at in [0, ids.len() - 1] {
        store.damage(ids[at], "rank", Value::Null);
    }
    store.foreign().unreadable(Some(ids[0]), &Defect::new("rank", "is null"));
    rows.step(&context).await.unwrap();
    assert!(store.is_quarantined(ids[0]).unwrap());
    assert!(!store.is_quarantined(ids[ids.len() - 1]).unwrap(), "the slow sweep finds it");
}
