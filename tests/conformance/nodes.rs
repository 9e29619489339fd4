//! Nodes and what happened to them.

use millrace_core::{
    fleet::{Node, State},
    id::NodeId,
};
use millrace_store::{FleetBatch, NodeFilter, PoolDeletion, StoreError};
use uuid::Uuid;

use crate::{
    fleet::{audited, delete, event, leads, listed, node, nodes_of, page, pool, read, save, saved},
    world::{World, hours, request, secs},
};

/// A node with everything that one can have.
fn full(world: &World) -> Node {
    let at = |seconds: u64| Some(world.now().before(secs(seconds)));
    Node {
        zone: "zone-a".into(),
        instance: "i-0123 «ü»".into(),
        reason: "its drain was asked for".into(),
        requested_at: world.now().before(secs(60)),
        started_at: at(50),
        attached_at: at(40),
        ready_at: at(30),
        since: world.now().before(secs(20)),
        boot_stage: "pulling images".into(),
        boot_percent: Some(100),
        boot_at: at(35),
        slots: 16,
        adopted: true,
        calls: 3,
        unknown: true,
        ending: true,
        ..node(world, "p", State::Terminating)
    }
}

pub(crate) fn nodes_read_back_as_they_were_saved(world: &World) {
    let epoch = leads(world);
    let (plain, full) = (node(world, "p", State::Requested), full(world));
    let before = world.now();
    assert!(save(world, epoch, nodes_of([full.clone(), plain.clone()])));
    for node in [&plain, &full] {
        let row = read(world, node.id);
        assert_eq!(row.node, *node);
        assert!(row.updated_at_us >= before.0 && row.updated_at_us <= world.now().0);
    }
    // Replaced as a whole, and by the last of two.
    let swapped = Node { id: plain.id, ..full.clone() };
    assert!(save(world, epoch, nodes_of([plain.clone(), swapped.clone()])));
    assert_eq!(read(world, plain.id).node, swapped);
    let bare = Node { id: full.id, ..plain };
    saved(world, epoch, &bare);
    assert_eq!(read(world, full.id).node, bare);
    assert_eq!(world.node(NodeId(Uuid::now_v7())).expect("reading"), None);
    assert!(save(world, epoch, FleetBatch::default()), "an empty batch says whether one leads");
}

pub(crate) fn text_that_a_database_refuses_never_costs_a_round(world: &World) {
    let epoch = leads(world);
    let said = Node { reason: "quota\0exceeded".into(), instance: "i\0".into(), ..node(world, "p", State::Ready) };
    let events = vec![event(said.id, world.now(), State::Ready, "a\0b")];
    assert!(save(world, epoch, FleetBatch { events, ..nodes_of([said.clone()]) }));
    let row = read(world, said.id).node;
    assert_eq!((row.reason.as_str(), row.instance.as_str()), ("quota\u{FFFD}exceeded", "i\u{FFFD}"));
    assert_eq!(world.node_events(said.id, 1).expect("reading")[0].reason, "a\u{FFFD}b");
}

pub(crate) fn nodes_are_filtered_by_pool_state_and_time(world: &World) {
    let epoch = leads(world);
    let now = world.now();
    let at = |span| now.before(span);
    let old = Node { requested_at: at(hours(9)), since: at(hours(9)), ..node(world, "a", State::Ready) };
    let young = node(world, "a", State::Draining);
    let other = node(world, "b", State::Ready);
    let went = |requested, gone| Node {
        requested_at: at(requested),
        gone_at: Some(at(gone)),
        ..node(world, "a", State::Gone)
    };
    let (lately, long_ago) = (went(hours(9), secs(60)), went(hours(9), hours(8)));
    let nodes = [&old, &young, &other, &lately, &long_ago].map(Clone::clone);
    assert!(save(world, epoch, nodes_of(nodes)));
    let list = |pool: Option<&str>, states: &[State], since| {
        listed(world, &NodeFilter { pool: pool.map(str::to_owned), states: states.to_vec(), since })
    };
    // The newest first.
    assert_eq!(list(None, &[], None), [other.id, young.id, old.id], "all but gone ones");
    assert_eq!(list(Some("a"), &[], None), [young.id, old.id]);
    assert_eq!(list(Some("c"), &[], None), []);
    assert_eq!(list(None, &[State::Ready], None), [other.id, old.id]);
    assert_eq!(list(Some("a"), &[State::Ready, State::Suspect], None), [old.id]);
    assert_eq!(list(None, &[State::Gone], None), [long_ago.id, lately.id]);
    assert_eq!(list(Some("b"), &[State::Gone], None), []);
    assert_eq!(list(Some("a"), &State::ALL, None), [long_ago.id, lately.id, young.id, old.id]);
    let hour = Some(at(hours(1)));
    assert_eq!(list(None, &[], hour), [other.id, young.id]);
    assert_eq!(list(None, &State::ALL, hour), [lately.id, other.id, young.id]);
    assert_eq!(list(None, &[State::Gone], hour), [lately.id]);
}

pub(crate) fn nodes_page_without_gap_or_repeat(world: &World) {
    let epoch = leads(world);
    let states = [State::Ready, State::Gone, State::Starting];
    let nodes: Vec<Node> = (0..25).map(|number| node(world, "p", states[number % 3])).collect();
    assert!(save(world, epoch, nodes_of(nodes.clone())));
    let all = NodeFilter { states: State::ALL.to_vec(), ..NodeFilter::default() };
    let gone = NodeFilter { states: vec![State::Gone], pool: Some("p".into()), ..NodeFilter::default() };
    for (filter, limit) in [(NodeFilter::default(), 4), (all, 7), (gone, 3)] {
        let mut expected: Vec<NodeId> = nodes
            .iter()
            .filter(|node| match filter.states.is_empty() {
                true => node.state != State::Gone,
                false => filter.states.contains(&node.state),
            })
            .map(|node| node.id)
            .collect();
        expected.sort();
        expected.reverse();
        let (mut found, mut below) = (Vec::new(), None);
        loop {
            let page = page(world, &filter, below, limit);
            assert!(page.rows.len() as i64 <= limit);
            found.extend(page.rows.iter().map(|row| row.node.id));
            below = page.next;
            if below.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "{filter:?}");
    }
}

pub(crate) fn events_are_kept_in_their_order_and_once(world: &World) {
    let epoch = leads(world);
    let (one, two) = (node(world, "p", State::Ready), node(world, "p", State::Ready));
    let now = world.now();
    let nowhere = NodeId(Uuid::now_v7());
    let first = FleetBatch {
        events: vec![
            event(one.id, now, State::Requested, "wanted"),
            event(two.id, now, State::Requested, "wanted"),
            // Of the same moment, and of one before by a clock that was set back.
            event(one.id, now, State::Starting, "confirmed"),
            event(one.id, now.before(secs(5)), State::Ready, "ready"),
            event(one.id, now, State::Starting, "confirmed"),
            event(nowhere, now, State::Gone, "of no node"),
        ],
        ..nodes_of([one.clone(), two.clone()])
    };
    let expected = [first.events[0].clone(), first.events[2].clone(), first.events[3].clone()];
    // A batch whose answer was lost is saved again.
    assert!(save(world, epoch, first.clone()) && save(world, epoch, first));
    assert_eq!(world.node_events(one.id, 10).expect("reading"), expected);
    assert_eq!(world.node_events(two.id, 10).expect("reading").len(), 1);
    assert_eq!(world.node_events(nowhere, 10).expect("reading"), []);
    let later = event(one.id, now, State::Draining, "asked for");
    assert!(save(world, epoch, FleetBatch { events: vec![later.clone()], ..FleetBatch::default() }));
    assert_eq!(world.node_events(one.id, 10).expect("reading")[3..], [later]);
    assert_eq!(world.node_events(one.id, 2).expect("reading"), expected[..2], "the oldest first");
}

pub(crate) fn a_drain_that_was_asked_for_outlives_the_leaders_writes(world: &World) {
    let epoch = leads(world);
    let (asked, other) = (node(world, "p", State::Ready), node(world, "p", State::Ready));
    let gone = node(world, "p", State::Gone);
    // Only people ask: a leader cannot, not even for a new node.
    let batch = [&asked, &other, &gone].map(|node| Node { drain_asked: true, ..node.clone() });
    assert!(save(world, epoch, nodes_of(batch)));
    assert!(!read(world, asked.id).node.drain_asked);
    let ask = |id, reason: &str, key| world.ask_drain(id, reason, &audited("DrainNode"), key).expect("asking");
    let key = request();
    let row = ask(asked.id, "an old image", key).expect("the node");
    assert!(row.node.drain_asked && row.node == Node { drain_asked: true, ..asked.clone() });
    assert_eq!(read(world, asked.id), row);
    // Asking again changes nothing, whoever asks.
    assert_eq!(ask(asked.id, "another reason", request()), Some(row.clone()));
    assert_eq!(ask(asked.id, "an old image", key), Some(row));
    assert_eq!(world.drains_asked(10).expect("reading"), [(asked.id, "an old image".to_owned())]);
    assert_eq!(ask(NodeId(Uuid::now_v7()), "nobody", request()), None);
    assert!(ask(gone.id, "too late", None).is_some_and(|row| !row.node.drain_asked));
    assert_eq!(world.audited("DrainNode").len(), 1);
    // The leader knows nothing of it yet, and writes the node as it knows it.
    saved(world, epoch, &Node { state: State::Suspect, drain_asked: false, ..asked.clone() });
    assert!(read(world, asked.id).node.drain_asked);
    assert_eq!(world.drains_asked(10).expect("reading").len(), 1);
    ask(other.id, "with its neighbour", None);
    assert_eq!(world.drains_asked(1).expect("reading").len(), 1);
    saved(world, epoch, &Node { state: State::Gone, gone_at: Some(world.now()), ..asked });
    let left = world.drains_asked(10).expect("reading");
    assert_eq!(left, [(other.id, "with its neighbour".to_owned())], "what has gone is drained");
}

pub(crate) fn nodes_that_went_long_ago_are_trimmed(world: &World) {
    let epoch = leads(world);
    let nodes: Vec<Node> =
        [State::Ready, State::Gone, State::Gone, State::Gone].map(|state| node(world, "p", state)).into();
    let events = nodes.iter().map(|node| event(node.id, world.now(), node.state, "here")).collect();
    assert!(save(world, epoch, FleetBatch { events, ..nodes_of(nodes.clone()) }));
    let trim = |limit| world.trim_nodes(hours(24), limit).expect("trimming");
    assert_eq!(trim(10), 0);
    world.advance(hours(25));
    let young = node(world, "p", State::Gone);
    let epoch = leads(world);
    saved(world, epoch, &young);
    assert_eq!((trim(2), trim(2), trim(2)), (2, 1, 0), "at most so many at once");
    let all = NodeFilter { states: State::ALL.to_vec(), ..NodeFilter::default() };
    assert_eq!(listed(world, &all), [young.id, nodes[0].id]);
    let events = |node: &Node| world.node_events(node.id, 10).expect("reading").len();
    assert_eq!((events(&nodes[0]), events(&nodes[1])), (1, 0));
}

// ── Rows of other releases ──────────────────────────────────────────────────────────────────────────────────────────

pub(crate) fn r10_a_node_that_cannot_be_read_costs_no_neighbour(world: &World) {
    let epoch = leads(world);
    pool(world, "p");
    let nodes = [State::Ready, State::Ready, State::Starting].map(|state| node(world, "p", state));
    let [first, bad, last] = nodes.clone();
    let events = vec![event(bad.id, world.now(), State::Ready, "here")];
    assert!(save(world, epoch, FleetBatch { events, ..nodes_of(nodes) }));
    world.damage_node(bad.id);
    for filter in [
        NodeFilter::default(),
        NodeFilter { pool: Some("p".into()), ..NodeFilter::default() },
        NodeFilter { states: State::ALL.to_vec(), ..NodeFilter::default() },
    ] {
        let page = page(world, &filter, None, 10);
        let ids: Vec<NodeId> = page.rows.iter().map(|row| row.node.id).collect();
        assert_eq!((ids, page.next), (vec![last.id, first.id], None), "{filter:?}");
        assert_eq!(page.unreadable.len(), 1);
        let (id, why) = &page.unreadable[0];
        assert!(*id == bad.id.to_string() && why.starts_with("state "), "{id}: {why}");
    }
    // Pages go past it.
    let below = page(world, &NodeFilter::default(), None, 1).next;
    let second = page(world, &NodeFilter::default(), below, 1);
    assert_eq!((second.rows.len(), second.unreadable.len()), (0, 1));
    assert_eq!(page(world, &NodeFilter::default(), second.next, 1).rows[0].node.id, first.id);
    let error = world.node(bad.id).expect_err("a row that cannot be read");
    assert!(matches!(&error, StoreError::Unreadable(defect) if defect.column == "state"), "{error:?}");
    // It is somebody's node all the same: its pool is not empty, and its past is known.
    assert_eq!(delete(world, "p", false, None), PoolDeletion::NotEmpty(3));
    assert_eq!(world.node_events(bad.id, 10).expect("reading").len(), 1);
    saved(world, epoch, &Node { state: State::Gone, gone_at: Some(world.now()), ..first });
    assert!(world.ask_drain(last.id, "why not", &audited("DrainNode"), None).expect("asking").is_some());
    assert_eq!(world.drains_asked(10).expect("reading").len(), 1);
    // A leader that knows it writes it anew.
    saved(world, epoch, &bad);
    assert_eq!(read(world, bad.id).node, bad);
}
