//! The leader's engine: the books ([`millrace_core::fleet::Fleet`]), what is read for them, and what is stored of them.
//!
//! It has no clock, no task and no connection of its own: whoever drives it says what time it is, lends it the store for a step, makes the
//! calls that it gives out and brings back what became of them. So the scaler's own loop and a drill on a virtual clock run the same
//! code. A driver, for as long as it leads:
//!
//! 1. makes an [`Engine`], names its providers ([`Engine::set_provider`]) and loads what is stored ([`Engine::load`]);
//! 2. takes in what nodes say ([`Engine::arrive`], [`Engine::heard`]) and what became of calls ([`Engine::take`]), at any time;
//! 3. once a round lets it read, decide and store ([`Engine::step`]); [`Stepped::Fenced`] means that another leads: drop the engine;
//! 4. then asks what may be done ([`Engine::act`]): there are calls and orders only when everything they rest on is stored;
//! 5. makes the calls, by [`perform`] or with the messages of [`request_message`] and [`terminate_message`], and brings every one of them back, also those without an answer ([`Reply::unknown`]).
//!
//! A call may be made only while the lease is sure to outlive it.

mod answer;
mod blind;
mod ids;
mod reads;
mod share;
mod statuses;
mod store;

use std::{collections::BTreeMap, time::Duration};

use millrace_core::{
    fleet::{
        Fleet,
        books::{self, Call, Decision, Happened, Missing, News, Order, PoolReport, Work},
        budget::Budget,
    },
    id::NodeId,
    time::Timestamp,
};
use millrace_store::{QueueDemand, Store, StoreError};
use thiserror::Error;

pub(crate) use answer::method;
pub use answer::{Listing, Provider, Reply, perform, request_message, terminate_message};
pub use reads::NODE_LABEL;
pub(crate) use share::Shares;
pub(crate) use store::point;

use self::{blind::Blind, ids::Ids, reads::Reads, statuses::Statuses};

/// How an engine works.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// How the books are kept.
    pub fleet: books::Settings,
    /// How often the demand of queues is read.
    pub demand_every: Duration,
    /// Over which arrivals are counted.
    pub demand_window: Duration,
    /// How often pools, and drains that people asked for, are read.
    pub pools_every: Duration,
    /// How often the sessions of orchestrators are read.
    pub sessions_every: Duration,
    /// A pool's status is stored at most this often, when it has changed.
    pub status_every: Duration,
    /// And at least this often, so that people see that there is a leader.
    pub status_at_least: Duration,
    /// With a seed the ids of new nodes are the same in every run.
    pub seed: Option<u64>,
}

impl Default for EngineSettings {
    fn default() -> Self {
        // A little less than whole seconds: a round that comes a little early must not wait for the next one.
        let millis = Duration::from_millis;
        Self {
            fleet: books::Settings::default(),
            demand_every: millis(1_900),
            demand_window: millis(60_000),
            pools_every: millis(900),
            sessions_every: millis(4_900),
            status_every: millis(900),
            status_at_least: millis(9_900),
            seed: None,
        }
    }
}

/// The lease under which an engine writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The lease's name.
    pub lease: String,
    /// The epoch that the leader took it with.
    pub epoch: i64,
}

/// What became of a step.
#[derive(Debug)]
pub enum Stepped {
    /// Everything is stored.
    Done(Done),
    /// Another leads, or nobody does: nothing more was stored, and the books are worth nothing any more.
    Fenced,
}

/// What a step came to.
#[derive(Debug, Default)]
pub struct Done {
    /// What was decided, each told once.
    pub decisions: Vec<Decision>,
    /// What happened to nodes.
    pub happened: Vec<Happened>,
    /// Nodes that joined: their pools, and how long each took.
    pub joined: Vec<(String, Duration)>,
    /// What queues ask for, when it was read.
    pub demand: Option<Vec<QueueDemand>>,
    /// Pools are others than before: providers that must know theirs are to be told.
    pub pools_changed: bool,
    /// The first read that failed; the books went on with what was known.
    pub unread: Option<StoreError>,
}

/// What may be done now.
#[derive(Debug, Default)]
pub struct Actions {
    /// Calls to be made. Each must come back through [`Engine::take`].
    pub calls: Vec<Call>,
    /// What nodes are to do, to be told to those that are attached; the others learn it when they attach.
    pub orders: Vec<(NodeId, Order)>,
}

/// A node that attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its id, if it knows it; otherwise it is found by pool and instance.
    pub node: Option<NodeId>,
    /// The provider's name of it; empty when it does not know.
    pub instance: String,
    /// Its pool; empty when it does not say.
    pub pool: String,
    /// How many tasks it can run at a time.
    pub slots: u32,
    /// It takes work already.
    pub ready: bool,
}

/// Why a node may not attach.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Stranger {
    /// It is not on the books.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// Its id is that of a node of another pool.
    #[error("the node belongs to the pool `{0}`")]
    OtherPool(String),
}

/// The leader's engine.
#[derive(Debug)]
pub struct Engine {
    settings: EngineSettings,
    fleet: Fleet,
    ids: Ids,
    reads: Reads,
    blind: Blind,
    /// The versions of the pools as they were taken into the books.
    versions: BTreeMap<String, i64>,
    demand: BTreeMap<String, QueueDemand>,
    statuses: Statuses,
    reports: Vec<PoolReport>,
    /// Answers of launches, and of ends, that are not stored yet: for fail points.
    unstored: (bool, bool),
    /// Everything was stored after the last fact that could lead to a call.
    stored: bool,
}

impl Engine {
    /// An engine with empty books.
    pub fn new(settings: EngineSettings) -> Self {
        Self {
            fleet: Fleet::new(settings.fleet.clone()),
            ids: Ids::new(settings.seed),
            reads: Reads::default(),
            blind: Blind::default(),
            versions: BTreeMap::new(),
            demand: BTreeMap::new(),
            statuses: Statuses::default(),
            reports: Vec::new(),
            unstored: (false, false),
            stored: false,
            settings,
        }
    }

    /// A provider, with the budget of its calls. To be named before [`Engine::load`].
    pub fn set_provider(&mut self, name: &str, budget: Budget) {
        self.fleet.set_provider(name, budget);
    }

    /// A node attaches: its id, and the order that it may have missed.
    ///
    /// # Errors
    /// When it is not on the books as what it says.
    pub fn arrive(&mut self, hello: &Hello, now: Timestamp) -> Result<(NodeId, Option<Order>), Stranger> {
        let id = match hello.node {
            Some(id) => id,
            None => self.fleet.find(&hello.pool, &hello.instance).ok_or(Missing::Unknown)?,
        };
        if let Some(pool) = self.fleet.pool_of(id)
            && !hello.pool.is_empty()
            && pool != hello.pool
        {
            return Err(Stranger::OtherPool(pool.into()));
        }
        let Hello { instance, slots, ready, .. } = hello.clone();
        self.fleet.heard(id, News::Attached { instance, slots, ready }, now)?;
        Ok((id, self.fleet.standing_order(id)))
    }

    /// Takes note of what a node says, or of the end of its stream.
    ///
    /// # Errors
    /// When it is not on the books.
    pub fn heard(&mut self, node: NodeId, news: News, now: Timestamp) -> Result<(), Missing> {
        self.fleet.heard(node, news, now)
    }

    /// Takes note of what became of a call.
    pub fn take(&mut self, reply: Reply, now: Timestamp) {
        let Reply { call, answer, listing } = reply;
        if let Some(listing) = listing {
            self.fleet.set_max_per_call(&call.provider, listing.most_per_call);
            let seen = self.blind.judged(&self.fleet, &call.provider, listing.seen);
            let Self { fleet, ids, .. } = self;
            fleet.listed(&call.provider, call.at, &seen, &mut || ids.next(now), now);
        }
        match &call.work {
            Work::List => {}
            Work::Request { .. } => self.unstored.0 = true,
            Work::Terminate { .. } => self.unstored.1 = true,
        }
        self.fleet.answered(call.id, answer, now);
    }

    /// Reads what is due, decides, and stores. A read that fails leaves what was known before: sizes are held once it is too old.
    ///
    /// # Errors
    /// When it could not be stored: it will be, with the next step, and nothing may be done before.
    pub fn step(&mut self, store: &dyn Store, term: &Term, now: Timestamp) -> Result<Stepped, StoreError> {
        let mut done = Done::default();
        self.read(store, now, &mut done);
        let Self { fleet, ids, .. } = self;
        fleet.round(now, &mut || ids.next(now));
        self.report(now);
        match self.save(store, term, now, &mut done)? {
            true => {
                done.decisions = self.fleet.decisions();
                Ok(Stepped::Done(done))
            }
            false => Ok(Stepped::Fenced),
        }
    }

    /// Stores what changed since the last step without deciding anything; for a leader that stops.
    ///
    /// # Errors
    /// As of [`Engine::step`].
    pub fn close(&mut self, store: &dyn Store, term: &Term, now: Timestamp) -> Result<Stepped, StoreError> {
        let mut done = Done::default();
        let stored = self.save(store, term, now, &mut done)?;
        self.stored = false;
        Ok(if stored { Stepped::Done(done) } else { Stepped::Fenced })
    }

    /// What may be done now. Nothing, unless the last step stored everything.
    pub fn act(&mut self, now: Timestamp) -> Actions {
        if !std::mem::take(&mut self.stored) {
            return Actions::default();
        }
        Actions { orders: self.fleet.orders(), calls: self.fleet.calls(now) }
    }

    /// The books.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The pools, as of the last step.
    pub fn reports(&self) -> &[PoolReport] {
        &self.reports
    }

    /// Rows of pools, and of nodes, that this build cannot read. They are left as they are, and so is what they stand for.
    pub fn unreadable(&self) -> (usize, usize) {
        self.blind.counts()
    }

    /// Calls under way.
    pub fn under_way(&self) -> usize {
        self.fleet.under_way()
    }

    /// What queues ask for, as it was last read.
    pub fn demand(&self) -> &BTreeMap<String, QueueDemand> {
        &self.demand
    }

    fn report(&mut self, now: Timestamp) {
        let names: Vec<String> = self.fleet.pool_names().map(str::to_owned).collect();
        self.reports = names.iter().filter_map(|name| self.fleet.report(name, now)).collect();
    }
}
