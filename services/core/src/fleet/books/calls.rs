//! Which calls to make next: few enough for each provider, and those that are needed most first.

use std::collections::BTreeMap;

use super::{Account, Books, Entry, Fleet};
use crate::{
    fleet::{Pool, State},
    id::NodeId,
    time::Timestamp,
};

/// Of this many calls one at least lists, and one ends nodes, when there is something to list or to end.
const SHARE: u32 = 4;

/// A call to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Its number, by which its answer is known.
    pub id: u64,
    /// Whom to call.
    pub provider: String,
    /// When it was given out.
    pub at: Timestamp,
    /// What to ask for.
    pub work: Work,
}

/// What to ask a provider for.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// A list of all nodes.
    List,
    /// Nodes of a pool and zone.
    Request {
        /// The pool as it is now.
        pool: Box<Pool>,
        /// The zone; empty leaves it to the provider.
        zone: String,
        /// The nodes.
        nodes: Vec<NodeId>,
        /// How many of this pool and zone should exist then.
        expected_total: u32,
    },
    /// The end of nodes of a pool and zone.
    Terminate {
        /// The pool.
        pool: String,
        /// The zone.
        zone: String,
        /// The nodes.
        nodes: Vec<Target>,
    },
}

/// A node to be ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The node; none for an instance that has none.
    pub node: Option<NodeId>,
    /// The provider's name of it; empty when it is not known.
    pub instance: String,
}

impl Fleet {
    /// The calls that may be made now. They name only nodes whose intent is stored; each must be answered ([`Fleet::answered`]), also when
    /// no answer came.
    pub fn calls(&mut self, now: Timestamp) -> Vec<Call> {
        let providers: Vec<String> = self.accounts.keys().cloned().collect();
        let mut calls = Vec::new();
        for provider in providers {
            let mut wanted = self.wanted(&provider, now);
            while let Some(account) = self.accounts.get_mut(&provider)
                && account.budget.available(now) > 0
            {
                let Some(work) = wanted.next(account, now, &self.settings.list_every) else { break };
                account.budget.take(now);
                let call = Call { id: self.next_call, provider: provider.clone(), at: now, work };
                self.next_call += 1;
                self.take_off(&call, now);
                calls.push(call);
            }
        }
        calls
    }

    /// Notes that a call is under way.
    fn take_off(&mut self, call: &Call, now: Timestamp) {
        let Some(account) = self.accounts.get_mut(&call.provider) else { return };
        account.since_list = account.since_list.saturating_add(1);
        account.since_end = account.since_end.saturating_add(1);
        match &call.work {
            Work::List => {
                (account.listed_at, account.listing, account.list_soon, account.since_list) =
                    (Some(now), true, false, 0);
            }
            Work::Request { nodes, .. } => {
                for id in nodes {
                    if let Some(entry) = self.nodes.get_mut(id) {
                        entry.flight = Some(call.id);
                        entry.node.calls = entry.node.calls.saturating_add(1);
                    }
                }
            }
            Work::Terminate { nodes, .. } => {
                account.since_end = 0;
                for target in nodes {
                    match target.node.and_then(|id| self.nodes.get_mut(&id)) {
                        Some(entry) => {
                            entry.flight = Some(call.id);
                            entry.node.calls = entry.node.calls.saturating_add(1);
                        }
                        None => {
                            if let Some(orphan) = account.orphans.get_mut(&target.instance) {
                                orphan.flight = Some(call.id);
                            }
                        }
                    }
                }
            }
        }
        self.flights.insert(call.id, call.clone());
    }

    /// Everything that a provider could be asked for now, the most needed first.
    fn wanted(&self, provider: &str, now: Timestamp) -> Wanted {
        let Some(account) = self.accounts.get(provider) else { return Wanted::default() };
        let most = account.max_per_call;
        let ready = |entry: &&Entry| {
            let stored = entry.stored && !self.unsaved.contains(&entry.node.id);
            entry.node.provider == provider && stored && entry.flight.is_none() && entry.retry_at <= now
        };
        let mut requests: BTreeMap<(&str, &str), Vec<NodeId>> = BTreeMap::new();
        let mut ends: BTreeMap<(&str, &str), Vec<Target>> = BTreeMap::new();
        for entry in self.nodes.values().filter(ready) {
            let node = &entry.node;
            let key = (node.pool.as_str(), node.zone.as_str());
            match node.state {
                State::Requested if !node.unknown => requests.entry(key).or_default().push(node.id),
                // Its row says that it is being ended, so nothing calls that off any more.
                State::Terminating if node.ending => {
                    ends.entry(key).or_default().push(Target { node: Some(node.id), instance: node.instance.clone() });
                }
                _ => {}
            }
        }
        for (instance, orphan) in &account.orphans {
            if Self::is_sure(orphan) && orphan.flight.is_none() && orphan.retry_at <= now {
                let target = Target { node: None, instance: instance.clone() };
                ends.entry((&orphan.pool, &orphan.zone)).or_default().push(target);
            }
        }
        let mut by_need: Vec<(&Books, &str, Vec<NodeId>)> = requests
            .into_iter()
            .filter_map(|((pool, zone), nodes)| Some((self.pools.get(pool)?, zone, nodes)))
            .collect();
        // Needs are finite, so this orders them; names break ties.
        by_need.sort_by(|(a, ..), (b, ..)| b.need.total_cmp(&a.need).then_with(|| a.pool.name.cmp(&b.pool.name)));
        let request = |(books, zone, nodes): (&Books, &str, Vec<NodeId>)| {
            let missing = nodes.len();
            let there = self.existing(books, zone).saturating_sub(missing);
            let pool = Box::new(books.pool.clone());
            let mut expected = there;
            let parts: Vec<Work> = nodes
                .chunks(most)
                .map(|nodes| {
                    expected += nodes.len();
                    let expected_total = u32::try_from(expected).unwrap_or(u32::MAX);
                    Work::Request { pool: pool.clone(), zone: zone.into(), nodes: nodes.to_vec(), expected_total }
                })
                .collect();
            parts
        };
        let end = |((pool, zone), nodes): ((&str, &str), Vec<Target>)| {
            let parts: Vec<Work> = nodes
                .chunks(most)
                .map(|nodes| Work::Terminate { pool: pool.into(), zone: zone.into(), nodes: nodes.to_vec() })
                .collect();
            parts
        };
        let mut wanted = Wanted {
            requests: by_need.into_iter().flat_map(request).collect(),
            ends: ends.into_iter().flat_map(end).collect(),
        };
        wanted.requests.reverse();
        wanted.ends.reverse();
        wanted
    }

    /// Nodes of a pool and zone that exist or are to exist.
    fn existing(&self, books: &Books, zone: &str) -> usize {
        let counts = |entry: &&Entry| entry.node.zone == zone && !entry.node.ending;
        books.nodes.iter().filter_map(|id| self.nodes.get(id)).filter(counts).count()
    }
}

/// What could be asked for, the most needed last.
#[derive(Debug, Default)]
struct Wanted {
    requests: Vec<Work>,
    ends: Vec<Work>,
}

impl Wanted {
    /// The next call, with scarce calls shared between listing, ending and requesting.
    fn next(&mut self, account: &Account, now: Timestamp, list_every: &std::time::Duration) -> Option<Work> {
        let due = match account.listed_at {
            None => true,
            Some(at) => now.since(at) >= *list_every || account.list_soon,
        };
        let list = due && !account.listing;
        let idle = self.requests.is_empty() && self.ends.is_empty();
        if list && (account.since_list >= SHARE || account.listed_at.is_none() || idle) {
            return Some(Work::List);
        }
        if !self.ends.is_empty() && (account.since_end >= SHARE || self.requests.is_empty()) {
            return self.ends.pop();
        }
        self.requests.pop().or_else(|| list.then_some(Work::List))
    }
}
