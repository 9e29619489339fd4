//! The books of every fleet, and what to do next.
//!
//! [`Fleet`] takes facts (what queues ask for, what nodes say, what providers list and answer), decides in rounds, and gives out what
//! must be stored and which calls may be made. It makes none itself: the caller
//!
//! 1. passes on facts as they come ([`Fleet::demand`], [`Fleet::heard`], [`Fleet::listed`], [`Fleet::answered`]);
//! 2. lets it decide ([`Fleet::round`]);
//! 3. stores what changed ([`Fleet::unsaved`]) in one transaction that is fenced by its lease, and says so ([`Fleet::saved`]);
//! 4. makes the calls ([`Fleet::calls`]), which name only nodes whose intent is stored, and passes on the orders ([`Fleet::orders`]).
//!
//! So a crash between any two steps loses nothing: whoever leads next reads the intents, lists the provider, and goes on.

mod answers;
mod calls;
mod drains;
mod launches;
mod listing;
mod news;
mod report;
mod round;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

pub use answers::{Answer, NodeAnswer, Verdict};
pub use calls::{Call, Target, Work};
pub use listing::{Seen, SeenState};
pub use news::{Missing, News, Order};
pub use report::{Decision, PoolReport, ProviderReport, ProviderState, ZoneReport};
pub use store::{Batch, Happened};

use crate::{
    fleet::{
        Event, Node, Pool, State,
        budget::Budget,
        gate::Gate,
        joins::{Grace, Joins},
        size::{Size, SizePolicy},
    },
    id::NodeId,
    time::Timestamp,
};

/// Gone nodes that are remembered to tell an orphan from a stranger; the oldest are forgotten first, and a node of theirs that turns up
/// later is adopted.
const PAST: usize = 20_000;

/// Decisions that a pool remembers; the oldest are forgotten first.
const DECISIONS: usize = 50;

/// Over which the destroy budget counts.
const DESTROY_WINDOW: Duration = Duration::from_secs(600);

/// How the books are kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What a queue asks for holds for this long; without newer figures the size of its pools is held.
    pub demand_holds: Duration,
    /// How often a provider is listed.
    pub list_every: Duration,
    /// A node whose stream is gone is doubtful after this long.
    pub silent_after: Duration,
    /// A node that is silent, and whose orchestrator is too, is ended after this long.
    pub lost_after: Duration,
    /// A node that became doubtful three times within this span is held back.
    pub flap_window: Duration,
    /// For how long.
    pub flap_hold: Duration,
    /// A zone without capacity is passed over for this long, unless the provider names a time.
    pub zone_block: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            demand_holds: seconds(30),
            list_every: seconds(10),
            silent_after: seconds(30),
            lost_after: seconds(15 * 60),
            flap_window: seconds(600),
            flap_hold: seconds(120),
            zone_block: seconds(60),
        }
    }
}

/// What a queue asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Tasks that wait for an orchestrator.
    pub waiting: u64,
    /// Tasks that orchestrators have.
    pub running: u64,
    /// How long the longest-waiting has waited.
    pub oldest_age: Option<Duration>,
    /// It is paused: what waits asks for no nodes.
    pub paused: bool,
    /// Tasks a second that came in of late.
    pub arrival_rate: Option<f64>,
    /// How long a task runs.
    pub run_time: Option<Duration>,
}

/// The books of every fleet.
#[derive(Debug)]
pub struct Fleet {
    settings: Settings,
    pools: BTreeMap<String, Books>,
    nodes: BTreeMap<NodeId, Entry>,
    accounts: BTreeMap<String, Account>,
    queues: BTreeMap<String, (Figures, Timestamp)>,
    past: Past,
    unsaved: BTreeSet<NodeId>,
    happened: Vec<Happened>,
    gone: BTreeMap<NodeId, Node>,
    orders: Vec<(NodeId, Order)>,
    flights: BTreeMap<u64, Call>,
    next_call: u64,
    emptied: BTreeSet<String>,
    decisions: Vec<Decision>,
}

/// A pool and what is known of it.
#[derive(Debug)]
struct Books {
    pool: Pool,
    nodes: BTreeSet<NodeId>,
    policy: SizePolicy,
    joins: BTreeMap<String, Joins>,
    graces: BTreeMap<String, Grace>,
    gate: Gate,
    size: Size,
    /// Nodes that pools which fall back on this one could not get, and until when that counts.
    spill: (u32, Timestamp),
    /// How urgently its launches are needed; higher goes first.
    need: f64,
    /// When nodes were ended as lost or late, within the window of the destroy budget.
    destroyed: VecDeque<Timestamp>,
    /// Launches of a zone fail: not before this moment, and how many have failed in a row.
    back_off: BTreeMap<String, (Timestamp, u32)>,
    obstacles: Vec<String>,
    summary: String,
    decided: VecDeque<Decision>,
    /// What the last decision came to, so that each is told once.
    decided_key: Option<String>,
}

/// A node and what need not be stored of it.
#[derive(Debug)]
struct Entry {
    node: Node,
    /// Its row is stored, so calls may name it.
    stored: bool,
    attached: bool,
    /// Since when its stream is gone; none before the first and while there is one.
    silent_since: Option<Timestamp>,
    healthy: bool,
    health_reason: String,
    running: u32,
    /// Whether its orchestrator's session lives; none while that is not known.
    session: Option<bool>,
    /// The call under way that names it.
    flight: Option<u64>,
    /// No call names it before this moment.
    retry_at: Timestamp,
    /// Listings in a row that did not have it.
    missing: u32,
    doubt: Option<Doubt>,
    flaps: VecDeque<Timestamp>,
    held_until: Option<Timestamp>,
}

/// Why a node is doubtful.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    Late,
    Silent,
    Unhealthy,
    Flapping,
}

/// A provider, as its calls are counted.
#[derive(Debug)]
struct Account {
    budget: Budget,
    max_per_call: usize,
    /// When the listing under way, or the last one, was asked for.
    listed_at: Option<Timestamp>,
    listing: bool,
    list_soon: bool,
    /// Calls since the last listing and the last end, so that scarce calls are shared between the three kinds.
    since_list: u32,
    since_end: u32,
    blocked: BTreeMap<String, (Timestamp, String)>,
    instances: BTreeMap<String, NodeId>,
    orphans: BTreeMap<String, Orphan>,
    state: ProviderState,
    last_error: String,
}

#[derive(Debug)]
struct Orphan {
    sightings: u32,
    pool: String,
    zone: String,
    flight: Option<u64>,
    retry_at: Timestamp,
}

/// Nodes that are gone.
#[derive(Debug, Default)]
struct Past {
    ids: BTreeSet<NodeId>,
    order: VecDeque<NodeId>,
}

impl Past {
    fn add(&mut self, id: NodeId) {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > PAST {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.ids.remove(&oldest));
        }
    }
}

impl Fleet {
    /// Empty books.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            pools: BTreeMap::new(),
            nodes: BTreeMap::new(),
            accounts: BTreeMap::new(),
            queues: BTreeMap::new(),
            past: Past::default(),
            unsaved: BTreeSet::new(),
            happened: Vec::new(),
            gone: BTreeMap::new(),
            orders: Vec::new(),
            flights: BTreeMap::new(),
            next_call: 1,
            emptied: BTreeSet::new(),
            decisions: Vec::new(),
        }
    }

    /// A provider, with the budget of its calls. A provider that is known keeps what was learnt of it.
    pub fn set_provider(&mut self, name: &str, budget: Budget) {
        self.accounts.entry(name.into()).or_insert_with(|| Account {
            budget,
            max_per_call: 20,
            listed_at: None,
            listing: false,
            list_soon: true,
            since_list: 0,
            since_end: 0,
            blocked: BTreeMap::new(),
            instances: BTreeMap::new(),
            orphans: BTreeMap::new(),
            state: ProviderState::Ok,
            last_error: String::new(),
        });
    }

    /// How many nodes one call to the provider may name, as it says itself.
    pub fn set_max_per_call(&mut self, provider: &str, most: usize) {
        if let Some(account) = self.accounts.get_mut(provider) {
            account.max_per_call = most.max(1);
        }
    }

    /// A pool, new or changed.
    pub fn set_pool(&mut self, pool: Pool) {
        match self.pools.get_mut(&pool.name) {
            Some(books) => books.pool = pool,
            None => {
                let name = pool.name.clone();
                self.pools.insert(name, Books::new(pool));
            }
        }
    }

    /// A pool that is no more. Its nodes, if any are left, become orphans of their provider.
    pub fn remove_pool(&mut self, name: &str) {
        self.emptied.remove(name);
        let Some(books) = self.pools.remove(name) else { return };
        for id in books.nodes {
            if let Some(entry) = self.nodes.remove(&id) {
                self.forget_instance(&entry.node);
                self.past.add(id);
            }
        }
    }

    /// The names of the pools.
    pub fn pool_names(&self) -> impl Iterator<Item = &str> {
        self.pools.keys().map(String::as_str)
    }

    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name).map(|books| &books.pool)
    }

    /// A node from the database, gone ones of late included: what there is to learn of join times is in them. To be called for each node in the
    /// order of the ids, after the pools are set and before the first round.
    pub fn load(&mut self, node: Node) {
        let Some(books) = self.pools.get_mut(&node.pool) else { return self.past.add(node.id) };
        learn(books, &node);
        if node.state == State::Gone {
            return self.past.add(node.id);
        }
        books.nodes.insert(node.id);
        if let Some(account) = self.accounts.get_mut(&node.provider) {
            account.list_soon = true;
            if !node.instance.is_empty() {
                account.instances.insert(node.instance.clone(), node.id);
            }
        }
        let mut entry = Entry::new(node);
        entry.stored = true;
        if entry.node.state == State::Requested {
            // Whoever led before may have called for it and died: list before the next call.
            entry.node.unknown = true;
            entry.node.calls = entry.node.calls.max(1);
        }
        entry.doubt = (entry.node.state == State::Suspect).then_some(match entry.node.ready_at {
            None => Doubt::Late,
            Some(_) => Doubt::Silent,
        });
        self.nodes.insert(entry.node.id, entry);
    }

    /// What a queue asks for, counted at this moment.
    pub fn demand(&mut self, queue: &str, figures: Figures, at: Timestamp) {
        self.queues.insert(queue.into(), (figures, at));
    }

    /// The queues that pools serve.
    pub fn queues(&self) -> BTreeSet<&str> {
        self.pools.values().flat_map(|books| books.pool.queues.iter().map(String::as_str)).collect()
    }

    /// Someone asked for a node's drain.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn ask_drain(&mut self, id: NodeId, reason: &str, now: Timestamp) -> Result<(), Missing> {
        let entry = self.nodes.get_mut(&id).ok_or_else(|| Missing::of(&self.past, id))?;
        // It may have been asked for, and stored, before whoever led then could begin it.
        let begun = matches!(entry.node.state, State::Draining | State::Terminating | State::Gone);
        if entry.node.drain_asked && begun {
            return Ok(());
        }
        entry.node.drain_asked = true;
        self.unsaved.insert(id);
        match self.nodes[&id].node.state {
            // Nothing runs on it that could be waited for.
            State::Requested | State::Starting => self.turn(id, Event::End, reason, now),
            State::Joining | State::Ready | State::Suspect | State::Draining => {
                self.turn(id, Event::Drain, reason, now);
                self.orders.push((id, Order::Drain(reason.into())));
            }
            State::Terminating | State::Gone => {}
        }
        Ok(())
    }

    /// Lets something happen to a node: the one place where a state changes. What a state does not take changes nothing.
    fn turn(&mut self, id: NodeId, event: Event, reason: &str, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        let Ok(next) = entry.node.state.next(event) else { return };
        if next == entry.node.state {
            return;
        }
        entry.node.state = next;
        entry.node.reason = reason.into();
        entry.node.since = now;
        self.unsaved.insert(id);
        self.happened.push(Happened {
            node: id,
            pool: entry.node.pool.clone(),
            at: now,
            state: next,
            reason: reason.into(),
        });
        match next {
            State::Starting | State::Joining => self.confirmed(id, now),
            State::Ready => {
                self.confirmed(id, now);
                self.joined(id, now);
            }
            State::Gone => self.buried(id, now),
            State::Requested | State::Suspect | State::Draining | State::Terminating => {}
        }
    }

    /// The node exists: its launch counts from now on, if it did not before.
    fn confirmed(&mut self, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        entry.node.unknown = false;
        if entry.node.started_at.is_some() {
            return;
        }
        entry.node.started_at = Some(now);
        if let Some(books) = self.pools.get_mut(&entry.node.pool) {
            books.joins.entry(entry.node.zone.clone()).or_default().launched(id, now);
            books.gate.launched(id, now);
            books.back_off.remove(&entry.node.zone);
        }
    }

    /// The node takes work: its join counts, the first time.
    fn joined(&mut self, id: NodeId, now: Timestamp) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        entry.doubt = None;
        if entry.node.ready_at.is_some() {
            return;
        }
        entry.node.ready_at = Some(now);
        let started = entry.node.started_at.unwrap_or(now);
        if let Some(books) = self.pools.get_mut(&entry.node.pool) {
            books.joins.entry(entry.node.zone.clone()).or_default().joined(id, now);
            books.gate.joined(id, started, now);
        }
    }

    /// The node's launch has failed: counted once, whatever comes of the node.
    fn failed(&mut self, id: NodeId, error: &str, now: Timestamp) {
        let Some(entry) = self.nodes.get(&id) else { return };
        if entry.node.ready_at.is_some() {
            return;
        }
        let started = entry.node.started_at.unwrap_or(entry.node.requested_at);
        let zone = entry.node.zone.clone();
        let Some(books) = self.pools.get_mut(&entry.node.pool) else { return };
        books.joins.entry(zone).or_default().failed(id, now);
        books.gate.failed(id, started, now, error);
    }

    /// The node is gone: off the books, and into the batch to be stored.
    fn buried(&mut self, id: NodeId, now: Timestamp) {
        let Some(mut entry) = self.nodes.remove(&id) else { return };
        entry.node.gone_at = Some(now);
        self.forget_instance(&entry.node);
        if let Some(books) = self.pools.get_mut(&entry.node.pool) {
            books.nodes.remove(&id);
            if let Some(joins) = books.joins.get_mut(&entry.node.zone) {
                joins.forget(id);
            }
            books.gate.forgotten(id);
        }
        self.past.add(id);
        self.gone.insert(id, entry.node);
    }

    fn forget_instance(&mut self, node: &Node) {
        if let Some(account) = self.accounts.get_mut(&node.provider) {
            account.instances.remove(&node.instance);
        }
    }
}

/// Teaches a pool what a node from the database shows of its launches.
fn learn(books: &mut Books, node: &Node) {
    let Some(started) = node.started_at else { return };
    let joins = books.joins.entry(node.zone.clone()).or_default();
    joins.launched(node.id, started);
    books.gate.launched(node.id, started);
    match (node.ready_at, node.gone_at) {
        (Some(ready), _) => {
            joins.joined(node.id, ready);
            books.gate.joined(node.id, started, ready);
        }
        (None, Some(gone)) => {
            joins.failed(node.id, gone);
            books.gate.failed(node.id, started, gone, &node.reason);
        }
        (None, None) => {}
    }
    if node.gone_at.is_some() {
        joins.forget(node.id);
        books.gate.forgotten(node.id);
    }
}

impl Books {
    fn new(pool: Pool) -> Self {
        Self {
            pool,
            nodes: BTreeSet::new(),
            policy: SizePolicy::default(),
            joins: BTreeMap::new(),
            graces: BTreeMap::new(),
            gate: Gate::new(),
            size: Size::default(),
            spill: (0, Timestamp::MIN),
            need: 0.0,
            destroyed: VecDeque::new(),
            back_off: BTreeMap::new(),
            obstacles: Vec::new(),
            summary: String::new(),
            decided: VecDeque::new(),
            decided_key: None,
        }
    }

    /// Takes one from the destroy budget; false when it is used up.
    fn may_destroy(&mut self, now: Timestamp) -> bool {
        while self.destroyed.front().is_some_and(|at| now.since(*at) >= DESTROY_WINDOW) {
            self.destroyed.pop_front();
        }
        let size = self.nodes.len().max(self.size.desired as usize);
        let most = (size * self.pool.destroy_percent as usize / 100).max(1);
        let may = self.destroyed.len() < most;
        if may {
            self.destroyed.push_back(now);
        }
        may
    }

    fn decide(&mut self, now: Timestamp, text: String) -> Decision {
        let decision = Decision { at: now, pool: self.pool.name.clone(), text };
        self.decided.push_front(decision.clone());
        self.decided.truncate(DECISIONS);
        decision
    }
}

impl Entry {
    fn new(node: Node) -> Self {
        Self {
            node,
            stored: false,
            attached: false,
            silent_since: None,
            healthy: true,
            health_reason: String::new(),
            running: 0,
            session: None,
            flight: None,
            retry_at: Timestamp::MIN,
            missing: 0,
            doubt: None,
            flaps: VecDeque::new(),
            held_until: None,
        }
    }
}
