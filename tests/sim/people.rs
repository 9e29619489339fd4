//! Clients that submit. They never crash; an answer that does not come is asked for again with the same request key.

use std::{collections::BTreeMap, time::Duration};

use millrace_core::{
    id::TaskId,
    retry::{OutcomeKind, RetryPolicy},
    time::Timestamp,
};
use rand::{Rng, rngs::SmallRng};
use uuid::Uuid;

use crate::{
    config::{Config, Weather},
    database::EPOCH_US,
    operator, submissions,
    world::{Pid, Target, World},
};

/// How long a client waits for an answer before it asks another replica.
const ANSWER: Duration = Duration::from_secs(8);
const AGAIN: Duration = Duration::from_millis(700);

/// What a submission asks for, and how its attempts will go.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub queue: &'static str,
    pub tenant: &'static str,
    pub rank: i32,
    pub exclusive: bool,
    pub policy: RetryPolicy,
    /// A client that gives no request key does not ask twice.
    pub request: Option<Uuid>,
    pub not_before: Option<Duration>,
    pub expire_after: Option<Duration>,
    /// Each attempt in turn; the last one goes on.
    pub attempts: Vec<(Duration, OutcomeKind)>,
}

impl Plan {
    /// How the attempt of this number goes.
    pub(crate) fn attempt(&self, number: i32) -> (Duration, OutcomeKind) {
        let index = usize::try_from(number - 1).unwrap_or(0).min(self.attempts.len() - 1);
        self.attempts[index]
    }
}

/// The submission that a spec stands for.
pub(crate) fn number(spec: &[u8]) -> u32 {
    spec.try_into().map_or(u32::MAX, u32::from_le_bytes)
}

/// Every client and the operator.
pub(crate) struct People {
    pub plans: Vec<Plan>,
    /// Submissions without an answer.
    pub open: usize,
    tries: Vec<u32>,
    settled: Vec<bool>,
    ids: Vec<Option<TaskId>>,
    /// Requests of other kinds without an answer, by their keys, with how often each was made.
    pub asking: BTreeMap<Uuid, u32>,
    /// Pauses that somebody has yet to lift.
    pub pauses: u32,
    /// The first of the submissions that are to fill every slot, and how many slots there are.
    pub probes: Option<(u32, usize)>,
}

impl People {
    pub(crate) fn new(config: &Config, rng: &mut SmallRng) -> Self {
        let plans: Vec<Plan> = (0..config.tasks).map(|_| plan(config, rng)).collect();
        let count = plans.len();
        Self {
            plans,
            open: 0,
            tries: vec![0; count],
            settled: vec![false; count],
            ids: vec![None; count],
            asking: BTreeMap::new(),
            pauses: 0,
            probes: None,
        }
    }

    /// Tasks that clients know of.
    pub(crate) fn acknowledged(&self) -> Vec<TaskId> {
        self.ids.iter().flatten().copied().collect()
    }
}

fn plan(config: &Config, rng: &mut SmallRng) -> Plan {
    let ms = |rng: &mut SmallRng, most: u64| Duration::from_millis(rng.random_range(1..=most));
    let late = config.weather == Weather::LateCommits;
    let long = config.weather == Weather::Exclusive || rng.random_bool(0.2);
    let longest = if long { 12_000 } else { 1_500 };
    let attempts = (0..rng.random_range(1..=4)).map(|_| {
        let kind = match rng.random_range(0..20) {
            0..=13 => OutcomeKind::Succeeded,
            14..=15 => OutcomeKind::Failed,
            16 => OutcomeKind::TimedOut,
            17 => OutcomeKind::NotStarted,
            18 => OutcomeKind::Unsupported,
            _ => OutcomeKind::HandedBack,
        };
        (ms(rng, longest), kind)
    });
    let mut attempts: Vec<(Duration, OutcomeKind)> = attempts.collect();
    // In the end it works, or fails by its own doing: what is handed back for ever never ends.
    let last = if rng.random_bool(0.85) { OutcomeKind::Succeeded } else { OutcomeKind::Failed };
    attempts.push((ms(rng, longest), last));
    if late {
        attempts = vec![(Duration::from_millis(rng.random_range(600..=1_200)), OutcomeKind::Succeeded)];
    }
    Plan {
        queue: if late { "default" } else { config.queues[rng.random_range(0..config.queues.len())] },
        tenant: if late || rng.random_bool(0.6) { "acme" } else { "umbrella" },
        rank: if late || rng.random_bool(0.7) { 0 } else { -5 },
        exclusive: rng.random_bool(config.exclusive),
        policy: RetryPolicy {
            max_attempts: rng.random_range(1..=3),
            max_losses: rng.random_range(1..=4),
            min_backoff: ms(rng, 500),
            max_backoff: Duration::from_secs(2),
        },
        request: rng.random_bool(0.85).then(|| Uuid::from_u128(rng.random())),
        not_before: (!late && rng.random_bool(0.15)).then(|| ms(rng, 20_000)),
        expire_after: (!late && rng.random_bool(0.1)).then(|| ms(rng, 30_000)),
        attempts,
    }
}

// ── Submissions ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// Lets the clients begin.
pub(crate) fn start(world: &mut World) {
    for number in 0..world.config.tasks {
        let most = match world.config.weather {
            Weather::LateCommits => Duration::from_secs(4),
            _ => world.config.chaos,
        };
        let at = world.span(Duration::ZERO, most);
        world.people.open += 1;
        world.after(at, Target::World, "submit", move |world| submit(world, number));
    }
    operator::start(world);
}

/// Adds a submission that was not planned from the start.
pub(crate) fn submit_now(world: &mut World, plan: Plan) -> u32 {
    let number = world.people.plans.len() as u32;
    world.people.plans.push(plan);
    world.people.tries.push(0);
    world.people.settled.push(false);
    world.people.ids.push(None);
    world.people.open += 1;
    submit(world, number);
    number
}

fn submit(world: &mut World, number: u32) {
    if world.people.settled[number as usize] {
        return;
    }
    world.people.tries[number as usize] += 1;
    let tries = world.people.tries[number as usize];
    if let Some(pid) = some_replica(world) {
        let delay = world.latency();
        world.after(delay, Target::Process(pid), "submission", move |world| submissions::submit(world, pid, number));
    }
    world.after(ANSWER, Target::World, "no answer", move |world| {
        if world.people.tries[number as usize] == tries {
            unanswered(world, number);
        }
    });
}

/// What a client hears of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Stored(TaskId),
    /// Refused for good: nothing was stored.
    Refused,
    /// It may be stored, or not.
    Unavailable,
}

/// A replica answers a client; the answer may get lost.
pub(crate) fn answer(world: &mut World, number: u32, answer: Answer) {
    let delay = world.latency();
    let lost = !world.settling && world.config.weather != Weather::Calm && world.chance(0.02);
    if lost {
        return;
    }
    world.after(delay, Target::World, "answer", move |world| {
        world.note(|| format!("submission {number}: {answer:?}"));
        match answer {
            // A late answer to an earlier try counts as well.
            Answer::Stored(id) => {
                world.db.oracle.acknowledged(number, id);
                world.people.ids[number as usize] = Some(id);
                settle(world, number);
            }
            Answer::Refused => settle(world, number),
            Answer::Unavailable => unanswered(world, number),
        }
    });
}

fn unanswered(world: &mut World, number: u32) {
    match world.people.plans[number as usize].request {
        Some(_) => world.after(AGAIN, Target::World, "submit", move |world| submit(world, number)),
        None => settle(world, number),
    }
}

fn settle(world: &mut World, number: u32) {
    if !std::mem::replace(&mut world.people.settled[number as usize], true) {
        world.people.open -= 1;
    }
}

/// A replica, if one runs where it was looked for.
pub(crate) fn some_replica(world: &mut World) -> Option<Pid> {
    let place = world.pick(world.config.replicas);
    world.pid(place)
}

/// The moment when a submission may first run.
pub(crate) fn not_before(world: &World, plan: &Plan) -> Option<Timestamp> {
    plan.not_before.map(|span| Timestamp(EPOCH_US + world.db.offset_us + (world.now + span).as_micros() as i64))
}
