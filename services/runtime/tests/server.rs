//! The server's promises over real sockets: admission, drain, panics, metrics, health and reflection.

mod gate;

use std::time::{Duration, Instant};

use gate::{Gate, call, connect, open_stream};
use millrace_runtime::{
    health::Health,
    metrics::Metrics,
    server::{self, ServeOptions},
    shutdown::Shutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, service::Routes, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt;

const QUEUE: &str = "millrace.queue.v1.QueueService";
const HOUR: Duration = Duration::from_secs(3600);

struct Running {
    address: String,
    gate: Gate,
    health: Health,
    metrics: Metrics,
    shutdown: Shutdown,
    server: JoinHandle<()>,
}

async fn start(options: ServeOptions, grace: Duration) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (gate, health, metrics, shutdown) =
        (Gate::default(), Health::new(&[QUEUE]), Metrics::new(), Shutdown::new(grace));
    let mut services = Routes::builder();
    services.add_service(gate.clone());
    let routes = server::routes(services, &health, &[QUEUE]).unwrap();
    let serving = server::serve(listener, routes, options, health.clone(), metrics.clone(), shutdown.clone());
    let server = tokio::spawn(async move { serving.await.unwrap() });
    Running { address, gate, health, metrics, shutdown, server }
}

fn one_at_a_time() -> ServeOptions {
    ServeOptions { max_concurrent_requests: 1, retry_after: Duration::from_millis(250), ..ServeOptions::default() }
}

fn whole() -> HealthCheckRequest {
    HealthCheckRequest { service: String::new() }
}

async fn check(channel: Channel) -> ServingStatus {
    HealthClient::new(channel).check(whole()).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn overload_is_answered_with_resource_exhausted_and_a_delay_on_every_connection() {
    let running = start(one_at_a_time(), HOUR).await;
    let first = tokio::spawn(call(connect(&running.address).await, "Wait"));
    running.gate.entered().await;

    let other_connection = connect(&running.address).await;
    let status = call(other_connection.clone(), "Wait").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(250)));
    assert_eq!(details.error_info().unwrap().reason, "OVERLOADED");
    assert_eq!(check(other_connection.clone()).await, ServingStatus::NotServing, "health is always answered");

    running.gate.open();
    first.await.unwrap().unwrap();
    call(other_connection, "Wait").await.unwrap();
    assert!(running.metrics.encode().contains("millrace_grpc_refused_total{reason=\"overload\"} 1\n"));
}

#[tokio::test]
async fn open_streams_hold_no_place() {
    let running = start(one_at_a_time(), HOUR).await;
    let channel = connect(&running.address).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(open_stream(channel.clone()).await.unwrap());
    }
    running.gate.open();
    call(channel.clone(), "Wait").await.unwrap();
    assert!(
        running.metrics.encode().contains("millrace_grpc_requests_open{service=\"unknown\",method=\"unknown\"} 5\n")
    );
}

#[tokio::test]
async fn a_callers_place_is_free_again_when_its_answer_does_not_begin_in_time() {
    let options = ServeOptions { request_timeout: Duration::from_millis(50), ..one_at_a_time() };
    let running = start(options, HOUR).await;
    let channel = connect(&running.address).await;
    let status = call(channel.clone(), "Wait").await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    running.gate.open();
    call(channel, "Wait").await.unwrap();
}

#[tokio::test]
async fn a_panic_fails_its_own_call_alone() {
    let running = start(one_at_a_time(), HOUR).await;
    let channel = connect(&running.address).await;
    running.gate.open();
    let status = call(channel.clone(), "Panic").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "PANIC");
    call(channel, "Wait").await.unwrap();
}

#[tokio::test]
async fn a_drain_closes_the_door_but_cuts_no_stream_before_the_grace_ends() {
    let running = start(ServeOptions::default(), HOUR).await;
    running.health.set_database(true);
    let channel = connect(&running.address).await;
    let mut stream = open_stream(channel.clone()).await.unwrap();
    let mut watch = HealthClient::new(channel).watch(whole()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    running.shutdown.begin();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(
        watch.message().await.unwrap().is_none(),
        "a watch ends by itself, or every drain would last its whole grace"
    );
    until_refused(&running.address).await;

    running.gate.send().await;
    assert!(stream.message().await.unwrap().is_some(), "the stream still works");
    assert!(!running.server.is_finished());
    running.gate.end_streams();
    assert!(stream.message().await.unwrap().is_none(), "the service ended it, with status OK");
    running.server.await.unwrap();
}

#[tokio::test]
async fn what_is_open_when_the_grace_is_over_is_cut() {
    let grace = Duration::from_millis(200);
    let running = start(ServeOptions::default(), grace).await;
    let mut stream = open_stream(connect(&running.address).await).await.unwrap();
    let began = Instant::now();
    running.shutdown.begin();
    let status = stream.message().await.unwrap_err();
    assert!(began.elapsed() >= grace, "cut after {:?}: {status}", began.elapsed());
    running.server.await.unwrap();
}

#[tokio::test]
async fn a_second_signal_cuts_at_once() {
    let running = start(ServeOptions::default(), HOUR).await;
    let mut stream = open_stream(connect(&running.address).await).await.unwrap();
    running.shutdown.begin();
    running.shutdown.cut();
    stream.message().await.unwrap_err();
    running.server.await.unwrap();
}

#[tokio::test]
async fn stop_before_start_serves_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (health, shutdown) = (Health::new(&[]), Shutdown::new(HOUR));
    shutdown.begin();
    let (options, metrics) = (ServeOptions::default(), Metrics::new());
    server::serve(listener, Routes::default(), options, health.clone(), metrics, shutdown).await.unwrap();
    assert_eq!(health.state(), millrace_runtime::health::State::Draining);
}

#[tokio::test]
async fn calls_are_counted_by_known_method_and_code() {
    let running = start(ServeOptions::default(), HOUR).await;
    let channel = connect(&running.address).await;
    check(channel.clone()).await;
    let status = call(channel, "NoSuchMethod").await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let text = running.metrics.encode();
    for line in [
        r#"millrace_grpc_requests_total{service="grpc.health.v1.Health",method="Check",code="OK"} 1"#,
        r#"millrace_grpc_requests_total{service="unknown",method="unknown",code="UNIMPLEMENTED"} 1"#,
        r#"millrace_grpc_request_duration_seconds_count{service="grpc.health.v1.Health",method="Check"} 1"#,
        "millrace_grpc_connections 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
}

#[tokio::test]
async fn reflection_lists_this_process_only_and_shows_the_public_contract() {
    let running = start(ServeOptions::default(), HOUR).await;
    let (requests, receiver) = tokio::sync::mpsc::channel(2);
    let mut client = ServerReflectionClient::new(connect(&running.address).await);
    let mut answers = client.server_reflection_info(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut ask = async |message| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        requests.send(request).await.unwrap();
        answers.next().await.unwrap().unwrap().message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await else {
        panic!("a list was asked for")
    };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, ["grpc.health.v1.Health", QUEUE]);
    // The details of errors too, or a client that knows only what it is told here shows them as bytes.
    for symbol in [QUEUE, "google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo"] {
        let symbol = MessageRequest::FileContainingSymbol(symbol.to_owned());
        assert!(matches!(ask(symbol).await, MessageResponse::FileDescriptorResponse(_)));
    }
}

/// Waits until the listener is closed: each connect either fails or is answered by a reset, and the loop is driven by
/// these events.
async fn until_refused(address: &str) {
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
