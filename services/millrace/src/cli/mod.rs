//! The command line: one file or folder for each group of commands.

pub(crate) mod config;
pub(crate) mod dev;
pub(crate) mod distributor;
pub(crate) mod doctor;
pub(crate) mod migrate;
pub(crate) mod node;
pub(crate) mod orchestrator;
pub(crate) mod pool;
pub(crate) mod preflight;
pub(crate) mod quarantine;
pub(crate) mod queue;
pub(crate) mod route;
pub(crate) mod scaler;
pub(crate) mod task;

use std::path::PathBuf;

use crate::exit::Failure;

/// Distributes discrete tasks to the fleets that run them.
#[derive(Debug, clap::Parser)]
#[command(name = "millrace", version = crate::version::long(), max_term_width = 110)]
#[command(after_help = "\
Start with:
  millrace dev                                       everything in one process, on SQLite
  millrace task run -- sh -c 'echo hello; exit 3'    in another terminal

Exit codes: 0; 1 the request failed; 64 wrong command line or configuration; 69 a service or a
database is away. Flags count before MILLRACE_* variables, then the file of --config, then defaults.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// TOML file with defaults for the flags; keys are the flags' names with `_` for `-`.
    #[arg(long, global = true, env = millrace_runtime::config::VARIABLE, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Every command.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process: distributor, queue service and an agent, on SQLite
    Dev(Box<dev::DevArgs>),
    /// Submit, run, read and steer tasks
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Show and change queues; without a command, run the queue service
    Queue(Box<queue::QueueArgs>),
    /// Show and change pools of nodes, and tell why each has its size
    #[command(subcommand)]
    Pool(Box<pool::PoolCommand>),
    /// Show and drain the nodes of pools
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Show and change the routes that say which queue a task joins
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// Show, repair, release and discard rows that could not be read
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineCommand),
    /// Tell on one screen whether work moves, and if not, why
    Doctor(doctor::DoctorArgs),
    /// Run a replica of the distributor
    Distributor(Box<distributor::DistributorArgs>),
    /// Run a process of the scaler, which keeps fleets as large as their queues need
    Scaler(Box<scaler::ScalerArgs>),
    /// Run the agent that runs commands on this machine
    Orchestrator(Box<orchestrator::OrchestratorArgs>),
    /// Bring a database's schema up to date, or look at it
    #[command(subcommand)]
    Migrate(migrate::MigrateCommand),
    /// Tell whether this release can read what a database holds, before it is deployed
    Preflight(Box<preflight::PreflightArgs>),
    /// Check the configuration of a service
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

impl Cli {
    /// Runs the command.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Dev(args) => dev::run(*args).await,
            Command::Task(command) => command.run().await,
            Command::Queue(args) => args.run().await,
            Command::Pool(command) => command.run().await,
            Command::Node(command) => command.run().await,
            Command::Route(command) => command.run().await,
            Command::Quarantine(command) => command.run().await,
            Command::Doctor(args) => doctor::doctor(args).await,
            Command::Distributor(args) => distributor::run(*args).await,
            Command::Scaler(args) => scaler::run(*args).await,
            Command::Orchestrator(args) => orchestrator::run(*args).await,
            Command::Migrate(command) => command.run().await,
            Command::Preflight(args) => preflight::run(*args).await,
            Command::Config(config::ConfigCommand::Check(args)) => config::check(&args, self.config.as_deref()),
        }
    }

    /// Whether a service would start as this command line says: what clap cannot know of its values. A command that is no
    /// service has nothing to check.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match &self.command {
            Command::Dev(args) => args.check(),
            Command::Queue(args) => args.check(),
            Command::Distributor(args) => args.check(),
            Command::Scaler(args) => args.check(),
            Command::Orchestrator(args) => args.check(),
            Command::Task(_)
            | Command::Pool(_)
            | Command::Node(_)
            | Command::Route(_)
            | Command::Quarantine(_)
            | Command::Doctor(_)
            | Command::Migrate(_)
            | Command::Preflight(_)
            | Command::Config(_) => Ok(()),
        }
    }
}
