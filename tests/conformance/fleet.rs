//! Who leads a fleet, and pools: what the leader writes, what people change.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use millrace_core::{
    fleet::{Node, State},
    id::{MemberId, NodeId},
    time::Timestamp,
};
use millrace_store::{
    Audit, FleetBatch, Lead, NewPool, NodeEventRow, NodeFilter, NodeRow, Nodes, PoolChange, PoolDeletion, PoolRow,
    PoolStatusRow, PoolUpdate, StoreError,
};
use uuid::Uuid;

use crate::world::{World, again, hours, member, request, secs};

/// The lease of scenes that have one.
const SCALER: &str = "scaler";

/// An hour, in milliseconds.
const HOUR_MS: i64 = 3_600_000;

// ── Scenes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

fn lead(world: &World, owner: MemberId) -> Lead {
    again(|_| world.lead(SCALER, owner, "http://127.0.0.1:7603", HOUR_MS))
}

fn leader(world: &World) -> Option<Lead> {
    world.leader(SCALER).expect("reading the lease")
}

/// A new leader's epoch.
pub(crate) fn leads(world: &World) -> i64 {
    let owner = member();
    let lead = lead(world, owner);
    assert_eq!(lead.owner, owner, "somebody else leads");
    lead.epoch
}

pub(crate) fn save(world: &World, epoch: i64, batch: FleetBatch) -> bool {
    world.save_fleet(SCALER, epoch, &batch).expect("saving")
}

pub(crate) fn nodes_of(nodes: impl IntoIterator<Item = Node>) -> FleetBatch {
    FleetBatch { nodes: nodes.into_iter().collect(), ..FleetBatch::default() }
}

/// A node with nothing special, which stands in this state since now.
pub(crate) fn node(world: &World, pool: &str, state: State) -> Node {
    let now = world.now();
    Node {
        id: NodeId(Uuid::now_v7()),
        pool: pool.into(),
        provider: "process".into(),
        zone: String::new(),
        instance: String::new(),
        state,
        reason: "a test".into(),
        requested_at: now,
        started_at: None,
        attached_at: None,
        ready_at: None,
        since: now,
        gone_at: (state == State::Gone).then_some(now),
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

pub(crate) fn saved(world: &World, epoch: i64, node: &Node) -> NodeId {
    assert!(save(world, epoch, nodes_of([node.clone()])));
    node.id
}

pub(crate) fn read(world: &World, id: NodeId) -> NodeRow {
    world.node(id).expect("reading a node").unwrap_or_else(|| panic!("there is no node {id}"))
}

pub(crate) fn page(world: &World, filter: &NodeFilter, below: Option<NodeId>, limit: i64) -> Nodes {
    world.nodes(filter, below, limit).expect("listing nodes")
}

pub(crate) fn listed(world: &World, filter: &NodeFilter) -> Vec<NodeId> {
    let page = page(world, filter, None, 1000);
    assert_eq!((page.next, &page.unreadable[..]), (None, &[][..]));
    page.rows.iter().map(|row| row.node.id).collect()
}

pub(crate) fn pool(world: &World, name: &str) -> PoolRow {
    let new = NewPool { name: name.into(), spec: format!("the spec of {name}").into_bytes() };
    world.create_pool(&new, None).expect("creating a pool").expect("a new pool")
}

fn pool_names(world: &World) -> Vec<String> {
    world.pools().expect("reading").rows.into_iter().map(|row| row.name).collect()
}

pub(crate) fn event(node: NodeId, at: Timestamp, state: State, reason: &str) -> NodeEventRow {
    NodeEventRow { node, at_us: at.0, state, reason: reason.into() }
}

fn status(pool: &str, status: &[u8]) -> PoolStatusRow {
    PoolStatusRow { pool: pool.into(), status: status.to_vec(), as_of_us: 7 }
}

pub(crate) fn audited(action: &str) -> Audit {
    Audit { action: action.into(), subject: "a pool".into(), detail: "a test".into() }
}

// ── Leases ──────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(crate) fn r5_the_lease_is_taken_once_and_renewed_by_its_owner(world: &World) {
    let (first, second) = (member(), member());
    assert_eq!(leader(world), None);
    let before = world.now();
    let taken = world.lead(SCALER, first, "here", 10_000).expect("taking");
    assert_eq!((taken.owner, taken.endpoint.as_str(), taken.epoch), (first, "here", 1));
    assert!(taken.now_us >= before.0 && taken.now_us <= world.now().0, "{taken:?}");
    let lasts_us = taken.expires_at_us - taken.now_us;
    assert!((9_900_000..=10_000_000).contains(&lasts_us), "{taken:?}");
    // Another is told who has it.
    let told = world.lead(SCALER, second, "there", 10_000).expect("trying");
    assert_eq!(Lead { now_us: taken.now_us, ..told }, taken);
    assert_eq!(leader(world).map(|lead| lead.owner), Some(first));
    // Its owner renews it, perhaps at another endpoint.
    let renewed = world.lead(SCALER, first, "elsewhere", 20_000).expect("renewing");
    assert_eq!((renewed.owner, renewed.endpoint.as_str(), renewed.epoch), (first, "elsewhere", 1));
    assert!(renewed.expires_at_us > taken.expires_at_us);
    // A lease of another name is another's.
    let other = world.lead("other", second, "there", 10_000).expect("taking another");
    assert_eq!((other.owner, other.epoch), (second, 1));
}

pub(crate) fn r5_a_lease_that_has_ended_is_anyones_and_its_epoch_rises(world: &World) {
    let (first, second) = (member(), member());
    let taken = world.lead(SCALER, first, "here", 10_000).expect("taking");
    world.advance(secs(5));
    assert_eq!(lead(world, second).owner, first, "it lasts");
    world.advance(secs(6));
    assert_eq!(leader(world), None, "it has ended");
    let next = lead(world, second);
    assert_eq!((next.owner, next.epoch), (second, taken.epoch + 1));
    assert_eq!(lead(world, first).owner, second);
    // Whoever comes back after its lease has ended takes it anew.
    world.advance(hours(2));
    let back = lead(world, second);
    assert_eq!((back.owner, back.epoch), (second, taken.epoch + 2));
}

pub(crate) fn r5_a_leader_that_resigns_is_followed_at_once(world: &World) {
    let (first, second) = (member(), member());
    world.resign(SCALER, first).expect("resigning from nothing");
    let taken = lead(world, first);
    world.resign(SCALER, second).expect("resigning for another");
    assert_eq!(leader(world).map(|lead| lead.owner), Some(first));
    world.resign(SCALER, first).expect("resigning");
    assert_eq!(leader(world), None);
    assert!(!save(world, taken.epoch, nodes_of([node(world, "p", State::Ready)])));
    let next = lead(world, second);
    assert_eq!((next.owner, next.epoch), (second, taken.epoch + 1));
}

// ── Fencing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(crate) fn r5_a_stale_epoch_writes_nothing(world: &World) {
    let old = leads(world);
    pool(world, "p");
    let kept = node(world, "p", State::Ready);
    saved(world, old, &kept);
    world.advance(hours(2));
    let new = leads(world);
    let batch = FleetBatch {
        nodes: vec![Node { state: State::Gone, ..kept.clone() }, node(world, "p", State::Requested)],
        events: vec![event(kept.id, world.now(), State::Gone, "by a leader of the past")],
        statuses: vec![status("p", b"old")],
        emptied: vec!["p".into()],
    };
    for epoch in [old, new + 1, 0] {
        assert!(!save(world, epoch, batch.clone()), "{epoch}");
    }
    assert!(!world.save_fleet("other", new, &batch).expect("saving"), "no such lease");
    assert_eq!(read(world, kept.id).node.state, State::Ready);
    assert_eq!(listed(world, &NodeFilter::default()), [kept.id]);
    assert_eq!(world.node_events(kept.id, 10).expect("reading"), []);
    assert_eq!(world.pool_statuses(&[]).expect("reading"), []);
    assert!(save(world, new, batch));
}

pub(crate) fn r5_an_expired_lease_writes_nothing(world: &World) {
    let epoch = leads(world);
    world.advance(hours(2));
    // Nobody has taken it, but somebody may at any moment.
    let node = node(world, "p", State::Requested);
    assert!(!save(world, epoch, nodes_of([node.clone()])));
    assert_eq!(world.node(node.id).expect("reading"), None);
}

pub(crate) fn r5_no_save_commits_after_another_has_taken_the_lease(world: &World) {
    let (first, second) = (member(), member());
    let old = lead(world, first).epoch;
    let written = node(world, "p", State::Ready);
    saved(world, old, &written);
    let (taken, done) = (AtomicBool::new(false), Mutex::new(0));
    let mut seen = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for calls in 1..=40 {
                let after = taken.load(Ordering::SeqCst);
                let batch = nodes_of([Node { calls, ..written.clone() }]);
                let saved = again(|_| world.save_fleet(SCALER, old, &batch));
                assert!(!(after && saved), "a save that began after the lease was taken");
                if saved {
                    *done.lock().expect("the count") = calls;
                }
            }
        });
        // In the middle of it.
        while *done.lock().expect("the count") < 5 {
            thread::yield_now();
        }
        again(|_| world.resign(SCALER, first));
        assert_eq!(again(|_| world.lead(SCALER, second, "there", HOUR_MS)).epoch, old + 1);
        seen = read(world, written.id).node.calls;
        taken.store(true, Ordering::SeqCst);
    });
    assert_eq!(read(world, written.id).node.calls, seen, "a save committed behind the new leader's back");
}

// ── Pools ───────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(crate) fn pools_are_created_once_and_read_by_name(world: &World) {
    let before = world.now();
    let created = pool(world, "gpu.large");
    let at = created.created_at_us;
    assert!(at >= before.0 && at <= world.now().0);
    let wanted = PoolRow {
        name: "gpu.large".into(),
        spec: b"the spec of gpu.large".to_vec(),
        override_: None,
        deleting: false,
        version: 1,
        created_at_us: at,
        updated_at_us: at,
    };
    assert_eq!(created, wanted);
    assert_eq!(world.pool("gpu.large").expect("reading"), Some(created));
    assert_eq!(world.pool("nowhere").expect("reading"), None);
    let again = NewPool { name: "gpu.large".into(), spec: b"another".to_vec() };
    assert_eq!(world.create_pool(&again, None).expect("creating"), None);
    for name in ["gpu-large", "gpu_large", "gpularge", "gpu"] {
        pool(world, name);
    }
    assert_eq!(pool_names(world), ["gpu", "gpu-large", "gpu.large", "gpu_large", "gpularge"], "in the order of bytes");
    let pools = world.pools().expect("reading");
    assert!(pools.unreadable.is_empty() && pools.now_us >= at);
}

pub(crate) fn r11_a_repeated_creation_of_a_pool_returns_it(world: &World) {
    let (new, key) = (NewPool { name: "p".into(), spec: b"spec".to_vec() }, request());
    let created = world.create_pool(&new, key).expect("creating").expect("a new pool");
    assert_eq!(world.create_pool(&new, key).expect("creating again"), Some(created));
    // A refusal is no success to be repeated.
    let key = request();
    assert_eq!(world.create_pool(&new, key).expect("creating"), None);
    assert_eq!(world.create_pool(&new, key).expect("creating again"), None);
    assert_eq!(pool_names(world), ["p"]);
}

pub(crate) fn a_change_of_a_pool_needs_its_version_and_raises_it(world: &World) {
    let created = pool(world, "p");
    let change = |version, change| world.update_pool("p", version, &change, &audited("ChangePool"), None);
    let mut expected = PoolRow { spec: b"new".to_vec(), version: 2, ..created };
    let changed = |answer: millrace_store::Result<PoolUpdate>, expected: &PoolRow| match answer {
        Ok(PoolUpdate::Changed(row)) => {
            assert_eq!(row, PoolRow { updated_at_us: row.updated_at_us, ..expected.clone() })
        }
        other => panic!("not changed: {other:?}"),
    };
    changed(change(1, PoolChange::Spec(b"new".to_vec())), &expected);
    // Two that have read the same version: the second reads again.
    assert_eq!(change(1, PoolChange::Spec(b"lost".to_vec())).expect("changing"), PoolUpdate::Moved);
    assert_eq!(change(3, PoolChange::Override(None)).expect("changing"), PoolUpdate::Moved);
    (expected.override_, expected.version) = (Some(b"by hand".to_vec()), 3);
    changed(change(2, PoolChange::Override(Some(b"by hand".to_vec()))), &expected);
    (expected.spec, expected.version) = (b"newer".to_vec(), 4);
    changed(change(3, PoolChange::Spec(b"newer".to_vec())), &expected);
    (expected.override_, expected.version) = (None, 5);
    changed(change(4, PoolChange::Override(None)), &expected);
    (expected.override_, expected.version) = (Some(Vec::new()), 6);
    changed(change(5, PoolChange::Override(Some(Vec::new()))), &expected);
    let missing = world.update_pool("q", 1, &PoolChange::Override(None), &audited("ChangePool"), None);
    assert_eq!(missing.expect("changing"), PoolUpdate::Missing);
    assert_eq!(world.audited("ChangePool").len(), 5, "what was refused leaves no trace");
}

pub(crate) fn r11_a_repeated_change_of_a_pool_changes_nothing(world: &World) {
    pool(world, "p");
    let key = request();
    let change = |version, spec: &[u8], key| {
        let change = PoolChange::Spec(spec.to_vec());
        world.update_pool("p", version, &change, &audited("ChangePool"), key).expect("changing")
    };
    assert!(matches!(change(1, b"one", key), PoolUpdate::Changed(row) if row.version == 2));
    assert!(matches!(change(2, b"two", request()), PoolUpdate::Changed(row) if row.version == 3));
    assert!(matches!(change(1, b"one", key), PoolUpdate::Changed(row) if row.version == 3 && row.spec == b"two"));
    // A refusal is no success to be repeated.
    let key = request();
    assert_eq!(change(1, b"three", key), PoolUpdate::Moved);
    assert!(matches!(change(3, b"three", key), PoolUpdate::Changed(row) if row.spec == b"three"));
    assert_eq!(world.audited("ChangePool").len(), 3);
}

pub(crate) fn delete(world: &World, pool: &str, drain: bool, key: Option<Uuid>) -> PoolDeletion {
    world.delete_pool(pool, drain, &audited("DeletePool"), key).expect("deleting a pool")
}

pub(crate) fn an_empty_pool_is_deleted_at_once(world: &World) {
    let epoch = leads(world);
    for name in ["a", "b", "c"] {
        pool(world, name);
    }
    saved(world, epoch, &node(world, "a", State::Gone));
    saved(world, epoch, &node(world, "c", State::Ready));
    let statuses = vec![status("a", b"1"), status("b", b"2"), status("nowhere", b"3")];
    assert!(save(world, epoch, FleetBatch { statuses, ..FleetBatch::default() }));
    assert_eq!(delete(world, "a", false, None), PoolDeletion::Gone);
    assert_eq!(delete(world, "b", true, None), PoolDeletion::Gone);
    assert_eq!(delete(world, "b", true, None), PoolDeletion::Missing);
    assert_eq!(pool_names(world), ["c"]);
    assert_eq!(world.pool_statuses(&[]).expect("reading"), [], "a status goes with its pool, or does not come");
    assert_eq!(world.audited("DeletePool").len(), 2);
}

pub(crate) fn a_pool_with_nodes_goes_with_its_last_one(world: &World) {
    let epoch = leads(world);
    let version = pool(world, "p").version;
    pool(world, "kept");
    let nodes = [node(world, "p", State::Ready), node(world, "p", State::Requested)];
    let statuses = vec![status("p", b"status")];
    assert!(save(world, epoch, FleetBatch { nodes: nodes.to_vec(), statuses, ..FleetBatch::default() }));
    assert_eq!(delete(world, "p", false, None), PoolDeletion::NotEmpty(2));
    let emptied = || FleetBatch { emptied: vec!["p".into(), "kept".into(), "nowhere".into()], ..FleetBatch::default() };
    assert!(save(world, epoch, emptied()));
    assert_eq!(pool_names(world), ["kept", "p"], "neither is being deleted");
    match delete(world, "p", true, None) {
        PoolDeletion::Draining(row) => assert!(row.deleting && row.version == version + 1, "{row:?}"),
        other => panic!("not draining: {other:?}"),
    }
    // Asking again changes nothing.
    assert!(matches!(delete(world, "p", true, None), PoolDeletion::Draining(row) if row.version == version + 1));
    assert_eq!(delete(world, "p", false, None), PoolDeletion::NotEmpty(2));
    assert_eq!(world.audited("DeletePool").len(), 1);
    let gone = |node: &Node| Node { state: State::Gone, gone_at: Some(world.now()), ..node.clone() };
    let first = FleetBatch { nodes: vec![gone(&nodes[0])], ..emptied() };
    assert!(save(world, epoch, first));
    assert_eq!(pool_names(world), ["kept", "p"], "it has a node that is not gone");
    // The last node and its pool go together.
    let last = FleetBatch { nodes: vec![gone(&nodes[1])], statuses: vec![status("p", b"late")], ..emptied() };
    assert!(save(world, epoch, last));
    assert_eq!(pool_names(world), ["kept"]);
    assert_eq!(world.pool_statuses(&[]).expect("reading"), []);
    // What its nodes were can still be read.
    assert_eq!(read(world, nodes[1].id).node.state, State::Gone);
}

pub(crate) fn r11_a_repeated_deletion_of_a_pool_is_gone(world: &World) {
    let epoch = leads(world);
    pool(world, "p");
    let key = request();
    assert_eq!(delete(world, "p", false, key), PoolDeletion::Gone);
    assert_eq!(delete(world, "p", false, key), PoolDeletion::Gone);
    // A pool of its name that was made since stays.
    pool(world, "p");
    assert_eq!(delete(world, "p", false, key), PoolDeletion::Gone);
    assert_eq!(pool_names(world), ["p"]);
    let last = node(world, "p", State::Ready);
    saved(world, epoch, &last);
    let key = request();
    assert_eq!(delete(world, "p", false, key), PoolDeletion::NotEmpty(1));
    assert!(matches!(delete(world, "p", true, key), PoolDeletion::Draining(_)), "a refusal does not spend its key");
    assert!(matches!(delete(world, "p", true, key), PoolDeletion::Draining(_)));
    let gone = Node { state: State::Gone, gone_at: Some(world.now()), ..last };
    assert!(save(world, epoch, FleetBatch { emptied: vec!["p".into()], ..nodes_of([gone]) }));
    assert_eq!(delete(world, "p", true, key), PoolDeletion::Gone);
}

pub(crate) fn statuses_are_those_written_last(world: &World) {
    let epoch = leads(world);
    for name in ["a", "b", "c"] {
        pool(world, name);
    }
    let write = |statuses: Vec<PoolStatusRow>| {
        assert!(save(world, epoch, FleetBatch { statuses, ..FleetBatch::default() }));
    };
    write(vec![status("b", b"b1"), status("a", b"a1")]);
    write(vec![status("b", b"b2"), status("c", b"")]);
    let read = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        world.pool_statuses(&names).expect("reading")
    };
    assert_eq!(read(&[]), [status("a", b"a1"), status("b", b"b2"), status("c", b"")]);
    assert_eq!(read(&["c", "nowhere", "b"]), [status("b", b"b2"), status("c", b"")]);
    assert_eq!(read(&["nowhere"]), []);
}

pub(crate) fn r10_a_pool_that_cannot_be_read_costs_no_neighbour(world: &mut World) {
    for name in ["a", "bad", "c"] {
        pool(world, name);
    }
    world.damage_pool("bad");
    let pools = world.pools().expect("reading");
    assert_eq!(pools.rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(pools.unreadable.len(), 1);
    let (name, why) = &pools.unreadable[0];
    assert!(name == "bad" && why.starts_with("created_at_us "), "{name}: {why}");
    assert!(world.pool("c").expect("reading").is_some());
    assert!(matches!(world.pool("bad"), Err(StoreError::Unreadable(defect)) if defect.column == "created_at_us"));
    let change = PoolChange::Override(Some(b"by hand".to_vec()));
    let answer = world.update_pool("c", 1, &change, &audited("ChangePool"), None).expect("changing a neighbour");
    assert!(matches!(answer, PoolUpdate::Changed(_)), "{answer:?}");
    // It can be deleted, which is how one gets rid of it.
    assert_eq!(delete(world, "bad", false, None), PoolDeletion::Gone);
}
