//! A session's stay on a distributor replica, as `services/distributor/src/sessions.rs` keeps it: credits, attempts held,
//! and what is on its way to the orchestrator. No stream, no clock: what is to be sent waits in the outbox.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use millrace_core::{
    credit::Credits,
    held::{Held, LeaseRef},
    id::SessionId,
    task::State,
};
use millrace_store::Dispatch;

use crate::{
    message::{Assignment, Demand, Ended, Message, Report},
    mutant::Mutant,
    net::StreamId,
    people,
};

/// Heartbeats in a row that may differ while attempts come and go.
const DIFFERING: u32 = 6;

/// How much later than its answer was lost a write may still be committed.
const LATE_COMMIT: Duration = Duration::from_secs(10);

/// One stream of a session.
pub(crate) struct Stay {
    pub receiver: u64,
    pub id: SessionId,
    pub generation: i64,
    pub queues: Vec<String>,
    pub stream: StreamId,
    pub mutant: Option<Mutant>,
    credits: Credits,
    reserved: u32,
    held: Held,
    accepted: Vec<LeaseRef>,
    /// Attempts that have ended, newest last: a list read before may still name them.
    ended_lately: VecDeque<(Duration, LeaseRef)>,
    /// The last match seen of each queue on each link.
    acked: BTreeMap<(String, StreamId), u64>,
    demand_seq: u64,
    outbox: Outbox,
    pub ended: Option<Ended>,
    asked_for_held: bool,
    /// Since when a write may have been committed unseen.
    unsure_since: Option<Duration>,
    /// Raised by each attempt that comes or goes.
    changes: u64,
    /// What `changes` was when a digest last differed, and how many heartbeats in a row have differed.
    differed: Option<(u64, u32)>,
    /// What is in the outbox leaves soon.
    pub leaving: bool,
}

#[derive(Default)]
struct Outbox {
    assignments: Vec<Assignment>,
    results: Vec<(LeaseRef, Report)>,
    cancels: Vec<LeaseRef>,
    revoked: Vec<LeaseRef>,
    heartbeat: Option<u64>,
    send_held: bool,
    go_away: Option<(Duration, Option<usize>)>,
}

impl Stay {
    pub(crate) fn new(receiver: u64, id: SessionId, generation: i64, queues: Vec<String>, stream: StreamId) -> Self {
        Self {
            receiver,
            id,
            generation,
            queues,
            stream,
            mutant: None,
            credits: Credits::default(),
            reserved: 0,
            held: Held::default(),
            accepted: Vec::new(),
            ended_lately: VecDeque::new(),
            acked: BTreeMap::new(),
            demand_seq: 0,
            outbox: Outbox::default(),
            ended: None,
            asked_for_held: false,
            unsure_since: None,
            changes: 0,
            differed: None,
            leaving: false,
        }
    }

    pub(crate) fn grant(&mut self, seq: u64, credits: u32, acked: u64) -> bool {
        match self.mutant {
            Some(Mutant::CreditsAdd) => self.credits.grant(seq, credits + self.credits.available(), acked),
            _ => self.credits.grant(seq, credits, acked),
        }
    }

    pub(crate) fn demand(&mut self, queue: &str, link: StreamId) -> Demand {
        let credits = match self.ended {
            Some(_) => 0,
            None => self.credits.available().saturating_sub(self.reserved),
        };
        // A demand's number only rises, whichever link it goes over: an older one changes nothing anywhere.
        self.demand_seq += 1;
        let acked = *self.acked.entry(self.key(queue, link)).or_default();
        Demand { queue: queue.to_owned(), receiver: self.receiver, seq: self.demand_seq, credits, acked, closed: false }
    }

    fn key(&self, queue: &str, link: StreamId) -> (String, StreamId) {
        let one_for_all_links = self.mutant == Some(Mutant::DemandNumbersOutliveTheLink);
        (queue.to_owned(), if one_for_all_links { StreamId(0) } else { link })
    }

    pub(crate) fn reserve(&mut self, queue: &str, link: StreamId, seq: u64) -> bool {
        let key = self.key(queue, link);
        match self.acked.get_mut(&key) {
            Some(acked) => *acked = (*acked).max(seq),
            None => return false,
        }
        let free = self.ended.is_none() && self.credits.available() > self.reserved;
        self.reserved += u32::from(free);
        free
    }

    /// The link is over, and its numbers with it.
    pub(crate) fn forget_link(&mut self, link: StreamId) {
        if self.mutant != Some(Mutant::DemandNumbersOutliveTheLink) {
            self.acked.retain(|(_, of), _| *of != link);
        }
    }

    pub(crate) fn unreserve(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    pub(crate) fn assign(&mut self, dispatch: &Dispatch, now: Duration) {
        self.unreserve();
        if self.ended.is_some() {
            return;
        }
        self.held.assigned(dispatch.lease, now);
        self.changes += 1;
        let seq = self.credits.take().unwrap_or_else(|| self.credits.take_uncounted());
        self.outbox.assignments.push(assignment(dispatch, seq, false));
    }

    /// Sends attempts again. One that has ended since the caller looked is left out: it would run again.
    pub(crate) fn send_again(&mut self, dispatches: &[Dispatch], now: Duration) -> u64 {
        let mut sent = 0;
        for dispatch in dispatches {
            if !self.held.holds(dispatch.lease) && self.mutant != Some(Mutant::ResentAfterTheEnd) {
                continue;
            }
            if dispatch.state == State::Cancelling {
                self.outbox.cancels.push(dispatch.lease);
            }
            self.held.assigned(dispatch.lease, now);
            let seq = self.credits.take_uncounted();
            self.outbox.assignments.push(assignment(dispatch, seq, true));
            sent += 1;
        }
        sent
    }

    pub(crate) fn restore(&mut self, held: &[Dispatch], named: &BTreeSet<LeaseRef>, now: Duration) {
        for dispatch in held {
            self.held.assigned(dispatch.lease, now);
            if named.contains(&dispatch.lease) {
                self.held.accepted(dispatch.lease);
                if dispatch.state == State::Dispatched {
                    self.accepted.push(dispatch.lease);
                }
            }
        }
    }

    pub(crate) fn accept(&mut self, leases: Vec<LeaseRef>) {
        let news: Vec<LeaseRef> = leases.into_iter().filter(|lease| self.held.accepted(*lease)).collect();
        self.accepted.extend(news);
    }

    pub(crate) fn leases(&self) -> Vec<LeaseRef> {
        self.held.leases().collect()
    }

    pub(crate) fn take_accepted(&mut self) -> Vec<LeaseRef> {
        let accepted = std::mem::take(&mut self.accepted);
        accepted.into_iter().filter(|lease| self.held.holds(*lease)).collect()
    }

    pub(crate) fn give_back_accepted(&mut self, leases: Vec<LeaseRef>) {
        self.accepted.extend(leases);
    }

    pub(crate) fn finish(&mut self, lease: LeaseRef, report: Report, now: Duration) {
        if report != Report::Unavailable {
            self.held.ended(lease);
            self.changes += 1;
            self.ended_lately.push_back((now, lease));
        }
        self.outbox.results.push((lease, report));
    }

    pub(crate) fn check_digest(&mut self, count: usize, digest: u64) {
        let same = self.held.len() == count && self.held.digest() == digest;
        let (changes, before) = (self.changes, self.differed);
        self.differed = (!same).then(|| (changes, before.map_or(1, |(_, times)| times + 1)));
        let lasting = before.is_some_and(|(then, times)| then == changes || times >= DIFFERING);
        let asks = (self.unsure_since.is_some() || !same && lasting) && !self.asked_for_held;
        if asks && self.mutant != Some(Mutant::ListsAreNotCompared) {
            self.asked_for_held = true;
            self.outbox.send_held = true;
        }
    }

    pub(crate) fn ask_for_held(&mut self, now: Duration) {
        if self.mutant != Some(Mutant::ListsAreNotCompared) {
            self.unsure_since = Some(now);
            self.asked_for_held = true;
            self.outbox.send_held = true;
        }
    }

    /// The database could not be asked: the next heartbeat that differs asks again.
    pub(crate) fn may_ask_again(&mut self) {
        self.asked_for_held = false;
    }

    pub(crate) fn reconcile(
        &mut self,
        database: &[Dispatch],
        theirs: &[LeaseRef],
        read_at: Duration,
        now: Duration,
        patience: Duration,
    ) -> Vec<LeaseRef> {
        self.asked_for_held = false;
        self.differed = None;
        if self.unsure_since.is_some_and(|since| read_at >= since + LATE_COMMIT) {
            self.unsure_since = None;
        }
        let known: BTreeSet<LeaseRef> = database.iter().map(|dispatch| dispatch.lease).collect();
        self.held.keep_known(&known, read_at);
        let lately = self.ended_lately.iter().rev().take_while(|(at, _)| *at >= read_at);
        let ended: BTreeSet<LeaseRef> = lately.map(|(_, lease)| *lease).collect();
        for dispatch in database {
            if !self.held.holds(dispatch.lease) && !ended.contains(&dispatch.lease) {
                self.held.assigned(dispatch.lease, now);
            }
        }
        let difference = self.held.compare(theirs, now, patience);
        self.outbox.revoked.extend(difference.foreign);
        difference.missing
    }

    pub(crate) fn overdue(&mut self, now: Duration, patience: Duration) -> Vec<LeaseRef> {
        self.held.overdue(now, patience)
    }

    pub(crate) fn cancel(&mut self, leases: impl IntoIterator<Item = LeaseRef>) {
        self.outbox.cancels.extend(leases);
    }

    pub(crate) fn renewed(&mut self, seq: u64) {
        self.outbox.heartbeat = Some(seq);
    }

    pub(crate) fn go_away(&mut self, delay: Duration, to: Option<usize>) {
        self.outbox.go_away = Some((delay, to));
    }

    pub(crate) fn end(&mut self, how: Ended) {
        self.ended.get_or_insert(how);
    }

    /// What has gathered, in the order in which it goes out.
    pub(crate) fn messages(&mut self) -> Vec<Message> {
        let outbox = std::mem::take(&mut self.outbox);
        let mut messages = Vec::new();
        if !outbox.results.is_empty() {
            messages.push(Message::Results(outbox.results));
        }
        if !outbox.assignments.is_empty() {
            messages.push(Message::Assignments(outbox.assignments));
        }
        if !outbox.cancels.is_empty() {
            messages.push(Message::Cancel(outbox.cancels));
        }
        if !outbox.revoked.is_empty() {
            messages.push(Message::Revoke(outbox.revoked));
        }
        messages.extend(outbox.heartbeat.map(Message::Beat));
        if outbox.send_held {
            messages.push(Message::SendHeld);
        }
        messages.extend(outbox.go_away.map(|(delay, to)| Message::GoAway { delay, to }));
        messages
    }
}

fn assignment(dispatch: &Dispatch, seq: u64, resent: bool) -> Assignment {
    Assignment { seq, lease: dispatch.lease, number: people::number(&dispatch.spec), resent }
}
