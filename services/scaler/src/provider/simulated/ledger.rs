//! What was done to a simulated provider: what judges go by, whatever the scaler's own books say.

use std::sync::Arc;

use millrace_core::{id::NodeId, time::Timestamp};

use super::conditions::HowDead;

/// Calls that are kept one by one; those after them are counted only.
const MAX_CALLS: usize = 1_000_000;

/// Everything that was done, in order.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The first million calls.
    pub calls: Vec<Call>,
    /// Every node that was ever made.
    pub nodes: Vec<NodeRecord>,
    counts: [u64; 4],
}

/// A call that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// When.
    pub at: Timestamp,
    /// Which.
    pub method: Method,
    /// How many nodes it named; 0 for a listing.
    pub nodes: u32,
    /// What became of it.
    pub fate: CallFate,
}

/// Which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// DescribeNodes.
    Describe,
    /// RequestNodes.
    Request,
    /// TerminateNodes.
    Terminate,
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallFate {
    /// It was done and answered.
    Answered,
    /// It was refused: the caller was too fast.
    Throttled,
    /// It never arrived.
    LostRequest,
    /// It was done, and the caller never heard.
    LostAnswer,
}

/// A node that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRecord {
    /// Its place in the order of creation, from 0.
    pub number: u32,
    /// The id that it was asked for with.
    pub node_id: NodeId,
    /// Its pool.
    pub pool: Arc<str>,
    /// Its zone.
    pub zone: Arc<str>,
    /// When it was made.
    pub created: Timestamp,
    /// When its machine runs, and its agent is first heard of if ever.
    pub runs: Timestamp,
    /// Whether it would join if it were let, and when.
    pub fate: Fate,
    /// When TerminateNodes first named it.
    pub killed: Option<Timestamp>,
    /// When the provider took it away by itself.
    pub reclaimed: Option<Timestamp>,
    /// When it was no more.
    pub ended: Option<Timestamp>,
    /// Which conditions it was made under.
    pub(super) phase: usize,
    /// It may still join: it counts for the surge.
    pub(super) joining: bool,
    /// Whether it comes and goes, and how often it did.
    pub(super) flaps: Option<u32>,
}

/// Whether a node would join if it were let.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It takes work from then on.
    Joins(Timestamp),
    /// It never does, and `HowDead` says who tells, and when.
    Never(HowDead, Timestamp),
}

/// The ledger, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Nodes made.
    pub created: usize,
    /// Nodes that would have joined by now, or have.
    pub joined: usize,
    /// Nodes that TerminateNodes ended.
    pub killed: usize,
    /// Those of them that had not joined yet, and would have.
    pub killed_that_would_have_joined: usize,
    /// Those of them that would never have joined.
    pub killed_dead: usize,
    /// Nodes that the provider took away.
    pub reclaimed: usize,
    /// Nodes that exist, that nobody has told to end, and that the provider has not given up.
    pub alive: usize,
    /// Calls made, the lost ones included.
    pub calls_total: u64,
    /// Calls refused.
    pub calls_throttled: u64,
    /// Calls that never arrived.
    pub calls_lost: u64,
    /// Calls that were done, and whose caller never heard.
    pub answers_lost: u64,
}

impl Ledger {
    pub(super) fn call(&mut self, call: Call) {
        self.counts[call.fate as usize] += 1;
        if self.calls.len() < MAX_CALLS {
            self.calls.push(call);
        }
    }

    /// The calls that became this.
    pub fn calls_that(&self, fate: CallFate) -> u64 {
        self.counts[fate as usize]
    }

    /// Counts.
    pub fn tally(&self, now: Timestamp) -> Tally {
        let count = |what: &dyn Fn(&NodeRecord) -> bool| self.nodes.iter().filter(|node| what(node)).count();
        Tally {
            created: self.nodes.len(),
            joined: count(&|node| node.has_joined(now)),
            killed: count(&|node| node.killed.is_some()),
            killed_that_would_have_joined: count(&NodeRecord::would_have_joined),
            killed_dead: count(&|node| node.killed.is_some() && node.joins().is_none()),
            reclaimed: count(&|node| node.reclaimed.is_some()),
            alive: count(&|node| node.is_alive(now)),
            calls_total: self.counts.iter().sum(),
            calls_throttled: self.calls_that(CallFate::Throttled),
            calls_lost: self.calls_that(CallFate::LostRequest),
            answers_lost: self.calls_that(CallFate::LostAnswer),
        }
    }

    /// Nodes that are alive and that the scaler's books do not know.
    pub fn orphans(&self, now: Timestamp, known: impl Fn(&NodeRecord) -> bool) -> usize {
        self.nodes.iter().filter(|node| node.is_alive(now) && !known(node)).count()
    }
}

impl NodeRecord {
    /// The provider's name of it.
    pub fn instance(&self) -> String {
        format!("{INSTANCE}{:06}", self.number)
    }

    /// When it joins, if it is let.
    pub fn joins(&self) -> Option<Timestamp> {
        match self.fate {
            Fate::Joins(at) => Some(at),
            Fate::Never(..) => None,
        }
    }

    /// When it began to go, whoever saw to that.
    pub fn leaves(&self) -> Option<Timestamp> {
        [self.killed, self.reclaimed, self.ended].into_iter().flatten().min()
    }

    /// Whether it took work some time.
    pub fn has_joined(&self, now: Timestamp) -> bool {
        self.joins().is_some_and(|at| at <= now && self.leaves().is_none_or(|left| at <= left))
    }

    /// Whether it was ended by the scaler before it could join, and would have joined.
    pub fn would_have_joined(&self) -> bool {
        match (self.killed, self.joins()) {
            (Some(killed), Some(joins)) => killed < joins && self.reclaimed.is_none_or(|at| killed < at),
            _ => false,
        }
    }

    /// Whether it exists, nobody has told it to end, and the provider has not given it up.
    pub fn is_alive(&self, now: Timestamp) -> bool {
        self.leaves().is_none() && !self.has_failed(now)
    }

    /// Whether the provider lists it as FAILED.
    pub fn has_failed(&self, now: Timestamp) -> bool {
        matches!(self.fate, Fate::Never(HowDead::ProviderFailed, at) if at <= now)
    }
}

const INSTANCE: &str = "sim-";

/// The number of an instance of that name.
pub(super) fn number_of(instance: &str) -> Option<u32> {
    instance.strip_prefix(INSTANCE)?.parse().ok()
}
