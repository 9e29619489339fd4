//! Executors that do what a test says.

use std::sync::Mutex;

use futures::future::BoxFuture;
use millrace_orchestrator::{Attempt, AttemptHandle, Executor, Outcome, TaskSpec};
use tokio::sync::{mpsc, oneshot, watch};

/// Runs an attempt until the test ends it, or until it has to stop.
pub struct Manual {
    started: mpsc::UnboundedSender<Started>,
    fitness: watch::Receiver<Result<(), String>>,
    stubborn: bool,
}

/// An attempt that an executor was called for.
pub struct Started {
    pub handle: AttemptHandle,
    finish: oneshot::Sender<Outcome>,
}

impl Started {
    pub fn finish(self, outcome: Outcome) {
        self.finish.send(outcome).expect("the attempt runs");
    }

    /// Resolves when the attempt's future is gone.
    pub async fn gone(&mut self) {
        self.finish.closed().await;
    }
}

impl Manual {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Started>) {
        let (executor, started, _) = Self::with_fitness(Ok(()));
        (executor, started)
    }

    /// Attempts go on when they are told to stop.
    pub fn stubborn() -> (Self, mpsc::UnboundedReceiver<Started>) {
        let (mut executor, started) = Self::new();
        executor.stubborn = true;
        (executor, started)
    }

    pub fn with_fitness(
        fitness: Result<(), String>,
    ) -> (Self, mpsc::UnboundedReceiver<Started>, watch::Sender<Result<(), String>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (control, fitness) = watch::channel(fitness);
        (Self { started: sender, fitness, stubborn: false }, receiver, control)
    }
}

impl Executor for Manual {
    fn name(&self) -> &str {
        "fake"
    }

    fn run(&self, attempt: AttemptHandle) -> BoxFuture<'_, Outcome> {
        let (finish, mut finished) = oneshot::channel();
        self.started.send(Started { handle: attempt.clone(), finish }).expect("the test listens");
        Box::pin(async move {
            tokio::select! {
                biased;
                outcome = &mut finished => outcome.unwrap_or_else(|_| Outcome::failed("the test dropped it")),
                stop = attempt.cancelled(), if !self.stubborn => Outcome::stopped(stop.reason),
            }
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        let fitness = self.fitness.borrow().clone();
        Box::pin(async move { fitness })
    }
}

/// Succeeds at once, in the loop itself.
#[derive(Default)]
pub struct Instant {
    /// The attempts seen, when the test wants to see them.
    pub seen: Option<Mutex<Vec<Attempt>>>,
}

impl Executor for Instant {
    fn name(&self) -> &str {
        "fake"
    }

    fn run(&self, _: AttemptHandle) -> BoxFuture<'_, Outcome> {
        unreachable!("every attempt runs inline")
    }

    fn supports(&self, spec: &TaskSpec) -> Result<(), String> {
        match spec.executor == "fake" {
            true => Ok(()),
            false => Err(format!("`{}` is not mine", spec.executor)),
        }
    }

    fn run_inline(&self, attempt: &Attempt) -> Option<Outcome> {
        if let Some(seen) = &self.seen {
            seen.lock().unwrap().push(attempt.clone());
        }
        Some(Outcome::succeeded())
    }
}
