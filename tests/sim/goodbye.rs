//! An orchestrator that leaves. Mirrors `services/distributor/src/rpc/orchestrator.rs`.

use millrace_core::{held::LeaseRef, id::SessionId, retry::OutcomeKind};

use crate::{
    ends::{self, EndItem},
    loops,
    message::{Ended, Report},
    replica,
    world::{Pid, World},
};

/// What it still holds is handed back, through the same gate as its completions, then the session is closed.
pub(crate) fn goodbye(world: &mut World, pid: Pid, receiver: u64) {
    let Some(replica) = world.replica(pid) else { return };
    let Some(stay) = replica.stays.get(&receiver) else { return };
    let (id, generation, leases) = (stay.id, stay.generation, stay.leases());
    let then = Goodbye { receiver, id, generation };
    if leases.is_empty() {
        return close(world, pid, then);
    }
    replica.goodbyes.push((leases.clone(), then));
    let kind = OutcomeKind::HandedBack;
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
            Report::Unavailable => replica::end(world, pid, goodbye.receiver, Ended::Unavailable),
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
            replica::leave(world, pid, receiver);
            loops::reap(world, pid);
        },
    );
}
