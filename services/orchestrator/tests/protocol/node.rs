//! The agent on a node of a pool, over real connections and with real processes.

use std::{future::Future, net::SocketAddr, path::Path};

use millrace_orchestrator::agent::{self, AgentError};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use super::{
    support::{
        Conversation, Network,
        scaler::{NodeStream, Scaler, refusal},
    },
    tcp::{settings, shell},
    *,
};

const ID: &str = "00000000-0000-0000-0000-000000000007";

/// An agent on a node, and both services that it speaks to.
struct Stand {
    network: Network,
    scaler: Scaler,
    shutdown: CancellationToken,
    agent: JoinHandle<Result<(), AgentError>>,
}

async fn serve<F: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static>(
    start: impl FnOnce(TcpListenerStream) -> F,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(start(TcpListenerStream::new(listener)));
    address
}

impl Stand {
    async fn start(flags: &[&str]) -> Self {
        let (network, connector) = Network::new();
        let server = tonic::transport::Server::builder().add_service(connector.service("tcp"));
        let distributor = serve(|incoming| server.serve_with_incoming(incoming)).await;
        let (scaler, way) = Scaler::new();
        let server = tonic::transport::Server::builder().add_service(way.service());
        let endpoint = serve(|incoming| server.serve_with_incoming(incoming)).await;
        let (distributor, endpoint) = (format!("http://{distributor}"), format!("http://{endpoint}"));
        let own = ["--endpoint", &distributor, "--scaler-endpoint", &endpoint, "--node-id", ID, "--slots", "2"];
        let shutdown = CancellationToken::new();
        let agent = tokio::spawn(agent::run(settings(&[&own[..], flags].concat()), shutdown.clone()));
        Self { network, scaler, shutdown, agent }
    }

    /// Both streams of a node that takes work.
    async fn at_work(&mut self) -> (Conversation, NodeStream) {
        let mut node = self.scaler.welcome().await;
        let mut session = self.network.accept().await;
        session.welcome(SESSION, 1, &[]).await;
        assert_eq!(session.grant().await, (2, 0));
        node.ready().await;
        (session, node)
    }
}

fn file(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

/// A pipe with a name; whoever reads it waits until somebody writes.
fn gate(dir: &tempfile::TempDir) -> String {
    let path = file(dir, "gate");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Lets whoever waits at the gate go on.
async fn open(gate: &str) {
    let path = gate.to_owned();
    tokio::task::spawn_blocking(move || std::fs::write(path, "go\n").unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_node_boots_works_drains_resumes_and_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let gate = gate(&dir);
    let boot = format!("echo progress: 40 fetching; read line < {gate}; echo progress: 90 unpacking");
    let mut stand = Stand::start(&["--boot-command", &boot, "--pool", "builds"]).await;
    let mut node = stand.scaler.welcome().await;
    assert_eq!((node.hello.pool.as_str(), node.hello.slots, node.hello.ready), ("builds", 2, false));
    while node.boot().await != ("fetching".into(), Some(40)) {}
    open(&gate).await;
    let mut session = stand.network.accept().await;
    assert_eq!(session.hello.labels.get("millrace.node").map(String::as_str), Some(ID));
    session.welcome(SESSION, 1, &[]).await;
    assert_eq!(session.grant().await, (2, 0));
    node.ready().await;

    session.assign(vec![shell(1, &format!("read line < {gate}"))]).await;
    assert!(node.running(1).await.healthy);
    node.drain("fewer are needed").await;
    while session.grant().await.0 != 0 {}
    // One that was under way comes back at once.
    session.assign(vec![shell(2, "true")]).await;
    let back = session.completion().await;
    assert_eq!(kind(&back), OutcomeKind::HandedBack);
    session.answer(&back, ResultStatus::Recorded).await;
    open(&gate).await;
    let done = session.completion().await;
    assert_eq!(kind(&done), OutcomeKind::Succeeded);
    session.answer(&done, ResultStatus::Recorded).await;
    node.drained().await;

    node.resume().await;
    while session.grant().await.0 != 2 {}
    stand.shutdown.cancel();
    session.goodbye().await;
    drop(session);
    node.drained().await;
    node.over().await;
    stand.agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_boot_that_fails_says_why_and_ends_the_agent() {
    let boot = "echo pulling; echo 'no such image' >&2; exit 9";
    let mut stand = Stand::start(&["--boot-command", boot]).await;
    let mut node = stand.scaler.welcome().await;
    let error = "the boot command failed (exit status: 9): no such image";
    assert_eq!(node.boot_failed().await, error);
    node.over().await;
    let ended = stand.agent.await.unwrap().unwrap_err();
    assert!(matches!(ended, AgentError::Boot(_)) && ended.to_string() == error, "{ended}");
}

#[tokio::test]
async fn a_node_that_is_gone_ends_after_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    let gate = gate(&dir);
    let mut stand = Stand::start(&[]).await;
    let (mut session, node) = stand.at_work().await;
    session.assign(vec![shell(1, &format!("read line < {gate}"))]).await;
    session.accepted().await;
    node.fail(refusal("NODE_GONE")).await;
    while session.grant().await.0 != 0 {}
    assert!(!stand.agent.is_finished());
    open(&gate).await;
    let done = session.completion().await;
    session.answer(&done, ResultStatus::Recorded).await;
    session.goodbye().await;
    drop(session);
    stand.agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_node_that_is_gone_does_not_boot_on() {
    let dir = tempfile::tempdir().unwrap();
    let gate = gate(&dir);
    let stand = Stand::start(&["--boot-command", &format!("read line < {gate}")]).await;
    let Stand { mut scaler, agent, .. } = stand;
    scaler.accept().await.fail(refusal("NODE_GONE")).await;
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn work_goes_on_without_a_scaler() {
    let mut stand = Stand::start(&[]).await;
    stand.scaler.refuse(Some(tonic::Status::unavailable("away")));
    let mut session = stand.network.accept().await;
    assert_eq!(session.hello.labels.get("millrace.node").map(String::as_str), Some(ID));
    session.welcome(SESSION, 1, &[]).await;
    assert_eq!(session.grant().await, (2, 0));
    session.assign(vec![shell(1, "true")]).await;
    let done = session.completion().await;
    assert_eq!(kind(&done), OutcomeKind::Succeeded);
    session.answer(&done, ResultStatus::Recorded).await;
    // It comes back: the node is ready already.
    stand.scaler.refuse(None);
    let mut node = stand.scaler.welcome().await;
    assert!(node.hello.ready);
    assert!(node.health().await.healthy);
    stand.shutdown.cancel();
    session.goodbye().await;
    drop(session);
    node.drained().await;
    node.over().await;
    stand.agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_spot_notice_is_passed_on_and_no_more_work_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let notice = file(&dir, "notice");
    std::fs::write(&notice, "2027-01-31T08:00:00Z\n").unwrap();
    let mut stand = Stand::start(&["--spot-command", &format!("cat {notice}")]).await;
    let mut node = stand.scaler.welcome().await;
    let mut session = stand.network.accept().await;
    session.welcome(SESSION, 1, &[]).await;
    let told = node.next(|message| match message {
        millrace_proto::scaler::v1::attach_node_request::Message::SpotNotice(notice) => Some(*notice),
        _ => None,
    });
    assert_eq!(told.await.at.map(|at| at.seconds), Some(1_801_382_400));
    while session.grant().await.0 != 0 {}
    assert!(Path::new(&notice).exists());
    stand.agent.abort();
}
