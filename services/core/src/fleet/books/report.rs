//! What people see of the books.

use std::collections::BTreeMap;

use super::{Doubt, Fleet};
use crate::{
    fleet::{
        Node, Pool, State,
        gate::{Allowance, GateState},
        joins::Grace,
        size::Size,
    },
    id::NodeId,
    time::Timestamp,
};

/// Something that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: Timestamp,
    /// The pool.
    pub pool: String,
    /// One line for people.
    pub text: String,
}

/// A pool, as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolReport {
    /// The pool.
    pub pool: Pool,
    /// Its size, and how it came about.
    pub size: Size,
    /// Nodes by state, gone ones left out.
    pub nodes: BTreeMap<State, u32>,
    /// Slots of ready nodes.
    pub ready_slots: u64,
    /// Tasks that its nodes run.
    pub running: u64,
    /// How long nodes may take to join, by zone.
    pub graces: BTreeMap<String, Grace>,
    /// Whether launches go on.
    pub launches: Allowance,
    /// What keeps it from its size, or its nodes from going.
    pub obstacles: Vec<String>,
    /// One line.
    pub summary: String,
    /// What was decided of late, the newest first.
    pub decisions: Vec<Decision>,
}

/// How a provider answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProviderState {
    /// The last call was done.
    Ok,
    /// It wants fewer calls.
    Throttled,
    /// A zone has no room.
    OutOfCapacity,
    /// It refuses.
    Failing,
    /// It does not answer.
    Unreachable,
}

/// A zone that is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneReport {
    /// The zone.
    pub zone: String,
    /// Until when.
    pub until: Timestamp,
    /// The provider's own words.
    pub error: String,
}

/// A provider, as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderReport {
    /// Its name.
    pub name: String,
    /// How it answers.
    pub state: ProviderState,
    /// Its last error; empty when the last call was done.
    pub last_error: String,
    /// Calls a second that are allowed now.
    pub calls_per_second: f64,
    /// No call before this moment.
    pub not_before: Option<Timestamp>,
    /// Zones that are passed over.
    pub blocked: Vec<ZoneReport>,
    /// Instances that nobody knows, seen once or more.
    pub orphans: usize,
}

impl ProviderState {
    /// For people, and for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Throttled => "throttled",
            Self::OutOfCapacity => "out of capacity",
            Self::Failing => "failing",
            Self::Unreachable => "unreachable",
        }
    }
}

impl Fleet {
    /// Takes what was decided since the last call.
    pub fn decisions(&mut self) -> Vec<Decision> {
        std::mem::take(&mut self.decisions)
    }

    /// A pool, as people see it.
    pub fn report(&mut self, name: &str, now: Timestamp) -> Option<PoolReport> {
        let launches = self.pools.get_mut(name).map(|books| books.gate.allowance(&books.pool, now))?;
        let books = self.pools.get(name)?;
        let mut nodes: BTreeMap<State, u32> = BTreeMap::new();
        let (mut ready_slots, mut running) = (0, 0);
        for entry in books.nodes.iter().filter_map(|id| self.nodes.get(id)) {
            *nodes.entry(entry.node.state).or_default() += 1;
            running += u64::from(entry.running);
            if entry.node.state == State::Ready {
                ready_slots +=
                    u64::try_from(entry.node.slots).ok().filter(|n| *n > 0).unwrap_or(u64::from(books.pool.slots));
            }
        }
        let mut obstacles = books.obstacles.clone();
        if launches.state != GateState::Open && !obstacles.contains(&launches.reason) && !launches.reason.is_empty() {
            obstacles.push(launches.reason.clone());
        }
        Some(PoolReport {
            pool: books.pool.clone(),
            size: books.size.clone(),
            nodes,
            ready_slots,
            running,
            graces: books.graces.clone(),
            launches,
            obstacles,
            summary: books.summary.clone(),
            decisions: books.decided.iter().cloned().collect(),
        })
    }

    /// A provider, as people see it.
    pub fn provider(&self, name: &str, now: Timestamp) -> Option<ProviderReport> {
        let account = self.accounts.get(name)?;
        let blocked = account.blocked.iter().filter(|(_, (until, _))| now < *until);
        Some(ProviderReport {
            name: name.into(),
            state: account.state,
            last_error: account.last_error.clone(),
            calls_per_second: account.budget.rate(),
            not_before: account.budget.not_before().filter(|at| now < *at),
            blocked: blocked
                .map(|(zone, (until, error))| ZoneReport { zone: zone.clone(), until: *until, error: error.clone() })
                .collect(),
            orphans: account.orphans.len(),
        })
    }

    /// The names of the providers.
    pub fn providers(&self) -> impl Iterator<Item = &str> {
        self.accounts.keys().map(String::as_str)
    }

    /// A node that is not gone.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(|entry| &entry.node)
    }

    /// Every node that is not gone, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(|entry| &entry.node)
    }

    /// Slots that are lost for now: of nodes that are doubtful because they are unhealthy or held back.
    pub fn lost_slots(&self, pool: &str) -> u64 {
        let Some(books) = self.pools.get(pool) else { return 0 };
        let lost = books.nodes.iter().filter_map(|id| self.nodes.get(id)).filter(|entry| {
            entry.node.state == State::Suspect && matches!(entry.doubt, Some(Doubt::Unhealthy | Doubt::Flapping))
        });
        lost.map(|entry| u64::try_from(entry.node.slots).unwrap_or(0)).sum()
    }
}
