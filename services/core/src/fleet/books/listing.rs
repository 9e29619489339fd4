//! What providers list, set against the books.

use std::collections::{BTreeMap, BTreeSet};

use super::{Entry, Fleet, Orphan};
use crate::{
    fleet::{Event, Node, State},
    id::NodeId,
    time::Timestamp,
};

/// A known node that is missing from this many listings in a row is gone; an instance that nobody knows is ended after as many.
const SIGHTINGS: u32 = 2;

/// An instance, as its provider lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The provider's name of it.
    pub instance: String,
    /// The node's id, when the provider keeps it.
    pub node: Option<NodeId>,
    /// Its pool; empty when the provider does not know.
    pub pool: String,
    /// Its zone.
    pub zone: String,
    /// Where it stands.
    pub state: SeenState,
}

/// Where an instance stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenState {
    /// It exists, or is being made.
    There,
    /// It is on its way out.
    Stopping,
    /// It will never run.
    Failed {
        /// The provider's own error.
        error: String,
        /// There was no room in its zone.
        out_of_capacity: bool,
    },
}

impl Fleet {
    /// Takes a whole listing of a provider that was asked for at a moment. `ids` makes the ids of nodes that are adopted.
    pub fn listed(
        &mut self,
        provider: &str,
        asked_at: Timestamp,
        seen: &[Seen],
        ids: &mut dyn FnMut() -> NodeId,
        now: Timestamp,
    ) {
        if !self.accounts.contains_key(provider) {
            return;
        }
        let mut there = BTreeSet::new();
        let mut strangers = Vec::new();
        for one in seen {
            match self.known(provider, one) {
                Some(id) => {
                    there.insert(id);
                    self.seen(id, one, now);
                }
                None => strangers.push(one),
            }
        }
        let orphans = self.place(provider, strangers, &mut there, ids, now);
        self.note_orphans(provider, orphans);
        self.missing(provider, asked_at, &there, now);
    }

    fn known(&self, provider: &str, one: &Seen) -> Option<NodeId> {
        let by_id = one.node.filter(|id| self.nodes.contains_key(id));
        by_id.or_else(|| self.accounts.get(provider)?.instances.get(&one.instance).copied())
    }

    /// A node of the books is there.
    fn seen(&mut self, id: NodeId, one: &Seen, now: Timestamp) {
        self.name_instance(id, &one.instance);
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        entry.missing = 0;
        if entry.node.zone.is_empty() && !one.zone.is_empty() && entry.node.started_at.is_none() {
            entry.node.zone.clone_from(&one.zone);
        }
        let going = matches!(entry.node.state, State::Terminating);
        match &one.state {
            SeenState::There => self.turn(id, Event::Confirmed, "the provider is making it", now),
            SeenState::Stopping if !going => self.turn(id, Event::End, "its provider is ending it", now),
            SeenState::Failed { error, out_of_capacity } if !going => {
                self.turn(id, Event::Confirmed, "the provider is making it", now);
                match out_of_capacity {
                    true => self.block_zone(id, error, None, now),
                    false => self.failed(id, error, now),
                }
                self.turn(id, Event::End, &format!("its provider could not make it: {error}"), now);
            }
            SeenState::Stopping | SeenState::Failed { .. } => {}
        }
    }

    /// Instances without a node: each is given to the oldest node of its pool and zone that has none, or adopted, or an orphan.
    fn place<'a>(
        &mut self,
        provider: &str,
        strangers: Vec<&'a Seen>,
        there: &mut BTreeSet<NodeId>,
        ids: &mut dyn FnMut() -> NodeId,
        now: Timestamp,
    ) -> Vec<&'a Seen> {
        let mut waiting = self.without_instance(provider);
        let mut orphans = Vec::new();
        for one in strangers {
            let dead = one.node.is_some_and(|id| self.past.ids.contains(&id));
            let ours = self.pools.get(&one.pool).is_some_and(|books| books.pool.provider == provider);
            // What has neither a pool nor an id of ours may be anyone's, so it is nobody's to end.
            if one.pool.is_empty() && one.node.is_none() {
                continue;
            }
            if dead || !ours {
                orphans.push(one);
                continue;
            }
            let fits = waiting.get_mut(&(one.pool.clone(), one.zone.clone())).filter(|_| one.node.is_none());
            match fits.and_then(Vec::pop) {
                Some(id) => {
                    there.insert(id);
                    self.seen(id, one, now);
                }
                None if one.state == SeenState::There => {
                    let id = one.node.unwrap_or_else(&mut *ids);
                    there.insert(id);
                    self.adopt(id, provider, one, now);
                }
                // It goes by itself, or is only a notice of what could not be made.
                None => {}
            }
        }
        orphans
    }

    /// Nodes that were called for and have no instance yet, by pool and zone, the oldest last.
    fn without_instance(&self, provider: &str) -> BTreeMap<(String, String), Vec<NodeId>> {
        let mut waiting: BTreeMap<(String, String), Vec<NodeId>> = BTreeMap::new();
        for entry in self.nodes.values().rev() {
            let node = &entry.node;
            let called = node.calls > 0 && matches!(node.state, State::Requested | State::Starting | State::Joining);
            if called && node.provider == provider && node.instance.is_empty() {
                waiting.entry((node.pool.clone(), node.zone.clone())).or_default().push(node.id);
            }
        }
        waiting
    }

    fn adopt(&mut self, id: NodeId, provider: &str, one: &Seen, now: Timestamp) {
        let Some(books) = self.pools.get_mut(&one.pool) else { return };
        books.nodes.insert(id);
        let mut entry = Entry::new(Node {
            id,
            pool: one.pool.clone(),
            provider: provider.into(),
            zone: one.zone.clone(),
            instance: one.instance.clone(),
            state: State::Requested,
            reason: "found at its provider".into(),
            requested_at: now,
            started_at: None,
            attached_at: None,
            ready_at: None,
            since: now,
            gone_at: None,
            boot_stage: String::new(),
            boot_percent: None,
            boot_at: None,
            slots: 0,
            drain_asked: false,
            adopted: true,
            calls: 0,
            unknown: false,
            ending: false,
        });
        entry.silent_since = Some(now);
        self.nodes.insert(id, entry);
        if let Some(account) = self.accounts.get_mut(provider) {
            account.instances.insert(one.instance.clone(), id);
        }
        self.turn(id, Event::Confirmed, "found at its provider, and adopted", now);
    }

    fn note_orphans(&mut self, provider: &str, orphans: Vec<&Seen>) {
        let Some(account) = self.accounts.get_mut(provider) else { return };
        let names: BTreeSet<&str> = orphans.iter().map(|one| one.instance.as_str()).collect();
        account.orphans.retain(|instance, orphan| names.contains(instance.as_str()) || orphan.flight.is_some());
        for one in orphans.into_iter().filter(|one| one.state != SeenState::Stopping) {
            let orphan = account.orphans.entry(one.instance.clone()).or_insert_with(|| Orphan {
                sightings: 0,
                pool: one.pool.clone(),
                zone: one.zone.clone(),
                flight: None,
                retry_at: Timestamp::MIN,
            });
            orphan.sightings += 1;
        }
    }

    /// Nodes of the books that the listing does not have.
    fn missing(&mut self, provider: &str, asked_at: Timestamp, there: &BTreeSet<NodeId>, now: Timestamp) {
        let absent: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|entry| entry.node.provider == provider && !there.contains(&entry.node.id))
            .filter(|entry| entry.flight.is_none())
            .map(|entry| entry.node.id)
            .collect();
        for id in absent {
            let Some(entry) = self.nodes.get_mut(&id) else { continue };
            // Too young to be in a listing that was asked for then.
            if entry.node.started_at.is_some_and(|started| started >= asked_at) {
                continue;
            }
            entry.missing += 1;
            match entry.node.state {
                // Nothing came of the call whose end was not known: the same call may be made again.
                State::Requested if entry.node.unknown && asked_at >= entry.retry_at => {
                    entry.node.unknown = false;
                    entry.retry_at = now;
                    self.unsaved.insert(id);
                }
                State::Requested => {}
                State::Terminating if entry.node.ending || entry.missing >= SIGHTINGS => {
                    let reason = entry.node.reason.clone();
                    self.turn(id, Event::Ended, &reason, now);
                }
                // It speaks, so it lives, whatever the listing says.
                _ if entry.attached => {}
                _ if entry.missing >= SIGHTINGS => {
                    self.failed(id, "its provider no longer has it", now);
                    self.turn(id, Event::Ended, "its provider no longer has it", now);
                }
                _ => {}
            }
        }
    }

    /// Whether an orphan has been seen often enough to be ended.
    pub(super) fn is_sure(orphan: &Orphan) -> bool {
        orphan.sightings >= SIGHTINGS
    }
}
