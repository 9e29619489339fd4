//! A scaler that does what a test says, message by message: a fake of the contract, of which only the nodes' streams live.

#![allow(dead_code, unreachable_pub, missing_docs)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture, stream::BoxStream};
use millrace_proto::scaler::v1::{
    self as wire, AttachNodeRequest, AttachNodeResponse, NodeDrain, NodeGoAway, NodeHealth, NodeHello, NodeResume,
    NodeWelcome, WatchPoolsResponse,
    attach_node_request::Message as Request,
    attach_node_response::Message as Response,
    scaler_service_server::{ScalerService, ScalerServiceServer},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{ServiceExt, util::BoxCloneService};

use super::lib::{Connect, Transport, TransportError};

/// Longer than anything a test waits for.
const NEVER: Duration = Duration::from_secs(3600);

type Answer<T> = Result<tonic::Response<T>, Status>;

/// The test's end of every way to a scaler.
pub struct Scaler {
    streams: mpsc::Receiver<NodeStream>,
    away: Arc<Mutex<Option<Status>>>,
}

/// The node's end of it.
#[derive(Clone)]
pub struct ToScaler {
    streams: mpsc::Sender<NodeStream>,
    away: Arc<Mutex<Option<Status>>>,
}

/// One stream of a node, from the scaler's side.
pub struct NodeStream {
    pub hello: NodeHello,
    requests: Streaming<AttachNodeRequest>,
    responses: mpsc::Sender<Result<AttachNodeResponse, Status>>,
    /// Messages that were read.
    pub log: Vec<Request>,
}

/// The refusal of a node with this reason.
pub fn refusal(reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, "millrace", []);
    Status::with_error_details(tonic::Code::FailedPrecondition, "not on the books", details)
}

impl Scaler {
    pub fn new() -> (Self, ToScaler) {
        let (sender, streams) = mpsc::channel(16);
        let away = Arc::default();
        let to = ToScaler { streams: sender, away: Arc::clone(&away) };
        (Self { streams, away }, to)
    }

    /// The next stream; its hello has been read.
    pub async fn accept(&mut self) -> NodeStream {
        timeout(NEVER, self.streams.recv()).await.expect("a node attaches").expect("a node lives")
    }

    /// The next stream, welcomed.
    pub async fn welcome(&mut self) -> NodeStream {
        let mut stream = self.accept().await;
        stream.welcome().await;
        stream
    }

    /// From now on every hello is refused with this, or none.
    pub fn refuse(&self, status: Option<Status>) {
        *self.away.lock().unwrap() = status;
    }
}

impl NodeStream {
    pub async fn send(&mut self, message: Response) {
        self.responses.send(Ok(AttachNodeResponse { message: Some(message) })).await.expect("stream is open");
    }

    pub async fn welcome(&mut self) {
        let health_interval = Some(prost_types::Duration { seconds: 10, nanos: 0 });
        let node_id = match self.hello.node_id.as_str() {
            "" => uuid::Uuid::from_u128(77).to_string(),
            id => id.to_owned(),
        };
        self.send(Response::Welcome(NodeWelcome { node_id, health_interval })).await;
    }

    pub async fn drain(&mut self, reason: &str) {
        self.send(Response::Drain(NodeDrain { reason: reason.into() })).await;
    }

    pub async fn resume(&mut self) {
        self.send(Response::Resume(NodeResume {})).await;
    }

    pub async fn go_away(mut self, seconds: i64) {
        let reconnect_after = Some(prost_types::Duration { seconds, nanos: 0 });
        self.send(Response::GoAway(NodeGoAway { reason: "deploy".into(), reconnect_after })).await;
        // The stream stays up until the node leaves it.
        while let Ok(Some(_)) = self.requests.message().await {}
    }

    pub async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.expect("stream is open");
    }

    /// Reads until a message that `pick` takes.
    pub async fn next<T>(&mut self, pick: impl Fn(&Request) -> Option<T>) -> T {
        let read = async {
            loop {
                let message = self.requests.message().await.expect("stream is whole").expect("stream is open");
                let message = message.message.expect("message is known");
                let picked = pick(&message);
                self.log.push(message);
                if let Some(picked) = picked {
                    return picked;
                }
            }
        };
        timeout(NEVER, read).await.expect("the message comes")
    }

    pub async fn ready(&mut self) {
        self.next(|message| matches!(message, Request::Ready(_)).then_some(())).await;
    }

    pub async fn drained(&mut self) {
        self.next(|message| matches!(message, Request::Drained(_)).then_some(())).await;
    }

    pub async fn health(&mut self) -> NodeHealth {
        self.next(|message| match message {
            Request::Health(health) => Some(health.clone()),
            _ => None,
        })
        .await
    }

    /// The next health with so many that run.
    pub async fn running(&mut self, count: i32) -> NodeHealth {
        loop {
            let health = self.health().await;
            if health.running == count {
                return health;
            }
        }
    }

    pub async fn boot(&mut self) -> (String, Option<i32>) {
        self.next(|message| match message {
            Request::Boot(boot) => Some((boot.stage.clone(), boot.percent)),
            _ => None,
        })
        .await
    }

    pub async fn boot_failed(&mut self) -> String {
        self.next(|message| match message {
            Request::BootFailed(failed) => Some(failed.error.clone()),
            _ => None,
        })
        .await
    }

    /// Reads to the end, which the node makes by leaving in order; nothing more may come.
    pub async fn over(mut self) {
        let end = timeout(NEVER, self.requests.message()).await.expect("the node leaves");
        assert_eq!(end.expect("in order"), None);
    }
}

impl ToScaler {
    /// The service, for a test that puts a network in between.
    pub fn service(&self) -> ScalerServiceServer<Self> {
        ScalerServiceServer::new(self.clone())
    }
}

impl Connect for ToScaler {
    fn connect(&self, _: &str) -> BoxFuture<'static, Result<Transport, TransportError>> {
        let service = ServiceExt::<http::Request<tonic::body::Body>>::map_err(self.service(), |never| match never {});
        async move { Ok(BoxCloneService::new(service)) }.boxed()
    }
}

fn no<T>() -> Answer<T> {
    Err(Status::unimplemented("not part of the fake"))
}

#[tonic::async_trait]
impl ScalerService for ToScaler {
    type WatchPoolsStream = BoxStream<'static, Result<WatchPoolsResponse, Status>>;
    type AttachNodeStream = BoxStream<'static, Result<AttachNodeResponse, Status>>;

    async fn attach_node(
        &self,
        request: tonic::Request<Streaming<AttachNodeRequest>>,
    ) -> Answer<Self::AttachNodeStream> {
        if let Some(status) = self.away.lock().unwrap().clone() {
            return Err(status);
        }
        let mut requests = request.into_inner();
        let Some(Request::Hello(hello)) = requests.message().await?.and_then(|message| message.message) else {
            return Err(Status::failed_precondition("NodeHello comes first"));
        };
        let (responses, stream) = mpsc::channel(64);
        let stream_of = NodeStream { hello, requests, responses, log: Vec::new() };
        self.streams.send(stream_of).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn create_pool(&self, _: tonic::Request<wire::CreatePoolRequest>) -> Answer<wire::CreatePoolResponse> {
        no()
    }

    async fn get_pool(&self, _: tonic::Request<wire::GetPoolRequest>) -> Answer<wire::GetPoolResponse> {
        no()
    }

    async fn list_pools(&self, _: tonic::Request<wire::ListPoolsRequest>) -> Answer<wire::ListPoolsResponse> {
        no()
    }

    async fn update_pool(&self, _: tonic::Request<wire::UpdatePoolRequest>) -> Answer<wire::UpdatePoolResponse> {
        no()
    }

    async fn delete_pool(&self, _: tonic::Request<wire::DeletePoolRequest>) -> Answer<wire::DeletePoolResponse> {
        no()
    }

    async fn override_pool(&self, _: tonic::Request<wire::OverridePoolRequest>) -> Answer<wire::OverridePoolResponse> {
        no()
    }

    async fn clear_pool_override(
        &self,
        _: tonic::Request<wire::ClearPoolOverrideRequest>,
    ) -> Answer<wire::ClearPoolOverrideResponse> {
        no()
    }

    async fn explain_pool(&self, _: tonic::Request<wire::ExplainPoolRequest>) -> Answer<wire::ExplainPoolResponse> {
        no()
    }

    async fn list_nodes(&self, _: tonic::Request<wire::ListNodesRequest>) -> Answer<wire::ListNodesResponse> {
        no()
    }

    async fn get_node(&self, _: tonic::Request<wire::GetNodeRequest>) -> Answer<wire::GetNodeResponse> {
        no()
    }

    async fn drain_node(&self, _: tonic::Request<wire::DrainNodeRequest>) -> Answer<wire::DrainNodeResponse> {
        no()
    }

    async fn watch_pools(&self, _: tonic::Request<wire::WatchPoolsRequest>) -> Answer<Self::WatchPoolsStream> {
        no()
    }
}
