//! A host of matchers, in a queue service or a distributor: which queues are its own, and the exchange streams of those
//! whom it serves. Mirrors `services/queue/src/host`; one queue's part is in `matching`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_core::{
    READER_RANGE,
    id::MemberId,
    time::{Timestamp, micros},
};
use millrace_store::{MemberKind, MemberRow, OwnerRow, QueueRow};

use crate::{
    database::EPOCH_US,
    exchange,
    loops::MEMBER_TTL_MS,
    matching::{self, Matching},
    net::StreamId,
    policy::{Policy, Seen, Stance},
    world::{Pid, Role, World},
};

/// How long an ownership outlives its last renewal, in served time.
const LEASE_TTL_MS: i64 = 5_000;

pub(crate) struct Host {
    pub member: MemberId,
    pub kind: MemberKind,
    place: usize,
    policy: Policy,
    holding_back: bool,
    pub leaving: bool,
    pub owned: BTreeMap<String, Matching>,
    /// Open streams, with the queues whose matcher knows each, by the matcher's number.
    pub streams: BTreeMap<StreamId, BTreeMap<String, u64>>,
    number: u64,
    unreleased: BTreeSet<String>,
    /// Raised by each pause that comes through this process.
    pauses: u64,
    in_round: bool,
    again: bool,
    /// The database's time at the beginning of the world, as the last tick told.
    database_us: i64,
}

impl Host {
    pub(crate) fn new(world: &mut World, member: MemberId, kind: MemberKind, place: usize) -> Self {
        // Until the first tick it goes by its own clock, which may be off.
        let skew = world.span(Duration::ZERO, Duration::from_secs(4));
        Self {
            member,
            kind,
            place,
            policy: Policy::new(kind),
            holding_back: false,
            leaving: false,
            owned: BTreeMap::new(),
            streams: BTreeMap::new(),
            number: 0,
            unreleased: BTreeSet::new(),
            pauses: 0,
            in_round: false,
            again: false,
            database_us: EPOCH_US + 2_000_000 - micros(skew),
        }
    }

    /// The database's time, as far as it is known here.
    pub(crate) fn wall(&self, now: Duration) -> Timestamp {
        Timestamp(self.database_us + micros(now))
    }
}

/// Starts a queue service in a place.
pub(crate) fn start(world: &mut World, index: usize) {
    let member = MemberId(world.uuid());
    let host = Host::new(world, member, MemberKind::Queue, index);
    world.processes[index].role = Role::Owner(Box::new(host));
    let pid = Pid { index, life: world.processes[index].life };
    start_loops(world, pid);
    world.every(pid, Duration::from_secs(1), "queue membership", membership);
}

/// Starts what every host runs.
pub(crate) fn start_loops(world: &mut World, pid: Pid) {
    world.every(pid, Duration::from_millis(450), "tick", |world, pid| {
        world.call(
            pid,
            "tick",
            |db| db.tick(),
            move |world, tick| {
                let now = world.now;
                if let (Ok(tick), Some(host)) = (tick, world.host(pid)) {
                    host.database_us = tick.now.0 - micros(now);
                }
            },
        );
    });
    world.every(pid, Duration::from_secs(1), "ownership", round);
    world.every(pid, Duration::from_secs(1), "pauses", |world, pid| {
        world.call(
            pid,
            "lift pauses",
            |db| db.lift_pauses(),
            move |world, lifted| {
                if lifted.is_ok_and(|lifted| !lifted.is_empty()) {
                    round(world, pid);
                }
            },
        );
    });
    world.every(pid, Duration::from_secs(1), "drains", |world, pid| {
        world.call(pid, "drain queues", |db| db.store().drain_queues(3), |_, _| {});
    });
    world.every(pid, Duration::from_millis(250), "matchers", |world, pid| {
        let queues: Vec<String> = world.host(pid).map(|host| host.owned.keys().cloned().collect()).unwrap_or_default();
        for queue in queues {
            matching::maintain(world, pid, &queue);
        }
    });
}

fn membership(world: &mut World, pid: Pid) {
    let Some(host) = world.host(pid) else { return };
    let row = MemberRow {
        id: host.member,
        kind: MemberKind::Queue,
        endpoint: host.place.to_string(),
        build: String::new(),
        readers: READER_RANGE,
        seen_at_us: 0,
    };
    match host.holding_back {
        true => world.call(pid, "leave", move |db| db.store().remove_member(row.id), |_, _| {}),
        false => world.call(pid, "membership", move |db| db.store().renew_member(&row, MEMBER_TTL_MS), |_, _| {}),
    }
}

// ── Ownership (R5) ──────────────────────────────────────────────────────────────────────────────────────────────────

type Snapshot = (Vec<MemberRow>, Vec<OwnerRow>, Vec<QueueRow>);

/// One round: releases, renews, looks, decides. A failure ends the round and changes nothing more.
pub(crate) fn round(world: &mut World, pid: Pid) {
    let Some(host) = world.host(pid) else { return };
    if host.leaving {
        return;
    }
    if std::mem::replace(&mut host.in_round, true) {
        host.again = true;
        return;
    }
    let (member, pauses) = (host.member, host.pauses);
    let unreleased: Vec<String> = host.unreleased.iter().cloned().collect();
    let leases: Vec<(String, i64)> = host.owned.iter().map(|(queue, owned)| (queue.clone(), owned.epoch)).collect();
    world.call(
        pid,
        "renew queues",
        move |db| {
            if !unreleased.is_empty() {
                db.store().release_queues(member, &unreleased)?;
            }
            let lost = match leases.is_empty() {
                true => Vec::new(),
                false => db.store().renew_queues(member, &leases, LEASE_TTL_MS)?,
            };
            Ok((unreleased.clone(), lost))
        },
        move |world, renewed| {
            let (Ok((released, lost)), Some(host)) = (renewed, world.host(pid)) else { return finish(world, pid) };
            host.unreleased.retain(|queue| !released.contains(queue));
            drop_matchers(world, pid, &lost);
            let read = |db: &mut crate::database::Database| -> Result<Snapshot, _> {
                Ok((db.store().members()?, db.store().owners()?, db.store().routing()?.queues))
            };
            world.call(pid, "ownership", read, move |world, snapshot| match snapshot {
                Ok(snapshot) => decide(world, pid, snapshot, pauses),
                Err(_) => finish(world, pid),
            });
        },
    );
}

fn finish(world: &mut World, pid: Pid) {
    let Some(host) = world.host(pid) else { return };
    host.in_round = false;
    if std::mem::take(&mut host.again) {
        round(world, pid);
    }
}

fn decide(world: &mut World, pid: Pid, (members, owners, queues): Snapshot, pauses: u64) {
    let now = world.now;
    let Some(host) = world.host(pid) else { return };
    let lives = |kind| members.iter().any(|member| member.kind == kind);
    let seen = Seen {
        queue_service: lives(MemberKind::Queue),
        distributor: lives(MemberKind::Distributor),
        streams: host.streams.len(),
        owns: !host.owned.is_empty(),
    };
    let stance = host.policy.next(now, seen);
    host.holding_back = stance == Stance::HoldBack;
    match stance {
        Stance::GiveUp | Stance::HoldBack => {
            let all: Vec<String> = host.owned.keys().cloned().collect();
            give_up(world, pid, &all);
            finish(world, pid);
        }
        Stance::Keep => {
            apply(world, pid, &queues, pauses);
            finish(world, pid);
        }
        Stance::Take => {
            apply(world, pid, &queues, pauses);
            take(world, pid, &owners, queues);
        }
    }
}

/// Follows the rows of the queues that are ours: their pauses, another epoch in the gate, their deletion.
fn apply(world: &mut World, pid: Pid, queues: &[QueueRow], pauses: u64) {
    let Some(host) = world.host(pid) else { return };
    let overtaken = host.pauses != pauses;
    host.again |= overtaken;
    let (mut gone, mut set) = (Vec::new(), Vec::new());
    for (queue, owned) in &mut host.owned {
        match queues.iter().find(|row| row.name == *queue) {
            Some(row) if row.epoch == owned.epoch => {
                if !overtaken {
                    owned.matcher.set_paused(row.pause.is_some());
                    set.push(queue.clone());
                }
            }
            _ => gone.push(queue.clone()),
        }
    }
    drop_matchers(world, pid, &gone);
    for queue in set {
        matching::work(world, pid, &queue);
    }
}

/// Takes the queues that nobody owns, and those that are ours by a call whose answer was lost.
fn take(world: &mut World, pid: Pid, owners: &[OwnerRow], mut queues: Vec<QueueRow>) {
    let Some(host) = world.host(pid) else { return };
    let member = host.member;
    let owner = |queue: &str| {
        owners.iter().find(|row| row.queue == queue).and_then(|row| row.owner.as_ref()).map(|(owner, _)| *owner)
    };
    queues.retain(|row| owner(&row.name).is_none_or(|owner| owner == member) && !host.owned.contains_key(&row.name));
    take_next(world, pid, queues);
}

fn take_next(world: &mut World, pid: Pid, mut queues: Vec<QueueRow>) {
    let (Some(row), Some(host)) = (queues.pop(), world.host(pid)) else { return finish(world, pid) };
    let (member, endpoint, queue) = (host.member, host.place.to_string(), row.name.clone());
    world.call(
        pid,
        "own queue",
        move |db| db.own_queue(&queue, member, &endpoint, LEASE_TTL_MS),
        move |world, epoch| {
            if let Ok(Some(epoch)) = epoch {
                start_matcher(world, pid, &row, epoch);
            }
            take_next(world, pid, queues);
        },
    );
}

fn start_matcher(world: &mut World, pid: Pid, row: &QueueRow, epoch: i64) {
    let limits = world.config.limits;
    let Some(host) = world.host(pid) else { return };
    host.number += 1;
    let matching = Matching::new(limits, epoch, host.number, row.pause.is_some());
    host.owned.insert(row.name.clone(), matching);
    exchange::announce(world, pid);
    matching::work(world, pid, &row.name);
}

fn give_up(world: &mut World, pid: Pid, queues: &[String]) {
    drop_matchers(world, pid, queues);
    let Some(host) = world.host(pid) else { return };
    host.unreleased.extend(queues.iter().cloned());
    let (member, queues): (_, Vec<String>) = (host.member, host.unreleased.iter().cloned().collect());
    if queues.is_empty() {
        return;
    }
    world.call(
        pid,
        "release queues",
        move |db| db.store().release_queues(member, &queues).map(|()| queues.clone()),
        move |world, released| {
            if let (Ok(released), Some(host)) = (released, world.host(pid)) {
                host.unreleased.retain(|queue| !released.contains(queue));
            }
        },
    );
}

fn drop_matchers(world: &mut World, pid: Pid, queues: &[String]) {
    let Some(host) = world.host(pid) else { return };
    let before = host.owned.len();
    host.owned.retain(|queue, _| !queues.contains(queue));
    if host.owned.len() != before {
        exchange::announce(world, pid);
    }
}

/// Gives everything up because the process stops.
pub(crate) fn leave(world: &mut World, pid: Pid) {
    let Some(host) = world.host(pid) else { return };
    host.leaving = true;
    let all: Vec<String> = host.owned.keys().cloned().collect();
    give_up(world, pid, &all);
}

/// The queue has been paused or resumed through this process.
pub(crate) fn set_paused(world: &mut World, pid: Pid, queue: &str, paused: bool) {
    let Some(host) = world.host(pid) else { return };
    host.pauses += 1;
    if let Some(owned) = host.owned.get_mut(queue) {
        owned.matcher.set_paused(paused);
    }
    round(world, pid);
}
