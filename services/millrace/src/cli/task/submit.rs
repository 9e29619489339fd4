//! `task submit`: one task, or a file of them.

use std::path::PathBuf;

use millrace_proto::distributor::v1::SubmitTaskRequest;

use super::flags::{SizeFlag, SpecFlags};
use super::follow::{Following, follow};
use super::outcome::{describe, state_name};
use super::{batch, print_task};
use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::Failure;

/// Flags of `task submit`.
#[derive(Debug, clap::Args)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(flatten)]
    spec: SpecFlags,
    #[command(flatten)]
    pub(crate) size: SizeFlag,
    /// Makes repeats harmless for 24 h: the same key with the same task stores it once. A time like +5m makes each
    /// repeat another task, which is refused.
    #[arg(long, value_name = "KEY", help_heading = "Submission")]
    pub(crate) idempotency_key: Option<String>,
    /// A file of tasks, one a line; `-` reads standard input. No flags of a single task go with it.
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["command", "SpecFlags"], help_heading = "Submission")]
    pub(crate) file: Option<PathBuf>,
    /// Waits until every task has ended; the exit code is 1 when one did not succeed.
    #[arg(long, help_heading = "Submission")]
    pub(crate) wait: bool,
    /// The command and its arguments; no shell is involved.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Submits.
pub(crate) async fn submit(args: SubmitArgs) -> Result<(), Failure> {
    match args.file.clone() {
        Some(path) => batch::submit_file(&args, &path).await,
        None => submit_one(args).await,
    }
}

async fn submit_one(args: SubmitArgs) -> Result<(), Failure> {
    let format = args.client.output;
    let spec = args.spec.encode(args.command, args.size)?;
    let request = SubmitTaskRequest { request_id: args.idempotency_key.unwrap_or_else(request_id), spec };
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let answer = client.change(|| {
        let (mut calls, request) = (client.distributor(), request.clone());
        async move { calls.submit_task(request).await }
    });
    let answer = answer.await?;
    let task = answer.task.unwrap_or_default();
    if answer.existing {
        eprintln!("millrace: an earlier call with this key had submitted it already");
    }
    if !args.wait {
        return print_task(format, &task, |task| task.id.clone());
    }
    let following = Following { id: &task.id, without_output: true, quietly: false, known: true };
    let ended = follow(&client, following, &mut |_| Ok(())).await?;
    print_task(format, &ended, |task| format!("{} {}", task.id, state_name(task.state)))?;
    match batch::succeeded(&ended) {
        true => Ok(()),
        false => {
            let how = ended.outcome.as_ref().map_or_else(|| state_name(ended.state), describe);
            Err(Failure::Request(format!("task {} did not succeed: {how}", ended.id)))
        }
    }
}
