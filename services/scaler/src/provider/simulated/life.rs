//! The lives of simulated nodes: what happens to each, once it was made.

use std::{sync::Arc, time::Duration};

use millrace_core::time::Timestamp;

use super::{
    Happening,
    conditions::{HowDead, HowFlapping},
    draw::{For, scale},
    ledger::{Fate, NodeRecord},
    world::{Event, World},
};

impl World {
    /// What is going to happen to a new node if it is let.
    pub(super) fn foresee(&mut self, node: u32, runs: Timestamp, fate: Fate) {
        let conditions = self.conditions();
        let (reports, spot) = (conditions.join.reports, conditions.spot.clone());
        if reports > 0 && !matches!(fate, Fate::Never(HowDead::Silent | HowDead::ProviderFailed, _)) {
            self.schedule(runs, Event::Boot { node, step: 0 });
        }
        match fate {
            Fate::Joins(at) => self.schedule(at, Event::Ready(node)),
            Fate::Never(HowDead::Silent, _) => {}
            Fate::Never(HowDead::BootFailed, at) => self.schedule(at, Event::BootFailed(node)),
            Fate::Never(HowDead::ProviderFailed, at) => self.schedule(at, Event::GivenUp(node)),
        }
        if let Some(wait) = self.chance.wait(For::Spot, node.into(), spot.per_hour) {
            self.take_away(node, self.now.after(wait), spot.notice.0);
        }
    }

    fn take_away(&mut self, node: u32, at: Timestamp, notice: Duration) {
        if !notice.is_zero() {
            self.schedule(at.before(notice).max(self.now), Event::SpotNotice { node, at });
        }
        self.schedule(at, Event::Taken(node));
    }

    pub(super) fn happen(&mut self, event: Event, at: Timestamp) {
        match event {
            Event::Reclaim(index) => self.reclaim(index, at),
            Event::Unlisted(node) => {
                self.listed.remove(&node);
            }
            Event::Gone(node) => self.end(node, at),
            Event::Boot { node, .. }
            | Event::Ready(node)
            | Event::BootFailed(node)
            | Event::GivenUp(node)
            | Event::Down(node)
            | Event::Up(node)
            | Event::SpotNotice { node, .. }
            | Event::Taken(node) => {
                // One that is going says nothing more, and cannot be taken.
                if let Some(record) = self.node(node).filter(|record| record.leaves().is_none()) {
                    let record = record.clone();
                    self.happen_to(event, &record, at);
                }
            }
        }
    }

    fn happen_to(&mut self, event: Event, record: &NodeRecord, at: Timestamp) {
        let node = record.number;
        let conditions = &self.script.phases[record.phase].1;
        match event {
            Event::Boot { step, .. } => self.boot(record, step, at),
            Event::Ready(_) => {
                self.joins_no_more(node);
                self.hear(record, Happening::Ready, at);
                self.turn(record, Event::Down(node), at);
            }
            Event::BootFailed(_) => {
                let error = conditions.dead.error.clone();
                self.joins_no_more(node);
                self.hear(record, Happening::BootFailed { error }, at);
            }
            Event::GivenUp(_) => {
                let unlisted = at.after(conditions.listing.keep_failed.0);
                self.joins_no_more(node);
                self.is_no_more_alive(record);
                self.leaves_room(record);
                self.schedule(unlisted, Event::Unlisted(node));
            }
            Event::Down(_) => {
                let happening = match conditions.flapping.how {
                    HowFlapping::Health => Happening::Unhealthy { reason: "the executor does not answer".into() },
                    HowFlapping::Stream => Happening::Lost,
                };
                self.hear(record, happening, at);
                self.turn(record, Event::Up(node), at);
            }
            Event::Up(_) => {
                let happening = match conditions.flapping.how {
                    HowFlapping::Health => Happening::Healthy,
                    HowFlapping::Stream => Happening::Ready,
                };
                self.hear(record, happening, at);
                self.turn(record, Event::Down(node), at);
            }
            Event::SpotNotice { at: taken, .. } => {
                let silent = matches!(record.fate, Fate::Never(HowDead::Silent | HowDead::ProviderFailed, _));
                if !silent && record.runs <= at {
                    self.hear(record, Happening::SpotNotice { at: taken }, at);
                }
            }
            Event::Taken(_) => self.taken(record, at),
            Event::Gone(_) | Event::Unlisted(_) | Event::Reclaim(_) => {}
        }
    }

    fn boot(&mut self, record: &NodeRecord, step: u8, at: Timestamp) {
        let steps = u32::from(self.script.phases[record.phase].1.join.reports) + 1;
        let percent = u8::try_from(u32::from(step) * 100 / steps).unwrap_or(100);
        self.hear(record, Happening::Boot { stage: format!("step {step} of {steps}"), percent }, at);
        if let Fate::Joins(joins) = record.fate
            && u32::from(step) + 1 < steps
        {
            let next = record.runs.after(joins.since(record.runs) * (u32::from(step) + 1) / steps);
            self.schedule(next, Event::Boot { node: record.number, step: step + 1 });
        }
    }

    /// The next turn of a node that comes and goes.
    fn turn(&mut self, record: &NodeRecord, event: Event, at: Timestamp) {
        let Some(turns) = record.flaps else { return };
        let flapping = &self.script.phases[record.phase].1.flapping;
        let span = if matches!(event, Event::Down(_)) { flapping.up } else { flapping.down };
        let by = 0.5 + self.chance.draw(For::Turn, u64::from(record.number) << 32 | u64::from(turns));
        if let Some(record) = self.record(record.number) {
            record.flaps = Some(turns.wrapping_add(1));
        }
        self.schedule(at.after(scale(span.0, by)), event);
    }

    fn reclaim(&mut self, index: usize, at: Timestamp) {
        let reclaim = self.script.reclaims[index].clone();
        let meant =
            |node: &&NodeRecord| node.is_alive(at) && reclaim.zone.as_deref().is_none_or(|zone| zone == &*node.zone);
        let nodes: Vec<u32> =
            self.listed.iter().filter_map(|node| self.node(*node)).filter(meant).map(|n| n.number).collect();
        for node in nodes {
            let draw = (index as u64) << 32 | u64::from(node);
            if self.chance.falls(For::Reclaim, draw, reclaim.share) {
                self.take_away(node, at.after(reclaim.notice.0), reclaim.notice.0);
            }
        }
    }

    fn taken(&mut self, record: &NodeRecord, at: Timestamp) {
        let node = record.number;
        // One that the provider has given up is gone for everybody but its listing.
        if record.has_failed(at) {
            return;
        }
        if let Some(record) = self.record(node) {
            record.reclaimed = Some(at);
        }
        self.joins_no_more(node);
        self.is_no_more_alive(record);
        self.end(node, at);
    }

    /// Someone told it to end.
    pub(super) fn kill(&mut self, node: u32) {
        let now = self.now;
        let Some(record) = self.node(node).filter(|record| record.leaves().is_none()).cloned() else { return };
        let gone = now.after(self.conditions().stop.0);
        if let Some(record) = self.record(node) {
            record.killed = Some(now);
        }
        if record.has_failed(now) {
            if let Some(record) = self.record(node) {
                record.ended = Some(now);
            }
            self.unlist(node, now);
            return;
        }
        self.joins_no_more(node);
        self.is_no_more_alive(&record);
        self.schedule(gone, Event::Gone(node));
    }

    fn end(&mut self, node: u32, at: Timestamp) {
        let Some(record) = self.record(node) else { return };
        record.ended = Some(at);
        let record = record.clone();
        self.leaves_room(&record);
        self.hear(&record, Happening::Exited, at);
        self.unlist(node, at);
    }

    fn unlist(&mut self, node: u32, at: Timestamp) {
        let unlisted = at.after(self.conditions().listing.delay.0);
        self.schedule(unlisted, Event::Unlisted(node));
    }

    fn joins_no_more(&mut self, node: u32) {
        if let Some(record) = self.record(node)
            && std::mem::take(&mut record.joining)
        {
            self.joining = self.joining.saturating_sub(1);
        }
    }

    fn is_no_more_alive(&mut self, record: &NodeRecord) {
        if let Some(count) = self.alive.get_mut(&(Arc::clone(&record.pool), Arc::clone(&record.zone))) {
            *count = count.saturating_sub(1);
        }
    }

    fn leaves_room(&mut self, record: &NodeRecord) {
        if let Some(count) = self.used.get_mut(&record.zone) {
            *count = count.saturating_sub(1);
        }
    }
}
