//! What became of calls.

use std::time::Duration;

use super::{Call, Fleet, ProviderState, Target, Work};
use crate::{
    fleet::{Event, State},
    id::NodeId,
    time::Timestamp,
};

/// A call that failed, or whose end is not known, is made again after this long at first, and after this long at last.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));

/// What became of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It was answered, node by node. A listing is passed on by [`Fleet::listed`] before.
    Done(Vec<NodeAnswer>),
    /// It came too soon; nothing was done.
    Throttled {
        /// Not before this time has passed.
        retry_after: Option<Duration>,
    },
    /// It was refused; nothing was done.
    Failed {
        /// The provider's own words.
        error: String,
    },
    /// No answer came: it may have been done or not.
    Unknown {
        /// What is known of it.
        error: String,
    },
}

/// What became of one node of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeAnswer {
    /// The node, or none for an instance that has none.
    pub node: Option<NodeId>,
    /// The provider's name of it; empty when it has none yet.
    pub instance: String,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is being made, or ended.
    Accepted,
    /// The call came too soon.
    Throttled {
        /// Not before this time has passed.
        retry_after: Option<Duration>,
    },
    /// There is no room in its zone.
    OutOfCapacity {
        /// Not before this time has passed.
        retry_after: Option<Duration>,
        /// The provider's own words.
        error: String,
    },
    /// It cannot be made, or ended.
    Failed {
        /// The provider's own words.
        error: String,
    },
    /// The provider did not say.
    Unknown,
}

impl Fleet {
    /// Takes the answer of a call. An answer of a call that is not under way changes nothing.
    pub fn answered(&mut self, call: u64, answer: Answer, now: Timestamp) {
        let Some(call) = self.flights.remove(&call) else { return };
        self.land(&call);
        match answer {
            Answer::Throttled { retry_after } => self.throttled(&call.provider, retry_after, now),
            Answer::Done(nodes) => self.done(&call, nodes, now),
            Answer::Failed { error } => self.refused(&call, &error, now),
            Answer::Unknown { error } => self.lost(&call, &error, now),
        }
    }

    /// Calls under way.
    pub fn under_way(&self) -> usize {
        self.flights.len()
    }

    /// The call is not under way any more.
    fn land(&mut self, call: &Call) {
        let nodes: Vec<NodeId> = match &call.work {
            Work::List => Vec::new(),
            Work::Request { nodes, .. } => nodes.clone(),
            Work::Terminate { nodes, .. } => nodes.iter().filter_map(|target| target.node).collect(),
        };
        for id in nodes {
            if let Some(entry) = self.nodes.get_mut(&id) {
                entry.flight = None;
                self.unsaved.insert(id);
            }
        }
        let Some(account) = self.accounts.get_mut(&call.provider) else { return };
        account.listing &= call.work != Work::List;
        for orphan in account.orphans.values_mut().filter(|orphan| orphan.flight == Some(call.id)) {
            orphan.flight = None;
        }
    }

    fn throttled(&mut self, provider: &str, retry_after: Option<Duration>, now: Timestamp) {
        let Some(account) = self.accounts.get_mut(provider) else { return };
        account.budget.throttled(now, retry_after);
        account.state = ProviderState::Throttled;
        account.last_error = "it throttles our calls".into();
    }

    fn done(&mut self, call: &Call, nodes: Vec<NodeAnswer>, now: Timestamp) {
        let throttled = nodes.iter().find_map(|node| match &node.verdict {
            Verdict::Throttled { retry_after } => Some(*retry_after),
            _ => None,
        });
        match throttled {
            Some(retry_after) => self.throttled(&call.provider, retry_after, now),
            None => self.succeeded(&call.provider, now),
        }
        match &call.work {
            Work::List => {}
            Work::Request { .. } => nodes.into_iter().for_each(|node| self.requested(node, now)),
            Work::Terminate { .. } => nodes.into_iter().for_each(|node| self.ended(&call.provider, node, now)),
        }
    }

    fn succeeded(&mut self, provider: &str, now: Timestamp) {
        let Some(account) = self.accounts.get_mut(provider) else { return };
        account.budget.succeeded(now);
        account.state = ProviderState::Ok;
        account.last_error.clear();
    }

    fn requested(&mut self, answer: NodeAnswer, now: Timestamp) {
        let Some(id) = answer.node.filter(|id| self.nodes.contains_key(id)) else { return };
        match answer.verdict {
            Verdict::Accepted => {
                self.name_instance(id, &answer.instance);
                self.turn(id, Event::Confirmed, "the provider is making it", now);
            }
            Verdict::Throttled { .. } => {}
            Verdict::OutOfCapacity { retry_after, error } => {
                self.block_zone(id, &error, retry_after, now);
                self.next_zone(id, &error, now);
            }
            Verdict::Failed { error } => self.unmakeable(id, &error, now),
            Verdict::Unknown => self.doubtful_call(id, now),
        }
    }

    /// The provider cannot make it: a failed launch, and no more of that zone for a while.
    fn unmakeable(&mut self, id: NodeId, error: &str, now: Timestamp) {
        let Some(entry) = self.nodes.get(&id) else { return };
        let (pool, zone, provider) = (entry.node.pool.clone(), entry.node.zone.clone(), entry.node.provider.clone());
        if let Some(books) = self.pools.get_mut(&pool) {
            let (_, failures) = books.back_off.get(&zone).copied().unwrap_or((now, 0));
            books.back_off.insert(zone, (now.after(retry_after(failures)), failures.saturating_add(1)));
        }
        if let Some(account) = self.accounts.get_mut(&provider) {
            account.state = ProviderState::Failing;
            account.last_error = error.into();
        }
        self.failed(id, error, now);
        self.turn(id, Event::Ended, &format!("its provider could not make it: {error}"), now);
    }

    fn ended(&mut self, provider: &str, answer: NodeAnswer, now: Timestamp) {
        let retry = match &answer.verdict {
            // A listing will show whether it is gone; if one still has it after a while it is told again.
            Verdict::Accepted => Duration::from_secs(60),
            Verdict::Throttled { .. } => Duration::ZERO,
            _ => RETRY.0,
        };
        if let Verdict::Failed { error } = &answer.verdict
            && let Some(account) = self.accounts.get_mut(provider)
        {
            account.state = ProviderState::Failing;
            account.last_error.clone_from(error);
        }
        match answer.node.and_then(|id| self.nodes.get_mut(&id)) {
            Some(entry) => entry.retry_at = now.after(retry),
            None => {
                let orphans = self.accounts.get_mut(provider).map(|account| &mut account.orphans);
                if let Some(orphan) = orphans.and_then(|orphans| orphans.get_mut(&answer.instance)) {
                    orphan.retry_at = now.after(retry);
                }
            }
        }
    }

    /// The whole call was refused.
    fn refused(&mut self, call: &Call, error: &str, now: Timestamp) {
        if let Some(account) = self.accounts.get_mut(&call.provider) {
            // It did not come too soon, and that is what the budget wants to know.
            account.budget.succeeded(now);
            account.state = ProviderState::Failing;
            account.last_error = error.into();
        }
        match &call.work {
            Work::List => self.list_later(&call.provider),
            Work::Request { nodes, .. } => nodes.iter().for_each(|id| self.unmakeable(*id, error, now)),
            Work::Terminate { nodes, .. } => self.end_later(&call.provider, nodes, now),
        }
    }

    /// Nobody knows what became of the call.
    fn lost(&mut self, call: &Call, error: &str, now: Timestamp) {
        if let Some(account) = self.accounts.get_mut(&call.provider) {
            account.budget.succeeded(now);
            account.state = ProviderState::Unreachable;
            account.last_error = error.into();
        }
        match &call.work {
            Work::List => self.list_later(&call.provider),
            Work::Request { nodes, .. } => nodes.iter().for_each(|id| self.doubtful_call(*id, now)),
            Work::Terminate { nodes, .. } => self.end_later(&call.provider, nodes, now),
        }
    }

    /// A node whose call has no known end waits for a listing that is asked for from now on.
    fn doubtful_call(&mut self, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        // It has been heard of meanwhile, or listed.
        if entry.node.state != State::Requested {
            return;
        }
        (entry.node.unknown, entry.retry_at) = (true, now);
        self.unsaved.insert(id);
        if let Some(account) = self.accounts.get_mut(&entry.node.provider) {
            account.list_soon = true;
        }
    }

    fn list_later(&mut self, provider: &str) {
        if let Some(account) = self.accounts.get_mut(provider) {
            account.list_soon = false;
        }
    }

    fn end_later(&mut self, provider: &str, nodes: &[Target], now: Timestamp) {
        for target in nodes {
            match target.node.and_then(|id| self.nodes.get_mut(&id)) {
                Some(entry) => entry.retry_at = now.after(RETRY.0),
                None => {
                    let orphans = self.accounts.get_mut(provider).map(|account| &mut account.orphans);
                    if let Some(orphan) = orphans.and_then(|orphans| orphans.get_mut(&target.instance)) {
                        orphan.retry_at = now.after(RETRY.0);
                    }
                }
            }
        }
    }
}

/// How long to wait after this many failures in a row.
fn retry_after(failures: u32) -> Duration {
    RETRY.0.saturating_mul(1 << failures.min(8)).min(RETRY.1)
}
