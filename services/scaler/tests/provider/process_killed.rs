//! A provider of agents that is killed at every step of a launch and of an end: nothing is started twice, and nothing is lost.

use std::{path::Path, process::Command};

use millrace_core::id::NodeId;
use millrace_proto::provider::v1::{InstanceState, RequestResult};
use millrace_scaler::provider::Process;

use crate::{
    process::{AGENT, file, options},
    support::{by_id, ids, list, order, request, results, states, terminate, until},
};

const DIR: &str = "PROVIDER_TEST_DIR";
const NODE: &str = "PROVIDER_TEST_NODE";
const END: &str = "PROVIDER_TEST_END";

/// The provider that is killed: not a test, but what the tests run in a process of its own.
#[tokio::test]
#[ignore = "run by the other tests of this file"]
async fn doomed() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let id: NodeId = std::env::var(NODE).unwrap().parse().unwrap();
    let process = Process::open(options(Path::new(&dir), AGENT)).unwrap();
    millrace_runtime::failpoint::init().unwrap();
    if std::env::var(END).is_ok() {
        terminate(&process, by_id("p", "", &[id])).await.unwrap();
    } else {
        request(&process, order("p", "", &[id], 1)).await.unwrap();
    }
    unreachable!("the failpoint has killed it");
}

/// Runs it until it is killed at that point.
fn killed_at(point: &str, dir: &Path, id: NodeId, end: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "process_killed::doomed", "--ignored"])
        .env(DIR, dir)
        .env(NODE, id.to_string())
        .env("MILLRACE_FAILPOINTS", format!("provider.process.{point}=exit"));
    if end {
        command.env(END, "1");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(6), "{point}: it has to end by the failpoint: {text}");
}

async fn is_running(process: &Process) {
    until("the agent runs", || async { states(&list(process, 0).await.unwrap()) == [InstanceState::Running] }).await;
}

#[tokio::test]
async fn killed_before_the_start_there_is_no_node_and_the_next_order_makes_one() {
    let (dir, ids) = (tempfile::tempdir().unwrap(), ids(1));
    killed_at("intended", dir.path(), ids[0], false);
    let process = Process::open(options(dir.path(), AGENT)).unwrap();
    assert!(file(dir.path(), ids[0], "intent.json").contains("\"pool\":\"p\""));
    assert!(list(&process, 0).await.unwrap().is_empty());
    assert_eq!(results(&request(&process, order("p", "", &ids, 1)).await.unwrap()), [RequestResult::Accepted]);
    is_running(&process).await;
    until("it has started", || async { file(dir.path(), ids[0], "starts") == "started\n" }).await;
    process.end_all().await.unwrap();
}

#[tokio::test]
async fn killed_after_the_start_the_node_is_found_and_not_started_again() {
    for point in ["started", "requested"] {
        let (dir, ids) = (tempfile::tempdir().unwrap(), ids(1));
        killed_at(point, dir.path(), ids[0], false);
        let process = Process::open(options(dir.path(), AGENT)).unwrap();
        // Whether it lists first or asks first.
        if point == "started" {
            is_running(&process).await;
        }
        assert_eq!(results(&request(&process, order("p", "", &ids, 1)).await.unwrap()), [RequestResult::Accepted]);
        is_running(&process).await;
        until("it has started", || async { !file(dir.path(), ids[0], "starts").is_empty() }).await;
        assert_eq!(file(dir.path(), ids[0], "starts"), "started\n", "{point}: once");
        process.end_all().await.unwrap();
        assert!(list(&process, 0).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn killed_while_it_ends_a_node_the_end_is_carried_out() {
    for point in ["stopping", "terminated"] {
        let (dir, ids) = (tempfile::tempdir().unwrap(), ids(1));
        let process = Process::open(options(dir.path(), AGENT)).unwrap();
        request(&process, order("p", "", &ids, 1)).await.unwrap();
        is_running(&process).await;
        drop(process);
        killed_at(point, dir.path(), ids[0], true);
        let process = Process::open(options(dir.path(), AGENT)).unwrap();
        until("the agent has ended", || async { list(&process, 0).await.unwrap().is_empty() }).await;
    }
}

#[tokio::test]
async fn a_process_that_is_being_made_is_waited_for() {
    let (dir, ids) = (tempfile::tempdir().unwrap(), ids(1));
    let process = Process::open(options(dir.path(), AGENT)).unwrap();
    request(&process, order("p", "", &ids, 1)).await.unwrap();
    // As it is between the fork and the record: the lock is held, and there is no identity.
    let node = dir.path().join("nodes").join(ids[0].to_string());
    let record = std::fs::read_to_string(node.join("process")).unwrap();
    std::fs::write(node.join("process"), &record[..10]).unwrap();
    assert_eq!(states(&list(&process, 0).await.unwrap()), [InstanceState::Pending]);
    assert_eq!(results(&request(&process, order("p", "", &ids, 1)).await.unwrap()), [RequestResult::Accepted]);
    // It is told to end once it is known which it is.
    terminate(&process, by_id("p", "", &ids)).await.unwrap();
    assert_eq!(states(&list(&process, 0).await.unwrap()), [InstanceState::Pending]);
    std::fs::write(node.join("process"), &record).unwrap();
    until("it has ended", || async { list(&process, 0).await.unwrap().is_empty() }).await;
}
