//! `millrace.scaler.v1.ScalerService`: one file for each concern.

mod attach;
mod create;
mod delete;
mod drain;
mod explain;
mod nodes;
mod overrides;
mod page;
mod pools;
mod references;
mod spec;
mod update;

use std::sync::Arc;

use millrace_proto::scaler::v1::{self as proto, scaler_service_server::ScalerService};
use millrace_runtime::{Context, status::Fault};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    calls::Calls,
    leader::{Desk, Providers},
    relay::Relay,
    watch::{self, Watch},
};

/// What the calls work with.
pub(crate) struct Rpc {
    pub(crate) context: Context,
    pub(crate) calls: Calls,
    pub(crate) desk: Desk,
    pub(crate) providers: Providers,
    pub(crate) relay: Relay,
    pub(crate) watch: Arc<Watch>,
    /// Bounds the nodes' streams.
    pub(crate) seats: Arc<Semaphore>,
}

#[tonic::async_trait]
impl ScalerService for Rpc {
    async fn create_pool(
        &self,
        request: Request<proto::CreatePoolRequest>,
    ) -> Result<Response<proto::CreatePoolResponse>, Status> {
        answer(create::create(self, request.into_inner()).await)
    }

    async fn get_pool(
        &self,
        request: Request<proto::GetPoolRequest>,
    ) -> Result<Response<proto::GetPoolResponse>, Status> {
        answer(pools::get(self, request.into_inner()).await)
    }

    async fn list_pools(
        &self,
        request: Request<proto::ListPoolsRequest>,
    ) -> Result<Response<proto::ListPoolsResponse>, Status> {
        answer(pools::list(self, request.into_inner()).await)
    }

    async fn update_pool(
        &self,
        request: Request<proto::UpdatePoolRequest>,
    ) -> Result<Response<proto::UpdatePoolResponse>, Status> {
        answer(update::update(self, request.into_inner()).await)
    }

    async fn delete_pool(
        &self,
        request: Request<proto::DeletePoolRequest>,
    ) -> Result<Response<proto::DeletePoolResponse>, Status> {
        answer(delete::delete(self, request.into_inner()).await)
    }

    async fn override_pool(
        &self,
        request: Request<proto::OverridePoolRequest>,
    ) -> Result<Response<proto::OverridePoolResponse>, Status> {
        answer(overrides::set(self, request.into_inner()).await)
    }

    async fn clear_pool_override(
        &self,
        request: Request<proto::ClearPoolOverrideRequest>,
    ) -> Result<Response<proto::ClearPoolOverrideResponse>, Status> {
        answer(overrides::clear(self, request.into_inner()).await)
    }

    async fn explain_pool(
        &self,
        request: Request<proto::ExplainPoolRequest>,
    ) -> Result<Response<proto::ExplainPoolResponse>, Status> {
        answer(explain::explain(self, request.into_inner()).await)
    }

    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::ListNodesResponse>, Status> {
        answer(nodes::list(self, request).await)
    }

    async fn get_node(
        &self,
        request: Request<proto::GetNodeRequest>,
    ) -> Result<Response<proto::GetNodeResponse>, Status> {
        answer(nodes::get(self, request).await)
    }

    async fn drain_node(
        &self,
        request: Request<proto::DrainNodeRequest>,
    ) -> Result<Response<proto::DrainNodeResponse>, Status> {
        answer(drain::drain(self, request.into_inner()).await)
    }

    type WatchPoolsStream = watch::Responses;

    async fn watch_pools(
        &self,
        request: Request<proto::WatchPoolsRequest>,
    ) -> Result<Response<Self::WatchPoolsStream>, Status> {
        answer(pools::watch(self, request.into_inner()))
    }

    type AttachNodeStream = attach::Responses;

    async fn attach_node(
        &self,
        request: Request<Streaming<proto::AttachNodeRequest>>,
    ) -> Result<Response<Self::AttachNodeStream>, Status> {
        answer(attach::attach(self, request).await)
    }
}

fn answer<T>(result: Result<T, Fault>) -> Result<Response<T>, Status> {
    Ok(Response::new(result?))
}

/// NOT_FOUND for a pool.
fn no_pool(name: &str) -> Fault {
    Fault::not_found("POOL_NOT_FOUND", format!("there is no pool `{name}`")).with_metadata("pool", name)
}

/// NOT_FOUND for a node.
fn no_node(id: &str) -> Fault {
    Fault::not_found("NODE_NOT_FOUND", format!("there is no node {id}")).with_metadata("node", id)
}

/// FAILED_PRECONDITION for a row that this build cannot read.
fn unreadable(pool: &str, error: String) -> Fault {
    let message = format!("the pool `{pool}` cannot be read by this build: {error}");
    Fault::precondition("ROW_UNREADABLE", message).with_metadata("pool", pool)
}
