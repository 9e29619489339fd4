//! From a match to an assignment: reserve a credit, claim with others in one statement, send.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use millrace_core::{
    foreign::{Defect, HELD_ATTEMPT},
    held::LeaseRef,
    id::TaskId,
    lease::Token,
};
use millrace_proto::queue::v1::{self as wire, answer::Verdict};
use millrace_runtime::{failpoint, status::Fault};
use millrace_store::{Claim, Claimed, Dispatch, StoreError};

use crate::{links::Link, sessions::Session, shared::Shared};

/// A match that has a credit and is to be claimed. Dropped before that is decided, be it because its batch panicked, it gives
/// the credit back and returns the match: neither may leak (R6).
pub(crate) struct ClaimItem {
    claim: Claim,
    session: Arc<Session>,
    link: Arc<Link>,
    /// Weak, so that what waits in the gate does not keep the replica.
    shared: Weak<Shared>,
    open: bool,
}

impl Drop for ClaimItem {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        self.session.unreserve();
        self.link.answer(&self.claim.queue, self.claim.task, Verdict::Returned);
        if let Some(shared) = self.shared.upgrade() {
            // The claim may have been committed all the same: the comparison of lists finds it (R1).
            self.session.ask_for_held(shared.now());
            shared.links.demand(self.session.receiver, &self.session.queues);
        }
    }
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
        let item = ClaimItem { claim, session, link: link.clone(), shared: Arc::downgrade(shared), open: true };
        if let Err(mut item) = shared.claims.try_put(item) {
            // The gate is full: the database is slower than the demand. The task waits where it was.
            item.open = false;
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
    let mut failing = Vec::new();
    run_part(shared, items, &mut failing);
    if !failing.is_empty() {
        // Matched again at once, they would fail again at once. They wait aside, so that the gate does not.
        let aside = move || {
            std::thread::sleep(FAILING);
            drop(failing);
        };
        let _ = std::thread::Builder::new().name("failing-claims".into()).spawn(aside);
    }
}

/// Claims; what the database fails for another reason than an outage is put into `failing`. Dropped, items give everything back.
fn run_part(shared: &Arc<Shared>, mut items: Vec<ClaimItem>, failing: &mut Vec<ClaimItem>) {
    if failpoint::hit("claim.before").is_some() {
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
        Err(error) if error.is_transient() => {}
        // One row that makes the server itself fail must not hold up its neighbours (R8).
        Err(_) if items.len() > 1 => {
            let rest = items.split_off(items.len() / 2);
            run_part(shared, items, failing);
            run_part(shared, rest, failing);
        }
        Err(_) => failing.append(&mut items),
    }
}

/// Attempts that an orchestrator can be sent: it names them in whatever it says of them, so one with an impossible number would stand
/// in the way of its neighbours. The rows of the others are examined.
pub(crate) fn assignable(shared: &Shared, held: Vec<Dispatch>) -> Vec<Dispatch> {
    held.into_iter().filter(|dispatch| can_be_named(shared, dispatch.lease)).collect()
}

fn can_be_named(shared: &Shared, lease: LeaseRef) -> bool {
    let named = HELD_ATTEMPT.hold(lease.attempt);
    if !named {
        let error = format!("holds {}, not {}", lease.attempt, HELD_ATTEMPT.expected);
        shared.store().foreign().unreadable(Some(lease.task), &Defect::new("attempt", error));
    }
    named
}

fn settle(shared: &Arc<Shared>, items: Vec<ClaimItem>, results: Vec<Claimed>) {
    let now = shared.now();
    let mut answers: HashMap<(u64, String), Answers> = HashMap::new();
    let mut touched: BTreeMap<u64, Arc<Session>> = BTreeMap::new();
    for (mut item, result) in items.into_iter().zip(results) {
        item.open = false;
        let (claim, session, link) = (&mut item.claim, item.session.clone(), item.link.clone());
        let verdict = match result {
            // Nobody could name it. The row stays claimed until it is set aside.
            Claimed::Won(dispatch) if !can_be_named(shared, dispatch.lease) => {
                session.unreserve();
                Verdict::Stale
            }
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
        let key = (link.id, std::mem::take(&mut claim.queue));
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

#[cfg(test)]
mod tests {
    use millrace_core::id::MemberId;
    use millrace_store::Store;
    use uuid::Uuid;

    use super::*;
    use crate::{fixture, gate::Gate, links};

    #[tokio::test]
    async fn r10_an_attempt_that_cannot_be_named_is_not_assigned_and_its_row_is_examined() {
        let replica = fixture::replica();
        let (shared, session) = (&replica.shared, replica.session(&["default"], 2));
        let link = links::tests::linked(shared, MemberId(Uuid::from_u128(9)), &[("default", 5)]);
        links::tests::sent(shared, &link);
        let (bad, good) = (fixture::dispatch(1), fixture::dispatch(2));
        let bad = Dispatch { lease: LeaseRef { attempt: -2, ..bad.lease }, ..bad };
        let item = |dispatch: &Dispatch, seq| {
            assert!(session.reserve("default", link.id, seq));
            let LeaseRef { task, token, .. } = dispatch.lease;
            let (queue, id) = ("default".to_owned(), session.id);
            let claim = Claim { task, queue, epoch: 5, session: id, generation: 1, token };
            let (session, link) = (session.clone(), link.clone());
            ClaimItem { claim, session, link, shared: Arc::downgrade(shared), open: true }
        };
        let won = |dispatch: &Dispatch| Claimed::Won(Box::new(dispatch.clone()));
        settle(shared, vec![item(&bad, 1), item(&good, 2)], vec![won(&bad), won(&good)]);
        assert_eq!(session.leases(), [good.lease]);
        assert_eq!(replica.store.foreign().take_suspects(10), [bad.lease.task]);
        assert!(session.reserve("default", link.id, 3), "its credit is free again");
        assert_eq!(assignable(shared, vec![bad, good.clone()]), [good]);
    }

    #[tokio::test]
    async fn r6_a_batch_that_panics_gives_its_credits_back_and_returns_its_matches() {
        let replica = fixture::replica();
        let (shared, session) = (&replica.shared, replica.session(&["default"], 2));
        let link = links::tests::linked(shared, MemberId(Uuid::from_u128(9)), &[("default", 5)]);
        assert_eq!(links::tests::sent(shared, &link), ["demand of 2"]);
        let item = |seq| {
            assert!(session.reserve("default", link.id, seq));
            let claim = Claim {
                task: TaskId(Uuid::from_u128(seq.into())),
                queue: "default".into(),
                epoch: 5,
                session: session.id,
                generation: 1,
                token: Token::new(1, seq),
            };
            let (session, link) = (session.clone(), link.clone());
            ClaimItem { claim, session, link, shared: Arc::downgrade(shared), open: true }
        };
        let (ran, seen) = std::sync::mpsc::channel();
        let gate = Gate::start("test", 10, 10, move |batch: Vec<ClaimItem>| {
            // Sent when the batch is dropped, after its items.
            let _ran = scopeguard(ran.clone());
            let _batch = batch;
            panic!("a defect");
        })
        .unwrap();
        assert!(gate.try_put(item(1)).is_ok());
        seen.recv().unwrap();
        assert!(gate.try_put(item(2)).is_ok());
        seen.recv().unwrap();
        assert_eq!(links::tests::sent(shared, &link), ["2 returned", "demand of 2"]);
        assert!(session.reserve("default", link.id, 3) && session.reserve("default", link.id, 4), "both are free");
        // What the batch had committed is found by comparing lists.
        let asked = session.next().await.unwrap();
        assert!(format!("{asked:?}").contains("SendHeld"), "{asked:?}");
    }

    /// Sends when it is dropped.
    fn scopeguard(sender: std::sync::mpsc::Sender<()>) -> impl Drop {
        struct Guard(std::sync::mpsc::Sender<()>);
        impl Drop for Guard {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        Guard(sender)
    }
}
