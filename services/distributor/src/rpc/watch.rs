//! Following one task: its states from the database, its output from whichever replica has its stream.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use millrace_core::id::TaskId;
use millrace_proto::{
    common::v1::{OutputChunk, OutputStream},
    distributor::v1::{self as wire, peer_service_client::PeerServiceClient, watch_task_response::Event},
};
use millrace_runtime::status::Fault;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Answers, tasks::find};
use crate::{convert, quarantine::Seen, shared::Shared, watch::Latest};

/// Events that may wait for the caller; when they are full, output behind them drops chunks (see `output`).
const WAITING: usize = 64;

/// How long the rest of another replica's output is waited for once the task has ended.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

pub(super) async fn task(
    shared: &Arc<Shared>,
    request: wire::WatchTaskRequest,
) -> Result<Answers<wire::WatchTaskResponse>, Fault> {
    let id = convert::task_id(&request.id, "id")?;
    // Subscribed before the first read, so that no change falls in between.
    let latest = shared.watches.subscribe(id)?;
    let row = Arc::new(find(shared, id).await?);
    let (events, receiver) = mpsc::channel(WAITING);
    let follower = Follower {
        shared: shared.clone(),
        id,
        with_output: !request.without_output,
        events,
        attempt: 0,
        shown: 0,
        remote: None,
    };
    tokio::spawn(async move {
        // An error means that the caller has gone.
        let _ = follower.run(latest, row).await;
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

struct Follower {
    shared: Arc<Shared>,
    id: TaskId,
    with_output: bool,
    events: mpsc::Sender<Result<wire::WatchTaskResponse, Status>>,
    /// The attempt whose output was shown last, and how many of its bytes.
    attempt: i32,
    shown: u64,
    /// Output from another replica, and which.
    remote: Option<(String, mpsc::Receiver<wire::TaskOutput>)>,
}

/// The caller has gone.
struct Gone;

impl Follower {
    async fn run(mut self, mut latest: Latest, mut row: Arc<Seen>) -> Result<(), Gone> {
        let (kept, mut local) = self.shared.outputs.watch(self.id);
        if !row.is_terminal() {
            self.send(Event::Task(row.to_wire())).await?;
        }
        self.follow_remote(&row);
        for output in kept {
            self.output(output).await?;
        }
        while !row.is_terminal() {
            tokio::select! {
                biased;
                output = local.recv() => if let Some(output) = output { self.output(output).await? },
                output = from_remote(&mut self.remote) => match output {
                    Some(output) => self.output(output).await?,
                    None => self.remote = None,
                },
                changed = latest.changed() => {
                    let newest = latest.borrow_and_update().clone();
                    if changed.is_err() { return Err(Gone) }
                    if let Some(newest) = newest.filter(|newest| differs(&row, newest)) {
                        row = newest;
                        self.follow_remote(&row);
                        if !row.is_terminal() {
                            self.send(Event::Task(row.to_wire())).await?;
                        }
                    }
                }
                () = self.events.closed() => return Err(Gone),
                () = self.shared.context.shutdown.draining() => {
                    let leaving = Fault::unavailable("this replica is stopping; watch again", Duration::from_millis(200));
                    let _ = self.events.send(Err(leaving.into())).await;
                    return Err(Gone);
                }
            }
        }
        while let Ok(output) = local.try_recv() {
            self.output(output).await?;
        }
        self.rest_of_remote().await?;
        self.tail(&row).await?;
        self.send(Event::Task(row.to_wire())).await
    }

    async fn send(&self, event: Event) -> Result<(), Gone> {
        self.events.send(Ok(wire::WatchTaskResponse { event: Some(event) })).await.map_err(|_| Gone)
    }

    /// Passes output on, once.
    async fn output(&mut self, mut output: wire::TaskOutput) -> Result<(), Gone> {
        let Some(chunk) = output.chunk.as_mut().filter(|_| self.with_output && output.attempt >= self.attempt) else {
            return Ok(());
        };
        if output.attempt > self.attempt {
            (self.attempt, self.shown) = (output.attempt, 0);
        }
        let known = self.shown.saturating_sub(chunk.offset);
        if known >= chunk.data.len() as u64 {
            return Ok(());
        }
        chunk.data = chunk.data.slice(known as usize..);
        chunk.offset += known;
        self.shown = chunk.offset + chunk.data.len() as u64;
        self.send(Event::Output(output)).await
    }

    /// Asks the replica that has the task's stream, if that is another one.
    fn follow_remote(&mut self, row: &Seen) {
        let Some(row) = row.task() else { return };
        let elsewhere = !row.replica.is_empty() && row.replica != self.shared.context.endpoint;
        let known = self.remote.as_ref().is_some_and(|(replica, _)| *replica == row.replica);
        if !self.with_output || !elsewhere || known {
            return;
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        self.remote = Some((row.replica.clone(), receiver));
        let (replica, task_id) = (row.replica.clone(), self.id.to_string());
        tokio::spawn(async move {
            if let Err(status) = forward(replica, task_id, sender).await {
                tracing::debug!(%status, "another replica's output cannot be watched");
            }
        });
    }

    async fn rest_of_remote(&mut self) -> Result<(), Gone> {
        let deadline = tokio::time::Instant::now() + LAST_OUTPUT;
        while self.remote.is_some() {
            match tokio::time::timeout_at(deadline, from_remote(&mut self.remote)).await {
                Ok(Some(output)) => self.output(output).await?,
                Ok(None) | Err(_) => self.remote = None,
            }
        }
        Ok(())
    }

    /// Fills in from the stored tail what was not seen live. The tail does not tell the streams apart.
    async fn tail(&mut self, row: &Seen) -> Result<(), Gone> {
        let Some((row, outcome)) = row.task().and_then(|row| Some((row, row.outcome.as_ref()?))) else {
            return Ok(());
        };
        let start = u64::try_from(outcome.output_bytes).unwrap_or(0).saturating_sub(outcome.output_tail.len() as u64);
        let chunk = OutputChunk {
            stream: OutputStream::Stdout as i32,
            offset: start,
            data: Bytes::from(outcome.output_tail.clone()),
        };
        self.output(wire::TaskOutput { attempt: row.attempt, chunk: Some(chunk) }).await
    }
}

fn differs(row: &Seen, newest: &Seen) -> bool {
    match (row, newest) {
        (Seen::Task(row), Seen::Task(newest)) => {
            (newest.state, newest.attempt, newest.started_at_us) != (row.state, row.attempt, row.started_at_us)
        }
        (Seen::SetAside(row), Seen::SetAside(newest)) => {
            (&newest.defect, newest.first_seen_us) != (&row.defect, row.first_seen_us)
        }
        _ => true,
    }
}

async fn from_remote(remote: &mut Option<(String, mpsc::Receiver<wire::TaskOutput>)>) -> Option<wire::TaskOutput> {
    match remote {
        Some((_, receiver)) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

async fn forward(replica: String, task_id: String, sender: mpsc::Sender<wire::TaskOutput>) -> Result<(), Status> {
    let unusable = |error: tonic::transport::Error| Status::from(Fault::unavailable(error.to_string(), Duration::ZERO));
    let channel = tonic::transport::Endpoint::from_shared(replica)
        .map_err(unusable)?
        .connect_timeout(LAST_OUTPUT)
        .connect()
        .await
        .map_err(unusable)?;
    let mut stream =
        PeerServiceClient::new(channel).watch_output(wire::WatchOutputRequest { task_id }).await?.into_inner();
    while let Some(response) = stream.message().await? {
        if let Some(output) = response.output
            && sender.send(output).await.is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use millrace_core::task::State;
    use millrace_proto::common::v1::TaskState;
    use millrace_store::{Audit, Store};

    use super::*;
    use crate::{fixture, watch};

    #[tokio::test]
    async fn a_watch_goes_on_while_its_task_is_set_aside() {
        let replica = fixture::replica();
        let (shared, id) = (&replica.shared, replica.submit(1));
        tokio::spawn(watch::run(shared.clone()));
        let request = wire::WatchTaskRequest { id: id.to_string(), without_output: true };
        let mut events = task(shared, request).await.unwrap();
        let mut next = async || match events.next().await.unwrap().unwrap().event.unwrap() {
            Event::Task(task) => task,
            Event::Output(_) => panic!("there is no output"),
        };
        assert_eq!(next().await.state, TaskState::Queued as i32);
        replica.store.quarantine(id);
        shared.watches.nudge(id);
        let aside = next().await;
        assert_eq!(aside.state, TaskState::Quarantined as i32);
        assert!(aside.quarantine.is_some());
        let audit = Audit { action: "test".into(), subject: String::new(), detail: String::new() };
        replica.store.release(&[id], &audit).unwrap();
        shared.watches.nudge(id);
        assert_eq!(next().await.state, TaskState::Queued as i32);
        assert_eq!(replica.store.task(id).unwrap().unwrap().state, State::Queued);
    }
}
