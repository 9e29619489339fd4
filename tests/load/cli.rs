//! The command line.

use std::{path::PathBuf, time::Duration};

use millrace_orchestrator::parse_duration;

/// Measures Millrace and the ceilings of the machine that it runs on.
#[derive(Debug, clap::Parser)]
#[command(name = "millrace-bench", max_term_width = 110, args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  make bench                                             everything, in under six minutes
  tests/with-postgres.sh target/release/millrace-bench --quick
  tests/with-postgres.sh target/release/millrace-bench --only ceilings,life
  millrace-bench submit --endpoint http://127.0.0.1:7601 --closed 64 --duration 10s

It needs a release build of `millrace` beside its own binary, pgbench and psql, and a PostgreSQL in
which it may create databases; they are dropped at the end. Progress goes to standard error, the
table to standard output, and the figures to summary.json in --out.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// What else the binary does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Submit tasks to any distributor, at a rate or so many at a time
    Submit(SubmitArgs),
    /// The server of the null call; ends with its standard input
    #[command(hide = true)]
    NullServer,
}

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// PostgreSQL by plain SQL, the store crate, the null call
    Ceilings,
    /// Memory at 1,000 and at 100,000 waiting tasks
    Memory,
    /// Durable unary SubmitTask
    Submit,
    /// The drain of a backlog
    Drain,
    /// The whole life
    Life,
    /// From the submit call to the start of the command
    Dispatch,
}

/// Flags of the run.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Everything in about a minute: shorter measurements, rougher figures
    #[arg(long)]
    pub(crate) quick: bool,
    /// Run in a debug build, whose figures mean nothing
    #[arg(long)]
    pub(crate) allow_debug: bool,
    /// Only these parts; 100,000 tasks wait in a queue beside in any case
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    pub(crate) only: Vec<Part>,
    /// A superuser's URL of PostgreSQL, with any database
    #[arg(long, env = "MILLRACE_TEST_POSTGRES", hide_env_values = true, value_name = "URL")]
    pub(crate) postgres: Option<String>,
    /// The `millrace` binary [default: the one beside this binary]
    #[arg(long, value_name = "PATH")]
    pub(crate) millrace: Option<PathBuf>,
    /// Where summary.json and the services' logs go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub(crate) out: PathBuf,
    /// Slots of each of the two orchestrators that drain
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) slots: u32,
    /// Calls of BatchSubmitTasks in flight, each with 500 tasks
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) submitters: u16,
}

impl RunArgs {
    /// Whether a part is wanted.
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Flags of `submit`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("load").required(true).args(["rate", "closed"]))]
#[command(after_help = "\
Examples:
  millrace-bench submit --endpoint http://127.0.0.1:7601 --rate 200 --duration 1m
  millrace-bench submit --endpoint http://127.0.0.1:7601 --closed 4 --batch 500 --count 1000000 --tenant load

With --rate the calls keep to their schedule whatever the answers take, and latency counts from the
scheduled moment; with --closed each of N callers waits for its answer. The output is one JSON object.")]
pub(crate) struct SubmitArgs {
    /// The distributor
    #[arg(long, env = "MILLRACE_ENDPOINT", value_name = "URI", default_value = "http://127.0.0.1:7600")]
    pub(crate) endpoint: String,
    /// Calls a second, on a schedule (open loop)
    #[arg(long, value_name = "CALLS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: Option<u32>,
    /// Calls at a time, each waiting for its answer (closed loop)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) closed: Option<u16>,
    /// Tasks in a call; more than 1 uses BatchSubmitTasks
    #[arg(long, value_name = "TASKS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) batch: u16,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) connections: u16,
    /// For how long
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10s")]
    pub(crate) duration: Duration,
    /// Stop after this many tasks, if that comes first
    #[arg(long, value_name = "TASKS")]
    pub(crate) count: Option<u64>,
    /// The tasks' tenant
    #[arg(long, value_name = "NAME", default_value = "bench")]
    pub(crate) tenant: String,
    /// The tasks' executor
    #[arg(long, value_name = "NAME", default_value = "process")]
    pub(crate) executor: String,
    /// Bytes of a task's spec
    #[arg(long, value_name = "BYTES", default_value_t = 500)]
    pub(crate) bytes: usize,
    /// Send no request ids, so that a repeat would store another task
    #[arg(long)]
    pub(crate) without_ids: bool,
    /// The command that the tasks run
    #[arg(value_name = "COMMAND", last = true, default_value = "/bin/true")]
    pub(crate) command: Vec<String>,
}
