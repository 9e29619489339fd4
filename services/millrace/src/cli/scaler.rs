//! `millrace scaler`: one process of the scaler.

use millrace_scaler::{Scaler, Settings, StartError};

use crate::exit::Failure;
use crate::serve::{self, Plan, ProcessArgs, store_failure};

/// Flags of `scaler`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace scaler --database-url postgres://millrace@db/millrace --provider cloud=grpc://10.0.0.9:7700
  millrace scaler --database-url postgres://millrace@db/millrace --provider local=process
  millrace pool create builds --provider cloud --queues default --max-nodes 40

Several may run, all with the same providers: one of them leads, the others answer and take over.
A scaler that stops leaves its nodes as they are.")]
pub(crate) struct ScalerArgs {
    /// Where to listen for gRPC.
    #[arg(long, env = "MILLRACE_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7603")]
    listen: String,
    /// Where to listen for HTTP: /metrics and /healthz.
    #[arg(long, env = "MILLRACE_HTTP_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7613")]
    http_listen: String,
    /// The database: postgres://… or sqlite:PATH.
    #[arg(long, env = "MILLRACE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: String,
    #[command(flatten, next_help_heading = "Scaler")]
    settings: Settings,
    #[command(flatten)]
    process: ProcessArgs,
}

impl ScalerArgs {
    /// Whether the scaler would start with these flags, as far as can be told without a port and a database.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        serve::check(&self.listen, &self.http_listen, Some(&self.database_url), &self.process)?;
        check_settings(&self.settings)
    }
}

/// Whether the settings make sense together.
pub(crate) fn check_settings(settings: &Settings) -> Result<(), Failure> {
    settings.check().map_err(|error| Failure::Usage(error.to_string()))
}

/// Runs the scaler until it is told to stop.
pub(crate) async fn run(args: ScalerArgs) -> Result<(), Failure> {
    args.check()?;
    let shutdown = serve::prepare(&args.process)?;
    let plan = Plan {
        what: "scaler",
        listen: &args.listen,
        http_listen: &args.http_listen,
        process: &args.process,
        url: &args.database_url,
        services: millrace_scaler::SERVICES.to_vec(),
        shutdown,
    };
    serve::serve(plan, async |frame, routes, _| {
        let scaler = start(args.settings.clone(), frame, &args.database_url).await?;
        scaler.register(routes);
        Ok(scaler)
    })
    .await
}

/// Starts the scaler, if the database has the tables of fleets.
pub(crate) async fn start(settings: Settings, frame: &serve::Frame, url: &str) -> Result<Scaler, Failure> {
    let context = frame.context();
    let version = context.call(|store| store.schema_version()).await;
    version
        .and_then(|version| millrace_store::migrate::reaches(&version, millrace_store::migrate::FLEETS))
        .map_err(|error| store_failure(&error, url))?;
    Scaler::start(settings, context).map_err(|error| match error {
        StartError::Settings(why) => Failure::Usage(why),
        StartError::Provider(why) => Failure::Usage(why.to_string()),
    })
}
