//! The orchestrators' sessions whose streams are on this replica.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
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
use millrace_proto::distributor::v1::{self as wire, connect_orchestrator_response::Message};
use millrace_runtime::status::Fault;
use millrace_store::Dispatch;
use tokio::sync::Notify;
use tonic::Status;

use crate::{convert, shared::lock};

/// Heartbeats in a row that may differ while attempts come and go.
const DIFFERING: u32 = 6;

/// How much later than its answer was lost a write may still be committed: a statement's own bound, and some.
const LATE_COMMIT: Duration = Duration::from_secs(10);

/// Ended attempts that are remembered.
const ENDED_LATELY: usize = 10_000;

/// Items of one message. With a spec of the largest size beyond it, a message stays below the bound of either side.
const CHUNK_ITEMS: usize = 1_000;

/// Bytes after which a message of assignments is full.
const CHUNK_BYTES: usize = 1024 * 1024;

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
    demands: BTreeMap<String, Demand>,
    outbox: Outbox,
    /// The stream is over, with this status unless it ended well.
    ended: Option<Option<Status>>,
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

/// The numbers of one queue's demand on one link.
#[derive(Default)]
struct Demand {
    link: u64,
    seq: u64,
    acked: u64,
}

/// What is on its way to the orchestrator. Bounded: assignments by credits, the rest by what it holds.
#[derive(Default)]
struct Outbox {
    assignments: Vec<wire::Assignment>,
    results: Vec<wire::CompletionResult>,
    cancels: Vec<wire::LeaseRef>,
    revoked: Vec<wire::LeaseRef>,
    heartbeat: Option<u64>,
    send_held: bool,
    go_away: Option<wire::GoAway>,
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

    /// Takes a session out once its stream is over.
    pub(crate) fn leave(&self, session: &Session) {
        let mut table = lock(&self.table);
        table.by_receiver.remove(&session.receiver);
        if table.by_id.get(&session.id) == Some(&session.receiver) {
            table.by_id.remove(&session.id);
        }
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
    pub(crate) fn demand(&self, receiver: u64, queue: &str, link: u64) -> Option<DemandOf> {
        match self.by_receiver(receiver) {
            Some(session) => Some(session.demand(queue, link)),
            // It has left: the owner forgets its numbers.
            None => Some(DemandOf { seq: u64::MAX, credits: 0, acked: 0, closed: true }),
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
        let demand = state.demands.entry(queue.to_owned()).or_default();
        if demand.link != link {
            *demand = Demand { link, ..Demand::default() };
        }
        demand.seq += 1;
        DemandOf { seq: demand.seq, credits, acked: demand.acked, closed: false }
    }

    /// Notes that a match has come, and promises it a credit if one is free.
    pub(crate) fn reserve(&self, queue: &str, link: u64, seq: u64) -> bool {
        let mut state = lock(&self.state);
        match state.demands.get_mut(queue) {
            Some(demand) if demand.link == link => demand.acked = demand.acked.max(seq),
            _ => return false,
        }
        let free = state.ended.is_none() && state.serves(queue) && state.credits.available() > state.reserved;
        if free {
            state.reserved += 1;
        }
        free
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
    /// sent again, it would run again.
    pub(crate) fn send_again(&self, dispatches: Vec<Dispatch>, now: Duration) {
        let mut state = lock(&self.state);
        for dispatch in dispatches {
            if !state.held.holds(dispatch.lease) {
                continue;
            }
            if dispatch.state == millrace_core::task::State::Cancelling {
                state.outbox.cancels.push(convert::lease_ref(dispatch.lease));
            }
            state.held.assigned(dispatch.lease, now);
            let seq = state.credits.take_uncounted();
            state.outbox.assignments.push(convert::assignment(dispatch, seq, true));
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
            state.outbox.results.push(result);
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
        state.outbox.revoked.extend(difference.foreign.into_iter().map(convert::lease_ref));
        drop(state);
        self.wake.notify_one();
        difference.missing
    }

    /// Attempts that the orchestrator has not reported for too long (R1).
    pub(crate) fn overdue(&self, now: Duration, patience: Duration) -> Vec<LeaseRef> {
        lock(&self.state).held.overdue(now, patience)
    }

    /// Tells the orchestrator to stop attempts. Repeats do no harm.
    pub(crate) fn cancel(&self, leases: impl IntoIterator<Item = LeaseRef>) {
        let mut state = lock(&self.state);
        state.outbox.cancels.extend(leases.into_iter().map(convert::lease_ref));
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
    fn serves(&self, queue: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(queue))
    }
}

impl Outbox {
    fn messages(self) -> Vec<wire::ConnectOrchestratorResponse> {
        let mut messages = Vec::new();
        for results in self.results.chunks(CHUNK_ITEMS) {
            messages.push(Message::CompletionResults(wire::CompletionResults { results: results.to_vec() }));
        }
        for assignments in by_size(self.assignments) {
            messages.push(Message::Assignments(wire::Assignments { assignments }));
        }
        for leases in self.cancels.chunks(CHUNK_ITEMS) {
            messages.push(Message::CancelAttempts(wire::CancelAttempts { leases: leases.to_vec() }));
        }
        for leases in self.revoked.chunks(CHUNK_ITEMS) {
            messages.push(Message::RevokeAttempts(wire::RevokeAttempts { leases: leases.to_vec() }));
        }
        if let Some(seq) = self.heartbeat {
            messages.push(Message::HeartbeatResult(wire::HeartbeatResult { seq }));
        }
        if self.send_held {
            messages.push(Message::SendHeld(wire::SendHeld {}));
        }
        if let Some(go_away) = self.go_away {
            messages.push(Message::GoAway(go_away));
        }
        messages.into_iter().map(|message| wire::ConnectOrchestratorResponse { message: Some(message) }).collect()
    }
}

/// Assignments in messages that either side can take.
fn by_size(assignments: Vec<wire::Assignment>) -> Vec<Vec<wire::Assignment>> {
    let mut messages: Vec<Vec<wire::Assignment>> = Vec::new();
    let mut bytes = 0;
    for assignment in assignments {
        bytes += assignment.spec.len() + 256;
        match messages.last_mut() {
            Some(message) if bytes <= CHUNK_BYTES && message.len() < CHUNK_ITEMS => message.push(assignment),
            _ => {
                bytes = assignment.spec.len() + 256;
                messages.push(vec![assignment]);
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(bytes: usize) -> wire::Assignment {
        wire::Assignment { spec: vec![0; bytes].into(), ..Default::default() }
    }

    #[test]
    fn messages_stay_below_what_either_side_takes() {
        let large: Vec<_> = (0..100).map(|_| assignment(256 * 1024)).collect();
        let messages = by_size(large);
        assert_eq!(messages.iter().map(Vec::len).sum::<usize>(), 100);
        assert!(messages.iter().all(|message| message.iter().map(|one| one.spec.len()).sum::<usize>() <= CHUNK_BYTES));
        assert_eq!(by_size((0..2_500).map(|_| assignment(10)).collect()).len(), 3);
        assert_eq!(by_size(vec![assignment(5 * CHUNK_BYTES)]).len(), 1);
    }

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
        let dispatch = Dispatch {
            lease: LeaseRef {
                task: millrace_core::id::TaskId(uuid::Uuid::from_u128(7)),
                attempt: 1,
                token: millrace_core::lease::Token::new(1, 7),
            },
            queue: "default".into(),
            spec: Vec::new(),
            timeout_ms: None,
            trace_context: String::new(),
            dispatched_at_us: 0,
            state: millrace_core::task::State::Dispatched,
        };
        let at = Duration::from_secs;
        session.assign(dispatch.clone(), at(1));
        session.finish([(Some(dispatch.lease), wire::CompletionResult::default())], at(10));
        let missing = session.reconcile(std::slice::from_ref(&dispatch), &[], at(9), at(11), at(5));
        assert!(missing.is_empty() && session.leases().is_empty());
        session.send_again(vec![dispatch], at(12));
        assert!(session.leases().is_empty());
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
