//! A provider written from the cluster-autoscaler's contract, with the faults that real ones have.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use millrace_proto::foreign::externalgrpc::{
    CleanupRequest, CleanupResponse, Instance, InstanceErrorInfo, InstanceStatus, NodeGroup,
    NodeGroupDecreaseTargetSizeRequest, NodeGroupDecreaseTargetSizeResponse, NodeGroupDeleteNodesRequest,
    NodeGroupDeleteNodesResponse, NodeGroupForNodeRequest, NodeGroupForNodeResponse, NodeGroupIncreaseSizeRequest,
    NodeGroupIncreaseSizeResponse, NodeGroupNodesRequest, NodeGroupNodesResponse, NodeGroupTargetSizeRequest,
    NodeGroupTargetSizeResponse, NodeGroupsRequest, NodeGroupsResponse, RefreshRequest, RefreshResponse,
    cloud_provider_server::{CloudProvider, CloudProviderServer},
    instance_status::InstanceState,
};
use tokio::{net::TcpListener, sync::Notify};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};

/// What goes wrong with the next change of a target, or deletion.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// It is made, and the caller gets this instead of an answer.
    LostAnswer(Code),
    /// It is refused.
    Refused(Code),
    /// It is made only once the test says so, and the caller hears of it only then.
    Late(Arc<Notify>),
}

#[derive(Debug, Default)]
pub(crate) struct Cloud {
    pub(crate) groups: BTreeMap<String, Group>,
    pub(crate) troubles: VecDeque<Trouble>,
    /// Every change that was made, as the group and the delta.
    pub(crate) changes: Vec<(String, i32)>,
    pub(crate) deletions: Vec<String>,
    pub(crate) refreshes: usize,
    pub(crate) refresh: Option<Code>,
    made: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) target: i32,
    pub(crate) most: i32,
    pub(crate) instances: Vec<Instance>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Handle(Arc<Mutex<Cloud>>);

impl Handle {
    pub(crate) fn with(groups: &[(&str, i32)]) -> Self {
        let group = |(name, most): &(&str, i32)| ((*name).to_owned(), Group { most: *most, ..Group::default() });
        let groups = groups.iter().map(group).collect();
        Self(Arc::new(Mutex::new(Cloud { groups, ..Cloud::default() })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Cloud> {
        self.0.lock().unwrap()
    }

    pub(crate) async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(CloudProviderServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        format!("http://{address}")
    }

    /// Makes an instance for every place of a target.
    pub(crate) fn make(&self, group: &str) {
        let cloud = &mut *self.lock();
        let group = cloud.groups.get_mut(group).unwrap();
        let counted = |instance: &&Instance| state_of(instance) != InstanceState::InstanceDeleting;
        while i32::try_from(group.instances.iter().filter(counted).count()).unwrap() < group.target {
            cloud.made += 1;
            group.instances.push(instance(&format!("i-{:04}", cloud.made), InstanceState::InstanceRunning, None));
        }
    }

    pub(crate) fn target(&self, group: &str) -> i32 {
        self.lock().groups[group].target
    }

    pub(crate) fn raised(&self) -> i32 {
        self.lock().changes.iter().map(|(_, delta)| (*delta).max(0)).sum()
    }

    /// Makes a change, with the trouble that is next, if any.
    async fn change<T>(
        &self,
        answer: T,
        make: impl FnOnce(&mut Cloud) -> Result<(), Status>,
    ) -> Result<Response<T>, Status> {
        let trouble = self.lock().troubles.pop_front();
        match trouble {
            None => make(&mut self.lock()).map(|()| Response::new(answer)),
            Some(Trouble::Refused(code)) => Err(Status::new(code, "refused")),
            Some(Trouble::LostAnswer(code)) => {
                make(&mut self.lock())?;
                Err(Status::new(code, "the answer was lost"))
            }
            Some(Trouble::Late(go)) => {
                // It goes on when the caller has gone away.
                go.notified().await;
                make(&mut self.lock()).map(|()| Response::new(answer))
            }
        }
    }
}

pub(crate) fn instance(id: &str, state: InstanceState, error: Option<(i32, &str)>) -> Instance {
    let error_info = error.map(|(class, message)| InstanceErrorInfo {
        error_code: "code".into(),
        error_message: message.into(),
        instance_error_class: class,
    });
    Instance { id: id.into(), status: Some(InstanceStatus { instance_state: state.into(), error_info }) }
}

fn state_of(instance: &Instance) -> InstanceState {
    instance.status.as_ref().unwrap().instance_state()
}

fn group<'a>(cloud: &'a mut Cloud, id: &str) -> Result<&'a mut Group, Status> {
    cloud.groups.get_mut(id).ok_or_else(|| Status::not_found(format!("no group {id}")))
}

#[tonic::async_trait]
impl CloudProvider for Handle {
    async fn node_groups(&self, _: Request<NodeGroupsRequest>) -> Result<Response<NodeGroupsResponse>, Status> {
        let cloud = self.lock();
        let group = |(id, group): (&String, &Group)| NodeGroup {
            id: id.clone(),
            min_size: 0,
            max_size: group.most,
            debug: String::new(),
        };
        Ok(Response::new(NodeGroupsResponse { node_groups: cloud.groups.iter().map(group).collect() }))
    }

    async fn node_group_for_node(
        &self,
        _: Request<NodeGroupForNodeRequest>,
    ) -> Result<Response<NodeGroupForNodeResponse>, Status> {
        Err(Status::unimplemented("nobody calls it"))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<CleanupResponse>, Status> {
        Err(Status::unimplemented("nobody calls it"))
    }

    async fn refresh(&self, _: Request<RefreshRequest>) -> Result<Response<RefreshResponse>, Status> {
        let mut cloud = self.lock();
        cloud.refreshes += 1;
        cloud.refresh.map_or(Ok(Response::new(RefreshResponse {})), |code| Err(Status::new(code, "refresh")))
    }

    async fn node_group_target_size(
        &self,
        request: Request<NodeGroupTargetSizeRequest>,
    ) -> Result<Response<NodeGroupTargetSizeResponse>, Status> {
        let target_size = group(&mut self.lock(), &request.get_ref().id)?.target;
        Ok(Response::new(NodeGroupTargetSizeResponse { target_size }))
    }

    async fn node_group_increase_size(
        &self,
        request: Request<NodeGroupIncreaseSizeRequest>,
    ) -> Result<Response<NodeGroupIncreaseSizeResponse>, Status> {
        let NodeGroupIncreaseSizeRequest { delta, id } = request.into_inner();
        let make = move |cloud: &mut Cloud| {
            let group = group(cloud, &id)?;
            if delta <= 0 || group.target + delta > group.most {
                return Err(Status::invalid_argument("size increase too large"));
            }
            group.target += delta;
            cloud.changes.push((id, delta));
            Ok(())
        };
        // As in a server whose calls to its cloud go on when its own caller has gone away.
        let this = self.clone();
        let work = tokio::spawn(async move { this.change(NodeGroupIncreaseSizeResponse {}, make).await });
        work.await.unwrap()
    }

    async fn node_group_delete_nodes(
        &self,
        request: Request<NodeGroupDeleteNodesRequest>,
    ) -> Result<Response<NodeGroupDeleteNodesResponse>, Status> {
        let NodeGroupDeleteNodesRequest { nodes, id } = request.into_inner();
        let make = move |cloud: &mut Cloud| {
            for node in nodes {
                let group = group(cloud, &id)?;
                let found = group.instances.iter_mut().find(|instance| instance.id == node.provider_id);
                let found = found.ok_or_else(|| Status::not_found("no such node"))?;
                *found = instance(&node.provider_id, InstanceState::InstanceDeleting, None);
                group.target -= 1;
                cloud.deletions.push(node.provider_id);
            }
            Ok(())
        };
        self.change(NodeGroupDeleteNodesResponse {}, make).await
    }

    async fn node_group_decrease_target_size(
        &self,
        request: Request<NodeGroupDecreaseTargetSizeRequest>,
    ) -> Result<Response<NodeGroupDecreaseTargetSizeResponse>, Status> {
        let NodeGroupDecreaseTargetSizeRequest { delta, id } = request.into_inner();
        let make = move |cloud: &mut Cloud| {
            let group = group(cloud, &id)?;
            let instances = i32::try_from(group.instances.len()).unwrap();
            if delta >= 0 || group.target + delta < instances {
                return Err(Status::invalid_argument("attempt to delete existing nodes"));
            }
            group.target += delta;
            cloud.changes.push((id, delta));
            Ok(())
        };
        self.change(NodeGroupDecreaseTargetSizeResponse {}, make).await
    }

    async fn node_group_nodes(
        &self,
        request: Request<NodeGroupNodesRequest>,
    ) -> Result<Response<NodeGroupNodesResponse>, Status> {
        let instances = group(&mut self.lock(), &request.get_ref().id)?.instances.clone();
        Ok(Response::new(NodeGroupNodesResponse { instances }))
    }
}
