//! From a match to an assignment: reserve a credit, claim with others in one statement, send.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use millrace_core::{id::TaskId, lease::Token};
use millrace_proto::queue::v1::{self as wire, answer::Verdict};
use millrace_runtime::{failpoint, status::Fault};
use millrace_store::{Claim, Claimed, StoreError};

use crate::{links::Link, sessions::Session, shared::Shared};

/// A match that has a credit and is to be claimed.
pub(crate) struct ClaimItem {
    claim: Claim,
    session: Arc<Session>,
    link: Arc<Link>,
}

/// How long sessions wait for which the claim gate had no room.
const CROWDED: Duration = Duration::from_millis(100);

/// How long a claim waits that the database fails for another reason than an outage, before it is matched again.
const FAILING: Duration = Duration::from_millis(500);

/// What one link is to be told of one queue.
type Answers = (Arc<Link>, Vec<(TaskId, Verdict)>);

/// Takes the owner's matches: those with a free credit go to the gate, the others return.
pub(crate) fn matched(shared: &Arc<Shared>, link: &Arc<Link>, matches: wire::Matches) {
    let Ok(cluster) = shared.cluster() else { return };
    let (queue, epoch) = (matches.queue, matches.epoch);
    let (mut returned, mut crowded_out) = (Vec::new(), Vec::new());
    for matched in matches.matches {
        let Ok(task) = TaskId::from_bytes(&matched.task_id) else { continue };
        let session = shared.sessions.by_receiver(matched.receiver);
        let Some(session) = session.filter(|session| session.reserve(&queue, link.id, matched.seq)) else {
            returned.push((task, Verdict::Returned));
            shared.links.demand(matched.receiver, [&queue]);
            continue;
        };
        let claim = Claim {
            task,
            queue: queue.clone(),
            epoch,
            session: session.id,
            generation: session.generation,
            token: Token::new(cluster.incarnation, rand::random()),
        };
        if let Err(item) = shared.claims.try_put(ClaimItem { claim, session, link: link.clone() }) {
            // The gate is full: the database is slower than the demand. The task waits where it was.
            item.session.unreserve();
            crowded_out.push(item.session.receiver);
            returned.push((task, Verdict::Returned));
        }
    }
    if !returned.is_empty() {
        link.answer_all(&queue, returned);
    }
    if !crowded_out.is_empty() {
        // Their credits count as spent with the owner until it hears of them again; a little later, so that tasks do not
        // go to and fro while the gate is full.
        let shared = shared.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CROWDED).await;
            for receiver in crowded_out {
                shared.links.demand(receiver, [&queue]);
            }
        });
    }
}

/// The claim gate.
pub(crate) fn run(shared: &Arc<Shared>, items: Vec<ClaimItem>) {
    if failpoint::hit("claim.before").is_some() {
        give_up(shared, items);
        return;
    }
    let claims: Vec<Claim> = items.iter().map(|item| item.claim.clone()).collect();
    let claimed = shared.persist("claim", claims.len(), |store, _| {
        let claimed = store.claim(&claims);
        match failpoint::hit("claim.after_commit") {
            Some(_) if claimed.is_ok() => Err(StoreError::UnknownOutcome("fail point".into())),
            _ => claimed,
        }
    });
    match claimed {
        Ok(results) => settle(shared, items, results),
        // One row that makes the server itself fail must not hold up its neighbours (R8).
        Err(error) if !error.is_transient() && items.len() > 1 => {
            let mut items = items;
            let rest = items.split_off(items.len() / 2);
            run(shared, items);
            run(shared, rest);
        }
        Err(error) => {
            if !error.is_transient() {
                std::thread::sleep(FAILING);
            }
            // A claim may have been committed all the same: the comparison of lists finds it (R1).
            for item in &items {
                item.session.ask_for_held(shared.now());
            }
            give_up(shared, items);
        }
    }
}

fn settle(shared: &Arc<Shared>, items: Vec<ClaimItem>, results: Vec<Claimed>) {
    let now = shared.now();
    let mut answers: HashMap<(u64, String), Answers> = HashMap::new();
    let mut touched: BTreeMap<u64, Arc<Session>> = BTreeMap::new();
    for (item, result) in items.into_iter().zip(results) {
        let ClaimItem { claim, session, link } = item;
        let verdict = match result {
            Claimed::Won(dispatch) => {
                session.assign(*dispatch, now);
                shared.metrics.claimed.inc();
                shared.watches.nudge(claim.task);
                Verdict::Claimed
            }
            Claimed::Stale => {
                session.unreserve();
                shared.metrics.stale_claims.inc();
                Verdict::Stale
            }
            Claimed::GateClosed => {
                session.unreserve();
                Verdict::Refused
            }
            Claimed::SessionGone => {
                session.unreserve();
                session.end(Some(crate::notices::session_moved()));
                Verdict::Returned
            }
        };
        touched.entry(session.receiver).or_insert(session);
        let key = (link.id, claim.queue);
        answers.entry(key).or_insert_with(|| (link, Vec::new())).1.push((claim.task, verdict));
    }
    for session in touched.values() {
        if failpoint::hit("send.before").is_some() {
            session.end(Some(Fault::unavailable("fail point", Duration::ZERO).into()));
        }
        session.flush();
    }
    for ((_, queue), (link, answers)) in answers {
        link.answer_all(&queue, answers);
    }
    for session in touched.values() {
        shared.links.demand(session.receiver, &session.queues);
    }
}

fn give_up(shared: &Arc<Shared>, items: Vec<ClaimItem>) {
    for item in items {
        item.session.unreserve();
        item.link.answer(&item.claim.queue, item.claim.task, Verdict::Returned);
        shared.links.demand(item.session.receiver, &item.session.queues);
    }
}
