//! A session's stay on a distributor replica, as `services/distributor/src/sessions.rs` keeps it: credits, attempts held,
//! and what is on its way to the orchestrator. No stream, no clock: what is to be sent waits in the outbox.

use std::{
    collections::{BTreeMap, BTreeSet},
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

/// One stream of a session.
pub struct Stay {
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
    demands: BTreeMap<String, Numbers>,
    outbox: Outbox,
    pub ended: Option<Ended>,
    asked_for_held: bool,
    /// What is in the outbox leaves soon.
    pub leaving: bool,
}

#[derive(Default)]
struct Numbers {
    link: Option<StreamId>,
    seq: u64,
    acked: u64,
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
    pub fn new(receiver: u64, id: SessionId, generation: i64, queues: Vec<String>, stream: StreamId) -> Self {
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
            demands: BTreeMap::new(),
            outbox: Outbox::default(),
            ended: None,
            asked_for_held: false,
            leaving: false,
        }
    }

    pub fn grant(&mut self, seq: u64, credits: u32, acked: u64) -> bool {
        match self.mutant {
            Some(Mutant::CreditsAdd) => self.credits.grant(seq, credits + self.credits.available(), acked),
            _ => self.credits.grant(seq, credits, acked),
        }
    }

    pub fn demand(&mut self, queue: &str, link: StreamId) -> Demand {
        let credits = match self.ended {
            Some(_) => 0,
            None => self.credits.available().saturating_sub(self.reserved),
        };
        let numbers = self.demands.entry(queue.to_owned()).or_default();
        if numbers.link != Some(link) {
            *numbers = match self.mutant {
                Some(Mutant::DemandNumbersLive) => Numbers { link: Some(link), seq: numbers.seq, acked: numbers.acked },
                _ => Numbers { link: Some(link), seq: 0, acked: 0 },
            };
        }
        numbers.seq += 1;
        let (receiver, queue) = (self.receiver, queue.to_owned());
        Demand { queue, receiver, seq: numbers.seq, credits, acked: numbers.acked, closed: false }
    }

    pub fn reserve(&mut self, queue: &str, link: StreamId, seq: u64) -> bool {
        match self.demands.get_mut(queue) {
            Some(numbers) if numbers.link == Some(link) => numbers.acked = numbers.acked.max(seq),
            _ => return false,
        }
        let free = self.ended.is_none() && self.credits.available() > self.reserved;
        self.reserved += u32::from(free);
        free
    }

    pub fn unreserve(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    pub fn assign(&mut self, dispatch: &Dispatch, now: Duration) {
        self.unreserve();
        if self.ended.is_some() {
            return;
        }
        self.held.assigned(dispatch.lease, now);
        let seq = self.credits.take().unwrap_or_else(|| self.credits.take_uncounted());
        self.outbox.assignments.push(assignment(dispatch, seq, false));
    }

    pub fn send_again(&mut self, dispatches: &[Dispatch], now: Duration) {
        for dispatch in dispatches {
            if dispatch.state == State::Cancelling {
                self.outbox.cancels.push(dispatch.lease);
            }
            self.held.assigned(dispatch.lease, now);
            let seq = self.credits.take_uncounted();
            self.outbox.assignments.push(assignment(dispatch, seq, true));
        }
    }

    pub fn restore(&mut self, held: &[Dispatch], named: &BTreeSet<LeaseRef>, now: Duration) {
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

    pub fn accept(&mut self, leases: Vec<LeaseRef>) {
        let news: Vec<LeaseRef> = leases.into_iter().filter(|lease| self.held.accepted(*lease)).collect();
        self.accepted.extend(news);
    }

    pub fn leases(&self) -> Vec<LeaseRef> {
        self.held.leases().collect()
    }

    pub fn take_accepted(&mut self) -> Vec<LeaseRef> {
        let accepted = std::mem::take(&mut self.accepted);
        accepted.into_iter().filter(|lease| self.held.holds(*lease)).collect()
    }

    pub fn give_back_accepted(&mut self, leases: Vec<LeaseRef>) {
        self.accepted.extend(leases);
    }

    pub fn finish(&mut self, lease: LeaseRef, report: Report) {
        if report != Report::Unavailable {
            self.held.ended(lease);
        }
        self.outbox.results.push((lease, report));
    }

    pub fn check_digest(&mut self, count: usize, digest: u64) {
        let same = self.held.len() == count && self.held.digest() == digest;
        if !same && !self.asked_for_held && self.mutant != Some(Mutant::ListsAreNotCompared) {
            self.asked_for_held = true;
            self.outbox.send_held = true;
        }
    }

    pub fn ask_for_held(&mut self) {
        if self.mutant != Some(Mutant::ListsAreNotCompared) {
            self.asked_for_held = true;
            self.outbox.send_held = true;
        }
    }

    pub fn reconcile(
        &mut self,
        database: &[Dispatch],
        theirs: &[LeaseRef],
        read_at: Duration,
        now: Duration,
        patience: Duration,
    ) -> Vec<LeaseRef> {
        self.asked_for_held = false;
        let known: BTreeSet<LeaseRef> = database.iter().map(|dispatch| dispatch.lease).collect();
        self.held.keep_known(&known, read_at);
        for dispatch in database {
            if !self.held.holds(dispatch.lease) {
                self.held.assigned(dispatch.lease, now);
            }
        }
        let difference = self.held.compare(theirs, now, patience);
        self.outbox.revoked.extend(difference.foreign);
        difference.missing
    }

    pub fn overdue(&mut self, now: Duration, patience: Duration) -> Vec<LeaseRef> {
        self.held.overdue(now, patience)
    }

    pub fn cancel(&mut self, leases: impl IntoIterator<Item = LeaseRef>) {
        self.outbox.cancels.extend(leases);
    }

    pub fn renewed(&mut self, seq: u64) {
        self.outbox.heartbeat = Some(seq);
    }

    pub fn go_away(&mut self, delay: Duration, to: Option<usize>) {
        self.outbox.go_away = Some((delay, to));
    }

    pub fn end(&mut self, how: Ended) {
        self.ended.get_or_insert(how);
    }

    /// What has gathered, in the order in which it goes out.
    pub fn messages(&mut self) -> Vec<Message> {
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
