//! ListNodes and GetNode.
//!
//! Rows do not say everything: whether a node is attached, and how it is, only the leader knows. So another replica asks the leader, and
//! answers from the rows alone when it cannot.

use std::time::Duration;

use millrace_core::fleet::State;
use millrace_proto::scaler::v1::{GetNodeRequest, GetNodeResponse, ListNodesRequest, ListNodesResponse, NodeState};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::NodeFilter;
use tonic::Request;

use super::{Rpc, no_node, page};
use crate::{convert, relay, validate};

/// Events of one node that are shown; the oldest ones, should there be more.
const EVENTS: i64 = 1_000;

/// How long the leader may take to answer for a replica that could answer itself.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn list(rpc: &Rpc, request: Request<ListNodesRequest>) -> Result<ListNodesResponse, Fault> {
    let relayed = relay::is_marked(&request);
    let request = request.into_inner();
    let mut violations = Violations::new();
    let size = page::size(request.page_size, &mut violations);
    let below = page::read_node(&request.page_token, &mut violations);
    let filter = filter(&request, &mut violations);
    violations.finish()?;
    if let Some(mut leader) = rpc.relay.leader(&rpc.desk).filter(|_| !relayed)
        && let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, leader.list_nodes(relay::mark(request))).await
    {
        return Ok(answer.into_inner());
    }
    let limit = i64::try_from(size).unwrap_or(100);
    let nodes = rpc.calls.read(move |store| store.nodes(&filter, below, limit)).await?;
    let live = rpc.desk.live();
    let shown = nodes.rows.into_iter().map(|row| {
        let live = live.get(&row.node.id);
        convert::node::shown(row, live)
    });
    let next_page_token = nodes.next.map(page::below_node).unwrap_or_default();
    Ok(ListNodesResponse { nodes: shown.collect(), next_page_token })
}

pub(super) async fn get(rpc: &Rpc, request: Request<GetNodeRequest>) -> Result<GetNodeResponse, Fault> {
    let relayed = relay::is_marked(&request);
    let request = request.into_inner();
    let mut violations = Violations::new();
    let id = validate::node_id("id", &request.id, &mut violations);
    violations.finish()?;
    let id = id.ok_or_else(|| no_node(&request.id))?;
    if let Some(mut leader) = rpc.relay.leader(&rpc.desk).filter(|_| !relayed)
        && let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, leader.get_node(relay::mark(request.clone()))).await
    {
        return Ok(answer.into_inner());
    }
    let read = rpc.calls.read(move |store| match store.node(id)? {
        Some(row) => Ok(Some((row, store.node_events(id, EVENTS)?))),
        None => Ok(None),
    });
    let (row, events) = read.await?.ok_or_else(|| no_node(&request.id))?;
    let mut node = convert::node::shown(row, rpc.desk.live().get(&id));
    node.history = events.into_iter().map(convert::node::event).collect();
    Ok(GetNodeResponse { node: Some(node) })
}

fn filter(request: &ListNodesRequest, violations: &mut Violations) -> NodeFilter {
    if !request.pool.is_empty() {
        validate::name("pool", &request.pool, violations);
    }
    let states: Vec<Option<State>> = request.states.iter().map(|state| convert::node::read_state(*state)).collect();
    for (index, _) in states.iter().enumerate().filter(|(_, state)| state.is_none()) {
        let (first, last) = (NodeState::Requested.as_str_name(), NodeState::Gone.as_str_name());
        violations.push(format!("states[{index}]"), format!("must be from {first} to {last}"));
    }
    NodeFilter {
        pool: (!request.pool.is_empty()).then(|| request.pool.clone()),
        states: states.into_iter().flatten().collect(),
        since: None,
    }
}
