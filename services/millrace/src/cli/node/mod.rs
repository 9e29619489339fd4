//! `millrace node`: the nodes of pools, and what happened to each.

mod show;

use millrace_proto::scaler::v1::{DrainNodeRequest, GetNodeRequest, ListNodesRequest, Node, NodeState as WireState};

use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format, printable};

/// The node's name in the contracts.
const NODE: &str = "millrace.scaler.v1.Node";

/// The most that one page of a list holds.
const PAGE: usize = 1000;

/// Commands about nodes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes, the newest first
    #[command(after_help = "\
Examples:
  millrace node list
  millrace node list --pool builds --state suspect --state joining
  millrace node list --limit 0 --output json | jq -r 'select(.attached | not) | .id'

Nodes that are gone are left out unless --state gone asks for them.")]
    List(ListArgs),
    /// Show one node with its history
    #[command(after_help = "\
Examples:
  millrace node get 0197f2a0-5c1e-7bd4-9d3c-0f3a1c2b4d5e
  millrace node get ID --output json | jq '.history[]'")]
    Get(GetArgs),
    /// Take a node out of work; it ends after what runs on it, and is replaced if its pool needs it
    #[command(after_help = "\
Examples:
  millrace node drain 0197f2a0-5c1e-7bd4-9d3c-0f3a1c2b4d5e --reason 'its disk is slow'")]
    Drain(DrainArgs),
}

/// Flags of `node list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only nodes of this pool.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pool: String,
    /// Only nodes in this state; may be given many times.
    #[arg(long = "state", value_name = "STATE", value_enum, value_delimiter = ',')]
    states: Vec<NodeState>,
    /// How many at most; 0 means all.
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    client: ClientArgs,
}

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum NodeState {
    /// Asked for, and not confirmed by its provider.
    Requested,
    /// Its provider makes it.
    Starting,
    /// It boots.
    Joining,
    /// It takes work.
    Ready,
    /// Late, silent or unhealthy.
    Suspect,
    /// It starts nothing new.
    Draining,
    /// Its provider ends it.
    Terminating,
    /// It is no more.
    Gone,
}

impl From<NodeState> for WireState {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Requested => WireState::Requested,
            NodeState::Starting => WireState::Starting,
            NodeState::Joining => WireState::Joining,
            NodeState::Ready => WireState::Ready,
            NodeState::Suspect => WireState::Suspect,
            NodeState::Draining => WireState::Draining,
            NodeState::Terminating => WireState::Terminating,
            NodeState::Gone => WireState::Gone,
        }
    }
}

/// Flags of `node get`.
#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// The node.
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Flags of `node drain`.
#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// The node.
    #[arg(value_name = "ID")]
    id: String,
    /// Why, for whoever looks at its history.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    client: ClientArgs,
}

impl NodeCommand {
    /// Runs the command.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            NodeCommand::List(args) => list(args).await,
            NodeCommand::Get(args) => get(args).await,
            NodeCommand::Drain(args) => drain(args).await,
        }
    }
}

/// Lists nodes, page by page.
async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let states = args.states.iter().map(|state| WireState::from(*state).into()).collect();
    let mut request = ListNodesRequest { pool: args.pool, states, ..Default::default() };
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let (mut shown, mut table) = (0, show::table());
    while shown < limit {
        request.page_size = i32::try_from(PAGE.min(limit - shown)).unwrap_or(0);
        let page = client.read(|| {
            let (mut calls, request) = (client.scaler(), request.clone());
            async move { calls.list_nodes(request).await }
        });
        let page = page.await?;
        for node in &page.nodes {
            match args.client.output {
                Format::Json => output::json_line(NODE, node)?,
                Format::Table => show::add_row(&mut table, node),
            }
        }
        shown += page.nodes.len();
        // Whole pages are printed as they come: a list of everything need not fit in memory.
        if table.row_count() >= PAGE {
            output::print_table(&table)?;
            table = show::table();
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    if shown == 0 && args.client.output == Format::Table {
        eprintln!("there is no such node");
    } else if table.row_count() > 0 {
        output::print_table(&table)?;
    }
    if !request.page_token.is_empty() {
        eprintln!("there may be more; --limit 0 lists all");
    }
    Ok(())
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let request = GetNodeRequest { id: args.id };
    let answer = client.read(|| {
        let (mut calls, request) = (client.scaler(), request.clone());
        async move { calls.get_node(request).await }
    });
    let node = answer.await?.node.unwrap_or_default();
    match args.client.output {
        Format::Json => output::json_line(NODE, &node),
        Format::Table => show::print_one(&node),
    }
}

async fn drain(args: DrainArgs) -> Result<(), Failure> {
    if args.reason.trim().is_empty() {
        return Err(Failure::Usage("--reason: a reason has words".to_owned()));
    }
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let request = DrainNodeRequest { request_id: request_id(), id: args.id, reason: args.reason };
    let answer = client.change(|| {
        let (mut calls, request) = (client.scaler(), request.clone());
        async move { calls.drain_node(request).await }
    });
    let node: Node = answer.await?.node.unwrap_or_default();
    match args.client.output {
        Format::Json => output::json_line(NODE, &node),
        Format::Table => {
            let runs = output::count(node.running, "task");
            output::line(&format!("node {} starts nothing new; it runs {runs}", printable(&node.id)))
        }
    }
}
