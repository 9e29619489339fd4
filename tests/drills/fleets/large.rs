//! Ten thousand nodes in two hundred pools: what a round costs, and what the books hold in memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_core::fleet::{Pool, State};
use serde_json::json;

use super::world::{World, pool};
use crate::form::Report;

/// Pools of the large fleet, and nodes of each.
const POOLS: u32 = 200;
const NODES: u32 = 50;

/// Rounds that are timed; the median counts.
const ROUNDS: usize = 51;

/// Runs the drill.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let before = memory()?;
    let mut sizes = Vec::new();
    for share in [4, 2, 1] {
        let pools = POOLS / share;
        let mut world = fleet(report.seed(), pools)?;
        let nodes = world.count(State::Ready);
        report.all(format!("{pools} pools: nodes that have joined"), nodes, (pools * NODES) as usize);
        let held = memory()?.saturating_sub(before);
        let (median, worst) = round(&mut world)?;
        sizes.push(json!({
            "pools": pools, "nodes": nodes, "round_cpu_ms": median.as_secs_f64() * 1e3,
            "worst_round_cpu_ms": worst.as_secs_f64() * 1e3, "resident_kib": held,
        }));
        if share == 1 {
            let ms = median.as_secs_f64() * 1e3;
            report.at_most("CPU of a decision round over 10,000 nodes and 200 pools, ms", ms, 50.0);
            report.timeline(std::mem::take(&mut world.points));
        }
    }
    report.figure("sizes", sizes);
    report.figure("build", if cfg!(debug_assertions) { "without optimization" } else { "with optimization" });
    Ok(())
}

/// A fleet in which every node works.
fn fleet(seed: u64, pools: u32) -> Result<World> {
    let script = format!("seed = {seed}\nmax_nodes_per_call = 100\n[join]\nmedian = \"30s\"\nreports = 1\n");
    let pools = (0..pools).map(|number| Pool {
        min: NODES,
        step_up: NODES,
        unproven: NODES,
        ..pool(&format!("pool-{number:03}"), NODES)
    });
    let mut world = World::new(pools.collect(), &script)?;
    world.phase = "large: growing".into();
    world.pass(240, 0.0);
    world.phase = "large: steady".into();
    world.pass(60, 0.0);
    Ok(world)
}

/// The CPU time of a round: the median and the worst.
fn round(world: &mut World) -> Result<(Duration, Duration)> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        world.second += 1;
        let (now, begin) = (world.now(), Instant::now());
        let cpu = thread_cpu()?;
        world.fleet.round(now, &mut || unreachable_id());
        let batch = world.fleet.unsaved();
        world.fleet.saved(batch, true);
        let _ = world.fleet.calls(now);
        times.push(thread_cpu()?.saturating_sub(cpu).min(begin.elapsed()));
    }
    times.sort_unstable();
    Ok((times[ROUNDS / 2], times[ROUNDS - 1]))
}

/// A steady fleet launches nothing; if it does, any id will do.
fn unreachable_id() -> millrace_core::id::NodeId {
    millrace_core::id::NodeId(uuid::Uuid::now_v7())
}

/// What this thread has used of the CPU, by the kernel's own count of it.
fn thread_cpu() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("reading the thread's CPU time")?;
    let nanos = text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0);
    Ok(Duration::from_nanos(nanos))
}

/// The process's resident memory, in KiB.
fn memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("reading the process's memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0))
}
