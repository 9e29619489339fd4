//! A load of real commands, each submitter waiting for its task before it submits the next, and the judge of what they did.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_proto::{
    common::v1::{OutcomeKind, RetryPolicy, TaskSpec, TaskState},
    distributor::v1 as wire,
};
use millrace_tests::{
    clients::{command, distributor, submission, unknown_field},
    history::{History, Reasons, script},
    net,
};
use prost::Message;
use tokio::{sync::watch, task::JoinHandle};
use tonic::{Code, Status};

/// How long a task, or an answer to it, may take to come.
const PATIENCE: Duration = Duration::from_secs(90);

/// In the place of how many tasks have ended: a submitter has panicked, and nobody need wait for more.
const FAILED: usize = usize::MAX;

/// Tells those who wait for progress that there will be none.
struct Failing(watch::Sender<usize>);

impl Drop for Failing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.send_replace(FAILED);
        }
    }
}

/// Submitters under way.
pub(crate) struct Load {
    endpoints: Vec<String>,
    history: PathBuf,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    /// The slowest answer to a submission so far.
    slowest: Arc<Mutex<Duration>>,
    ended: watch::Sender<usize>,
    submitters: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts so many submitters. Commands write their history into this file.
    pub(crate) fn start(endpoints: &[&str], history: PathBuf, submitters: usize) -> Self {
        let endpoints = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
        let (stop, acknowledged, slowest) = Default::default();
        let mut load = Self {
            endpoints,
            history,
            stop,
            acknowledged,
            slowest,
            ended: watch::Sender::new(0),
            submitters: Vec::new(),
        };
        load.submitters = (0..submitters).map(|number| load.submitter(number)).collect();
        load
    }

    fn submitter(&self, number: usize) -> JoinHandle<()> {
        let (endpoints, ended, stop) = (self.endpoints.clone(), self.ended.clone(), self.stop.clone());
        let (acknowledged, slowest, history) = (self.acknowledged.clone(), self.slowest.clone(), self.history.clone());
        tokio::spawn(async move {
            let _failing = Failing(ended.clone());
            for sent in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let asked = Instant::now();
                let id = submit(&endpoints, &format!("{number}-{sent}"), &spec(&history, "process")).await;
                {
                    let mut slowest = slowest.lock().expect("no submitter has panicked");
                    *slowest = asked.elapsed().max(*slowest);
                }
                acknowledged.lock().expect("no submitter has panicked").insert(id.clone());
                ended_task(&endpoints, &id).await;
                ended.send_if_modified(|count| {
                    *count += usize::from(*count != FAILED);
                    true
                });
            }
        })
    }

    /// Submits one task of this executor beside the load; it is judged like the others.
    pub(crate) async fn submit(&self, request_id: &str, executor: &str) -> String {
        let id = submit(&self.endpoints, request_id, &spec(&self.history, executor)).await;
        self.acknowledged.lock().expect("no submitter has panicked").insert(id.clone());
        id
    }

    /// Waits until so many tasks more have ended.
    pub(crate) async fn progress(&self, more: usize) {
        let mut ended = self.ended.subscribe();
        let wanted = ended.borrow().saturating_add(more);
        let progress =
            tokio::time::timeout(PATIENCE, ended.wait_for(|count| *count >= wanted || *count == FAILED)).await;
        let Ok(progress) = progress else { panic!("no {more} tasks have ended in {PATIENCE:?}") };
        assert_ne!(*progress.expect("the sender is here"), FAILED, "a submitter has failed");
    }

    /// Stops submitting, waits until every task has ended, and judges: nothing lost, nothing doubled. Returns how many tasks
    /// there were and the slowest answer to a submission.
    pub(crate) async fn finish(self) -> (usize, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        for submitter in self.submitters {
            submitter.await.expect("a submitter");
        }
        let acknowledged = self.acknowledged.lock().expect("no submitter has panicked").clone();
        let mut reasons = Reasons::default();
        let mut lost = Vec::new();
        for id in &acknowledged {
            let task = ended_task(&self.endpoints, id).await;
            assert_eq!(task.state, i32::from(TaskState::Succeeded), "{task:?}");
            reasons.last_attempt.insert(id.clone(), task.attempt);
            // A deploy may hand attempts back. One that was claimed for an agent in the moment in which it said goodbye may count as
            // lost, as long as it has never run.
            for attempt in task.attempts {
                let kind = attempt.outcome.map_or(0, |outcome| outcome.kind);
                match OutcomeKind::try_from(kind) {
                    Ok(OutcomeKind::HandedBack) => {}
                    Ok(OutcomeKind::Lost) => lost.push((id, attempt.attempt)),
                    _ => panic!("an attempt of {id} has ended as {kind}"),
                }
                reasons.excused.entry(id.clone()).or_default().insert(attempt.attempt);
            }
        }
        let history = History::read(&std::fs::read_to_string(&self.history).expect("what the commands wrote"));
        let ran = |(id, attempt): &(&String, i32)| {
            history.runs.get(*id).is_some_and(|runs| runs.iter().any(|run| run.attempt == *attempt))
        };
        assert_eq!(lost.into_iter().find(ran), None, "an attempt that ran was lost though no agent died");
        let findings = history.check(&acknowledged, &reasons);
        assert!(findings.is_empty(), "{findings}");
        let slowest = *self.slowest.lock().expect("no submitter has panicked");
        (acknowledged.len(), slowest)
    }
}

/// A command that takes part in the history, with a field that neither release knows.
fn spec(history: &Path, executor: &str) -> Vec<u8> {
    let spec = TaskSpec {
        retry: Some(RetryPolicy { max_losses: Some(100), ..Default::default() }),
        executor: executor.into(),
        ..command(&["sh", "-c", &script(history, "true")])
    };
    [spec.encode_to_vec(), unknown_field(b"from the future")].concat()
}

/// Submits until somebody answers; every try has the same request id.
async fn submit(endpoints: &[String], request_id: &str, spec: &[u8]) -> String {
    let deadline = Instant::now() + PATIENCE;
    for endpoint in endpoints.iter().cycle() {
        let mut request = submission(request_id, &TaskSpec::default());
        request.spec = spec.to_vec().into();
        match distributor(endpoint).submit_task(request).await {
            Ok(answer) => return answer.into_inner().task.expect("a task").id,
            Err(status) => pause_after(&status, deadline).await,
        }
    }
    unreachable!("the endpoints repeat for ever")
}

/// Waits until a task has ended.
pub(crate) async fn ended_task(endpoints: &[String], id: &str) -> wire::Task {
    let deadline = Instant::now() + PATIENCE;
    for endpoint in endpoints.iter().cycle() {
        match distributor(endpoint).get_task(wire::GetTaskRequest { id: id.into() }).await {
            Ok(answer) => {
                let task = answer.into_inner().task.expect("a task");
                if task.outcome.is_some() {
                    return task;
                }
                assert!(Instant::now() < deadline, "task {id} has not ended: {task:?}");
                tokio::task::spawn_blocking(net::pause).await.expect("a pause");
            }
            Err(status) => pause_after(&status, deadline).await,
        }
    }
    unreachable!("the endpoints repeat for ever")
}

/// A moment before the next try, when the status is one after which clients try again.
async fn pause_after(status: &Status, deadline: Instant) {
    let transient = match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted => true,
        Code::ResourceExhausted | Code::DeadlineExceeded => true,
        // A connection that a server closed before it took the call, as the client's own transport tells it.
        Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    };
    assert!(transient && Instant::now() < deadline, "a call failed: {status:?}");
    tokio::task::spawn_blocking(net::pause).await.expect("a pause");
}
