//! D4: new machines that never become healthy. Nobody noticed until load rose.

use anyhow::{Result, ensure};
use millrace_core::fleet::{Pool, State};

use super::world::{World, pool};
use crate::form::Report;

/// The greatest size of the pool.
const MAX: u32 = 100;

/// Nodes before load rises.
const NODES: f64 = 40.0;

/// When the deploy comes, when load rises, and when the deploy is mended, in seconds.
const DEPLOY: u64 = 3_600;
const LOAD: u64 = 9_000;
const MENDED: u64 = 12_600;

/// Runs the drill.
pub(crate) fn run(report: &mut Report, seeds: u64) -> Result<()> {
    for how in ["boot-failed", "provider-failed"] {
        all_dead(report, how)?;
    }
    let seeds = report.seed()..report.seed() + seeds.max(1);
    for how in ["silent", "boot-failed", "provider-failed"] {
        some_dead(report, how, seeds.clone())?;
    }
    Ok(())
}

/// Every launch since a deploy fails.
fn all_dead(report: &mut Report, how: &str) -> Result<()> {
    let seed = report.seed();
    let script = format!(
        "seed = {seed}\n[dead]\nhow = \"{how}\"\nerror = \"cloud-init: bad reference v2\"\nafter = \"45s\"\n\
         [[change]]\nat = \"{DEPLOY}s\"\ndead.share = 1.0\n\
         [[change]]\nat = \"{MENDED}s\"\ndead.share = 0.0\n"
    );
    let mut world = World::new(vec![pool("builders", MAX)], &script)?;
    world.warm_up(NODES, DEPLOY);
    world.warm_up(NODES, LOAD - DEPLOY - 300);
    world.phase = format!("{how}: before");
    world.warm_up(NODES, 300);
    let (healthy, before) = (world.count(State::Ready), world.tally());
    ensure!(healthy >= NODES as usize / 2, "the pool works: {healthy} nodes");
    world.phase = format!("{how}: load rises");
    world.decisions.clear();
    world.warm_up(f64::from(MAX), MENDED - LOAD);
    let tally = world.tally();
    let launches = tally.created - before.created;
    // Probes go on, one for each back-off: those of an hour do not count as launching.
    let probes = probes(&world, before.created);
    report.at_most(format!("{how}: launches until launching stopped"), (launches - probes) as f64, stops_within());
    report.figure(&format!("{how}_probes_in_an_hour"), probes);
    let lost = healthy.saturating_sub(world.count(State::Ready));
    report.at_most(format!("{how}: healthy nodes lost"), lost as f64, 0.0);
    let named: Vec<&str> = world
        .decisions
        .iter()
        .map(|decision| decision.text.as_str())
        .filter(|text| text.contains("since") && text.contains("cloud-init: bad reference v2"))
        .collect();
    report.at_least(format!("{how}: lines that name the cause"), named.len().min(1) as f64, 1.0);
    if let Some(line) = named.first() {
        report.figure(&format!("{how}_line"), *line);
    }
    world.phase = format!("{how}: mended");
    world.warm_up(f64::from(MAX), 3_600);
    let ready = world.count(State::Ready);
    report.at_least(format!("{how}: nodes an hour after the mend"), ready as f64, f64::from(MAX) * 0.85);
    report.timeline(std::mem::take(&mut world.points));
    Ok(())
}

/// Ten per cent of the pool, or five, whichever is more.
fn stops_within() -> f64 {
    (f64::from(MAX) * 0.1).max(5.0)
}

/// Launches that were made one at a time after launching had stopped: the first gap of at least 20 s separates them.
fn probes(world: &World, before: usize) -> usize {
    world.provider.ledger(|ledger| {
        let made: Vec<i64> = ledger.nodes.iter().skip(before).map(|node| node.created.0 / 1_000_000).collect();
        let gap = made.windows(2).position(|two| two[1] - two[0] >= 20);
        gap.map_or(0, |gap| made.len() - gap - 1)
    })
}

/// Three in ten launches are dead on arrival: all are replaced, and hardly more are made than that takes.
fn some_dead(report: &mut Report, how: &str, seeds: std::ops::Range<u64>) -> Result<()> {
    let (mut excess, mut missing, mut killed) = (f64::MIN, 0, 0);
    for seed in seeds {
        let script = format!("seed = {seed}\n[dead]\nshare = 0.3\nhow = \"{how}\"\nafter = \"45s\"\n");
        let by = pool("builders", MAX);
        let mut world = World::new(vec![Pool { min: 60, step_up: 20, ..by }], &script)?;
        world.phase = format!("{how}, 3 in 10 dead: seed {seed}");
        world.pass(3 * 3_600, 0.0);
        let tally = world.tally();
        let dead = world.provider.ledger(|ledger| ledger.nodes.iter().filter(|node| node.joins().is_none()).count());
        // What 60 nodes take: themselves, and those that were dead.
        let needed = 60 + dead;
        excess = excess.max((tally.created as f64 / needed as f64 - 1.0) * 100.0);
        missing += 60_usize.saturating_sub(world.count(State::Ready));
        killed += tally.killed_that_would_have_joined;
    }
    report.at_most(format!("3 in 10 dead, {how}: nodes not replaced"), missing as f64, 0.0);
    report.at_most(format!("3 in 10 dead, {how}: % more made than needed"), excess, 5.0);
    report.at_most(format!("3 in 10 dead, {how}: killed that would have joined"), killed as f64, 0.0);
    Ok(())
}
