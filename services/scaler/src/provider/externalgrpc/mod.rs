//! Node groups of the Kubernetes cluster-autoscaler's contract for providers outside it, as a provider of nodes.
//!
//! One group stands for one zone of one pool, and the pool's template says which: `node-group.ZONE`, or `node-group` for a pool of one
//! zone or of none. Groups that no pool names are never touched nor listed: they are somebody else's.
//!
//! That contract keeps no tokens, so what makes repeated calls safe is the target size, which is read before every change: it is raised
//! only by what is missing from the caller's expected_total, and by no more nodes than were asked for. One change of a group is under
//! way at a time. One whose end is not known (no answer in time, UNAVAILABLE and the like) may still be carried out later, so until the
//! target shows it, or [`Options::settle`] has passed, no other change of the same group is made: nodes that would need one are THROTTLED
//! until then. That memory is lost with the process; what remains is that the target is read first.
//!
//! - An instance with an error is FAILED, and out of capacity when its class says so. It counts in the target until it is deleted,
//!   so it is taken off when a target is compared.
//! - To end an instance is NodeGroupDeleteNodes. To end a node that has no instance yet takes the target back by one, if it is above the
//!   number of instances.
//! - A group at its maxSize is OUT_OF_CAPACITY.

mod client;
mod end;
mod group;
mod groups;
mod list;

use std::time::{Duration, Instant};

use millrace_core::fleet::Pool;
use millrace_proto::provider::v1::{
    DescribeNodesRequest, DescribeNodesResponse, NodeRequest, NodeResult, RequestNodesRequest, RequestNodesResponse,
    TerminateNodesRequest, TerminateNodesResponse, node_provider_service_server::NodeProviderService,
};
use millrace_runtime::status::Fault;
use tokio::sync::MutexGuard;
use tonic::{Code, Request, Response, Status};

use self::{
    client::Client,
    group::{Group, Order, Turn},
    groups::Groups,
};
use super::{InvalidEndpoint, MAX_NODES, answer, connect::CALL_LIMIT};

/// How the groups are worked with.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long one call to the provider may take; 5 s, as Kubernetes' own.
    pub limit: Duration,
    /// How long a change whose end is not known may still come true.
    pub settle: Duration,
    /// How long the list of groups, with their greatest sizes, is taken for true.
    pub groups: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { limit: CALL_LIMIT, settle: Duration::from_secs(30), groups: Duration::from_secs(60) }
    }
}

/// A provider behind the cluster-autoscaler's contract.
#[derive(Debug)]
pub struct ExternalGrpc {
    client: Client,
    groups: Groups,
    options: Options,
}

impl ExternalGrpc {
    /// Connects with the first call. To be called within a tokio runtime.
    ///
    /// # Errors
    /// A text that is not an address such as `http://127.0.0.1:8086`.
    pub fn new(endpoint: &str, options: Options) -> Result<Self, InvalidEndpoint> {
        let client = Client::new(endpoint, options.limit, options.groups)?;
        Ok(Self { client, groups: Groups::default(), options })
    }

    /// Says which groups are whose, in place of what was said before: listings need to know, and they show no group that no pool names.
    /// To be called before the first listing, and whenever pools have changed. Of several places that name one group the first has it.
    pub fn assign(&self, pools: &[Pool]) {
        self.groups.assign(pools);
    }

    async fn request(&self, request: &RequestNodesRequest) -> Result<RequestNodesResponse, Status> {
        answer::ids(request, MAX_NODES)?;
        let expected = answer::expected_total(request)?;
        let group = match self.groups.of(&request.pool, &request.zone, &request.template) {
            Ok(group) => group,
            Err(error) => return Ok(refused(request, request.nodes.len(), |node| answer::failed(node, &error))),
        };
        let mut turn = self.turn(&group).await?;
        let Some(most) = self.client.most(&group.id).await? else {
            let error = format!("the provider has no node group {}", group.id);
            return Ok(refused(request, request.nodes.len(), |node| answer::failed(node, &error)));
        };
        let target = self.client.target(&group.id).await?;
        let failed = turn.failed(&self.client.nodes(&group.id).await?);
        let plan = Order { asked: request.nodes.len(), expected, target, failed, most }.plan();
        if let Some(left) = turn.unsettled(target, Instant::now())
            && plan.missing > 0
        {
            let error = format!("whether node group {} has been changed is not known yet", group.id);
            return Ok(refused(request, plan.missing, |node| answer::throttled(node, &error, Some(left))));
        }
        self.change(&group, &mut turn, target, signed(plan.delta), Vec::new()).await?;
        let error = format!("node group {} is at its greatest size, {most}", group.id);
        Ok(refused(request, plan.missing - plan.delta, |node| answer::out_of_capacity(node, &error, None)))
    }

    /// Waits for the turn. Those who wait are bounded by the calls that the scaler has under way, and nobody waits for longer than a call
    /// to the provider may take.
    async fn turn<'a>(&self, group: &'a Group) -> Result<MutexGuard<'a, Turn>, Fault> {
        tokio::time::timeout(self.options.limit, group.turn.lock()).await.map_err(|_| {
            let message = format!("node group {} is being changed by another call", group.id);
            Fault::unavailable(message, Duration::from_secs(1))
        })
    }

    /// Raises or lowers the target, and remembers that until its end is known: also when the caller goes away meanwhile.
    async fn change(
        &self,
        group: &Group,
        turn: &mut Turn,
        target: usize,
        delta: i32,
        nodes: Vec<String>,
    ) -> Result<(), Status> {
        if delta == 0 {
            return Ok(());
        }
        turn.begin(target, delta, nodes, Instant::now() + self.options.settle);
        let done = match delta > 0 {
            true => self.client.increase(&group.id, delta).await,
            false => self.client.decrease(&group.id, delta).await,
        };
        match &done {
            Ok(()) => turn.done(),
            Err(status) if nothing_was_done(status) => turn.undone(),
            Err(status) => {
                tracing::warn!(group = %group.id, target, delta, %status, "whether a node group was changed is not known");
            }
        }
        done
    }
}

/// Accepts all but the last so many nodes: which of a group's nodes is whose nobody can say.
fn refused(request: &RequestNodesRequest, count: usize, refuse: impl Fn(&str) -> NodeResult) -> RequestNodesResponse {
    let made = request.nodes.len().saturating_sub(count);
    let result = |(index, node): (usize, &NodeRequest)| match index < made {
        true => answer::accepted(&node.node_id, ""),
        false => refuse(&node.node_id),
    };
    RequestNodesResponse { results: request.nodes.iter().enumerate().map(result).collect() }
}

/// Whether the provider has refused before it did anything. What is not sure is taken for done.
fn nothing_was_done(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
    )
}

fn signed(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[tonic::async_trait]
impl NodeProviderService for ExternalGrpc {
    async fn describe_nodes(
        &self,
        request: Request<DescribeNodesRequest>,
    ) -> Result<Response<DescribeNodesResponse>, Status> {
        self.describe(request.get_ref()).await.map(Response::new)
    }

    async fn request_nodes(
        &self,
        request: Request<RequestNodesRequest>,
    ) -> Result<Response<RequestNodesResponse>, Status> {
        self.request(request.get_ref()).await.map(Response::new)
    }

    async fn terminate_nodes(
        &self,
        request: Request<TerminateNodesRequest>,
    ) -> Result<Response<TerminateNodesResponse>, Status> {
        self.terminate(request.get_ref()).await.map(Response::new)
    }
}
