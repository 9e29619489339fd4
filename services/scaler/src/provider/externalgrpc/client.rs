//! The calls of the foreign contract, each within its time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use millrace_proto::foreign::externalgrpc::{
    ExternalGrpcNode, Instance, NodeGroupDecreaseTargetSizeRequest, NodeGroupDeleteNodesRequest,
    NodeGroupIncreaseSizeRequest, NodeGroupNodesRequest, NodeGroupTargetSizeRequest, NodeGroupsRequest, RefreshRequest,
    cloud_provider_client::CloudProviderClient,
};
use tonic::{Code, Request, Status, transport::Channel};

use crate::provider::connect::{self, InvalidEndpoint, MAX_ANSWER};

/// The provider's groups and the greatest size of each.
pub(super) type Sizes = BTreeMap<String, usize>;

#[derive(Debug)]
pub(super) struct Client {
    client: CloudProviderClient<Channel>,
    limit: Duration,
    /// The list of groups, and how long it is taken for true.
    sizes: Mutex<Option<(Instant, Arc<Sizes>)>>,
    keep: Duration,
}

impl Client {
    pub(super) fn new(endpoint: &str, limit: Duration, keep: Duration) -> Result<Self, InvalidEndpoint> {
        let client = CloudProviderClient::new(connect::channel(endpoint)?).max_decoding_message_size(MAX_ANSWER);
        Ok(Self { client, limit, sizes: Mutex::new(None), keep })
    }

    /// Lets the provider look anew at what it has. One that does not know this has nothing to refresh.
    pub(super) async fn refresh(&self) -> Result<(), Status> {
        match connect::within(self.limit, self.client.clone().refresh(self.message(RefreshRequest {}))).await {
            Err(status) if status.code() != Code::Unimplemented => Err(status),
            _ => {
                *self.sizes.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Ok(())
            }
        }
    }

    /// The groups, as of a while ago at most.
    pub(super) async fn sizes(&self) -> Result<Arc<Sizes>, Status> {
        let known = self.sizes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, sizes)) = known
            && at.elapsed() < self.keep
        {
            return Ok(sizes);
        }
        let request = self.message(NodeGroupsRequest {});
        let answer = connect::within(self.limit, self.client.clone().node_groups(request)).await?;
        let groups = answer.into_inner().node_groups;
        let sizes: Arc<Sizes> = Arc::new(groups.into_iter().map(|group| (group.id, count(group.max_size))).collect());
        *self.sizes.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&sizes)));
        Ok(sizes)
    }

    /// The greatest size of a group; none when the provider has no such group.
    pub(super) async fn most(&self, group: &str) -> Result<Option<usize>, Status> {
        Ok(self.sizes().await?.get(group).copied())
    }

    /// The size that a group aims at, as of now.
    pub(super) async fn target(&self, group: &str) -> Result<usize, Status> {
        let request = self.message(NodeGroupTargetSizeRequest { id: group.into() });
        let answer = connect::within(self.limit, self.client.clone().node_group_target_size(request)).await?;
        Ok(count(answer.into_inner().target_size))
    }

    /// A group's instances, as of now.
    pub(super) async fn nodes(&self, group: &str) -> Result<Vec<Instance>, Status> {
        let request = self.message(NodeGroupNodesRequest { id: group.into() });
        let answer = connect::within(self.limit, self.client.clone().node_group_nodes(request)).await?;
        Ok(answer.into_inner().instances)
    }

    pub(super) async fn increase(&self, group: &str, delta: i32) -> Result<(), Status> {
        let request = self.message(NodeGroupIncreaseSizeRequest { delta, id: group.into() });
        connect::within(self.limit, self.client.clone().node_group_increase_size(request)).await.map(drop)
    }

    /// The delta is below zero.
    pub(super) async fn decrease(&self, group: &str, delta: i32) -> Result<(), Status> {
        let request = self.message(NodeGroupDecreaseTargetSizeRequest { delta, id: group.into() });
        connect::within(self.limit, self.client.clone().node_group_decrease_target_size(request)).await.map(drop)
    }

    /// Deletes instances, which also lowers the target by as many.
    pub(super) async fn delete(&self, group: &str, instances: &[&str]) -> Result<(), Status> {
        // As Kubernetes names an instance that has no node yet.
        let node = |id: &&str| ExternalGrpcNode {
            provider_id: (*id).into(),
            name: (*id).into(),
            ..ExternalGrpcNode::default()
        };
        let nodes = instances.iter().map(node).collect();
        let request = self.message(NodeGroupDeleteNodesRequest { nodes, id: group.into() });
        connect::within(self.limit, self.client.clone().node_group_delete_nodes(request)).await.map(drop)
    }

    /// With a deadline a little later than this side's, so that the provider can give the call up too.
    fn message<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.limit.saturating_add(Duration::from_secs(1)));
        request
    }
}

/// A size; one below zero is none.
fn count(size: i32) -> usize {
    usize::try_from(size).unwrap_or(0)
}
