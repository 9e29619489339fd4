//! Rows of fleets: what a scaler keeps, written as it writes them, through the store. A node in every state, with everything that one can
//! have and with nothing; pools of every kind; who leads.

use millrace_core::{
    fleet::{Node, State},
    id::{MemberId, NodeId},
    time::Timestamp,
};
use millrace_proto::scaler::v1 as wire;
use millrace_store::{
    Audit, FleetBatch, NewPool, NodeEventRow, NodeFilter, NodeRow, OpenOptions, PoolChange, PoolDeletion,
    PoolStatusRow, Store,
};
use prost::Message;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::{
    dump::Database,
    meaning::{ALL, hex},
};

/// The tables that these rows are in.
pub(super) const TABLES: [&str; 5] = ["node_events", "nodes", "pool_statuses", "pools", "scaler_leases"];

const SCALER: &str = "scaler";

/// A hundred years, in milliseconds: whoever leads leads whenever this is read.
const FAR_MS: i64 = 3_153_600_000_000;

// ── Writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Writes them into a database that nobody else has open.
pub(super) fn write(database: &Database) {
    let store = millrace_store::open(&database.url(), &OpenOptions::default()).expect("opening the database");
    let store = &*store;
    let lead = store.lead(SCALER, MemberId(Uuid::now_v7()), "http://127.0.0.1:7603", FAR_MS).expect("leading");
    pools(store);
    let nodes: Vec<Node> = State::ALL.into_iter().flat_map(|state| [bare(state), full(state)]).collect();
    let event = |node: &Node, state, reason: &str| NodeEventRow {
        node: node.id,
        at_us: node.since.0,
        state,
        reason: reason.into(),
    };
    let events = nodes.iter().flat_map(|node| {
        [event(node, State::Requested, "wanted: 3 tasks wait"), event(node, node.state, "it says so — ü")]
    });
    let status = wire::ExplainPoolResponse {
        steps: vec![wire::SizeStep { rule: "queues".into(), nodes: 3, detail: "2.5 arrivals a second".into() }],
        obstacles: vec!["the provider is throttled".into()],
        ..Default::default()
    };
    let statuses = vec![PoolStatusRow { pool: "batch".into(), status: status.encode_to_vec(), as_of_us: 7 }];
    let batch = FleetBatch { events: events.collect(), statuses, nodes: nodes.clone(), ..FleetBatch::default() };
    assert!(store.save_fleet(SCALER, lead.epoch, &batch).expect("saving"));
    let asked = nodes.iter().find(|node| node.state == State::Draining).expect("a node that drains");
    store.ask_drain(asked.id, "an old image", &audit(), None).expect("asking").expect("the node");
    // Pools that go: one with nodes, which is drained first.
    let deletion = store.delete_pool("going", true, &audit(), None).expect("deleting a pool");
    assert!(matches!(deletion, PoolDeletion::Draining(_)), "{deletion:?}");
}

/// A pool with everything that one can say, one with a size set by hand, one that is to go.
fn pools(store: &dyn Store) {
    let full = wire::Pool {
        name: "batch".into(),
        description: "Nightly work — über alles".into(),
        executor: "docker".into(),
        queues: vec!["batch".into(), "default".into()],
        provider: "cloud".into(),
        template: [("image".to_owned(), "worker:ü".to_owned())].into(),
        slots_per_node: Some(4),
        min_nodes: Some(0),
        max_nodes: Some(1_000),
        target_wait: Some(prost_types::Duration { seconds: 45, nanos: 0 }),
        zones: vec!["zone-a".into(), "zone-b".into()],
        ..Default::default()
    };
    let plain = |name: &str| wire::Pool { name: name.into(), queues: vec!["default".into()], ..Default::default() };
    for pool in [full, plain("by-hand"), plain("going")] {
        let new = NewPool { name: pool.name.clone(), spec: pool.encode_to_vec() };
        store.create_pool(&new, None).expect("creating a pool").expect("a new pool");
    }
    let by_hand = wire::PoolOverride {
        owner: "the person on call".into(),
        reason: "a deploy".into(),
        desired_nodes: Some(0),
        no_terminations: true,
        ..Default::default()
    };
    let change = PoolChange::Override(Some(by_hand.encode_to_vec()));
    store.update_pool("by-hand", 1, &change, &audit(), None).expect("changing a pool");
}

fn audit() -> Audit {
    Audit { action: "Golden".into(), subject: "fleets".into(), detail: "golden rows".into() }
}

/// With no more than every node has.
fn bare(state: State) -> Node {
    let now = Timestamp(1_700_000_000_000_000);
    Node {
        id: NodeId(Uuid::now_v7()),
        pool: "going".into(),
        provider: "process".into(),
        zone: String::new(),
        instance: String::new(),
        state,
        reason: String::new(),
        requested_at: now,
        started_at: None,
        attached_at: None,
        ready_at: None,
        since: now,
        gone_at: None,
        boot_stage: String::new(),
        boot_percent: None,
        boot_at: None,
        slots: 0,
        drain_asked: false,
        adopted: false,
        calls: 0,
        unknown: false,
        ending: false,
    }
}

fn full(state: State) -> Node {
    let at = |seconds: i64| Timestamp(1_700_000_000_000_000 + seconds * 1_000_000);
    Node {
        pool: "batch".into(),
        provider: "cloud".into(),
        zone: "zone-a".into(),
        instance: "i-0123456789 «ü»".into(),
        reason: "because of the size — ü".into(),
        requested_at: at(0),
        started_at: Some(at(1)),
        attached_at: Some(at(2)),
        ready_at: Some(at(3)),
        since: at(4),
        gone_at: (state == State::Gone).then_some(at(5)),
        boot_stage: "pulling images".into(),
        boot_percent: Some(95),
        boot_at: Some(at(2)),
        slots: 16,
        adopted: true,
        calls: 3,
        unknown: true,
        ending: true,
        ..bare(state)
    }
}

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// What a store reads of them.
pub(super) fn meaning(store: &dyn Store) -> Json {
    let all = NodeFilter { states: State::ALL.to_vec(), ..NodeFilter::default() };
    let nodes = store.nodes(&all, None, ALL).expect("nodes");
    let pools = store.pools().expect("pools");
    assert!(nodes.next.is_none() && nodes.unreadable.is_empty() && pools.unreadable.is_empty());
    json!({
        "leader": store.leader(SCALER).expect("the leader").map(|lead| json!({
            "owner": lead.owner.to_string(), "endpoint": lead.endpoint, "epoch": lead.epoch,
            "expires_at_us": lead.expires_at_us,
        })),
        "pools": pools.rows.iter().map(|pool| json!({
            "name": pool.name, "spec": hex(&pool.spec), "override": pool.override_.as_deref().map(hex),
            "deleting": pool.deleting, "version": pool.version, "created_at_us": pool.created_at_us,
            "updated_at_us": pool.updated_at_us,
        })).collect::<Vec<_>>(),
        "statuses": store.pool_statuses(&[]).expect("statuses").iter().map(|status| json!({
            "pool": status.pool, "status": hex(&status.status), "as_of_us": status.as_of_us,
        })).collect::<Vec<_>>(),
        "nodes": nodes.rows.iter().map(|row| node(store, row)).collect::<Vec<_>>(),
        "drains_asked": store.drains_asked(ALL).expect("drains").iter()
            .map(|(id, reason)| json!([id.to_string(), reason])).collect::<Vec<_>>(),
    })
}

fn node(store: &dyn Store, row: &NodeRow) -> Json {
    let node = &row.node;
    let moment = |moment: Option<Timestamp>| moment.map(|moment| moment.0);
    let events = store.node_events(node.id, ALL).expect("events");
    json!({
        "id": node.id.to_string(), "pool": node.pool, "provider": node.provider, "zone": node.zone,
        "instance": node.instance, "state": node.state.number(), "reason": node.reason,
        "requested_at": node.requested_at.0, "started_at": moment(node.started_at),
        "attached_at": moment(node.attached_at), "ready_at": moment(node.ready_at), "since": node.since.0,
        "gone_at": moment(node.gone_at), "boot_stage": node.boot_stage, "boot_percent": node.boot_percent,
        "boot_at": moment(node.boot_at), "slots": node.slots, "drain_asked": node.drain_asked, "adopted": node.adopted,
        "calls": node.calls, "unknown": node.unknown, "ending": node.ending, "updated_at_us": row.updated_at_us,
        "events": events.iter()
            .map(|event| json!([event.at_us, event.state.number(), event.reason])).collect::<Vec<_>>(),
    })
}
