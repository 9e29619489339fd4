//! What an orchestrator does with its attempts. Mirrors `services/orchestrator/src/engine.rs`.

use std::time::Duration;

use millrace_core::{held::LeaseRef, id::TaskId, retry::OutcomeKind};

use crate::{
    book::Doing,
    message::{Assignment, Report},
    mutant::Mutant,
    orchestrator::{self, Orchestrator},
    world::{Pid, Target, World},
};

/// When an attempt that was told to stop is dropped.
const STOP_LIMIT: Duration = Duration::from_secs(20);

const RESULT_RETRY: Duration = Duration::from_secs(1);

/// An assignment has come: news, or a repeat that is only announced again (R1).
pub(crate) fn assigned(world: &mut World, pid: Pid, assignment: Assignment) {
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
pub(crate) fn stop(world: &mut World, pid: Pid, local: u64, kind: OutcomeKind, delay: Duration) {
    world.after(delay, Target::Process(pid), "stopped", move |world| ended(world, pid, local, kind));
}

/// How long an attempt takes to stop when it is told to: most are quick, some use up their grace.
pub(crate) fn stop_delay(world: &mut World) -> Duration {
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
    orchestrator::step(world, pid);
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

pub(crate) fn cancel(world: &mut World, pid: Pid, lease: LeaseRef) {
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

pub(crate) fn revoke(world: &mut World, pid: Pid, lease: LeaseRef) {
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

pub(crate) fn forget_all(world: &mut World, pid: Pid) {
    let tasks: Vec<TaskId> =
        world.orchestrator(pid).map(|this| this.book.held.keys().copied().collect()).unwrap_or_default();
    for task in tasks {
        release(world, pid, task);
    }
}

impl Orchestrator {
    /// The service says what became of results. Only one that it could not record is kept.
    pub(crate) fn take_results(&mut self, results: Vec<(LeaseRef, Report)>, now: Duration) {
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
