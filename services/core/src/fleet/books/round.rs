//! A round: every pool's size, and what follows from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Entry, Figures, Fleet};
use crate::{
    fleet::{
        Pool, State,
        size::{Demand, Step},
    },
    id::NodeId,
    time::Timestamp,
};

impl Fleet {
    /// Decides. `ids` makes the ids of new nodes, which must rise with time.
    pub fn round(&mut self, now: Timestamp, ids: &mut dyn FnMut() -> NodeId) {
        let names = self.in_order();
        let demands = self.demands(now);
        for name in &names {
            self.learn_grace(name, now);
            if let Some(books) = self.pools.get_mut(name) {
                books.obstacles.clear();
            }
            self.look_after(name, now);
            self.size(name, demands.get(name).and_then(Option::as_ref), now);
            let counted = self.counted(name);
            self.act(name, counted, ids, now);
            self.conclude(name, counted, now);
        }
    }

    /// Pools in an order in which one that another falls back on comes after it, so that its size counts what the other could not get.
    fn in_order(&self) -> Vec<String> {
        let fallbacks: BTreeSet<&str> =
            self.pools.values().flat_map(|books| books.pool.fallback.iter().map(String::as_str)).collect();
        let (last, first): (Vec<&String>, Vec<&String>) =
            self.pools.keys().partition(|name| fallbacks.contains(name.as_str()));
        first.into_iter().chain(last).cloned().collect()
    }

    /// What the queues ask of each pool; none while that is not known.
    fn demands(&self, now: Timestamp) -> BTreeMap<String, Option<Demand>> {
        let weights = self.weights();
        let fresh = |queue: &String| {
            let (figures, at) = self.queues.get(queue)?;
            (now.since(*at) < self.settings.demand_holds).then_some(figures)
        };
        let of = |pool: &Pool| {
            let mut sum = Demand::default();
            for queue in &pool.queues {
                let share = share_of(pool, &weights[queue.as_str()]);
                if share > 0.0 {
                    add(&mut sum, fresh(queue)?, share);
                }
            }
            sum.running = self.running(pool);
            Some(sum)
        };
        self.pools.values().map(|books| (books.pool.name.clone(), of(&books.pool))).collect()
    }

    /// The pools that serve each queue, by their greatest number of slots. Pools that only stand in for others are asked for what those could
    /// not get, so they have a share of a queue only when no other pool serves it.
    fn weights(&self) -> BTreeMap<&str, BTreeMap<&str, f64>> {
        let stands_in = |pool: &Pool, queue: &String| {
            let falls_back = |other: &Pool| other.fallback.contains(&pool.name) && other.queues.contains(queue);
            self.pools.values().any(|books| falls_back(&books.pool))
        };
        let mut weights: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
        for pool in self.pools.values().map(|books| &books.pool) {
            for queue in &pool.queues {
                let pools = weights.entry(queue.as_str()).or_default();
                if !pool.deleting && !stands_in(pool, queue) {
                    pools.insert(&pool.name, f64::from(pool.max) * f64::from(pool.slots));
                }
            }
        }
        weights
    }

    /// Tasks that the pool's nodes run, as they say themselves.
    fn running(&self, pool: &Pool) -> f64 {
        let Some(books) = self.pools.get(&pool.name) else { return 0.0 };
        let working = |entry: &&Entry| matches!(entry.node.state, State::Ready | State::Suspect);
        let nodes = books.nodes.iter().filter_map(|id| self.nodes.get(id)).filter(working);
        nodes.map(|entry| f64::from(entry.running)).fold(0.0, std::ops::Add::add)
    }

    fn learn_grace(&mut self, name: &str, now: Timestamp) {
        let Some(books) = self.pools.get_mut(name) else { return };
        let (min, max) = (books.pool.join_min, books.pool.join_max);
        books.graces = books.joins.iter().map(|(zone, joins)| (zone.clone(), joins.grace(min, max, now))).collect();
    }

    /// Nodes that work or are still expected to.
    fn counted(&self, name: &str) -> u32 {
        let Some(books) = self.pools.get(name) else { return 0 };
        self.count(books, |entry| {
            let late = entry.node.state == State::Suspect && entry.doubt == Some(super::Doubt::Late);
            // While many are late together it is the estimate that is wrong, so they are still expected.
            let expected = late && books.graces.get(&entry.node.zone).is_some_and(|grace| grace.late_together);
            entry.node.state.is_coming() || entry.node.state == State::Ready || expected
        })
    }

    fn size(&mut self, name: &str, demand: Option<&Demand>, now: Timestamp) {
        let counted = self.counted(name);
        let Some(books) = self.pools.get_mut(name) else { return };
        let mut size = books.policy.desire(&books.pool, demand, counted, now);
        let (spill, until) = books.spill;
        if spill > 0 && now < until && !books.pool.deleting {
            let most = books.pool.by_hand(now).and_then(|by_hand| by_hand.max).unwrap_or(books.pool.max);
            size.desired = size.desired.saturating_add(spill).min(most.max(size.desired));
            let detail = format!("{spill} nodes that pools which fall back on this one could not get");
            size.steps.push(Step { rule: "fallback", nodes: size.desired, detail });
        }
        let wait = demand.and_then(|demand| demand.oldest_age).unwrap_or(Duration::ZERO);
        let lacking = f64::from(size.desired.saturating_sub(counted)) / f64::from(size.desired.max(1));
        books.need = lacking * (1.0 + wait.as_secs_f64() / books.pool.target_wait.as_secs_f64().max(1.0));
        books.size = size;
    }

    fn act(&mut self, name: &str, counted: u32, ids: &mut dyn FnMut() -> NodeId, now: Timestamp) {
        let Some(books) = self.pools.get(name) else { return };
        let desired = books.size.desired;
        let deleting = books.pool.deleting;
        if desired > counted {
            let cannot = self.launch(name, desired - counted, ids, now);
            self.fall_back(name, cannot, now);
        } else if desired < counted || deleting {
            self.shrink(name, counted, now);
        }
        if deleting && self.pools.get(name).is_some_and(|books| books.nodes.is_empty()) {
            self.emptied.insert(name.into());
        }
    }

    /// Asks the first fallback pool with room for what this pool cannot get. It is remembered for as long as the pool itself waits before it
    /// shrinks, so that a zone that comes and goes does not swing the other.
    fn fall_back(&mut self, name: &str, nodes: u32, now: Timestamp) {
        if nodes == 0 {
            return;
        }
        let Some(books) = self.pools.get(name) else { return };
        let mut left = nodes;
        for other in books.pool.fallback.clone() {
            let counted = self.counted(&other);
            let Some(other) = self.pools.get_mut(&other).filter(|_| left > 0) else { continue };
            let room = other.pool.max.saturating_sub(counted.saturating_sub(other.spill.0.min(counted)));
            let asked = left.min(room);
            let until = now.after(other.pool.scale_down_after);
            let keeps = if now < other.spill.1 { other.spill.0 } else { 0 };
            other.spill = (asked.max(keeps), until);
            left -= asked;
        }
    }

    /// One line on what the pool does and why; a decision when it is another one than before.
    fn conclude(&mut self, name: &str, counted: u32, now: Timestamp) {
        let Some(books) = self.pools.get_mut(name) else { return };
        let desired = books.size.desired;
        let because = books.size.steps.iter().rev().find(|step| step.nodes == desired);
        let because = because.map(|step| format!("{}: {}", step.rule, step.detail)).unwrap_or_default();
        let held = books.obstacles.first().map(|obstacle| format!("; {obstacle}")).unwrap_or_default();
        let (key, summary) = match desired.cmp(&counted) {
            std::cmp::Ordering::Greater => {
                (format!("grow {desired}{held}"), format!("grows to {desired} nodes{held} ({because})"))
            }
            std::cmp::Ordering::Less => {
                (format!("shrink {desired}{held}"), format!("shrinks to {desired} nodes{held} ({because})"))
            }
            std::cmp::Ordering::Equal => {
                (format!("stay {desired}{held}"), format!("stays at {desired} nodes{held} ({because})"))
            }
        };
        books.summary = summary.clone();
        if books.decided_key.as_deref() != Some(&key) {
            books.decided_key = Some(key);
            let decision = books.decide(now, summary);
            self.decisions.push(decision);
        }
    }
}

/// The pool's share of a queue.
fn share_of(pool: &Pool, weights: &BTreeMap<&str, f64>) -> f64 {
    let all: f64 = weights.values().sum();
    weights.get(pool.name.as_str()).map_or(0.0, |weight| weight / all)
}

/// Adds a share of a queue's figures.
fn add(sum: &mut Demand, figures: &Figures, share: f64) {
    if figures.paused {
        return;
    }
    let waiting = figures.waiting as f64 * share;
    // The run time of the whole is the mean over what comes in, or over what waits while nothing does.
    let rate = figures.arrival_rate.map(|rate| rate * share);
    let (had, has) = (sum.arrival_rate.unwrap_or(0.0) + sum.waiting, rate.unwrap_or(0.0) + waiting);
    sum.run_time = match (sum.run_time, figures.run_time) {
        (Some(a), Some(b)) if had + has > 0.0 => {
            Some(Duration::from_secs_f64((a.as_secs_f64() * had + b.as_secs_f64() * has) / (had + has)))
        }
        (a, b) => a.or(b),
    };
    sum.waiting += waiting;
    sum.oldest_age = sum.oldest_age.max(figures.oldest_age);
    sum.arrival_rate = match (sum.arrival_rate, rate) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    };
}
