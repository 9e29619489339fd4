//! The orchestrators' sessions whose streams are on this replica.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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
    /// Enters a session. An earlier stream of the same session on this replica ends.
    pub(crate) fn enter(&self, id: SessionId, generation: i64, name: String, queues: Vec<String>) -> Arc<Session> {
        let receiver = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let session =
            Arc::new(Session { receiver, id, generation, name, queues, state: Mutex::default(), wake: Notify::new() });
        let earlier = {
            let mut table = lock(&self.table);
            table.by_receiver.insert(receiver, session.clone());
            table.by_id.insert(id, receiver).and_then(|earlier| table.by_receiver.remove(&earlier))
        };
        if let Some(earlier) = earlier {
            earlier.end(Some(Fault::aborted("RESUMED", "the session was resumed on another stream").into()));
        }
        session
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
        let seq = state.credits.take().unwrap_or_else(|| state.credits.take_uncounted());
        state.outbox.assignments.push(convert::assignment(dispatch, seq, false));
    }

    /// Sends tasks again that the orchestrator may know already (R1).
    pub(crate) fn send_again(&self, dispatches: Vec<Dispatch>, now: Duration) {
        let mut state = lock(&self.state);
        for dispatch in dispatches {
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
    pub(crate) fn finish(&self, results: impl IntoIterator<Item = (Option<LeaseRef>, wire::CompletionResult)>) {
        let mut state = lock(&self.state);
        for (over, result) in results {
            if let Some(lease) = over {
                state.held.ended(lease);
            }
            state.outbox.results.push(result);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Compares a heartbeat's digest; asks for the list when it differs.
    pub(crate) fn check_digest(&self, count: u32, digest: u64) {
        let mut state = lock(&self.state);
        let same = state.held.len() == count as usize && state.held.digest() == digest;
        if !same && !state.asked_for_held {
            state.asked_for_held = true;
            state.outbox.send_held = true;
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Asks for the orchestrator's list because a write's outcome is not known.
    pub(crate) fn ask_for_held(&self) {
        let mut state = lock(&self.state);
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
        let known: BTreeSet<LeaseRef> = database.iter().map(|dispatch| dispatch.lease).collect();
        state.held.keep_known(&known, read_at);
        for dispatch in database {
            if !state.held.holds(dispatch.lease) {
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
        if !self.results.is_empty() {
            messages.push(Message::CompletionResults(wire::CompletionResults { results: self.results }));
        }
        if !self.assignments.is_empty() {
            messages.push(Message::Assignments(wire::Assignments { assignments: self.assignments }));
        }
        if !self.cancels.is_empty() {
            messages.push(Message::CancelAttempts(wire::CancelAttempts { leases: self.cancels }));
        }
        if !self.revoked.is_empty() {
            messages.push(Message::RevokeAttempts(wire::RevokeAttempts { leases: self.revoked }));
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
