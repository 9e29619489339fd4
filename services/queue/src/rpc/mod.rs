//! `millrace.queue.v1.QueueService`: one file for each concern.

mod change;
mod create;
mod delete;
mod page;
mod pause;
mod read;

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use millrace_proto::queue::v1::{self as proto, ExchangeRequest, ExchangeResponse, queue_service_server::QueueService};
use millrace_runtime::status::Fault;
use tonic::{Request, Response, Status, Streaming};

use crate::{Host, calls::Calls, watch, watch::Watch};

/// What the calls work with.
pub(crate) struct Rpc {
    pub(crate) calls: Calls,
    pub(crate) host: Host,
    pub(crate) watch: Arc<Watch>,
}

impl std::fmt::Debug for Rpc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rpc").field("host", &self.host).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl QueueService for Rpc {
    async fn create_queue(
        &self,
        request: Request<proto::CreateQueueRequest>,
    ) -> Result<Response<proto::CreateQueueResponse>, Status> {
        answer(create::create(self, request.into_inner()).await)
    }

    async fn get_queue(
        &self,
        request: Request<proto::GetQueueRequest>,
    ) -> Result<Response<proto::GetQueueResponse>, Status> {
        answer(read::get(self, request.into_inner()).await)
    }

    async fn list_queues(
        &self,
        request: Request<proto::ListQueuesRequest>,
    ) -> Result<Response<proto::ListQueuesResponse>, Status> {
        answer(read::list(self, request.into_inner()).await)
    }

    async fn update_queue(
        &self,
        request: Request<proto::UpdateQueueRequest>,
    ) -> Result<Response<proto::UpdateQueueResponse>, Status> {
        answer(change::update(self, request.into_inner()).await)
    }

    async fn delete_queue(
        &self,
        request: Request<proto::DeleteQueueRequest>,
    ) -> Result<Response<proto::DeleteQueueResponse>, Status> {
        answer(delete::delete(self, request.into_inner()).await)
    }

    async fn pause_queue(
        &self,
        request: Request<proto::PauseQueueRequest>,
    ) -> Result<Response<proto::PauseQueueResponse>, Status> {
        answer(pause::pause(self, request.into_inner()).await)
    }

    async fn resume_queue(
        &self,
        request: Request<proto::ResumeQueueRequest>,
    ) -> Result<Response<proto::ResumeQueueResponse>, Status> {
        answer(pause::resume(self, request.into_inner()).await)
    }

    type WatchQueuesStream = watch::Responses;

    async fn watch_queues(
        &self,
        request: Request<proto::WatchQueuesRequest>,
    ) -> Result<Response<Self::WatchQueuesStream>, Status> {
        answer(read::watch(self, request.into_inner()))
    }

    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<ExchangeResponse, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        Ok(Response::new(self.host.exchange(request.into_inner())))
    }
}

fn answer<T>(result: Result<T, Fault>) -> Result<Response<T>, Status> {
    Ok(Response::new(result?))
}

/// NOT_FOUND for a queue.
fn no_queue(name: &str) -> Fault {
    Fault::not_found("QUEUE_NOT_FOUND", format!("there is no queue `{name}`")).with_metadata("queue", name)
}
