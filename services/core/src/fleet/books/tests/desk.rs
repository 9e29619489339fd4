//! A desk at which the books are kept: a database that is a map, a provider that is a list, and a clock that is moved by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use uuid::Uuid;

use crate::{
    fleet::{
        Node, Pool, State,
        books::{Answer, Call, Figures, Fleet, News, NodeAnswer, Seen, SeenState, Settings, Verdict, Work},
        budget::Budget,
    },
    id::NodeId,
    time::Timestamp,
};

/// The provider of every pool here.
pub(super) const PROVIDER: &str = "cloud";

/// How the provider answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// Does it, and no answer comes.
    Silent,
    /// Does nothing, and no answer comes.
    Deaf,
    Throttles,
    Refuses,
}

/// A provider that keeps a ledger.
#[derive(Debug, Default)]
pub(super) struct Cloud {
    /// What exists: by instance, the token, pool and zone.
    pub(super) there: BTreeMap<String, (Option<NodeId>, String, String)>,
    /// Every creation, also of a token that there was.
    pub(super) made: Vec<NodeId>,
    pub(super) killed: Vec<String>,
    /// Zones without room.
    pub(super) full: BTreeSet<String>,
    pub(super) calls: usize,
}

/// The desk.
pub(super) struct Desk {
    pub(super) fleet: Fleet,
    pub(super) pools: Vec<Pool>,
    pub(super) rows: BTreeMap<NodeId, Node>,
    pub(super) cloud: Cloud,
    pub(super) mood: Mood,
    pub(super) now: Timestamp,
    ids: u128,
}

impl Desk {
    pub(super) fn new(pools: Vec<Pool>) -> Self {
        let mut desk = Self {
            fleet: Fleet::new(Settings::default()),
            pools,
            rows: BTreeMap::new(),
            cloud: Cloud::default(),
            mood: Mood::Well,
            now: Timestamp(1_700_000_000_000_000),
            ids: 0,
        };
        desk.reopen();
        desk
    }

    /// One pool of at most ten nodes, one slot each, that may do what it likes.
    pub(super) fn of_one() -> Self {
        Self::new(vec![pool("p")])
    }

    /// Whoever led has died: the books are made anew from the rows.
    pub(super) fn reopen(&mut self) {
        let mut fleet = Fleet::new(Settings::default());
        fleet.set_provider(PROVIDER, Budget::new(100.0, 0.1, 1000.0, self.now));
        for pool in &self.pools {
            fleet.set_pool(pool.clone());
        }
        for node in self.rows.values() {
            fleet.load(node.clone());
        }
        self.fleet = fleet;
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
    }

    /// So many tasks wait in the queue `q`, and none comes.
    pub(super) fn wait(&mut self, waiting: u64) {
        let oldest_age = (waiting > 0).then_some(Duration::from_secs(1));
        let figures = Figures { waiting, oldest_age, arrival_rate: Some(0.0), ..Figures::default() };
        self.fleet.demand("q", figures, self.now);
    }

    /// Decides, stores, and gives the calls.
    pub(super) fn decide(&mut self) -> Vec<Call> {
        let ids = &mut self.ids;
        self.fleet.round(self.now, &mut || {
            *ids += 1;
            NodeId(Uuid::from_u128(*ids))
        });
        self.store();
        self.fleet.calls(self.now)
    }

    pub(super) fn store(&mut self) {
        let batch = self.fleet.unsaved();
        for node in &batch.nodes {
            self.rows.insert(node.id, node.clone());
        }
        self.fleet.saved(batch, true);
    }

    /// What the provider does with a call, and what comes back.
    pub(super) fn make(&mut self, call: &Call) -> Answer {
        self.cloud.calls += 1;
        match self.mood {
            Mood::Deaf => return Answer::Unknown { error: "no answer".into() },
            Mood::Throttles => return Answer::Throttled { retry_after: None },
            Mood::Refuses => return Answer::Failed { error: "bad image".into() },
            Mood::Well | Mood::Silent => {}
        }
        let nodes = match &call.work {
            Work::List => Vec::new(),
            Work::Request { pool, zone, nodes, .. } => {
                nodes.iter().map(|id| self.cloud.request(*id, &pool.name, zone)).collect()
            }
            Work::Terminate { nodes, .. } => {
                nodes.iter().map(|target| self.cloud.terminate(target.node, &target.instance)).collect()
            }
        };
        match self.mood {
            Mood::Silent => Answer::Unknown { error: "no answer".into() },
            _ => Answer::Done(nodes),
        }
    }

    /// Takes what came back of a call.
    pub(super) fn take(&mut self, call: &Call, answer: Answer) {
        if call.work == Work::List && matches!(answer, Answer::Done(_)) {
            let seen = self.cloud.list();
            let ids = &mut self.ids;
            let mut next = || {
                *ids += 1;
                NodeId(Uuid::from_u128(*ids))
            };
            self.fleet.listed(PROVIDER, call.at, &seen, &mut next, self.now);
        }
        self.fleet.answered(call.id, answer, self.now);
        self.store();
    }

    /// A whole round: decide, call, and take what comes back.
    pub(super) fn round(&mut self) {
        for call in self.decide() {
            let answer = self.make(&call);
            self.take(&call, answer);
        }
        self.store();
    }

    /// Rounds, a second apart.
    pub(super) fn rounds(&mut self, count: u64) {
        for _ in 0..count {
            self.pass(1);
            self.round();
        }
    }

    pub(super) fn heard(&mut self, id: NodeId, news: News) {
        self.fleet.heard(id, news, self.now).unwrap();
    }

    /// Every node that is started says that it takes work.
    pub(super) fn all_join(&mut self) {
        for id in self.ids_in(&[State::Starting, State::Joining]) {
            self.join(id);
        }
    }

    pub(super) fn join(&mut self, id: NodeId) {
        let instance = self.fleet.node(id).map(|node| node.instance.clone()).unwrap_or_default();
        self.heard(id, News::Attached { instance, slots: 1, ready: false });
        self.heard(id, News::Ready);
    }

    pub(super) fn runs(&mut self, id: NodeId, running: u32) {
        self.heard(id, News::Health { healthy: true, reason: String::new(), running, slots: 1 });
    }

    pub(super) fn ids_in(&self, states: &[State]) -> Vec<NodeId> {
        self.fleet.nodes().filter(|node| states.contains(&node.state)).map(|node| node.id).collect()
    }

    pub(super) fn count(&self, state: State) -> usize {
        self.ids_in(&[state]).len()
    }

    pub(super) fn state(&self, id: NodeId) -> State {
        self.fleet.node(id).map_or(State::Gone, |node| node.state)
    }

    /// A pool of `count` nodes that all work.
    pub(super) fn working(mut self, count: u64) -> Self {
        for _ in 0..30 {
            self.wait(count);
            self.rounds(1);
            self.all_join();
            if self.count(State::Ready) as u64 == count {
                break;
            }
        }
        assert_eq!(self.count(State::Ready) as u64, count, "the pool has come up");
        self
    }
}

impl Cloud {
    fn request(&mut self, id: NodeId, pool: &str, zone: &str) -> NodeAnswer {
        let instance = format!("i-{id}");
        let answer = |verdict| NodeAnswer { node: Some(id), instance: instance.clone(), verdict };
        if self.there.contains_key(&instance) {
            return answer(Verdict::Accepted);
        }
        if self.full.contains(zone) {
            return answer(Verdict::OutOfCapacity { retry_after: None, error: format!("no room in {zone}") });
        }
        self.made.push(id);
        self.there.insert(instance.clone(), (Some(id), pool.into(), zone.into()));
        answer(Verdict::Accepted)
    }

    fn terminate(&mut self, id: Option<NodeId>, instance: &str) -> NodeAnswer {
        let by_token = self.there.iter().find(|(_, (token, ..))| id.is_some() && *token == id);
        let name = by_token.map(|(name, _)| name.clone()).unwrap_or_else(|| instance.to_owned());
        if self.there.remove(&name).is_some() {
            self.killed.push(name);
        }
        NodeAnswer { node: id, instance: instance.into(), verdict: Verdict::Accepted }
    }

    fn list(&self) -> Vec<Seen> {
        let seen = |(instance, (node, pool, zone)): (&String, &(Option<NodeId>, String, String))| Seen {
            instance: instance.clone(),
            node: *node,
            pool: pool.clone(),
            zone: zone.clone(),
            state: SeenState::There,
        };
        self.there.iter().map(seen).collect()
    }
}

/// A pool that serves the queue `q`.
pub(super) fn pool(name: &str) -> Pool {
    Pool { target_wait: Duration::from_secs(1), ..Pool::new(name, PROVIDER, &["q"]) }
}
