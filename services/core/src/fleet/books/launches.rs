//! Launches: how many nodes a pool lacks, where they are to come from, and what keeps them from coming.

use super::{Books, Entry, Fleet};
use crate::{
    fleet::{Event, Node, Pool, State},
    id::NodeId,
    time::Timestamp,
};

impl Fleet {
    /// Makes the intents of what the pool lacks; returns how many it cannot get, which its fallback pools are asked for.
    pub(super) fn launch(&mut self, name: &str, lacking: u32, ids: &mut dyn FnMut() -> NodeId, now: Timestamp) -> u32 {
        let lacking = lacking - self.call_off_drains(name, lacking, now);
        if lacking == 0 {
            return 0;
        }
        let Some(books) = self.pools.get(name) else { return 0 };
        let pool = &books.pool;
        if pool.by_hand(now).is_some_and(|by_hand| by_hand.no_launches) {
            return self.obstacle(name, "launches are off by hand".into(), 0);
        }
        let Some(account) = self.accounts.get(&pool.provider) else {
            return self.obstacle(name, format!("its provider `{}` is not configured", pool.provider), lacking);
        };
        let Some(zone) = self.zone_for(pool, books, now) else {
            return self.obstacle(name, "no zone has capacity, or all have failed of late".into(), lacking);
        };
        let requested = self.count(books, |entry| entry.node.state == State::Requested);
        // More intents than the provider can soon be asked for would only grow old.
        let room = (account.max_per_call as u32).saturating_mul(2).max(1).saturating_sub(requested);
        let allowance = self.pools.get_mut(name).map(|books| books.gate.allowance(&books.pool, now));
        let Some(allowance) = allowance else { return 0 };
        let allowed = allowance.launches.saturating_sub(requested);
        if allowed < lacking && allowance.launches != u32::MAX {
            self.obstacle(name, allowance.reason, 0);
        } else if room < lacking {
            self.obstacle(name, format!("{requested} launches wait for their call to the provider"), 0);
        }
        for _ in 0..lacking.min(room).min(allowed) {
            self.intend(name, &zone, ids(), now);
        }
        0
    }

    /// Notes what is in the way, and passes the number on.
    fn obstacle(&mut self, name: &str, text: String, lacking: u32) -> u32 {
        if let Some(books) = self.pools.get_mut(name) {
            books.obstacles.push(text);
        }
        lacking
    }

    /// Drains that nobody asked for are called off first: no capacity comes sooner. The busiest come back first.
    fn call_off_drains(&mut self, name: &str, lacking: u32, now: Timestamp) -> u32 {
        let Some(books) = self.pools.get(name) else { return 0 };
        let mut back: Vec<(u32, NodeId)> = books
            .nodes
            .iter()
            .filter_map(|id| self.nodes.get(id))
            .filter(|entry| {
                let node = &entry.node;
                let draining = matches!(node.state, State::Draining | State::Terminating);
                draining
                    && !node.drain_asked
                    && !node.ending
                    && node.ready_at.is_some()
                    && entry.healthy
                    && entry.attached
            })
            .map(|entry| (u32::MAX - entry.running, entry.node.id))
            .collect();
        back.sort_unstable();
        let mut called_off = 0;
        for (_, id) in back.into_iter().take(lacking as usize) {
            self.turn(id, Event::Resume, "it is needed again", now);
            self.orders.push((id, super::Order::Resume));
            called_off += 1;
        }
        called_off
    }

    /// The preferred zone that has capacity and does not fail.
    fn zone_for(&self, pool: &Pool, books: &Books, now: Timestamp) -> Option<String> {
        let account = self.accounts.get(&pool.provider)?;
        let open = |zone: &&str| {
            let blocked = account.blocked.get(*zone).is_some_and(|(until, _)| now < *until);
            let failing = books.back_off.get(*zone).is_some_and(|(until, _)| now < *until);
            !blocked && !failing
        };
        let any = [""];
        let zones = pool.zones.iter().map(String::as_str).chain(any.into_iter().filter(|_| pool.zones.is_empty()));
        zones.into_iter().find(open).map(str::to_owned)
    }

    /// The intent of one node, to be stored before anyone is called.
    fn intend(&mut self, name: &str, zone: &str, id: NodeId, now: Timestamp) {
        let Some(books) = self.pools.get_mut(name) else { return };
        let reason = format!("the pool needs {} nodes", books.size.desired);
        books.nodes.insert(id);
        let node = Node {
            id,
            pool: name.into(),
            provider: books.pool.provider.clone(),
            zone: zone.into(),
            instance: String::new(),
            state: State::Requested,
            reason: reason.clone(),
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
            adopted: false,
            calls: 0,
            unknown: false,
            ending: false,
        };
        let happened = super::Happened { node: id, pool: name.into(), at: now, state: State::Requested, reason };
        self.happened.push(happened);
        self.unsaved.insert(id);
        self.nodes.insert(id, Entry::new(node));
    }

    /// A zone has no capacity: it is passed over for a while.
    pub(super) fn block_zone(
        &mut self,
        id: NodeId,
        error: &str,
        retry_after: Option<std::time::Duration>,
        now: Timestamp,
    ) {
        let Some(entry) = self.nodes.get(&id) else { return };
        let Some(account) = self.accounts.get_mut(&entry.node.provider) else { return };
        let until = now.after(retry_after.unwrap_or(self.settings.zone_block));
        account.blocked.insert(entry.node.zone.clone(), (until, error.into()));
        account.state = super::ProviderState::OutOfCapacity;
        account.last_error = error.into();
    }

    /// A node that its zone has no room for moves on to the next zone, or is given up so that fallback pools are asked.
    pub(super) fn next_zone(&mut self, id: NodeId, error: &str, now: Timestamp) {
        let Some(entry) = self.nodes.get(&id) else { return };
        let Some(books) = self.pools.get(&entry.node.pool) else { return };
        let was = entry.node.zone.clone();
        let next = self.zone_for(&books.pool, books, now).filter(|zone| *zone != was);
        match (next, self.nodes.get_mut(&id)) {
            (Some(zone), Some(entry)) => {
                let reason = format!("`{was}` has no room, so `{zone}` is asked: {error}");
                entry.node.zone = zone;
                entry.node.reason.clone_from(&reason);
                let (pool, state) = (entry.node.pool.clone(), entry.node.state);
                self.happened.push(super::Happened { node: id, pool, at: now, state, reason });
                self.unsaved.insert(id);
            }
            _ => self.turn(id, Event::Ended, &format!("no zone has room: {error}"), now),
        }
    }

    pub(super) fn count(&self, books: &Books, which: impl Fn(&Entry) -> bool) -> u32 {
        let count = books.nodes.iter().filter_map(|id| self.nodes.get(id)).filter(|entry| which(entry)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}
