//! Separate services on PostgreSQL: replicas, handover, drains.

use std::time::{Duration, Instant};

use millrace_proto::distributor::v1::{self as wire, watch_task_response::Event};
use millrace_tests::{
    clients::{Distributor, command, distributor, submission},
    net, postgres,
    suite::Suite,
};

const SUCCEEDED: i32 = 6;
const RUNNING: i32 = 4;

async fn submit(client: &mut Distributor, script: &str) -> String {
    let request = submission("", &command(&["sh", "-c", script]));
    client.submit_task(request).await.unwrap().into_inner().task.unwrap().id
}

async fn wait_state(client: &mut Distributor, id: &str, wanted: i32) -> wire::Task {
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let task = client.get_task(wire::GetTaskRequest { id: id.into() }).await.map(|task| task.into_inner().task);
        match task {
            Ok(Some(task)) if task.state == wanted => return task,
            other => assert!(Instant::now() < deadline, "waited for state {wanted}: {other:?}"),
        }
        tokio::task::spawn_blocking(net::pause).await.unwrap();
    }
}

#[tokio::test]
async fn work_goes_through_three_processes_and_output_is_seen_from_another_replica() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let _queue = suite.queue(&[]);
    let (one, two) = (suite.distributor(&[]), suite.distributor(&[]));
    let _agent = suite.agent(&[&one.endpoint], &["--slots", "2"]);
    let go_on = suite.folder().join("go-on");
    let script = format!("echo first; until [ -e {} ]; do sleep 0.05; done; echo last >&2; exit 4", go_on.display());
    let mut elsewhere = distributor(&two.endpoint);
    let id = submit(&mut elsewhere, &script).await;
    let watch = wire::WatchTaskRequest { id, without_output: false };
    let mut events = elsewhere.watch_task(watch).await.unwrap().into_inner();
    let (mut stdout, mut stderr, mut states) = (String::new(), String::new(), Vec::new());
    while let Some(event) = events.message().await.unwrap() {
        match event.event.unwrap() {
            Event::Task(task) => states.push((task.state, task.outcome)),
            Event::Output(output) => {
                let chunk = output.chunk.unwrap();
                let text = String::from_utf8_lossy(&chunk.data).into_owned();
                if chunk.stream == 1 {
                    stdout.push_str(&text)
                } else {
                    stderr.push_str(&text)
                }
                if stdout.contains("first") {
                    std::fs::write(&go_on, "").unwrap();
                }
            }
        }
    }
    assert_eq!((stdout.as_str(), stderr.as_str()), ("first\n", "last\n"));
    let (state, outcome) = states.pop().unwrap();
    assert_eq!((state, outcome.unwrap().exit_code), (7, Some(4)));
}

#[tokio::test]
async fn without_a_queue_service_a_distributor_matches_and_gives_it_back() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let (one, two) = (suite.distributor(&[]), suite.distributor(&[]));
    let _agent = suite.agent(&[&two.endpoint], &["--slots", "2"]);
    let mut client = distributor(&one.endpoint);
    let id = submit(&mut client, "true").await;
    wait_state(&mut client, &id, SUCCEEDED).await;
    let owner = |status: &wire::GetStatusResponse| status.owners[0].endpoint.clone();
    let status = client.get_status(wire::GetStatusRequest {}).await.unwrap().into_inner();
    assert!([&one.endpoint, &two.endpoint].contains(&&owner(&status)), "{status:?}");

    let mut queue = suite.queue(&[]);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = client.get_status(wire::GetStatusRequest {}).await.unwrap().into_inner();
        if owner(&status) == queue.endpoint {
            break;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::task::spawn_blocking(net::pause).await.unwrap();
    }
    let id = submit(&mut client, "true").await;
    wait_state(&mut client, &id, SUCCEEDED).await;
    queue.kill();
    let id = submit(&mut client, "true").await;
    wait_state(&mut client, &id, SUCCEEDED).await;
}

#[tokio::test]
async fn a_deploy_of_every_service_stops_no_running_task() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let mut queue = suite.queue(&[]);
    let (mut one, two) = (suite.distributor(&[]), suite.distributor(&[]));
    let _agent = suite.agent(&[&one.endpoint, &two.endpoint], &["--slots", "4", "--lease-ttl", "5s"]);
    let go_on = suite.folder().join("go-on");
    let script = format!("until [ -e {} ]; do sleep 0.05; done", go_on.display());
    let mut client = distributor(&two.endpoint);
    let id = submit(&mut client, &script).await;
    wait_state(&mut client, &id, RUNNING).await;
    let stopped = Instant::now();
    assert_eq!(one.stop(), Some(0), "{}", one.log());
    assert!(stopped.elapsed() < Duration::from_secs(30), "a drain is bounded");
    assert_eq!(queue.stop(), Some(0), "{}", queue.log());
    one.start();
    one.wait_serving();
    queue.start();
    queue.wait_serving();
    let other = submit(&mut client, "true").await;
    wait_state(&mut client, &other, SUCCEEDED).await;
    std::fs::write(&go_on, "").unwrap();
    assert_eq!(wait_state(&mut client, &id, SUCCEEDED).await.attempt, 1);
}

#[tokio::test]
async fn r2_r7_the_tasks_of_an_agent_that_dies_get_another_attempt() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let _queue = suite.queue(&[]);
    let one = suite.distributor(&[]);
    let mut doomed = suite.agent(&[&one.endpoint], &["--slots", "1", "--lease-ttl", "5s", "--name", "doomed"]);
    let mut client = distributor(&one.endpoint);
    let id = submit(&mut client, "[ $MILLRACE_ATTEMPT -ge 2 ] || exec sleep 60").await;
    wait_state(&mut client, &id, RUNNING).await;
    doomed.kill();
    let _heir = suite.agent(&[&one.endpoint], &["--slots", "1", "--name", "heir"]);
    let task = wait_state(&mut client, &id, SUCCEEDED).await;
    assert_eq!((task.attempt, task.losses, task.orchestrator.as_str()), (2, 1, "heir"));
    assert_eq!(task.attempts[0].outcome.as_ref().unwrap().kind, 8, "the first was lost");
}

#[tokio::test]
async fn an_agent_that_drains_hands_back_what_it_cannot_finish() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let _queue = suite.queue(&[]);
    let one = suite.distributor(&[]);
    let mut leaving =
        suite.agent(&[&one.endpoint], &["--slots", "1", "--drain-timeout", "300ms", "--kill-grace", "1s"]);
    let mut client = distributor(&one.endpoint);
    let id = submit(&mut client, "[ $MILLRACE_ATTEMPT -ge 2 ] || exec sleep 600").await;
    wait_state(&mut client, &id, RUNNING).await;
    assert_eq!(leaving.stop(), Some(0), "{}", leaving.log());
    let _other = suite.agent(&[&one.endpoint], &["--slots", "1"]);
    let task = wait_state(&mut client, &id, SUCCEEDED).await;
    assert_eq!((task.attempt, task.failures, task.losses), (2, 0, 0), "handing back spends no budget");
}
