//! An orchestrator's connection: where it goes, what it says there, and how that ends. Mirrors
//! `services/orchestrator/src/{runner,link}.rs`.

use std::time::Duration;

use millrace_core::{held::LeaseRef, id::SessionId};

use crate::{
    attempts,
    book::{Doing, Grants},
    message::{Ended, Hello, Message},
    net::{CALLER, Kind, StreamId},
    orchestrator::{self, Link},
    world::{Pid, World},
};

const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Says hello to the next replica, or to the one that was named.
pub(crate) fn connect(world: &mut World, pid: Pid) {
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

/// Tries again after a while.
pub(crate) fn retry(world: &mut World, pid: Pid) {
    hang_up(world, pid);
    let jitter = world.span(Duration::ZERO, Duration::from_millis(500));
    let now = world.now;
    let Some(this) = world.orchestrator(pid) else { return };
    let whole = MIN_BACKOFF.saturating_mul(1 << this.failures.min(20)).min(MAX_BACKOFF);
    this.failures += 1;
    this.link = Link::Waiting(now + whole.mul_f64(0.5 + jitter.as_secs_f64()));
    orchestrator::step(world, pid);
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
            attempts::forget_all(world, pid);
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
        Ended::Silent | Ended::Moved | Ended::Unavailable | Ended::NotOwner => match this.leave_at.take() {
            Some(at) if up => {
                this.link = Link::Waiting(at.max(now));
                orchestrator::step(world, pid);
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
                    attempts::assigned(world, pid, assignment);
                }
            }
            Message::Results(results) => this.take_results(results, now),
            Message::Cancel(leases) => {
                for lease in leases {
                    attempts::cancel(world, pid, lease);
                }
            }
            Message::Revoke(leases) => {
                for lease in leases {
                    attempts::revoke(world, pid, lease);
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
    orchestrator::step(world, pid);
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
    this.outbox = Default::default();
    this.link = Link::Up(stream);
    this.session = Some(session);
    this.leave_at = None;
    this.clean = true;
    if resumed {
        for lease in revoked {
            attempts::revoke(world, pid, lease);
        }
    } else {
        this.previous = None;
        world.processes[pid.index].disk = Some(session.0);
        attempts::forget_all(world, pid);
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
