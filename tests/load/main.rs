//! `millrace-bench`: what Millrace can do on this machine, and what the machine itself could do at best.
//!
//! `make bench` runs it against a PostgreSQL of its own. In one run it measures the ceilings (plain SQL under pgbench, the null
//! unary call) and the real, separate services over gRPC on loopback, prints a table and writes `summary.json`. Absolute
//! figures belong to one machine and one day; the ratios of one run can be compared.
//!
//! - [`run`] is the order of it all; [`plan`] says how long each part takes.
//! - [`ceiling`], [`store`] and [`null`] measure what is below and beside the services.
//! - [`services`] starts the services; [`submission`], [`life`], [`dispatch`] and [`memory`] measure them.
//! - [`closed`] and [`pace`] are the two kinds of load; [`tool`] offers both against any endpoint.
//! - [`report`] makes table and summary.
//!
//! Nothing durable is turned off anywhere, and every figure about tasks is counted in the database.

mod ceiling;
mod cli;
mod closed;
mod dispatch;
mod fleet;
mod life;
mod memory;
mod null;
mod pace;
mod payload;
mod plan;
mod postgres;
mod report;
mod run;
mod services;
mod spawning;
mod store;
mod submission;
mod tool;
mod usage;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code for a wrong command line or build.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if cfg!(debug_assertions) && cli.command.is_none() && !cli.run.allow_debug {
        eprintln!(
            "millrace-bench: this is a debug build, whose figures mean nothing: use `make bench` or --allow-debug"
        );
        return ExitCode::from(USAGE);
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("millrace-bench: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(perform(cli));
    // A psql that hangs must not hold the process up.
    runtime.shutdown_background();
    code
}

/// Runs the command until it ends or a signal comes. Either way everything that it has started is dropped, and ends with
/// that.
async fn perform(cli: Cli) -> ExitCode {
    let work = async {
        match cli.command {
            None => run::run(&cli.run).await,
            Some(Command::Submit(args)) => tool::submit(args).await,
            Some(Command::NullServer) => null::serve().await,
        }
    };
    tokio::select! {
        result = work => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("millrace-bench: {error:#}");
                ExitCode::FAILURE
            }
        },
        code = interrupted() => code,
    }
}

/// Resolves when the process is told to end.
async fn interrupted() -> ExitCode {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => ExitCode::from(130),
        _ = terminate.recv() => ExitCode::from(143),
    }
}
