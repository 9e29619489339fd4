//! What must hold, whatever happens: a second book of every task, session and queue, kept from what the database has
//! committed and from what orchestrators really run. It knows more than any process of the world.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_core::{
    held::LeaseRef,
    id::{SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    task::State,
};
use millrace_store::{Claim, Completion, Dispatch, NewTask, Requeue, SessionRow, Store, Tick};

use crate::config::Config;

/// The oracle's book.
pub(crate) struct Oracle {
    pub now: Duration,
    broken: Option<String>,
    pub tasks: BTreeMap<TaskId, Shadow>,
    /// The task that each submission stored.
    numbers: BTreeMap<u32, TaskId>,
    sessions: BTreeMap<SessionId, Session>,
    queues: BTreeMap<String, Queue>,
    /// What runs now, by orchestrators' numbers.
    runs: BTreeMap<u64, Run>,
    started: BTreeSet<LeaseRef>,
    served_ms: i64,
    /// How long the database has been down in all, and how often it was, or its clock was set forward a little: each may
    /// count as one tick.
    pub down: Duration,
    pub slips: u32,
    pub facts: Facts,
}

/// What happened, for reports and for worlds in which some of it must not happen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub claims: u64,
    pub lost: u64,
    pub requeued: u64,
    pub reaped: u64,
    pub overlaps: u64,
    pub stale_starts: u64,
    pub resent: u64,
    pub stale_reports: u64,
    pub turned_away: u64,
}

/// A task as the oracle knows it.
#[derive(Debug)]
pub(crate) struct Shadow {
    pub number: u32,
    /// A client has been told that it is stored.
    pub acked: bool,
    exclusive: bool,
    phase: Phase,
    cancelling: bool,
    attempts: BTreeMap<i32, Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Held(i32),
    Done { state: State, lease: Option<LeaseRef> },
}

#[derive(Debug)]
struct Attempt {
    token: Token,
    ended: Option<OutcomeKind>,
}

#[derive(Debug)]
struct Session {
    generation: i64,
    live: bool,
    ttl: Duration,
    /// The lease as its orchestrator was told.
    told: Duration,
    renewed: Duration,
    down_before: Duration,
    slips_before: u32,
}

#[derive(Debug, Default)]
struct Queue {
    epoch: i64,
    paused: bool,
}

#[derive(Debug)]
struct Run {
    lease: LeaseRef,
    place: usize,
}

impl Oracle {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            now: Duration::ZERO,
            broken: None,
            tasks: BTreeMap::new(),
            numbers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            queues: config.queues.iter().map(|queue| ((*queue).to_owned(), Queue::default())).collect(),
            runs: BTreeMap::new(),
            started: BTreeSet::new(),
            served_ms: 0,
            down: Duration::ZERO,
            slips: 0,
            facts: Facts::default(),
        }
    }

    /// Notes a broken rule; the first is kept.
    pub(crate) fn violation(&mut self, what: impl Into<String>) {
        self.broken.get_or_insert_with(|| what.into());
    }

    /// The first rule that was broken.
    pub(crate) fn broken(&self) -> Option<&String> {
        self.broken.as_ref()
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violation(what());
        }
    }

    // ── Tasks in the database ───────────────────────────────────────────────────────────────────────────────────────

    pub(crate) fn stored(&mut self, task: &NewTask) {
        let (id, number) = (task.envelope.id, crate::people::number(&task.spec));
        let first = *self.numbers.entry(number).or_insert(id);
        self.require(first == id, || format!("submission {number} was stored twice, as {first} and as {id} (R8, R11)"));
        self.tasks.entry(id).or_insert_with(|| Shadow {
            number,
            acked: false,
            exclusive: task.envelope.exclusive,
            phase: Phase::Waiting,
            cancelling: false,
            attempts: BTreeMap::new(),
        });
    }

    /// A client hears that its submission is stored.
    pub(crate) fn acknowledged(&mut self, number: u32, id: TaskId) {
        let known = self.numbers.get(&number) == Some(&id);
        self.require(known, || format!("submission {number} was acknowledged as {id}, which is not stored"));
        if let Some(shadow) = self.tasks.get_mut(&id) {
            shadow.acked = true;
        }
    }

    pub(crate) fn claimed(&mut self, claim: &Claim, dispatch: &Dispatch) {
        let lease = dispatch.lease;
        let Some(shadow) = self.tasks.get_mut(&lease.task) else {
            return self.violation(format!("{lease:?} was claimed of a task that was never stored"));
        };
        if let Phase::Held(attempt) = shadow.phase
            && attempt == lease.attempt
            && shadow.attempts.get(&attempt).is_some_and(|attempt| attempt.token == lease.token)
        {
            return;
        }
        let (phase, last) = (shadow.phase, shadow.attempts.keys().next_back().copied().unwrap_or(0));
        shadow.phase = Phase::Held(lease.attempt);
        shadow.attempts.insert(lease.attempt, Attempt { token: lease.token, ended: None });
        self.facts.claims += 1;
        self.require(phase == Phase::Waiting, || format!("{lease:?} was claimed of a task that was {phase:?}"));
        self.require(lease.attempt == last + 1, || format!("{lease:?} was claimed after attempt {last}"));
        let queue = self.queues.get(&claim.queue).map(|queue| (queue.epoch, queue.paused));
        self.require(queue == Some((claim.epoch, false)), || {
            format!("{lease:?} was claimed in epoch {} of {}, which is {queue:?} (R5)", claim.epoch, claim.queue)
        });
        let session = self.sessions.get(&claim.session).map(|session| (session.generation, session.live));
        self.require(session == Some((claim.generation, true)), || {
            format!("{lease:?} was claimed by generation {} of a session that is {session:?} (R2)", claim.generation)
        });
    }

    pub(crate) fn completed(&mut self, completion: &Completion, state: Option<State>) {
        let lease = completion.lease;
        let Some(state) = state.filter(|state| state.is_terminal()) else {
            return self.violation(format!("{lease:?} was recorded as ended, and its task is {state:?}"));
        };
        let Some(shadow) = self.tasks.get_mut(&lease.task) else { return };
        if let Phase::Done { lease: Some(ended), .. } = shadow.phase
            && ended == lease
        {
            return;
        }
        let phase = shadow.phase;
        let current = phase == Phase::Held(lease.attempt);
        let ours = shadow.attempts.get(&lease.attempt).is_some_and(|attempt| attempt.token == lease.token);
        shadow.phase = Phase::Done { state, lease: Some(lease) };
        self.end_attempt(lease, completion.outcome.kind);
        self.require(current && ours, || format!("a stale report of {lease:?} ended a task that was {phase:?} (R2)"));
    }

    pub(crate) fn requeued(&mut self, requeue: &Requeue) {
        let lease = requeue.lease;
        let Some(shadow) = self.tasks.get_mut(&lease.task) else { return };
        let phase = shadow.phase;
        let attempt = shadow.attempts.get(&lease.attempt);
        let ours = attempt.is_some_and(|attempt| attempt.token == lease.token);
        if ours && attempt.is_some_and(|attempt| attempt.ended.is_some()) {
            // A repeat of what an earlier try had recorded.
            return;
        }
        let (current, cancelling) = (phase == Phase::Held(lease.attempt), shadow.cancelling);
        shadow.phase = Phase::Waiting;
        self.facts.requeued += 1;
        self.end_attempt(lease, requeue.outcome.kind);
        self.require(current && ours, || format!("a stale report of {lease:?} queued a task that was {phase:?} (R2)"));
        self.require(!cancelling, || format!("{lease:?} was queued again although it was being cancelled"));
    }

    /// An orchestrator's own report comes only when nothing of the attempt runs any more.
    fn end_attempt(&mut self, lease: LeaseRef, kind: OutcomeKind) {
        if let Some(attempt) = self.tasks.get_mut(&lease.task).and_then(|task| task.attempts.get_mut(&lease.attempt)) {
            attempt.ended.get_or_insert(kind);
        }
        if kind == OutcomeKind::Lost {
            self.facts.lost += 1;
        } else {
            let running = self.runs.values().any(|run| run.lease == lease);
            self.require(!running, || format!("{lease:?} was reported as {kind:?} while it runs"));
        }
    }

    pub(crate) fn cancelled(&mut self, id: TaskId, state: State) {
        let Some(shadow) = self.tasks.get_mut(&id) else { return };
        match (shadow.phase, state) {
            (Phase::Waiting, State::Cancelled) => shadow.phase = Phase::Done { state, lease: None },
            (Phase::Held(_), State::Cancelling) => shadow.cancelling = true,
            (Phase::Done { state: State::Cancelled, .. }, State::Cancelled) => {}
            (phase, state) => self.violation(format!("cancelling {id}, which was {phase:?}, made it {state}")),
        }
    }

    pub(crate) fn expired(&mut self, id: TaskId) {
        let Some(shadow) = self.tasks.get_mut(&id) else { return };
        let phase = std::mem::replace(&mut shadow.phase, Phase::Done { state: State::Expired, lease: None });
        self.require(phase == Phase::Waiting, || format!("{id} expired while it was {phase:?}"));
    }

    pub(crate) fn retried(&mut self, id: TaskId) {
        let Some(shadow) = self.tasks.get_mut(&id) else { return };
        let phase = std::mem::replace(&mut shadow.phase, Phase::Waiting);
        shadow.cancelling = false;
        let may = matches!(phase, Phase::Done { state: State::Failed | State::Cancelled | State::Expired, .. });
        self.require(may, || format!("{id} was retried while it was {phase:?}"));
    }

    // ── Sessions, queues and clocks ─────────────────────────────────────────────────────────────────────────────────

    pub(crate) fn opened(&mut self, row: &SessionRow) {
        let ttl = Duration::from_millis(row.session.ttl_ms as u64);
        let session = Session {
            generation: row.generation,
            live: true,
            ttl,
            told: Duration::ZERO,
            renewed: self.now,
            down_before: self.down,
            slips_before: self.slips,
        };
        self.sessions.insert(row.session.id, session);
    }

    /// An orchestrator is told how long its lease is.
    pub(crate) fn told_lease(&mut self, id: SessionId, told: Duration) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.told = told;
        }
    }

    /// An orchestrator hears that its session is gone, and is about to stop what it runs. That may only be when it is.
    pub(crate) fn told_gone(&mut self, id: SessionId, place: usize) {
        let live = self.sessions.get(&id).is_some_and(|session| session.live);
        self.require(!live, || format!("p{place} stops what session {id} holds, and the session lives"));
    }

    pub(crate) fn renewed(&mut self, id: SessionId, generation: i64) {
        let (now, down, slips) = (self.now, self.down, self.slips);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let current = session.live && session.generation == generation;
        session.renewed = now;
        session.down_before = down;
        session.slips_before = slips;
        self.require(current, || {
            format!("generation {generation} of session {id} was renewed, and is not current (R2)")
        });
    }

    pub(crate) fn closed(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.live = false;
            session.generation += 1;
        }
    }

    /// A lease may end only when the database has been up for as long, but for one tick that may have been counted before
    /// the renewal, and one for each short outage and small step of its clock (R7); and not before its orchestrator's own clock
    /// says so, which stops exclusive work (R16), as long as there was one such step at most.
    pub(crate) fn reaped(&mut self, id: SessionId) {
        self.facts.reaped += 1;
        let (now, down, slips) = (self.now, self.down, self.slips);
        let Some(session) = self.sessions.get(&id) else { return };
        let slips = slips - session.slips_before;
        let slack = Duration::from_millis(500) * (1 + slips);
        let aged = now.saturating_sub(session.renewed).saturating_sub(down - session.down_before);
        let (holds, ttl) = (aged + slack >= session.ttl, session.ttl);
        let (lasted, told) = (now.saturating_sub(session.renewed), session.told);
        self.require(holds, || format!("session {id} with a lease of {ttl:?} was ended after {aged:?} (R7)"));
        self.require(lasted >= told || slips > 1, || {
            format!(
                "session {id} was ended {lasted:?} after its renewal, and its orchestrator counts on {told:?} (R16)"
            )
        });
        self.closed(id);
    }

    pub(crate) fn generation(&self, id: SessionId) -> Option<i64> {
        self.sessions.get(&id).map(|session| session.generation)
    }

    pub(crate) fn ticked(&mut self, tick: Tick) {
        let before = std::mem::replace(&mut self.served_ms, tick.clock.served_ms);
        self.require(before <= tick.clock.served_ms, || {
            format!("served time went back from {before} to {} (R7)", tick.clock.served_ms)
        });
    }

    pub(crate) fn paused(&mut self, queue: &str, paused: bool) {
        self.queues.entry(queue.to_owned()).or_default().paused = paused;
    }

    pub(crate) fn owned(&mut self, queue: &str, epoch: i64) {
        let queue_row = self.queues.entry(queue.to_owned()).or_default();
        let before = std::mem::replace(&mut queue_row.epoch, epoch);
        self.require(before <= epoch, || format!("the epoch of {queue} went back from {before} to {epoch} (R5)"));
    }

    // ── What orchestrators run ──────────────────────────────────────────────────────────────────────────────────────

    /// An executor is given an attempt.
    pub(crate) fn started(&mut self, run: u64, lease: LeaseRef, place: usize) {
        let first = self.started.insert(lease);
        self.require(first, || format!("{lease:?} was started twice"));
        let Some(shadow) = self.tasks.get(&lease.task) else {
            return self.violation(format!("{lease:?} was started and never stored"));
        };
        let (exclusive, phase) = (shadow.exclusive, shadow.phase);
        let lost = |attempt: i32| {
            shadow.attempts.get(&attempt).is_some_and(|attempt| attempt.ended == Some(OutcomeKind::Lost))
        };
        let known = shadow.attempts.get(&lease.attempt).is_some_and(|attempt| attempt.token == lease.token);
        let current = phase == Phase::Held(lease.attempt);
        // An orchestrator that does not know yet that its session is over may start what was lost with it.
        let stale = !current && lost(lease.attempt);
        let overlapping: Vec<(LeaseRef, usize, bool)> = self
            .runs
            .values()
            .filter(|other| other.lease.task == lease.task)
            .map(|other| (other.lease, other.place, stale || lost(other.lease.attempt)))
            .collect();
        self.runs.insert(run, Run { lease, place });
        self.facts.stale_starts += u64::from(stale);
        self.require(known, || format!("{lease:?} was started and never claimed"));
        self.require(current || stale, || format!("{lease:?} was started of a task that was {phase:?}"));
        for (other, other_place, excused) in overlapping {
            self.facts.overlaps += 1;
            self.require(excused, || format!("{lease:?} was started at {place} while {other:?} runs at {other_place}"));
            self.require(!exclusive, || {
                format!("{lease:?}, exclusive, was started at {place} while {other:?} runs at {other_place} (R16)")
            });
        }
    }

    /// Nothing of it runs any more.
    pub(crate) fn stopped(&mut self, run: u64) {
        self.runs.remove(&run);
    }

    /// The process is gone, and what it ran with it.
    pub(crate) fn crashed(&mut self, place: usize) {
        self.runs.retain(|_, run| run.place != place);
    }

    /// How many attempts of these submissions run.
    pub(crate) fn running(&self, numbers: impl Fn(u32) -> bool) -> usize {
        let number = |run: &&Run| self.tasks.get(&run.lease.task).is_some_and(|shadow| numbers(shadow.number));
        self.runs.values().filter(number).count()
    }

    // ── The end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Whether every task has ended.
    pub(crate) fn all_ended(&self) -> bool {
        self.tasks.values().all(|shadow| matches!(shadow.phase, Phase::Done { .. }))
    }

    /// Tasks that have not ended, with what they do.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        let open = |(_, shadow): &(&TaskId, &Shadow)| !matches!(shadow.phase, Phase::Done { .. });
        let line = |(id, shadow): (&TaskId, &Shadow)| format!("{id} (submission {}) {:?}", shadow.number, shadow.phase);
        self.tasks.iter().filter(open).map(line).collect()
    }

    /// Every task is in the database as it ended here, and nowhere else: one outcome each.
    pub(crate) fn check_ends(&mut self, store: &dyn Store) {
        let mut wrong = Vec::new();
        for (id, shadow) in &self.tasks {
            let row = store.task(*id).ok().flatten();
            let there = row.map(|row| row.state);
            match shadow.phase {
                Phase::Done { state, .. } if there == Some(state) => {}
                phase => wrong.push(format!("{id} ended as {phase:?}, and the database says {there:?}")),
            }
        }
        for what in wrong {
            self.violation(what);
        }
    }
}
