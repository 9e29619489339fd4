//! Clients that submit, cancel and retry, and an operator who pauses and deletes queues. They never crash; what they ask
//! gets lost and is asked again with the same request key.

use std::{collections::BTreeSet, time::Duration};

use millrace_core::{
    id::TaskId,
    retry::{OutcomeKind, RetryPolicy},
    time::Timestamp,
};
use millrace_store::{CancelResult, DeleteMode, DeleteResult, RetryResult};
use rand::{Rng, rngs::SmallRng};
use uuid::Uuid;

use crate::{
    config::{Config, FaultKind, Weather},
    database::EPOCH_US,
    host, replica,
    world::{Pid, Target, World},
};

/// How long a client waits for an answer before it asks another replica.
const ANSWER: Duration = Duration::from_secs(8);
const AGAIN: Duration = Duration::from_millis(700);

/// What a submission asks for, and how its attempts will go.
#[derive(Debug, Clone)]
pub struct Plan {
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
    pub fn attempt(&self, number: i32) -> (Duration, OutcomeKind) {
        let index = usize::try_from(number - 1).unwrap_or(0).min(self.attempts.len() - 1);
        self.attempts[index]
    }
}

/// The submission that a spec stands for.
pub fn number(spec: &[u8]) -> u32 {
    spec.try_into().map_or(u32::MAX, u32::from_le_bytes)
}

/// Every client and the operator.
pub struct People {
    pub plans: Vec<Plan>,
    /// Submissions without an answer.
    pub open: usize,
    tries: Vec<u32>,
    settled: Vec<bool>,
    ids: Vec<Option<TaskId>>,
    /// Requests of other kinds without an answer, by their keys.
    pub asking: BTreeSet<Uuid>,
}

impl People {
    pub fn new(config: &Config, rng: &mut SmallRng) -> Self {
        let plans: Vec<Plan> = (0..config.tasks).map(|_| plan(config, rng)).collect();
        let count = plans.len();
        Self { plans, open: 0, tries: vec![0; count], settled: vec![false; count], ids: vec![None; count], asking: BTreeSet::new() }
    }

    fn acknowledged(&self) -> Vec<TaskId> {
        self.ids.iter().flatten().copied().collect()
    }
}

fn plan(config: &Config, rng: &mut SmallRng) -> Plan {
    let ms = |rng: &mut SmallRng, most: u64| Duration::from_millis(rng.random_range(1..=most));
    let late = config.weather == Weather::LateCommits;
    let longest = if rng.random_bool(0.2) { 12_000 } else { 1_500 };
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
pub fn start(world: &mut World) {
    for number in 0..world.config.tasks {
        let most = match world.config.weather {
            Weather::LateCommits => Duration::from_secs(4),
            _ => world.config.chaos,
        };
        let at = world.span(Duration::ZERO, most);
        world.people.open += 1;
        world.after(at, Target::World, "submit", move |world| submit(world, number));
    }
    if world.config.weather != Weather::Chaos {
        return;
    }
    for _ in 0..world.config.tasks / 3 {
        let at = world.span(Duration::ZERO, world.config.chaos);
        let cancels = world.chance(0.6);
        let request = asking(world);
        world.after(at, Target::World, "steer", move |world| steer(world, cancels, request));
    }
    for kind in [FaultKind::Pause, FaultKind::DeleteQueue] {
        for _ in 0..2 {
            if world.config.faults.contains(&kind) {
                let at = world.span(Duration::ZERO, world.config.chaos);
                let request = asking(world);
                world.after(at, Target::World, "operate", move |world| operate(world, kind, request));
            }
        }
    }
}

fn asking(world: &mut World) -> Uuid {
    let request = Uuid::from_u128(world.rng.random());
    world.people.asking.insert(request);
    request
}

fn answered(world: &mut World, request: Uuid) {
    world.people.asking.remove(&request);
}

/// Adds a submission that was not planned from the start.
pub fn submit_now(world: &mut World, plan: Plan) -> u32 {
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
        world.after(delay, Target::Process(pid), "submission", move |world| replica::submit(world, pid, number));
    }
    world.after(ANSWER, Target::World, "no answer", move |world| {
        if world.people.tries[number as usize] == tries {
            unanswered(world, number);
        }
    });
}

/// What a client hears of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Stored(TaskId),
    /// Refused for good: nothing was stored.
    Refused,
    /// It may be stored, or not.
    Unavailable,
}

/// A replica answers a client; the answer may get lost.
pub fn answer(world: &mut World, number: u32, answer: Answer) {
    let delay = world.latency();
    let lost = !world.settling && world.config.weather == Weather::Chaos && world.chance(0.02);
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

fn some_replica(world: &mut World) -> Option<Pid> {
    let place = world.pick(world.config.replicas);
    world.pid(place)
}

// ── Cancelling and retrying ─────────────────────────────────────────────────────────────────────────────────────────

fn steer(world: &mut World, cancels: bool, request: Uuid) {
    let ids = world.people.acknowledged();
    if ids.is_empty() {
        return answered(world, request);
    }
    let id = ids[world.pick(ids.len())];
    ask(world, id, cancels, request);
}

fn ask(world: &mut World, id: TaskId, cancels: bool, request: Uuid) {
    if !world.people.asking.contains(&request) {
        return;
    }
    let Some(pid) = some_replica(world) else {
        world.after(AGAIN, Target::World, "ask", move |world| ask(world, id, cancels, request));
        return;
    };
    // A replica that crashes under the call does not answer: the client then asks another.
    world.after(ANSWER, Target::World, "ask", move |world| {
        if world.pid(pid.index) != Some(pid) {
            ask(world, id, cancels, request);
        }
    });
    let again = move |world: &mut World| {
        world.after(AGAIN, Target::World, "ask", move |world| ask(world, id, cancels, request));
    };
    match cancels {
        true => world.call(
            pid,
            "cancel",
            move |db| db.cancel(id, request),
            move |world, result| match result {
                Ok(CancelResult::NotFound) => world.violation(format!("{id} was acknowledged and cannot be found")),
                Ok(CancelResult::Done(row)) => {
                    replica::hint_cancel(world, pid, &row);
                    answered(world, request);
                }
                Ok(CancelResult::Finished(_)) => answered(world, request),
                Err(_) => again(world),
            },
        ),
        false => world.call(
            pid,
            "retry",
            move |db| db.retry(id, request),
            move |world, result| match result {
                Ok(RetryResult::NotFound) => world.violation(format!("{id} was acknowledged and cannot be found")),
                Ok(_) => answered(world, request),
                Err(_) => again(world),
            },
        ),
    }
}

// ── The operator ────────────────────────────────────────────────────────────────────────────────────────────────────

fn operate(world: &mut World, kind: FaultKind, request: Uuid) {
    let place = world.pick(world.config.queues.len());
    let queue = world.config.queues[place];
    match kind {
        FaultKind::Pause => {
            let span = world.span(Duration::from_millis(200), Duration::from_secs(15));
            let lifts_itself = world.chance(0.3);
            let until = lifts_itself.then(|| EPOCH_US + world.db.offset_us + (world.now + span).as_micros() as i64);
            pause(world, queue, Some(until), request);
            let (at, resume) = (span * 2, asking(world));
            world.after(at, Target::World, "resume", move |world| pause(world, queue, None, resume));
        }
        _ if queue == "default" => answered(world, request),
        _ => {
            let mode = match world.chance(0.5) {
                true => DeleteMode::Drain,
                false => DeleteMode::Move("default".into()),
            };
            delete(world, queue, mode, request);
        }
    }
}

/// Pauses a queue until some moment or for good, or resumes it.
fn pause(world: &mut World, queue: &'static str, until: Option<Option<i64>>, request: Uuid) {
    if !world.people.asking.contains(&request) {
        return;
    }
    let again = move |world: &mut World| {
        world.after(AGAIN, Target::World, "pause", move |world| pause(world, queue, until, request));
    };
    let Some(pid) = some_host(world) else { return again(world) };
    world.after(ANSWER, Target::World, "pause", move |world| {
        if world.pid(pid.index) != Some(pid) {
            pause(world, queue, until, request);
        }
    });
    world.call(
        pid,
        "pause",
        move |db| db.pause(queue, until.map(|until| ("simulated".into(), until)), request),
        move |world, result| match result {
            Ok(_) => {
                host::set_paused(world, pid, queue, until.is_some());
                answered(world, request);
            }
            Err(_) => again(world),
        },
    );
}

fn delete(world: &mut World, queue: &'static str, mode: DeleteMode, request: Uuid) {
    if !world.people.asking.contains(&request) {
        return;
    }
    let (retried, given) = (mode.clone(), mode.clone());
    let again = move |world: &mut World| {
        world.after(AGAIN, Target::World, "delete", move |world| delete(world, queue, retried, request));
    };
    let Some(pid) = some_host(world) else { return again(world) };
    world.after(ANSWER, Target::World, "delete", move |world| {
        if world.pid(pid.index) != Some(pid) {
            delete(world, queue, mode, request);
        }
    });
    world.call(
        pid,
        "delete queue",
        move |db| db.store().delete_queue(queue, &given, Some(request)),
        move |world, result| match result {
            Ok(DeleteResult::Routed(_) | DeleteResult::NotEmpty) => world.violation("a queue could not be deleted"),
            Ok(_) => answered(world, request),
            Err(_) => again(world),
        },
    );
}

fn some_host(world: &mut World) -> Option<Pid> {
    let places = world.config.replicas + world.config.owners;
    let place = world.pick(places);
    world.pid(place)
}

/// The moment when a submission may first run.
pub fn not_before(world: &World, plan: &Plan) -> Option<Timestamp> {
    plan.not_before.map(|span| Timestamp(EPOCH_US + world.db.offset_us + (world.now + span).as_micros() as i64))
}
