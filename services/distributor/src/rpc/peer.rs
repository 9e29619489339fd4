//! What other replicas ask.

use std::sync::Arc;

use futures::StreamExt;
use millrace_proto::distributor::v1 as wire;
use millrace_runtime::status::Fault;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Answers;
use crate::{convert, shared::Shared};

/// Answers that may wait for the peer; when they are full the output behind them drops chunks (see `output`).
const WAITING: usize = 64;

/// Streams what this replica has of a task's output until the task ends.
pub(super) async fn watch_output(
    shared: &Arc<Shared>,
    request: wire::WatchOutputRequest,
) -> Result<Answers<wire::WatchOutputResponse>, Fault> {
    let id = convert::task_id(&request.task_id, "task_id")?;
    let mut latest = shared.watches.subscribe(id)?;
    let (kept, mut live) = shared.outputs.watch(id);
    let (sender, receiver) = mpsc::channel(WAITING);
    let shared = shared.clone();
    tokio::spawn(async move {
        for output in kept {
            if sender.send(output).await.is_err() {
                return;
            }
        }
        shared.watches.nudge(id);
        loop {
            tokio::select! {
                biased;
                output = live.recv() => match output {
                    Some(output) => if sender.send(output).await.is_err() { return },
                    None => return,
                },
                changed = latest.changed() => {
                    let ended = latest.borrow_and_update().as_ref().is_some_and(|seen| seen.is_terminal());
                    if changed.is_err() || ended {
                        while let Ok(output) = live.try_recv() {
                            if sender.send(output).await.is_err() { return }
                        }
                        return;
                    }
                }
                () = sender.closed() => return,
                () = shared.context.shutdown.draining() => return,
            }
        }
    });
    let answers =
        ReceiverStream::new(receiver).map(|output| Ok::<_, Status>(wire::WatchOutputResponse { output: Some(output) }));
    Ok(Box::pin(answers))
}
