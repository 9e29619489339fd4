//! The parts of answers that all providers give alike, and the checks of what they are asked.

use std::time::Duration;

use millrace_core::{id::NodeId, time::Timestamp};
use millrace_proto::provider::v1::{NodeResult, RequestNodesRequest, RequestResult, TerminateNodesRequest};
use millrace_runtime::status::Fault;

use super::{MAX_NODES, MAX_PAGE};

/// Instances in a page when the caller does not say.
const DEFAULT_PAGE: usize = 1000;

pub(super) fn accepted(node_id: &str, instance_id: &str) -> NodeResult {
    NodeResult { instance_id: instance_id.into(), ..result(node_id, RequestResult::Accepted, "") }
}

pub(super) fn failed(node_id: &str, error: &str) -> NodeResult {
    result(node_id, RequestResult::Failed, error)
}

pub(super) fn out_of_capacity(node_id: &str, error: &str, retry_after: Option<Duration>) -> NodeResult {
    NodeResult { retry_after: retry_after.map(wire_span), ..result(node_id, RequestResult::OutOfCapacity, error) }
}

pub(super) fn throttled(node_id: &str, error: &str, retry_after: Option<Duration>) -> NodeResult {
    NodeResult { retry_after: retry_after.map(wire_span), ..result(node_id, RequestResult::Throttled, error) }
}

fn result(node_id: &str, result: RequestResult, error: &str) -> NodeResult {
    NodeResult {
        node_id: node_id.into(),
        result: result.into(),
        instance_id: String::new(),
        error: error.into(),
        retry_after: None,
    }
}

/// How many instances a page has.
pub(super) fn page_size(asked: i32) -> Result<usize, Fault> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) if asked <= MAX_PAGE => Ok(size),
        _ => Err(Fault::invalid("page_size", format!("must be 0 to {MAX_PAGE}"))),
    }
}

/// The page token is not one that this provider gave.
pub(super) fn invalid_token() -> Fault {
    Fault::invalid("page_token", "is not a token of this list")
}

/// The ids of a request, each a UUID: they are the idempotency tokens, and names of files.
pub(super) fn ids(request: &RequestNodesRequest, most: usize) -> Result<Vec<NodeId>, Fault> {
    count("nodes", request.nodes.len(), most)?;
    let id = |(index, text): (usize, &str)| {
        text.parse().map_err(|_| Fault::invalid(format!("nodes[{index}].node_id"), "must be a UUID"))
    };
    request.nodes.iter().map(|node| node.node_id.as_str()).enumerate().map(id).collect()
}

/// Every node of a call to end nodes has a name.
pub(super) fn check_terminate(request: &TerminateNodesRequest, most: usize) -> Result<(), Fault> {
    count("nodes", request.nodes.len(), most)?;
    match request.nodes.iter().position(|node| node.node_id.is_empty() && node.instance_id.is_empty()) {
        Some(index) => Err(Fault::invalid(format!("nodes[{index}]"), "must have a node_id or an instance_id")),
        None => Ok(()),
    }
}

/// Providers that keep no tokens go by the total, which therefore has to be there.
pub(super) fn expected_total(request: &RequestNodesRequest) -> Result<usize, Fault> {
    match usize::try_from(request.expected_total) {
        Ok(total) if total >= request.nodes.len() => Ok(total),
        _ => Err(Fault::invalid(
            "expected_total",
            "must count at least the nodes of this call: this provider keeps no tokens and goes by it",
        )),
    }
}

fn count(field: &str, count: usize, most: usize) -> Result<(), Fault> {
    let most = most.min(MAX_NODES);
    match count <= most {
        true => Ok(()),
        false => Err(Fault::invalid(field, format!("at most {most} in one call, not {count}"))),
    }
}

pub(super) fn wire_span(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}

pub(super) fn wire_time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.0.div_euclid(1_000_000),
        nanos: i32::try_from(time.0.rem_euclid(1_000_000) * 1000).unwrap_or(0),
    }
}
