//! An orchestrator's hello, and the comparison of lists. Mirrors `services/distributor/src/rpc/orchestrator.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_core::{held::LeaseRef, id::SessionId, served::LEASE_SLACK};
use millrace_store::{Dispatch, NewSession, Resumed, SessionRow};

use crate::{
    message::{Ended, Hello, Message},
    mutant::Mutant,
    net::{CALLEE, StreamId},
    replica,
    stay::Stay,
    world::{Pid, World},
};

/// Opens or resumes the session.
pub(crate) fn greet(world: &mut World, pid: Pid, stream: StreamId, hello: Hello) {
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
        ttl_ms: (hello.ttl + slack(world)).as_millis() as i64,
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
    let (now, mutant, slack) = (world.now, world.mutant, slack(world));
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
    let (generation, ttl) = (row.generation, Duration::from_millis(row.session.ttl_ms as u64) - slack);
    world.db.oracle.told_lease(id, ttl);
    world.send(stream, CALLEE, Message::Welcome { session: id, generation, ttl, revoked });
    replica::flush(world, pid, receiver);
    if let Some(earlier) = earlier {
        replica::end(world, pid, earlier, Ended::Silent);
    }
}

/// How much longer a lease is than its orchestrator is told.
fn slack(world: &World) -> Duration {
    match world.mutant {
        Some(Mutant::LeasesHaveNoSlack) => Duration::ZERO,
        _ => LEASE_SLACK,
    }
}

/// Makes the orchestrator's list of attempts and the database's equal (R1).
pub(crate) fn compare(world: &mut World, pid: Pid, receiver: u64, theirs: Vec<LeaseRef>) {
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
            let missing = stay.reconcile(&database, &theirs, read_at, now, replica::ACCEPT_PATIENCE);
            let again: Vec<Dispatch> = match mutant {
                Some(Mutant::NothingIsSentAgain) => Vec::new(),
                _ => database.into_iter().filter(|dispatch| missing.contains(&dispatch.lease)).collect(),
            };
            let sent = stay.send_again(&again, now);
            world.db.oracle.facts.resent += sent;
            replica::flush(world, pid, receiver);
        },
    );
}
