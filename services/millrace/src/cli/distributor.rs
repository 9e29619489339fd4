//! `millrace distributor`: one replica.

use crate::exit::Failure;
use crate::serve::{self, Plan, ProcessArgs};

/// Flags of `distributor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace distributor --database-url postgres://millrace@db/millrace
  millrace distributor --config /etc/millrace.toml \\
    --listen 0.0.0.0:7601 --advertise http://10.0.0.5:7601

The database must have the schema of this release: `millrace migrate up`. While the database is
down the process waits for it.")]
pub(crate) struct DistributorArgs {
    /// Where to listen for gRPC.
    #[arg(long, env = "MILLRACE_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7601")]
    listen: String,
    /// Where to listen for HTTP: /metrics and /healthz.
    #[arg(long, env = "MILLRACE_HTTP_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7611")]
    http_listen: String,
    /// The database: postgres://… or sqlite:PATH.
    #[arg(long, env = "MILLRACE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: String,
    #[command(flatten, next_help_heading = "Distributor")]
    settings: millrace_distributor::Settings,
    #[command(flatten)]
    process: ProcessArgs,
}

impl DistributorArgs {
    /// Whether a replica would start with these flags, as far as can be told without a port and a database.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        serve::check(&self.listen, &self.http_listen, Some(&self.database_url), &self.process)?;
        check_settings(&self.settings)
    }
}

/// Whether the settings make sense together.
pub(crate) fn check_settings(settings: &millrace_distributor::Settings) -> Result<(), Failure> {
    settings.check().map_err(Failure::Usage)
}

/// Runs a replica until it is told to stop.
pub(crate) async fn run(args: DistributorArgs) -> Result<(), Failure> {
    args.check()?;
    let shutdown = serve::prepare(&args.process)?;
    let plan = Plan {
        what: "distributor",
        listen: &args.listen,
        http_listen: &args.http_listen,
        process: &args.process,
        url: &args.database_url,
        services: millrace_distributor::SERVICES.to_vec(),
        shutdown,
    };
    serve::serve(plan, async |frame, routes, _| {
        let distributor = start(args.settings.clone(), frame).await?;
        distributor.register(routes);
        Ok(distributor)
    })
    .await
}

/// Starts a replica.
pub(crate) async fn start(
    settings: millrace_distributor::Settings,
    frame: &serve::Frame,
) -> Result<millrace_distributor::Distributor, Failure> {
    let started = millrace_distributor::Distributor::start(settings, frame.context()).await;
    started.map_err(|error| match error {
        millrace_distributor::StartError::Settings(why) => Failure::Usage(why),
        other => Failure::Unavailable(other.to_string()),
    })
}
