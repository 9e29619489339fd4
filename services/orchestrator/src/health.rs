//! Asks the executor from time to time whether it is fit for work.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::Executor;

/// Whether an executor is fit for work, or why not; none before it was asked for the first time.
pub(crate) type Fitness = Option<Result<(), String>>;

/// The executor's fitness as last seen.
#[derive(Debug)]
pub(crate) struct Health {
    fitness: watch::Receiver<Fitness>,
    /// Holds the task that asks; dropping it ends the asking.
    _asking: JoinSet<()>,
}

impl Health {
    pub(crate) fn watch(executor: Arc<dyn Executor>, interval: Duration, limit: Duration) -> Self {
        let (sender, fitness) = watch::channel(None);
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

    /// The fitness as last seen.
    pub(crate) fn fitness(&self) -> watch::Ref<'_, Fitness> {
        self.fitness.borrow()
    }

    /// Why the executor is not fit, if it is not.
    pub(crate) fn problem(&self) -> Option<String> {
        let fitness = self.fitness();
        let problem = match &*fitness {
            None => "not checked yet",
            Some(Ok(())) => return None,
            Some(Err(problem)) => problem,
        };
        Some(format!("the executor is not fit for work: {problem}"))
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
fn report(fitness: &mut Fitness, answer: Result<(), String>) -> bool {
    if fitness.as_ref() == Some(&answer) {
        return false;
    }
    match &answer {
        Ok(()) => tracing::info!("executor is fit for work"),
        Err(problem) => tracing::error!(%problem, "executor is not fit for work; asking for none until it is"),
    }
    *fitness = Some(answer);
    true
}
