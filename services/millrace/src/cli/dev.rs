//! `millrace dev`: the whole suite in one process, on SQLite, for an empty machine.

mod fleet;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, FromArgMatches};
use millrace_orchestrator::agent;
use millrace_runtime::shutdown::Shutdown;
use tokio_util::sync::CancellationToken;

use self::fleet::Fleet;
use super::migrate::up;
use super::orchestrator::invalid;
use super::{distributor, scaler};
use crate::endpoint::DEFAULT_ENDPOINT;
use crate::exit::Failure;
use crate::serve::{self, Plan, ProcessArgs, Serving};

/// How long commands of the built-in agent may go on after Ctrl-C before they are stopped and handed back.
const AGENT_DRAIN: Duration = Duration::from_secs(5);

/// Flags of `dev`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace dev
  millrace dev --data-dir /tmp/mill --slots 8
  millrace dev --without-agent --database-url postgres://millrace@127.0.0.1/millrace

It serves the distributor, the queue service and the scaler on one port and runs one agent, which
takes tasks of the executor `process` from the queue `default`. When tasks wait there for long, the
scaler adds more agents, each a process of its own on this machine: the pool `default`, which is
created at the first start and is yours to change. They end with this command. Settings of the
services come from MILLRACE_* variables. For more than one machine run `millrace distributor`,
`millrace queue`, `millrace scaler` and `millrace orchestrator` on PostgreSQL.")]
pub(crate) struct DevArgs {
    /// Where everything is kept; created when it is missing.
    #[arg(long, env = "MILLRACE_DATA_DIR", value_name = "DIR", default_value = ".millrace")]
    data_dir: PathBuf,
    /// Where to listen for gRPC.
    #[arg(long, env = "MILLRACE_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7600")]
    listen: String,
    /// Where to listen for HTTP: /metrics and /healthz.
    #[arg(long, env = "MILLRACE_HTTP_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7610")]
    http_listen: String,
    /// Another database than SQLite in the data directory: postgres://… or sqlite:PATH. Its schema is brought up to
    /// date.
    #[arg(long, env = "MILLRACE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// Runs no agent, and no scaler that would add some: tasks wait until an orchestrator comes.
    #[arg(long)]
    without_agent: bool,
    /// Runs no scaler: nothing is added when tasks wait.
    #[arg(long)]
    without_scaler: bool,
    /// How many commands the agent runs at a time. Without it the number of CPUs.
    #[arg(long, env = "MILLRACE_SLOTS", value_name = "N")]
    slots: Option<u32>,
    #[command(flatten)]
    process: ProcessArgs,
}

/// The settings of what `dev` runs; it has no flags for all of them.
struct Settings {
    distributor: millrace_distributor::Settings,
    queue: millrace_queue::Settings,
    agent: Option<agent::Settings>,
    scaler: Option<millrace_scaler::Settings>,
}

impl DevArgs {
    /// Whether everything would start with these flags and variables, as far as can be told without a port and a database.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.settings().map(drop)
    }

    fn with_scaler(&self) -> bool {
        !self.without_scaler && !self.without_agent
    }

    fn settings(&self) -> Result<Settings, Failure> {
        serve::check(&self.listen, &self.http_listen, self.database_url.as_deref(), &self.process)?;
        if self.data_dir.exists() && !self.data_dir.is_dir() {
            return Err(Failure::Usage(format!("--data-dir: {} is not a directory", self.data_dir.display())));
        }
        let settings = Settings {
            distributor: defaults()?,
            queue: defaults()?,
            agent: (!self.without_agent).then(|| agent_settings(self)).transpose()?,
            scaler: self.with_scaler().then(|| fleet::settings(&self.data_dir)).transpose()?,
        };
        distributor::check_settings(&settings.distributor)?;
        super::queue::check_settings(&settings.queue)?;
        if let Some(settings) = &settings.scaler {
            scaler::check_settings(settings)?;
        }
        if let Some(agent) = &settings.agent {
            agent.check().map_err(invalid)?;
        }
        Ok(settings)
    }
}

/// Runs the suite until it is told to stop.
pub(crate) async fn run(args: DevArgs) -> Result<(), Failure> {
    let settings = args.settings()?;
    let signals = serve::prepare(&args.process)?;
    let url = database(&args)?;
    up(&url).await?;

    // The agents go first and the services after them, so that what they had in hand is still recorded.
    let services = Shutdown::new(args.process.drain_grace);
    let mut names = [millrace_distributor::SERVICES, millrace_queue::SERVICES].concat();
    if settings.scaler.is_some() {
        names.extend(millrace_scaler::SERVICES);
    }
    let plan = Plan {
        what: "suite",
        listen: &args.listen,
        http_listen: &args.http_listen,
        process: &args.process,
        url: &url,
        services: names,
        shutdown: services.clone(),
    };
    let (tokens, fleet) = (AgentTokens::default(), Fleet::default());
    let stops = (tokens.clone(), fleet.clone());
    let ordering = tokio::spawn(stop_in_order(signals.clone(), services.clone(), stops));
    let served = serve::serve(plan, async |frame, routes, serving| {
        let queue = super::queue::start(settings.queue, frame).await?;
        queue.register(routes);
        let distributor = distributor::start(settings.distributor, frame).await?;
        distributor.register(routes);
        if let Some(settings) = settings.scaler {
            let settings = fleet::connected(settings, &serving.endpoint);
            let scaler = scaler::start(settings, frame, &url).await?;
            scaler.register(routes);
            fleet.runs(scaler, &args.data_dir, &serving.endpoint, &services);
        }
        match settings.agent {
            Some(settings) => start_agent(settings, &serving.endpoint, services.clone(), tokens),
            None => tokens.ended.cancel(),
        }
        welcome(&args, serving, &url);
        Ok((queue, distributor))
    });
    let served = served.await;
    ordering.abort();
    // They have ended by now, unless the services failed by themselves.
    tokio::select! {
        () = fleet.end() => {}
        () = signals.grace_over() => {}
        () = tokio::time::sleep(args.process.drain_grace) => {}
    }
    served
}

/// The settings of a service as its variables and defaults make them; `dev` has no flags for all of them.
pub(super) fn defaults<T: Args + FromArgMatches>() -> Result<T, Failure> {
    let command = T::augment_args(clap::Command::new("millrace dev").no_binary_name(true));
    let matches = command.try_get_matches_from(std::iter::empty::<String>());
    let settings = matches.and_then(|matches| T::from_arg_matches(&matches));
    settings.map_err(|error| Failure::Usage(error.to_string().trim_start_matches("error: ").to_owned()))
}

/// The database's URL, with the data directory made when it is to hold it.
fn database(args: &DevArgs) -> Result<String, Failure> {
    let dir = &args.data_dir;
    let made = std::fs::create_dir_all(dir);
    made.map_err(|error| Failure::Usage(format!("--data-dir: cannot make {}: {error}", dir.display())))?;
    match &args.database_url {
        Some(url) => Ok(url.clone()),
        None => match dir.join("millrace.db").to_str() {
            Some(path) => Ok(format!("sqlite:{path}")),
            None => Err(Failure::Usage(format!("--data-dir: {} is not UTF-8", dir.display()))),
        },
    }
}

fn agent_settings(args: &DevArgs) -> Result<agent::Settings, Failure> {
    let settings = defaults::<agent::Settings>()?;
    Ok(agent::Settings {
        slots: args.slots.or(settings.slots),
        name: settings.name.or_else(|| Some("dev".to_owned())),
        state_dir: Some(args.data_dir.join("agent")),
        drain_timeout: AGENT_DRAIN,
        // Variables for commands about a scaler, or for a node that this shell runs on, are not for this agent.
        node: agent::NodeSettings::default(),
        ..settings
    })
}

/// When the agent is to stop, and when it has.
#[derive(Debug, Clone, Default)]
struct AgentTokens {
    stop: CancellationToken,
    ended: CancellationToken,
}

/// Runs the agent against this very process.
fn start_agent(settings: agent::Settings, endpoint: &str, services: Shutdown, tokens: AgentTokens) {
    let settings = agent::Settings { endpoints: vec![endpoint.to_owned()], ..settings };
    tokio::spawn(async move {
        // Also when it panics: the services must not wait for an agent that is no more.
        let _ended = tokens.ended.drop_guard();
        if let Err(error) = agent::run(settings, tokens.stop).await {
            tracing::error!(%error, "the agent stopped, and without it this is not what was asked for; draining");
            services.begin();
        }
    });
}

/// On the first signal the agent and the nodes are told to stop, and when they have, the services. A second signal ends both
/// at once.
async fn stop_in_order(signals: Shutdown, services: Shutdown, (agent, fleet): (AgentTokens, Fleet)) {
    signals.draining().await;
    agent.stop.cancel();
    let ended = async { tokio::join!(agent.ended.cancelled(), fleet.end()) };
    tokio::select! {
        _ = ended => services.begin(),
        () = signals.grace_over() => {}
    }
    signals.grace_over().await;
    services.cut();
}

/// Tells where it is and what to do first.
fn welcome(args: &DevArgs, serving: &Serving, url: &str) {
    let flag = match serving.endpoint == DEFAULT_ENDPOINT {
        true => String::new(),
        false => format!(" --endpoint {}", serving.endpoint),
    };
    let agent = if args.without_agent {
        "none: tasks wait until an orchestrator connects"
    } else {
        "one agent runs commands here"
    };
    let scaler = match args.with_scaler() {
        true => format!("the pool `{}` adds agents when tasks wait, {} at most", fleet::POOL, fleet::most()),
        false => "none: nothing is added when tasks wait".to_owned(),
    };
    eprintln!("millrace {}", crate::version::build());
    eprintln!("  gRPC      {}", serving.endpoint);
    eprintln!("  HTTP      {}/metrics, {}/healthz", serving.http, serving.http);
    eprintln!("  database  {}", serve::redacted(url));
    eprintln!("  agent     {agent}");
    eprintln!("  scaler    {scaler}");
    eprintln!("Try in another terminal:\n  millrace task run{flag} -- sh -c 'echo hello; exit 3'");
    if args.with_scaler() {
        eprintln!("  millrace pool watch{flag}");
    }
}
