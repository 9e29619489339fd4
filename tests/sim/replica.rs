//! A distributor replica: orchestrators' streams, submissions, and what the replica keeps in memory. It mirrors
//! `services/distributor`: `claims`, `ends`, `links` and `loops` are the parts of the same names there.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_core::{
    ROW_FORMAT,
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
};
use millrace_store::{
    Dispatch, Envelope, Heartbeat, HeartbeatResult, MemberKind, MemberRow, NewSession, NewTask, Resumed, SessionRow,
    StoreError, Submitted, TaskRow, Waiting,
};

use crate::{
    claims::ClaimItem,
    ends::{self, EndItem},
    host::Host,
    links::{self, Links},
    loops,
    message::{Ended, Hello, Message, Report},
    mutant::Mutant,
    net::{CALLEE, StreamId},
    people::{self, Answer},
    stay::Stay,
    world::{Pid, Role, Target, World},
};

/// How long an assignment may go unreported before it is sent again.
pub(crate) const ACCEPT_PATIENCE: Duration = Duration::from_secs(5);

const ROUTING_TRIES: u32 = 5;

/// How much longer a session's lease lasts in the database than its orchestrator is told: served time may count a tick that
/// began before the renewal, and one more when the database's clock is set forward a little (R16).
const LEASE_SLACK: Duration = Duration::from_millis(1_000);

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

struct Submission {
    task: NewTask,
    number: u32,
    tries: u32,
}

pub(crate) struct Replica {
    pub member: MemberId,
    pub incarnation: Option<i16>,
    pub members: Vec<MemberRow>,
    route_version: Option<i64>,
    pub stays: BTreeMap<u64, Stay>,
    by_id: BTreeMap<SessionId, u64>,
    by_stream: BTreeMap<StreamId, u64>,
    next_receiver: u64,
    pub links: Links,
    submits: Gate<Submission>,
    pub claims: Gate<ClaimItem>,
    pub ends: Gate<EndItem>,
    beats: Gate<(u64, u64)>,
    goodbyes: Vec<(Vec<LeaseRef>, Goodbye)>,
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
            false => greet(world, pid, stream, hello),
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
            run_beats(world, pid);
        }
        Message::Held(theirs) => compare(world, pid, receiver, theirs),
        Message::Goodbye => goodbye(world, pid, receiver),
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

fn leave(world: &mut World, pid: Pid, receiver: u64) {
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

fn greet(world: &mut World, pid: Pid, stream: StreamId, hello: Hello) {
    let endpoint = pid.index.to_string();
    if let Some((id, generation)) = hello.resume {
        world.call(
            pid,
            "resume session",
            move |db| db.resume_session(id, generation, &endpoint),
            move |world, resumed| match resumed {
                Ok(Resumed::Yes { session, held }) => welcome(world, pid, stream, hello, session, held),
                Ok(Resumed::Gone) => world.end(stream, CALLEE, Ended::Gone),
                Err(_) => world.end(stream, CALLEE, Ended::Unavailable),
            },
        );
        return;
    }
    let session = NewSession {
        id: SessionId(world.uuid()),
        name: hello.name.clone(),
        queues: hello.queues.clone(),
        slots: hello.slots as i32,
        labels: BTreeMap::new(),
        ttl_ms: (hello.ttl + LEASE_SLACK).as_millis() as i64,
        replica: endpoint,
        build: String::new(),
    };
    let (queues, previous) = (hello.queues.clone(), hello.previous);
    world.call(
        pid,
        "open session",
        move |db| {
            let known: BTreeSet<String> = db.store().queues()?.into_iter().map(|queue| queue.name).collect();
            if !queues.iter().all(|queue| known.contains(queue)) {
                return Ok(None);
            }
            if let Some(previous) = previous {
                db.close_session(previous, None)?;
            }
            db.open_session(&session).map(Some)
        },
        move |world, opened| match opened {
            Ok(Some(row)) => welcome(world, pid, stream, hello, row, Vec::new()),
            Ok(None) => world.end(stream, CALLEE, Ended::NoSuchQueue),
            Err(_) => world.end(stream, CALLEE, Ended::Unavailable),
        },
    );
}

fn welcome(world: &mut World, pid: Pid, stream: StreamId, hello: Hello, row: SessionRow, held: Vec<Dispatch>) {
    // The stream may have ended meanwhile; the orchestrator resumes again.
    if !world.is_open(stream, CALLEE) {
        return;
    }
    let (now, mutant) = (world.now, world.mutant);
    let Some(replica) = world.replica(pid) else { return };
    let id = row.session.id;
    let present = replica.by_id.get(&id).and_then(|receiver| replica.stays.get(receiver));
    if present.is_some_and(|present| present.generation > row.generation) {
        return world.end(stream, CALLEE, Ended::Moved);
    }
    replica.next_receiver += 1;
    let receiver = replica.next_receiver;
    let mut stay = Stay::new(receiver, id, row.generation, row.session.queues.clone(), stream);
    stay.mutant = mutant;
    let known: BTreeSet<LeaseRef> = held.iter().map(|dispatch| dispatch.lease).collect();
    stay.restore(&held, &hello.held, now);
    let missing: Vec<Dispatch> = held.into_iter().filter(|dispatch| !hello.held.contains(&dispatch.lease)).collect();
    let revoked = hello.held.difference(&known).copied().collect();
    stay.send_again(&missing, now);
    replica.stays.insert(receiver, stay);
    replica.by_stream.insert(stream, receiver);
    let earlier = replica.by_id.insert(id, receiver);
    let (generation, ttl) = (row.generation, Duration::from_millis(row.session.ttl_ms as u64) - LEASE_SLACK);
    world.send(stream, CALLEE, Message::Welcome { session: id, generation, ttl, revoked });
    flush(world, pid, receiver);
    if let Some(earlier) = earlier {
        end(world, pid, earlier, Ended::Silent);
    }
}

/// Makes the orchestrator's list of attempts and the database's equal (R1).
fn compare(world: &mut World, pid: Pid, receiver: u64, theirs: Vec<LeaseRef>) {
    let Some(stay) = world.replica(pid).and_then(|replica| replica.stays.get(&receiver)) else { return };
    let (id, read_at) = (stay.id, world.now);
    world.call(
        pid,
        "compare",
        move |db| db.store().held_by(id),
        move |world, database| {
            let (now, mutant) = (world.now, world.mutant);
            let Some(stay) = world.replica(pid).and_then(|replica| replica.stays.get_mut(&receiver)) else { return };
            let Ok(database) = database else { return stay.may_ask_again() };
            let missing = stay.reconcile(&database, &theirs, read_at, now, ACCEPT_PATIENCE);
            let again: Vec<Dispatch> = match mutant {
                Some(Mutant::NothingIsSentAgain) => Vec::new(),
                _ => database.into_iter().filter(|dispatch| missing.contains(&dispatch.lease)).collect(),
            };
            stay.send_again(&again, now);
            world.db.oracle.facts.resent += again.len() as u64;
            flush(world, pid, receiver);
        },
    );
}

/// What it still holds is handed back, through the same gate as its completions, then the session is closed.
fn goodbye(world: &mut World, pid: Pid, receiver: u64) {
    let Some(replica) = world.replica(pid) else { return };
    let Some(stay) = replica.stays.get(&receiver) else { return };
    let (id, generation, leases) = (stay.id, stay.generation, stay.leases());
    let then = Goodbye { receiver, id, generation };
    if leases.is_empty() {
        return close(world, pid, then);
    }
    replica.goodbyes.push((leases.clone(), then));
    let kind = millrace_core::retry::OutcomeKind::HandedBack;
    replica.ends.waiting.extend(leases.into_iter().map(|lease| EndItem { receiver, lease, kind }));
    ends::run(world, pid);
}

/// A session whose orchestrator leaves.
#[derive(Clone, Copy)]
pub(crate) struct Goodbye {
    receiver: u64,
    id: SessionId,
    generation: i64,
}

/// An end has been written, or could not be: sessions that wait for their last are closed.
pub(crate) fn handed_back(world: &mut World, pid: Pid, lease: LeaseRef, report: Report) {
    let Some(replica) = world.replica(pid) else { return };
    let mut over = Vec::new();
    replica.goodbyes.retain_mut(|(leases, goodbye)| {
        let before = leases.len();
        leases.retain(|held| *held != lease);
        let is_one = leases.len() < before;
        if is_one && (leases.is_empty() || report == Report::Unavailable) {
            over.push((*goodbye, report));
            return false;
        }
        true
    });
    for (goodbye, report) in over {
        match report {
            // The session stays open, and its lease ends by itself.
            Report::Unavailable => end(world, pid, goodbye.receiver, Ended::Unavailable),
            Report::Recorded | Report::Stale => close(world, pid, goodbye),
        }
    }
}

fn close(world: &mut World, pid: Pid, Goodbye { receiver, id, generation }: Goodbye) {
    world.call(
        pid,
        "goodbye",
        move |db| db.close_session(id, Some(generation)),
        move |world, _| {
            leave(world, pid, receiver);
            loops::reap(world, pid);
        },
    );
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

// ── Heartbeats ──────────────────────────────────────────────────────────────────────────────────────────────────────

fn run_beats(world: &mut World, pid: Pid) {
    let Some(replica) = world.replica(pid) else { return };
    let Some(mut items) = replica.beats.take() else { return };
    items.retain(|(receiver, _)| replica.stays.contains_key(receiver));
    let stays = items.iter().filter_map(|(receiver, _)| {
        replica.stays.get_mut(receiver).map(|stay| Heartbeat {
            session: stay.id,
            generation: stay.generation,
            accepted: stay.take_accepted().into_iter().map(|lease| (lease, None)).collect(),
        })
    });
    let batch: Vec<Heartbeat> = stays.collect();
    let given = batch.clone();
    world.persist(
        pid,
        "heartbeat",
        move |db, _| db.heartbeat(&given),
        move |world, results| {
            settle_beats(world, pid, items, batch, results);
            if let Some(replica) = world.replica(pid) {
                replica.beats.busy = false;
            }
            run_beats(world, pid);
        },
    );
}

fn settle_beats(
    world: &mut World,
    pid: Pid,
    items: Vec<(u64, u64)>,
    batch: Vec<Heartbeat>,
    results: Result<Vec<HeartbeatResult>, StoreError>,
) {
    let (away, moved) = (world.span(Duration::ZERO, Duration::from_secs(1)), moved(world));
    let results = results.ok();
    for (index, ((receiver, seq), beat)) in items.into_iter().zip(batch).enumerate() {
        let Some(replica) = world.replica(pid) else { return };
        let other = replica.other();
        let Some(stay) = replica.stays.get_mut(&receiver) else { continue };
        match results.as_ref().map(|results| &results[index]) {
            Some(result) if result.renewed => {
                stay.renewed(seq);
                stay.cancel(result.cancelling.iter().copied());
            }
            Some(_) => stay.end(moved),
            None => {
                stay.give_back_accepted(beat.accepted.into_iter().map(|(lease, _)| lease).collect());
                if other.is_some() {
                    stay.go_away(away, other);
                }
            }
        }
        flush(world, pid, receiver);
    }
}

// ── Submissions ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// A client's submission has arrived.
pub(crate) fn submit(world: &mut World, pid: Pid, number: u32) {
    let id = TaskId(world.uuid());
    let plan = world.people.plans[number as usize].clone();
    let not_before = people::not_before(world, &plan);
    let task = NewTask {
        envelope: Envelope {
            id,
            tenant: plan.tenant.into(),
            queue: plan.queue.into(),
            rank: plan.rank,
            executor: "process".into(),
            resource_class: String::new(),
            concurrency_key: String::new(),
            exclusive: plan.exclusive,
            timeout_ms: None,
            trace_context: String::new(),
            format: ROW_FORMAT,
            min_reader: ROW_FORMAT,
        },
        spec: number.to_le_bytes().to_vec(),
        request: plan.request,
        not_before,
        expire_after: plan.expire_after,
        route_version: 0,
    };
    put_submission(world, pid, Submission { task, number, tries: 0 });
}

fn put_submission(world: &mut World, pid: Pid, mut submission: Submission) {
    let Some(replica) = world.replica(pid) else { return };
    let Some(version) = replica.route_version else {
        world.call(
            pid,
            "routing",
            |db| db.store().routing(),
            move |world, routing| {
                match (routing, world.replica(pid)) {
                    (Ok(routing), Some(replica)) => replica.route_version = Some(routing.version),
                    _ => return people::answer(world, submission.number, Answer::Unavailable),
                }
                put_submission(world, pid, submission);
            },
        );
        return;
    };
    submission.task.route_version = version;
    replica.submits.waiting.push(submission);
    run_submits(world, pid);
}

fn run_submits(world: &mut World, pid: Pid) {
    let (mutant, renamed) = (world.mutant, world.uuid());
    let Some(batch) = world.replica(pid).and_then(|replica| replica.submits.take()) else { return };
    let mut tasks: Vec<NewTask> = batch.iter().map(|submission| submission.task.clone()).collect();
    world.persist(
        pid,
        "submit",
        move |db, repeat| {
            if repeat && mutant == Some(Mutant::SubmissionsAreRepeatedAnew) {
                let base = renamed.as_u128();
                for (index, task) in tasks.iter_mut().enumerate() {
                    task.envelope.id = TaskId(uuid::Uuid::from_u128(base + 1 + index as u128));
                    task.request = None;
                }
            }
            db.submit(&tasks, repeat)
        },
        move |world, stored| {
            settle_submits(world, pid, batch, stored);
            if let Some(replica) = world.replica(pid) {
                replica.submits.busy = false;
            }
            run_submits(world, pid);
        },
    );
}

fn settle_submits(world: &mut World, pid: Pid, batch: Vec<Submission>, stored: Result<Vec<Submitted>, StoreError>) {
    let results = stored.ok();
    for (index, mut submission) in batch.into_iter().enumerate() {
        let (id, number) = (submission.task.envelope.id, submission.number);
        let answer = match results.as_ref().map(|results| &results[index]) {
            Some(Submitted::Stored { ready_at_us, expires_at_us, .. }) => {
                if let Some(ready_at_us) = *ready_at_us {
                    let envelope = &submission.task.envelope;
                    let waiting = Waiting {
                        id,
                        tenant: envelope.tenant.clone(),
                        rank: envelope.rank,
                        ready_at_us,
                        expires_at_us: *expires_at_us,
                        min_reader: envelope.min_reader,
                    };
                    links::offer(world, pid, &envelope.queue, waiting);
                }
                Answer::Stored(id)
            }
            Some(Submitted::Existing(id)) => Answer::Stored(*id),
            Some(Submitted::RoutesChanged) if submission.tries < ROUTING_TRIES => {
                submission.tries += 1;
                if let Some(replica) = world.replica(pid) {
                    replica.route_version = None;
                }
                put_submission(world, pid, submission);
                continue;
            }
            Some(Submitted::RoutesChanged) => Answer::Unavailable,
            Some(Submitted::QueueClosed | Submitted::Refused(_)) => Answer::Refused,
            None if world.mutant == Some(Mutant::AcknowledgedBeforeTheCommit) => Answer::Stored(id),
            None => Answer::Unavailable,
        };
        people::answer(world, number, answer);
    }
}
