//! D1, the second half: a flood of queued work meets new nodes that take longer than expected to join, and a provider that limits the
//! calls. Nodes that are ended for being slow slow the recovery further.

use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_core::{fleet::Pool, time::Timestamp};
use millrace_proto::provider::v1::{NodeRequest, RequestNodesRequest};
use millrace_scaler::provider::simulated::{Script, Simulated};
use serde_json::json;

use super::{
    oracle::Surge,
    tasks::Ms,
    world::{World, pool},
};
use crate::form::Report;

/// Nodes before the surge, and at most.
const NODES: (f64, u32) = (20.0, 200);

/// When the surge comes, when nodes become slow, and by when everything must have run, in seconds.
const SURGE: u64 = 3_600;
const SLOW: u64 = SURGE + 600;
const END: u64 = SURGE + 12 * 3_600;

/// Tasks of the surge, and how long each runs.
const TASKS: u64 = 12_000;
const TAKES: Ms = 60_000;

/// Calls a second that the provider takes: a tenth of what is wanted, for a node a call and a node a second.
const LIMIT: f64 = 0.1;
const BURST: u32 = 2;

/// Seeds that are tried; the worst counts.
const SEEDS: u64 = 5;

/// Runs the drill.
pub(crate) fn run(report: &mut Report, seeds: u64) -> Result<()> {
    let (mut killed, mut worst) = (0, 0.0_f64);
    let mut ratios = Vec::new();
    for seed in report.seed()..report.seed() + seeds.clamp(1, SEEDS) {
        let learnt = surge(seed, &learning(), "learnt grace")?;
        let best = best(seed, learnt.launches_from, learnt.there)?;
        let ratio = learnt.drained as f64 / best as f64;
        report.say(&format!(
            "seed {seed}: drained in {} s, {} at best; {} killed that would have joined of {} made, {} calls of which {} throttled",
            learnt.drained, best, learnt.killed, learnt.created, learnt.calls, learnt.throttled
        ));
        killed += learnt.killed;
        worst = worst.max(ratio);
        ratios.push((ratio * 1e4).round() / 1e4);
        learnt.wrong.iter().for_each(|wrong| report.say(wrong));
        if seed == report.seed() {
            report.timeline(learnt.points);
        }
    }
    report.at_most("nodes killed that would have joined", killed as f64, 0.0);
    report.at_most("time to drain, of the oracle's", worst, 1.10);
    report.figure("time_to_drain_of_the_oracles", ratios);
    for minutes in [5, 15] {
        let fixed = surge(report.seed(), &fixed(minutes), &format!("fixed {minutes} min"))?;
        let figures = json!({
            "killed_that_would_have_joined": fixed.killed, "made": fixed.created, "drained_s": fixed.drained,
        });
        report.figure(&format!("fixed_grace_of_{minutes}_minutes"), figures);
        report.timeline(fixed.points);
    }
    Ok(())
}

/// What came of a surge.
struct Outcome {
    /// Seconds from the surge until everything had run.
    drained: u64,
    killed: usize,
    created: usize,
    calls: u64,
    throttled: u64,
    /// Nodes that worked when the surge came.
    there: usize,
    /// Nodes made before the surge.
    launches_from: usize,
    /// What is to be told of nodes that were ended and would have joined.
    wrong: Vec<String>,
    points: Vec<crate::form::Point>,
}

/// The pool as anyone would describe it.
fn learning() -> Pool {
    pool("builders", NODES.1)
}

/// The same with a time-out that does not learn, as others have it: whatever has not joined by then is ended.
fn fixed(minutes: u64) -> Pool {
    let grace = Duration::from_secs(60 * minutes);
    Pool { join_min: grace, join_max: grace, destroy_percent: 100, ..learning() }
}

fn script(seed: u64) -> String {
    format!(
        "seed = {seed}\nmax_nodes_per_call = 1\n\
         [[change]]\nat = \"{SURGE}s\"\nthrottle.per_second = {LIMIT}\nthrottle.burst = {BURST}\n\
         [[change]]\nat = \"{SLOW}s\"\njoin.median = \"12m\"\n"
    )
}

fn surge(seed: u64, pool: &Pool, name: &str) -> Result<Outcome> {
    let mut world = World::new(vec![pool.clone()], &script(seed))?;
    world.takes = TAKES;
    world.warm_up(NODES.0, SURGE - 300);
    world.phase = format!("{name}: before");
    world.warm_up(NODES.0, 299);
    let (there, before) = (world.count(millrace_core::fleet::State::Ready), world.tally());
    world.phase = format!("{name}: surge");
    world.tasks.come(TASKS, world.ms());
    world.pass(SLOW - SURGE, 0.0);
    world.phase = format!("{name}: slow joins");
    let from = world.second;
    ensure!(world.drain(END - from), "not everything has run after {} s", world.second - SURGE);
    let drained = world.second - SURGE;
    let tally = world.tally();
    Ok(Outcome {
        drained,
        killed: tally.killed_that_would_have_joined,
        created: tally.created - before.created,
        calls: tally.calls_total - before.calls_total,
        throttled: tally.calls_throttled,
        there,
        launches_from: before.created,
        wrong: world.wrongly_ended(),
        points: world.points,
    })
}

/// The seconds that the oracle takes: the same provider is asked for a node whenever it takes a call, and its ledger says when each joins.
fn best(seed: u64, launched_before: usize, there: usize) -> Result<u64> {
    let start = Timestamp(0);
    let provider = Simulated::unwatched(Script::parse(&script(seed))?, std::sync::Arc::new(move || start));
    let request = |at: Ms| {
        let node = NodeRequest { node_id: uuid::Uuid::from_u128(u128::from(at) + 1).to_string() };
        let request =
            RequestNodesRequest { pool: "builders".into(), nodes: vec![node], ..RequestNodesRequest::default() };
        provider.request_at(Timestamp(at as i64 * 1000), &request).result.is_ok()
    };
    // The same launches as before the surge, so that the same fates are left.
    for number in 0..launched_before as u64 {
        ensure!(request(number), "the provider takes launches before the surge");
    }
    for at in (SURGE * 1000..END * 1000 / 4).step_by(100) {
        request(at);
    }
    let ready = provider.ledger(|ledger| {
        let launched = ledger.nodes.iter().skip(launched_before);
        launched.map(|node| node.joins().map(|at| (at.0 / 1000) as Ms)).collect::<Vec<_>>()
    });
    let surge = Surge {
        there: vec![SURGE * 1000; there],
        ready,
        most: NODES.1 as usize,
        slots: 1,
        tasks: vec![(SURGE * 1000, TAKES); TASKS as usize],
    };
    Ok((surge.best() - SURGE * 1000) / 1000)
}
