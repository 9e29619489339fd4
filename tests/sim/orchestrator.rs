//! An orchestrator: its connection and what it does with each message. Mirrors `services/orchestrator` (`runner`, `link`,
//! `engine`); what it holds is in `book`.

use std::{collections::VecDeque, time::Duration};

use millrace_core::{
    held::LeaseRef,
    id::{SessionId, TaskId},
    retry::OutcomeKind,
};

use rand::Rng;

use crate::{
    book::{Book, Doing, Grants, Lease},
    message::{Assignment, Ended, Hello, Message, Report},
    mutant::Mutant,
    net::{CALLER, Kind, StreamId},
    world::{Pid, Role, Target, World},
};

const RESULT_RETRY: Duration = Duration::from_secs(1);
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
const WELCOME: Duration = Duration::from_secs(10);
/// When an attempt that was told to stop is dropped.
const STOP_LIMIT: Duration = Duration::from_secs(20);
const DRAIN: Duration = Duration::from_secs(3);
const DELIVER: Duration = Duration::from_secs(10);
const GOODBYE: Duration = Duration::from_secs(2);

enum Link {
    Waiting(Duration),
    Opening { stream: StreamId, sent_at: Duration },
    Up(StreamId),
}

/// How far a shutdown has come.
#[derive(Clone, Copy)]
enum Stage {
    Serving,
    Draining(Duration),
    Stopping,
    Delivering(Duration),
    Leaving(Duration),
}

#[derive(Default)]
struct Outbox {
    held: bool,
    accepted: Vec<LeaseRef>,
    completions: VecDeque<TaskId>,
    retries: Vec<TaskId>,
    retry_at: Option<Duration>,
}

pub(crate) struct Orchestrator {
    pub slots: usize,
    queues: Vec<String>,
    session: Option<(SessionId, i64)>,
    previous: Option<SessionId>,
    link: Link,
    next_place: usize,
    named: Option<usize>,
    failures: u32,
    leave_at: Option<Duration>,
    book: Book,
    lease: Lease,
    grants: Grants,
    outbox: Outbox,
    stage: Stage,
    said_goodbye: bool,
    unfit: bool,
    last_local: u64,
    /// Since the last Welcome no credit was withdrawn and nothing came that uses none.
    clean: bool,
    wake_at: Option<Duration>,
}

/// Starts an orchestrator in a place.
pub(crate) fn start(world: &mut World, index: usize) {
    let lease = Duration::from_millis(
        world.rng.random_range(world.config.shortest_lease * 1_000..=world.config.longest_lease * 1_000),
    );
    let next_place = world.pick(world.config.replicas);
    let slots = world.config.slots[index - world.config.orchestrator_places().start];
    let orchestrator = Orchestrator {
        slots,
        queues: world.config.queues.iter().map(|queue| (*queue).to_owned()).collect(),
        session: None,
        previous: world.processes[index].disk,
        link: Link::Waiting(world.now),
        next_place,
        named: None,
        failures: 0,
        leave_at: None,
        book: Book::default(),
        lease: Lease::new(lease, world.now),
        grants: Grants::default(),
        outbox: Outbox::default(),
        stage: Stage::Serving,
        said_goodbye: false,
        unfit: false,
        last_local: 0,
        clean: false,
        wake_at: None,
    };
    world.processes[index].role = Role::Orchestrator(Box::new(orchestrator));
    let pid = Pid { index, life: world.processes[index].life };
    step(world, pid);
}

/// Sends it home: it stops taking work, hands back, and leaves.
pub(crate) fn drain(world: &mut World, pid: Pid) {
    let now = world.now;
    if let Some(this) = world.orchestrator(pid) {
        this.stage = Stage::Draining(now + DRAIN);
        step(world, pid);
    }
}

/// Its executor is not fit for work, or is again.
pub(crate) fn set_unfit(world: &mut World, pid: Pid, unfit: bool) {
    if let Some(this) = world.orchestrator(pid) {
        this.unfit = unfit;
        step(world, pid);
    }
}

impl Orchestrator {
    fn closed(&self) -> bool {
        self.unfit || !matches!(self.stage, Stage::Serving)
    }

    fn free(&self) -> usize {
        self.slots.saturating_sub(self.book.occupied())
    }

    /// Whether it takes work, and holds none.
    pub(crate) fn is_idle(&self) -> bool {
        self.book.occupied() == 0 && !self.closed()
    }

    fn stream(&self) -> Option<StreamId> {
        match self.link {
            Link::Up(stream) => Some(stream),
            Link::Opening { .. } | Link::Waiting(_) => None,
        }
    }
}

// ── Each turn ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// Does what is due, sends what waits, and sees to it that it is woken in time.
fn step(world: &mut World, pid: Pid) {
    on_time(world, pid);
    advance(world, pid);
    flush(world, pid);
    let now = world.now;
    let Some(this) = world.orchestrator(pid) else { return };
    let stage = match this.stage {
        Stage::Draining(at) | Stage::Delivering(at) | Stage::Leaving(at) => Some(at),
        Stage::Serving | Stage::Stopping => None,
    };
    let link = match this.link {
        Link::Waiting(until) => Some(until),
        Link::Opening { sent_at, .. } => Some(sent_at + WELCOME),
        Link::Up(_) => {
            Some(this.lease.next_beat.min(this.lease.give_up_at()).min(this.leave_at.unwrap_or(Duration::MAX)))
        }
    };
    let exclusive = this.book.has_exclusive().then(|| this.lease.exclusive_end().tell_at);
    let wake = [stage, link, exclusive, this.outbox.retry_at].into_iter().flatten().min();
    let Some(wake) = wake.map(|at| at.max(now + Duration::from_millis(1))) else { return };
    if this.wake_at.is_none_or(|at| at > wake || at <= now) {
        this.wake_at = Some(wake);
        world.after(wake - now, Target::Process(pid), "orchestrator", move |world| step(world, pid));
    }
}

fn on_time(world: &mut World, pid: Pid) {
    let (now, mutant) = (world.now, world.mutant);
    let Some(this) = world.orchestrator(pid) else { return };
    if this.outbox.retry_at.is_some_and(|at| at <= now) {
        this.outbox.retry_at = None;
        this.outbox.completions.extend(std::mem::take(&mut this.outbox.retries));
    }
    let end = this.lease.exclusive_end();
    if this.book.has_exclusive() && now >= end.tell_at && mutant != Some(Mutant::ExclusiveRunsOn) {
        for local in this.book.take_exclusive() {
            // It is told to stop, and dropped at the last when it has not.
            let last = world.chance(0.5);
            let at = if last { end.abort_at.max(now) } else { now + Duration::from_millis(20) };
            stop(world, pid, local, OutcomeKind::HandedBack, at - now);
        }
    }
    let Some(this) = world.orchestrator(pid) else { return };
    match this.link {
        Link::Waiting(until) if until <= now => connect(world, pid),
        Link::Opening { sent_at, .. } if sent_at + WELCOME <= now => retry(world, pid),
        Link::Up(_) if matches!(this.stage, Stage::Leaving(_)) => {}
        Link::Up(_) if this.leave_at.is_some_and(|at| at <= now) => {
            this.leave_at = None;
            connect(world, pid);
        }
        Link::Up(_) if this.lease.give_up_at() <= now => {
            this.leave_at = None;
            retry(world, pid);
        }
        _ => {}
    }
}

/// Moves a shutdown on.
fn advance(world: &mut World, pid: Pid) {
    let now = world.now;
    loop {
        let Some(this) = world.orchestrator(pid) else { return };
        this.stage = match this.stage {
            Stage::Draining(until) if this.book.running() == 0 || until <= now => {
                for local in this.book.locals() {
                    let delay = stop_delay(world);
                    stop(world, pid, local, OutcomeKind::HandedBack, delay);
                }
                let Some(this) = world.orchestrator(pid) else { return };
                for task in this.book.end_waiting() {
                    this.outbox.completions.push_back(task);
                }
                this.stage = Stage::Stopping;
                continue;
            }
            Stage::Stopping if this.book.running() + this.book.stopping.len() == 0 => Stage::Delivering(now + DELIVER),
            Stage::Delivering(until) if this.book.held.is_empty() || until <= now => {
                this.said_goodbye = false;
                Stage::Leaving(now + GOODBYE)
            }
            Stage::Leaving(until) if until <= now || this.stream().is_none() => {
                return crate::faults::stop_process(world, pid.index);
            }
            _ => return,
        };
    }
}

fn flush(world: &mut World, pid: Pid) {
    let now = world.now;
    let Some(this) = world.orchestrator(pid) else { return };
    let Some(stream) = this.stream() else { return };
    if this.said_goodbye {
        return;
    }
    let mut messages = Vec::new();
    if std::mem::take(&mut this.outbox.held) {
        messages.push(Message::Held(this.book.leases()));
    }
    if this.lease.next_beat <= now {
        let (count, digest) = (this.book.held.len(), this.book.digest());
        messages.push(Message::Heartbeat { seq: this.lease.beat(now), count, digest });
    }
    let credits = if this.closed() { 0 } else { this.free() as u32 };
    this.clean &= !this.closed();
    messages.extend(this.grants.next(credits).map(|(seq, credits, acked)| Message::Grant { seq, credits, acked }));
    if !this.outbox.accepted.is_empty() {
        messages.push(Message::Accepted(std::mem::take(&mut this.outbox.accepted)));
    }
    let ended: Vec<(LeaseRef, OutcomeKind)> =
        std::mem::take(&mut this.outbox.completions).into_iter().filter_map(|task| this.book.ended(task)).collect();
    if !ended.is_empty() {
        messages.push(Message::Completions(ended));
    }
    if matches!(this.stage, Stage::Leaving(_)) {
        this.said_goodbye = true;
        messages.push(Message::Goodbye);
    }
    for message in messages {
        world.send(stream, CALLER, message);
    }
}

// ── The connection ──────────────────────────────────────────────────────────────────────────────────────────────────

fn connect(world: &mut World, pid: Pid) {
    let (now, replicas) = (world.now, world.config.replicas);
    let Some(this) = world.orchestrator(pid) else { return };
    let place = this.named.take().unwrap_or_else(|| {
        this.next_place += 1;
        this.next_place % replicas
    });
    let hello = Hello {
        resume: this.session,
        previous: this.previous,
        name: format!("orchestrator {}", pid.index),
        queues: this.queues.clone(),
        slots: this.slots as u32,
        ttl: this.lease.ttl,
        held: this.book.leases().into_iter().collect(),
    };
    hang_up(world, pid);
    let stream = world.connect(Kind::Session, pid, place, Message::Hello(hello));
    if let Some(this) = world.orchestrator(pid) {
        this.link = Link::Opening { stream, sent_at: now };
    }
}

/// Leaves the stream that it has, if any.
fn hang_up(world: &mut World, pid: Pid) {
    let Some(this) = world.orchestrator(pid) else { return };
    if let Link::Up(stream) | Link::Opening { stream, .. } = this.link
        && world.is_open(stream, CALLER)
    {
        world.end(stream, CALLER, Ended::Silent);
    }
}

fn retry(world: &mut World, pid: Pid) {
    hang_up(world, pid);
    let jitter = world.span(Duration::ZERO, Duration::from_millis(500));
    let now = world.now;
    let Some(this) = world.orchestrator(pid) else { return };
    let whole = MIN_BACKOFF.saturating_mul(1 << this.failures.min(20)).min(MAX_BACKOFF);
    this.failures += 1;
    this.link = Link::Waiting(now + whole.mul_f64(0.5 + jitter.as_secs_f64()));
    step(world, pid);
}

/// The stream is over.
pub(crate) fn closed(world: &mut World, pid: Pid, stream: StreamId, how: Ended) {
    let now = world.now;
    let Some(this) = world.orchestrator(pid) else { return };
    let up = match this.link {
        Link::Up(current) if current == stream => true,
        Link::Opening { stream: current, .. } if current == stream => false,
        _ => return,
    };
    match how {
        Ended::Gone => {
            // The session has expired, or was closed: nothing that was held is ours, and a new one begins (R2).
            this.leave_at = None;
            if let Some((id, _)) = this.session.take() {
                world.db.oracle.told_gone(id, pid.index);
            }
            forget_all(world, pid);
            retry(world, pid);
        }
        Ended::NoSuchQueue => {
            // Its people give it another list.
            let known: Vec<String> =
                world.db.store().queues().unwrap_or_default().into_iter().map(|queue| queue.name).collect();
            if let Some(this) = world.orchestrator(pid) {
                this.queues.retain(|queue| known.contains(queue));
            }
            retry(world, pid);
        }
        Ended::Silent | Ended::Moved | Ended::Unavailable => match this.leave_at.take() {
            Some(at) if up => {
                this.link = Link::Waiting(at.max(now));
                step(world, pid);
            }
            _ => retry(world, pid),
        },
    }
}

/// A message from a distributor.
pub(crate) fn received(world: &mut World, pid: Pid, stream: StreamId, message: Message) {
    let now = world.now;
    let Some(this) = world.orchestrator(pid) else { return };
    match (&this.link, message) {
        (Link::Opening { stream: current, sent_at }, Message::Welcome { session, generation, ttl, revoked })
            if *current == stream =>
        {
            let sent_at = *sent_at;
            welcomed(world, pid, stream, (session, generation), ttl, revoked, sent_at);
        }
        (Link::Up(current), message) if *current == stream => match message {
            Message::Assignments(assignments) => {
                for assignment in assignments {
                    assigned(world, pid, assignment);
                }
            }
            Message::Results(results) => this.take_results(results, now),
            Message::Cancel(leases) => {
                for lease in leases {
                    cancel(world, pid, lease);
                }
            }
            Message::Revoke(leases) => {
                for lease in leases {
                    revoke(world, pid, lease);
                }
            }
            Message::Beat(seq) => {
                if this.lease.answered(seq) {
                    this.failures = 0;
                }
            }
            Message::SendHeld => this.outbox.held = true,
            Message::GoAway { delay, to } => {
                this.named = to;
                this.leave_at = Some(now + delay);
            }
            other => world.violation(format!("an orchestrator received {other:?}")),
        },
        _ => {}
    }
    step(world, pid);
}

fn welcomed(
    world: &mut World,
    pid: Pid,
    stream: StreamId,
    session: (SessionId, i64),
    ttl: Duration,
    revoked: Vec<LeaseRef>,
    sent_at: Duration,
) {
    let now = world.now;
    let Some(this) = world.orchestrator(pid) else { return };
    let resumed = this.session.is_some_and(|(id, _)| id == session.0);
    this.lease.opened(ttl, sent_at, now);
    this.grants = Grants::default();
    this.outbox = Outbox::default();
    this.link = Link::Up(stream);
    this.session = Some(session);
    this.leave_at = None;
    this.clean = true;
    if resumed {
        for lease in revoked {
            revoke(world, pid, lease);
        }
    } else {
        this.previous = None;
        world.processes[pid.index].disk = Some(session.0);
        forget_all(world, pid);
    }
    let Some(this) = world.orchestrator(pid) else { return };
    for (task, held) in &this.book.held {
        match held.doing {
            Doing::Waiting { .. } => {}
            Doing::Running(_) => this.outbox.accepted.push(held.lease),
            Doing::Ended(_) => this.outbox.completions.push_back(*task),
        }
    }
}

// ── Attempts ────────────────────────────────────────────────────────────────────────────────────────────────────────

fn assigned(world: &mut World, pid: Pid, assignment: Assignment) {
    let mutant = world.mutant;
    let Some(this) = world.orchestrator(pid) else { return };
    this.grants.received(assignment.seq, assignment.resent);
    this.clean &= !assignment.resent;
    let lease = assignment.lease;
    if let Some(held) = this.book.held.get(&lease.task) {
        if held.lease == lease && mutant != Some(Mutant::RepeatsAreRun) {
            match held.doing {
                Doing::Waiting { .. } => {}
                Doing::Running(_) => this.outbox.accepted.push(lease),
                Doing::Ended(_) => this.outbox.completions.push_back(lease.task),
            }
            return;
        }
        if held.lease.attempt > lease.attempt {
            return;
        }
        release(world, pid, lease.task);
    }
    take(world, pid, assignment);
}

fn take(world: &mut World, pid: Pid, assignment: Assignment) {
    let now = world.now;
    let plan = world.people.plans[assignment.number as usize].clone();
    let Some(this) = world.orchestrator(pid) else { return };
    let lease = assignment.lease;
    this.last_local += 1;
    let local = this.last_local;
    let full = this.free() == 0;
    let uncalled = full && this.clean && !assignment.resent;
    let (_, kind) = plan.attempt(lease.attempt);
    let doing = if this.closed() || full {
        Doing::Ended(OutcomeKind::HandedBack)
    } else if kind == OutcomeKind::Unsupported || kind == OutcomeKind::NotStarted {
        Doing::Ended(kind)
    } else if plan.exclusive && now >= this.lease.exclusive_end().tell_at {
        Doing::Ended(OutcomeKind::HandedBack)
    } else if plan.exclusive && this.book.is_stopping(lease.task) {
        Doing::Waiting { number: assignment.number, local }
    } else {
        Doing::Running(local)
    };
    match doing {
        Doing::Waiting { .. } => {}
        Doing::Running(_) => this.outbox.accepted.push(lease),
        Doing::Ended(_) => this.outbox.completions.push_back(lease.task),
    }
    this.book.insert(lease, plan.exclusive, doing);
    let (occupied, slots) = (this.book.running() + this.book.stopping.len(), this.slots);
    if uncalled {
        world.db.oracle.facts.turned_away += 1;
        world.violation(format!("{lease:?} was sent to {pid:?}, which had no slot and had asked for nothing (R6)"));
    }
    if occupied > slots {
        world.violation(format!("{pid:?} runs {occupied} attempts in {slots} slots"));
    }
    if let Doing::Running(local) = doing {
        run(world, pid, lease, assignment.number, local);
    }
}

fn run(world: &mut World, pid: Pid, lease: LeaseRef, number: u32, local: u64) {
    let (span, kind) = world.people.plans[number as usize].attempt(lease.attempt);
    world.note(|| format!("{pid:?} starts {lease:?} (submission {number})"));
    world.db.oracle.started(run_number(pid, local), lease, pid.index);
    world.after(span, Target::Process(pid), "attempt", move |world| ended(world, pid, local, kind));
}

fn run_number(pid: Pid, local: u64) -> u64 {
    (pid.index as u64) << 48 | pid.life << 32 | local
}

/// Gives the order to stop; the attempt ends after a while, unless it ends by itself before.
fn stop(world: &mut World, pid: Pid, local: u64, kind: OutcomeKind, delay: Duration) {
    world.after(delay, Target::Process(pid), "stopped", move |world| ended(world, pid, local, kind));
}

/// How long an attempt takes to stop when it is told to: most are quick, some use up their grace.
fn stop_delay(world: &mut World) -> Duration {
    let most = if world.chance(0.8) { Duration::from_secs(1) } else { STOP_LIMIT };
    world.span(Duration::ZERO, most)
}

/// An executor has returned.
fn ended(world: &mut World, pid: Pid, local: u64, kind: OutcomeKind) {
    let Some(this) = world.orchestrator(pid) else { return };
    if let Some(task) = this.book.stopping.remove(&local) {
        world.db.oracle.stopped(run_number(pid, local));
        start_waiting(world, pid, task);
    } else if let Some(task) = this.book.end(local, kind) {
        this.outbox.completions.push_back(task);
        world.db.oracle.stopped(run_number(pid, local));
    } else {
        return;
    }
    step(world, pid);
}

/// Starts the attempt that waited for an earlier one of its task to end here.
fn start_waiting(world: &mut World, pid: Pid, task: TaskId) {
    let Some(this) = world.orchestrator(pid) else { return };
    if this.book.is_stopping(task) {
        return;
    }
    if let Some((lease, number, local)) = this.book.start_waiting(task) {
        this.outbox.accepted.push(lease);
        run(world, pid, lease, number, local);
    }
}

fn cancel(world: &mut World, pid: Pid, lease: LeaseRef) {
    let delay = stop_delay(world);
    let Some(this) = world.orchestrator(pid) else { return };
    let Some(held) = this.book.held.get_mut(&lease.task).filter(|held| held.lease == lease) else { return };
    match held.doing {
        Doing::Running(local) => stop(world, pid, local, OutcomeKind::Cancelled, delay),
        Doing::Waiting { .. } => {
            held.doing = Doing::Ended(OutcomeKind::Cancelled);
            this.outbox.completions.push_back(lease.task);
        }
        Doing::Ended(_) => {}
    }
}

fn revoke(world: &mut World, pid: Pid, lease: LeaseRef) {
    let Some(this) = world.orchestrator(pid) else { return };
    if this.book.held.get(&lease.task).is_some_and(|held| held.lease == lease) {
        release(world, pid, lease.task);
    }
}

fn release(world: &mut World, pid: Pid, task: TaskId) {
    let delay = stop_delay(world);
    if let Some(local) = world.orchestrator(pid).and_then(|this| this.book.release(task)) {
        stop(world, pid, local, OutcomeKind::HandedBack, delay);
    }
}

fn forget_all(world: &mut World, pid: Pid) {
    let tasks: Vec<TaskId> =
        world.orchestrator(pid).map(|this| this.book.held.keys().copied().collect()).unwrap_or_default();
    for task in tasks {
        release(world, pid, task);
    }
}

impl Orchestrator {
    /// The service says what became of results. Only one that it could not record is kept.
    fn take_results(&mut self, results: Vec<(LeaseRef, Report)>, now: Duration) {
        for (lease, report) in results {
            if self.book.ended(lease.task).is_none_or(|(held, _)| held != lease) {
                continue;
            }
            if report == Report::Unavailable {
                self.outbox.retries.push(lease.task);
                self.outbox.retry_at.get_or_insert(now + RESULT_RETRY);
            } else {
                self.book.release(lease.task);
            }
        }
    }
}
