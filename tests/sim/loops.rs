//! A replica's background loops: membership, links, the waker, the reaper, and what is sent again. Mirrors
//! `services/distributor/src/tasks`.

use std::{collections::BTreeSet, time::Duration};

use millrace_core::{READER_RANGE, held::LeaseRef, retry::OutcomeKind};
use millrace_store::{Dispatch, HeldRow, MemberKind, MemberRow};

use crate::{
    ends, links,
    message::Report,
    mutant::Mutant,
    replica,
    world::{Pid, World},
};

/// How long the membership outlives its last renewal, in served time.
pub(crate) const MEMBER_TTL_MS: i64 = 5_000;

/// Rows of one statement: few, so that full pages come.
const PAGE: i64 = 8;

pub(crate) fn start(world: &mut World, pid: Pid) {
    world.every(pid, Duration::from_secs(1), "membership", membership);
    world.every(pid, Duration::from_millis(700), "owners", links::look);
    world.every(pid, Duration::from_millis(500), "waker", wake);
    world.every(pid, Duration::from_millis(800), "reaper", reap);
    world.every(pid, Duration::from_secs(1), "resend", resend);
}

/// Says that the replica lives, and learns who else does.
fn membership(world: &mut World, pid: Pid) {
    let Some(replica) = world.replica(pid) else { return };
    if replica.draining {
        return;
    }
    let row = MemberRow {
        id: replica.member,
        kind: MemberKind::Distributor,
        endpoint: pid.index.to_string(),
        build: String::new(),
        readers: READER_RANGE,
        seen_at_us: 0,
    };
    world.call(
        pid,
        "membership",
        move |db| {
            let cluster = db.store().cluster()?;
            db.store().renew_member(&row, MEMBER_TTL_MS)?;
            Ok((cluster, db.store().members()?))
        },
        move |world, read| {
            let Ok((cluster, members)) = read else { return };
            let Some(replica) = world.replica(pid) else { return };
            replica.members = members;
            if replica.incarnation.replace(cluster.incarnation).is_none() {
                links::look(world, pid);
            }
        },
    );
}

/// Queues tasks whose moment has come, and ends those whose deadline has passed.
fn wake(world: &mut World, pid: Pid) {
    world.call(
        pid,
        "wake",
        |db| db.wake(PAGE),
        move |world, woken| {
            for (queue, waiting) in woken.unwrap_or_default() {
                links::offer(world, pid, &queue, waiting);
            }
        },
    );
    world.call(pid, "expire", |db| db.expire(PAGE), |_, _| {});
}

/// Ends sessions whose lease has run out, and gives their tasks another attempt (R2).
pub(crate) fn reap(world: &mut World, pid: Pid) {
    world.call(
        pid,
        "reap",
        |db| db.reap_sessions(PAGE),
        move |world, dead| {
            let Ok(dead) = dead else { return };
            for session in dead {
                let here = world.replica(pid).and_then(|replica| replica.by_id(session));
                if let Some(receiver) = here {
                    replica::end(world, pid, receiver, replica::moved(world));
                }
            }
            if world.mutant != Some(Mutant::OrphansAreLeft) {
                orphans(world, pid);
            }
        },
    );
}

/// Every sweep looks at all sessions that are over: a replica may have died between ending one and putting its tasks back.
fn orphans(world: &mut World, pid: Pid) {
    world.call(
        pid,
        "orphans",
        |db| db.store().orphans(PAGE),
        move |world, orphans: Result<Vec<HeldRow>, _>| {
            let Ok(orphans) = orphans else { return };
            let full = orphans.len() as i64 == PAGE;
            if orphans.is_empty() {
                return;
            }
            let ended = orphans.into_iter().map(|row| (row.lease, OutcomeKind::Lost)).collect();
            ends::record(world, pid, ended, move |world, reports| {
                if full && !reports.contains(&Report::Unavailable) {
                    self::orphans(world, pid);
                }
            });
        },
    );
}

/// Sends assignments again that no orchestrator has reported as running (R1).
fn resend(world: &mut World, pid: Pid) {
    if world.mutant == Some(Mutant::NothingIsSentAgain) {
        return;
    }
    let now = world.now;
    let Some(replica) = world.replica(pid) else { return };
    let mut late = Vec::new();
    for stay in replica.stays.values_mut() {
        let overdue: BTreeSet<LeaseRef> = stay.overdue(now, replica::ACCEPT_PATIENCE).into_iter().collect();
        if !overdue.is_empty() {
            late.push((stay.receiver, stay.id, overdue));
        }
    }
    for (receiver, id, overdue) in late {
        world.call(
            pid,
            "resend",
            move |db| db.store().held_by(id),
            move |world, held| {
                let (Ok(held), now) = (held, world.now) else { return };
                let again: Vec<Dispatch> =
                    held.into_iter().filter(|dispatch| overdue.contains(&dispatch.lease)).collect();
                let stay = world.replica(pid).and_then(|replica| replica.stays.get_mut(&receiver));
                let sent = stay.map_or(0, |stay| stay.send_again(&again, now));
                world.db.oracle.facts.resent += sent;
                replica::flush(world, pid, receiver);
            },
        );
    }
}
