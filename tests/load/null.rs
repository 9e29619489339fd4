//! The null unary call: what tonic and the machine can do without any work behind a call. The server is a process of its own,
//! as a distributor is.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    process::Stdio,
    task::Poll,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::uri::PathAndQuery;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{NamedService, UnaryService},
    transport::{Channel, Server},
};
use tonic_prost::ProstCodec;

use crate::{
    closed::{self, Call, Loop},
    plan::{BYTES, CONNECTIONS, IN_FLIGHT},
    submission::channels,
};

const METHOD: &str = "/millrace.bench.v1.Null/Call";

// ── Server ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Serves the null call at a port that it prints, until standard input ends. That happens at the latest when the process
/// that started it is gone.
pub(crate) async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let served =
        Server::builder().tcp_nodelay(true).add_service(Null).serve_with_incoming(TcpListenerStream::new(listener));
    tokio::select! {
        result = served => Ok(result?),
        _ = async { tokio::io::stdin().read(&mut [0]).await } => Ok(()),
    }
}

#[derive(Clone)]
struct Null;

impl NamedService for Null {
    const NAME: &'static str = "millrace.bench.v1.Null";
}

impl tower::Service<http::Request<Body>> for Null {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let codec = ProstCodec::<(), Bytes>::default();
            Ok(tonic::server::Grpc::new(codec).unary(Answer, request).await)
        })
    }
}

struct Answer;

impl UnaryService<Bytes> for Answer {
    type Response = ();
    type Future = Ready<Result<Response<()>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(())))
    }
}

// ── Client ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Measures the call with 64 and with one in flight.
pub(crate) async fn measure(time: Duration) -> Result<(Loop, Loop)> {
    let (_server, endpoint) = start().await?;
    let channels = channels(&endpoint, CONNECTIONS).await?;
    let callers =
        |count: usize| (0..count).map(|one| NullCall::new(&channels[one % channels.len()])).collect::<Vec<_>>();
    let many = closed::for_time(callers(IN_FLIGHT), time / 5, time).await?;
    let one = closed::for_time(callers(1), time / 10, time / 4).await?;
    Ok((many, one))
}

/// Starts the server, which ends with the child that is returned.
async fn start() -> Result<(Child, String)> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("null-server")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting the null server")?;
    let stdout = child.stdout.take().context("the null server has no standard output")?;
    let mut endpoint = String::new();
    BufReader::new(stdout).read_line(&mut endpoint).await?;
    Ok((child, endpoint.trim().to_owned()))
}

struct NullCall {
    grpc: tonic::client::Grpc<Channel>,
    content: Bytes,
}

impl NullCall {
    fn new(channel: &Channel) -> Self {
        Self { grpc: tonic::client::Grpc::new(channel.clone()), content: Bytes::from(vec![b'x'; BYTES]) }
    }
}

impl Call for NullCall {
    async fn call(&mut self) -> Result<u64, Status> {
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Bytes, ()>::default();
        let request = Request::new(self.content.clone());
        self.grpc.unary(request, PathAndQuery::from_static(METHOD), codec).await?;
        Ok(1)
    }
}
