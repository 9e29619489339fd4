//! A seeded simulation of the protocol: core's rules and the model store under virtual time, with everything that can go
//! wrong between them. One thread, one random source, no clock: a seed is one world, and is the same each time.
//!
//! The roles mirror the order of steps of the services' shells; every decision in them is core's. The oracle keeps a second
//! book of all tasks, and says which rule was broken. A failing seed prints how to run it again.
//!
//! - `MILLRACE_SIM_SEEDS=N` runs N seeds, from `MILLRACE_SIM_FIRST` on (0 by default).
//! - `MILLRACE_SIM_WEATHER=W` makes every world one of that kind.
//! - `MILLRACE_SIM_MUTANT=M` plants only that bug.
//! - `MILLRACE_SIM_SEED=S` runs that one, and prints what happened in it last, `MILLRACE_SIM_NOTES=N` lines of it.

mod attempts;
mod beats;
mod book;
mod claims;
mod config;
mod connection;
mod database;
mod ends;
mod exchange;
mod faults;
mod goodbye;
mod hello;
mod host;
mod links;
mod loops;
mod matching;
mod message;
mod mutant;
mod net;
mod operator;
mod oracle;
mod orchestrator;
mod people;
mod policy;
mod replica;
mod seeds;
mod stay;
mod submissions;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use config::{WEATHERS, Weather};
use mutant::{MUTANTS, Mutant};

/// Seeds of a run that names no number.
const SEEDS: u64 = 2_400;

/// Worlds in which a planted bug must show, at the most.
const TRIES: u64 = 2_500;

/// Failing seeds after which a worker stops.
const FAILURES: usize = 10;

/// What kind of world a seed is.
fn weather(seed: u64) -> Weather {
    named_weather().unwrap_or(match seed % 16 {
        0 => Weather::Calm,
        1 => Weather::LateCommits,
        2 | 3 => Weather::Exclusive,
        4 | 5 => Weather::Owners,
        6 => Weather::Slow,
        7 => Weather::Outages,
        _ => Weather::Chaos,
    })
}

fn named_weather() -> Option<Weather> {
    let name = std::env::var("MILLRACE_SIM_WEATHER").ok()?;
    let named = WEATHERS.into_iter().find(|weather| format!("{weather:?}") == name);
    Some(named.unwrap_or_else(|| panic!("MILLRACE_SIM_WEATHER must be one of {WEATHERS:?}")))
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Runs the seed once more with its notes, and prints them.
fn explain(seed: u64, mutant: Option<Mutant>) -> String {
    let report = seeds::run(seed, weather(seed), mutant, true);
    for line in &report.notes {
        println!("{line}");
    }
    let what = report.broken.unwrap_or_else(|| "nothing, the second time: the world is not deterministic".into());
    format!(
        "seed {seed} ({:?}) broke a rule at {:.3} s: {what}\nMILLRACE_SIM_SEED={seed} MILLRACE_SIM_WEATHER={:?} cargo test -p millrace-tests --test sim -- --nocapture every_seed",
        weather(seed),
        report.ended.as_secs_f64(),
        weather(seed),
    )
}

/// Runs the same work on every core, and gathers what it brings.
fn on_every_core<T: Send>(work: impl Fn() -> Vec<T> + Sync) -> Vec<T> {
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(&work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker panicked")).collect()
    })
}

#[test]
fn every_seed_keeps_every_rule() {
    if let Some(seed) = variable("MILLRACE_SIM_SEED") {
        let report = seeds::run(seed, weather(seed), None, false);
        println!("seed {seed}: {report:?}");
        assert!(report.broken.is_none(), "{}", explain(seed, None));
        return;
    }
    let count = variable("MILLRACE_SIM_SEEDS").unwrap_or(SEEDS);
    let first = variable("MILLRACE_SIM_FIRST").unwrap_or(0);
    let (next, events) = (AtomicU64::new(first), AtomicU64::new(0));
    let run = || {
        let mut broken = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count || broken.len() == FAILURES {
                return broken;
            }
            let report = seeds::run(seed, weather(seed), None, false);
            events.fetch_add(report.events, Ordering::Relaxed);
            if let Some(what) = report.broken {
                broken.push((seed, what));
            }
        }
    };
    let mut broken: Vec<(u64, String)> = on_every_core(run);
    println!("{count} seeds, {} events", events.load(Ordering::Relaxed));
    broken.sort();
    for (seed, what) in &broken {
        println!("seed {seed}: {what}");
    }
    assert!(broken.is_empty(), "{}", explain(broken[0].0, None));
}

#[test]
fn a_seed_is_the_same_world_each_time() {
    for seed in 0..40 {
        let runs = [false, true].map(|notes| seeds::run(seed, weather(seed), None, notes));
        assert_eq!(runs[0].trace, runs[1].trace, "seed {seed}");
        assert_eq!(runs[0].facts, runs[1].facts, "seed {seed}");
    }
}

#[test]
fn the_simulation_finds_planted_bugs() {
    let named = std::env::var("MILLRACE_SIM_MUTANT").ok();
    let wanted = |mutant: &Mutant| named.as_ref().is_none_or(|name| format!("{mutant:?}") == *name);
    let mutants: Vec<Mutant> = MUTANTS.into_iter().filter(wanted).collect();
    let next = AtomicU64::new(0);
    let hunt = || {
        let mut missed = Vec::new();
        while let Some(&mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let kind = named_weather().unwrap_or(mutant.weather());
            let run = |seed| seeds::run(seed, kind, Some(mutant), false).broken.map(|broken| (seed, broken));
            match (0..TRIES).find_map(run) {
                Some((seed, broken)) => {
                    println!("{mutant:?} in world {seed}: {broken}");
                    let sound = seeds::run(seed, kind, None, false);
                    assert_eq!(sound.broken, None, "world {seed} is broken without {mutant:?} as well");
                }
                None => missed.push(mutant),
            }
        }
        missed
    };
    let missed: Vec<Mutant> = on_every_core(hunt);
    assert!(missed.is_empty(), "not found in {TRIES} worlds each: {missed:?}");
}
