//! `millrace queue`: the client commands about queues. Without a command it is the queue service itself.

mod edit;
mod service;
mod show;

use std::time::Duration;

use millrace_proto::queue::v1::{GetQueueRequest, ListQueuesRequest, Queue, WatchQueuesRequest};
use tonic::Status;

use crate::client::{Client, ClientArgs};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format};
use crate::time::{parse_duration, to_proto};
use crate::watch::{follow, print_moment};

pub(crate) use service::{QueueArgs, check_settings, start};
pub(crate) use show::{depth, pause_text, table};

/// The queue's name in the contracts.
const QUEUE: &str = "millrace.queue.v1.Queue";

/// Commands about queues.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum QueueCommand {
    /// Create a queue
    #[command(after_help = "\
Examples:
  millrace queue create builds --description 'CI of the monorepo' --default-timeout 1h

A queue takes no task before a route leads to it:
  millrace route set builds --queue builds --label kind=build")]
    Create(edit::CreateArgs),
    /// Show one queue with its figures
    #[command(after_help = "\
Examples:
  millrace queue get builds")]
    Get(GetArgs),
    /// Change a queue's description and defaults
    #[command(after_help = "\
Examples:
  millrace queue update builds --default-timeout 30m
  millrace queue update builds --clear default-expire-after")]
    Update(edit::UpdateArgs),
    /// Delete a queue
    #[command(after_help = "\
Examples:
  millrace queue delete builds
  millrace queue delete builds --mode drain
  millrace queue delete builds --mode move --move-to default

Without --mode a queue goes only when nothing waits or runs in it. Work that runs goes on in any case.")]
    Delete(edit::DeleteArgs),
    /// List queues with their figures
    #[command(after_help = "\
Examples:
  millrace queue list
  millrace queue list --output json | jq '{name, depth: .stats.depth}'")]
    List(ListArgs),
    /// Stop dispatch from a queue; what runs goes on, and tasks are still accepted
    #[command(after_help = "\
Examples:
  millrace queue pause builds --reason 'registry is down'
  millrace queue pause builds --reason 'maintenance' --until +2h")]
    Pause(edit::PauseArgs),
    /// Start dispatch from a queue again
    #[command(after_help = "\
Examples:
  millrace queue resume builds")]
    Resume(edit::ResumeArgs),
    /// Show the figures of queues again and again
    #[command(after_help = "\
Examples:
  millrace queue watch
  millrace queue watch builds deploys --interval 5s
  millrace queue watch --output json | jq -c '.queues[] | [.name, .stats.depth]'")]
    Watch(WatchArgs),
}

/// Flags of `queue get`.
#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The queue's name.
    #[arg(value_name = "NAME")]
    name: String,
}

/// Flags of `queue list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
}

/// Flags of `queue watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Only these queues.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How often, from 200ms to 1h.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,
}

impl QueueCommand {
    /// Runs the command.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            QueueCommand::Create(args) => edit::create(args).await,
            QueueCommand::Get(args) => get(args).await,
            QueueCommand::Update(args) => edit::update(args).await,
            QueueCommand::Delete(args) => edit::delete(args).await,
            QueueCommand::List(args) => list(args).await,
            QueueCommand::Pause(args) => edit::pause(args).await,
            QueueCommand::Resume(args) => edit::resume(args).await,
            QueueCommand::Watch(args) => watch(args).await,
        }
    }
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Queue).await?;
    show::print_one(args.client.output, &one(&client, &args.name).await.map_err(|status| client.failure(&status))?)
}

/// One queue.
async fn one(client: &Client, name: &str) -> Result<Queue, Status> {
    let request = GetQueueRequest { name: name.to_owned() };
    let answer = client.open(|| {
        let (mut calls, request) = (client.queue(), request.clone());
        async move { calls.get_queue(request).await }
    });
    Ok(answer.await?.queue.unwrap_or_default())
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Queue).await?;
    let queues = all(&client).await.map_err(|status| client.failure(&status))?;
    match args.client.output {
        Format::Json => queues.iter().try_for_each(|queue| output::json_line(QUEUE, queue)),
        Format::Table if queues.is_empty() => {
            eprintln!("there is no queue; `millrace queue create` adds one");
            Ok(())
        }
        Format::Table => output::print_table(&show::table(&queues)),
    }
}

/// Every queue, page by page.
pub(crate) async fn all(client: &Client) -> Result<Vec<Queue>, Status> {
    let mut request = ListQueuesRequest { page_size: 1000, ..Default::default() };
    let mut queues = Vec::new();
    loop {
        let page = client.open(|| {
            let (mut calls, request) = (client.queue(), request.clone());
            async move { calls.list_queues(request).await }
        });
        let page = page.await?;
        queues.extend(page.queues);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(queues);
        }
    }
}

/// Shows figures until the reader leaves; a service that goes away is waited for.
async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Queue).await?;
    let request = WatchQueuesRequest { names: args.names, interval: Some(to_proto(args.interval)) };
    let call = || {
        let (mut calls, request) = (client.queue(), request.clone());
        async move { calls.watch_queues(request).await }
    };
    follow(&client, call, |figures| match args.client.output {
        Format::Json => output::json_line("millrace.queue.v1.WatchQueuesResponse", &figures),
        Format::Table => print_moment(&show::table(&figures.queues)),
    })
    .await
}
