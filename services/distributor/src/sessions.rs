//! The orchestrators' sessions whose streams are on this replica.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use millrace_core::{
    credit::Credits,
    held::{Held, LeaseRef},
    id::SessionId,
};
use millrace_proto::distributor::v1 as wire;
use millrace_runtime::status::Fault;
use millrace_store::Dispatch;
use tokio::sync::Notify;
use tonic::Status;

use crate::{convert, outbox::Outbox, shared::lock};

/// Heartbeats in a row that may differ while attempts come and go.
const DIFFERING: u32 = 6;

/// How much later than its answer was lost a write may still be committed: a statement's own bound, and some.
const LATE_COMMIT: Duration = Duration::from_secs(10);

/// Ended attempts that are remembered.
const ENDED_LATELY: usize = 10_000;

/// Results, cancellations and revocations that may wait for an orchestrator: as many as a session may hold attempts. Past it the
/// stream ends with RESOURCE_EXHAUSTED, and what waits is dropped: a resume compares the lists anew, and results that were
/// not answered are reported again.
const OUTBOX: usize = 100_000;

/// Every session on this replica.
#[derive(Default)]
pub(crate) struct Sessions {
    table: Mutex<Table>,
    next: AtomicU64,
}

#[derive(Default)]
struct Table {
    by_receiver: HashMap<u64, Arc<Session>>,
    by_id: HashMap<SessionId, u64>,
}

/// A session's stay on this replica: one stream.
pub(crate) struct Session {
    /// This replica's number for the stay, never used again.
    pub(crate) receiver: u64,
    pub(crate) id: SessionId,
    pub(crate) generation: i64,
    pub(crate) name: String,
    pub(crate) queues: Vec<String>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    /// What the orchestrator can take.
    credits: Credits,
    /// Credits promised to claims that are under way.
    reserved: u32,
    /// Only these queues may use the credits; none means all.
    only: Option<BTreeSet<String>>,
    held: Held,
    /// Accepted since the last heartbeat that was written.
    accepted: Vec<LeaseRef>,
    /// The last match seen of each queue on each link. Numbers of one link mean nothing on another.
    acked: HashMap<u64, BTreeMap<String, u64>>,
    /// The number of the last demand, whichever queue and link it was for: it only rises, so that an older demand changes nothing
    /// anywhere.
    demand_seq: u64,
    outbox: Outbox,
    /// The stream is over, with this status unless it ended well.
    ended: Option<Option<Status>>,
    /// The orchestrator reads too slowly for what it is to be told: nothing more gathers.
    overflowed: bool,
    /// It has named an attempt that cannot be one, which is said once.
    named_nonsense: bool,
    /// A list exchange has been asked for and has not been answered.
    asked_for_held: bool,
    /// Since when a write for this session may have been committed unseen; lists are compared until one comparison has read the
    /// database later than such a commit can come.
    unsure_since: Option<Duration>,
    /// Attempts that have ended, newest last: a list read before may still name them. At most [`ENDED_LATELY`]; an older one has long
    /// left every list that is still being compared.
    ended_lately: VecDeque<(Duration, LeaseRef)>,
    /// Raised by each attempt that comes or goes.
    changes: u64,
    /// What `changes` was when a digest first differed, and how many heartbeats in a row have differed.
    differed: Option<(u64, u32)>,
}

/// What a session can take from a queue now.
pub(crate) struct DemandOf {
    pub(crate) seq: u64,
    pub(crate) credits: u32,
    pub(crate) acked: u64,
    pub(crate) closed: bool,
}

impl Sessions {
    /// Enters a session. An earlier stream of the same session on this replica ends; none when a later one is here already.
    pub(crate) fn enter(
        &self,
        id: SessionId,
        generation: i64,
        name: String,
        queues: Vec<String>,
    ) -> Option<Arc<Session>> {
        let receiver = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let session =
            Arc::new(Session { receiver, id, generation, name, queues, state: Mutex::default(), wake: Notify::new() });
        let earlier = {
            let mut table = lock(&self.table);
            let present = table.by_id.get(&id).and_then(|receiver| table.by_receiver.get(receiver));
            if present.is_some_and(|present| present.generation > generation) {
                return None;
            }
            table.by_receiver.insert(receiver, session.clone());
            table.by_id.insert(id, receiver).and_then(|earlier| table.by_receiver.remove(&earlier))
        };
        if let Some(earlier) = earlier {
            earlier.end(Some(Fault::aborted("RESUMED", "the session was resumed on another stream").into()));
        }
        Some(session)
    }

    /// Takes a session out once its stream is over. True when the session itself has left with it: it was not resumed here, and
    /// had not been taken out before.
    pub(crate) fn leave(&self, session: &Session) -> bool {
        let mut table = lock(&self.table);
        table.by_receiver.remove(&session.receiver);
        let present = table.by_id.get(&session.id) == Some(&session.receiver);
        if present {
            table.by_id.remove(&session.id);
        }
        present
    }

    pub(crate) fn by_receiver(&self, receiver: u64) -> Option<Arc<Session>> {
        lock(&self.table).by_receiver.get(&receiver).cloned()
    }

    pub(crate) fn by_id(&self, id: SessionId) -> Option<Arc<Session>> {
        let table = lock(&self.table);
        table.by_id.get(&id).and_then(|receiver| table.by_receiver.get(receiver)).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        lock(&self.table).by_receiver.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.table).by_receiver.len()
    }

    /// What the receiver can take from the queue, numbered for this link.
    pub(crate) fn demand(&self, receiver: u64, queue: &str, link: u64) -> DemandOf {
        match self.by_receiver(receiver) {
            Some(session) => session.demand(queue, link),
            // It has left: the owner forgets its numbers.
            None => DemandOf { seq: u64::MAX, credits: 0, acked: 0, closed: true },
        }
    }

    /// A link is over, and its numbers with it.
    pub(crate) fn forget_link(&self, link: u64) {
        for session in self.all() {
            lock(&session.state).acked.remove(&link);
        }
    }
}

impl Session {
    /// Takes a grant of the orchestrator; false when it is old or impossible.
    pub(crate) fn grant(&self, grant: wire::Grant) -> bool {
        let mut state = lock(&self.state);
        let taken = state.credits.grant(grant.seq, grant.credits, grant.acked_seq);
        if taken {
            state.only = (!grant.queues.is_empty()).then(|| grant.queues.into_iter().collect());
        }
        taken
    }

    fn demand(&self, queue: &str, link: u64) -> DemandOf {
        let mut state = lock(&self.state);
        let credits = match state.ended.is_some() || !state.serves(queue) {
            true => 0,
            false => state.credits.available().saturating_sub(state.reserved),
        };
        state.demand_seq += 1;
        let seq = state.demand_seq;
        let of_link = state.acked.entry(link).or_default();
        let acked = match of_link.get(queue) {
            Some(acked) => *acked,
            None => *of_link.entry(queue.to_owned()).or_default(),
        };
        DemandOf { seq, credits, acked, closed: false }
    }

    /// Notes that a match has come, and promises it a credit if one is free. A match on a link over which no demand has gone was
    /// never asked for.
    pub(crate) fn reserve(&self, queue: &str, link: u64, seq: u64) -> bool {
        let mut state = lock(&self.state);
        match state.acked.get_mut(&link).and_then(|of_link| of_link.get_mut(queue)) {
            Some(acked) => *acked = (*acked).max(seq),
            None => return false,
        }
        let free = state.ended.is_none() && state.serves(queue) && state.credits.available() > state.reserved;
        if free {
            state.reserved += 1;
        }
        free
    }

    /// Takes no more matches from now on; returns how many claims are under way.
    pub(crate) fn take_no_more(&self) -> u32 {
        let mut state = lock(&self.state);
        state.only = Some(BTreeSet::new());
        state.reserved
    }

    /// Gives a promised credit back.
    pub(crate) fn unreserve(&self) {
        let mut state = lock(&self.state);
        state.reserved = state.reserved.saturating_sub(1);
    }

    /// Sends a claimed task. When the stream is over, nothing is sent: the session finds it when it resumes.
    pub(crate) fn assign(&self, dispatch: Dispatch, now: Duration) {
        let mut state = lock(&self.state);
        state.reserved = state.reserved.saturating_sub(1);
        if state.ended.is_some() {
            return;
        }
        state.held.assigned(dispatch.lease, now);
        state.changes += 1;
        let seq = state.credits.take().unwrap_or_else(|| state.credits.take_uncounted());
        state.outbox.assignments.push(convert::assignment(dispatch, seq, false));
    }

    /// Sends attempts again that the orchestrator may know already (R1). One that has ended since the caller looked is left out:
    /// sent again, it would run again. So is one that still waits here, or a stream that nobody reads would gather it again and
    /// again.
    pub(crate) fn send_again(&self, dispatches: Vec<Dispatch>, now: Duration) {
        let mut state = lock(&self.state);
        let waiting: HashSet<(String, i32)> =
            state.outbox.assignments.iter().map(|waiting| (waiting.task_id.clone(), waiting.attempt)).collect();
        for dispatch in dispatches {
            if !state.held.holds(dispatch.lease) {
                continue;
            }
            if dispatch.state == millrace_core::task::State::Cancelling {
                state.gather(|outbox| outbox.cancels.push(convert::lease_ref(dispatch.lease)));
            }
            state.held.assigned(dispatch.lease, now);
            if waiting.contains(&(dispatch.lease.task.to_string(), dispatch.lease.attempt)) {
                continue;
            }
            let seq = state.credits.take_uncounted();
            state.gather(|outbox| outbox.assignments.push(convert::assignment(dispatch, seq, true)));
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Fills in what the session holds by the database: named ones run, the others are to be sent again.
    pub(crate) fn restore(&self, held: &[Dispatch], named: &BTreeSet<LeaseRef>, now: Duration) {
        let mut state = lock(&self.state);
        for dispatch in held {
            state.held.assigned(dispatch.lease, now);
            if named.contains(&dispatch.lease) {
                state.held.accepted(dispatch.lease);
                if dispatch.state == millrace_core::task::State::Dispatched {
                    state.accepted.push(dispatch.lease);
                }
            }
        }
    }

    /// Notes that attempts run; returns those for which that is news.
    pub(crate) fn accept(&self, leases: impl IntoIterator<Item = LeaseRef>) -> Vec<LeaseRef> {
        let mut state = lock(&self.state);
        let news: Vec<LeaseRef> = leases.into_iter().filter(|lease| state.held.accepted(*lease)).collect();
        state.accepted.extend(&news);
        news
    }

    /// Whether the session holds this very attempt.
    pub(crate) fn holds(&self, lease: LeaseRef) -> bool {
        lock(&self.state).held.holds(lease)
    }

    /// What it holds.
    pub(crate) fn leases(&self) -> Vec<LeaseRef> {
        lock(&self.state).held.leases().collect()
    }

    /// Attempts accepted since the last time, for the heartbeat's write.
    pub(crate) fn take_accepted(&self) -> Vec<LeaseRef> {
        let mut state = lock(&self.state);
        let accepted = std::mem::take(&mut state.accepted);
        accepted.into_iter().filter(|lease| state.held.holds(*lease)).collect()
    }

    /// Puts them back because the write failed.
    pub(crate) fn give_back_accepted(&self, leases: Vec<LeaseRef>) {
        lock(&self.state).accepted.extend(leases);
    }

    /// Tells what became of completions, and forgets attempts that are over.
    pub(crate) fn finish(
        &self,
        results: impl IntoIterator<Item = (Option<LeaseRef>, wire::CompletionResult)>,
        now: Duration,
    ) {
        let mut state = lock(&self.state);
        for (over, result) in results {
            if let Some(lease) = over {
                state.held.ended(lease);
                state.changes += 1;
                state.ended_lately.push_back((now, lease));
                if state.ended_lately.len() > ENDED_LATELY {
                    state.ended_lately.pop_front();
                }
            }
            state.gather(|outbox| outbox.results.push(result));
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Compares a heartbeat's digest. A busy session's differs whenever something is on its way, so the list is asked for
    /// when it still differs at the next heartbeat with nothing having come or gone, or has differed for long.
    pub(crate) fn check_digest(&self, count: u32, digest: u64) {
        let mut state = lock(&self.state);
        let same = state.held.len() == count as usize && state.held.digest() == digest;
        let (changes, before) = (state.changes, state.differed);
        state.differed = (!same).then(|| (changes, before.map_or(1, |(_, times)| times + 1)));
        let lasting = before.is_some_and(|(then, times)| then == changes || times >= DIFFERING);
        if (state.unsure_since.is_some() || !same && lasting) && !state.asked_for_held {
            state.asked_for_held = true;
            state.outbox.send_held = true;
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Asks for the orchestrator's list because a write's outcome is not known.
    pub(crate) fn ask_for_held(&self, now: Duration) {
        let mut state = lock(&self.state);
        state.unsure_since = Some(now);
        state.asked_for_held = true;
        state.outbox.send_held = true;
        drop(state);
        self.wake.notify_one();
    }

    /// The comparison failed: the next heartbeat that differs asks again.
    pub(crate) fn may_ask_again(&self) {
        lock(&self.state).asked_for_held = false;
    }

    /// Makes the orchestrator's list and the database's equal: returns what must be sent again.
    pub(crate) fn reconcile(
        &self,
        database: &[Dispatch],
        theirs: &[LeaseRef],
        read_at: Duration,
        now: Duration,
        patience: Duration,
    ) -> Vec<LeaseRef> {
        let mut state = lock(&self.state);
        state.asked_for_held = false;
        state.differed = None;
        if state.unsure_since.is_some_and(|since| read_at >= since + LATE_COMMIT) {
            state.unsure_since = None;
        }
        let known: BTreeSet<LeaseRef> = database.iter().map(|dispatch| dispatch.lease).collect();
        state.held.keep_known(&known, read_at);
        let ended: BTreeSet<LeaseRef> =
            state.ended_lately.iter().rev().take_while(|(at, _)| *at >= read_at).map(|(_, lease)| *lease).collect();
        for dispatch in database {
            if !state.held.holds(dispatch.lease) && !ended.contains(&dispatch.lease) {
                state.held.assigned(dispatch.lease, now);
            }
        }
        let difference = state.held.compare(theirs, now, patience);
        state.gather(|outbox| outbox.revoked.extend(difference.foreign.into_iter().map(convert::lease_ref)));
        drop(state);
        self.wake.notify_one();
        difference.missing
    }

    /// Answers names that cannot be an attempt's: whoever holds such a thing is told to drop it, so that it does not name it for ever.
    pub(crate) fn refuse(&self, named: Vec<wire::LeaseRef>) {
        let Some(first) = named.first() else { return };
        let mut state = lock(&self.state);
        if !std::mem::replace(&mut state.named_nonsense, true) {
            tracing::warn!(
                session = %self.id, task = first.task_id, attempt = first.attempt,
                "an orchestrator names an attempt that cannot be one, and is told to drop it"
            );
        }
        state.gather(|outbox| outbox.revoked.extend(named));
        drop(state);
        self.wake.notify_one();
    }

    /// Attempts that the orchestrator has not reported for too long (R1).
    pub(crate) fn overdue(&self, now: Duration, patience: Duration) -> Vec<LeaseRef> {
        lock(&self.state).held.overdue(now, patience)
    }

    /// Tells the orchestrator to stop attempts. Repeats do no harm.
    pub(crate) fn cancel(&self, leases: impl IntoIterator<Item = LeaseRef>) {
        let mut state = lock(&self.state);
        state.gather(|outbox| outbox.cancels.extend(leases.into_iter().map(convert::lease_ref)));
        drop(state);
        self.wake.notify_one();
    }

    /// Says that the lease is renewed.
    pub(crate) fn renewed(&self, seq: u64) {
        lock(&self.state).outbox.heartbeat = Some(seq);
        self.wake.notify_one();
    }

    /// Asks the orchestrator to leave this replica.
    pub(crate) fn go_away(&self, go_away: wire::GoAway) {
        lock(&self.state).outbox.go_away = Some(go_away);
        self.wake.notify_one();
    }

    /// Ends the stream. What has gathered still goes out first.
    pub(crate) fn end(&self, status: Option<Status>) {
        lock(&self.state).ended.get_or_insert(status);
        self.wake.notify_one();
    }

    /// Whether more had gathered for the orchestrator than may wait: its stream is over, whether or not it reads that.
    pub(crate) fn has_overflowed(&self) -> bool {
        lock(&self.state).overflowed
    }

    /// Wakes the stream after assignments.
    pub(crate) fn flush(&self) {
        self.wake.notify_one();
    }

    /// The next messages for the orchestrator; waits for them. None at the end of the stream.
    pub(crate) async fn next(&self) -> Option<Vec<Result<wire::ConnectOrchestratorResponse, Status>>> {
        loop {
            let (outbox, ended) = {
                let mut state = lock(&self.state);
                (std::mem::take(&mut state.outbox), state.ended.clone())
            };
            let mut messages: Vec<Result<_, Status>> = outbox.messages().into_iter().map(Ok).collect();
            if !messages.is_empty() {
                return Some(messages);
            }
            match ended {
                Some(Some(status)) => {
                    // Said once: the next look finds the stream over without a status.
                    lock(&self.state).ended = Some(None);
                    messages.push(Err(status));
                    return Some(messages);
                }
                Some(None) => return None,
                None => self.wake.notified().await,
            }
        }
    }
}

impl State {
    /// Puts something into the outbox, or ends the stream because more waits than may.
    fn gather(&mut self, put: impl FnOnce(&mut Outbox)) {
        if self.overflowed {
            return;
        }
        put(&mut self.outbox);
        if self.outbox.waiting() > OUTBOX {
            self.overflowed = true;
            self.outbox = Outbox::default();
            let message = "the orchestrator does not read what it is sent; resume the session";
            let fault = Fault::exhausted("STREAM_NOT_READ", message, Duration::from_secs(1));
            self.ended.get_or_insert(Some(fault.into()));
        }
    }

    fn serves(&self, queue: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(queue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::dispatch;

    #[test]
    fn r1_a_doubt_outlives_a_comparison_that_came_too_early() {
        let sessions = Sessions::default();
        let id = SessionId(uuid::Uuid::from_u128(1));
        let session = sessions.enter(id, 1, "one".into(), vec!["default".into()]).unwrap();
        let asks = || std::mem::take(&mut lock(&session.state).outbox.send_held);
        session.ask_for_held(Duration::from_secs(100));
        assert!(asks());
        // The database did not answer: the lists are equal, and still the next heartbeat asks.
        session.may_ask_again();
        session.check_digest(0, 0);
        assert!(asks());
        session.reconcile(&[], &[], Duration::from_secs(101), Duration::from_secs(101), Duration::from_secs(5));
        session.check_digest(0, 0);
        assert!(asks(), "a late commit may still come");
        session.reconcile(&[], &[], Duration::from_secs(111), Duration::from_secs(111), Duration::from_secs(5));
        session.check_digest(0, 0);
        assert!(!asks());
    }

    #[test]
    fn r1_an_attempt_that_ended_while_the_database_was_read_is_not_sent_again() {
        let sessions = Sessions::default();
        let id = SessionId(uuid::Uuid::from_u128(1));
        let session = sessions.enter(id, 1, "one".into(), vec!["default".into()]).unwrap();
        let dispatch = dispatch(7);
        let at = Duration::from_secs;
        session.assign(dispatch.clone(), at(1));
        session.finish([(Some(dispatch.lease), wire::CompletionResult::default())], at(10));
        let missing = session.reconcile(std::slice::from_ref(&dispatch), &[], at(9), at(11), at(5));
        assert!(missing.is_empty() && session.leases().is_empty());
        session.send_again(vec![dispatch], at(12));
        assert!(session.leases().is_empty());
    }

    #[test]
    fn r1_an_attempt_that_still_waits_here_is_not_gathered_again() {
        let sessions = Sessions::default();
        let id = SessionId(uuid::Uuid::from_u128(1));
        let session = sessions.enter(id, 1, "one".into(), vec!["default".into()]).unwrap();
        session.assign(dispatch(7), Duration::ZERO);
        session.send_again(vec![dispatch(7)], Duration::from_secs(5));
        assert_eq!(lock(&session.state).outbox.assignments.len(), 1);
        std::mem::take(&mut lock(&session.state).outbox);
        session.send_again(vec![dispatch(7)], Duration::from_secs(10));
        assert_eq!(lock(&session.state).outbox.assignments.len(), 1);
    }

    #[test]
    fn r6_a_demand_flushed_on_an_old_link_leaves_the_numbers_of_the_new_one() {
        let sessions = Sessions::default();
        let id = SessionId(uuid::Uuid::from_u128(1));
        let session = sessions.enter(id, 1, "one".into(), vec!["default".into(), "b".into()]).unwrap();
        assert!(session.grant(wire::Grant { seq: 1, credits: 5, ..Default::default() }));
        let demand = |queue: &str, link| {
            let DemandOf { seq, credits, acked, .. } = sessions.demand(session.receiver, queue, link);
            (seq, credits, acked)
        };
        assert_eq!(demand("default", 1), (1, 5, 0));
        assert!(session.reserve("default", 1, 7));
        // The queue goes over to another link, whose matches are numbered anew.
        assert_eq!(demand("default", 2), (2, 4, 0));
        assert!(session.reserve("default", 2, 1));
        assert_eq!(demand("default", 1), (3, 3, 7), "flushed late, on the old link");
        assert_eq!(demand("default", 2), (4, 3, 1), "its number rises, and the match is still seen");
        assert!(session.reserve("default", 2, 2));
        assert!(!session.reserve("b", 2, 1), "nobody asked for it on this link");
        sessions.forget_link(2);
        assert!(!session.reserve("default", 2, 3), "the link is over");
        assert!(session.reserve("default", 1, 8));
        assert_eq!(demand("default", 3), (5, 1, 0));
    }

    #[tokio::test]
    async fn what_waits_for_an_orchestrator_that_does_not_read_is_bounded() {
        let sessions = Sessions::default();
        let id = SessionId(uuid::Uuid::from_u128(1));
        let session = sessions.enter(id, 1, "one".into(), Vec::new()).unwrap();
        let many = || std::iter::repeat_n((None, wire::CompletionResult::default()), OUTBOX / 2);
        session.finish(many(), Duration::ZERO);
        session.finish(many(), Duration::ZERO);
        assert!(!session.has_overflowed());
        session.finish([(None, wire::CompletionResult::default())], Duration::ZERO);
        assert!(session.has_overflowed());
        session.finish(many(), Duration::ZERO);
        assert_eq!(lock(&session.state).outbox.waiting(), 0, "nothing is kept any more");
        let last = session.next().await.unwrap().pop().unwrap().unwrap_err();
        assert_eq!(last.code(), tonic::Code::ResourceExhausted);
        assert!(session.next().await.is_none());
    }

    #[test]
    fn r1_a_session_that_leaves_takes_no_more_and_knows_the_claims_under_way() {
        let sessions = Sessions::default();
        let session =
            sessions.enter(SessionId(uuid::Uuid::from_u128(1)), 1, "one".into(), vec!["default".into()]).unwrap();
        assert!(session.grant(wire::Grant { seq: 1, credits: 2, ..Default::default() }));
        sessions.demand(session.receiver, "default", 1);
        assert!(session.reserve("default", 1, 1));
        assert_eq!(session.take_no_more(), 1);
        assert!(!session.reserve("default", 1, 1), "a credit is free, and nothing more is taken");
        session.unreserve();
        assert_eq!(session.take_no_more(), 0);
    }

    #[test]
    fn r2_a_late_resume_does_not_evict_a_later_one() {
        let sessions = Sessions::default();
        let id = SessionId(uuid::Uuid::from_u128(1));
        let later = sessions.enter(id, 3, "one".into(), Vec::new()).unwrap();
        assert!(sessions.enter(id, 2, "one".into(), Vec::new()).is_none());
        assert_eq!(sessions.by_id(id).unwrap().receiver, later.receiver);
        assert!(sessions.enter(id, 4, "one".into(), Vec::new()).is_some());
    }
}
