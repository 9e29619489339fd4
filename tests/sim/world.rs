//! The world: virtual time, one queue of events, one random source, processes that come and go.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use millrace_store::StoreError;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use uuid::Uuid;

use crate::{
    config::Config, database::Database, host::Host, mutant::Mutant, net::Net, orchestrator::Orchestrator,
    people::People, replica::Replica,
};

/// How long a write of the hot path is tried again, as `write_patience` of the distributor.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Lines kept for the report of a failing seed.
const KEPT_NOTES: usize = 400;

/// A process in one of its lives: what is addressed to a life that has ended is lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pid {
    pub index: usize,
    pub life: u64,
}

impl std::fmt::Debug for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p{}.{}", self.index, self.life)
    }
}

/// Whose event it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Happens in any case.
    World,
    /// Happens while the process lives, and waits while it is stalled.
    Process(Pid),
}

/// What runs in a process.
pub(crate) enum Role {
    Down,
    Replica(Box<Replica>),
    Owner(Box<Host>),
    Orchestrator(Box<Orchestrator>),
}

/// A place where a process runs.
pub(crate) struct Process {
    pub life: u64,
    pub role: Role,
    stalled_until: Duration,
    /// What has happened to it since it stalled.
    parked: Vec<Scheduled>,
    /// The session that an orchestrator has written to its disk.
    pub disk: Option<millrace_core::id::SessionId>,
}

type Run = Box<dyn FnOnce(&mut World)>;

struct Scheduled {
    at: Duration,
    seq: u64,
    target: Target,
    label: &'static str,
    run: Run,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// Everything there is.
pub(crate) struct World {
    pub now: Duration,
    pub rng: SmallRng,
    pub config: Config,
    pub mutant: Option<Mutant>,
    pub db: Database,
    pub net: Net,
    pub processes: Vec<Process>,
    pub people: People,
    /// Faults have stopped.
    pub settling: bool,
    pub events: u64,
    /// Changes with every event: two runs of a seed are the same when this is.
    pub trace: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    /// Events that come before those in the queue.
    ready: VecDeque<Scheduled>,
    next_seq: u64,
    notes: Option<VecDeque<String>>,
    kept_notes: usize,
}

impl World {
    /// An empty world. With `notes` it keeps what happened last.
    pub(crate) fn new(
        seed: u64,
        config: impl FnOnce(&mut SmallRng) -> Config,
        mutant: Option<Mutant>,
        notes: bool,
    ) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let config = config(&mut rng);
        let people = People::new(&config, &mut rng);
        let processes = (0..config.processes())
            .map(|_| Process {
                life: 0,
                role: Role::Down,
                stalled_until: Duration::ZERO,
                parked: Vec::new(),
                disk: None,
            })
            .collect();
        Self {
            now: Duration::ZERO,
            db: Database::new(&config, mutant, rng.random()),
            net: Net::default(),
            processes,
            people,
            settling: false,
            events: 0,
            trace: seed,
            queue: BinaryHeap::new(),
            ready: VecDeque::new(),
            next_seq: 0,
            notes: notes.then(VecDeque::new),
            kept_notes: crate::variable("MILLRACE_SIM_NOTES").map_or(KEPT_NOTES, |lines| lines as usize),
            rng,
            config,
            mutant,
        }
    }

    // ── Time ────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Schedules an event.
    pub(crate) fn after(
        &mut self,
        delay: Duration,
        target: Target,
        label: &'static str,
        run: impl FnOnce(&mut World) + 'static,
    ) {
        self.push(self.now + delay, target, label, Box::new(run));
    }

    fn push(&mut self, at: Duration, target: Target, label: &'static str, run: Run) {
        self.next_seq += 1;
        self.queue.push(Reverse(Scheduled { at, seq: self.next_seq, target, label, run }));
    }

    /// Runs `step` of a process now and then, from a random moment of the first period on, until its life ends.
    pub(crate) fn every(&mut self, pid: Pid, period: Duration, label: &'static str, step: fn(&mut World, Pid)) {
        fn again(world: &mut World, pid: Pid, period: Duration, label: &'static str, step: fn(&mut World, Pid)) {
            step(world, pid);
            world.after(period, Target::Process(pid), label, move |world| again(world, pid, period, label, step));
        }
        let phase = self.span(Duration::ZERO, period);
        self.after(phase, Target::Process(pid), label, move |world| again(world, pid, period, label, step));
    }

    /// Takes the next event. False when there is none.
    pub(crate) fn step(&mut self) -> bool {
        let event = self.ready.pop_front().or_else(|| self.queue.pop().map(|Reverse(event)| event));
        let Some(event) = event else { return false };
        self.now = self.now.max(event.at);
        if let Target::Process(pid) = event.target {
            let process = &mut self.processes[pid.index];
            if process.life != pid.life || matches!(process.role, Role::Down) {
                return true;
            }
            if process.stalled_until > self.now {
                process.parked.push(event);
                return true;
            }
        }
        self.events += 1;
        let mark = self.now.as_nanos() as u64 ^ u64::from(event.label.as_bytes()[0]) << 56;
        self.trace = (self.trace.rotate_left(5) ^ mark).wrapping_mul(0x517C_C1B7_2722_0A95);
        (event.run)(self);
        true
    }

    // ── Chance ──────────────────────────────────────────────────────────────────────────────────────────────────────

    /// A span between two, both included.
    pub(crate) fn span(&mut self, least: Duration, most: Duration) -> Duration {
        Duration::from_micros(self.rng.random_range(least.as_micros() as u64..=most.as_micros() as u64))
    }

    /// True with this probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random_bool(probability)
    }

    /// One of these, by its index.
    pub(crate) fn pick(&mut self, count: usize) -> usize {
        self.rng.random_range(0..count)
    }

    /// How long a message or a call takes: mostly little, now and then much.
    pub(crate) fn latency(&mut self) -> Duration {
        let most = match self.chance(self.config.slow) && !self.settling {
            true => self.config.slow_latency,
            false => self.config.latency,
        };
        self.span(Duration::from_micros(50), most)
    }

    /// A new UUID, later ones sorting later.
    pub(crate) fn uuid(&mut self) -> Uuid {
        let random: u64 = self.rng.random();
        Uuid::from_u128((self.now.as_micros() << 64) | u128::from(random))
    }

    // ── Processes ───────────────────────────────────────────────────────────────────────────────────────────────────

    /// The present life of a place; none when nothing runs there.
    pub(crate) fn pid(&self, index: usize) -> Option<Pid> {
        let process = &self.processes[index];
        (!matches!(process.role, Role::Down)).then_some(Pid { index, life: process.life })
    }

    /// Nothing happens in a process until this moment; then everything does that came meanwhile, in order.
    pub(crate) fn stall(&mut self, index: usize, until: Duration) {
        let process = &mut self.processes[index];
        process.stalled_until = process.stalled_until.max(until);
        self.after(until - self.now, Target::World, "wakes", move |world| {
            if world.processes[index].stalled_until <= world.now {
                world.wake(index);
            }
        });
    }

    /// Ends a stall.
    pub(crate) fn wake(&mut self, index: usize) {
        let process = &mut self.processes[index];
        process.stalled_until = Duration::ZERO;
        self.ready.extend(process.parked.drain(..));
    }

    fn role(&mut self, pid: Pid) -> Option<&mut Role> {
        let process = &mut self.processes[pid.index];
        (process.life == pid.life).then_some(&mut process.role)
    }

    pub(crate) fn replica(&mut self, pid: Pid) -> Option<&mut Replica> {
        match self.role(pid) {
            Some(Role::Replica(replica)) => Some(replica),
            _ => None,
        }
    }

    /// The host of matchers in a queue service or a distributor.
    pub(crate) fn host(&mut self, pid: Pid) -> Option<&mut Host> {
        match self.role(pid) {
            Some(Role::Owner(host)) => Some(host),
            Some(Role::Replica(replica)) => Some(&mut replica.host),
            _ => None,
        }
    }

    pub(crate) fn orchestrator(&mut self, pid: Pid) -> Option<&mut Orchestrator> {
        match self.role(pid) {
            Some(Role::Orchestrator(orchestrator)) => Some(orchestrator),
            _ => None,
        }
    }

    // ── The database ────────────────────────────────────────────────────────────────────────────────────────────────

    /// Makes one call to the database, without a second try.
    pub(crate) fn call<T: 'static>(
        &mut self,
        pid: Pid,
        label: &'static str,
        mut work: impl FnMut(&mut Database) -> Result<T, StoreError> + 'static,
        then: impl FnOnce(&mut World, Result<T, StoreError>) + 'static,
    ) {
        let (work, then) = (Box::new(move |db: &mut Database, _| work(db)), Box::new(then));
        self.start(Call { pid, label, until: Duration::ZERO, wait: Duration::ZERO, repeat: false, work, then });
    }

    /// Makes a write as the distributor's gates do: again after every error that may pass, for as long as patience lasts. The
    /// closure is told whether an earlier try may have been committed (R8).
    pub(crate) fn persist<T: 'static>(
        &mut self,
        pid: Pid,
        label: &'static str,
        work: impl FnMut(&mut Database, bool) -> Result<T, StoreError> + 'static,
        then: impl FnOnce(&mut World, Result<T, StoreError>) + 'static,
    ) {
        let until = self.now + WRITE_PATIENCE;
        let (work, then) = (Box::new(work), Box::new(then));
        self.start(Call { pid, label, until, wait: Duration::from_millis(5), repeat: false, work, then });
    }

    fn start<T: 'static>(&mut self, call: Call<T>) {
        let delay = self.latency();
        self.after(delay, Target::World, call.label, move |world| world.execute(call));
    }

    /// The database has the call now, whether or not the caller still lives.
    fn execute<T: 'static>(&mut self, mut call: Call<T>) {
        let result = self.db.run(self.now, |db| (call.work)(db, call.repeat));
        if self.notes.is_some() {
            let became = result.as_ref().map_or_else(|error| error.to_string(), |_| "done".to_owned());
            self.note(|| format!("{:?} {}: {became}", call.pid, call.label));
        }
        let delay = self.latency();
        self.after(delay, Target::Process(call.pid), call.label, move |world| world.answered(call, result));
    }

    fn answered<T: 'static>(&mut self, mut call: Call<T>, result: Result<T, StoreError>) {
        match result {
            Err(error) if error.is_transient() && self.now + call.wait < call.until => {
                call.repeat |= matches!(error, StoreError::UnknownOutcome(_));
                let wait = call.wait;
                call.wait = (wait * 2).min(Duration::from_millis(500));
                self.after(wait, Target::Process(call.pid), call.label, move |world| world.start(call));
            }
            result => (call.then)(self, result),
        }
    }

    // ── Notes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Keeps a line for the report of a failing seed; made only when there will be one.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            if notes.len() == self.kept_notes {
                notes.pop_front();
            }
            notes.push_back(format!("{:>12.6} {}", self.now.as_secs_f64(), line()));
        }
    }

    /// The lines kept.
    pub(crate) fn notes(&self) -> impl Iterator<Item = &String> {
        self.notes.iter().flatten()
    }

    /// Notes that a rule was broken; the first one is reported.
    pub(crate) fn violation(&mut self, what: impl Into<String>) {
        self.db.oracle.violation(what);
    }
}

type Work<T> = Box<dyn FnMut(&mut Database, bool) -> Result<T, StoreError>>;

type Then<T> = Box<dyn FnOnce(&mut World, Result<T, StoreError>)>;

struct Call<T> {
    pid: Pid,
    label: &'static str,
    until: Duration,
    wait: Duration,
    repeat: bool,
    work: Work<T>,
    then: Then<T>,
}
