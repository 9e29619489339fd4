//! D1a, the first half of D1: a deploy changes a field's type, so that nothing written before can be read; it is rolled back, and what
//! was written in between cannot be read; a patched build reads both.
//!
//! - [`incident`] replays it, and [`naive`] the same against a reader that stops at the first bad row, for comparison.
//! - [`mixes`] offers shares of bad rows, each beside the same load without; [`bad`] makes them; [`hiccup`] fails the database.
//! - [`mend`] fixes what is wrong with them and sees that all of them run.
//!
//! In one run: the machine's capacity is measured first, and half of it is what everything else is offered.

mod bad;
mod hiccup;
mod incident;
mod mend;
mod mixes;
mod naive;
mod timeline;

use std::time::Duration;

use anyhow::Result;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::json;

use crate::{
    cli::{Cli, Part},
    form::Report,
    judge::now_ns,
    load::{self, Kind},
    samples::Sampler,
    stand::{SpecBytes, Stand},
};
use mixes::{Cell, Place};
pub(crate) use timeline::BANDS;

/// The largest spec before and after the fix: what is oversize lies between.
const LIMIT: SpecBytes = SpecBytes(8 * 1024);
const RAISED: SpecBytes = SpecBytes(64 * 1024);

/// Submitters, each with one call in flight, that fill the machine.
const CALLERS: u64 = 32;

/// Warming up, and the time over which the capacity is measured.
const WARM_UP: Duration = Duration::from_secs(5);
const CAPACITY: Duration = Duration::from_secs(10);

/// Of the capacity, what is offered.
const SHARE: f64 = 0.5;

/// Bad rows among the others.
const SHARES: [f64; 4] = [0.001, 0.01, 0.1, 0.5];

/// Tasks a second of the short form, and its bad rows of each kind.
const SHORT_RATE: f64 = 50.0;
const SHORT_ROWS: usize = 200;

/// Bad rows that each cut of the hiccup finds.
const HICCUP_ROWS: usize = 50;

/// Runs the drill.
pub(crate) async fn run(cli: &Cli, report: &mut Report) -> Result<()> {
    let mut random = StdRng::seed_from_u64(report.seed());
    report.say(&format!("D1a, seed {}", report.seed()));
    report.figure("machine_load_before", load_average());
    let mut stand = Stand::start(report.out(), LIMIT).await?;
    let sampler = Sampler::start(&stand.database)?;
    let rate = match (cli.short, cli.rate) {
        (true, _) => SHORT_RATE,
        (false, Some(rate)) => f64::from(rate),
        (false, None) => capacity(&stand, report).await? * SHARE,
    };
    report.figure("offered_per_s", rate.round());
    if cli.short {
        short(&mut stand, rate, &mut random, report).await?;
    } else {
        whole(cli, &mut stand, rate, &mut random, report).await?;
    }
    timeline::seen(report, &sampler.samples(), &stand.judge.runs()?);
    report.figure("machine_load_after", load_average());
    drop(sampler);
    stand.stop().await?;
    if cli.wants(Part::Naive) && !cli.short {
        naive::run(rate, cli.time / 2, report).await?;
    }
    Ok(())
}

async fn whole(cli: &Cli, stand: &mut Stand, rate: f64, random: &mut StdRng, report: &mut Report) -> Result<()> {
    clean(stand, rate, cli.time, report).await?;
    if cli.wants(Part::Incident) {
        incident::run(stand, rate, cli.time, report).await?;
    }
    let (mixes, hiccup) = (cli.wants(Part::Mixes), cli.wants(Part::Hiccup));
    if !mixes && !hiccup {
        return Ok(());
    }
    bad::prepare(&mut stand.sql()?)?;
    if mixes {
        for place in [Place::Head, Place::Spread] {
            for share in SHARES {
                let cell = Cell::of(place, share, rate, cli.time / 2);
                mixes::compare(stand, &cell, random, report).await?;
            }
        }
    }
    if hiccup {
        hiccup::run(stand, rate, HICCUP_ROWS, random, report).await?;
    }
    mend::run(stand, report).await
}

/// Only what is right and wrong: bad rows of every kind in front of good ones, a hiccup, and the fix.
async fn short(stand: &mut Stand, rate: f64, random: &mut StdRng, report: &mut Report) -> Result<()> {
    bad::prepare(&mut stand.sql()?)?;
    let rows = SHORT_ROWS * bad::KINDS.len();
    let cell = Cell { place: Place::Head, share: 0.0, bad: rows, good: 4 * rate as u64, rate };
    mixes::run(stand, &cell, "short", Some(random), report).await?;
    hiccup::run(stand, rate, 0, random, report).await?;
    mend::run(stand, report).await
}

/// The machine's load of the last minute: waits that are compared mean little when others use it as well. Unknown is 0.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

/// Tasks a second that go through when submitters wait for nothing but their answers.
async fn capacity(stand: &Stand, report: &mut Report) -> Result<f64> {
    report.phase("capacity");
    let kind = Kind::of("capacity");
    let begin = now_ns();
    let tasks = load::closed(&stand.replicas, &kind, CALLERS, WARM_UP + CAPACITY).await?;
    stand.judge.all(&tasks).await?;
    report.end_phase();
    let from = begin + WARM_UP.as_nanos() as u64;
    let ended = stand.judge.runs()?.ends(from, from + CAPACITY.as_nanos() as u64);
    let per_s = ended as f64 / CAPACITY.as_secs_f64();
    report.figure("capacity_per_s", per_s.round());
    Ok(per_s)
}

/// The load without anything wrong, for the record.
async fn clean(stand: &Stand, rate: f64, time: Duration, report: &mut Report) -> Result<()> {
    report.phase("clean");
    let cell = Cell { place: Place::Spread, share: 0.0, bad: 0, good: (rate * time.as_secs_f64()) as u64, rate };
    let figures = mixes::run(stand, &cell, "clean", None, report).await?;
    report.end_phase();
    report.figure("clean", json!({ "per_s": figures.per_s, "p99_wait_ms": figures.p99_ms }));
    Ok(())
}
