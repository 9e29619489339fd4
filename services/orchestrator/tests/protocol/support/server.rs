//! The scripted service and the way to it.

use std::sync::{Arc, Mutex};

use futures::{FutureExt, Stream, future::BoxFuture, stream::BoxStream};
use millrace_orchestrator::{Connect, Transport, TransportError};
use millrace_proto::distributor::v1::{
    self as wire, ConnectOrchestratorRequest, ConnectOrchestratorResponse,
    connect_orchestrator_request::Message as Request,
    distributor_service_server::{DistributorService, DistributorServiceServer},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};
use tower::{ServiceExt, util::BoxCloneService};

use super::Conversation;

type Answer<T> = Result<Response<T>, Status>;

/// The test's end of every way to a distributor.
pub struct Network {
    conversations: mpsc::Receiver<Conversation>,
    unreachable: Arc<Mutex<bool>>,
    tried: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
pub struct Connector {
    conversations: mpsc::Sender<Conversation>,
    unreachable: Arc<Mutex<bool>>,
    tried: Arc<Mutex<Vec<String>>>,
}

impl Network {
    pub fn new() -> (Self, Connector) {
        let (sender, conversations) = mpsc::channel(16);
        let (unreachable, tried) = (Arc::default(), Arc::default());
        let connector =
            Connector { conversations: sender, unreachable: Arc::clone(&unreachable), tried: Arc::clone(&tried) };
        (Self { conversations, unreachable, tried }, connector)
    }

    pub async fn accept(&mut self) -> Conversation {
        self.conversations.recv().await.expect("an orchestrator runs")
    }

    /// From now on no endpoint can be reached, or every one can.
    pub fn set_unreachable(&self, unreachable: bool) {
        *self.unreachable.lock().unwrap() = unreachable;
    }

    /// The endpoints tried so far.
    pub fn tried(&self) -> Vec<String> {
        self.tried.lock().unwrap().clone()
    }
}

impl Connector {
    /// The service behind an endpoint, for a test that puts a network in between.
    pub fn service(&self, endpoint: &str) -> DistributorServiceServer<Script> {
        let conversations = self.conversations.clone();
        DistributorServiceServer::new(Script { endpoint: endpoint.to_owned(), conversations })
            .max_decoding_message_size(16 << 20)
    }
}

impl Connect for Connector {
    fn connect(&self, endpoint: &str) -> BoxFuture<'static, Result<Transport, TransportError>> {
        self.tried.lock().unwrap().push(endpoint.to_owned());
        let unreachable = *self.unreachable.lock().unwrap();
        let service =
            ServiceExt::<http::Request<tonic::body::Body>>::map_err(self.service(endpoint), |never| match never {});
        async move {
            match unreachable {
                true => Err(TransportError::new("unreachable")),
                false => Ok(BoxCloneService::new(service)),
            }
        }
        .boxed()
    }
}

pub struct Script {
    endpoint: String,
    conversations: mpsc::Sender<Conversation>,
}

fn no<T>() -> Answer<T> {
    Err(Status::unimplemented("not part of the script"))
}

#[tonic::async_trait]
impl DistributorService for Script {
    type WatchTaskStream = BoxStream<'static, Result<wire::WatchTaskResponse, Status>>;
    type ConnectOrchestratorStream = BoxStream<'static, Result<ConnectOrchestratorResponse, Status>>;

    async fn connect_orchestrator(
        &self,
        request: tonic::Request<Streaming<ConnectOrchestratorRequest>>,
    ) -> Answer<Self::ConnectOrchestratorStream> {
        let mut requests = request.into_inner();
        let Some(Request::Hello(hello)) = requests.message().await?.and_then(|message| message.message) else {
            return Err(Status::failed_precondition("Hello comes first"));
        };
        let (responses, stream) = mpsc::channel(1024);
        let endpoint = self.endpoint.clone();
        let conversation =
            Conversation { endpoint, hello, requests, responses, answers_heartbeats: true, log: Vec::new() };
        self.conversations.send(conversation).await.map_err(|_| Status::unavailable("the test is over"))?;
        let stream: std::pin::Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(ReceiverStream::new(stream));
        Ok(Response::new(stream))
    }

    async fn submit_task(&self, _: tonic::Request<wire::SubmitTaskRequest>) -> Answer<wire::SubmitTaskResponse> {
        no()
    }

    async fn batch_submit_tasks(
        &self,
        _: tonic::Request<wire::BatchSubmitTasksRequest>,
    ) -> Answer<wire::BatchSubmitTasksResponse> {
        no()
    }

    async fn get_task(&self, _: tonic::Request<wire::GetTaskRequest>) -> Answer<wire::GetTaskResponse> {
        no()
    }

    async fn list_tasks(&self, _: tonic::Request<wire::ListTasksRequest>) -> Answer<wire::ListTasksResponse> {
        no()
    }

    async fn watch_task(&self, _: tonic::Request<wire::WatchTaskRequest>) -> Answer<Self::WatchTaskStream> {
        no()
    }

    async fn cancel_task(&self, _: tonic::Request<wire::CancelTaskRequest>) -> Answer<wire::CancelTaskResponse> {
        no()
    }

    async fn retry_task(&self, _: tonic::Request<wire::RetryTaskRequest>) -> Answer<wire::RetryTaskResponse> {
        no()
    }

    async fn explain_task(&self, _: tonic::Request<wire::ExplainTaskRequest>) -> Answer<wire::ExplainTaskResponse> {
        no()
    }

    async fn list_routes(&self, _: tonic::Request<wire::ListRoutesRequest>) -> Answer<wire::ListRoutesResponse> {
        no()
    }

    async fn set_route(&self, _: tonic::Request<wire::SetRouteRequest>) -> Answer<wire::SetRouteResponse> {
        no()
    }

    async fn delete_route(&self, _: tonic::Request<wire::DeleteRouteRequest>) -> Answer<wire::DeleteRouteResponse> {
        no()
    }

    async fn get_status(&self, _: tonic::Request<wire::GetStatusRequest>) -> Answer<wire::GetStatusResponse> {
        no()
    }
}
