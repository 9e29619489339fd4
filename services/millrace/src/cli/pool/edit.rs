//! The commands that change what pools are like.

use millrace_proto::scaler::v1::{CreatePoolRequest, DeletePoolRequest, Pool, UpdatePoolRequest};
use prost_types::FieldMask;

use super::POOL;
use super::spec::{Field, SpecArgs};
use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format, printable};

/// Flags of `pool create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// The pool's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// The provider of its nodes, as the scaler's --provider names it.
    #[arg(long, value_name = "NAME")]
    provider: String,
    /// The class of executor that its nodes run. By default process.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    executor: String,
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// Flags of `pool update`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    /// The pool's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// Sets this back to its default; may be given many times.
    #[arg(long, value_name = "FIELD", value_enum)]
    clear: Vec<Field>,
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// Flags of `pool delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// The pool's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// Drain its nodes first.
    #[arg(long)]
    drain: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Creates a pool.
pub(crate) async fn create(args: CreateArgs) -> Result<(), Failure> {
    args.spec.check()?;
    if !args.spec.has_queues() {
        return Err(Failure::Usage("a pool serves at least one queue: --queues NAME".to_owned()));
    }
    let pool = Pool { provider: args.provider, executor: args.executor, ..args.spec.pool(args.name) };
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let request = CreatePoolRequest { request_id: request_id(), pool: Some(pool) };
    let answer = client.change(|| {
        let (mut calls, request) = (client.scaler(), request.clone());
        async move { calls.create_pool(request).await }
    });
    print(args.client.output, answer.await?.pool, "was created; `millrace pool watch` shows it grow")
}

/// Changes a pool.
pub(crate) async fn update(args: UpdateArgs) -> Result<(), Failure> {
    args.spec.check()?;
    let paths = args.spec.mask(&args.clear)?;
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let request = UpdatePoolRequest {
        request_id: request_id(),
        pool: Some(args.spec.pool(args.name)),
        update_mask: Some(FieldMask { paths }),
    };
    let answer = client.change(|| {
        let (mut calls, request) = (client.scaler(), request.clone());
        async move { calls.update_pool(request).await }
    });
    print(args.client.output, answer.await?.pool, "was updated")
}

/// Deletes a pool, or starts to.
pub(crate) async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let request = DeletePoolRequest { request_id: request_id(), name: args.name.clone(), drain: args.drain };
    let answer = client.change(|| {
        let (mut calls, request) = (client.scaler(), request.clone());
        async move { calls.delete_pool(request).await }
    });
    let answer = answer.await?;
    match (args.client.output, &answer.pool) {
        (Format::Json, _) => output::json_line("millrace.scaler.v1.DeletePoolResponse", &answer),
        (Format::Table, None) => output::line(&format!("pool {} is gone", printable(&args.name))),
        (Format::Table, Some(pool)) => {
            output::line(&format!("pool {} drains its nodes and goes once the last has ended", printable(&pool.name)))
        }
    }
}

/// Prints a pool that was changed, or that it was.
pub(super) fn print(format: Format, pool: Option<Pool>, what: &str) -> Result<(), Failure> {
    let pool = pool.unwrap_or_default();
    match format {
        Format::Json => output::json_line(POOL, &pool),
        Format::Table => output::line(&format!("pool {} {what}", printable(&pool.name))),
    }
}
