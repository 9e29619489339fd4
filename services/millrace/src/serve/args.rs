//! Flags that every process that serves has.

use std::time::Duration;

use millrace_runtime::config::duration;
use millrace_runtime::server::ServeOptions;
use millrace_runtime::telemetry::LogFormat;

use super::DatabaseArgs;
use crate::exit::Failure;

/// The server's own limits, which are the flags' defaults.
fn limits() -> ServeOptions {
    ServeOptions::default()
}

/// Flags that every process that serves has.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Process")]
pub(crate) struct ProcessArgs {
    /// Where peers and orchestrators reach this process; needed when it listens on every address.
    #[arg(long, env = "MILLRACE_ADVERTISE", value_name = "URL")]
    pub(crate) advertise: Option<String>,
    /// How long open work may take to end when the process is told to stop.
    #[arg(long, env = "MILLRACE_DRAIN_GRACE", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) drain_grace: Duration,
    /// After it is told to stop, new calls are served for this long, so that load balancers notice NOT_SERVING first.
    #[arg(long, env = "MILLRACE_DRAIN_NOTICE", value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(crate) drain_notice: Duration,
    /// How to write logs: `auto` is text on a terminal and JSON elsewhere.
    #[arg(long, env = "MILLRACE_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    pub(crate) log_format: LogFormat,
    /// Calls that may wait for the beginning of their answer; past it RESOURCE_EXHAUSTED.
    #[arg(long, env = "MILLRACE_MAX_CONCURRENT_REQUESTS", value_name = "COUNT", default_value_t = limits().max_concurrent_requests)]
    pub(crate) max_concurrent_requests: usize,
    /// Connections that may be open.
    #[arg(long, env = "MILLRACE_MAX_CONNECTIONS", value_name = "COUNT", default_value_t = limits().max_connections)]
    pub(crate) max_connections: usize,
    /// Streams and calls that may be open on one connection.
    #[arg(long, env = "MILLRACE_MAX_CONCURRENT_STREAMS", value_name = "COUNT", default_value_t = limits().max_concurrent_streams)]
    pub(crate) max_concurrent_streams: u32,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

impl ProcessArgs {
    /// Whether the limits let anything through.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let rules = [
            (self.max_concurrent_requests > 0, "--max-concurrent-requests must be at least 1"),
            (self.max_connections > 0, "--max-connections must be at least 1"),
            (self.max_concurrent_streams > 0, "--max-concurrent-streams must be at least 1"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(Failure::Usage(rule.to_owned())),
            None => self.database.check(),
        }
    }

    /// The limits of the gRPC server.
    pub(crate) fn options(&self) -> ServeOptions {
        ServeOptions {
            max_concurrent_requests: self.max_concurrent_requests,
            max_connections: self.max_connections,
            max_concurrent_streams: self.max_concurrent_streams,
            drain_notice: self.drain_notice,
            ..limits()
        }
    }
}
