//! Agents on this machine; a shell plays the agent.

use std::{path::Path, time::Duration};

use millrace_core::id::NodeId;
use millrace_proto::provider::v1::{InstanceState, RequestResult};
use millrace_scaler::provider::{Process, ProcessOptions, Remote};

use crate::support::{Hands, by_id, by_instance, ids, list, order, request, results, serve, states, terminate, until};

/// Says that it has started, and ends when it is told to.
pub(crate) const AGENT: &str = "env > env.txt; echo started >> starts; exec sleep 300";

pub(crate) fn options(dir: &Path, script: &str) -> ProcessOptions {
    ProcessOptions {
        program: Some("/bin/sh".into()),
        args: vec!["-c".into(), script.into()],
        ..ProcessOptions::new(dir)
    }
}

pub(crate) fn file(dir: &Path, id: NodeId, name: &str) -> String {
    std::fs::read_to_string(dir.join("nodes").join(id.to_string()).join(name)).unwrap_or_default()
}

#[tokio::test]
async fn agents_run_are_listed_and_end_over_grpc() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::open(ProcessOptions { max_nodes: 3, ..options(dir.path(), AGENT) }).unwrap();
    let remote = Remote::new(&serve(process).await).unwrap();
    let ids = ids(4);
    let first = request(&remote, order("builds", "a", &ids, 4)).await.unwrap();
    let expected =
        [RequestResult::Accepted, RequestResult::Accepted, RequestResult::Accepted, RequestResult::OutOfCapacity];
    assert_eq!(results(&first), expected);
    assert!(first[3].error.contains("at most 3 agents"));
    // A repeated order starts nothing, and says the same.
    assert_eq!(request(&remote, order("builds", "a", &ids, 4)).await.unwrap(), first);

    for id in &ids[..3] {
        until("the agent starts", || async { file(dir.path(), *id, "starts") == "started\n" }).await;
    }
    let env = file(dir.path(), ids[0], "env.txt");
    assert!(env.contains(&format!("MILLRACE_NODE_ID={}\n", ids[0])) && env.contains("MILLRACE_POOL=builds\n"));
    assert!(env.contains(&format!("MILLRACE_INSTANCE_ID={}\n", first[0].instance_id)));

    let listed = list(&remote, 2).await.unwrap();
    assert_eq!(states(&listed), [InstanceState::Running; 3]);
    let of = |index: usize| (listed[index].node_id.clone(), listed[index].id.clone());
    assert_eq!(of(1), (ids[1].to_string(), first[1].instance_id.clone()));
    assert_eq!((&*listed[0].pool, &*listed[0].zone), ("builds", "a"));

    // By either name; ending what is not there is a success.
    terminate(&remote, by_id("builds", "a", &ids[..1])).await.unwrap();
    terminate(&remote, by_instance("builds", "a", &[&first[1].instance_id, "agent-x", "../.."])).await.unwrap();
    terminate(&remote, by_id("builds", "a", &ids[..1])).await.unwrap();
    until("two agents are gone", || async { list(&remote, 0).await.unwrap().len() == 1 }).await;
    assert!(!dir.path().join("nodes").join(ids[0].to_string()).exists());
    terminate(&remote, by_id("builds", "a", &ids)).await.unwrap();
    until("all are gone", || async { list(&remote, 0).await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn agents_outlive_their_provider_and_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let ids = ids(2);
    let process = Process::open(options(dir.path(), AGENT)).unwrap();
    request(&process, order("p", "", &ids, 2)).await.unwrap();
    let before = list(&process, 0).await.unwrap();
    drop(process);

    let process = Process::open(options(dir.path(), AGENT)).unwrap();
    let again = list(&process, 0).await.unwrap();
    assert_eq!(states(&again), [InstanceState::Running; 2]);
    assert_eq!(again, before);
    request(&process, order("p", "", &ids, 2)).await.unwrap();
    until("both run", || async { ids.iter().all(|id| file(dir.path(), *id, "starts") == "started\n") }).await;

    // Two providers may share the agents, as a leader and a standby on one machine do.
    let other = Process::open(options(dir.path(), AGENT)).unwrap();
    terminate(&other, by_id("p", "", &ids[..1])).await.unwrap();
    until("one is gone for both", || async {
        list(&process, 0).await.unwrap().len() == 1 && list(&other, 0).await.unwrap().len() == 1
    })
    .await;
    process.end_all().await.unwrap();
    assert!(list(&other, 0).await.unwrap().is_empty());
    assert_eq!(request(&process, order("p", "", &ids, 2)).await.unwrap_err().message(), "the provider shuts down");
}

#[tokio::test]
async fn an_agent_that_ends_by_itself_is_failed_with_the_end_of_its_log_and_then_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::at(1_000_000);
    let script = "seq 1 1000; echo no distributor at port 7 >&2; exit 3";
    let process = Process::open(ProcessOptions { clock: hands.clock(), ..options(dir.path(), script) }).unwrap();
    let ids = ids(1);
    request(&process, order("p", "", &ids, 1)).await.unwrap();
    until("it has ended", || async { states(&list(&process, 0).await.unwrap()) == [InstanceState::Failed] }).await;
    let error = list(&process, 0).await.unwrap()[0].error.clone();
    assert!(error.contains("exit status: 3") && error.ends_with("no distributor at port 7"), "{error}");
    assert!(error.contains("\n1000\n") && error.len() < 3000);
    // It is not started once more.
    let again = request(&process, order("p", "", &ids, 1)).await.unwrap();
    assert_eq!((results(&again), &again[0].error), (vec![RequestResult::Failed], &error));

    hands.forward(Duration::from_secs(299));
    assert_eq!(list(&process, 0).await.unwrap().len(), 1);
    hands.forward(Duration::from_secs(1));
    assert!(list(&process, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_agent_that_does_not_end_is_killed_with_all_it_started_once_its_grace_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::at(1_000_000);
    let script = "trap 'echo told >> told' TERM; sleep 300 & echo $! > child; while :; do wait; done";
    let process = Process::open(ProcessOptions { clock: hands.clock(), ..options(dir.path(), script) }).unwrap();
    let ids = ids(1);
    request(&process, order("p", "", &ids, 1)).await.unwrap();
    until("it runs", || async { !file(dir.path(), ids[0], "child").is_empty() }).await;
    let child = format!("/proc/{}", file(dir.path(), ids[0], "child").trim());
    terminate(&process, by_id("p", "", &ids)).await.unwrap();
    until("it was told", || async { !file(dir.path(), ids[0], "told").is_empty() }).await;
    hands.forward(Duration::from_secs(59));
    terminate(&process, by_id("p", "", &ids)).await.unwrap();
    assert_eq!(states(&list(&process, 0).await.unwrap()), [InstanceState::Stopping]);
    assert_eq!(file(dir.path(), ids[0], "told"), "told\n", "a second signal would have it leave at once");
    let refused = request(&process, order("p", "", &ids, 1)).await.unwrap();
    assert!(results(&refused) == [RequestResult::Failed] && refused[0].error.contains("being ended"));

    hands.forward(Duration::from_secs(1));
    until("it is killed", || async { list(&process, 0).await.unwrap().is_empty() }).await;
    let dead = || std::fs::read_to_string(format!("{child}/stat")).map_or(true, |stat| stat.contains(") Z "));
    until("so is its child", || async { dead() }).await;
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let none = ProcessOptions { program: Some("/no/such/program".into()), ..ProcessOptions::new(dir.path()) };
    let process = Process::open(none).unwrap();
    let one = ids(1);
    let failed = request(&process, order("p", "", &one, 1)).await.unwrap();
    assert_eq!(results(&failed), [RequestResult::Failed]);
    assert!(failed[0].error.starts_with("/no/such/program cannot be started: "), "{}", failed[0].error);
    let mut odd = order("p", "", &one, 1);
    odd.template.insert("image".into(), "x".into());
    let failed = request(&process, odd).await.unwrap();
    assert!(failed[0].error.contains("template key `image`"), "{}", failed[0].error);
    assert!(list(&process, 0).await.unwrap().is_empty());

    let mut bad = order("p", "", &one, 1);
    bad.nodes[0].node_id = "../../etc".into();
    assert!(request(&process, bad).await.unwrap_err().message().contains("nodes[0].node_id"));
    let many = order("p", "", &ids(51), 51);
    assert!(request(&process, many).await.unwrap_err().message().contains("at most 50"));
}

#[tokio::test]
async fn a_process_that_has_got_the_number_of_an_agent_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ids = ids(1);
    let process = Process::open(options(dir.path(), AGENT)).unwrap();
    request(&process, order("p", "", &ids, 1)).await.unwrap();
    // As if the agent had ended long ago, and this process had got its number: were it taken for the agent it would get the signal.
    let record = dir.path().join("nodes").join(ids[0].to_string()).join("process");
    let agent = std::fs::read_to_string(&record).unwrap();
    let own = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = own.trim().split(' ').collect();
    let start: u64 = fields[21].parse().unwrap();
    let stale = own.replace(&format!(" {start} "), &format!(" {} ", start - 1));
    std::fs::write(&record, stale).unwrap();
    assert_eq!(states(&list(&process, 0).await.unwrap()), [InstanceState::Failed]);
    terminate(&process, by_id("p", "", &ids)).await.unwrap();
    assert!(list(&process, 0).await.unwrap().is_empty());

    let pid = agent.split(' ').next().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", pid]).status().unwrap().success());
}
