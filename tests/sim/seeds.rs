//! Runs the world of one seed to its end, and says what broke.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use millrace_core::retry::{OutcomeKind, RetryPolicy};

use crate::{
    config::{Config, Weather},
    faults,
    mutant::Mutant,
    oracle::Facts,
    people::{self, Plan},
    world::World,
};

/// How long everything may take to end once the faults have stopped.
const PATIENCE: Duration = Duration::from_secs(240);

/// How long it may take until every slot is filled, when there is enough to do and nothing goes wrong.
const FILL: Duration = Duration::from_secs(40);

/// How often the model's own rules are checked, in events.
const CHECKS: u64 = 500;

/// A seed's end.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub broken: Option<String>,
    pub facts: Facts,
    pub events: u64,
    pub trace: u64,
    /// When it ended, in the world's time.
    pub ended: Duration,
    pub notes: Vec<String>,
}

/// Runs one world.
pub(crate) fn run(seed: u64, weather: Weather, mutant: Option<Mutant>, notes: bool) -> Report {
    let mut world = World::new(seed, |rng| Config::new(weather, rng), mutant, notes);
    let outcome = catch_unwind(AssertUnwindSafe(|| live(&mut world)));
    if outcome.is_err() {
        world.violation("the code under test panicked");
    }
    Report {
        broken: world.db.oracle.broken().cloned(),
        facts: world.db.oracle.facts,
        events: world.events,
        trace: world.trace,
        ended: world.now,
        notes: world.notes().cloned().collect(),
    }
}

fn live(world: &mut World) {
    faults::start(world);
    people::start(world);
    let chaos = world.config.chaos;
    until(world, chaos, |_| false);
    faults::settle(world);
    let deadline = world.now + PATIENCE;
    until(world, deadline, all_ended);
    if !all_ended(world) {
        let unfinished = world.db.oracle.unfinished();
        let (open, asking) = (world.people.open, world.people.asking.len());
        world.violation(format!(
            "no progress: {open} submissions and {asking} requests have no answer, and {} tasks no end (R1, R3, R6): {unfinished:?}",
            unfinished.len(),
        ));
    }
    world.db.check_ends();
    if world.config.weather == Weather::Calm {
        check_calm(world);
    }
    fill(world);
    world.db.check();
}

/// Runs events until `done`, a broken rule, or this moment.
fn until(world: &mut World, deadline: Duration, done: fn(&mut World) -> bool) {
    while world.now < deadline && world.db.oracle.broken().is_none() && !done(world) {
        if !world.step() {
            return;
        }
        if world.events.is_multiple_of(CHECKS) {
            world.db.check();
        }
    }
}

fn all_ended(world: &mut World) -> bool {
    world.people.open == 0 && world.people.asking.is_empty() && world.people.pauses == 0 && world.db.oracle.all_ended()
}

/// Without faults nothing is lost, sent again, or reported in vain.
fn check_calm(world: &mut World) {
    let Facts { lost, reaped, stale_starts, overlaps, resent, .. } = world.db.oracle.facts;
    if (lost, reaped, stale_starts, overlaps, resent) != (0, 0, 0, 0, 0) {
        world.violation(format!("trouble without a fault: {:?}", world.db.oracle.facts));
    }
}

/// Gives every slot something to do: they must all be filled at the same time, or a credit has leaked (R6).
fn fill(world: &mut World) {
    if world.db.oracle.broken().is_some() {
        return;
    }
    let idle = world.now + FILL;
    until(world, idle, |world| slots(world).is_some_and(|(_, idle)| idle));
    let Some((slots, true)) = slots(world) else {
        return world.violation("an orchestrator holds what has ended long ago, or does not run");
    };
    let first = world.people.plans.len() as u32;
    for _ in 0..slots {
        let plan = Plan {
            queue: "default",
            tenant: "acme",
            rank: 0,
            exclusive: false,
            policy: RetryPolicy::default(),
            request: Some(world.uuid()),
            not_before: None,
            expire_after: None,
            attempts: vec![(Duration::from_secs(3_600), OutcomeKind::Succeeded)],
        };
        people::submit_now(world, plan);
    }
    world.people.probes = Some((first, slots));
    let deadline = world.now + FILL;
    until(world, deadline, is_full);
    if !is_full(world) && world.db.oracle.broken().is_none() {
        let running = world.db.oracle.running(|number| number >= first);
        world
            .violation(format!("{running} of {slots} slots run although as many tasks wait: credits have leaked (R6)"));
    }
}

fn is_full(world: &mut World) -> bool {
    world.people.probes.is_some_and(|(first, slots)| world.db.oracle.running(|number| number >= first) == slots)
}

/// How many slots there are, and whether all are free. None while an orchestrator does not run.
fn slots(world: &mut World) -> Option<(usize, bool)> {
    let (mut slots, mut idle) = (0, true);
    for index in world.config.orchestrator_places() {
        let pid = world.pid(index)?;
        let orchestrator = world.orchestrator(pid)?;
        slots += orchestrator.slots;
        idle &= orchestrator.is_idle();
    }
    Some((slots, idle))
}
