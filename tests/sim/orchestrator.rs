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
    attempts,
    book::{Book, Grants, Lease},
    connection,
    message::Message,
    mutant::Mutant,
    net::{CALLER, StreamId},
    world::{Pid, Role, Target, World},
};

const WELCOME: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(3);
const DELIVER: Duration = Duration::from_secs(10);
const GOODBYE: Duration = Duration::from_secs(2);

/// Where the connection stands.
pub(crate) enum Link {
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
pub(crate) struct Outbox {
    pub held: bool,
    pub accepted: Vec<LeaseRef>,
    pub completions: VecDeque<TaskId>,
    pub retries: Vec<TaskId>,
    pub retry_at: Option<Duration>,
}

pub(crate) struct Orchestrator {
    pub slots: usize,
    pub queues: Vec<String>,
    pub session: Option<(SessionId, i64)>,
    pub previous: Option<SessionId>,
    pub link: Link,
    pub next_place: usize,
    pub named: Option<usize>,
    pub failures: u32,
    pub leave_at: Option<Duration>,
    pub book: Book,
    pub lease: Lease,
    pub grants: Grants,
    pub outbox: Outbox,
    stage: Stage,
    said_goodbye: bool,
    unfit: bool,
    pub last_local: u64,
    /// Since the last Welcome no credit was withdrawn and nothing came that uses none.
    pub clean: bool,
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
    pub(crate) fn closed(&self) -> bool {
        self.unfit || !matches!(self.stage, Stage::Serving)
    }

    pub(crate) fn free(&self) -> usize {
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
pub(crate) fn step(world: &mut World, pid: Pid) {
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
            attempts::stop(world, pid, local, OutcomeKind::HandedBack, at - now);
        }
    }
    let Some(this) = world.orchestrator(pid) else { return };
    match this.link {
        Link::Waiting(until) if until <= now => connection::connect(world, pid),
        Link::Opening { sent_at, .. } if sent_at + WELCOME <= now => connection::retry(world, pid),
        Link::Up(_) if matches!(this.stage, Stage::Leaving(_)) => {}
        Link::Up(_) if this.leave_at.is_some_and(|at| at <= now) => {
            this.leave_at = None;
            connection::connect(world, pid);
        }
        Link::Up(_) if this.lease.give_up_at() <= now => {
            this.leave_at = None;
            connection::retry(world, pid);
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
                    let delay = attempts::stop_delay(world);
                    attempts::stop(world, pid, local, OutcomeKind::HandedBack, delay);
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
