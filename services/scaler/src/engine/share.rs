//! Which part of a queue's work is a pool's.

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::fleet::Pool;

/// The parts that pools have of queues: by slots, like the books split them. A pool that stands in for another has no part of a queue
/// that the other serves.
#[derive(Debug, Default)]
pub(crate) struct Shares<'a> {
    /// Slots of all pools that have a part of a queue.
    slots: BTreeMap<&'a str, f64>,
    /// Pools and queues of which they have no part.
    without: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Shares<'a> {
    /// The parts of these pools. Costs what is written in them, not pools times pools.
    pub(crate) fn of(pools: impl Iterator<Item = &'a Pool> + Clone) -> Self {
        let mut shares = Self::default();
        for pool in pools.clone() {
            let queues = || pool.queues.iter().map(String::as_str);
            let others = pool.fallback.iter().flat_map(|other| queues().map(move |queue| (other.as_str(), queue)));
            shares.without.extend(others);
            if pool.deleting {
                shares.without.extend(queues().map(|queue| (pool.name.as_str(), queue)));
            }
        }
        for pool in pools {
            for queue in &pool.queues {
                *shares.slots.entry(queue).or_default() += shares_of(&shares.without, pool, queue);
            }
        }
        shares
    }

    /// The pool's part of each of its queues, 0 to 1.
    pub(crate) fn parts<'p>(&self, pool: &'p Pool) -> BTreeMap<&'p str, f64> {
        let part = |queue: &'p String| {
            let all = self.slots.get(queue.as_str()).copied().unwrap_or(0.0);
            let own = shares_of(&self.without, pool, queue);
            (queue.as_str(), if all > 0.0 { own / all } else { 0.0 })
        };
        pool.queues.iter().map(part).collect()
    }
}

fn shares_of(without: &BTreeSet<(&str, &str)>, pool: &Pool, queue: &str) -> f64 {
    match without.contains(&(pool.name.as_str(), queue)) {
        true => 0.0,
        false => f64::from(pool.max) * f64::from(pool.slots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_split_by_slots_and_those_that_stand_in_have_no_part() {
        let big = Pool { max: 30, slots: 2, fallback: vec!["spare".into()], ..Pool::new("big", "x", &["a", "b"]) };
        let small = Pool { max: 20, slots: 1, ..Pool::new("small", "x", &["a"]) };
        let spare = Pool::new("spare", "x", &["a", "c"]);
        let going = Pool { deleting: true, ..Pool::new("going", "x", &["a"]) };
        let pools = [big, small, spare, going];
        let shares = Shares::of(pools.iter());
        let part = |pool: usize, queue| shares.parts(&pools[pool])[queue];
        assert_eq!((part(0, "a"), part(1, "a"), part(2, "a"), part(3, "a")), (0.75, 0.25, 0.0, 0.0));
        assert_eq!((part(0, "b"), part(2, "c")), (1.0, 1.0));
    }
}
