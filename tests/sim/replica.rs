//! A distributor replica: orchestrators' streams, submissions, and what the replica keeps in memory. It mirrors
//! `services/distributor`: `claims`, `ends`, `links` and `loops` are the parts of the same names there.

use std::{collections::BTreeMap, time::Duration};

use millrace_core::{
    held::LeaseRef,
    id::{MemberId, SessionId},
};
use millrace_store::{MemberKind, MemberRow, TaskRow};

use crate::{
    beats,
    claims::ClaimItem,
    ends::{self, EndItem},
    goodbye::{self, Goodbye},
    hello,
    host::Host,
    links::{self, Links},
    loops,
    message::{Ended, Message},
    mutant::Mutant,
    net::{CALLEE, StreamId},
    stay::Stay,
    submissions::Submission,
    world::{Pid, Role, Target, World},
};

/// How long an assignment may go unreported before it is sent again.
pub(crate) const ACCEPT_PATIENCE: Duration = Duration::from_secs(5);

/// While one batch is being written the next one gathers.
pub(crate) struct Gate<T> {
    pub waiting: Vec<T>,
    pub busy: bool,
}

impl<T> Default for Gate<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), busy: false }
    }
}

impl<T> Gate<T> {
    /// Takes the next batch, if none is being written.
    pub(crate) fn take(&mut self) -> Option<Vec<T>> {
        if self.busy || self.waiting.is_empty() {
            return None;
        }
        self.busy = true;
        Some(std::mem::take(&mut self.waiting))
    }
}

pub(crate) struct Replica {
    pub member: MemberId,
    pub incarnation: Option<i16>,
    pub members: Vec<MemberRow>,
    pub route_version: Option<i64>,
    pub stays: BTreeMap<u64, Stay>,
    pub by_id: BTreeMap<SessionId, u64>,
    pub by_stream: BTreeMap<StreamId, u64>,
    pub next_receiver: u64,
    pub links: Links,
    pub submits: Gate<Submission>,
    pub claims: Gate<ClaimItem>,
    pub ends: Gate<EndItem>,
    pub beats: Gate<(u64, u64)>,
    pub goodbyes: Vec<(Vec<LeaseRef>, Goodbye)>,
    pub draining: bool,
    pub host: Host,
}

/// Starts a replica in a place.
pub(crate) fn start(world: &mut World, index: usize) {
    let member = MemberId(world.uuid());
    let host = Host::new(world, member, MemberKind::Distributor, index);
    let replica = Replica {
        member,
        incarnation: None,
        members: Vec::new(),
        route_version: None,
        stays: BTreeMap::new(),
        by_id: BTreeMap::new(),
        by_stream: BTreeMap::new(),
        next_receiver: 0,
        links: Links::default(),
        submits: Gate::default(),
        claims: Gate::default(),
        ends: Gate::default(),
        beats: Gate::default(),
        goodbyes: Vec::new(),
        draining: false,
        host,
    };
    world.processes[index].role = Role::Replica(Box::new(replica));
    let pid = Pid { index, life: world.processes[index].life };
    loops::start(world, pid);
    crate::host::start_loops(world, pid);
}

impl Replica {
    /// Another live distributor.
    pub(crate) fn other(&self) -> Option<usize> {
        let other = |member: &&MemberRow| member.kind == MemberKind::Distributor && member.id != self.member;
        self.members.iter().find(other).and_then(|member| member.endpoint.parse().ok())
    }

    pub(crate) fn by_id(&self, id: SessionId) -> Option<u64> {
        self.by_id.get(&id).copied()
    }
}

// ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A message from an orchestrator.
pub(crate) fn received(world: &mut World, pid: Pid, stream: StreamId, message: Message) {
    let Some(replica) = world.replica(pid) else { return };
    if let Message::Hello(hello) = message {
        match replica.draining {
            true => world.end(stream, CALLEE, Ended::Unavailable),
            false => hello::greet(world, pid, stream, hello),
        }
        return;
    }
    let Some(&receiver) = replica.by_stream.get(&stream) else { return };
    let Some(stay) = replica.stays.get_mut(&receiver) else { return };
    match message {
        Message::Grant { seq, credits, acked } => {
            if stay.grant(seq, credits, acked) {
                links::demand_all(world, pid, receiver);
            }
        }
        Message::Accepted(leases) => stay.accept(leases),
        Message::Completions(completions) => {
            for (lease, kind) in completions {
                replica.ends.waiting.push(EndItem { receiver, lease, kind });
            }
            ends::run(world, pid);
        }
        Message::Heartbeat { seq, count, digest } => {
            stay.check_digest(count, digest);
            replica.beats.waiting.push((receiver, seq));
            beats::run(world, pid);
        }
        Message::Held(theirs) => hello::compare(world, pid, receiver, theirs),
        Message::Goodbye => goodbye::goodbye(world, pid, receiver),
        other => world.violation(format!("a distributor received {other:?}")),
    }
    flush(world, pid, receiver);
}

/// The stream is over.
pub(crate) fn closed(world: &mut World, pid: Pid, stream: StreamId) {
    let receiver = world.replica(pid).and_then(|replica| replica.by_stream.get(&stream).copied());
    if let Some(receiver) = receiver {
        leave(world, pid, receiver);
    }
}

pub(crate) fn leave(world: &mut World, pid: Pid, receiver: u64) {
    let Some(replica) = world.replica(pid) else { return };
    let Some(mut stay) = replica.stays.remove(&receiver) else { return };
    stay.end(Ended::Silent);
    replica.by_stream.remove(&stay.stream);
    if replica.by_id.get(&stay.id) == Some(&receiver) {
        replica.by_id.remove(&stay.id);
    }
    links::demand(world, pid, receiver, &stay.queues);
    if world.is_open(stay.stream, CALLEE) {
        world.end(stay.stream, CALLEE, stay.ended.unwrap_or(Ended::Silent));
    }
}

/// Ends a stay once what has gathered for it has gone out.
pub(crate) fn end(world: &mut World, pid: Pid, receiver: u64, how: Ended) {
    if let Some(stay) = world.replica(pid).and_then(|replica| replica.stays.get_mut(&receiver)) {
        stay.end(how);
        flush(world, pid, receiver);
    }
}

/// The stay's generation is not the session's any more: a resume tells whether it is over.
pub(crate) fn moved(world: &World) -> Ended {
    match world.mutant {
        Some(Mutant::MovedIsCalledGone) => Ended::Gone,
        _ => Ended::Moved,
    }
}

/// Sends what has gathered, a moment later, so that more may gather.
pub(crate) fn flush(world: &mut World, pid: Pid, receiver: u64) {
    let Some(stay) = world.replica(pid).and_then(|replica| replica.stays.get_mut(&receiver)) else { return };
    if std::mem::replace(&mut stay.leaving, true) {
        return;
    }
    let delay = world.span(Duration::ZERO, Duration::from_millis(2));
    world.after(delay, Target::Process(pid), "flush", move |world| {
        let Some(stay) = world.replica(pid).and_then(|replica| replica.stays.get_mut(&receiver)) else { return };
        stay.leaving = false;
        let (stream, messages, ended) = (stay.stream, stay.messages(), stay.ended);
        for message in messages {
            world.send(stream, CALLEE, message);
        }
        if ended.is_some() {
            leave(world, pid, receiver);
        }
    });
}

/// Tells the orchestrator at once when its stream is here.
pub(crate) fn hint_cancel(world: &mut World, pid: Pid, row: &TaskRow) {
    let (Some(session), Some(token)) = (row.session, row.token) else { return };
    let lease = LeaseRef { task: row.envelope.id, attempt: row.attempt, token };
    let Some(replica) = world.replica(pid) else { return };
    if let Some(receiver) = replica.by_id(session)
        && let Some(stay) = replica.stays.get_mut(&receiver)
    {
        stay.cancel([lease]);
        flush(world, pid, receiver);
    }
}
