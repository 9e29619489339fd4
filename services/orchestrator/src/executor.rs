//! What runs attempts, and what it is given to do so.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use millrace_proto::common::v1::{OutputChunk, OutputStream, TaskSpec};
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::{
    Outcome,
    book::LocalId,
    output::{Ring, Signals},
};

/// Runs attempts of tasks. One executor serves all slots of an orchestrator at the same time.
pub trait Executor: Send + Sync + 'static {
    /// The executor's name, as a spec's `executor` gives it.
    fn name(&self) -> &str;

    /// Runs one attempt to its end. When [`AttemptHandle::cancelled`] resolves it should end soon, with
    /// [`Outcome::stopped`] or with whatever it ended with first; a future that outstays the stop limit is dropped, and
    /// dropping it must stop the work. A panic is reported as the attempt's failure.
    fn run(&self, attempt: AttemptHandle) -> BoxFuture<'_, Outcome>;

    /// Whether this executor can run the spec; the error is a sentence for people, and the attempt ends as unsupported.
    /// By default any payload whose `executor` has this one's name.
    fn supports(&self, spec: &TaskSpec) -> Result<(), String> {
        match spec.executor == self.name() {
            true => Ok(()),
            false => Err(format!("this orchestrator runs `{}`, not `{}`", self.name(), spec.executor)),
        }
    }

    /// Runs an attempt that takes next to no time right in the connection's loop, which saves it a task of its own. It
    /// must not block. None, the default, has it run by [`Self::run`].
    fn run_inline(&self, attempt: &Attempt) -> Option<Outcome> {
        let _ = attempt;
        None
    }

    /// Whether the executor is fit for work; the error is a sentence for people. Asked before the first assignment and
    /// then every check interval. While it fails no work is asked for, and what runs goes on.
    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl<E: Executor + ?Sized> Executor for Arc<E> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn run(&self, attempt: AttemptHandle) -> BoxFuture<'_, Outcome> {
        (**self).run(attempt)
    }

    fn supports(&self, spec: &TaskSpec) -> Result<(), String> {
        (**self).supports(spec)
    }

    fn run_inline(&self, attempt: &Attempt) -> Option<Outcome> {
        (**self).run_inline(attempt)
    }

    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        (**self).check()
    }
}

/// One attempt of a task, as it was assigned.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// The task's id.
    pub task_id: Uuid,
    /// The attempt's number, from 1.
    pub attempt: i32,
    /// The queue it came from.
    pub queue: String,
    /// The spec as far as this build knows it.
    pub spec: TaskSpec,
    /// The spec byte for byte as it was submitted, with what this build does not know.
    pub spec_bytes: Bytes,
    /// How long it may run; the library says when that is over.
    pub timeout: Option<Duration>,
    /// The W3C traceparent of the submission; may be empty.
    pub traceparent: String,
    /// When it was claimed, by the database's clock.
    pub dispatch_time: Option<SystemTime>,
}

/// Why an attempt has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The task is being cancelled.
    Cancelled,
    /// It ran past its timeout.
    TimedOut,
    /// The session does not hold it any more. Nothing will be reported of it.
    Revoked,
    /// The task is exclusive, and its lease could not be renewed.
    LeaseExpiring,
    /// The orchestrator drains, and the time for that is over.
    Draining,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cancelled => "the task was cancelled",
            Self::TimedOut => "the attempt ran past its timeout",
            Self::Revoked => "the lease went to another",
            Self::LeaseExpiring => "the task is exclusive and its lease could not be renewed in time",
            Self::Draining => "the orchestrator shuts down",
        })
    }
}

/// The order to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// When nothing of the attempt may run any more, where that matters. Without it the executor's own grace counts.
    pub deadline: Option<Instant>,
    /// When the library drops the attempt's future.
    pub(crate) abort_at: Instant,
}

impl Stop {
    pub(crate) fn new(reason: StopReason, limit: Duration) -> Self {
        Self { reason, deadline: None, abort_at: Instant::now() + limit }
    }
}

/// What an executor holds of an attempt that runs: its content, its output, and word when it must stop. Clones are the
/// same attempt.
#[derive(Debug, Clone)]
pub struct AttemptHandle {
    pub(crate) control: Arc<Control>,
}

impl AttemptHandle {
    /// An attempt that belongs to no session, for tests of an executor, and the other end of it. Its output ring keeps
    /// `ring_bytes`.
    pub fn detached(attempt: Attempt, ring_bytes: usize) -> (Self, Remote) {
        let control = Arc::new(Control::new(attempt, LocalId(0), ring_bytes, Arc::default()));
        (Self { control: control.clone() }, Remote { control })
    }

    /// Resolves when the attempt has to stop, at once when it has been told before. Any number of callers may wait.
    pub async fn cancelled(&self) -> Stop {
        let mut stop = self.control.stop.subscribe();
        loop {
            if let Some(stop) = *stop.borrow_and_update() {
                return stop;
            }
            if stop.changed().await.is_err() {
                // The sender lives in the control block that this handle holds, so this is not reached.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The order to stop, if there is one.
    pub fn stop_requested(&self) -> Option<Stop> {
        *self.control.stop.borrow()
    }

    /// Adds output. Never blocks: what the connection does not take in time is overwritten by what comes later.
    pub fn progress(&self, stream: OutputStream, data: &[u8]) {
        self.control.progress(stream, data);
    }

    /// Bytes of output so far.
    pub fn output_bytes(&self) -> u64 {
        self.control.ring().end()
    }
}

impl Deref for AttemptHandle {
    type Target = Attempt;

    fn deref(&self) -> &Attempt {
        &self.control.attempt
    }
}

/// The service's end of a detached attempt.
#[derive(Debug)]
pub struct Remote {
    control: Arc<Control>,
}

impl Remote {
    /// Tells the attempt to stop, by `deadline` where one is given.
    pub fn stop(&self, reason: StopReason, deadline: Option<Instant>) {
        self.control.stop(Stop { reason, deadline, abort_at: Instant::now() + Duration::from_secs(3600) });
    }

    /// Takes the output that was not taken yet.
    pub fn take_output(&self) -> Vec<OutputChunk> {
        self.control.take_output(usize::MAX)
    }

    /// Waits for output that was not taken yet, and takes it.
    pub async fn next_output(&self) -> Vec<OutputChunk> {
        loop {
            let notified = self.control.signals.notify.notified();
            let chunks = self.take_output();
            if !chunks.is_empty() {
                return chunks;
            }
            notified.await;
        }
    }
}

/// What an attempt, its supervisor and the connection's loop share.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) attempt: Attempt,
    local: LocalId,
    pub(crate) stop: watch::Sender<Option<Stop>>,
    /// Held for a copy of one read's bytes at a time, by one writer and the loop.
    ring: Mutex<Ring>,
    /// Whether the attempt is in the signals' list already.
    dirty: AtomicBool,
    signals: Arc<Signals>,
}

impl Control {
    pub(crate) fn new(attempt: Attempt, local: LocalId, ring_bytes: usize, signals: Arc<Signals>) -> Self {
        Self {
            attempt,
            local,
            stop: watch::Sender::new(None),
            ring: Mutex::new(Ring::new(ring_bytes)),
            dirty: AtomicBool::new(false),
            signals,
        }
    }

    pub(crate) fn local(&self) -> LocalId {
        self.local
    }

    /// The first reason stays; a later order can only bring the end nearer.
    pub(crate) fn stop(&self, order: Stop) {
        self.stop.send_modify(|stop| match stop {
            None => *stop = Some(order),
            Some(stop) => {
                stop.deadline = match (stop.deadline, order.deadline) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
                stop.abort_at = stop.abort_at.min(order.abort_at);
            }
        });
    }

    pub(crate) fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_output(&self, limit: usize) -> Vec<OutputChunk> {
        // Cleared first: output that comes in between is marked again, and then found taken at worst.
        self.dirty.store(false, Ordering::SeqCst);
        self.ring().take(limit)
    }

    fn progress(&self, stream: OutputStream, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.ring().push(stream, data);
        if !self.dirty.swap(true, Ordering::SeqCst) {
            self.signals.mark(self.attempt.task_id, self.local);
        }
    }
}
