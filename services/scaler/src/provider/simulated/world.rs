//! Everything that exists at a simulated provider, and the order of time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use millrace_core::{id::NodeId, time::Timestamp};

use super::{
    Happened, Happening,
    conditions::Conditions,
    draw::{Chance, For, scale},
    ledger::{Fate, Ledger, NodeRecord},
    script::Script,
    throttle::Bucket,
};

/// Nodes that one simulation makes, ever: the ledger keeps them all. More are refused.
pub(super) const MAX_EVER: usize = 1_000_000;

/// What nodes say that nobody has asked for yet; the oldest is forgotten and counted when it is full.
const MAX_HEARD: usize = 1_000_000;

/// Everything that exists at the provider.
#[derive(Debug)]
pub(super) struct World {
    pub(super) script: Script,
    pub(super) chance: Chance,
    pub(super) start: Timestamp,
    /// The latest time that it was asked about; it never goes back.
    pub(super) now: Timestamp,
    pub(super) ledger: Ledger,
    pub(super) bucket: Bucket,
    /// Nodes by their tokens.
    pub(super) by_id: HashMap<NodeId, u32>,
    /// Nodes that listings may show.
    pub(super) listed: BTreeSet<u32>,
    /// Orders so far, which are what refusals are drawn for.
    pub(super) orders: u64,
    /// Nodes that are neither going nor given up, by pool and zone.
    pub(super) alive: HashMap<(Arc<str>, Arc<str>), usize>,
    /// Nodes that take room, by zone.
    pub(super) used: BTreeMap<Arc<str>, u32>,
    /// Nodes that may still join.
    pub(super) joining: u32,
    names: HashSet<Arc<str>>,
    events: BinaryHeap<Reverse<(Timestamp, u64, Event)>>,
    scheduled: u64,
    heard: VecDeque<Happened>,
    forgotten: u64,
    /// Whether anybody asks what nodes say.
    watched: bool,
}

/// What happens by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Boot { node: u32, step: u8 },
    Ready(u32),
    BootFailed(u32),
    GivenUp(u32),
    Down(u32),
    Up(u32),
    SpotNotice { node: u32, at: Timestamp },
    Taken(u32),
    Gone(u32),
    Unlisted(u32),
    Reclaim(usize),
}

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom {
    pub(super) error: String,
    pub(super) retry_after: Option<Duration>,
}

impl World {
    pub(super) fn new(script: Script, start: Timestamp, watched: bool) -> Self {
        let mut world = Self {
            chance: Chance(script.seed),
            bucket: Bucket::new(&script, start),
            start,
            now: start,
            ledger: Ledger::default(),
            by_id: HashMap::new(),
            listed: BTreeSet::new(),
            orders: 0,
            alive: HashMap::new(),
            used: BTreeMap::new(),
            joining: 0,
            names: HashSet::new(),
            events: BinaryHeap::new(),
            scheduled: 0,
            heard: VecDeque::new(),
            forgotten: 0,
            watched,
            script,
        };
        for index in 0..world.script.reclaims.len() {
            let at = start.after(world.script.reclaims[index].at.0);
            world.schedule(at, Event::Reclaim(index));
        }
        world
    }

    /// Lets everything happen that is due. What holds now.
    pub(super) fn advance(&mut self, now: Timestamp) -> Timestamp {
        while let Some(Reverse((at, _, _))) = self.events.peek()
            && *at <= now
        {
            if let Some(Reverse((at, _, event))) = self.events.pop() {
                self.now = self.now.max(at);
                self.happen(event, at);
            }
        }
        self.now = self.now.max(now);
        self.now
    }

    /// When the next thing happens.
    pub(super) fn next_at(&self) -> Option<Timestamp> {
        match self.heard.is_empty() {
            true => self.events.peek().map(|Reverse((at, _, _))| *at),
            false => Some(self.now),
        }
    }

    /// What nodes have said since it was last asked, the oldest first; and how much of it was forgotten.
    pub(super) fn take_heard(&mut self) -> (Vec<Happened>, u64) {
        (self.heard.drain(..).collect(), std::mem::take(&mut self.forgotten))
    }

    pub(super) fn conditions(&self) -> &Conditions {
        self.script.at(self.start, self.now)
    }

    pub(super) fn node(&self, number: u32) -> Option<&NodeRecord> {
        self.ledger.nodes.get(usize::try_from(number).ok()?)
    }

    /// Nodes of a pool that are there to stay; an empty zone means all of them.
    pub(super) fn alive(&self, pool: &str, zone: &str) -> usize {
        let of =
            |(place, _): &(&(Arc<str>, Arc<str>), &usize)| &*place.0 == pool && (zone.is_empty() || &*place.1 == zone);
        self.alive.iter().filter(of).map(|(_, count)| count).sum()
    }

    /// The zone that a node goes to.
    pub(super) fn place(&self, zone: &str) -> Result<Arc<str>, NoRoom> {
        let conditions = self.conditions();
        if let Some(most) = conditions.capacity
            && self.used.values().sum::<u32>() >= most
        {
            return Err(NoRoom { error: format!("the account is limited to {most} nodes"), retry_after: None });
        }
        if !zone.is_empty() || conditions.zones.is_empty() {
            return self.room(conditions, zone).map(|()| self.name(zone));
        }
        let mut refusal = None;
        for zone in conditions.zones.keys() {
            match self.room(conditions, zone) {
                Ok(()) => return Ok(self.name(zone)),
                Err(no_room) => refusal = Some(no_room),
            }
        }
        Err(refusal.unwrap_or(NoRoom { error: "no zone has room".into(), retry_after: None }))
    }

    fn room(&self, conditions: &Conditions, zone: &str) -> Result<(), NoRoom> {
        let Some(limits) = conditions.zones.get(zone) else { return Ok(()) };
        let full = limits.capacity.is_some_and(|most| self.used.get(zone).copied().unwrap_or(0) >= most);
        match limits.out_of_capacity || full {
            false => Ok(()),
            true => Err(NoRoom {
                error: format!("zone {zone} has no capacity for this node type"),
                retry_after: limits.retry_after.map(|span| span.0),
            }),
        }
    }

    fn name(&self, text: &str) -> Arc<str> {
        self.names.get(text).cloned().unwrap_or_else(|| text.into())
    }

    /// Makes a node. None when the ledger is full.
    pub(super) fn create(&mut self, node_id: NodeId, pool: &str, zone: Arc<str>) -> Option<u32> {
        let number = u32::try_from(self.ledger.nodes.len()).ok().filter(|number| (*number as usize) < MAX_EVER)?;
        let phase = self.script.phase(self.start, self.now);
        let pool = self.name(pool);
        self.names.extend([Arc::clone(&pool), Arc::clone(&zone)]);
        let (runs, fate) = self.destiny(number, &zone);
        let flaps = {
            let flapping = &self.script.phases[phase].1.flapping;
            self.chance.falls(For::Flapping, number.into(), flapping.share).then_some(0)
        };
        *self.alive.entry((Arc::clone(&pool), Arc::clone(&zone))).or_default() += 1;
        *self.used.entry(Arc::clone(&zone)).or_default() += 1;
        self.joining += 1;
        self.listed.insert(number);
        self.by_id.insert(node_id, number);
        let (created, killed, reclaimed, ended) = (self.now, None, None, None);
        let joining = true;
        self.ledger.nodes.push(NodeRecord {
            number,
            node_id,
            pool,
            zone,
            created,
            runs,
            fate,
            killed,
            reclaimed,
            ended,
            phase,
            joining,
            flaps,
        });
        self.foresee(number, runs, fate);
        Some(number)
    }

    /// When its machine runs, and whether and when it joins.
    fn destiny(&self, number: u32, zone: &str) -> (Timestamp, Fate) {
        let conditions = self.conditions();
        let own = conditions.zones.get(zone);
        let median = own.and_then(|zone| zone.median).unwrap_or(conditions.join.median);
        let spread = own.and_then(|zone| zone.spread).unwrap_or(conditions.join.spread);
        let crowd = f64::from(self.joining.saturating_sub(conditions.surge.free));
        let slower = (1.0 + conditions.surge.per_node * crowd).min(conditions.surge.most);
        let drawn = scale(self.chance.join(number.into(), median.0, spread), slower);
        let takes = drawn.clamp(conditions.join.least.0, conditions.join.most.0);
        let runs = self.now.after(scale(takes, conditions.join.machine));
        let dead = own.and_then(|zone| zone.dead_share).unwrap_or(conditions.dead.share);
        match self.chance.falls(For::Death, number.into(), dead) {
            false => (runs, Fate::Joins(self.now.after(takes))),
            true => {
                let at = self.now.after(conditions.dead.after.0);
                (runs.min(at), Fate::Never(conditions.dead.how, at))
            }
        }
    }

    pub(super) fn record(&mut self, node: u32) -> Option<&mut NodeRecord> {
        self.ledger.nodes.get_mut(usize::try_from(node).ok()?)
    }

    pub(super) fn schedule(&mut self, at: Timestamp, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((at, self.scheduled, event)));
    }

    pub(super) fn hear(&mut self, record: &NodeRecord, happening: Happening, at: Timestamp) {
        if !self.watched {
            return;
        }
        if self.heard.len() >= MAX_HEARD {
            self.heard.pop_front();
            self.forgotten += 1;
        }
        self.heard.push_back(Happened {
            at,
            node_id: self.script.keeps_tokens.then_some(record.node_id),
            instance_id: record.instance(),
            pool: Arc::clone(&record.pool),
            zone: Arc::clone(&record.zone),
            happening,
        });
    }
}
