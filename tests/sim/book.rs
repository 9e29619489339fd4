//! What an orchestrator holds, asks for, and knows of its lease. Mirrors `services/orchestrator/src/{book,grant,lease}.rs`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use millrace_core::{
    held::{LeaseRef, digest_of},
    id::TaskId,
    retry::OutcomeKind,
};

/// What an attempt does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Doing {
    /// Exclusive, and an earlier attempt of the same task has not ended here yet.
    Waiting {
        number: u32,
        local: u64,
    },
    Running(u64),
    /// Its result is not recorded yet.
    Ended(OutcomeKind),
}

pub(crate) struct Held {
    pub lease: LeaseRef,
    pub doing: Doing,
    exclusive: bool,
}

/// The attempts.
#[derive(Default)]
pub(crate) struct Book {
    pub held: BTreeMap<TaskId, Held>,
    /// Attempts that are not held any more and whose executor has not returned yet.
    pub stopping: BTreeMap<u64, TaskId>,
    /// Exclusive attempts that were told to stop.
    told: BTreeSet<u64>,
}

impl Book {
    pub(crate) fn occupied(&self) -> usize {
        self.held.len() + self.stopping.len()
    }

    pub(crate) fn running(&self) -> usize {
        self.held.values().filter(|held| !matches!(held.doing, Doing::Ended(_))).count()
    }

    pub(crate) fn digest(&self) -> u64 {
        self.held.values().fold(0, |digest, held| digest ^ digest_of(held.lease.task, held.lease.attempt))
    }

    pub(crate) fn leases(&self) -> Vec<LeaseRef> {
        self.held.values().map(|held| held.lease).collect()
    }

    pub(crate) fn is_stopping(&self, task: TaskId) -> bool {
        self.stopping.values().any(|stopping| *stopping == task)
    }

    pub(crate) fn insert(&mut self, lease: LeaseRef, exclusive: bool, doing: Doing) {
        self.held.insert(lease.task, Held { lease, doing, exclusive });
    }

    /// An attempt is not held any more; its number is returned while its executor still has it.
    pub(crate) fn release(&mut self, task: TaskId) -> Option<u64> {
        match self.held.remove(&task)?.doing {
            Doing::Running(local) => {
                self.stopping.insert(local, task);
                Some(local)
            }
            Doing::Waiting { .. } | Doing::Ended(_) => None,
        }
    }

    /// The executor of an attempt held has returned.
    pub(crate) fn end(&mut self, local: u64, kind: OutcomeKind) -> Option<TaskId> {
        let running = |held: &&mut Held| matches!(held.doing, Doing::Running(running) if running == local);
        let held = self.held.values_mut().find(running)?;
        held.doing = Doing::Ended(kind);
        Some(held.lease.task)
    }

    /// How a task's attempt ended, if it has.
    pub(crate) fn ended(&self, task: TaskId) -> Option<(LeaseRef, OutcomeKind)> {
        match self.held.get(&task)? {
            Held { lease, doing: Doing::Ended(kind), .. } => Some((*lease, *kind)),
            _ => None,
        }
    }

    pub(crate) fn start_waiting(&mut self, task: TaskId) -> Option<(LeaseRef, u32, u64)> {
        let held = self.held.get_mut(&task)?;
        let Doing::Waiting { number, local } = held.doing else { return None };
        held.doing = Doing::Running(local);
        Some((held.lease, number, local))
    }

    /// Hands back what waits here.
    pub(crate) fn end_waiting(&mut self) -> Vec<TaskId> {
        let waiting = self.held.values_mut().filter(|held| matches!(held.doing, Doing::Waiting { .. }));
        let end = |held: &mut Held| {
            held.doing = Doing::Ended(OutcomeKind::HandedBack);
            held.lease.task
        };
        waiting.map(end).collect()
    }

    /// What runs.
    pub(crate) fn locals(&self) -> Vec<u64> {
        let local = |held: &Held| match held.doing {
            Doing::Running(local) => Some(local),
            Doing::Waiting { .. } | Doing::Ended(_) => None,
        };
        self.held.values().filter_map(local).collect()
    }

    fn exclusive(&self) -> impl Iterator<Item = u64> + '_ {
        self.held.values().filter(|held| held.exclusive).filter_map(|held| match held.doing {
            Doing::Running(local) if !self.told.contains(&local) => Some(local),
            _ => None,
        })
    }

    pub(crate) fn has_exclusive(&self) -> bool {
        self.exclusive().next().is_some()
    }

    /// The exclusive attempts that run; they count as told from now on.
    pub(crate) fn take_exclusive(&mut self) -> Vec<u64> {
        let exclusive: Vec<u64> = self.exclusive().collect();
        self.told.extend(&exclusive);
        exclusive
    }
}

/// The receiver's side of credits (R6).
#[derive(Default)]
pub(crate) struct Grants {
    seq: u64,
    acked: u64,
    believed: Option<u32>,
}

impl Grants {
    pub(crate) fn received(&mut self, seq: u64, resent: bool) {
        self.acked = self.acked.max(seq);
        self.believed = match resent {
            true => None,
            false => self.believed.map(|credits| credits.saturating_sub(1)),
        };
    }

    /// The grant to send: its number, the credits, and the last assignment seen.
    pub(crate) fn next(&mut self, free: u32) -> Option<(u64, u32, u64)> {
        if self.believed == Some(free) {
            return None;
        }
        self.seq += 1;
        self.believed = Some(free);
        Some((self.seq, free, self.acked))
    }
}

/// The session's lease as seen from here, counted from when an answered renewal had been sent.
pub(crate) struct Lease {
    pub ttl: Duration,
    interval: Duration,
    renewed_at: Duration,
    opened_at: Duration,
    pub next_beat: Duration,
    seq: u64,
    unanswered: VecDeque<(u64, Duration)>,
}

/// When an exclusive attempt must be stopped (R16): told, then dropped.
pub(crate) struct ExclusiveEnd {
    pub tell_at: Duration,
    pub abort_at: Duration,
}

impl Lease {
    pub(crate) fn new(ttl: Duration, now: Duration) -> Self {
        let interval = ttl / 3;
        Self {
            ttl,
            interval,
            renewed_at: now,
            opened_at: now,
            next_beat: now + interval,
            seq: 0,
            unanswered: VecDeque::new(),
        }
    }

    pub(crate) fn opened(&mut self, ttl: Duration, sent_at: Duration, now: Duration) {
        self.ttl = ttl;
        self.interval = ttl / 3;
        self.renewed_at = sent_at;
        self.opened_at = now;
        self.next_beat = now + self.interval;
        self.unanswered.clear();
    }

    pub(crate) fn beat(&mut self, now: Duration) -> u64 {
        self.seq += 1;
        self.next_beat = now + self.interval;
        self.unanswered.push_back((self.seq, now));
        self.seq
    }

    pub(crate) fn answered(&mut self, seq: u64) -> bool {
        let sent_at = self.unanswered.iter().find(|(sent, _)| *sent == seq).map(|(_, at)| *at);
        self.unanswered.retain(|(sent, _)| *sent > seq);
        self.renewed_at = self.renewed_at.max(sent_at.unwrap_or(Duration::ZERO));
        sent_at.is_some()
    }

    /// When a replica that answers no heartbeat is given up.
    pub(crate) fn give_up_at(&self) -> Duration {
        self.renewed_at.max(self.opened_at) + self.ttl * 2 / 3
    }

    pub(crate) fn exclusive_end(&self) -> ExclusiveEnd {
        let (end, margin) = (self.renewed_at + self.ttl, self.ttl / 5);
        ExclusiveEnd { tell_at: end - margin, abort_at: end - margin / 4 }
    }
}
