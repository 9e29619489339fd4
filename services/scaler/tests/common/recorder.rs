//! A provider that does what it is asked, at once, and remembers all of it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use millrace_proto::provider::v1::{
    DescribeNodesRequest, DescribeNodesResponse, Instance, InstanceState, NodeResult, RequestNodesRequest,
    RequestNodesResponse, RequestResult, TerminateNodesRequest, TerminateNodesResponse,
    node_provider_service_server::NodeProviderService,
};
use tonic::{Request, Response, Status};

/// How it answers requests for nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Good,
    /// It does it, and the answer is lost.
    LosesAnswers,
    /// The request is lost.
    LosesRequests,
}

/// The provider.
#[derive(Debug, Default)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    instances: BTreeMap<String, Instance>,
    made: Vec<String>,
    ended: Vec<String>,
    calls: Vec<&'static str>,
    /// Instances of one page.
    page: usize,
}

impl Recorder {
    pub fn set(&self, mode: Mode) {
        self.state().mode = mode;
    }

    /// The ids of all nodes that were ever made, in their order; an id that was made twice stands there twice.
    pub fn made(&self) -> Vec<String> {
        self.state().made.clone()
    }

    /// What was ended, by its own name.
    pub fn ended(&self) -> Vec<String> {
        self.state().ended.clone()
    }

    /// The ids of the nodes that exist.
    pub fn there(&self) -> Vec<String> {
        self.state().instances.values().map(|instance| instance.node_id.clone()).collect()
    }

    /// The calls that came, in their order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.state().calls.clone()
    }

    /// Lists in pages of so many.
    pub fn set_page(&self, page: usize) {
        self.state().page = page;
    }

    /// An instance that someone else made.
    pub fn add(&self, id: &str, pool: &str) {
        let instance = Instance { id: id.into(), pool: pool.into(), state: running(), ..Instance::default() };
        self.state().instances.insert(id.into(), instance);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn running() -> i32 {
    InstanceState::Running.into()
}

fn accepted(node_id: String, instance_id: String) -> NodeResult {
    NodeResult { node_id, instance_id, result: RequestResult::Accepted.into(), ..NodeResult::default() }
}

#[tonic::async_trait]
impl NodeProviderService for Recorder {
    async fn describe_nodes(
        &self,
        request: Request<DescribeNodesRequest>,
    ) -> Result<Response<DescribeNodesResponse>, Status> {
        let mut state = self.state();
        state.calls.push("DescribeNodes");
        let page = if state.page == 0 { usize::MAX } else { state.page };
        let token = request.into_inner().page_token;
        let mut later =
            state.instances.range::<str, _>((std::ops::Bound::Excluded(token.as_str()), std::ops::Bound::Unbounded));
        let instances: Vec<Instance> = later.by_ref().take(page).map(|(_, instance)| instance.clone()).collect();
        let more = later.next().is_some();
        let next_page_token = instances.last().filter(|_| more).map(|last| last.id.clone()).unwrap_or_default();
        Ok(Response::new(DescribeNodesResponse { instances, next_page_token, max_nodes_per_call: 50 }))
    }

    async fn request_nodes(
        &self,
        request: Request<RequestNodesRequest>,
    ) -> Result<Response<RequestNodesResponse>, Status> {
        let mut state = self.state();
        state.calls.push("RequestNodes");
        if state.mode == Mode::LosesRequests {
            return Err(Status::unavailable("lost"));
        }
        let request = request.into_inner();
        let mut results = Vec::new();
        for node in request.nodes {
            let id = format!("i-{}", node.node_id);
            if !state.instances.contains_key(&id) {
                state.made.push(node.node_id.clone());
                let instance = Instance {
                    id: id.clone(),
                    node_id: node.node_id.clone(),
                    pool: request.pool.clone(),
                    zone: request.zone.clone(),
                    state: running(),
                    ..Instance::default()
                };
                state.instances.insert(id.clone(), instance);
            }
            results.push(accepted(node.node_id, id));
        }
        match state.mode {
            Mode::LosesAnswers => Err(Status::deadline_exceeded("lost")),
            _ => Ok(Response::new(RequestNodesResponse { results })),
        }
    }

    async fn terminate_nodes(
        &self,
        request: Request<TerminateNodesRequest>,
    ) -> Result<Response<TerminateNodesResponse>, Status> {
        let mut state = self.state();
        state.calls.push("TerminateNodes");
        let mut results = Vec::new();
        for node in request.into_inner().nodes {
            let id = match node.instance_id.is_empty() {
                true => format!("i-{}", node.node_id),
                false => node.instance_id.clone(),
            };
            if state.instances.remove(&id).is_some() {
                state.ended.push(id);
            }
            results.push(accepted(node.node_id, node.instance_id));
        }
        match state.mode {
            Mode::LosesAnswers => Err(Status::deadline_exceeded("lost")),
            _ => Ok(Response::new(TerminateNodesResponse { results })),
        }
    }
}
