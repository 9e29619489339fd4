//! `quarantine repair`.

use std::path::PathBuf;

use millrace_proto::distributor::v1::{ColumnChange, RepairQuarantinedRowRequest};
use prost::Message;

use crate::cli::task::{parse_pair, read_spec, readable, state_name};
use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format};

/// Flags of `quarantine repair`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args(["columns", "nulls", "spec"]))]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The task.
    #[arg(value_name = "ID")]
    id: String,
    /// A column and its new value; may be given many times.
    #[arg(long = "column", value_name = "NAME=VALUE", value_parser = parse_pair)]
    columns: Vec<(String, String)>,
    /// A column that is to hold nothing; may be given many times.
    #[arg(long = "null", value_name = "NAME")]
    nulls: Vec<String>,
    /// A TaskSpec as protobuf JSON that replaces the row's; - for standard input.
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// Only tells whether the row could be read then.
    #[arg(long)]
    dry_run: bool,
}

/// Changes a row and releases it, or tells why that does not help.
pub(crate) async fn repair(args: RepairArgs) -> Result<(), Failure> {
    let spec = args.spec.as_deref().map(read_spec).transpose()?;
    let set = args.columns.into_iter().map(|(name, value)| ColumnChange { name, value: Some(value) });
    let cleared = args.nulls.into_iter().map(|name| ColumnChange { name, value: None });
    let request = RepairQuarantinedRowRequest {
        request_id: request_id(),
        task_id: args.id,
        columns: set.chain(cleared).collect(),
        spec: spec.map(|spec| spec.encode_to_vec().into()),
        validate_only: args.dry_run,
    };
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let answer = client.change(|| {
        let (mut calls, request) = (client.quarantine(), request.clone());
        async move { calls.repair_quarantined_row(request).await }
    });
    let mut answer = answer.await?;
    match (args.client.output, &answer.task) {
        (Format::Json, _) => {
            answer.task = answer.task.as_ref().map(readable);
            output::json_line("millrace.distributor.v1.RepairQuarantinedRowResponse", &answer)
        }
        (Format::Table, Some(task)) => {
            output::line(&format!("task {} is released: {}", task.id, state_name(task.state)))
        }
        (Format::Table, None) => output::line("the row can be read with that; nothing was changed yet"),
    }
}
