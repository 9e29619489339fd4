//! A service whose calls wait at a gate and whose streams the test feeds, and a client for it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::http::{self, uri::PathAndQuery},
    server::NamedService,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::Service;

type Codec = ProstCodec<(), ()>;
type Answer = Result<(), Status>;

/// `test.Gate`: `Wait` answers when the gate is open, `Panic` panics, `Stream` sends what [`Gate::send`] says.
#[derive(Clone)]
pub(crate) struct Gate {
    entered: Arc<Semaphore>,
    open: Arc<Semaphore>,
    streams: Arc<Mutex<Vec<mpsc::Sender<Answer>>>>,
}

impl Default for Gate {
    fn default() -> Gate {
        let closed = || Arc::new(Semaphore::new(0));
        Gate { entered: closed(), open: closed(), streams: Arc::default() }
    }
}

impl Gate {
    /// Waits until one more call has come to the gate.
    pub(crate) async fn entered(&self) {
        self.entered.acquire().await.unwrap().forget();
    }

    /// Lets every call pass from now on.
    pub(crate) fn open(&self) {
        self.open.add_permits(1_000);
    }

    /// Sends a message on every open stream.
    pub(crate) async fn send(&self) {
        let streams = self.streams.lock().unwrap().clone();
        for stream in streams {
            stream.send(Ok(())).await.unwrap();
        }
    }

    /// Ends every open stream with OK.
    pub(crate) fn end_streams(&self) {
        self.streams.lock().unwrap().clear();
    }

    async fn wait(self) -> Result<Response<()>, Status> {
        self.entered.add_permits(1);
        self.open.acquire().await.unwrap().forget();
        Ok(Response::new(()))
    }

    fn stream(self) -> Result<Response<ReceiverStream<Answer>>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        self.streams.lock().unwrap().push(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl NamedService for Gate {
    const NAME: &'static str = "test.Gate";
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for Gate {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let gate = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Codec::default());
            Ok(match request.uri().path() {
                "/test.Gate/Wait" => {
                    let handler = tower::service_fn(move |_: Request<()>| gate.clone().wait());
                    grpc.unary(handler, request).await
                }
                "/test.Gate/Stream" => grpc.server_streaming(ServerStream(gate), request).await,
                "/test.Gate/Panic" => panic!("the test asked for it"),
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

struct ServerStream(Gate);

impl tonic::server::ServerStreamingService<()> for ServerStream {
    type Response = ();
    type ResponseStream = ReceiverStream<Answer>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(self.0.clone().stream())
    }
}

/// Opens a connection of its own.
pub(crate) async fn connect(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// Calls a unary method of the gate.
pub(crate) async fn call(channel: Channel, method: &'static str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path: PathAndQuery = format!("/test.Gate/{method}").parse().unwrap();
    grpc.unary(Request::new(()), path, Codec::default()).await.map(Response::into_inner)
}

/// Opens a stream from the gate.
pub(crate) async fn open_stream(channel: Channel) -> Result<Streaming<()>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static("/test.Gate/Stream");
    grpc.server_streaming(Request::new(()), path, Codec::default()).await.map(Response::into_inner)
}
