//! `millrace`: every service of the suite, and the client commands, in one binary.
//!
//! Exit codes: 0; 1 when the request failed; 64 for a wrong command line or configuration; 69 when a service or
//! database cannot be reached. `task run` exits as the command does that it ran.

mod cli;
mod client;
mod endpoint;
mod exit;
mod json;
mod output;
mod serve;
mod status;
mod time;
mod version;
mod watch;

use std::process::ExitCode;

use millrace_runtime::config;

use crate::exit::{Failure, USAGE};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli: cli::Cli = match config::try_parse_from(std::env::args_os(), std::env::var_os(config::VARIABLE)) {
        Ok(cli) => cli,
        Err(config::ConfigError::Usage(error)) => {
            // Help and the version are what was asked for; only errors go to standard error and cost an exit code. A
            // closed pipe is the reader's choice.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
        Err(error) => return Failure::Usage(error.to_string()).report(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::Unavailable(format!("cannot start threads: {error}")).report(),
    };
    let code = match runtime.block_on(cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    // A blocking call that hangs, as on a database that is gone, must not hold the process up.
    runtime.shutdown_background();
    code
}
