//! The ready agent over a real connection, with real processes.

use std::net::SocketAddr;

use clap::{Args, Command, FromArgMatches};
use millrace_orchestrator::{Payload, agent};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use super::{support::Network, *};

async fn listen() -> (SocketAddr, Network, tokio::task::JoinHandle<()>) {
    let (network, connector) = Network::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(connector.service("tcp"));
    let serving = tokio::spawn(async move {
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    (address, network, serving)
}

pub(super) fn settings(args: &[&str]) -> agent::Settings {
    let args = ["agent"].iter().chain(args);
    let matches = agent::Settings::augment_args(Command::new("agent")).get_matches_from(args);
    agent::Settings::from_arg_matches(&matches).unwrap()
}

pub(super) fn shell(seq: u64, script: &str) -> millrace_proto::distributor::v1::Assignment {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let payload = Some(Payload::Command(millrace_proto::common::v1::Command { argv, ..Default::default() }));
    let spec = TaskSpec { executor: "process".into(), payload, ..TaskSpec::default() };
    millrace_proto::distributor::v1::Assignment {
        spec: spec.encode_to_vec().into(),
        ..assignment(seq, u128::from(seq), 1)
    }
}

#[tokio::test]
async fn the_agent_runs_commands_reports_and_leaves_in_order() {
    let (address, mut network, _serving) = listen().await;
    let state = tempfile::tempdir().unwrap();
    let (endpoint, state_dir) = (format!("http://{address}"), state.path().to_str().unwrap());
    let shutdown = CancellationToken::new();
    let settings = settings(&["--endpoint", &endpoint, "--slots", "2", "--state-dir", state_dir, "--kill-grace", "1s"]);
    let running = tokio::spawn(agent::run(settings, shutdown.clone()));

    let mut stream = network.accept().await;
    stream.welcome(SESSION, 1, &[]).await;
    assert_eq!(stream.grant().await, (2, 0));
    stream.assign(vec![shell(1, "echo out; echo err >&2; exit 4")]).await;
    let completion = stream.completion().await;
    let outcome = completion.outcome.clone().unwrap();
    assert_eq!((outcome.kind(), outcome.exit_code, outcome.output_bytes), (OutcomeKind::Failed, Some(4), 8));
    let live: Vec<_> = stream.log.iter().filter(|message| matches!(message, Request::Progress(_))).collect();
    assert!(!live.is_empty(), "output comes before the result");
    stream.answer(&completion, ResultStatus::Recorded).await;

    // The connection breaks while a command runs, which does not notice.
    stream.assign(vec![shell(2, "echo started; sleep 1000")]).await;
    while stream.progress().await.lease != Some(lease(2, 1)) {}
    drop(stream);
    let mut stream = network.accept().await;
    assert_eq!((stream.hello.session_id.as_str(), stream.hello.held.as_slice()), (SESSION, [lease(2, 1)].as_slice()));
    stream.welcome(SESSION, 2, &[]).await;
    assert_eq!(&stream.progress().await.chunks[0].data[..], b"started\n");
    stream.cancel(vec![lease(2, 1)]).await;
    let completion = stream.completion().await;
    assert_eq!(kind(&completion), OutcomeKind::Cancelled);
    stream.answer(&completion, ResultStatus::Recorded).await;

    shutdown.cancel();
    stream.goodbye().await;
    drop(stream);
    running.await.unwrap().unwrap();
    assert!(!state.path().join("session").exists());
}
