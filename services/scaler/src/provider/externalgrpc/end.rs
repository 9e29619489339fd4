//! How nodes of groups are ended.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use millrace_proto::{
    foreign::externalgrpc::Instance,
    provider::v1::{NodeRef, NodeResult, TerminateNodesRequest, TerminateNodesResponse},
};
use tonic::Status;

use super::{
    ExternalGrpc,
    group::{Group, Turn},
    signed,
};
use crate::provider::{MAX_NODES, answer};

/// How long a deletion is given before it is asked again what it left.
const DELETING: Duration = Duration::from_secs(5);

impl ExternalGrpc {
    /// Instances are deleted; a node without one is withdrawn from the target.
    pub(super) async fn terminate(&self, request: &TerminateNodesRequest) -> Result<TerminateNodesResponse, Status> {
        answer::check_terminate(request, MAX_NODES)?;
        let Some(group) = self.groups.find(&request.pool, &request.zone) else {
            let error = format!("no node group is known of pool `{}` zone `{}`", request.pool, request.zone);
            let results = request.nodes.iter().map(|node| answer::failed(&node.node_id, &error)).collect();
            return Ok(TerminateNodesResponse { results });
        };
        let mut turn = self.turn(&group).await?;
        let instances = self.client.nodes(&group.id).await?;
        self.delete(&group, &mut turn, &instances, &request.nodes).await?;
        let refused = self.withdraw(&group, &mut turn, &instances, &request.nodes).await?;
        let result = |node: &NodeRef| match refused.iter().find(|refused| refused.node_id == node.node_id) {
            Some(refused) if node.instance_id.is_empty() => refused.clone(),
            _ => answer::accepted(&node.node_id, &node.instance_id),
        };
        Ok(TerminateNodesResponse { results: request.nodes.iter().map(result).collect() })
    }

    /// Only those that are listed: of one that is gone the provider would know nothing, or, worse, lower the target once more.
    async fn delete(
        &self,
        group: &Group,
        turn: &mut Turn,
        instances: &[Instance],
        nodes: &[NodeRef],
    ) -> Result<(), Status> {
        let named: BTreeSet<&str> = nodes.iter().map(|node| node.instance_id.as_str()).collect();
        let there = instances.iter().filter(|instance| !turn.is_going(instance) && named.contains(&*instance.id));
        let there: Vec<&str> = there.map(|instance| instance.id.as_str()).collect();
        if there.is_empty() {
            return Ok(());
        }
        self.client.delete(&group.id, &there).await?;
        turn.deleted(&there);
        Ok(())
    }

    /// Takes the target back by as many nodes as have no instance, as far as it is above the instances. The nodes for which that has to
    /// wait.
    async fn withdraw(
        &self,
        group: &Group,
        turn: &mut Turn,
        instances: &[Instance],
        nodes: &[NodeRef],
    ) -> Result<Vec<NodeResult>, Status> {
        if nodes.iter().all(|node| !node.instance_id.is_empty()) {
            return Ok(Vec::new());
        }
        let target = self.client.target(&group.id).await?;
        let unsettled = turn.unsettled(target, Instant::now());
        let open = nodes.iter().filter(|node| node.instance_id.is_empty() && !turn.was_withdrawn(&node.node_id));
        let open: Vec<String> = open.map(|node| node.node_id.clone()).collect();
        if let Some(left) = unsettled {
            let error = format!("whether node group {} has been changed is not known yet", group.id);
            return Ok(open.iter().map(|node| answer::throttled(node, &error, Some(left))).collect());
        }
        // Many providers take no place back that an instance on its way out still stands in.
        let surplus = target.saturating_sub(turn.counted(instances)).min(open.len());
        let now = target.saturating_sub(instances.len()).min(surplus);
        self.change(group, turn, target, -signed(now), open[..now].to_vec()).await?;
        // Those beyond the surplus have nothing to withdraw: their instances are there, or they never were in the target.
        turn.withdrawn(open[surplus..].iter().cloned());
        let error = format!("node group {} has instances that are still being deleted", group.id);
        Ok(open[now..surplus].iter().map(|node| answer::throttled(node, &error, Some(DELETING))).collect())
    }
}
