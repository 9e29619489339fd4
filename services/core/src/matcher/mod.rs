//! The matching point of one queue: which waiting task goes to which session.
//!
//! A [`Matcher`] lives as long as one ownership of the queue (one epoch). It knows the best waiting tasks (the
//! [`window`]), what sessions can take (the [`demand`]), and which matches have no answer yet. It may be lost at any
//! moment: a match is only a proposal, and the claim in the database is the fence.
//!
//! The abstract problem: tasks wait in *lanes*, one per tenant and rank, each in the order of (ready_at, id). The matcher
//! holds a prefix of every lane, bounded in all, and repeatedly gives the best head to the session whose turn it is. The
//! order between lanes is rank, then age.

mod demand;
mod window;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

pub use window::{Entry, Feed, Lane, Offered, Position, Sweep};

use crate::{id::TaskId, time::Timestamp};
use demand::Demands;
use window::{Held, Window};

/// A distributor's exchange stream; never used again after it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(pub u64);

/// A distributor's number for a session's stay on it; never used again on the same connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receiver(pub u64);

/// Bounds of a matcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of one lane.
    pub lane: usize,
    /// Entries in all.
    pub window: usize,
    /// Lanes that are remembered while they are empty.
    pub idle_lanes: usize,
    /// How long a match may go without an answer.
    pub patience: Duration,
    /// The longest that a transaction may take: rows younger than this may still appear among those already read.
    pub overlap: Duration,
    /// How often each lane is read again from its start, for tasks whose offers were lost.
    pub sweep: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lane: 8_192,
            window: 65_536,
            idle_lanes: 10_000,
            patience: Duration::from_secs(2),
            overlap: Duration::from_secs(10),
            sweep: Duration::from_secs(10),
        }
    }
}

/// A task proposed for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched {
    /// The stream it goes out on.
    pub connection: Connection,
    /// The session it is for.
    pub receiver: Receiver,
    /// The match's number for this queue and receiver.
    pub seq: u64,
    /// The task.
    pub task: TaskId,
}

/// What a distributor says of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The task is gone from the queue.
    Claimed,
    /// It did not wait any more.
    Stale,
    /// It still waits.
    Returned,
}

/// The matcher of one queue and epoch.
#[derive(Debug)]
pub struct Matcher {
    limits: Limits,
    window: Window,
    demands: Demands,
    /// Matches without an answer. Bounded by the credits that sessions have granted.
    pending: HashMap<TaskId, Pending>,
    /// The same in the order in which they were sent; entries whose match has been answered since are skipped.
    sent: VecDeque<(Duration, TaskId, u64)>,
    sent_number: u64,
    paused: bool,
    /// A row too new for every distributor has left the window.
    passed_too_new: bool,
    claimed: u64,
}

#[derive(Debug, Clone)]
struct Pending {
    held: Held,
    connection: Connection,
    number: u64,
}

impl Matcher {
    /// A matcher that knows nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            window: Window::new(limits),
            demands: Demands::default(),
            pending: HashMap::new(),
            sent: VecDeque::new(),
            sent_number: 0,
            paused: false,
            passed_too_new: false,
            claimed: 0,
        }
    }

    /// Stops or starts matching. What is paused in the database is refused by the claims' gate in any case.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Whether matching is stopped.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// A distributor has connected that can act on rows up to this format.
    pub fn open(&mut self, connection: Connection, newest_format: i16) {
        if std::mem::take(&mut self.passed_too_new) && newest_format > self.demands.newest_format() {
            // Rows that nobody could act on had left the window: read the lanes again.
            self.window.forget_horizons();
        }
        self.demands.open(connection, newest_format);
    }

    /// A distributor's stream has closed: its demand goes, and its unanswered matches return.
    pub fn close(&mut self, connection: Connection) {
        self.demands.close(connection);
        let mut gone: Vec<(u64, TaskId)> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.connection == connection)
            .map(|(task, pending)| (pending.number, *task))
            .collect();
        // In the order in which they were sent: what a full window drops must not depend on the map's order.
        gone.sort_unstable();
        for (_, task) in gone {
            self.answer(connection, task, Answer::Returned);
        }
    }

    /// Sets what a session can take; see [`crate::credit::Credits::grant`]. Returns false when it is older than what stands.
    pub fn demand(&mut self, connection: Connection, receiver: Receiver, seq: u64, credits: u32, acked: u64) -> bool {
        self.demands.set(connection, receiver, seq, credits, acked)
    }

    /// A session has left its distributor. Matches under way for it will be answered as returned.
    pub fn forget(&mut self, connection: Connection, receiver: Receiver) {
        self.demands.forget(connection, receiver);
    }

    /// A task has joined the queue. A hint: it may be lost, doubled or late.
    pub fn offer(&mut self, lane: &Lane, entry: Entry) -> Offered {
        if let Some(pending) = self.pending.get(&entry.id) {
            if entry.ready_at <= pending.held.entry.ready_at {
                return Offered::Duplicate;
            }
            // It was claimed, ended and queued again before the answer came.
            self.pending.remove(&entry.id);
        }
        self.window.offer(lane, entry)
    }

    /// What the feeder should read now, at most `limit` lanes, best first. Each must be answered by [`Self::fed`] or
    /// [`Self::feed_failed`] before it is asked for again. `now` is the database's time.
    pub fn feeds(&mut self, now: Timestamp, limit: usize) -> Vec<Feed> {
        self.window.feeds(now, limit)
    }

    /// What the feeder read. `exhausted` says that there was nothing after the last row.
    pub fn fed(&mut self, feed: &Feed, rows: Vec<Entry>, exhausted: bool) {
        self.window.fed(feed, rows, exhausted, |task| self.pending.contains_key(&task));
    }

    /// The read failed; it will be asked for again.
    pub fn feed_failed(&mut self, feed: &Feed) {
        self.window.feed_failed(feed);
    }

    /// Lanes that the database has. Those not known yet are read from their start.
    pub fn discovered(&mut self, lanes: impl IntoIterator<Item = Lane>) {
        self.window.discovered(lanes);
    }

    /// The next part of the slow sweep, if one is due: a lane's rows up to its horizon. `now` is a clock that only moves
    /// forward.
    pub fn sweep(&mut self, now: Duration) -> Option<Sweep> {
        self.window.sweep(now)
    }

    /// What the sweep read; rows that are known already change nothing. Returns how many had been missing.
    pub fn swept(&mut self, sweep: &Sweep, rows: Vec<Entry>, exhausted: bool) -> usize {
        self.window.swept(sweep, rows, exhausted, |task| self.pending.contains_key(&task))
    }

    /// Matches the best waiting tasks with sessions in turn, at most `limit`. `now` is a clock that only moves forward, `wall` the
    /// database's time.
    pub fn matches(&mut self, now: Duration, wall: Timestamp, limit: usize) -> Vec<Matched> {
        let mut matched = Vec::new();
        let mut passed_over = Vec::new();
        while !self.paused && matched.len() < limit && self.demands.any() && passed_over.len() < PASSED_OVER {
            let Some(held) = self.window.pop() else { break };
            if held.entry.expires_at.is_some_and(|deadline| deadline <= wall) {
                continue;
            }
            if held.entry.min_reader > self.demands.newest_format() {
                // Too new for every distributor: it leaves the window until one connects that can act on it.
                self.passed_too_new = true;
                continue;
            }
            match self.demands.take(held.entry.min_reader) {
                Some((connection, receiver, seq)) => {
                    let task = held.entry.id;
                    self.sent_number += 1;
                    self.sent.push_back((now, task, self.sent_number));
                    self.pending.insert(task, Pending { held, connection, number: self.sent_number });
                    matched.push(Matched { connection, receiver, seq, task });
                }
                None => passed_over.push(held),
            }
        }
        for held in passed_over {
            self.window.put_back(held);
        }
        matched
    }

    /// What became of a match. An answer on another stream than the match's, or for a match that returned already, changes
    /// nothing.
    pub fn answer(&mut self, connection: Connection, task: TaskId, answer: Answer) {
        match self.pending.get(&task) {
            Some(pending) if pending.connection == connection => {}
            // A late claim of a match that had returned: the entry in the window is stale now.
            _ => {
                if answer != Answer::Returned {
                    self.window.remove(task);
                }
                return;
            }
        }
        let Some(pending) = self.pending.remove(&task) else { return };
        match answer {
            Answer::Claimed => self.claimed += 1,
            Answer::Stale => {}
            Answer::Returned => self.window.put_back(pending.held),
        }
    }

    /// Returns matches that have gone without an answer for too long to the window (R6), and says how many.
    pub fn return_overdue(&mut self, now: Duration) -> usize {
        let mut returned = 0;
        while let Some(&(sent_at, task, number)) = self.sent.front() {
            let current = self.pending.get(&task).is_some_and(|pending| pending.number == number);
            if current && now.saturating_sub(sent_at) < self.limits.patience {
                break;
            }
            self.sent.pop_front();
            if current && let Some(pending) = self.pending.remove(&task) {
                self.window.put_back(pending.held);
                returned += 1;
            }
        }
        returned
    }

    /// Entries in the window.
    pub fn window_len(&self) -> usize {
        self.window.len()
    }

    /// Matches without an answer.
    pub fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Credits that wait for work.
    pub fn demand_len(&self) -> u64 {
        self.demands.total()
    }

    /// Sessions on the distributors that are connected, with demand or without.
    pub fn receivers(&self) -> usize {
        self.demands.receivers()
    }

    /// Distributors that are connected.
    pub fn connections(&self) -> usize {
        self.demands.connections()
    }

    /// Claims answered since the matcher was made.
    pub fn claimed(&self) -> u64 {
        self.claimed
    }

    /// Whether the task is in the window or under way.
    pub fn contains(&self, task: TaskId) -> bool {
        self.window.contains(task) || self.pending.contains_key(&task)
    }
}

/// How many entries that no waiting session can act on are looked past in one round.
const PASSED_OVER: usize = 64;

#[cfg(test)]
mod tests;
