//! What an operator does with pools and nodes, and what `doctor` tells of them, against a scaler that decides nothing.

mod fake;

use fake::scaler::{FakeScaler, NODE};
use fake::{Fake, Ran, millrace, run};
use millrace_proto::distributor::v1::GetStatusResponse;
use millrace_proto::queue::v1::{Queue, QueueStats};
use millrace_proto::scaler::v1::*;

/// Nothing listens here.
const NOWHERE: &str = "http://127.0.0.1:1";

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

/// A pool that should have five nodes and has three, two of them ready.
fn pool(name: &str) -> Pool {
    let nodes = |state: NodeState, count| NodeCount { state: state.into(), count };
    let grace = JoinGrace {
        zone: "eu-1a".into(),
        grace: Some(prost_types::Duration { seconds: 180, nanos: 0 }),
        joins: 12,
        pending: 1,
        ..JoinGrace::default()
    };
    let status = PoolStatus {
        desired: 5,
        desired_without_override: 5,
        nodes: vec![nodes(NodeState::Ready, 2), nodes(NodeState::Joining, 1)],
        running: 2,
        waiting: 40,
        grace: vec![grace],
        summary: "grows: 40 tasks wait".into(),
        as_of: at(1_700_000_000),
        ..PoolStatus::default()
    };
    Pool {
        name: name.into(),
        provider: "cloud".into(),
        queues: vec!["builds".into()],
        schedule: vec![ScheduledMinimum { days: vec![1, 2, 3], from_minute: 480, to_minute: 1080, min_nodes: 4 }],
        status: Some(status),
        ..Pool::default()
    }
}

fn two_pools() -> FakeScaler {
    FakeScaler { pools: vec![pool("builds"), pool("night")].into(), ..FakeScaler::default() }
}

#[tokio::test]
async fn a_pool_is_created_as_the_flags_say() {
    let (fake, endpoint) = FakeScaler::default().serve().await;
    let flags = [
        "pool",
        "create",
        "builds",
        "--provider",
        "cloud",
        "--queues",
        "builds,deploys",
        "--slots",
        "4",
        "--max",
        "200",
        "--target-wait",
        "90s",
        "--template",
        "image=ci-42",
        "--zone",
        "eu-1a,eu-1b",
        "--fallback",
        "night",
        "--schedule",
        "mon-fri 08:00-18:00=5",
        "--schedule",
        "sat,sun 00:00-24:00=1",
        "--join-max",
        "20m",
    ];
    let ran = run(&endpoint, &flags).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(ran.stdout, "pool builds was created; `millrace pool watch` shows it grow\n");
    let created = fake.created.lock().unwrap();
    let pool = created[0].pool.clone().unwrap();
    assert!(!created[0].request_id.is_empty());
    assert_eq!((pool.queues.len(), pool.slots_per_node, pool.max_nodes, pool.min_nodes), (2, Some(4), Some(200), None));
    assert_eq!((pool.target_wait.unwrap().seconds, pool.join_max.unwrap().seconds), (90, 1200));
    assert_eq!((pool.zones.len(), pool.fallback_pools.as_slice()), (2, &["night".to_owned()][..]));
    assert_eq!(
        (pool.schedule[0].days.len(), pool.schedule[1].min_nodes, pool.template["image"].as_str()),
        (5, 1, "ci-42")
    );
}

#[tokio::test]
async fn an_update_names_what_it_changes_only() {
    let (fake, endpoint) = FakeScaler::default().serve().await;
    let ran =
        run(&endpoint, &["pool", "update", "builds", "--max", "9", "--clear", "schedule", "--clear", "zone"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "pool builds was updated\n"), "{}", ran.stderr);
    let updated = fake.updated.lock().unwrap();
    assert_eq!(updated[0].update_mask.clone().unwrap().paths, ["max_nodes", "zones", "schedule"]);
    assert_eq!(updated[0].pool.clone().unwrap().max_nodes, Some(9));
}

#[tokio::test]
async fn pools_are_listed_shown_and_watched() {
    let (_fake, endpoint) = two_pools().serve().await;
    let list = run(&endpoint, &["pool", "list"]).await;
    let row: Vec<_> = list.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..9], ["builds", "5", "2", "0", "1", "0", "0", "2", "40"], "{}", list.stdout);
    assert!(list.stdout.contains("grows: 40 tasks wait") && !list.stdout.contains('\u{1b}'), "{}", list.stdout);
    let json = run(&endpoint, &["pool", "list", "-o", "json"]).await;
    let lines: Vec<serde_json::Value> = json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["name"], &lines[1]["status"]["desired"]), (2, &"night".into(), &5.into()));
    let shown = run(&endpoint, &["pool", "get", "night"]).await;
    for part in ["mon-wed 08:00-18:00=4", "2 ready, 1 joining", "eu-1a: 3m00s (from 12 joins and 1 under way)"] {
        assert!(shown.stdout.contains(part), "{part} in {}", shown.stdout);
    }
    let watch = run(&endpoint, &["pool", "watch", "night", "--interval", "200ms"]).await;
    assert_eq!((watch.code, watch.stderr.as_str()), (1, "error: the pool is gone\n"));
    assert!(watch.stdout.contains("night") && !watch.stdout.contains("builds  "), "{}", watch.stdout);
    let none = run(&endpoint, &["pool", "get", "nosuch"]).await;
    assert!(none.code == 1 && none.stderr.contains("`millrace pool list` shows the pools"), "{}", none.stderr);
}

#[tokio::test]
async fn a_pool_with_nodes_goes_after_a_drain_only() {
    let (fake, endpoint) = FakeScaler::default().serve().await;
    let refused = run(&endpoint, &["pool", "delete", "builds"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("--drain"), "{}", refused.stderr);
    let drained = run(&endpoint, &["pool", "delete", "builds", "--drain"]).await;
    assert_eq!(drained.stdout, "pool builds drains its nodes and goes once the last has ended\n");
    assert!(fake.deleted.lock().unwrap()[1].drain);
}

#[tokio::test]
async fn a_size_by_hand_has_an_owner_a_reason_and_an_end() {
    let (fake, endpoint) = two_pools().serve().await;
    let flags =
        ["pool", "override", "builds", "--nodes", "50", "--for", "2h", "--reason", "launch day", "--owner", "ci"];
    let ran = run(&endpoint, &flags).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("pool builds is set by hand: nodes 50 until 2"), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("Z by ci: launch day\n"), "{}", ran.stdout);
    let by_hand = fake.overridden.lock().unwrap()[0].r#override.clone().unwrap();
    assert_eq!((by_hand.desired_nodes, by_hand.min_nodes, by_hand.no_launches), (Some(50), None, false));
    let cleared = run(&endpoint, &["pool", "clear-override", "builds"]).await;
    assert_eq!(cleared.stdout, "pool builds is left to the policy\n");
}

fn explained() -> ExplainPoolResponse {
    ExplainPoolResponse {
        pool: None,
        steps: vec![SizeStep { rule: "queues".into(), nodes: 5, detail: "40 wait, a task runs 3s".into() }],
        obstacles: vec!["2 launches wait for the provider's budget".into()],
        provider: Some(ProviderStatus {
            name: "cloud".into(),
            state: "throttled".into(),
            last_error: "too many requests".into(),
            calls_per_second: 0.5,
            ..ProviderStatus::default()
        }),
        decisions: vec![PoolDecision { time: at(1_700_000_000), text: "desired 3 to 5".into() }],
    }
}

#[tokio::test]
async fn an_explanation_has_steps_obstacles_provider_and_decisions() {
    let fake = FakeScaler { explained: Some(explained()).into(), ..two_pools() };
    let (_fake, endpoint) = fake.serve().await;
    let ran = run(&endpoint, &["pool", "explain", "builds"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in
        ["40 wait, a task runs 3s", "wait for the provider's budget", "too many requests", "0.5", "desired 3 to 5"]
    {
        assert!(ran.stdout.contains(part), "{part} in {}", ran.stdout);
    }
    let json = run(&endpoint, &["pool", "explain", "builds", "-o", "json"]).await;
    let answer: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&answer["pool"]["name"], &answer["steps"][0]["nodes"]), (&"builds".into(), &5.into()));
}

#[tokio::test]
async fn nodes_are_listed_shown_with_their_history_and_drained() {
    let event = |seconds, state: NodeState, reason: &str| NodeEvent {
        time: at(seconds),
        state: state.into(),
        reason: reason.into(),
    };
    let node = Node {
        id: NODE.into(),
        pool: "builds".into(),
        instance_id: "i-7".into(),
        state: NodeState::Ready.into(),
        reason: "it takes work".into(),
        request_time: at(1_700_000_000),
        ready_time: at(1_700_000_090),
        slots: 4,
        running: 3,
        healthy: true,
        attached: true,
        history: vec![
            event(1_700_000_000, NodeState::Requested, "40 tasks wait"),
            event(1_700_000_090, NodeState::Ready, "it takes work"),
        ],
        ..Node::default()
    };
    let (fake, endpoint) = FakeScaler { nodes: vec![node].into(), ..FakeScaler::default() }.serve().await;
    let list = run(&endpoint, &["node", "list", "--pool", "builds", "--state", "ready,suspect"]).await;
    assert!(list.stdout.contains("i-7") && list.stdout.contains("3/4"), "{}", list.stdout);
    let asked = fake.listed.lock().unwrap()[0].clone();
    assert_eq!((asked.pool.as_str(), asked.states.len(), asked.page_size), ("builds", 2, 50));
    let shown = run(&endpoint, &["node", "get", NODE]).await;
    for part in ["joined within  1m30s", "40 tasks wait", "requested", "2023-11-14T22:13:20Z"] {
        assert!(shown.stdout.contains(part), "{part} in {}", shown.stdout);
    }
    let json = run(&endpoint, &["node", "get", NODE, "-o", "json"]).await;
    let answer: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(answer["history"][1]["state"], "NODE_STATE_READY");
    let drained = run(&endpoint, &["node", "drain", NODE, "--reason", "slow disk"]).await;
    assert_eq!(drained.stdout, format!("node {NODE} starts nothing new; it runs 2 tasks\n"));
    assert_eq!(fake.drained.lock().unwrap()[0].reason, "slow disk");
}

/// A cluster in which work waits and nobody serves it.
fn cluster() -> Fake {
    let stats = QueueStats { depth: 40, owner: "http://q".into(), ..QueueStats::default() };
    let queue = Queue { name: "builds".into(), stats: Some(stats), ..Queue::default() };
    Fake { status: Some(GetStatusResponse::default()).into(), queues: vec![queue].into(), ..Fake::default() }
}

async fn doctor(endpoint: &str, scaler: Option<&str>, flags: &[&str]) -> Ran {
    let mut command = millrace(endpoint, &[&["doctor"], flags].concat());
    if let Some(scaler) = scaler {
        command.env("MILLRACE_SCALER_ENDPOINT", scaler);
    }
    command.output().await.unwrap().into()
}

#[tokio::test]
async fn doctor_asks_the_scaler_where_there_is_one() {
    let (_cluster, endpoint) = cluster().serve().await;
    let alone = doctor(&endpoint, None, &[]).await;
    assert!(alone.code == 1 && !alone.stdout.contains("scaler"), "{}", alone.stdout);
    let lost = doctor(&endpoint, Some(NOWHERE), &[]).await;
    assert!(lost.stdout.contains("no scaler answers: fleets stay as they are"), "{}", lost.stdout);
    assert_eq!((lost.code, lost.stderr.as_str()), (1, "error: work is stuck in 1 queue\n"));

    let fake = FakeScaler { explained: Some(explained()).into(), ..two_pools() };
    let (_fake, scaler) = fake.serve().await;
    let ran = doctor(&endpoint, Some(&scaler), &[]).await;
    assert_eq!(ran.code, 0, "nodes are on their way: {}{}", ran.stdout, ran.stderr);
    for part in [
        "no orchestrator serves it yet; pool builds wants 5 nodes, 1 on the way",
        "the provider cloud is throttled: too many requests",
        "pool night is held back: 2 launches wait",
    ] {
        assert!(ran.stdout.contains(part), "{part} in {}", ran.stdout);
    }
    let json = doctor(&endpoint, Some(&scaler), &["-o", "json"]).await;
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&report["pools"][0]["name"], &report["providers"][0]["state"]),
        (&"builds".into(), &"throttled".into())
    );
}
