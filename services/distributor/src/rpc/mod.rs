//! The gRPC handlers: thin, one file per concern.

mod explain;
mod list;
mod orchestrator;
mod peer;
mod quarantine;
mod room;
mod routes;
mod status;
mod tasks;
mod watch;

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use millrace_proto::distributor::v1::{
    self as wire, distributor_service_server::DistributorService, peer_service_server::PeerService,
    quarantine_service_server::QuarantineService,
};
use millrace_proto::queue::v1::{ExchangeRequest, ExchangeResponse};
use tonic::{Request, Response, Status, Streaming};

use crate::shared::Shared;

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers `DistributorService`.
pub(crate) struct Tasks(Arc<Shared>);

/// Answers `QuarantineService`.
pub(crate) struct Quarantine(Arc<Shared>);

/// Answers `PeerService`.
pub(crate) struct Peer(Arc<Shared>);

impl Tasks {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Quarantine {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Peer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

#[tonic::async_trait]
impl DistributorService for Tasks {
    async fn submit_task(
        &self,
        request: Request<wire::SubmitTaskRequest>,
    ) -> Result<Response<wire::SubmitTaskResponse>, Status> {
        Ok(Response::new(tasks::submit(&self.0, request).await?))
    }

    async fn batch_submit_tasks(
        &self,
        request: Request<wire::BatchSubmitTasksRequest>,
    ) -> Result<Response<wire::BatchSubmitTasksResponse>, Status> {
        Ok(Response::new(tasks::batch_submit(&self.0, request).await?))
    }

    async fn get_task(
        &self,
        request: Request<wire::GetTaskRequest>,
    ) -> Result<Response<wire::GetTaskResponse>, Status> {
        Ok(Response::new(tasks::get(&self.0, request.into_inner()).await?))
    }

    async fn list_tasks(
        &self,
        request: Request<wire::ListTasksRequest>,
    ) -> Result<Response<wire::ListTasksResponse>, Status> {
        Ok(Response::new(list::tasks(&self.0, request.into_inner()).await?))
    }

    type WatchTaskStream = Answers<wire::WatchTaskResponse>;

    async fn watch_task(
        &self,
        request: Request<wire::WatchTaskRequest>,
    ) -> Result<Response<Self::WatchTaskStream>, Status> {
        Ok(Response::new(watch::task(&self.0, request.into_inner()).await?))
    }

    async fn cancel_task(
        &self,
        request: Request<wire::CancelTaskRequest>,
    ) -> Result<Response<wire::CancelTaskResponse>, Status> {
        Ok(Response::new(tasks::cancel(&self.0, request.into_inner()).await?))
    }

    async fn retry_task(
        &self,
        request: Request<wire::RetryTaskRequest>,
    ) -> Result<Response<wire::RetryTaskResponse>, Status> {
        Ok(Response::new(tasks::retry(&self.0, request.into_inner()).await?))
    }

    async fn explain_task(
        &self,
        request: Request<wire::ExplainTaskRequest>,
    ) -> Result<Response<wire::ExplainTaskResponse>, Status> {
        Ok(Response::new(explain::task(&self.0, request.into_inner()).await?))
    }

    async fn list_routes(
        &self,
        request: Request<wire::ListRoutesRequest>,
    ) -> Result<Response<wire::ListRoutesResponse>, Status> {
        Ok(Response::new(routes::list(&self.0, request.into_inner()).await?))
    }

    async fn set_route(
        &self,
        request: Request<wire::SetRouteRequest>,
    ) -> Result<Response<wire::SetRouteResponse>, Status> {
        Ok(Response::new(routes::set(&self.0, request.into_inner()).await?))
    }

    async fn delete_route(
        &self,
        request: Request<wire::DeleteRouteRequest>,
    ) -> Result<Response<wire::DeleteRouteResponse>, Status> {
        Ok(Response::new(routes::delete(&self.0, request.into_inner()).await?))
    }

    type ConnectOrchestratorStream = Answers<wire::ConnectOrchestratorResponse>;

    async fn connect_orchestrator(
        &self,
        request: Request<Streaming<wire::ConnectOrchestratorRequest>>,
    ) -> Result<Response<Self::ConnectOrchestratorStream>, Status> {
        Ok(Response::new(orchestrator::connect(&self.0, request.into_inner()).await?))
    }

    async fn get_status(
        &self,
        _request: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
        Ok(Response::new(status::get(&self.0).await?))
    }
}

#[tonic::async_trait]
impl QuarantineService for Quarantine {
    async fn list_quarantined_rows(
        &self,
        request: Request<wire::ListQuarantinedRowsRequest>,
    ) -> Result<Response<wire::ListQuarantinedRowsResponse>, Status> {
        Ok(Response::new(quarantine::list(&self.0, request.into_inner()).await?))
    }

    async fn get_quarantined_row(
        &self,
        request: Request<wire::GetQuarantinedRowRequest>,
    ) -> Result<Response<wire::GetQuarantinedRowResponse>, Status> {
        Ok(Response::new(quarantine::get(&self.0, request.into_inner()).await?))
    }

    async fn repair_quarantined_row(
        &self,
        request: Request<wire::RepairQuarantinedRowRequest>,
    ) -> Result<Response<wire::RepairQuarantinedRowResponse>, Status> {
        Ok(Response::new(quarantine::repair(&self.0, request.into_inner()).await?))
    }

    async fn release_quarantined_rows(
        &self,
        request: Request<wire::ReleaseQuarantinedRowsRequest>,
    ) -> Result<Response<wire::ReleaseQuarantinedRowsResponse>, Status> {
        Ok(Response::new(quarantine::release(&self.0, request.into_inner()).await?))
    }

    async fn discard_quarantined_rows(
        &self,
        request: Request<wire::DiscardQuarantinedRowsRequest>,
    ) -> Result<Response<wire::DiscardQuarantinedRowsResponse>, Status> {
        Ok(Response::new(quarantine::discard(&self.0, request.into_inner()).await?))
    }
}

#[tonic::async_trait]
impl PeerService for Peer {
    type ExchangeStream = Answers<ExchangeResponse>;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        Ok(Response::new(self.0.host.exchange(request.into_inner())))
    }

    type WatchOutputStream = Answers<wire::WatchOutputResponse>;

    async fn watch_output(
        &self,
        request: Request<wire::WatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
        Ok(Response::new(peer::watch_output(&self.0, request.into_inner()).await?))
    }
}
