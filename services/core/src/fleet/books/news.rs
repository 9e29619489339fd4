//! What nodes say of themselves.

use thiserror::Error;

use super::{Doubt, Fleet, Past};
use crate::{
    fleet::{Event, State},
    id::NodeId,
    time::Timestamp,
};

/// What a node says, or what is seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Its stream is up.
    Attached {
        /// The provider's name of it; empty when it does not know.
        instance: String,
        /// How many tasks it can run at a time.
        slots: u32,
        /// It takes work already.
        ready: bool,
    },
    /// Its boot has come this far.
    Boot {
        /// The stage.
        stage: String,
        /// 0 to 100.
        percent: Option<u8>,
    },
    /// It takes work.
    Ready,
    /// How it is.
    Health {
        /// Its executor can work.
        healthy: bool,
        /// Why not.
        reason: String,
        /// Tasks that it runs.
        running: u32,
        /// How many it can run at a time.
        slots: u32,
    },
    /// Its boot has failed.
    BootFailed {
        /// The error.
        error: String,
    },
    /// It has nothing left to do.
    Drained,
    /// The provider is about to take it away.
    Spot {
        /// When.
        at: Option<Timestamp>,
    },
    /// Its stream is gone.
    Detached,
    /// Its orchestrator's session, as the database has it.
    Session {
        /// It lives.
        live: bool,
    },
}

/// What a node is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Start nothing new.
    Drain(String),
    /// Take work again.
    Resume,
}

/// A node that is not on the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Missing {
    /// It never was, or its end was too long ago.
    #[error("no node has this id")]
    Unknown,
    /// It is gone.
    #[error("the node is gone")]
    Gone,
}

impl Missing {
    pub(super) fn of(past: &Past, id: NodeId) -> Self {
        if past.ids.contains(&id) { Self::Gone } else { Self::Unknown }
    }
}

impl Fleet {
    /// Finds a node by its provider's name of it.
    pub fn find(&self, pool: &str, instance: &str) -> Option<NodeId> {
        let provider = &self.pools.get(pool)?.pool.provider;
        self.accounts.get(provider)?.instances.get(instance).copied()
    }

    /// The pool of a node that is not gone.
    pub fn pool_of(&self, id: NodeId) -> Option<&str> {
        self.nodes.get(&id).map(|entry| entry.node.pool.as_str())
    }

    /// What a node that has just attached is to know: the order that it may have missed.
    pub fn standing_order(&self, id: NodeId) -> Option<Order> {
        let node = &self.nodes.get(&id)?.node;
        let draining = matches!(node.state, State::Draining | State::Terminating);
        draining.then(|| Order::Drain(node.reason.clone()))
    }

    /// Takes note of what a node says.
    ///
    /// # Errors
    /// When it is not on the books.
    pub fn heard(&mut self, id: NodeId, news: News, now: Timestamp) -> Result<(), Missing> {
        if !self.nodes.contains_key(&id) {
            return Err(Missing::of(&self.past, id));
        }
        match news {
            News::Attached { instance, slots, ready } => self.attached(id, &instance, slots, ready, now),
            News::Boot { stage, percent } => self.boots(id, stage, percent, now),
            News::Ready => self.is_ready(id, now),
            News::Health { healthy, reason, running, slots } => self.health(id, healthy, reason, (running, slots), now),
            News::BootFailed { error } => {
                let reason = format!("its boot failed: {error}");
                self.failed(id, &error, now);
                self.turn(id, Event::End, &reason, now);
            }
            News::Drained => self.drained(id, now),
            News::Spot { at } => self.reclaimed(id, at, now),
            News::Detached => {
                if let Some(entry) = self.nodes.get_mut(&id) {
                    entry.attached = false;
                    entry.silent_since.get_or_insert(now);
                }
            }
            News::Session { live } => self.session(id, live, now),
        }
        Ok(())
    }

    fn attached(&mut self, id: NodeId, instance: &str, slots: u32, ready: bool, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        entry.attached = true;
        entry.silent_since = None;
        entry.missing = 0;
        let first = entry.node.attached_at.is_none();
        if first || entry.node.slots != clamp(slots) {
            entry.node.attached_at.get_or_insert(now);
            entry.node.slots = clamp(slots);
            self.unsaved.insert(id);
        }
        self.name_instance(id, instance);
        self.turn(id, Event::Boots, "it boots", now);
        if ready {
            self.is_ready(id, now);
        }
    }

    /// Notes the provider's name of a node, if it was not known.
    pub(super) fn name_instance(&mut self, id: NodeId, instance: &str) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        if instance.is_empty() || !entry.node.instance.is_empty() {
            return;
        }
        entry.node.instance = instance.into();
        if let Some(account) = self.accounts.get_mut(&entry.node.provider) {
            account.instances.insert(instance.into(), id);
        }
        self.unsaved.insert(id);
    }

    fn boots(&mut self, id: NodeId, stage: String, percent: Option<u8>, now: Timestamp) {
        self.turn(id, Event::Boots, "it boots", now);
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        let percent = percent.map(|percent| i16::from(percent.min(100)));
        if (&entry.node.boot_stage, entry.node.boot_percent) == (&stage, percent) {
            return;
        }
        entry.node.boot_stage = stage;
        entry.node.boot_percent = percent;
        entry.node.boot_at = Some(now);
        if let Some(books) = self.pools.get_mut(&entry.node.pool) {
            books.joins.entry(entry.node.zone.clone()).or_default().progressed(id, now);
        }
        self.unsaved.insert(id);
    }

    fn is_ready(&mut self, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get(&id) else { return };
        if entry.held_until.is_some_and(|until| now < until) || !entry.healthy {
            return;
        }
        match entry.node.state {
            // It joined late, after its end was decided and before anybody was told: the end is called off.
            State::Terminating if !entry.node.ending && entry.node.ready_at.is_none() && !entry.node.drain_asked => {
                self.turn(id, Event::Resume, "it joined late; its end is called off", now);
            }
            State::Suspect => self.turn(id, Event::IsReady, "it takes work after all", now),
            _ => self.turn(id, Event::IsReady, "it takes work", now),
        }
    }

    fn health(&mut self, id: NodeId, healthy: bool, reason: String, load: (u32, u32), now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        (entry.healthy, entry.health_reason, entry.running) = (healthy, reason, load.0);
        if load.1 > 0 && entry.node.slots != clamp(load.1) {
            entry.node.slots = clamp(load.1);
            self.unsaved.insert(id);
        }
        let (state, why) = (entry.node.state, format!("unhealthy: {}", entry.health_reason));
        match (healthy, state) {
            (false, State::Ready) => self.doubt(id, Doubt::Unhealthy, &why, now),
            (true, State::Suspect) => self.recovered(id, now),
            _ => {}
        }
    }

    /// Its work goes on; the pool counts without it, and it starts nothing new.
    fn reclaimed(&mut self, id: NodeId, at: Option<Timestamp>, now: Timestamp) {
        let reason = match at {
            Some(at) => format!("the provider takes it away in {} s", at.since(now).as_secs()),
            None => "the provider takes it away soon".into(),
        };
        // It can only be a node that is known: `heard` has looked.
        let _ = self.ask_drain(id, &reason, now);
    }

    fn drained(&mut self, id: NodeId, now: Timestamp) {
        let state = self.nodes.get(&id).map(|entry| entry.node.state);
        match state {
            Some(State::Draining) => self.turn(id, Event::End, "it is drained", now),
            // An agent that was told to stop by someone else drains by itself.
            Some(State::Joining | State::Ready | State::Suspect) => {
                self.turn(id, Event::Drain, "its agent stops", now);
                self.turn(id, Event::End, "its agent has stopped", now);
            }
            _ => {}
        }
    }

    fn session(&mut self, id: NodeId, live: bool, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        entry.session = Some(live);
        let state = entry.node.state;
        // A node that does not speak to the scaler shows by its orchestrator that it works.
        if live && (state.is_coming() || state == State::Suspect) && !entry.attached {
            self.is_ready(id, now);
        }
    }

    /// A node that was ready becomes doubtful; one that does so again and again is held back.
    pub(super) fn doubt(&mut self, id: NodeId, doubt: Doubt, reason: &str, now: Timestamp) {
        const FLAPS: usize = 3;
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        entry.doubt = Some(doubt);
        if doubt == Doubt::Late {
            return self.turn(id, Event::IsDoubtful, reason, now);
        }
        while entry.flaps.front().is_some_and(|at| now.since(*at) > self.settings.flap_window) {
            entry.flaps.pop_front();
        }
        entry.flaps.push_back(now);
        if entry.flaps.len() < FLAPS {
            return self.turn(id, Event::IsDoubtful, reason, now);
        }
        entry.doubt = Some(Doubt::Flapping);
        entry.held_until = Some(now.after(self.settings.flap_hold));
        let reason = format!("held back: doubtful {} times of late, now {reason}", entry.flaps.len());
        self.turn(id, Event::IsDoubtful, &reason, now);
    }

    /// A doubtful node that speaks and is healthy works again, once it is no longer held back.
    pub(super) fn recovered(&mut self, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        let held = entry.held_until.is_some_and(|until| now < until);
        let speaks = entry.attached || entry.session == Some(true);
        if held || !entry.healthy || !speaks || entry.node.ready_at.is_none() {
            return;
        }
        entry.held_until = None;
        self.turn(id, Event::IsReady, "it works again", now);
    }
}

fn clamp(slots: u32) -> i32 {
    i32::try_from(slots).unwrap_or(i32::MAX)
}
