//! What an engine reads for its books: all of it at first, and what is due in each step.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_core::{
    fleet::{
        Node, State,
        books::{Figures, News},
    },
    id::NodeId,
    time::Timestamp,
};
use millrace_store::{NodeFilter, Pools, QueueDemand, Result, SessionRow, Store};

use super::{Done, Engine};
use crate::convert;

/// The label by which the session of an orchestrator names its node.
pub const NODE_LABEL: &str = "millrace.node";

/// Nodes of one page.
const PAGE: i64 = 1_000;

/// Gone nodes of the last day that are read: as many as the books remember. The newest, if there are more.
const PAST: usize = 20_000;

/// How far back gone nodes tell how long joins take, and which instances are leftovers.
const DAY: Duration = Duration::from_secs(86_400);

/// Queues of one statement, so that each is short.
const QUEUES: usize = 64;

/// Sessions that are looked at. Past them a session that is not among them may live all the same, so nothing is concluded.
const SESSIONS: i64 = 50_000;

/// Drains that are taken up in a step; the rest with the next one.
const DRAINS: i64 = 1_000;

/// When what was last read, and what it was.
#[derive(Debug, Default)]
pub(super) struct Reads {
    demand: Option<Timestamp>,
    pools: Option<Timestamp>,
    sessions: Option<Timestamp>,
    /// Nodes whose orchestrators had a live session.
    live: BTreeSet<NodeId>,
    /// Queues that pools name and that do not exist, so that each is told once.
    absent: BTreeSet<String>,
}

fn due(last: Option<Timestamp>, every: Duration, now: Timestamp) -> bool {
    last.is_none_or(|last| now.since(last) >= every)
}

impl Engine {
    /// Loads what is stored: pools, nodes that are not gone, and those that went within the last day. To be called once, before the
    /// first step; providers must be set.
    ///
    /// # Errors
    /// When the store cannot be read: make a new engine and try again.
    pub fn load(&mut self, store: &dyn Store, now: Timestamp) -> Result<()> {
        let pools = store.pools()?;
        let _ = self.take_pools(pools);
        let (mut nodes, mut unreadable) = (BTreeMap::new(), Vec::new());
        let gone = NodeFilter { states: vec![State::Gone], since: Some(now.before(DAY)), ..NodeFilter::default() };
        for (filter, most) in [(NodeFilter::default(), usize::MAX), (gone, PAST)] {
            let mut below = None;
            let mut left = most;
            loop {
                let page = store.nodes(&filter, below, PAGE)?;
                left = left.saturating_sub(page.rows.len());
                unreadable.extend(page.unreadable);
                nodes.extend(page.rows.into_iter().map(|row| (row.node.id, row.node)));
                below = page.next;
                if below.is_none() || left == 0 {
                    break;
                }
            }
        }
        self.blind.set_nodes(unreadable);
        // In the order of the ids, which is that of the launches.
        for node in nodes.into_values() {
            self.load_node(node);
        }
        Ok(())
    }

    fn load_node(&mut self, mut node: Node) {
        if self.fleet.pool(&node.pool).is_none()
            && node.state != State::Gone
            && let Some(pool) = self.blind.stand_in(&node.pool, &node.provider)
        {
            self.fleet.set_pool(pool);
        }
        if !matches!(node.state, State::Draining | State::Terminating | State::Gone) {
            // Asked for, and not begun before the last leader went: it is begun when it is read with the others.
            node.drain_asked = false;
        }
        self.fleet.load(node);
    }

    /// Reads what is due. After the first read that fails the rest waits for the next step: a database that is away costs one time-out.
    pub(super) fn read(&mut self, store: &dyn Store, now: Timestamp, done: &mut Done) {
        let read = self
            .read_pools(store, now, done)
            .and_then(|()| self.read_demand(store, now, done))
            .and_then(|()| self.read_sessions(store, now));
        done.unread = read.err();
    }

    fn read_pools(&mut self, store: &dyn Store, now: Timestamp, done: &mut Done) -> Result<()> {
        if !due(self.reads.pools, self.settings.pools_every, now) {
            return Ok(());
        }
        let pools = store.pools()?;
        done.pools_changed = self.take_pools(pools);
        for (node, reason) in store.drains_asked(DRAINS)? {
            // A node that is not on the books has gone meanwhile.
            let _ = self.fleet.ask_drain(node, &reason, now);
        }
        self.reads.pools = Some(now);
        Ok(())
    }

    /// Whether any is another than before.
    fn take_pools(&mut self, pools: Pools) -> bool {
        let mut changed = false;
        let mut unreadable: BTreeMap<String, String> = pools.unreadable.into_iter().collect();
        let mut there = BTreeSet::new();
        for row in pools.rows {
            there.insert(row.name.clone());
            if self.versions.get(&row.name) == Some(&row.version) && self.fleet.pool(&row.name).is_some() {
                continue;
            }
            match convert::pool::booked(&row) {
                Ok(pool) => {
                    self.versions.insert(row.name, row.version);
                    self.fleet.set_pool(pool);
                    changed = true;
                }
                Err(error) => drop(unreadable.insert(row.name, error)),
            }
        }
        let is_there = |name: &str| there.contains(name) || unreadable.contains_key(name);
        let removed = self.fleet.pool_names().filter(|name| !is_there(name));
        let removed: Vec<String> = removed.map(str::to_owned).collect();
        for name in &removed {
            self.fleet.remove_pool(name);
            self.statuses.forget(name);
        }
        changed |= !removed.is_empty();
        self.versions.retain(|name, _| is_there(name));
        self.blind.set_pools(unreadable);
        changed
    }

    fn read_demand(&mut self, store: &dyn Store, now: Timestamp, done: &mut Done) -> Result<()> {
        if !due(self.reads.demand, self.settings.demand_every, now) {
            return Ok(());
        }
        let queues: Vec<String> = self.fleet.queues().into_iter().map(str::to_owned).collect();
        let mut rows = Vec::new();
        for part in queues.chunks(QUEUES) {
            let read = store.queue_demand(part, self.settings.demand_window)?;
            self.take_demand(part, &read, now);
            rows.extend(read);
        }
        self.demand.retain(|queue, _| queues.contains(queue));
        self.reads.absent.retain(|queue| queues.contains(queue));
        done.demand = Some(rows);
        self.reads.demand = Some(now);
        Ok(())
    }

    /// A queue that is asked for and not there has nothing for anyone to do.
    fn take_demand(&mut self, asked: &[String], rows: &[QueueDemand], now: Timestamp) {
        let there: BTreeMap<&str, &QueueDemand> = rows.iter().map(|row| (row.queue.as_str(), row)).collect();
        for queue in asked {
            match there.get(queue.as_str()) {
                Some(row) => {
                    self.fleet.demand(queue, figures(row), now);
                    self.demand.insert(queue.clone(), (*row).clone());
                    self.reads.absent.remove(queue);
                }
                None => {
                    self.fleet.demand(queue, Figures::default(), now);
                    self.demand.remove(queue);
                    if self.reads.absent.insert(queue.clone()) {
                        tracing::warn!(queue, "a pool serves a queue that does not exist: it asks for no nodes");
                    }
                }
            }
        }
    }

    fn read_sessions(&mut self, store: &dyn Store, now: Timestamp) -> Result<()> {
        if !due(self.reads.sessions, self.settings.sessions_every, now) {
            return Ok(());
        }
        let rows = store.sessions(SESSIONS)?;
        let whole = (rows.len() as i64) < SESSIONS;
        let live: BTreeSet<NodeId> = rows.iter().filter_map(node_of).collect();
        // Told each time, not only at a change: a node that was held back meanwhile works again by this.
        for node in &live {
            let _ = self.fleet.heard(*node, News::Session { live: true }, now);
        }
        if whole {
            for node in self.reads.live.difference(&live) {
                let _ = self.fleet.heard(*node, News::Session { live: false }, now);
            }
            self.reads.live = live;
        }
        self.reads.sessions = Some(now);
        Ok(())
    }
}

/// The node that a live session is of.
fn node_of(row: &SessionRow) -> Option<NodeId> {
    row.session.labels.get(NODE_LABEL).filter(|_| row.live)?.parse().ok()
}

/// A queue's demand as the books have it.
fn figures(row: &QueueDemand) -> Figures {
    let over = Duration::from_micros(u64::try_from(row.arrivals_over_us).unwrap_or(0));
    Figures {
        waiting: u64::try_from(row.waiting).unwrap_or(0),
        running: u64::try_from(row.running).unwrap_or(0),
        oldest_age: row.oldest_ready_at_us.map(|oldest| convert::age(row.now_us, oldest)),
        paused: row.paused,
        arrival_rate: (!over.is_zero()).then(|| row.arrivals as f64 / over.as_secs_f64()),
        run_time: row.run_time_us.map(|us| Duration::from_micros(u64::try_from(us).unwrap_or(0))),
    }
}
