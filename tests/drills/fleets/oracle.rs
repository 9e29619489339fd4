//! What the best possible scaler could do that knows every join time and the provider's true limit. It shares no code with the policy.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::tasks::Ms;

/// A surge to be worked off.
#[derive(Debug, Clone)]
pub(crate) struct Surge {
    /// When each node that works already is free.
    pub(crate) there: Vec<Ms>,
    /// When a node that is launched at the n-th moment at which the provider takes a launch is ready; none when it never is.
    pub(crate) ready: Vec<Option<Ms>>,
    /// At most this many nodes, those that are there included.
    pub(crate) most: usize,
    /// Tasks that one node runs at a time.
    pub(crate) slots: usize,
    /// When each task comes, in order, and how long it runs.
    pub(crate) tasks: Vec<(Ms, Ms)>,
}

impl Surge {
    /// When the last task has ended, at the earliest. Every launch costs the same and one more is never in the way, so the best choice of
    /// launches is those that are ready first.
    pub(crate) fn best(&self) -> Ms {
        let mut ready: Vec<Ms> = self.ready.iter().flatten().copied().collect();
        ready.sort_unstable();
        ready.truncate(self.most.saturating_sub(self.there.len()));
        ready.extend(&self.there);
        self.drained(&ready)
    }

    /// When the last task has ended with nodes that are ready at these moments; never without nodes.
    fn drained(&self, ready: &[Ms]) -> Ms {
        if ready.is_empty() {
            return Ms::MAX;
        }
        // A slot that is free earliest takes the next task.
        let slots = ready.iter().flat_map(|at| std::iter::repeat_n(Reverse(*at), self.slots));
        let mut free: BinaryHeap<Reverse<Ms>> = slots.collect();
        let mut last = 0;
        for (came, takes) in &self.tasks {
            let Some(Reverse(at)) = free.pop() else { break };
            let end = at.max(*came) + takes;
            free.push(Reverse(end));
            last = last.max(end);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small surges of every shape: the choice is as good as the best of all subsets of launches.
    #[test]
    fn no_choice_of_launches_is_better() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let launches = 1 + random(8) as usize;
            let takes = 1 + random(20);
            let surge = Surge {
                there: (0..random(3)).collect(),
                ready: (0..launches as u64).map(|at| (random(4) > 0).then(|| at * 3 + random(30))).collect(),
                most: 1 + random(6) as usize,
                slots: 1 + random(2) as usize,
                tasks: (0..1 + random(12)).map(|at| (at / 2, takes)).collect(),
            };
            let mut best = Ms::MAX;
            for subset in 0_u32..1 << launches {
                let chosen = surge.ready.iter().enumerate().filter(|(at, _)| subset >> at & 1 == 1);
                let mut ready: Vec<Ms> = chosen.filter_map(|(_, at)| *at).collect();
                let launched = subset.count_ones() as usize;
                if launched + surge.there.len() > surge.most && launched > 0 {
                    continue;
                }
                ready.extend(&surge.there);
                best = best.min(surge.drained(&ready));
            }
            assert_eq!(surge.best(), best, "{surge:?}");
        }
    }
}
