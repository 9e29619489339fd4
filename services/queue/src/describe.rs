//! Queues with their figures, as people see them.

use std::{collections::BTreeMap, time::Duration};

use millrace_proto::queue::v1::{Queue, QueueStats};
use millrace_store::{COUNT_BOUND, OwnerRow, QueueCounts, QueueRow, Store, StoreError};

use crate::{Figures, Host, convert};

/// The rows behind queues and their figures.
#[derive(Debug)]
pub(crate) struct Described {
    queues: Vec<QueueRow>,
    counts: Vec<QueueCounts>,
    owners: Vec<OwnerRow>,
}

impl Described {
    /// Reads the figures of these queues. With no queue at all, reads nothing.
    pub(crate) fn read(store: &dyn Store, queues: Vec<QueueRow>) -> Result<Self, StoreError> {
        if queues.is_empty() {
            return Ok(Self { queues, counts: Vec::new(), owners: Vec::new() });
        }
        let names: Vec<String> = queues.iter().map(|row| row.name.clone()).collect();
        Ok(Self { queues, counts: store.counts(&names)?, owners: store.owners()? })
    }

    /// The queues as people see them; the owner's own figures are there where this process is the owner.
    pub(crate) fn describe(self, host: &Host) -> Vec<Queue> {
        let counts: BTreeMap<&str, &QueueCounts> = self.counts.iter().map(|row| (row.name.as_str(), row)).collect();
        let owners: BTreeMap<&str, &OwnerRow> = self.owners.iter().map(|row| (row.queue.as_str(), row)).collect();
        let queues = self.queues.into_iter().map(|row| {
            let (name, epoch) = (row.name.clone(), row.epoch);
            let counts = counts.get(name.as_str()).copied();
            let stats = stats(epoch, counts, owners.get(name.as_str()).copied(), host.figures(&name));
            Queue { stats: Some(stats), ..convert::queue(row) }
        });
        queues.collect()
    }
}

fn stats(epoch: i64, counts: Option<&QueueCounts>, owner: Option<&OwnerRow>, figures: Option<Figures>) -> QueueStats {
    let mut stats = QueueStats { epoch, ..QueueStats::default() };
    if let Some(counts) = counts {
        stats.depth = counts.queued.min(COUNT_BOUND);
        stats.depth_is_lower_bound = counts.queued >= COUNT_BOUND;
        stats.scheduled = counts.scheduled.min(COUNT_BOUND);
        stats.running = counts.held.min(COUNT_BOUND);
        let age_us = counts.oldest_ready_at_us.map(|oldest| counts.now_us.saturating_sub(oldest).max(0));
        stats.oldest_age = age_us.map(|us| convert::duration(Duration::from_micros(us as u64)));
    }
    if let Some((_, endpoint)) = owner.and_then(|row| row.owner.as_ref()) {
        stats.owner = endpoint.clone();
    }
    if let Some(figures) = figures {
        stats.epoch = figures.epoch;
        stats.arrival_rate = Some(figures.arrival_rate);
        stats.dispatch_rate = Some(figures.dispatch_rate);
        stats.window = i64::try_from(figures.window).ok();
        stats.window_capacity = i64::try_from(figures.window_capacity).ok();
        stats.demand = i64::try_from(figures.demand).ok();
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_owner_are_there_only_where_it_is_this_process() {
        let counts = QueueCounts {
            name: "q".into(),
            queued: COUNT_BOUND,
            scheduled: 2,
            held: 3,
            oldest_ready_at_us: Some(1_000_000),
            now_us: 3_500_000,
        };
        let elsewhere = stats(4, Some(&counts), None, None);
        assert_eq!((elsewhere.depth, elsewhere.depth_is_lower_bound), (COUNT_BOUND, true));
        assert_eq!((elsewhere.scheduled, elsewhere.running, elsewhere.epoch), (2, 3, 4));
        assert_eq!(elsewhere.oldest_age, Some(prost_types::Duration { seconds: 2, nanos: 500_000_000 }));
        assert_eq!((elsewhere.window, elsewhere.arrival_rate, elsewhere.owner.as_str()), (None, None, ""));
        let here = stats(4, None, None, Some(Figures { epoch: 5, window: 7, demand: 9, ..Figures::default() }));
        assert_eq!((here.epoch, here.window, here.demand, here.oldest_age), (5, Some(7), Some(9), None));
    }
}
