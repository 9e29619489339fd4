//! The scaler as a process of its own: killed at every step of a launch, replaced in the middle of a surge, asked by KEDA; and a fleet of real
//! agents that grows and shrinks. The ledger of the provider judges what was launched, not the scaler's books.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_proto::provider::v1::node_provider_service_server::NodeProviderServiceServer;
use millrace_scaler::provider::{
    simulated::{Script, Simulated},
    system_clock,
};
use millrace_tests::{
    clients::{command, distributor, submission},
    net, postgres,
    proxy::Proxy,
    suite::{Process, Suite, said},
    tools::{python, repository},
};
use serde_json::Value;

use crate::commands::Dev;

/// How long a fleet may take to come up.
const LONG: Duration = Duration::from_secs(60);

/// A simulated provider that other processes reach, with its ledger in this one.
struct Cloud {
    simulated: Arc<Simulated>,
    spec: String,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Cloud {
    async fn start(script: &str) -> Self {
        let simulated = Arc::new(Simulated::new(Script::parse(script).unwrap(), system_clock()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let spec = format!("cloud=grpc://{}", listener.local_addr().unwrap());
        let service = NodeProviderServiceServer::from_arc(simulated.clone());
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        Self { simulated, spec, server: tokio::spawn(server) }
    }

    /// The ids of all nodes that were ever made, one for each time.
    fn made(&self) -> Vec<String> {
        self.simulated.ledger(|ledger| ledger.nodes.iter().map(|node| node.node_id.to_string()).collect())
    }

    fn killed(&self) -> usize {
        self.simulated.ledger(|ledger| ledger.nodes.iter().filter(|node| node.killed.is_some()).count())
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Waits, off the runtime, until it holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let late = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < late, "{what}");
        tokio::task::spawn_blocking(net::pause).await.unwrap();
    }
}

/// What a command of the CLI prints as JSON, an object a line.
fn json(suite: &Suite, endpoint: &str, args: &[&str]) -> Vec<Value> {
    let output = suite.client(endpoint, args.iter().copied().chain(["--output", "json"])).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::Deserializer::from_str(&text).into_iter::<Value>().map(|value| value.unwrap()).collect()
}

fn create_pool(suite: &Suite, endpoint: &str, more: &[&str]) {
    let args = [&["pool", "create", "builders", "--queue", "default", "--provider", "cloud"], more].concat();
    let output = suite.client(endpoint, args).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

/// Ids of the nodes that the books have as anything but gone.
fn on_the_books(suite: &Suite, scaler: &Process) -> BTreeSet<String> {
    let nodes = json(suite, &scaler.endpoint, &["node", "list", "--pool", "builders"]);
    nodes.iter().map(|node| node["id"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scaler_killed_at_any_step_of_a_launch_launches_nothing_twice_and_loses_nothing() {
    let steps =
        ["before_intent", "after_intent", "before_call", "after_call", "before_answer_stored", "after_answer_stored"];
    // Beside each other, because what takes the time is that the lease of who was killed runs out.
    futures::future::join_all(steps.map(killed_at)).await;
}

async fn killed_at(step: &str) {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let cloud = Cloud::start("").await;
    let mut scaler = suite.scaler(&["--provider", &cloud.spec, "--scaler-lease", "10s", "--scaler-list-every", "1s"]);
    scaler.kill();
    scaler.set_env("MILLRACE_FAILPOINTS", &format!("scaler.{step}=exit:1.0"));
    scaler.start();
    scaler.wait_serving();
    create_pool(&suite, &scaler.endpoint, &["--min", "3"]);
    until("the fail point ends the scaler", || scaler.has_ended()).await;
    scaler.kill();
    scaler.set_env("MILLRACE_FAILPOINTS", "");
    scaler.start();
    scaler.wait_serving();
    until(&format!("{step}: three nodes are made"), || cloud.made().len() >= 3).await;
    // Long enough for whatever is wrong to show: several listings and rounds pass.
    let calls = || cloud.simulated.ledger(|ledger| ledger.calls.len());
    let seen = calls();
    until("the provider is listed again and again", || calls() >= seen + 4).await;
    let made = cloud.made();
    let distinct: BTreeSet<String> = made.iter().cloned().collect();
    assert_eq!((made.len(), distinct.len(), cloud.killed()), (3, 3, 0), "{step}: {made:?}");
    assert_eq!(on_the_books(&suite, &scaler), distinct, "{step}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_in_the_middle_of_a_surge_and_launches_nothing_twice() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let cloud = Cloud::start("max_nodes_per_call = 1\nlatency = \"200ms\"").await;
    let flags = ["--provider", &cloud.spec, "--scaler-lease", "10s", "--provider-calls", "2/2"];
    let mut leader = suite.scaler(&flags);
    create_pool(&suite, &leader.endpoint, &["--min", "12", "--max", "20", "--unproven-launches", "20"]);
    let standby = suite.scaler(&flags);
    until("the surge has begun", || cloud.made().len() >= 3).await;
    leader.kill();
    until("the standby goes on", || cloud.made().len() >= 12).await;
    let calls = cloud.simulated.ledger(|ledger| ledger.calls.len());
    until("it lists again", || cloud.simulated.ledger(|ledger| ledger.calls.len()) >= calls + 2).await;
    let made = cloud.made();
    let distinct: BTreeSet<String> = made.iter().cloned().collect();
    assert_eq!((made.len(), distinct.len(), cloud.killed()), (12, 12, 0), "{made:?}");
    assert_eq!(on_the_books(&suite, &standby), distinct);
}

#[tokio::test(flavor = "multi_thread")]
async fn keda_is_answered_in_python_also_when_the_database_is_gone() {
    let database = postgres::fresh_database();
    let proxy = Proxy::start(&database.address());
    let suite = Suite::new(&database.url_through(proxy.port()));
    let distributing = suite.distributor(&[]);
    let mut client = distributor(&distributing.endpoint);
    for _ in 0..7 {
        client.submit_task(submission("", &command(&["true"]))).await.unwrap();
    }
    let scaler = suite.scaler(&[]);
    let folder = suite.folder().join("keda");
    std::fs::create_dir(&folder).unwrap();
    let ask = || -> Value {
        let mut keda = python();
        keda.arg(repository().join("tests/interop/python/keda.py"));
        keda.arg(scaler.endpoint.trim_start_matches("http://")).arg(repository().join("proto")).arg(&folder);
        let output = keda.arg("default").output().expect("running Python");
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // The scaler reads what waits in the background.
    let late = Instant::now() + LONG;
    let mut answers = ask();
    while answers["value"] != 7.0 {
        assert!(Instant::now() < late, "{answers}");
        answers = ask();
    }
    let expected = [("active", Value::from(true)), ("streamed", true.into()), ("target", 5.0.into())];
    for (key, value) in &expected {
        assert_eq!(answers[key], *value, "{answers}");
    }
    assert_eq!(answers["wrong"], "INVALID_ARGUMENT", "{answers}");
    proxy.cut();
    let answers = ask();
    for (key, value) in &expected {
        assert_eq!(answers[key], *value, "from memory: {answers}");
    }
}

#[test]
fn dev_grows_a_fleet_of_real_agents_for_a_thousand_tasks_and_shrinks_it_again() {
    let dev = Dev::start(&[]);
    let (suite, endpoint) = (&dev.suite, &dev.server.endpoint);
    let late = Instant::now() + LONG;
    while json(suite, endpoint, &["pool", "list"]).is_empty() {
        assert!(Instant::now() < late, "dev makes its pool");
        net::pause();
    }
    let output = suite
        .client(
            endpoint,
            ["pool", "update", "default", "--target-wait", "1s", "--scale-down-after", "5s", "--max", "4"],
        )
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let file = suite.folder().join("tasks.jsonl");
    let line = "{\"executor\":\"process\",\"command\":{\"argv\":[\"sleep\",\"0.05\"]}}\n";
    std::fs::write(&file, line.repeat(1000)).unwrap();
    let path = file.to_str().unwrap();
    let output = suite.client(endpoint, ["task", "submit", "--file", path]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let ready = || {
        let nodes = json(suite, endpoint, &["node", "list", "--pool", "default"]);
        nodes.iter().filter(|node| node["state"] == "NODE_STATE_READY").count()
    };
    let wait = |what: &str, holds: &dyn Fn() -> bool| {
        let late = Instant::now() + 2 * LONG;
        while !holds() {
            assert!(Instant::now() < late, "{what}: {} ready\n{}", ready(), dev.server.log());
            net::pause();
        }
    };
    wait("the fleet grows", &|| ready() >= 2);
    wait("everything runs", &|| {
        let waiting = json(suite, endpoint, &["task", "list", "--state", "queued", "--limit", "1"]);
        waiting.is_empty()
    });
    wait("the fleet shrinks", &|| ready() == 0);
    let failed = json(suite, endpoint, &["task", "list", "--state", "failed", "--limit", "1"]);
    assert!(failed.is_empty(), "{failed:?}");
}
