//! A distributor that answers as a test tells it to, and the binary run against it.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod quarantine;
pub(crate) mod scaler;

use std::collections::VecDeque;
use std::pin::Pin;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt, stream};
use millrace_proto::common::v1::{Outcome, OutcomeKind, OutputChunk, OutputStream, TaskState};
use millrace_proto::distributor::v1::distributor_service_server::{DistributorService, DistributorServiceServer};
use millrace_proto::distributor::v1::quarantine_service_server::QuarantineServiceServer;
use millrace_proto::distributor::v1::watch_task_response::Event;
use millrace_proto::distributor::v1::*;
use millrace_proto::queue::v1::queue_service_server::{QueueService, QueueServiceServer};
use millrace_proto::queue::v1::*;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::Notify;
use tonic::{Request, Response, Status, Streaming};

/// The id of every task that the fake stores.
pub(crate) const ID: &str = "0197f2a0-5c1e-7bd4-9d3c-0f3a1c2b4d5e";

/// One stream of WatchTask: its events, and how it ends.
pub(crate) struct Script {
    pub(crate) events: Vec<WatchTaskResponse>,
    pub(crate) end: End,
}

/// How a scripted stream ends.
pub(crate) enum End {
    /// As the server ends it.
    Close,
    /// With an error.
    Error(Status),
    /// After CancelTask was called: with the task CANCELLED.
    Cancelled,
}

/// What the fake was told, and what it saw.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) submit: Mutex<VecDeque<Result<SubmitTaskResponse, Status>>>,
    pub(crate) batch: Mutex<VecDeque<Result<BatchSubmitTasksResponse, Status>>>,
    pub(crate) watch: Mutex<VecDeque<Script>>,
    pub(crate) tasks: Mutex<Vec<Task>>,
    pub(crate) status: Mutex<Option<GetStatusResponse>>,
    pub(crate) queues: Mutex<Vec<Queue>>,
    pub(crate) updates: Mutex<Vec<UpdateQueueRequest>>,
    pub(crate) submitted: Mutex<Vec<SubmitTaskRequest>>,
    pub(crate) batches: Mutex<Vec<BatchSubmitTasksRequest>>,
    pub(crate) quarantine: quarantine::Quarantine,
    pub(crate) watched: Notify,
    pub(crate) waiting: Mutex<Option<tokio::sync::oneshot::Sender<()>>>,
    /// How many of the next submissions get no answer.
    pub(crate) unanswered: AtomicU32,
}

/// Takes connections and never says a word, as a process does that is stopped.
pub(crate) struct Silent {
    _listener: std::net::TcpListener,
    pub(crate) endpoint: String,
}

impl Silent {
    pub(crate) fn new() -> Silent {
        // The system completes connections by itself; nobody has to accept them.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        Silent { _listener: listener, endpoint }
    }
}

impl Fake {
    /// Serves a fake on a port of its own and gives its endpoint.
    pub(crate) async fn serve(self) -> (Arc<Fake>, String) {
        let fake = Arc::new(self);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(DistributorServiceServer::from_arc(fake.clone()))
            .add_service(QueueServiceServer::from_arc(fake.clone()))
            .add_service(QuarantineServiceServer::from_arc(fake.clone()))
            .serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener));
        tokio::spawn(server);
        (fake, endpoint)
    }

    /// A fake that stores a task and plays these streams for it, one for each call.
    pub(crate) fn watching(scripts: impl IntoIterator<Item = Script>) -> Fake {
        let stored = SubmitTaskResponse { task: Some(task(TaskState::Queued)), existing: false };
        Fake {
            submit: Mutex::new([Ok(stored)].into()),
            watch: Mutex::new(scripts.into_iter().collect()),
            ..Default::default()
        }
    }
}

/// A task in a state.
pub(crate) fn task(state: TaskState) -> Task {
    Task { id: ID.into(), queue: "default".into(), state: state.into(), ..Default::default() }
}

/// A task that ended, with what is kept of its output.
pub(crate) fn ended(
    state: TaskState,
    kind: OutcomeKind,
    exit_code: Option<i32>,
    tail: &str,
    output_bytes: u64,
) -> Task {
    let outcome = Outcome {
        kind: kind.into(),
        exit_code,
        output_tail: tail.to_owned().into(),
        output_bytes,
        ..Default::default()
    };
    Task { attempt: 1, outcome: Some(outcome), ..task(state) }
}

/// An event with a task.
pub(crate) fn state(task: Task) -> WatchTaskResponse {
    WatchTaskResponse { event: Some(Event::Task(task)) }
}

/// An event with output of the first attempt.
pub(crate) fn output(stream: OutputStream, offset: u64, data: &str) -> WatchTaskResponse {
    let chunk = OutputChunk { stream: stream.into(), offset, data: data.to_owned().into() };
    WatchTaskResponse { event: Some(Event::Output(TaskOutput { attempt: 1, chunk: Some(chunk) })) }
}

/// A command of the binary against an endpoint, with nothing of this process's own configuration.
pub(crate) fn millrace(endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MILLRACE_")) {
        command.env_remove(name);
    }
    command.env("MILLRACE_ENDPOINT", endpoint).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What the binary did.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs the binary to its end.
pub(crate) async fn run(endpoint: &str, args: &[&str]) -> Ran {
    millrace(endpoint, args).output().await.unwrap().into()
}

fn next<T>(queue: &Mutex<VecDeque<T>>) -> Result<T, Status> {
    queue.lock().unwrap().pop_front().ok_or_else(|| Status::internal("the test has no answer for this call"))
}

#[tonic::async_trait]
impl DistributorService for Fake {
    type WatchTaskStream = Pin<Box<dyn Stream<Item = Result<WatchTaskResponse, Status>> + Send>>;
    type ConnectOrchestratorStream = Pin<Box<dyn Stream<Item = Result<ConnectOrchestratorResponse, Status>> + Send>>;

    async fn submit_task(&self, request: Request<SubmitTaskRequest>) -> Result<Response<SubmitTaskResponse>, Status> {
        self.submitted.lock().unwrap().push(request.into_inner());
        let less = |left: u32| left.checked_sub(1);
        if self.unanswered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
            std::future::pending::<()>().await;
        }
        next(&self.submit)?.map(Response::new)
    }

    async fn batch_submit_tasks(
        &self,
        request: Request<BatchSubmitTasksRequest>,
    ) -> Result<Response<BatchSubmitTasksResponse>, Status> {
        self.batches.lock().unwrap().push(request.into_inner());
        next(&self.batch)?.map(Response::new)
    }

    async fn watch_task(&self, _: Request<WatchTaskRequest>) -> Result<Response<Self::WatchTaskStream>, Status> {
        let script = next(&self.watch)?;
        self.watched.notify_one();
        let events = stream::iter(script.events.into_iter().map(Ok));
        Ok(Response::new(match script.end {
            End::Close => events.boxed(),
            End::Error(status) => events.chain(stream::iter([Err(status)])).boxed(),
            End::Cancelled => {
                let (send, receive) = tokio::sync::oneshot::channel();
                *self.waiting.lock().unwrap() = Some(send);
                let last = stream::once(async move {
                    let _ = receive.await;
                    Ok(state(ended(TaskState::Cancelled, OutcomeKind::Cancelled, None, "", 0)))
                });
                events.chain(last).boxed()
            }
        }))
    }

    async fn cancel_task(&self, request: Request<CancelTaskRequest>) -> Result<Response<CancelTaskResponse>, Status> {
        assert_eq!(request.into_inner().id, ID);
        if let Some(send) = self.waiting.lock().unwrap().take() {
            let _ = send.send(());
        }
        Ok(Response::new(CancelTaskResponse { task: Some(task(TaskState::Cancelling)) }))
    }

    async fn get_task(&self, request: Request<GetTaskRequest>) -> Result<Response<GetTaskResponse>, Status> {
        let id = request.into_inner().id;
        let found = self.tasks.lock().unwrap().iter().find(|task| task.id == id).cloned();
        found
            .map(|task| Response::new(GetTaskResponse { task: Some(task) }))
            .ok_or_else(|| Status::not_found("there is no such task"))
    }

    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        // Two tasks a page at most, so that a list has several, and an empty page in between as the contract allows.
        let start: usize = request.into_inner().page_token.parse().unwrap_or(0);
        let tasks = self.tasks.lock().unwrap();
        let page = tasks.iter().skip(start).take(if start == 2 { 0 } else { 2 }).cloned().collect();
        let next = if start == 2 { 3 } else { start + 2 };
        let next_page_token = if next <= tasks.len() { next.to_string() } else { String::new() };
        Ok(Response::new(ListTasksResponse { tasks: page, next_page_token }))
    }

    async fn retry_task(&self, request: Request<RetryTaskRequest>) -> Result<Response<RetryTaskResponse>, Status> {
        Err(Status::failed_precondition(format!("task {} has not ended: it is RUNNING", request.into_inner().id)))
    }

    async fn explain_task(&self, _: Request<ExplainTaskRequest>) -> Result<Response<ExplainTaskResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_routes(&self, _: Request<ListRoutesRequest>) -> Result<Response<ListRoutesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn set_route(&self, _: Request<SetRouteRequest>) -> Result<Response<SetRouteResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_route(&self, _: Request<DeleteRouteRequest>) -> Result<Response<DeleteRouteResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn connect_orchestrator(
        &self,
        _: Request<Streaming<ConnectOrchestratorRequest>>,
    ) -> Result<Response<Self::ConnectOrchestratorStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let status = self.status.lock().unwrap().clone();
        status.map(Response::new).ok_or_else(|| Status::unavailable("the database does not answer"))
    }
}

#[tonic::async_trait]
impl QueueService for Fake {
    type WatchQueuesStream = Pin<Box<dyn Stream<Item = Result<WatchQueuesResponse, Status>> + Send>>;
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<ExchangeResponse, Status>> + Send>>;

    async fn list_queues(&self, _: Request<ListQueuesRequest>) -> Result<Response<ListQueuesResponse>, Status> {
        let queues = self.queues.lock().unwrap().clone();
        Ok(Response::new(ListQueuesResponse { queues, next_page_token: String::new() }))
    }

    async fn pause_queue(&self, request: Request<PauseQueueRequest>) -> Result<Response<PauseQueueResponse>, Status> {
        let request = request.into_inner();
        let mut queues = self.queues.lock().unwrap();
        let queue = queues.iter_mut().find(|queue| queue.name == request.name);
        let queue = queue.ok_or_else(|| Status::not_found("there is no such queue"))?;
        queue.pause = Some(Pause { reason: request.reason, until: request.until, since: None });
        Ok(Response::new(PauseQueueResponse { queue: Some(queue.clone()) }))
    }

    async fn update_queue(
        &self,
        request: Request<UpdateQueueRequest>,
    ) -> Result<Response<UpdateQueueResponse>, Status> {
        let request = request.into_inner();
        self.updates.lock().unwrap().push(request.clone());
        Ok(Response::new(UpdateQueueResponse { queue: request.queue }))
    }

    async fn watch_queues(&self, _: Request<WatchQueuesRequest>) -> Result<Response<Self::WatchQueuesStream>, Status> {
        let queues = self.queues.lock().unwrap().clone();
        // One look, and then a refusal, so that the watch ends.
        let events = [Ok(WatchQueuesResponse { queues }), Err(Status::not_found("the queue is gone"))];
        Ok(Response::new(stream::iter(events).boxed()))
    }

    async fn create_queue(&self, _: Request<CreateQueueRequest>) -> Result<Response<CreateQueueResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_queue(&self, request: Request<GetQueueRequest>) -> Result<Response<GetQueueResponse>, Status> {
        let name = request.into_inner().name;
        let found = self.queues.lock().unwrap().iter().find(|queue| queue.name == name).cloned();
        found
            .map(|queue| Response::new(GetQueueResponse { queue: Some(queue) }))
            .ok_or_else(|| Status::not_found(format!("there is no queue `{name}`")))
    }

    async fn delete_queue(&self, _: Request<DeleteQueueRequest>) -> Result<Response<DeleteQueueResponse>, Status> {
        Err(Status::failed_precondition("the route `r` names the queue"))
    }

    async fn resume_queue(&self, _: Request<ResumeQueueRequest>) -> Result<Response<ResumeQueueResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn exchange(&self, _: Request<Streaming<ExchangeRequest>>) -> Result<Response<Self::ExchangeStream>, Status> {
        Err(Status::unimplemented(""))
    }
}
