//! The calls of the contract, answered by a simulated provider at a stated time.

use std::time::Duration;

use millrace_core::{id::NodeId, time::Timestamp};
use millrace_proto::provider::v1::{
    DescribeNodesRequest, DescribeNodesResponse, Instance, InstanceState, NodeRef, NodeResult, RequestNodesRequest,
    RequestNodesResponse, TerminateNodesRequest, TerminateNodesResponse,
};
use millrace_runtime::status::Fault;
use tonic::{Code, Status};

use super::{
    Reply,
    conditions::HowDead,
    draw::For,
    ledger::{Call, CallFate, Fate, Method, NodeRecord, number_of},
    throttle::Refusal,
    world::{MAX_EVER, World},
};
use crate::provider::answer;

impl World {
    pub(super) fn describe(&mut self, now: Timestamp, request: &DescribeNodesRequest) -> Reply<DescribeNodesResponse> {
        self.call(now, Method::Describe, 0, |world| world.list(request), |_| None)
    }

    pub(super) fn request(&mut self, now: Timestamp, request: &RequestNodesRequest) -> Reply<RequestNodesResponse> {
        let count = request.nodes.len();
        let throttled = |after| {
            let results = request.nodes.iter().map(|node| answer::throttled(&node.node_id, TOO_FAST, after)).collect();
            Some(RequestNodesResponse { results })
        };
        self.call(now, Method::Request, count, |world| world.make(request), throttled)
    }

    pub(super) fn terminate(
        &mut self,
        now: Timestamp,
        request: &TerminateNodesRequest,
    ) -> Reply<TerminateNodesResponse> {
        let count = request.nodes.len();
        let throttled = |after| {
            let results = request.nodes.iter().map(|node| answer::throttled(&node.node_id, TOO_FAST, after)).collect();
            Some(TerminateNodesResponse { results })
        };
        self.call(now, Method::Terminate, count, |world| world.unmake(request), throttled)
    }

    /// A call, from its arrival or loss to its answer or loss.
    fn call<T>(
        &mut self,
        now: Timestamp,
        method: Method,
        nodes: usize,
        work: impl FnOnce(&mut Self) -> Result<T, Fault>,
        throttled: impl FnOnce(Option<Duration>) -> Option<T>,
    ) -> Reply<T> {
        let now = self.advance(now);
        let conditions = self.conditions();
        let (latency, lost, per_node) = (conditions.latency.0, conditions.lost.clone(), conditions.throttle.per_node);
        let number: u64 = self.calls();
        let note = |world: &mut Self, fate| {
            world.ledger.call(Call { at: now, method, nodes: u32::try_from(nodes).unwrap_or(u32::MAX), fate });
        };
        let unheard = || Reply {
            at: now.after(lost.after.0),
            result: Err(Status::deadline_exceeded(format!("no answer within {:?}", lost.after.0))),
        };
        if self.chance.falls(For::LostRequest, number, lost.requests) {
            note(self, CallFate::LostRequest);
            return unheard();
        }
        let at = now.after(latency);
        if let Err(Refusal { retry_after }) = self.bucket.take(&self.script, self.start, now, (self.chance, number)) {
            note(self, CallFate::Throttled);
            let result = match throttled(retry_after).filter(|_| per_node) {
                Some(answer) => Ok(answer),
                None => Err(too_fast(retry_after)),
            };
            return Reply { at, result };
        }
        let result = work(self).map_err(Status::from);
        if self.chance.falls(For::LostAnswer, number, lost.answers) {
            note(self, CallFate::LostAnswer);
            return unheard();
        }
        note(self, CallFate::Answered);
        Reply { at, result }
    }

    fn calls(&self) -> u64 {
        use CallFate::{Answered, LostAnswer, LostRequest, Throttled};
        [Answered, Throttled, LostRequest, LostAnswer].into_iter().map(|fate| self.ledger.calls_that(fate)).sum()
    }

    fn list(&self, request: &DescribeNodesRequest) -> Result<DescribeNodesResponse, Fault> {
        let size = answer::page_size(request.page_size)?;
        let after: Option<u32> = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| answer::invalid_token())?),
        };
        let from = after.map_or(0, |after| after.saturating_add(1));
        let mut page: Vec<&NodeRecord> = self
            .listed
            .range(from..)
            .filter_map(|number| self.node(*number))
            .filter(|node| request.pool.is_empty() || *request.pool == *node.pool)
            .filter(|node| self.shows(node))
            .take(size + 1)
            .collect();
        let more = page.len() > size;
        page.truncate(size);
        let next = page.last().filter(|_| more).map(|last| last.number.to_string()).unwrap_or_default();
        Ok(DescribeNodesResponse {
            instances: page.into_iter().map(|node| self.instance(node)).collect(),
            next_page_token: next,
            max_nodes_per_call: i32::try_from(self.script.max_nodes_per_call).unwrap_or(i32::MAX),
        })
    }

    /// Whether listings show it yet.
    fn shows(&self, node: &NodeRecord) -> bool {
        node.created.after(self.conditions().listing.delay.0) <= self.now
    }

    fn instance(&self, node: &NodeRecord) -> Instance {
        let delay = self.conditions().listing.delay.0;
        let (state, error) = if node.has_failed(self.now) {
            (InstanceState::Failed, self.script.phases[node.phase].1.dead.error.as_str())
        } else if node.leaves().is_some_and(|left| left.after(delay) <= self.now) {
            (InstanceState::Stopping, "")
        } else if node.runs.after(delay) > self.now {
            (InstanceState::Pending, "")
        } else {
            (InstanceState::Running, "")
        };
        let node_id = if self.script.keeps_tokens { node.node_id.to_string() } else { String::new() };
        Instance {
            id: node.instance(),
            node_id,
            pool: node.pool.to_string(),
            zone: node.zone.to_string(),
            state: state.into(),
            error: error.into(),
            create_time: Some(answer::wire_time(node.created)),
            out_of_capacity: false,
        }
    }

    fn make(&mut self, request: &RequestNodesRequest) -> Result<RequestNodesResponse, Fault> {
        let ids = answer::ids(request, self.script.max_nodes_per_call)?;
        // Without tokens only what is missing is made.
        let mut missing = match self.script.keeps_tokens {
            true => ids.len(),
            false => {
                let total = answer::expected_total(request)?;
                total.saturating_sub(self.alive(&request.pool, &request.zone))
            }
        };
        let results = ids.into_iter().map(|id| self.make_one(id, request, &mut missing)).collect();
        Ok(RequestNodesResponse { results })
    }

    fn make_one(&mut self, id: NodeId, request: &RequestNodesRequest, missing: &mut usize) -> NodeResult {
        let name = id.to_string();
        if self.script.keeps_tokens
            && let Some(node) = self.by_id.get(&id).and_then(|number| self.node(*number))
        {
            return self.again(&name, node);
        }
        if *missing == 0 {
            return answer::accepted(&name, "");
        }
        self.orders += 1;
        let refused = &self.conditions().refused;
        if self.chance.falls(For::Refusal, self.orders, refused.share) {
            return answer::failed(&name, &refused.error);
        }
        let zone = match self.place(&request.zone) {
            Ok(zone) => zone,
            Err(no_room) => return answer::out_of_capacity(&name, &no_room.error, no_room.retry_after),
        };
        match self.create(id, &request.pool, zone).and_then(|number| self.node(number)) {
            Some(node) => {
                let instance = node.instance();
                *missing -= 1;
                answer::accepted(&name, &instance)
            }
            None => answer::failed(&name, &format!("the simulation has made {MAX_EVER} nodes and makes no more")),
        }
    }

    /// An order that was given before.
    fn again(&self, name: &str, node: &NodeRecord) -> NodeResult {
        match node.fate {
            _ if node.leaves().is_some() => answer::failed(name, "the node has been ended"),
            Fate::Never(HowDead::ProviderFailed, at) if at <= self.now => {
                answer::failed(name, &self.script.phases[node.phase].1.dead.error)
            }
            _ => answer::accepted(name, &node.instance()),
        }
    }

    fn unmake(&mut self, request: &TerminateNodesRequest) -> Result<TerminateNodesResponse, Fault> {
        answer::check_terminate(request, self.script.max_nodes_per_call)?;
        let results = request.nodes.iter().map(|node| {
            if let Some(number) = self.number(node) {
                self.kill(number);
            }
            answer::accepted(&node.node_id, &node.instance_id)
        });
        Ok(TerminateNodesResponse { results: results.collect() })
    }

    fn number(&self, node: &NodeRef) -> Option<u32> {
        let by_id = || self.by_id.get(&node.node_id.parse().ok()?).copied();
        match self.script.keeps_tokens {
            true => by_id().or_else(|| number_of(&node.instance_id)),
            false => number_of(&node.instance_id),
        }
    }
}

const TOO_FAST: &str = "too many calls";

fn too_fast(retry_after: Option<Duration>) -> Status {
    let fault = Fault::of(Code::ResourceExhausted, TOO_FAST).with_reason("THROTTLED");
    match retry_after {
        Some(delay) => fault.with_retry_after(delay).into(),
        None => fault.into(),
    }
}
