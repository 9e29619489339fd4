//! A scaler that keeps pools and nodes in memory and decides nothing.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt, stream};
use millrace_proto::scaler::v1::scaler_service_server::{ScalerService, ScalerServiceServer};
use millrace_proto::scaler::v1::*;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// The id of the node that has a history.
pub(crate) const NODE: &str = "0197f2a0-5c1e-7bd4-9d3c-0f3a1c2b4d5e";

#[derive(Default)]
pub(crate) struct FakeScaler {
    pub(crate) pools: Mutex<Vec<Pool>>,
    pub(crate) nodes: Mutex<Vec<Node>>,
    pub(crate) explained: Mutex<Option<ExplainPoolResponse>>,
    pub(crate) created: Mutex<Vec<CreatePoolRequest>>,
    pub(crate) updated: Mutex<Vec<UpdatePoolRequest>>,
    pub(crate) deleted: Mutex<Vec<DeletePoolRequest>>,
    pub(crate) overridden: Mutex<Vec<OverridePoolRequest>>,
    pub(crate) drained: Mutex<Vec<DrainNodeRequest>>,
    pub(crate) listed: Mutex<Vec<ListNodesRequest>>,
}

impl FakeScaler {
    /// Serves a fake on a port of its own and gives its endpoint.
    pub(crate) async fn serve(self) -> (Arc<FakeScaler>, String) {
        let fake = Arc::new(self);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(ScalerServiceServer::from_arc(fake.clone()))
            .serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener));
        tokio::spawn(server);
        (fake, endpoint)
    }

    fn find(&self, name: &str) -> Result<Pool, Status> {
        let found = self.pools.lock().unwrap().iter().find(|pool| pool.name == name).cloned();
        found.ok_or_else(|| {
            let details = ErrorDetails::with_error_info("POOL_NOT_FOUND", "millrace", []);
            Status::with_error_details(tonic::Code::NotFound, format!("there is no pool `{name}`"), details)
        })
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ScalerService for FakeScaler {
    type WatchPoolsStream = Pin<Box<dyn Stream<Item = Result<WatchPoolsResponse, Status>> + Send>>;
    type AttachNodeStream = Pin<Box<dyn Stream<Item = Result<AttachNodeResponse, Status>> + Send>>;

    async fn create_pool(&self, request: Request<CreatePoolRequest>) -> Answer<CreatePoolResponse> {
        let request = request.into_inner();
        self.created.lock().unwrap().push(request.clone());
        Ok(Response::new(CreatePoolResponse { pool: request.pool }))
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Answer<GetPoolResponse> {
        Ok(Response::new(GetPoolResponse { pool: Some(self.find(&request.into_inner().name)?) }))
    }

    async fn list_pools(&self, request: Request<ListPoolsRequest>) -> Answer<ListPoolsResponse> {
        // One pool a page, so that a list has several.
        let start: usize = request.into_inner().page_token.parse().unwrap_or(0);
        let pools = self.pools.lock().unwrap();
        let next = start + 1;
        let next_page_token = if next < pools.len() { next.to_string() } else { String::new() };
        Ok(Response::new(ListPoolsResponse {
            pools: pools.iter().skip(start).take(1).cloned().collect(),
            next_page_token,
        }))
    }

    async fn update_pool(&self, request: Request<UpdatePoolRequest>) -> Answer<UpdatePoolResponse> {
        let request = request.into_inner();
        self.updated.lock().unwrap().push(request.clone());
        Ok(Response::new(UpdatePoolResponse { pool: request.pool }))
    }

    async fn delete_pool(&self, request: Request<DeletePoolRequest>) -> Answer<DeletePoolResponse> {
        let request = request.into_inner();
        self.deleted.lock().unwrap().push(request.clone());
        if !request.drain {
            let details = ErrorDetails::with_error_info("POOL_NOT_EMPTY", "millrace", []);
            return Err(Status::with_error_details(tonic::Code::FailedPrecondition, "the pool has 3 nodes", details));
        }
        Ok(Response::new(DeletePoolResponse {
            pool: Some(Pool { name: request.name, deleting: true, ..Pool::default() }),
        }))
    }

    async fn override_pool(&self, request: Request<OverridePoolRequest>) -> Answer<OverridePoolResponse> {
        let request = request.into_inner();
        self.overridden.lock().unwrap().push(request.clone());
        let pool = Pool { name: request.name, r#override: request.r#override, ..Pool::default() };
        Ok(Response::new(OverridePoolResponse { pool: Some(pool) }))
    }

    async fn clear_pool_override(
        &self,
        request: Request<ClearPoolOverrideRequest>,
    ) -> Answer<ClearPoolOverrideResponse> {
        Ok(Response::new(ClearPoolOverrideResponse { pool: Some(self.find(&request.into_inner().name)?) }))
    }

    async fn explain_pool(&self, request: Request<ExplainPoolRequest>) -> Answer<ExplainPoolResponse> {
        let pool = self.find(&request.into_inner().name)?;
        let explained = self.explained.lock().unwrap().clone().unwrap_or_default();
        Ok(Response::new(ExplainPoolResponse { pool: Some(pool), ..explained }))
    }

    async fn list_nodes(&self, request: Request<ListNodesRequest>) -> Answer<ListNodesResponse> {
        self.listed.lock().unwrap().push(request.into_inner());
        let nodes = self.nodes.lock().unwrap().clone();
        Ok(Response::new(ListNodesResponse { nodes, next_page_token: String::new() }))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Answer<GetNodeResponse> {
        let id = request.into_inner().id;
        let found = self.nodes.lock().unwrap().iter().find(|node| node.id == id).cloned();
        found
            .map(|node| Response::new(GetNodeResponse { node: Some(node) }))
            .ok_or_else(|| Status::not_found("there is no such node"))
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Answer<DrainNodeResponse> {
        let request = request.into_inner();
        self.drained.lock().unwrap().push(request.clone());
        let node = Node { id: request.id, state: NodeState::Draining.into(), running: 2, ..Node::default() };
        Ok(Response::new(DrainNodeResponse { node: Some(node) }))
    }

    async fn watch_pools(&self, request: Request<WatchPoolsRequest>) -> Answer<Self::WatchPoolsStream> {
        let names = request.into_inner().names;
        let mut pools = self.pools.lock().unwrap().clone();
        pools.retain(|pool| names.is_empty() || names.contains(&pool.name));
        // One look, and then a refusal, so that the watch ends.
        let events = [Ok(WatchPoolsResponse { pools }), Err(Status::not_found("the pool is gone"))];
        Ok(Response::new(stream::iter(events).boxed()))
    }

    async fn attach_node(&self, _: Request<Streaming<AttachNodeRequest>>) -> Answer<Self::AttachNodeStream> {
        Err(Status::unimplemented(""))
    }
}
