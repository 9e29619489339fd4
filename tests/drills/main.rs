//! `millrace-drill`: incidents that others have had, replayed with pass marks: against real, separate services, or, where they take hours, on a
//! virtual clock.
//!
//! `make drill D=D1a` runs one against a PostgreSQL of its own and leaves `summary.json`, `samples.csv` and `timeline.png` in
//! `target/drill/D1a`. The judge of what ran is a file that the commands themselves append to, and of what is stored the database;
//! never the services' own figures. D1a needs a debug build, because builds of other releases are made by failpoints.
//!
//! - [`form`] is what all drills share: marks, figures, phases, and what is written at the end; [`chart`] draws for the terminal.
//! - [`stand`] runs the services and deploys builds over them; [`fleet`] runs commands; [`judge`] holds what these wrote.
//! - [`load`] submits, on a schedule or in batches; [`samples`] looks at the database four times a second.
//! - [`d1a`]: jobs stuck in "not running". [`fleets`]: the scaler's drills.

mod chart;
mod cli;
mod d1a;
mod fleet;
mod fleets;
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
    if let Err(error) = usable(&cli) {
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

fn usable(cli: &Cli) -> Result<()> {
    if !cli.drill.is_real() {
        return Ok(());
    }
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
        let bands = if cli.drill.is_real() { d1a::BANDS } else { fleets::BANDS };
        let mut report = Report::new(cli.drill.name(), cli.seed(), &cli.out(), bands)?;
        let seeds = if cli.short { 1 } else { 5 };
        match cli.drill {
            Drill::D1a => d1a::run(cli, &mut report).await?,
            Drill::D1b => fleets::d1b::run(&mut report, seeds)?,
            Drill::D2 => fleets::d2::run(&mut report, seeds)?,
            Drill::D4 => fleets::d4::run(&mut report, seeds)?,
            Drill::Fleet => fleets::large::run(&mut report)?,
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
