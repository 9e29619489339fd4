//! `millrace pool`: fleets of equal nodes, and why each has the size that it has.

mod edit;
mod explain;
mod hand;
mod schedule;
mod show;
mod spec;

use std::time::Duration;

use millrace_proto::scaler::v1::{GetPoolRequest, ListPoolsRequest, Pool, WatchPoolsRequest};
use tonic::Status;

use crate::client::{Client, ClientArgs};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format};
use crate::time::{parse_duration, to_proto};
use crate::watch::{follow, print_moment};

pub(crate) use explain::explanation;
pub(crate) use show::{count, override_text, state_name, table};

/// The pool's name in the contracts.
pub(crate) const POOL: &str = "millrace.scaler.v1.Pool";

/// Commands about pools.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PoolCommand {
    /// Create a pool
    #[command(after_help = "\
Examples:
  millrace pool create builds --provider cloud --queues builds --slots 4 --max 200 --template image=ci-42
  millrace pool create night --provider cloud --queues batch --schedule 'mon-fri 20:00-06:00=10' \\
    --zone eu-1a,eu-1b --fallback builds

The scaler keeps it as large as its queues need, between --min and --max, so that no task waits for longer than
--target-wait. `millrace pool explain` says why it has the size that it has.")]
    Create(edit::CreateArgs),
    /// Show one pool with its figures
    #[command(after_help = "\
Examples:
  millrace pool get builds
  millrace pool get builds --output json | jq .status.desired")]
    Get(GetArgs),
    /// List pools with their figures
    #[command(after_help = "\
Examples:
  millrace pool list
  millrace pool list --output json | jq '{name, desired: .status.desired}'")]
    List(ListArgs),
    /// Change a pool; name, executor and provider stay
    #[command(after_help = "\
Examples:
  millrace pool update builds --max 400 --target-wait 1m
  millrace pool update builds --template image=ci-43 --clear schedule")]
    Update(edit::UpdateArgs),
    /// Delete a pool
    #[command(after_help = "\
Examples:
  millrace pool delete builds
  millrace pool delete builds --drain

Without --drain a pool goes only when it has no nodes. With it they are drained, and it goes once the last has ended.")]
    Delete(edit::DeleteArgs),
    /// Set a pool's size by hand for a stated time
    #[command(after_help = "\
Examples:
  millrace pool override builds --nodes 50 --for 2h --reason 'launch day'
  millrace pool override builds --no-terminations --until 2027-01-31T18:00:00Z --reason 'debugging lost nodes'
  millrace pool override builds --max 20 --for 1d --reason 'budget' --owner team-ci

It replaces the override before it and ends by itself. What the policy would do otherwise stays visible.")]
    Override(hand::OverrideArgs),
    /// End a pool's override
    #[command(after_help = "\
Examples:
  millrace pool clear-override builds")]
    ClearOverride(hand::ClearArgs),
    /// Say why a pool has the size that it has, and what keeps it from another
    #[command(after_help = "\
Examples:
  millrace pool explain builds
  millrace pool explain builds --output json | jq -r '.obstacles[]'")]
    Explain(explain::ExplainArgs),
    /// Show the figures of pools again and again
    #[command(after_help = "\
Examples:
  millrace pool watch
  millrace pool watch builds --interval 5s
  millrace pool watch --output json | jq -c '.pools[] | [.name, .status.desired, .status.readySlots]'")]
    Watch(WatchArgs),
}

/// Flags of `pool get`.
#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// The pool's name.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Flags of `pool list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
}

/// Flags of `pool watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct WatchArgs {
    /// Only these pools.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How often, from 200ms to 1h.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,
    #[command(flatten)]
    client: ClientArgs,
}

impl PoolCommand {
    /// Runs the command.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            PoolCommand::Create(args) => edit::create(args).await,
            PoolCommand::Get(args) => get(args).await,
            PoolCommand::List(args) => list(args).await,
            PoolCommand::Update(args) => edit::update(args).await,
            PoolCommand::Delete(args) => edit::delete(args).await,
            PoolCommand::Override(args) => hand::set(args).await,
            PoolCommand::ClearOverride(args) => hand::clear(args).await,
            PoolCommand::Explain(args) => explain::explain(args).await,
            PoolCommand::Watch(args) => watch(args).await,
        }
    }
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let request = GetPoolRequest { name: args.name };
    let answer = client.read(|| {
        let (mut calls, request) = (client.scaler(), request.clone());
        async move { calls.get_pool(request).await }
    });
    let pool = answer.await?.pool.unwrap_or_default();
    match args.client.output {
        Format::Json => output::json_line(POOL, &pool),
        Format::Table => show::print_one(&pool),
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let pools = all(&client).await.map_err(|status| client.failure(&status))?;
    match args.client.output {
        Format::Json => pools.iter().try_for_each(|pool| output::json_line(POOL, pool)),
        Format::Table if pools.is_empty() => {
            eprintln!("there is no pool; `millrace pool create` adds one");
            Ok(())
        }
        Format::Table => output::print_table(&table(&pools)),
    }
}

/// Every pool, page by page.
pub(crate) async fn all(client: &Client) -> Result<Vec<Pool>, Status> {
    let mut request = ListPoolsRequest { page_size: 1000, ..Default::default() };
    let mut pools = Vec::new();
    loop {
        let page = client.open(|| {
            let (mut calls, request) = (client.scaler(), request.clone());
            async move { calls.list_pools(request).await }
        });
        let page = page.await?;
        pools.extend(page.pools);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(pools);
        }
    }
}

/// Shows figures until the reader leaves; a scaler that goes away is waited for.
async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let request = WatchPoolsRequest { names: args.names, interval: Some(to_proto(args.interval)) };
    let call = || {
        let (mut calls, request) = (client.scaler(), request.clone());
        async move { calls.watch_pools(request).await }
    };
    follow(&client, call, |figures| match args.client.output {
        Format::Json => output::json_line("millrace.scaler.v1.WatchPoolsResponse", &figures),
        Format::Table => print_moment(&table(&figures.pools)),
    })
    .await
}
