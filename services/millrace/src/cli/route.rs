//! `millrace route`: the rules that say which queue a task joins.

use comfy_table::Cell;
use millrace_proto::distributor::v1::{DeleteRouteRequest, ListRoutesRequest, Route, SetRouteRequest};

use super::task::{label_map, parse_pair};
use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format, printable};

/// The route's name in the contracts.
const ROUTE: &str = "millrace.distributor.v1.Route";

/// Commands about routes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum RouteCommand {
    /// List the routes in the order in which they are tried
    #[command(after_help = "\
Examples:
  millrace route list
  millrace route list --output json | jq -r .queue")]
    List(ListArgs),
    /// Create a route, or replace the one of that name as a whole
    #[command(after_help = "\
Examples:
  millrace route set builds --queue builds --executor process --label kind=build
  millrace route set gpu --queue gpu --resource-class gpu.large --order 10

A task joins the queue of the first route that takes it; conditions that are not given take every
task. It holds for tasks submitted from now on, on every replica, without a restart.")]
    Set(SetArgs),
    /// Delete a route
    #[command(after_help = "\
Examples:
  millrace route delete gpu")]
    Delete(DeleteArgs),
}

/// Flags of `route list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
}

/// Flags of `route set`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The route's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// The queue that its tasks join.
    #[arg(long, value_name = "NAME")]
    queue: String,
    /// Lower is tried first, from 0 to 1000000. Without it 1000.
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    order: Option<i32>,
    /// Only tasks of this executor.
    #[arg(long, value_name = "NAME", default_value = "")]
    executor: String,
    /// Only tasks of this resource class.
    #[arg(long, value_name = "NAME", default_value = "")]
    resource_class: String,
    /// Only tasks of this tenant.
    #[arg(long, value_name = "NAME", default_value = "")]
    tenant: String,
    /// Only tasks with this label; may be given many times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_pair)]
    labels: Vec<(String, String)>,
}

/// Flags of `route delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The route's name.
    #[arg(value_name = "NAME")]
    name: String,
}

impl RouteCommand {
    /// Runs the command.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            RouteCommand::List(args) => list(args).await,
            RouteCommand::Set(args) => set(args).await,
            RouteCommand::Delete(args) => delete(args).await,
        }
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let mut request = ListRoutesRequest::default();
    let mut table = output::table(&["ORDER", "NAME", "EXECUTOR", "RESOURCE CLASS", "TENANT", "LABELS", "QUEUE"]);
    loop {
        let page = client.read(|| {
            let (mut calls, request) = (client.distributor(), request.clone());
            async move { calls.list_routes(request).await }
        });
        let page = page.await?;
        for route in &page.routes {
            match args.client.output {
                Format::Json => output::json_line(ROUTE, route)?,
                Format::Table => add_row(&mut table, route),
            }
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    match args.client.output {
        Format::Json => Ok(()),
        Format::Table if table.row_count() == 0 => {
            eprintln!("there is no route, so every task is refused; `millrace route set` adds one");
            Ok(())
        }
        Format::Table => output::print_table(&table),
    }
}

fn add_row(table: &mut comfy_table::Table, route: &Route) {
    let any = |condition: &str| Cell::new(if condition.is_empty() { "*".to_owned() } else { printable(condition) });
    table.add_row(vec![
        Cell::new(route.order.unwrap_or(1000)),
        Cell::new(printable(&route.name)),
        any(&route.executor),
        any(&route.resource_class),
        any(&route.tenant),
        any(&output::labels(&route.labels)),
        Cell::new(printable(&route.queue)),
    ]);
}

async fn set(args: SetArgs) -> Result<(), Failure> {
    let route = Route {
        name: args.name,
        order: args.order,
        executor: args.executor,
        resource_class: args.resource_class,
        tenant: args.tenant,
        labels: label_map(args.labels),
        queue: args.queue,
    };
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let request = SetRouteRequest { request_id: request_id(), route: Some(route) };
    let answer = client.change(|| {
        let (mut calls, request) = (client.distributor(), request.clone());
        async move { calls.set_route(request).await }
    });
    let route = answer.await?.route.unwrap_or_default();
    match args.client.output {
        Format::Json => output::json_line(ROUTE, &route),
        Format::Table => {
            output::line(&format!("route {} leads to queue {}", printable(&route.name), printable(&route.queue)))
        }
    }
}

async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let request = DeleteRouteRequest { request_id: request_id(), name: args.name.clone() };
    let answer = client.change(|| {
        let (mut calls, request) = (client.distributor(), request.clone());
        async move { calls.delete_route(request).await }
    });
    let answer = answer.await?;
    match args.client.output {
        Format::Json => output::json_line("millrace.distributor.v1.DeleteRouteResponse", &answer),
        Format::Table => output::line(&format!("route {} is gone", printable(&args.name))),
    }
}
