//! Calls of the books as calls to a provider, and what became of them.
//!
//! A provider's answer is what it says of each node. Where it says nothing of a node, or something that this build does not know, the end of
//! that node's call is unknown, and a listing decides.

use std::{collections::HashMap, time::Duration};

use millrace_core::{
    fleet::books::{Answer, Call, NodeAnswer, Seen, SeenState, Target, Verdict, Work},
    id::NodeId,
};
use millrace_proto::provider::v1 as wire;
use millrace_runtime::status::Fault;
use tonic::{Code, Status};

use crate::convert;

/// Instances of one page of a listing: well within the size of a message.
const PAGE: i32 = 1_000;

/// Pages of one listing at most. A provider whose pages do not end by then fails.
const PAGES: usize = 1_000;

/// How many nodes one call may name when the provider does not say.
const DEFAULT_PER_CALL: usize = 20;

/// What became of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The call.
    pub call: Call,
    /// Its answer.
    pub answer: Answer,
    /// Everything that the provider lists, when the call listed and was answered.
    pub listing: Option<Listing>,
}

/// A whole listing of a provider.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// The instances.
    pub seen: Vec<Seen>,
    /// How many nodes one call may name.
    pub most_per_call: usize,
}

/// What providers are: the contract's own trait.
pub use wire::node_provider_service_server::NodeProviderService as Provider;

/// Makes a call and waits for its end, however long it takes: bounds are the caller's.
pub async fn perform(provider: &dyn Provider, call: Call) -> Reply {
    match &call.work {
        Work::List => {
            let listed = list(provider).await;
            Reply::listed(call, listed)
        }
        Work::Request { .. } => {
            let asked = provider.request_nodes(tonic::Request::new(request_message(&call.work))).await;
            Reply::requested(call, asked.map(tonic::Response::into_inner))
        }
        Work::Terminate { .. } => {
            let told = provider.terminate_nodes(tonic::Request::new(terminate_message(&call.work))).await;
            Reply::terminated(call, told.map(tonic::Response::into_inner))
        }
    }
}

impl Reply {
    /// The end of a call from which nothing was heard.
    pub fn unknown(call: Call, error: &str) -> Self {
        Self { call, answer: Answer::Unknown { error: error.into() }, listing: None }
    }

    /// The end of a call that lists: the answers to all its pages.
    pub fn listed(call: Call, pages: Result<Vec<wire::DescribeNodesResponse>, Status>) -> Self {
        match pages {
            Ok(pages) => Self { call, answer: Answer::Done(Vec::new()), listing: Some(Listing::of(pages)) },
            Err(status) => Self { call, answer: refused(&status), listing: None },
        }
    }

    /// The end of a call that asks for nodes.
    pub fn requested(call: Call, answer: Result<wire::RequestNodesResponse, Status>) -> Self {
        let Work::Request { nodes, .. } = &call.work else { return Self::unknown(call, "it asked for no nodes") };
        let targets = nodes.iter().map(|id| Target { node: Some(*id), instance: String::new() });
        let answer = match answer {
            Ok(response) => Answer::Done(by_node(targets, response.results)),
            Err(status) => refused(&status),
        };
        Self { call, answer, listing: None }
    }

    /// The end of a call that ends nodes.
    pub fn terminated(call: Call, answer: Result<wire::TerminateNodesResponse, Status>) -> Self {
        let Work::Terminate { nodes, .. } = &call.work else { return Self::unknown(call, "it ended no nodes") };
        let answer = match answer {
            Ok(response) => Answer::Done(by_node(nodes.iter().cloned(), response.results)),
            Err(status) => refused(&status),
        };
        Self { call, answer, listing: None }
    }

    /// The worst that came of the call, for metrics: `ok`, `throttled`, `out_of_capacity`, `failed` or `unknown`.
    pub fn result(&self) -> &'static str {
        match &self.answer {
            Answer::Done(nodes) => {
                let verdicts = nodes.iter().map(|node| verdict_name(&node.verdict));
                verdicts.max_by_key(|(rank, _)| *rank).map_or("ok", |(_, name)| name)
            }
            Answer::Throttled { .. } => "throttled",
            Answer::Failed { .. } => "failed",
            Answer::Unknown { .. } => "unknown",
        }
    }
}

impl Listing {
    fn of(pages: Vec<wire::DescribeNodesResponse>) -> Self {
        let mut said =
            pages.iter().filter_map(|page| usize::try_from(page.max_nodes_per_call).ok().filter(|most| *most > 0));
        let most_per_call = said.next_back().unwrap_or(DEFAULT_PER_CALL);
        Self { seen: pages.into_iter().flat_map(|page| page.instances).map(seen).collect(), most_per_call }
    }
}

fn verdict_name(verdict: &Verdict) -> (u8, &'static str) {
    match verdict {
        Verdict::Accepted => (0, "ok"),
        Verdict::Throttled { .. } => (1, "throttled"),
        Verdict::OutOfCapacity { .. } => (2, "out_of_capacity"),
        Verdict::Failed { .. } => (3, "failed"),
        Verdict::Unknown => (4, "unknown"),
    }
}

/// The method that a call is made by.
pub(crate) fn method(work: &Work) -> &'static str {
    match work {
        Work::List => "DescribeNodes",
        Work::Request { .. } => "RequestNodes",
        Work::Terminate { .. } => "TerminateNodes",
    }
}

/// The request for nodes that a call makes; an empty one for other work.
pub fn request_message(work: &Work) -> wire::RequestNodesRequest {
    let Work::Request { pool, zone, nodes, expected_total } = work else { return wire::RequestNodesRequest::default() };
    wire::RequestNodesRequest {
        pool: pool.name.clone(),
        zone: zone.clone(),
        nodes: nodes.iter().map(|id| wire::NodeRequest { node_id: id.to_string() }).collect(),
        expected_total: convert::count(*expected_total),
        executor: pool.executor.clone(),
        template: pool.template.clone(),
        slots: convert::count(pool.slots),
        queues: pool.queues.clone(),
    }
}

/// The request to end nodes that a call makes; an empty one for other work.
pub fn terminate_message(work: &Work) -> wire::TerminateNodesRequest {
    let Work::Terminate { pool, zone, nodes } = work else { return wire::TerminateNodesRequest::default() };
    let node = |target: &Target| wire::NodeRef {
        node_id: target.node.map(|id| id.to_string()).unwrap_or_default(),
        instance_id: target.instance.clone(),
    };
    wire::TerminateNodesRequest { pool: pool.clone(), zone: zone.clone(), nodes: nodes.iter().map(node).collect() }
}

/// The answers in the order of the nodes that were asked for.
fn by_node(targets: impl Iterator<Item = Target>, results: Vec<wire::NodeResult>) -> Vec<NodeAnswer> {
    let mut by_id: HashMap<NodeId, wire::NodeResult> = HashMap::new();
    let mut by_instance: HashMap<String, wire::NodeResult> = HashMap::new();
    for result in results {
        match result.node_id.parse() {
            Ok(id) => drop(by_id.insert(id, result)),
            Err(_) => drop(by_instance.insert(result.instance_id.clone(), result)),
        }
    }
    let answer = |target: Target| {
        let result = match target.node {
            // A provider that keeps no tokens may know it by its own name only.
            Some(id) => by_id.remove(&id).or_else(|| by_instance.remove(&target.instance)),
            None => by_instance.remove(&target.instance),
        };
        let verdict = result.as_ref().map_or(Verdict::Unknown, verdict);
        let named = result.map(|result| result.instance_id).filter(|name| !name.is_empty());
        NodeAnswer { node: target.node, instance: named.unwrap_or(target.instance), verdict }
    };
    targets.map(answer).collect()
}

fn verdict(result: &wire::NodeResult) -> Verdict {
    let retry_after = result.retry_after.as_ref().and_then(convert::span);
    let error = || words(&result.error);
    match wire::RequestResult::try_from(result.result) {
        Ok(wire::RequestResult::Accepted) => Verdict::Accepted,
        Ok(wire::RequestResult::Throttled) => Verdict::Throttled { retry_after },
        Ok(wire::RequestResult::OutOfCapacity) => Verdict::OutOfCapacity { retry_after, error: error() },
        Ok(wire::RequestResult::Failed) => Verdict::Failed { error: error() },
        Ok(wire::RequestResult::Unspecified) | Err(_) => Verdict::Unknown,
    }
}

/// What a refusal of the whole call means. Codes that a network, a proxy or a crash may give say nothing of what was done.
fn refused(status: &Status) -> Answer {
    let error = words(&format!("{}: {}", millrace_runtime::metrics::code_name(status.code()), status.message()));
    match status.code() {
        Code::ResourceExhausted => Answer::Throttled { retry_after: retry_after(status) },
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted
        | Code::DataLoss
        | Code::Ok => Answer::Unknown { error },
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => Answer::Failed { error },
    }
}

fn retry_after(status: &Status) -> Option<Duration> {
    Fault::from(status).retry_after
}

/// A provider's own words, cut to what a row and a line can take.
fn words(error: &str) -> String {
    match error.is_empty() {
        true => "it did not say why".into(),
        false => convert::cut(error, 1_024),
    }
}

async fn list(provider: &dyn Provider) -> Result<Vec<wire::DescribeNodesResponse>, Status> {
    let (mut pages, mut page_token) = (Vec::new(), String::new());
    for _ in 0..PAGES {
        let message = wire::DescribeNodesRequest { pool: String::new(), page_size: PAGE, page_token };
        let page = provider.describe_nodes(tonic::Request::new(message)).await?.into_inner();
        page_token = page.next_page_token.clone();
        pages.push(page);
        if page_token.is_empty() {
            return Ok(pages);
        }
    }
    Err(Status::failed_precondition(format!("its list has not ended after {PAGES} pages")))
}

fn seen(instance: wire::Instance) -> Seen {
    let state = match wire::InstanceState::try_from(instance.state) {
        Ok(wire::InstanceState::Stopping) => SeenState::Stopping,
        Ok(wire::InstanceState::Failed) => {
            SeenState::Failed { error: words(&instance.error), out_of_capacity: instance.out_of_capacity }
        }
        // What is not known counts as existing: nothing is made twice for it, and nothing taken for gone.
        Ok(wire::InstanceState::Unspecified | wire::InstanceState::Pending | wire::InstanceState::Running) | Err(_) => {
            SeenState::There
        }
    };
    Seen { instance: instance.id, node: instance.node_id.parse().ok(), pool: instance.pool, zone: instance.zone, state }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    fn result(number: u128, result: i32) -> wire::NodeResult {
        wire::NodeResult { node_id: id(number).to_string(), result, ..Default::default() }
    }

    #[test]
    fn codes_that_say_nothing_of_what_was_done_are_unknown() {
        for code in
            [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown, Code::Internal, Code::Aborted]
        {
            assert!(matches!(refused(&Status::new(code, "x")), Answer::Unknown { .. }), "{code:?}");
        }
        for code in [Code::InvalidArgument, Code::PermissionDenied, Code::FailedPrecondition, Code::Unimplemented] {
            let Answer::Failed { error } = refused(&Status::new(code, "no such image")) else { panic!("{code:?}") };
            assert!(error.ends_with(": no such image"), "{error}");
        }
        let fault = Fault::exhausted("SLOW", "slower", Duration::from_millis(1_500));
        let throttled = Answer::Throttled { retry_after: Some(Duration::from_millis(1_500)) };
        assert_eq!(refused(&Status::from(fault)), throttled);
        assert_eq!(refused(&Status::resource_exhausted("x")), Answer::Throttled { retry_after: None });
    }

    #[test]
    fn what_is_not_said_of_a_node_is_unknown() {
        let targets = [id(1), id(2), id(3)].map(|id| Target { node: Some(id), instance: String::new() });
        let answers = by_node(targets.into_iter(), vec![result(3, 1), result(1, 77), result(9, 1)]);
        let verdicts: Vec<_> = answers.iter().map(|answer| (answer.node, answer.verdict.clone())).collect();
        assert_eq!(
            verdicts,
            [(Some(id(1)), Verdict::Unknown), (Some(id(2)), Verdict::Unknown), (Some(id(3)), Verdict::Accepted)]
        );
    }

    #[test]
    fn orphans_are_known_by_their_providers_name() {
        let orphan = Target { node: None, instance: "i-7".into() };
        let said = wire::NodeResult { instance_id: "i-7".into(), result: 1, ..Default::default() };
        let answers = by_node([orphan].into_iter(), vec![said]);
        assert_eq!((answers[0].instance.as_str(), &answers[0].verdict), ("i-7", &Verdict::Accepted));
    }
}
