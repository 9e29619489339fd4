//! `task cancel` and `task retry`.

use millrace_proto::distributor::v1::{CancelTaskRequest, RetryTaskRequest, Task};

use super::outcome::state_name;
use super::print_task;
use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output;

/// Flags of `task cancel`.
#[derive(Debug, clap::Args)]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The tasks.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Why, for people.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Flags of `task retry`.
#[derive(Debug, clap::Args)]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The tasks.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Stops tasks.
pub(crate) async fn cancel(args: CancelArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let mut sum = Sum::default();
    for id in &args.ids {
        let request = CancelTaskRequest { request_id: request_id(), id: id.clone(), reason: args.reason.clone() };
        let answer = client.change(|| {
            let (mut calls, request) = (client.distributor(), request.clone());
            async move { calls.cancel_task(request).await }
        });
        sum.take(&args.client, id, answer.await.map(|answer| answer.task))?;
    }
    sum.result(args.ids.len(), "cancelled")
}

/// Queues finished tasks again.
pub(crate) async fn retry(args: RetryArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let mut sum = Sum::default();
    for id in &args.ids {
        let request = RetryTaskRequest { request_id: request_id(), id: id.clone() };
        let answer = client.change(|| {
            let (mut calls, request) = (client.distributor(), request.clone());
            async move { calls.retry_task(request).await }
        });
        sum.take(&args.client, id, answer.await.map(|answer| answer.task))?;
    }
    sum.result(args.ids.len(), "queued again")
}

/// What became of a list of tasks: one that is refused does not keep the others from their turn.
#[derive(Default)]
struct Sum {
    failures: Vec<Failure>,
}

impl Sum {
    /// Prints one answer. Fails only where going on is pointless.
    fn take(&mut self, args: &ClientArgs, id: &str, answer: Result<Option<Task>, Failure>) -> Result<(), Failure> {
        match answer {
            Ok(task) => print_task(args.output, &task.unwrap_or_default(), |task| {
                format!("{} {}", task.id, state_name(task.state))
            }),
            Err(Failure::Request(text)) => {
                // A service that names the task needs no help with it.
                let named = id.len() > 8 && text.contains(id);
                let text = if named { text } else { format!("task {}: {text}", output::printable(id)) };
                self.failures.push(Failure::Request(text));
                Ok(())
            }
            Err(fatal) => Err(fatal),
        }
    }

    fn result(mut self, all: usize, done: &str) -> Result<(), Failure> {
        if self.failures.len() <= 1 {
            return self.failures.pop().map_or(Ok(()), Err);
        }
        let refused = self.failures.len();
        for failure in &self.failures {
            failure.line().into_iter().for_each(|line| eprintln!("{line}"));
        }
        Err(Failure::Request(format!("{refused} of {all} tasks were not {done}")))
    }
}
