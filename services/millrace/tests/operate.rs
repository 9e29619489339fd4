//! What an operator does with queues, and what `doctor` tells, against services that answer as each test needs it.

mod fake;

use fake::{Fake, run};
use millrace_proto::distributor::v1::{GetStatusResponse, SessionStatus};
use millrace_proto::queue::v1::{Queue, QueueStats};

/// A queue with an owner in which tasks wait.
fn waiting(name: &str, depth: i64) -> Queue {
    let stats = QueueStats { depth, owner: "http://q:7602".into(), dispatch_rate: Some(1.5), ..Default::default() };
    Queue { name: name.into(), stats: Some(stats), ..Default::default() }
}

/// A cluster in which one orchestrator with four slots serves the queue `builds`.
fn cluster(queues: Vec<Queue>) -> Fake {
    let session =
        SessionStatus { name: "a1".into(), queues: vec!["builds".into()], slots: 4, held: 1, ..Default::default() };
    let status = GetStatusResponse { build: "1".into(), sessions: vec![session], ..Default::default() };
    Fake { status: Some(status).into(), queues: queues.into(), ..Default::default() }
}

#[tokio::test]
async fn doctor_is_content_when_work_moves() {
    let (_fake, endpoint) = cluster(vec![waiting("builds", 3), waiting("idle", 0)]).serve().await;
    let ran = run(&endpoint, &["doctor"]).await;
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stdout.contains("moving") && ran.stdout.contains("idle") && ran.stdout.contains("a1"),
        "{}",
        ran.stdout
    );
}

#[tokio::test]
async fn doctor_names_the_queue_that_is_stuck_and_why() {
    let (_fake, endpoint) = cluster(vec![waiting("builds", 3), waiting("deploys", 2)]).serve().await;
    let ran = run(&endpoint, &["doctor"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (1, "error: work is stuck in 1 queue\n"));
    assert!(ran.stdout.contains("no orchestrator serves it"), "{}", ran.stdout);
    let json = run(&endpoint, &["doctor", "--output", "json"]).await;
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.code, &report["stuck"]), (1, &true.into()));
    assert_eq!(
        (&report["queues"][1]["health"], &report["queues"][1]["queue"]["name"]),
        (&"stuck".into(), &"deploys".into())
    );
    assert_eq!(report["status"]["sessions"][0]["slots"], 4);
}

#[tokio::test]
async fn doctor_tells_a_paused_queue_with_work() {
    let (_fake, endpoint) = cluster(vec![waiting("builds", 3)]).serve().await;
    let paused = run(&endpoint, &["queue", "pause", "builds", "--reason", "registry is down", "--until", "+2h"]).await;
    assert_eq!(paused.code, 0, "{}", paused.stderr);
    assert!(paused.stdout.starts_with("queue builds is paused until 2") && paused.stdout.contains("registry is down"));
    let ran = run(&endpoint, &["doctor"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("registry is down"), "{}", ran.stdout);
}

#[tokio::test]
async fn doctor_shows_what_it_knows_when_the_queue_service_is_away() {
    let (_fake, endpoint) = cluster(Vec::new()).serve().await;
    let mut command = fake::millrace(&endpoint, &["doctor"]);
    command.env("MILLRACE_QUEUE_ENDPOINT", "127.0.0.1:1");
    let ran: fake::Ran = command.output().await.unwrap().into();
    assert_eq!(ran.code, 69);
    assert!(ran.stderr.contains("cannot reach the queue service") && ran.stdout.contains("a1"), "{}", ran.stdout);
}

#[tokio::test]
async fn an_update_changes_and_clears_what_it_names_only() {
    let (fake, endpoint) = Fake::default().serve().await;
    let args = ["queue", "update", "builds", "--default-timeout", "30m", "--clear", "default-expire-after"];
    let ran = run(&endpoint, &args).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "queue builds was updated\n"), "{}", ran.stderr);
    let updates = fake.updates.lock().unwrap();
    let queue = updates[0].queue.clone().unwrap();
    assert_eq!(updates[0].update_mask.clone().unwrap().paths, ["default_timeout", "default_expire_after"]);
    assert_eq!((queue.default_timeout.unwrap().seconds, queue.default_expire_after), (1800, None));
    assert!(!updates[0].request_id.is_empty());
}

#[tokio::test]
async fn a_queue_to_move_to_that_is_not_there_is_what_is_complained_of() {
    let (_fake, endpoint) = cluster(vec![waiting("builds", 3)]).serve().await;
    let delete = async |to| run(&endpoint, &["queue", "delete", "old", "--mode", "move", "--move-to", to]).await;
    let ran = delete("nosuch").await;
    assert_eq!((ran.code, ran.stderr.as_str()), (1, "error: --move-to: there is no queue `nosuch`\n"));
    assert!(delete("builds").await.stderr.contains("the route `r` names the queue"));
}

#[tokio::test]
async fn queues_are_listed_and_watched() {
    let (_fake, endpoint) = cluster(vec![waiting("builds", 3)]).serve().await;
    let list = run(&endpoint, &["queue", "list", "-o", "json"]).await;
    let queue: serde_json::Value = serde_json::from_str(list.stdout.trim()).unwrap();
    assert_eq!((&queue["name"], &queue["stats"]["depth"]), (&"builds".into(), &"3".into()));
    let watch = run(&endpoint, &["queue", "watch", "--interval", "200ms"]).await;
    assert_eq!((watch.code, watch.stderr.as_str()), (1, "error: the queue is gone\n"));
    assert!(watch.stdout.contains("builds") && watch.stdout.contains("1.5"), "{}", watch.stdout);
}
