//! Tasks on a virtual clock: they come, wait, run on the slots of nodes that work, and end. Nothing of the suite is used, so that it can judge.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

/// A moment, and a span, in milliseconds since the drill began.
pub(crate) type Ms = u64;

/// Tasks of one queue and the nodes that run them.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    /// When those that wait came, the oldest first.
    waiting: VecDeque<Ms>,
    /// When what runs ends, and on which node.
    ends: BinaryHeap<Reverse<(Ms, u64)>>,
    nodes: BTreeMap<u64, Node>,
    /// Nodes with room, so that a start looks at no other.
    free: Vec<u64>,
    pub(crate) came: u64,
    pub(crate) ended: u64,
    /// Tasks that were on a node when it was taken away: they wait again.
    pub(crate) lost: u64,
    /// How long each task waited that has started.
    pub(crate) waits: Vec<Ms>,
    /// The run times that ended of late.
    recent: VecDeque<Ms>,
    /// When tasks came of late.
    arrivals: VecDeque<Ms>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    slots: u32,
    running: u32,
    open: bool,
}

/// Arrivals and run times count for this long.
const WINDOW: Ms = 60_000;

impl Tasks {
    /// Tasks come.
    pub(crate) fn come(&mut self, count: u64, now: Ms) {
        self.came += count;
        for _ in 0..count {
            self.waiting.push_back(now);
            self.arrivals.push_back(now);
        }
    }

    /// A node takes work.
    pub(crate) fn open(&mut self, node: u64, slots: u32) {
        let entry = self.nodes.entry(node).or_insert(Node { slots, running: 0, open: true });
        entry.open = true;
        self.free.push(node);
    }

    /// A node starts nothing new.
    pub(crate) fn close(&mut self, node: u64) {
        if let Some(entry) = self.nodes.get_mut(&node) {
            entry.open = false;
        }
    }

    /// A node is no more; what ran on it waits again.
    pub(crate) fn remove(&mut self, node: u64, now: Ms) {
        let Some(entry) = self.nodes.remove(&node) else { return };
        if entry.running > 0 {
            self.ends = std::mem::take(&mut self.ends).into_iter().filter(|Reverse((_, on))| *on != node).collect();
            self.lost += u64::from(entry.running);
            for _ in 0..entry.running {
                self.waiting.push_front(now);
            }
        }
    }

    /// Time has passed: what has run ends, and what waits starts. `run_time` says how long the next task runs.
    pub(crate) fn pass(&mut self, now: Ms, mut run_time: impl FnMut() -> Ms) {
        while let Some(Reverse((at, node))) = self.ends.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.ends.pop();
            self.ended += 1;
            if let Some(entry) = self.nodes.get_mut(&node) {
                entry.running -= 1;
                self.free.push(node);
            }
            // The slot takes the next task at the moment at which it became free.
            self.start(at, &mut run_time);
        }
        self.start(now, &mut run_time);
        while self.arrivals.front().is_some_and(|at| at + WINDOW < now) {
            self.arrivals.pop_front();
        }
    }

    fn start(&mut self, now: Ms, run_time: &mut impl FnMut() -> Ms) {
        while !self.waiting.is_empty()
            && let Some(node) = self.free.pop()
        {
            let Some(entry) = self.nodes.get_mut(&node) else { continue };
            if !entry.open || entry.running >= entry.slots {
                continue;
            }
            entry.running += 1;
            if entry.running < entry.slots {
                self.free.push(node);
            }
            if let Some(came) = self.waiting.pop_front() {
                let takes = run_time();
                self.waits.push(now.saturating_sub(came));
                self.recent.push_back(takes);
                self.recent.truncate(2_000);
                self.ends.push(Reverse((now + takes, node)));
            }
        }
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    pub(crate) fn running(&self) -> u64 {
        self.ends.len() as u64
    }

    pub(crate) fn running_on(&self, node: u64) -> u32 {
        self.nodes.get(&node).map_or(0, |node| node.running)
    }

    /// How long the longest-waiting has waited.
    pub(crate) fn oldest(&self, now: Ms) -> Option<Ms> {
        self.waiting.front().map(|came| now.saturating_sub(*came))
    }

    /// Tasks a second over the last minute.
    pub(crate) fn arrival_rate(&self) -> f64 {
        self.arrivals.len() as f64 / (WINDOW as f64 / 1000.0)
    }

    /// The mean run time of what started of late.
    pub(crate) fn run_time(&self) -> Option<Ms> {
        let count = self.recent.len() as u64;
        (count > 0).then(|| self.recent.iter().sum::<Ms>() / count)
    }

    /// Whether everything that came has ended.
    pub(crate) fn done(&self) -> bool {
        self.waiting.is_empty() && self.ends.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_run_on_free_slots_in_the_order_in_which_they_came_and_wait_again_when_their_node_goes() {
        let mut tasks = Tasks::default();
        tasks.come(3, 0);
        tasks.pass(0, || 1_000);
        assert_eq!((tasks.waiting(), tasks.running(), tasks.oldest(500)), (3, 0, Some(500)));
        tasks.open(1, 2);
        tasks.pass(100, || 1_000);
        assert_eq!((tasks.waiting(), tasks.running(), tasks.running_on(1)), (1, 2, 2));
        tasks.pass(1_100, || 1_000);
        assert_eq!((tasks.ended, tasks.running(), tasks.waits.as_slice()), (2, 1, [100, 100, 1_100].as_slice()));
        tasks.remove(1, 1_500);
        assert_eq!((tasks.lost, tasks.waiting(), tasks.running()), (1, 1, 0));
        tasks.open(2, 1);
        tasks.close(2);
        tasks.pass(1_600, || 1_000);
        assert_eq!(tasks.running(), 0, "a closed node starts nothing");
        tasks.open(2, 1);
        tasks.pass(1_700, || 1_000);
        tasks.pass(2_700, || 1_000);
        assert!(tasks.done() && tasks.ended == 3);
    }
}
