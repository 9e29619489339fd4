//! What an engine reads and writes besides nodes: demand, sessions, statuses.

mod common;

use std::collections::BTreeMap;

use common::{Drive, pool};
use millrace_core::{
    fleet::State,
    id::{SessionId, TaskId},
};
use millrace_proto::scaler::v1::{ExplainPoolResponse, Pool};
use millrace_scaler::engine::NODE_LABEL;
use millrace_store::{Envelope, FleetStore, MemoryStore, NewSession, NewTask, Store};
use prost::Message;
use uuid::Uuid;

fn submit(store: &MemoryStore, count: usize) {
    let version = store.routing().unwrap().version;
    let task = || NewTask {
        envelope: Envelope {
            id: TaskId(Uuid::now_v7()),
            tenant: "acme".into(),
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
        },
        spec: Vec::new(),
        request: None,
        not_before: None,
        expire_after: None,
        route_version: version,
    };
    store.submit(&(0..count).map(|_| task()).collect::<Vec<_>>(), false).unwrap();
}

fn status(leader: &Drive, pool: &str) -> (ExplainPoolResponse, i64) {
    let row = leader.store.pool_statuses(&[pool.into()]).unwrap().remove(0);
    (ExplainPoolResponse::decode(row.status.as_slice()).unwrap(), row.as_of_us)
}

#[test]
fn what_waits_asks_for_nodes_and_a_queue_that_is_not_there_asks_for_none() {
    let lost = Pool { queues: vec!["nowhere".into()], ..pool("lost", 0) };
    let mut leader = Drive::new(&[pool("p", 0), lost]);
    submit(&leader.store, 40);
    leader.rounds(10);
    assert!(!leader.provider.made().is_empty());
    assert!(leader.engine.fleet().nodes().all(|node| node.pool == "p"));
    let (explained, _) = status(&leader, "p");
    let figures = explained.pool.unwrap().status.unwrap();
    assert_eq!((figures.waiting, figures.oldest_age.is_some()), (40, true));
    let (explained, _) = status(&leader, "lost");
    assert_eq!(explained.pool.unwrap().status.unwrap().desired, 0);
}

#[test]
fn the_session_of_its_orchestrator_shows_that_a_node_works() {
    let mut leader = Drive::new(&[pool("p", 1)]);
    leader.rounds(10);
    let node = leader.in_state(State::Starting)[0];
    let session = NewSession {
        id: SessionId(Uuid::now_v7()),
        name: "agent".into(),
        queues: vec!["default".into()],
        slots: 1,
        labels: BTreeMap::from([(NODE_LABEL.to_owned(), node.to_string())]),
        ttl_ms: 600_000,
        replica: "http://distributor".into(),
        build: "test".into(),
    };
    let row = leader.store.open_session(&session).unwrap();
    leader.rounds(6);
    assert_eq!(leader.in_state(State::Ready), [node], "it never attached");
    leader.store.close_session(row.session.id, None).unwrap();
    leader.rounds(60);
    assert_eq!(leader.in_state(State::Suspect), [node], "and nothing is heard of it any more");
}

#[test]
fn a_status_is_stored_when_it_changes_and_from_time_to_time() {
    let mut leader = Drive::new(&[pool("p", 2)]);
    leader.rounds(10);
    leader.all_join();
    leader.rounds(3);
    let mut written = Vec::new();
    for _ in 0..40 {
        leader.rounds(1);
        written.push(status(&leader, "p").1);
    }
    written.dedup();
    assert!((4..=6).contains(&written.len()), "{written:?}");
    let (explained, as_of_us) = status(&leader, "p");
    let shown = explained.pool.unwrap();
    assert_eq!(shown.queues, Vec::<String>::new(), "the spec is in the pool's own row");
    assert_eq!(shown.status.unwrap().as_of.unwrap().seconds, as_of_us / 1_000_000);
}

/// A figure, not a rule: run it with `--release --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn how_long_a_step_over_10_000_nodes_and_200_pools_takes() {
    let pools: Vec<Pool> = (0..200).map(|number| pool(&format!("p{number}"), 50)).collect();
    let mut leader = Drive::new(&pools);
    while leader.provider.there().len() < 10_000 {
        leader.rounds(1);
    }
    leader.all_join();
    leader.rounds(5);
    assert_eq!(leader.in_state(State::Ready).len(), 10_000);
    let mut took = Vec::new();
    for _ in 0..20 {
        let began = std::time::Instant::now();
        assert!(leader.step());
        took.push(began.elapsed());
        leader.rounds(1);
    }
    took.sort_unstable();
    println!("a quiet step, its reads and its writes to memory included: median {:?}, most {:?}", took[10], took[19]);
    let began = std::time::Instant::now();
    let second = leader.next(2);
    println!("loading {} nodes: {:?}", second.engine.fleet().nodes().count(), began.elapsed());
}
