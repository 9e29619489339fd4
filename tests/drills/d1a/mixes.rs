//! Bad rows among good ones, and the same load with nothing wrong with it.
//!
//! A cell offers the same rows at the same moments twice: once all of them are good, once some are spoilt before anybody has looked at
//! them. What is compared is what became of the others. Those to be spoilt are submitted beforehand: to a paused queue, so that they are
//! its head, or with moments from which on they may run, so that they are spread.
//!
//! Both are offered in several rounds that take turns, and the rounds' medians are compared: a stall of the machine that falls into one
//! round is nobody's doing.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use serde_json::json;
use tokio::task::block_in_place;
use uuid::Uuid;

use super::bad;
use crate::{
    form::Report,
    judge::now_ns,
    load::{Kind, Open, Sent},
    stand::Stand,
};

/// Of the good tasks' throughput and wait, what may be lost to the bad rows.
const THROUGHPUT: f64 = 0.95;
const WAIT: f64 = 1.2;

/// Rounds of each, an odd number so that one is the median.
const ROUNDS: u32 = 3;

/// How long it takes to submit the rows that are spread and to spoil them, and more: at least, and for each row.
const STAGE: Duration = Duration::from_secs(2);
const STAGE_ROW: Duration = Duration::from_micros(1_000);

/// How long bad rows may take to be set aside once everything else is done: one that was claimed just when the database failed stays
/// with its session for a minute.
const ASIDE: Duration = Duration::from_secs(90);

/// Where the bad rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In front of all others.
    Head,
    /// Among them, one as far from the next as any.
    Spread,
}

/// A load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub(super) place: Place,
    /// Of all rows, those to be spoilt.
    pub(super) share: f64,
    /// The same as a number.
    pub(super) bad: usize,
    /// Tasks that are submitted while it is measured.
    pub(super) good: u64,
    /// How many of these a second.
    pub(super) rate: f64,
}

/// What became of the good tasks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figures {
    /// Ended a second, while it was measured.
    pub(super) per_s: f64,
    /// From the moment of submission to the start; 99 of 100 waited less.
    pub(super) p99_ms: f64,
}

impl Cell {
    /// `rate` rows a second in all.
    pub(super) fn of(place: Place, share: f64, rate: f64, time: Duration) -> Self {
        let rows = rate * time.as_secs_f64();
        let bad = (rows * share).round().max(1.0);
        let good = (rows - bad).round();
        Self { place, share, bad: bad as usize, good: good as u64, rate: good / time.as_secs_f64() }
    }

    fn name(&self) -> String {
        let place = if self.place == Place::Head { "head" } else { "spread" };
        format!("{place} {}%", self.share * 100.0)
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.good as f64 / self.rate)
    }
}

/// The load without and with bad rows, and its marks.
pub(super) async fn compare(stand: &Stand, cell: &Cell, random: &mut StdRng, report: &mut Report) -> Result<()> {
    let name = cell.name();
    report.phase(&format!("mixes: {name}"));
    let (mut clean, mut mixed) = (Vec::new(), Vec::new());
    for round in 0..2 * ROUNDS {
        // Clean, mixed, mixed, clean, clean, mixed: what changes slowly falls to both alike.
        let is_clean = matches!(round % 4, 0 | 3);
        let spoil = (!is_clean).then_some(&mut *random);
        let tenant = format!("{}-{round}", name.replace([' ', '%'], "-"));
        let figures = run(stand, cell, &tenant, spoil, report).await?;
        if is_clean { &mut clean } else { &mut mixed }.push(figures);
    }
    report.end_phase();
    let all = |of: &[Figures]| of.iter().map(|one| json!([one.per_s.round(), one.p99_ms.round()])).collect::<Vec<_>>();
    report.figure(
        &format!("{name} (per_s, p99_wait_ms)"),
        json!({ "bad": cell.bad, "good": cell.good, "clean": all(&clean), "mixed": all(&mixed) }),
    );
    let ratio = |of: fn(&Figures) -> f64| median(&mixed, of) / median(&clean, of);
    let (throughput, wait) = (ratio(|figures| figures.per_s), ratio(|figures| figures.p99_ms));
    report.at_least(format!("{name}: throughput of good rows to clean"), throughput, THROUGHPUT);
    report.at_most(format!("{name}: p99 wait of good rows to clean"), wait, WAIT);
    Ok(())
}

fn median(rounds: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Offers the load; `spoil` says by which chance rows are spoilt, if at all. Returns when every good task has run and every bad row
/// has been set aside.
pub(super) async fn run(
    stand: &Stand,
    cell: &Cell,
    tenant: &str,
    spoil: Option<&mut StdRng>,
    report: &Report,
) -> Result<Figures> {
    let spoilt = spoil.is_some();
    // So that the database does not come to it in the middle of one of them.
    block_in_place(|| stand.sql()?.execute("CHECKPOINT"))?;
    let before = match cell.place {
        Place::Head => at_the_head(stand, cell, tenant, spoil).await?,
        Place::Spread => spread(stand, cell, tenant, spoil).await?,
    };
    let from = now_ns();
    let sent = Open::start(&stand.replicas, Kind::of(tenant), cell.rate, cell.good).finish().await?;
    let to = from + cell.time().as_nanos() as u64;
    let mut good: Vec<Uuid> = sent.iter().map(|sent| sent.task).collect();
    if !spoilt {
        good.extend(before);
    }
    stand.judge.all(&good).await?;
    if spoilt {
        set_aside(stand, report).await?;
    }
    figures(stand, &sent, from, to)
}

/// Submits the rows to a paused queue and spoils them. Before them stands one that nothing is wrong with: when it runs, the queue has
/// been resumed everywhere, and the load begins.
pub(super) async fn at_the_head(
    stand: &Stand,
    cell: &Cell,
    tenant: &str,
    spoil: Option<&mut StdRng>,
) -> Result<Vec<Uuid>> {
    stand.pause().await?;
    let first = stand.replicas.batch(&[Kind::of(tenant)]).await?;
    let rows = stand.replicas.batch(&vec![Kind::of(tenant); cell.bad]).await?;
    if let Some(random) = spoil {
        block_in_place(|| bad::spoil(&mut stand.sql()?, tenant, &rows, random))?;
    }
    stand.resume().await?;
    stand.judge.all(&first).await?;
    Ok(rows)
}

/// Submits the rows as ones that may not run before their moments, spoils them, and waits for the first moment.
async fn spread(stand: &Stand, cell: &Cell, tenant: &str, spoil: Option<&mut StdRng>) -> Result<Vec<Uuid>> {
    if cell.bad == 0 {
        return Ok(Vec::new());
    }
    let stage = STAGE + STAGE_ROW * cell.bad as u32;
    let begin = now_ns() + stage.as_nanos() as u64;
    let step = cell.time().as_nanos() as u64 / cell.bad as u64;
    let kind = |number: u64| Kind { not_before_ns: Some(begin + number * step), ..Kind::of(tenant) };
    let kinds: Vec<Kind> = (0..cell.bad as u64).map(kind).collect();
    let rows = stand.replicas.batch(&kinds).await?;
    if let Some(random) = spoil {
        block_in_place(|| bad::spoil(&mut stand.sql()?, tenant, &rows, random))?;
    }
    let left = begin.saturating_sub(now_ns());
    ensure!(left > 0, "the stage took longer to set than {stage:?}");
    tokio::time::sleep(Duration::from_nanos(left)).await;
    Ok(rows)
}

/// Waits until every bad row has been set aside. Those that are not in time are missed when it is counted what was kept.
pub(super) async fn set_aside(stand: &Stand, report: &Report) -> Result<()> {
    let mut sql = stand.sql()?;
    let deadline = now_ns() + ASIDE.as_nanos() as u64;
    loop {
        let left = block_in_place(|| bad::left(&mut sql))?;
        if left == 0 {
            return Ok(());
        }
        if now_ns() > deadline {
            report.say(&format!("{left} bad rows are not set aside after {ASIDE:?}"));
            return Ok(());
        }
        block_in_place(millrace_tests::net::pause);
    }
}

fn figures(stand: &Stand, sent: &[Sent], from: u64, to: u64) -> Result<Figures> {
    let runs = stand.judge.runs()?;
    let ended = |sent: &&Sent| runs.end(&sent.task).is_some_and(|end| (from..to).contains(&end));
    let wait = |sent: &Sent| Some(runs.start(&sent.task)?.saturating_sub(sent.due_ns));
    let mut waits: Vec<u64> = sent.iter().filter_map(wait).collect();
    waits.sort_unstable();
    let p99 = waits.get(waits.len() * 99 / 100).copied().unwrap_or(0);
    let seconds = (to - from) as f64 / 1e9;
    Ok(Figures { per_s: sent.iter().filter(ended).count() as f64 / seconds, p99_ms: p99 as f64 / 1e6 })
}
