//! From a match to an assignment: reserve a credit, claim with others in one statement, send. Mirrors
//! `services/distributor/src/claims.rs`.

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::id::TaskId;
use millrace_store::{Claim, Claimed};
use rand::Rng;

use crate::{
    database::token,
    links,
    message::{Match, Verdict},
    mutant::Mutant,
    net::StreamId,
    replica,
    world::{Pid, World},
};

/// A match that has a credit and is to be claimed.
pub(crate) struct ClaimItem {
    claim: Claim,
    receiver: u64,
    link: StreamId,
}

/// Takes the owner's matches: those with a free credit go to the gate, the others return.
pub(crate) fn matched(world: &mut World, pid: Pid, link: StreamId, queue: String, epoch: i64, matches: Vec<Match>) {
    let Some(incarnation) = world.replica(pid).and_then(|replica| replica.incarnation) else { return };
    let mut returned = Vec::new();
    for matched in matches {
        let random = world.rng.random();
        let Some(replica) = world.replica(pid) else { return };
        let stay = replica.stays.get_mut(&matched.receiver);
        let reserved = stay.and_then(|stay| {
            let session = (stay.id, stay.generation);
            stay.reserve(&queue, link, matched.seq).then_some(session)
        });
        let Some((session, generation)) = reserved else {
            returned.push((matched.task, Verdict::Returned));
            links::demand(world, pid, matched.receiver, std::slice::from_ref(&queue));
            continue;
        };
        let claim = Claim {
            task: matched.task,
            queue: queue.clone(),
            epoch,
            session,
            generation,
            token: token(incarnation, random),
        };
        replica.claims.waiting.push(ClaimItem { claim, receiver: matched.receiver, link });
    }
    if !returned.is_empty() {
        links::answer(world, pid, link, &queue, returned);
    }
    run(world, pid);
}

fn run(world: &mut World, pid: Pid) {
    let (mutant, random) = (world.mutant, world.rng.random::<u64>());
    let Some(items) = world.replica(pid).and_then(|replica| replica.claims.take()) else { return };
    let mut claims: Vec<Claim> = items.iter().map(|item| item.claim.clone()).collect();
    world.persist(
        pid,
        "claim",
        move |db, repeat| {
            if repeat && mutant == Some(Mutant::ClaimsAreRepeatedAnew) {
                for (claim, salt) in claims.iter_mut().zip(1..) {
                    claim.token = token(claim.token.incarnation(), random ^ salt);
                }
            }
            db.claim(&claims)
        },
        move |world, results| {
            match results {
                Ok(results) => settle(world, pid, items, results),
                Err(_) => give_up(world, pid, items),
            }
            if let Some(replica) = world.replica(pid) {
                replica.claims.busy = false;
            }
            run(world, pid);
        },
    );
}

fn settle(world: &mut World, pid: Pid, items: Vec<ClaimItem>, results: Vec<Claimed>) {
    let (now, moved) = (world.now, replica::moved(world));
    let mut answers: BTreeMap<(StreamId, String), Vec<(TaskId, Verdict)>> = BTreeMap::new();
    let mut touched = BTreeSet::new();
    let Some(replica) = world.replica(pid) else { return };
    for (ClaimItem { claim, receiver, link }, result) in items.into_iter().zip(results) {
        let stay = replica.stays.get_mut(&receiver);
        let verdict = match result {
            Claimed::Won(dispatch) => {
                // When the stream is over nothing is sent: the session finds it when it resumes.
                if let Some(stay) = stay {
                    stay.assign(&dispatch, now);
                }
                Verdict::Claimed
            }
            lost => {
                if let Some(stay) = stay {
                    stay.unreserve();
                    if lost == Claimed::SessionGone {
                        stay.end(moved);
                    }
                }
                match lost {
                    Claimed::GateClosed => Verdict::Refused,
                    Claimed::SessionGone => Verdict::Returned,
                    Claimed::Stale | Claimed::Won(_) => Verdict::Stale,
                }
            }
        };
        touched.insert(receiver);
        answers.entry((link, claim.queue)).or_default().push((claim.task, verdict));
    }
    for ((link, queue), answers) in answers {
        links::answer(world, pid, link, &queue, answers);
    }
    for receiver in touched {
        replica::flush(world, pid, receiver);
        links::demand_all(world, pid, receiver);
    }
}

fn give_up(world: &mut World, pid: Pid, items: Vec<ClaimItem>) {
    let now = world.now;
    for ClaimItem { claim, receiver, link } in items {
        if let Some(stay) = world.replica(pid).and_then(|replica| replica.stays.get_mut(&receiver)) {
            stay.unreserve();
            // A claim may have been committed all the same: the comparison of lists finds it (R1).
            stay.ask_for_held(now);
            replica::flush(world, pid, receiver);
        }
        links::answer(world, pid, link, &claim.queue, vec![(claim.task, Verdict::Returned)]);
        links::demand_all(world, pid, receiver);
    }
}
