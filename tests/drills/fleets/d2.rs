//! D2: zones run out of capacity while calls are throttled, and nobody sees which it is. And answers that get lost.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use millrace_core::fleet::{Pool, State};
use millrace_scaler::provider::simulated::Method;

use super::world::{PROVIDER, World, pool};
use crate::form::Report;

/// Nodes that are wanted.
const NODES: u32 = 100;

/// Nodes that are wanted in the storm.
const STORM: u32 = 600;

/// How long the trouble lasts, in seconds.
const TROUBLE: u64 = 600;

/// Runs the drill.
pub(crate) fn run(report: &mut Report, seeds: u64) -> Result<()> {
    stockout(report)?;
    for seed in report.seed()..report.seed() + seeds.max(1) {
        storm(report, seed)?;
    }
    Ok(())
}

/// The preferred zone is full, and the provider takes few calls.
fn stockout(report: &mut Report) -> Result<()> {
    let script = format!(
        "seed = {}\nthrottle.per_second = 0.5\nthrottle.burst = 3\n[zones.a]\ncapacity = 10\n[zones.b]\ncapacity = 20\n[zones.c]\n",
        report.seed()
    );
    let zones = ["a", "b", "c"].map(str::to_owned).to_vec();
    let mut world = World::new(vec![Pool { zones, min: 60, ..pool("builders", NODES) }], &script)?;
    world.phase = "stockout: full zones".into();
    let mut refused_at = None;
    let mut moved_after = None;
    let mut states = BTreeSet::new();
    for _ in 0..3_600 {
        world.step();
        let provider = world.fleet.provider(PROVIDER, world.now());
        let blocked: BTreeSet<String> =
            provider.iter().flat_map(|provider| &provider.blocked).map(|zone| zone.zone.clone()).collect();
        states.extend(provider.map(|provider| provider.state.name()));
        if refused_at.is_none() && blocked.contains("a") {
            refused_at = Some(world.second);
        }
        // From then on every intent names another zone.
        let asks_full = world.fleet.nodes().any(|node| node.state == State::Requested && node.zone == "a");
        if let (Some(refused), None) = (refused_at, moved_after)
            && !asks_full
        {
            moved_after = Some(world.second - refused);
        }
    }
    ensure!(refused_at.is_some(), "the zone was full");
    report.at_most(
        "rounds until demand moved to the next zone",
        moved_after.map_or(f64::MAX, |rounds| rounds as f64),
        2.0,
    );
    report.at_least("nodes at the end", world.count(State::Ready) as f64, 60.0);
    let starting =
        [State::Requested, State::Starting, State::Joining].map(|state| world.count(state)).iter().sum::<usize>();
    report.at_most("nodes still starting at the end", starting as f64, 0.0);
    report.all("`throttled` and `out of capacity` are told apart", states.len().min(2), 2);
    report.figure("provider_states_seen", states.into_iter().collect::<Vec<_>>());
    report.timeline(std::mem::take(&mut world.points));
    Ok(())
}

/// Nine calls in ten are throttled and one answer in five is lost, for ten minutes.
fn storm(report: &mut Report, seed: u64) -> Result<()> {
    // A node a call and ten calls a second would be wanted: the quota is a tenth of it.
    let script = format!(
        "seed = {seed}\nmax_nodes_per_call = 1\nthrottle.per_second = 1.0\nthrottle.burst = 2\nthrottle.retry_info = false\n\
         [lost]\nanswers = 0.2\nafter = \"5s\"\n[listing]\ndelay = \"2s\"\n\
         [[change]]\nat = \"{TROUBLE}s\"\nthrottle.per_second = 10.0\nthrottle.burst = 10\nlost.answers = 0.0\n"
    );
    let mut world = World::new(vec![Pool { min: STORM, ..pool("builders", STORM) }], &script)?;
    world.phase = format!("storm, seed {seed}: trouble");
    world.pass(TROUBLE, 0.0);
    let (tally, now) = (world.tally(), world.now());
    let from = world.provider.ledger(|ledger| ledger.calls.first().map(|call| call.at)).unwrap_or(now);
    let quota = world.provider.quota(from, now).unwrap_or(f64::MAX);
    let name = |what: &str| format!("storm, seed {seed}: {what}");
    report.at_most(name("calls, of the quota"), tally.calls_total as f64 / quota, 1.05);
    world.phase = format!("storm, seed {seed}: over");
    world.pass(1_800, 0.0);
    let tally = world.tally();
    report.at_most(name("nodes made, of those desired"), tally.created as f64 / f64::from(STORM), 1.05);
    report.at_least(name("nodes at the end"), world.count(State::Ready) as f64, f64::from(STORM));
    let known: BTreeSet<_> = world.fleet.nodes().map(|node| node.id).collect();
    let orphans = world.provider.ledger(|ledger| ledger.orphans(world.now(), |node| known.contains(&node.node_id)));
    report.at_most(name("orphans at the end"), orphans as f64, 0.0);
    report.at_most(name("longest time as starting, s"), world.longest_start.as_secs() as f64, 1800.0);
    let calls =
        |method| world.provider.ledger(|ledger| ledger.calls.iter().filter(|call| call.method == method).count());
    report.figure(
        &name("calls by kind"),
        vec![calls(Method::Request), calls(Method::Describe), calls(Method::Terminate)],
    );
    report.timeline(std::mem::take(&mut world.points));
    Ok(())
}
