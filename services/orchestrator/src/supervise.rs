//! Runs one attempt under its timeout and its orders to stop.

use std::{
    any::Any,
    future::pending,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::FutureExt;
use tokio::time::{sleep, sleep_until};
use uuid::Uuid;

use crate::{AttemptHandle, Executor, Outcome, Stop, StopReason, book::LocalId, executor::Control};

/// An attempt whose executor has returned.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) task: Uuid,
    pub(crate) local: LocalId,
    /// When the executor was called.
    pub(crate) started: SystemTime,
    pub(crate) outcome: Outcome,
}

/// Runs the attempt to its end, whatever the executor does: a panic is a failure, and one that outstays an order to stop
/// by more than `stop_limit` is dropped.
pub(crate) async fn supervise(executor: Arc<dyn Executor>, control: Arc<Control>, stop_limit: Duration) -> Ended {
    let (task, local, started) = (control.attempt.task_id, control.local(), SystemTime::now());
    let run = AssertUnwindSafe(run(executor, control, stop_limit)).catch_unwind();
    let outcome = run.await.unwrap_or_else(|panic| panicked(&*panic));
    Ended { task, local, started, outcome }
}

async fn run(executor: Arc<dyn Executor>, control: Arc<Control>, stop_limit: Duration) -> Outcome {
    tokio::select! {
        biased;
        outcome = executor.run(AttemptHandle { control: control.clone() }) => outcome,
        stop = overstay(&control, stop_limit) => {
            let task_id = control.attempt.task_id;
            tracing::warn!(%task_id, reason = %stop.reason, "attempt did not stop in time and was dropped");
            Outcome::stopped(stop.reason)
        }
    }
}

pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Outcome {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Outcome::failed(format!("the executor panicked: {}", text.unwrap_or("no message")))
}

/// Gives the order to stop when the timeout is over, and resolves when the attempt has outstayed whichever order it got.
async fn overstay(control: &Control, stop_limit: Duration) -> Stop {
    let mut stops = control.stop.subscribe();
    let timeout = async {
        match control.attempt.timeout {
            Some(timeout) => sleep(timeout).await,
            None => pending().await,
        }
    };
    tokio::select! {
        _ = stops.wait_for(Option::is_some) => {}
        () = timeout => control.stop(Stop::new(StopReason::TimedOut, stop_limit)),
    }
    loop {
        let Some(stop) = *stops.borrow_and_update() else { return pending().await };
        // A later order may bring the end nearer.
        tokio::select! {
            () = sleep_until(stop.abort_at) => return stop,
            _ = stops.changed() => {}
        }
    }
}
