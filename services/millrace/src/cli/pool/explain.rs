//! `pool explain`: how a pool's size came about, and what stands in its way.

use std::time::SystemTime;

use comfy_table::Cell;
use millrace_proto::scaler::v1::{ExplainPoolRequest, ExplainPoolResponse, ProviderStatus};
use tonic::Status;

use super::show::gate_text;
use super::table;
use crate::client::{Client, ClientArgs};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format, printable};
use crate::time::ago;

/// Flags of `pool explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// The pool's name.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Explains a pool.
pub(crate) async fn explain(args: ExplainArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let answer = explanation(&client, &args.name).await.map_err(|status| client.failure(&status))?;
    match args.client.output {
        Format::Json => output::json_line("millrace.scaler.v1.ExplainPoolResponse", &answer),
        Format::Table => print(&answer),
    }
}

/// Why a pool has the size that it has.
pub(crate) async fn explanation(client: &Client, name: &str) -> Result<ExplainPoolResponse, Status> {
    let request = ExplainPoolRequest { name: name.to_owned() };
    client
        .open(|| {
            let (mut calls, request) = (client.scaler(), request.clone());
            async move { calls.explain_pool(request).await }
        })
        .await
}

fn print(answer: &ExplainPoolResponse) -> Result<(), Failure> {
    if let Some(pool) = &answer.pool {
        output::print_table(&table(std::slice::from_ref(pool)))?;
        let launches = pool.status.as_ref().map(gate_text).unwrap_or_default();
        let by_hand = pool.r#override.as_ref().map(super::override_text).unwrap_or_default();
        output::print_fields(&[("launches", launches), ("set by hand", by_hand)])?;
    }
    if !answer.steps.is_empty() {
        output::line("\nhow the size came about")?;
        let mut steps = output::table(&["RULE", "NODES", "WHY"]);
        for step in &answer.steps {
            let cells = [printable(&step.rule), step.nodes.to_string(), printable(&step.detail)];
            steps.add_row(cells.map(Cell::new));
        }
        output::print_table(&steps)?;
    }
    output::line("\nwhat stands in the way")?;
    match answer.obstacles.as_slice() {
        [] => output::line("nothing")?,
        obstacles => obstacles.iter().try_for_each(|obstacle| output::line(&printable(obstacle)))?,
    }
    if let Some(provider) = &answer.provider {
        output::line("\nprovider")?;
        print_provider(provider)?;
    }
    if !answer.decisions.is_empty() {
        output::line("\nwhat was decided of late")?;
        let mut decisions = output::table(&["AGO", "DECISION"]);
        for decision in &answer.decisions {
            let when = decision.time.as_ref().map(|time| ago(time, SystemTime::now())).unwrap_or_default();
            decisions.add_row([when, printable(&decision.text)].map(Cell::new));
        }
        output::print_table(&decisions)?;
    }
    Ok(())
}

fn print_provider(provider: &ProviderStatus) -> Result<(), Failure> {
    let blocked = provider.blocked_zones.iter().map(|block| {
        let until = block.until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
        format!("{}{until}: {}", printable(&block.zone), printable(&block.error))
    });
    output::print_fields(&[
        ("name", printable(&provider.name)),
        ("state", printable(&provider.state)),
        ("last error", printable(&provider.last_error)),
        ("calls per second", format!("{:.1}", provider.calls_per_second)),
        ("no call before", provider.not_before.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("zones without room", blocked.collect::<Vec<_>>().join("; ")),
    ])
}
