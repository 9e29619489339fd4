//! Asks the executor from time to time whether it is fit for work.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::Executor;

/// The executor's fitness as last seen; unfit until it was asked for the first time.
#[derive(Debug)]
pub(crate) struct Health {
    fitness: watch::Receiver<Result<(), String>>,
    /// Holds the task that asks; dropping it ends the asking.
    _asking: JoinSet<()>,
}

impl Health {
    pub(crate) fn watch(executor: Arc<dyn Executor>, interval: Duration, limit: Duration) -> Self {
        let (sender, fitness) = watch::channel(Err("not checked yet".to_owned()));
        let mut asking = JoinSet::new();
        asking.spawn(async move {
            while !sender.is_closed() {
                let answer = ask(&*executor, limit).await;
                sender.send_if_modified(|fitness| report(fitness, answer));
                sleep(interval).await;
            }
        });
        Self { fitness, _asking: asking }
    }

    /// Resolves when the fitness has changed.
    pub(crate) async fn changed(&mut self) {
        if self.fitness.changed().await.is_err() {
            // The asking task ends only with this value, so this is not reached.
            std::future::pending::<()>().await;
        }
    }

    /// Why the executor is not fit, if it is not.
    pub(crate) fn problem(&self) -> Option<String> {
        self.fitness.borrow().as_ref().err().map(|problem| format!("the executor is not fit for work: {problem}"))
    }
}

async fn ask(executor: &dyn Executor, limit: Duration) -> Result<(), String> {
    let check = AssertUnwindSafe(async { executor.check().await }).catch_unwind();
    match timeout(limit, check).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err("the check panicked".into()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// Takes over the answer and says so once for each change.
fn report(fitness: &mut Result<(), String>, answer: Result<(), String>) -> bool {
    if *fitness == answer {
        return false;
    }
    match &answer {
        Ok(()) => tracing::info!("executor is fit for work"),
        Err(problem) => tracing::error!(%problem, "executor is not fit for work; asking for none until it is"),
    }
    *fitness = answer;
    true
}
