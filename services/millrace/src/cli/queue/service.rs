//! `millrace queue` without a command: the queue service.

use super::QueueCommand;
use crate::exit::Failure;
use crate::serve::{self, Plan, ProcessArgs};

/// Flags of the service, or a command about queues.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  millrace queue --database-url postgres://millrace@db/millrace
  millrace queue list
  millrace queue pause builds --reason 'registry is down'

Without a command this is the queue service itself. Several may run; each queue has one owner at a time.")]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    command: Option<QueueCommand>,
    #[command(flatten)]
    service: ServiceArgs,
}

/// Flags of the service.
#[derive(Debug, clap::Args)]
struct ServiceArgs {
    /// Where to listen for gRPC.
    #[arg(long, env = "MILLRACE_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7602")]
    listen: String,
    /// Where to listen for HTTP: /metrics and /healthz.
    #[arg(long, env = "MILLRACE_HTTP_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7612")]
    http_listen: String,
    /// The database: postgres://… or sqlite:PATH.
    #[arg(long, env = "MILLRACE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    #[command(flatten, next_help_heading = "Queue service")]
    settings: millrace_queue::Settings,
    #[command(flatten)]
    process: ProcessArgs,
}

impl QueueArgs {
    /// Runs the command, or the service.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.command {
            Some(command) => command.run().await,
            None => run(self.service).await,
        }
    }

    /// Whether the service would start with these flags, as far as can be told without a port and a database.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.service.check().map(drop)
    }
}

impl ServiceArgs {
    /// Checks the flags and gives the database's URL.
    fn check(&self) -> Result<&str, Failure> {
        let Some(url) = &self.database_url else {
            return Err(Failure::Usage(
                "the queue service needs --database-url or MILLRACE_DATABASE_URL; `millrace queue --help` lists the commands"
                    .to_owned(),
            ));
        };
        serve::check(&self.listen, &self.http_listen, Some(url), &self.process)?;
        check_settings(&self.settings)?;
        Ok(url)
    }
}

/// Whether the settings make sense together.
pub(crate) fn check_settings(settings: &millrace_queue::Settings) -> Result<(), Failure> {
    settings.check().map_err(|error| Failure::Usage(error.to_string()))
}

/// Runs the service until it is told to stop.
async fn run(args: ServiceArgs) -> Result<(), Failure> {
    let url = args.check()?;
    let shutdown = serve::prepare(&args.process)?;
    let plan = Plan {
        what: "queue service",
        listen: &args.listen,
        http_listen: &args.http_listen,
        process: &args.process,
        url,
        services: millrace_queue::SERVICES.to_vec(),
        shutdown,
    };
    serve::serve(plan, async |frame, routes, _| {
        let queue = start(args.settings.clone(), frame).await?;
        queue.register(routes);
        Ok(queue)
    })
    .await
}

/// Starts the service.
pub(crate) async fn start(
    settings: millrace_queue::Settings,
    frame: &serve::Frame,
) -> Result<millrace_queue::QueueServer, Failure> {
    let started = millrace_queue::QueueServer::start(settings, frame.context());
    started.map_err(|error| Failure::Usage(error.to_string()))
}
