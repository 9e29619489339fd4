//! /metrics and /healthz over a real socket.

use std::time::Duration;

use millrace_runtime::{health::Health, http, metrics::Metrics, shutdown::Shutdown};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const GRACE: Duration = Duration::from_secs(3600);

struct Running {
    address: std::net::SocketAddr,
    health: Health,
    metrics: Metrics,
    shutdown: Shutdown,
    server: JoinHandle<()>,
}

async fn start() -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (health, metrics, shutdown) = (Health::new(&[]), Metrics::new(), Shutdown::new(GRACE));
    let serving = http::serve(listener, health.clone(), metrics.clone(), shutdown.clone());
    let server = tokio::spawn(async move { serving.await.unwrap() });
    Running { address, health, metrics, shutdown, server }
}

impl Running {
    /// The whole answer to a GET, headers included, in lower case where HTTP does not care.
    async fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[tokio::test]
async fn healthz_tells_whether_and_why_not() {
    let running = start().await;
    let down = running.get("/healthz", "").await;
    assert!(down.starts_with("HTTP/1.1 503 ") && down.ends_with("the database does not answer\n"), "{down}");
    running.health.set_database(true);
    let up = running.get("/healthz", "").await;
    assert!(up.starts_with("HTTP/1.1 200 ") && up.ends_with("\r\n\r\nok\n"), "{up}");
    running.health.set_draining();
    let draining = running.get("/healthz", "").await;
    assert!(draining.starts_with("HTTP/1.1 503 ") && draining.ends_with("draining\n"), "{draining}");
    assert!(running.get("/else", "").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn metrics_come_in_the_format_that_was_asked_for() {
    let running = start().await;
    running.metrics.set_build("1.2.3");
    let text = running.get("/metrics", "").await;
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("# TYPE millrace_build_info gauge\nmillrace_build_info{version=\"1.2.3\"} 1\n"), "{text}");
    let open = running.get("/metrics", "accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n").await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
}

#[tokio::test]
async fn it_answers_during_a_drain_and_ends_with_the_process_even_if_a_peer_stays() {
    let running = start().await;
    let _idle = TcpStream::connect(running.address).await.unwrap();
    running.shutdown.begin();
    assert!(running.get("/metrics", "").await.starts_with("HTTP/1.1 200 "));
    assert!(running.shutdown.finish(GRACE).await.is_empty());
    running.server.await.unwrap();
}
