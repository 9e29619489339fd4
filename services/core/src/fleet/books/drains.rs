//! The ways out: doubtful nodes, drains, and ends.

use super::{Doubt, Entry, Fleet};
use crate::{
    fleet::{
        Event, State,
        joins::{Grace, Lateness},
    },
    id::NodeId,
    time::Timestamp,
};

impl Fleet {
    /// What became of the pool's nodes by the passing of time alone.
    pub(super) fn look_after(&mut self, name: &str, now: Timestamp) {
        let Some(books) = self.pools.get(name) else { return };
        let nodes: Vec<NodeId> = books.nodes.iter().copied().collect();
        for id in nodes {
            let Some(entry) = self.nodes.get(&id) else { continue };
            match entry.node.state {
                State::Starting | State::Joining => self.check_join(name, id, now),
                State::Ready => self.check_silence(id, now),
                State::Suspect => self.check_doubt(name, id, now),
                State::Draining => self.check_drain(id, now),
                State::Terminating => self.check_end(id),
                State::Requested | State::Gone => {}
            }
        }
    }

    fn grace(&self, name: &str, zone: &str) -> Option<&Grace> {
        self.pools.get(name)?.graces.get(zone)
    }

    /// A node that should have joined by now is doubtful, unless so many are late together that the estimate must be wrong.
    fn check_join(&mut self, name: &str, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get(&id) else { return };
        let Some(grace) = self.grace(name, &entry.node.zone) else { return };
        let Some(joins) = self.pools[name].joins.get(&entry.node.zone) else { return };
        match joins.lateness(id, grace, now) {
            Lateness::InTime => return,
            Lateness::Doubtful | Lateness::Late if grace.late_together => return,
            Lateness::Doubtful | Lateness::Late | Lateness::Over => {}
        }
        let waited = now.since(entry.node.started_at.unwrap_or(now)).as_secs();
        let reason = format!("late: {waited} s after its launch, where nodes join within {} s", grace.grace.as_secs());
        self.doubt(id, Doubt::Late, &reason, now);
    }

    /// A node whose stream and whose orchestrator are both silent is doubtful.
    fn check_silence(&mut self, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        // Nobody has heard of it since this process began to lead.
        let since = match (entry.attached, entry.session) {
            (true, _) | (_, Some(true)) => return,
            _ => *entry.silent_since.get_or_insert(now),
        };
        if now.since(since) >= self.settings.silent_after {
            self.doubt(id, Doubt::Silent, "neither its stream nor its orchestrator is heard of", now);
        }
    }

    /// A doubtful node may recover, or be ended within the destroy budget.
    fn check_doubt(&mut self, name: &str, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        match entry.doubt {
            Some(Doubt::Late) => self.check_late(name, id, now),
            Some(Doubt::Unhealthy) => {}
            Some(Doubt::Flapping | Doubt::Silent) | None => {
                self.recovered(id, now);
                self.check_lost(name, id, now);
            }
        }
    }

    /// A late node is ended when its neighbours show that it is the node and not the estimate, or once it has had the longest time allowed.
    fn check_late(&mut self, name: &str, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get(&id).filter(|entry| entry.flight.is_none()) else { return };
        let zone = &entry.node.zone;
        let Some(grace) = self.grace(name, zone) else { return };
        let Some(joins) = self.pools.get(name).and_then(|books| books.joins.get(zone)) else { return };
        let error = match joins.lateness(id, grace, now) {
            Lateness::Over => "did not join within the longest time allowed",
            Lateness::Late if !grace.late_together => "did not join, and those launched before and after it did",
            _ => return,
        };
        let reason = entry.node.reason.clone();
        if self.destroy(name, id, &reason, now) {
            self.failed(id, error, now);
        }
    }

    /// A node that neither stream, nor orchestrator, nor work shows to live is lost after a while.
    fn check_lost(&mut self, name: &str, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        if entry.node.state != State::Suspect || entry.attached || entry.session == Some(true) {
            return;
        }
        let since = *entry.silent_since.get_or_insert(now);
        if now.since(since) >= self.settings.lost_after {
            self.destroy(name, id, "lost: nothing has been heard of it for too long", now);
        }
    }

    /// Decides a node's end within the destroy budget.
    fn destroy(&mut self, name: &str, id: NodeId, reason: &str, now: Timestamp) -> bool {
        let Some(books) = self.pools.get_mut(name) else { return false };
        if books.pool.by_hand(now).is_some_and(|by_hand| by_hand.no_terminations) {
            books.obstacles.push("ends are off by hand".into());
            return false;
        }
        if !books.may_destroy(now) {
            books.obstacles.push("the destroy budget is used up: lost and late nodes wait for their end".into());
            return false;
        }
        self.turn(id, Event::End, reason, now);
        true
    }

    /// A draining node that cannot say that it is drained is taken for drained when its orchestrator is gone too.
    fn check_drain(&mut self, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        if entry.attached || entry.session == Some(true) {
            return;
        }
        let since = *entry.silent_since.get_or_insert(now);
        if now.since(since) >= self.settings.silent_after {
            self.turn(id, Event::End, "it drained, and its agent is gone", now);
        }
    }

    /// A node that is to be ended: from the round after the decision on nothing calls it off. One that nobody was ever called for is gone
    /// at once.
    fn check_end(&mut self, id: NodeId) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        if entry.node.calls == 0 && !entry.node.adopted && entry.node.started_at.is_none() {
            let (reason, since) = (entry.node.reason.clone(), entry.node.since);
            return self.turn(id, Event::Ended, &reason, since);
        }
        if !entry.node.ending && entry.flight.is_none() {
            entry.node.ending = true;
            self.unsaved.insert(id);
        }
    }

    /// Takes nodes out of a pool that has too many: what nobody was called for goes first, then the emptiest are drained.
    pub(super) fn shrink(&mut self, name: &str, counted: u32, now: Timestamp) {
        let Some(books) = self.pools.get(name) else { return };
        if books.pool.by_hand(now).is_some_and(|by_hand| by_hand.no_terminations) {
            return;
        }
        let (desired, step, deleting) = (books.size.desired, books.pool.step_down, books.pool.deleting);
        let mut surplus = counted.saturating_sub(desired);
        for id in self.uncalled(name) {
            if surplus == 0 {
                return;
            }
            self.turn(id, Event::Ended, "it is not needed any more", now);
            surplus -= 1;
        }
        let mut ready = self.by_emptiness(name);
        // Those still on their way do not replace one that works before they have come.
        let most = match deleting {
            true => u32::MAX,
            false => step.min((ready.len() as u32).saturating_sub(desired)),
        };
        ready.truncate(surplus.min(most) as usize);
        for (_, _, id) in ready {
            let reason = format!("the pool needs only {desired} nodes");
            self.turn(id, Event::Drain, &reason, now);
            self.orders.push((id, super::Order::Drain(reason)));
        }
        if deleting {
            self.end_unjoined(name, now);
        }
    }

    /// Intents that no call has named.
    fn uncalled(&self, name: &str) -> Vec<NodeId> {
        let Some(books) = self.pools.get(name) else { return Vec::new() };
        let uncalled = |entry: &&Entry| entry.node.state == State::Requested && entry.node.calls == 0;
        let newest_first = books.nodes.iter().rev().filter_map(|id| self.nodes.get(id));
        newest_first.filter(uncalled).map(|entry| entry.node.id).collect()
    }

    /// Ready nodes, the emptiest first; of equals those in the least preferred zone.
    fn by_emptiness(&self, name: &str) -> Vec<(u32, usize, NodeId)> {
        let Some(books) = self.pools.get(name) else { return Vec::new() };
        let zones = &books.pool.zones;
        let place = |zone: &str| zones.iter().position(|one| one == zone).map_or(0, |place| zones.len() - place);
        let mut ready: Vec<(u32, usize, NodeId)> = books
            .nodes
            .iter()
            .filter_map(|id| self.nodes.get(id))
            .filter(|entry| entry.node.state == State::Ready)
            .map(|entry| (entry.running, place(&entry.node.zone), entry.node.id))
            .collect();
        ready.sort_unstable();
        ready
    }

    /// Nodes of a deleted pool that have not joined are not waited for.
    fn end_unjoined(&mut self, name: &str, now: Timestamp) {
        let Some(books) = self.pools.get(name) else { return };
        let unjoined = |entry: &&Entry| match entry.node.state {
            State::Requested | State::Starting => true,
            State::Joining | State::Suspect => entry.node.ready_at.is_none(),
            _ => false,
        };
        let nodes = books.nodes.iter().filter_map(|id| self.nodes.get(id)).filter(unjoined);
        let ids: Vec<NodeId> = nodes.map(|entry| entry.node.id).collect();
        for id in ids {
            self.turn(id, Event::End, "its pool is deleted", now);
        }
    }
}
