//! `millrace orchestrator`: the ready agent that runs commands on this machine.

use millrace_orchestrator::InvalidOptions;
use millrace_orchestrator::agent::{self, AgentError};
use millrace_runtime::config::duration;
use millrace_runtime::shutdown::Shutdown;
use millrace_runtime::telemetry::{self, LogFormat};

use crate::exit::Failure;
use crate::serve;

/// Flags of `orchestrator`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace orchestrator --endpoint http://10.0.0.5:7601,http://10.0.0.6:7601 --slots 16
  millrace orchestrator --queues builds --labels os=linux,arch=x86_64 --state-dir /var/lib/millrace

On a node of a pool its provider sets MILLRACE_SCALER_ENDPOINT, MILLRACE_NODE_ID and MILLRACE_POOL:
it then tells the scaler how its boot goes, how it is, and when it is drained.

SIGTERM drains it: it asks for no more work, lets commands go on for --drain-timeout, and hands
back what is left.")]
pub(crate) struct OrchestratorArgs {
    #[command(flatten)]
    settings: agent::Settings,
    /// How to write logs: `auto` is text on a terminal and JSON elsewhere.
    #[arg(long, env = "MILLRACE_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Auto, help_heading = "Options")]
    log_format: LogFormat,
}

impl OrchestratorArgs {
    /// Whether the agent would start with these flags, as far as can be told without starting it.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        serve::check_environment()?;
        self.settings.check().map_err(invalid)
    }
}

/// A setting that is out of its bounds, by its flag.
pub(crate) fn invalid(error: InvalidOptions) -> Failure {
    let flag = match error.option {
        "endpoints" => "endpoint".to_owned(),
        option => option.replace('_', "-"),
    };
    Failure::Usage(format!("--{flag}: {}", error.problem))
}

/// Runs the agent until it is told to stop and has drained. A second signal leaves at once; leases then run out by
/// themselves.
pub(crate) async fn run(args: OrchestratorArgs) -> Result<(), Failure> {
    args.check()?;
    telemetry::init(args.log_format).map_err(|error| Failure::Usage(error.to_string()))?;
    millrace_runtime::failpoint::init().map_err(|error| Failure::Usage(error.to_string()))?;
    // The agent bounds its own drain; this bound is for one that hangs.
    let patience = args.settings.drain_timeout + args.settings.kill_grace + duration("60s").unwrap_or_default();
    let shutdown = Shutdown::on_signals(patience)
        .map_err(|error| Failure::Unavailable(format!("cannot listen for signals: {error}")))?;
    tokio::select! {
        ended = agent::run(args.settings, shutdown.token()) => ended.map_err(failure),
        () = shutdown.grace_over() => Err(Failure::Request("left before the drain had ended".to_owned())),
    }
}

fn failure(error: AgentError) -> Failure {
    match error {
        AgentError::Settings(error) => invalid(error),
        AgentError::StateDir { .. } => Failure::Usage(error.to_string()),
        AgentError::StateDirInUse(_) => Failure::Unavailable(error.to_string()),
        AgentError::Boot(_) | AgentError::Run(_) => Failure::Request(error.to_string()),
    }
}
