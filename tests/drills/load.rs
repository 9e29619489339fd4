//! Submission: on a schedule that no answer holds up, by so many callers, or in batches.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use millrace_proto::{
    common::v1::{Command, TaskSpec, task_spec::Payload},
    distributor::v1::{BatchSubmitTasksRequest, SubmitTaskRequest, batch_submit_result},
};
use millrace_tests::clients::{self, Distributor};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{Code, Response, Status};
use uuid::Uuid;

use crate::{
    judge::now_ns,
    pace::{self, Pace},
};

/// Tasks in a call of BatchSubmitTasks.
const BATCH: usize = 500;

/// How long a submission is tried, and the pause after every replica has turned it down.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// The number of the field `concurrency_key` in a spec.
const CHANGED: u32 = 6;

// ── Specs ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Specs of one measurement.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    /// By which its tasks are told from others.
    pub(crate) tenant: String,
    /// Not before this moment.
    pub(crate) not_before_ns: Option<u64>,
}

impl Kind {
    pub(crate) fn of(tenant: &str) -> Self {
        Self { tenant: tenant.to_owned(), not_before_ns: None }
    }

    /// A spec as this release writes it, or, `next`, as one in which `concurrency_key` is a number.
    pub(crate) fn spec(&self, number: u64, next: bool) -> Bytes {
        let command = Command {
            argv: vec!["append".into()],
            env: [("FILLER".to_owned(), "x".repeat(300))].into(),
            ..Command::default()
        };
        let not_before = self.not_before_ns.map(|ns| prost_types::Timestamp {
            seconds: (ns / 1_000_000_000) as i64,
            nanos: (ns % 1_000_000_000) as i32,
        });
        let spec = TaskSpec {
            tenant: self.tenant.clone(),
            executor: "process".into(),
            concurrency_key: if next { String::new() } else { format!("key-{number}") },
            not_before,
            payload: Some(Payload::Command(command)),
            ..TaskSpec::default()
        };
        let mut bytes = spec.encode_to_vec();
        if next {
            encode_key(CHANGED, WireType::Varint, &mut bytes);
            encode_varint(number, &mut bytes);
        }
        bytes.into()
    }
}

// ── Replicas ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A replica of the distributor, as submitters see it.
struct Replica {
    client: Distributor,
    /// Whether it is of the release in which `concurrency_key` is a number.
    next: AtomicBool,
}

/// All of them; clones are the same.
#[derive(Clone)]
pub(crate) struct Replicas(Arc<Vec<Replica>>);

impl Replicas {
    pub(crate) fn new(endpoints: &[String]) -> Self {
        let replica = |endpoint: &String| Replica { client: clients::distributor(endpoint), next: false.into() };
        Self(Arc::new(endpoints.iter().map(replica).collect()))
    }

    /// Says of which release a replica is from now on; while it is away.
    pub(crate) fn set_next(&self, replica: usize, next: bool) {
        self.0[replica].next.store(next, Ordering::Relaxed);
    }

    /// Submits until somebody answers; every try has the same request id, and the form of the release that is asked. The replicas
    /// take turns by the number.
    async fn submit(&self, kind: &Kind, number: u64) -> Result<Uuid> {
        let request_id = Uuid::now_v7().to_string();
        let deadline = Instant::now() + PATIENCE;
        let mut tries = number as usize;
        loop {
            let replica = &self.0[tries % self.0.len()];
            tries += 1;
            let spec = kind.spec(number, replica.next.load(Ordering::Relaxed));
            let request = SubmitTaskRequest { request_id: request_id.clone(), spec };
            match replica.client.clone().submit_task(request).await {
                Ok(answer) => return task_id(&answer.into_inner().task.context("an answer without a task")?.id),
                // One may be on its way to another release: it does not know the form that it was asked in.
                Err(status) if may_pass(status.code()) || status.code() == Code::InvalidArgument => {
                    if Instant::now() > deadline {
                        bail!("nobody takes a submission: {status:?}");
                    }
                    if tries.is_multiple_of(self.0.len()) {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                // A try whose answer was lost in a deploy has stored it, in the other release's form; the refusal names the task.
                Err(status) if status.code() == Code::AlreadyExists => {
                    let words = status.message().split(' ');
                    let stored = words.filter(|word| word.len() == 36).find_map(|word| Uuid::try_parse(word).ok());
                    return stored.with_context(|| format!("no task is named: {status:?}"));
                }
                Err(status) => bail!("a submission failed: {status:?}"),
            }
        }
    }

    /// Submits tasks in batches, one after the other, and returns their ids in order.
    pub(crate) async fn batch(&self, kinds: &[Kind]) -> Result<Vec<Uuid>> {
        let mut ids = Vec::with_capacity(kinds.len());
        for (number, part) in kinds.chunks(BATCH).enumerate() {
            let replica = &self.0[number % self.0.len()];
            let next = replica.next.load(Ordering::Relaxed);
            let request = |(at, kind): (usize, &Kind)| SubmitTaskRequest {
                request_id: Uuid::now_v7().to_string(),
                spec: kind.spec((number * BATCH + at) as u64, next),
            };
            let request = BatchSubmitTasksRequest { requests: part.iter().enumerate().map(request).collect() };
            let call = || async { replica.client.clone().batch_submit_tasks(request.clone()).await };
            for result in until_answered(call).await.context("a batch was refused")?.results {
                match result.result {
                    Some(batch_submit_result::Result::TaskId(id)) => ids.push(task_id(&id)?),
                    other => bail!("a task of a batch was refused: {other:?}"),
                }
            }
        }
        Ok(ids)
    }
}

/// Calls until there is an answer after which nobody tries again.
pub(crate) async fn until_answered<T, F: Future<Output = Result<Response<T>, Status>>>(
    call: impl Fn() -> F,
) -> Result<T, Status> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Err(status) if may_pass(status.code()) && Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            answer => return answer.map(Response::into_inner),
        }
    }
}

/// Whether clients try again after this. A connection that was closed in order shows as an internal error of HTTP/2.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::Internal
    )
}

fn task_id(text: &str) -> Result<Uuid> {
    Uuid::try_parse(text).with_context(|| format!("`{text}` is no task's id"))
}

// ── Load ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A task that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) task: Uuid,
    /// When it was to be submitted, in nanoseconds since 1970.
    pub(crate) due_ns: u64,
}

/// Submissions on a schedule, under way.
pub(crate) struct Open {
    pace: Pace,
    answers: mpsc::UnboundedReceiver<Result<Sent>>,
}

impl Open {
    /// Begins to submit `rate` tasks a second, `count` in all.
    pub(crate) fn start(replicas: &Replicas, kind: Kind, rate: f64, count: u64) -> Self {
        // Bounded by the number of submissions; it ends when the schedule and every call have dropped their senders.
        let (sender, answers) = mpsc::unbounded_channel();
        let (replicas, kind, runtime) = (replicas.clone(), Arc::new(kind), tokio::runtime::Handle::current());
        let pace = pace::keep(rate, count, move |number, due| {
            let due_ns = now_ns() - due.elapsed().as_nanos() as u64;
            let (replicas, kind, sender) = (replicas.clone(), kind.clone(), sender.clone());
            runtime.spawn(async move {
                let sent = replicas.submit(&kind, number).await.map(|task| Sent { task, due_ns });
                // Nobody listens when the drill has failed already.
                let _ = sender.send(sent);
            });
        });
        Self { pace, answers }
    }

    /// Waits for the end of the schedule and every answer.
    pub(crate) async fn finish(mut self) -> Result<Vec<Sent>> {
        let mut sent = Vec::new();
        while let Some(answer) = self.answers.recv().await {
            sent.push(answer?);
        }
        Ok(sent)
    }

    /// Ends the schedule and waits for the answers.
    pub(crate) async fn stop(self) -> Result<Vec<Sent>> {
        let Self { pace, answers } = self;
        drop(pace);
        // The schedule looks for its end once more before it drops its sender.
        Self { pace: pace::keep(1.0, 0, |_, _| ()), answers }.finish().await
    }
}

/// Submits by so many callers at a time, each of which waits for its answer, and returns what was acknowledged.
pub(crate) async fn closed(replicas: &Replicas, kind: &Kind, callers: u64, time: Duration) -> Result<Vec<Uuid>> {
    let until = Instant::now() + time;
    let mut running = JoinSet::new();
    for caller in 0..callers {
        let (replicas, kind) = (replicas.clone(), kind.clone());
        running.spawn(async move {
            let mut tasks = Vec::new();
            while Instant::now() < until {
                tasks.push(replicas.submit(&kind, caller).await?);
            }
            Ok(tasks)
        });
    }
    let mut all = Vec::new();
    while let Some(tasks) = running.join_next().await {
        let tasks: Result<Vec<Uuid>> = tasks?;
        all.extend(tasks?);
    }
    Ok(all)
}
