//! What the backends share about pools, nodes and the demand for them: bounds, filters, and the times in the ids of tasks.

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::{
    fleet::{Node, State},
    id::NodeId,
    task,
};
use uuid::Uuid;

use crate::{FleetBatch, NodeEventRow, NodeFilter};

/// How many pools and statuses are read at once.
pub(crate) const POOLS_BOUND: i64 = 10_000;

/// How many tasks are looked at to count arrivals, and as many that have ended for the times that they ran.
pub(crate) const LOOKED_AT: i64 = 20_000;

/// Over how many of a queue's tasks the run time is averaged.
pub(crate) const RUN_TIMES: i64 = 2_000;

/// Arrivals that were all looked at in less than this say nothing about a rate: ids count milliseconds, and a batch has one.
const SHORTEST_SPAN_US: i64 = 1_000_000;

/// A run that seems longer than this, in microseconds, counts as this long: clocks of orchestrators say when it began and ended.
pub(crate) const LONGEST_RUN_US: i64 = 1_000_000_000_000_000;

/// States of tasks whose run time says how long tasks run.
pub(crate) const RAN: [i16; 2] = [task::State::Succeeded as i16, task::State::Failed as i16];

// ── Nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

impl NodeFilter {
    /// Whether no node that has gone can match.
    pub(crate) fn is_of_the_living(&self) -> bool {
        !self.states.contains(&State::Gone)
    }

    /// Whether this node matches.
    pub(crate) fn takes(&self, node: &Node) -> bool {
        let state = match self.states.is_empty() {
            true => node.state != State::Gone,
            false => self.states.contains(&node.state),
        };
        let recent = |since| node.requested_at >= since || node.gone_at.is_some_and(|gone_at| gone_at >= since);
        state && self.pool.as_ref().is_none_or(|pool| *pool == node.pool) && self.since.is_none_or(recent)
    }
}

/// A state by its number, as rows hold it.
pub(crate) fn node_state(number: i16) -> Result<State, String> {
    State::of(number).ok_or_else(|| format!("node state {number} is not known to this build"))
}

/// Text that a provider or a node has said, as databases can keep it: a round must not be lost to a character.
pub(crate) fn storable(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

/// A batch as every database writes it: a node once, as it is given last, in the order of the ids; an event once; texts that can be stored.
pub(crate) fn normal(batch: &FleetBatch) -> FleetBatch {
    let node = |node: &Node| Node {
        pool: storable(&node.pool),
        provider: storable(&node.provider),
        zone: storable(&node.zone),
        instance: storable(&node.instance),
        reason: storable(&node.reason),
        boot_stage: storable(&node.boot_stage),
        ..node.clone()
    };
    let nodes: BTreeMap<NodeId, Node> = batch.nodes.iter().map(|one| (one.id, node(one))).collect();
    let mut events: Vec<NodeEventRow> = Vec::with_capacity(batch.events.len());
    let mut seen = BTreeSet::new();
    for event in &batch.events {
        let event = NodeEventRow { reason: storable(&event.reason), ..event.clone() };
        if seen.insert((event.node, event.at_us, event.state, event.reason.clone())) {
            events.push(event);
        }
    }
    let statuses: BTreeMap<&String, _> = batch.statuses.iter().map(|status| (&status.pool, status)).collect();
    let emptied: BTreeSet<&String> = batch.emptied.iter().collect();
    FleetBatch {
        nodes: nodes.into_values().collect(),
        events,
        statuses: statuses.into_values().cloned().collect(),
        emptied: emptied.into_iter().cloned().collect(),
    }
}

// ── Demand ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// The smallest id (UUID version 7) that a task submitted then can have. The moment is in microseconds since 1970.
pub(crate) fn first_id_at(moment_us: i64) -> Uuid {
    let millis = u64::try_from(moment_us.div_euclid(1000)).unwrap_or(0).min((1 << 48) - 1);
    Uuid::from_u128((u128::from(millis) << 80) | (0x7 << 76) | (0b10 << 62))
}

/// When a task with this id was submitted, microseconds since 1970.
pub(crate) fn submitted_at(id: Uuid) -> i64 {
    // 48 bits times a thousand fit.
    (id.as_u128() >> 80) as i64 * 1000
}

/// The span over which arrivals were counted: the window, or as far back as the oldest task that was looked at when the bound was reached.
pub(crate) fn span_us(now_us: i64, window_us: i64, looked_at: i64, oldest: Option<Uuid>) -> i64 {
    match oldest {
        Some(oldest) if looked_at >= LOOKED_AT => {
            now_us.saturating_sub(submitted_at(oldest)).clamp(SHORTEST_SPAN_US, window_us.max(SHORTEST_SPAN_US))
        }
        _ => window_us,
    }
}

/// The average run time of a queue's tasks, fed with the newest first.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RunTime {
    total_us: f64,
    count: i64,
}

impl RunTime {
    /// A task that ran from then until then, by its orchestrator's clock.
    pub(crate) fn see(&mut self, started_at_us: i64, ended_at_us: i64) {
        if ended_at_us >= started_at_us && self.count < RUN_TIMES {
            self.total_us += ended_at_us.saturating_sub(started_at_us).min(LONGEST_RUN_US) as f64;
            self.count += 1;
        }
    }

    /// The average in microseconds; none until there was a task.
    pub(crate) fn average_us(&self) -> Option<i64> {
        (self.count > 0).then(|| (self.total_us / self.count as f64) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_when_a_task_was_submitted() {
        let moment_us = 1_700_000_000_123_000;
        let first = first_id_at(moment_us + 999);
        assert_eq!(first.to_string(), "018bcfe5-687b-7000-8000-000000000000");
        assert_eq!((submitted_at(first), first.get_version_num()), (moment_us, 7));
        assert_eq!(first_id_at(-5), first_id_at(0));
        let later = Uuid::now_v7();
        assert!(first_id_at(submitted_at(later)) <= later && later < first_id_at(submitted_at(later) + 1000));
    }

    #[test]
    fn arrivals_count_over_what_was_looked_at() {
        let now_us = 1_700_000_100_000_000;
        let oldest = Some(first_id_at(now_us - 5_000_000));
        assert_eq!(span_us(now_us, 60_000_000, LOOKED_AT - 1, oldest), 60_000_000);
        assert_eq!(span_us(now_us, 60_000_000, LOOKED_AT, oldest), 5_000_000);
        assert_eq!(span_us(now_us, 60_000_000, LOOKED_AT, Some(first_id_at(now_us))), SHORTEST_SPAN_US);
        assert_eq!(span_us(now_us, 500_000, LOOKED_AT, Some(first_id_at(now_us))), SHORTEST_SPAN_US);
        assert_eq!(span_us(now_us, 60_000_000, 0, None), 60_000_000);
    }

    #[test]
    fn run_times_are_averaged_over_the_newest() {
        let mut run = RunTime::default();
        assert_eq!(run.average_us(), None);
        run.see(10, 5);
        assert_eq!(run.average_us(), None, "a clock that went back says nothing");
        (0..RUN_TIMES).for_each(|_| run.see(0, 3));
        run.see(0, 1_000_000);
        assert_eq!(run.average_us(), Some(3));
        let mut longest = RunTime::default();
        longest.see(i64::MIN, i64::MAX);
        assert_eq!(longest.average_us(), Some(LONGEST_RUN_US));
    }
}
