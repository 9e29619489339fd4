//! Real commands on real processes while those are killed: nothing acknowledged is lost, nothing runs twice without a lost
//! lease, and no running command is killed.
//!
//! MILLRACE_CHAOS_SECONDS sets how long faults go on (60 by default; `make chaos` runs longer). MILLRACE_CHAOS_SEED repeats a
//! sequence of faults, as far as processes repeat.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_proto::{
    common::v1::{RetryPolicy, TaskSpec},
    distributor::v1 as wire,
};
use millrace_tests::{
    clients::{command, distributor, submission},
    history::{History, Reasons, script},
    net, postgres,
    suite::{Process, Suite},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tonic::Code;

/// Outcomes after which another attempt is due: lost, handed back.
const EXCUSES: [i32; 2] = [8, 7];

const SUCCEEDED: i32 = 6;

/// How long everything may take to end once the faults are over.
const DRAIN: Duration = Duration::from_secs(120);

fn seconds() -> u64 {
    std::env::var("MILLRACE_CHAOS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

fn random() -> StdRng {
    let seed = std::env::var("MILLRACE_CHAOS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(rand::random::<u64>);
    eprintln!("chaos: MILLRACE_CHAOS_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Submitters that go on through every fault, with the same request id until they are answered.
struct Submitters {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Submitters {
    fn start(endpoints: &[String], history: PathBuf, body: &'static str, count: usize, pause: Duration) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let tasks = (0..count).map(|number| {
            let (stop, acknowledged, endpoints, history) =
                (stop.clone(), acknowledged.clone(), endpoints.to_vec(), history.clone());
            tokio::spawn(async move {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    sent += 1;
                    let spec = TaskSpec {
                        retry: Some(RetryPolicy { max_losses: Some(100), ..Default::default() }),
                        ..command(&["sh", "-c", &script(&history, body)])
                    };
                    let id = submit(&endpoints, &format!("{number}-{sent}"), &spec).await;
                    acknowledged.lock().unwrap().insert(id);
                    tokio::time::sleep(pause).await;
                }
            })
        });
        Self { tasks: tasks.collect(), stop, acknowledged }
    }

    async fn finish(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        Arc::try_unwrap(self.acknowledged).unwrap().into_inner().unwrap()
    }
}

/// Submits until somebody answers; every try has the same request id.
async fn submit(endpoints: &[String], request_id: &str, spec: &TaskSpec) -> String {
    let deadline = Instant::now() + DRAIN;
    for endpoint in endpoints.iter().cycle() {
        match distributor(endpoint).submit_task(submission(request_id, spec)).await {
            Ok(answer) => return answer.into_inner().task.unwrap().id,
            Err(status) => {
                let transient = matches!(
                    status.code(),
                    Code::Unavailable
                        | Code::Unknown
                        | Code::Cancelled
                        | Code::Aborted
                        | Code::ResourceExhausted
                        | Code::DeadlineExceeded
                        | Code::Internal
                );
                assert!(transient && Instant::now() < deadline, "a submission failed: {status:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    unreachable!("the endpoints repeat for ever")
}

/// Waits until every acknowledged task has ended, and asks why tasks started again.
async fn reasons(endpoint: &str, acknowledged: &BTreeSet<String>) -> Reasons {
    let mut client = distributor(endpoint);
    let mut reasons = Reasons::default();
    let deadline = Instant::now() + DRAIN;
    for id in acknowledged {
        let task = loop {
            let task = client.get_task(wire::GetTaskRequest { id: id.clone() }).await;
            let task = task.unwrap_or_else(|status| panic!("task {id}: {status}")).into_inner().task.unwrap();
            if task.outcome.is_some() {
                break task;
            }
            assert!(Instant::now() < deadline, "task {id} has not ended: {task:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(task.state, SUCCEEDED, "{task:?}");
        reasons.last_attempt.insert(id.clone(), task.attempt);
        for attempt in task.attempts {
            if attempt.outcome.is_some_and(|outcome| EXCUSES.contains(&outcome.kind)) {
                reasons.excused.entry(id.clone()).or_default().insert(attempt.attempt);
            }
        }
    }
    reasons
}

fn judge(history: &std::path::Path, acknowledged: &BTreeSet<String>, reasons: &Reasons, losses_allowed: bool) {
    let history = History::read(&std::fs::read_to_string(history).unwrap());
    let findings = history.check(acknowledged, reasons);
    eprintln!(
        "chaos: {} tasks acknowledged, {} starts, {} tasks with a lost or handed back attempt",
        acknowledged.len(),
        history.starts(),
        reasons.excused.len()
    );
    assert!(findings.is_empty(), "{findings}");
    if !losses_allowed {
        assert!(reasons.excused.is_empty(), "no agent died, so no lease may be lost: {:?}", reasons.excused);
        assert_eq!(history.starts(), acknowledged.len(), "each ran once");
    }
}

/// Kills services in turn, one at a time, while `time` lasts; each stays away for a moment. The queue service is away for
/// a third of the time in one piece.
async fn kill_in_turn(random: &mut StdRng, services: &mut [Process], queue: &mut Process, time: Duration) {
    let began = Instant::now();
    let (away_from, away_to) = (time / 3, time * 2 / 3);
    let mut queue_away = false;
    while began.elapsed() < time {
        let elapsed = began.elapsed();
        if !queue_away && elapsed >= away_from && elapsed < away_to {
            queue.kill();
            queue_away = true;
        } else if queue_away && elapsed >= away_to {
            queue.start();
            queue_away = false;
        } else if !queue_away && random.random_bool(0.25) {
            queue.kill();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
            queue.start();
        } else {
            let victim = random.random_range(0..services.len());
            services[victim].kill();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
            services[victim].start();
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(500..3_000))).await;
    }
    if queue_away {
        queue.start();
    }
    for service in services.iter_mut().chain([queue]) {
        service.wait_serving();
    }
}

/// Two distributors, a queue service and two agents; every service is killed again and again, no agent is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_are_killed_lose_nothing_and_stop_no_command() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let mut random = random();
    let mut queue = suite.queue(&[]);
    let mut services = vec![suite.distributor(&[]), suite.distributor(&[])];
    let endpoints: Vec<String> = services.iter().map(|service| service.endpoint.clone()).collect();
    let known: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let _agents: Vec<Process> = (0..2).map(|_| suite.agent(&known, &["--slots", "8", "--lease-ttl", "15s"])).collect();
    let history = suite.folder().join("history");
    let submitters = Submitters::start(&endpoints, history.clone(), "sleep 0.1", 4, Duration::from_millis(60));
    kill_in_turn(&mut random, &mut services, &mut queue, Duration::from_secs(seconds())).await;
    let acknowledged = submitters.finish().await;
    let reasons = reasons(&endpoints[0], &acknowledged).await;
    judge(&history, &acknowledged, &reasons, false);
    assert!(acknowledged.len() > 100, "only {} tasks went through", acknowledged.len());
}

/// Agents die too, and services die at the worst moments: around claim, send, resume and complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_die_and_fail_points_cost_attempts_and_lose_nothing() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let mut random = random();
    let queue = suite.queue(&[]);
    let mut services = vec![suite.distributor(&[]), suite.distributor(&[])];
    let endpoints: Vec<String> = services.iter().map(|service| service.endpoint.clone()).collect();
    let known: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    for service in &mut services {
        service.set_env(
            "MILLRACE_FAILPOINTS",
            "submit.after_commit=drop:0.02;claim.before=drop:0.02;claim.after_commit=drop:0.02;send.before=drop:0.01;\
             complete.after_commit=drop:0.02;complete.before_answer=drop:0.02;resume.after_commit=drop:0.1",
        );
        service.kill();
        service.start();
        service.wait_serving();
    }
    let mut agents: Vec<Process> = (0..2)
        .map(|number| {
            let state = format!("agent-{number}");
            suite.agent(&known, &["--slots", "8", "--lease-ttl", "5s", "--state-dir", &state])
        })
        .collect();
    let history = suite.folder().join("history");
    let submitters = Submitters::start(&endpoints, history.clone(), "sleep 0.05", 4, Duration::from_millis(60));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds() / 2) {
        let victim = random.random_range(0..agents.len());
        agents[victim].kill();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_000))).await;
        agents[victim].start();
        tokio::time::sleep(Duration::from_millis(random.random_range(2_000..6_000))).await;
    }
    let acknowledged = submitters.finish().await;
    let reasons = reasons(&endpoints[0], &acknowledged).await;
    judge(&history, &acknowledged, &reasons, true);
    assert!(net::is_healthy(&queue.http));
}
