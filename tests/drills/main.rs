//! `millrace-drill`: incidents that others have had, replayed against real, separate services, with pass marks.
//!
//! `make drill D=D1a` runs one against a PostgreSQL of its own and leaves `summary.json`, `samples.csv` and `timeline.png` in
//! `target/drill/D1a`. The judge of what ran is a file that the commands themselves append to, and of what is stored the database;
//! never the services' own figures. It needs a debug build, because builds of other releases are made by failpoints.
//!
//! - [`form`] is what all drills share: marks, figures, phases, and what is written at the end; [`chart`] draws for the terminal.
//! - [`stand`] runs the services and deploys builds over them; [`fleet`] runs commands; [`judge`] holds what these wrote.
//! - [`load`] submits, on a schedule or in batches; [`samples`] looks at the database four times a second.
//! - [`d1a`] is the drill: jobs stuck in "not running".

mod chart;
mod cli;
mod d1a;
mod fleet;
mod form;
mod judge;
mod load;
#[path = "../load/pace.rs"]
mod pace;
mod samples;
mod sql;
mod stand;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use millrace_tests::postgres;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{Cli, Drill},
    form::Report,
};

/// The exit code for a wrong command line, build or environment.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = usable() {
        eprintln!("millrace-drill: {error}");
        return ExitCode::from(USAGE);
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("millrace-drill: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(perform(&cli));
    // A statement that hangs must not hold the process up.
    runtime.shutdown_background();
    code
}

fn usable() -> Result<()> {
    if !cfg!(debug_assertions) {
        bail!("a build without failpoints cannot make builds of other releases: use `make drill`");
    }
    if std::env::var_os(postgres::SERVER).is_none() {
        bail!("{} is not set: use `make drill`, or `tests/with-postgres.sh`, which starts a server", postgres::SERVER);
    }
    Ok(())
}

/// Runs the drill until it ends or a signal comes. Either way everything that it has started is dropped, and ends with that.
async fn perform(cli: &Cli) -> ExitCode {
    let work = async {
        let mut report = Report::new(cli.drill.name(), cli.seed(), &cli.out())?;
        match cli.drill {
            Drill::D1a => d1a::run(cli, &mut report).await?,
        }
        report.finish()
    };
    tokio::select! {
        result = work => match result {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("millrace-drill: {error:#}");
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
