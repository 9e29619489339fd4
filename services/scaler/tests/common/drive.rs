//! An engine on a virtual clock: what a leader does, by hand.

use std::{sync::Arc, time::Duration};

use futures::executor::block_on;
use millrace_core::{
    fleet::{
        State,
        books::{Call, Work},
        budget::Budget,
    },
    id::{MemberId, NodeId},
    time::Timestamp,
};
use millrace_proto::scaler::v1::Pool;
use millrace_scaler::engine::{Engine, EngineSettings, Hello, Reply, Stepped, Term, perform};
use millrace_store::{FleetStore, MemoryStore, NewPool, NodeFilter, memory::SettableClock};
use prost::Message;
use uuid::Uuid;

use super::Recorder;

/// When the tests begin.
pub const START: Timestamp = Timestamp(1_700_000_000_000_000);

/// A pool of the provider `local` that wants so many nodes, all at once.
pub fn pool(name: &str, nodes: i32) -> Pool {
    Pool {
        name: name.into(),
        provider: "local".into(),
        queues: vec!["default".into()],
        min_nodes: Some(nodes),
        max_nodes: Some(100),
        step_up: Some(100),
        step_down: Some(100),
        unproven_launches: Some(100),
        ..Pool::default()
    }
}

/// Stores a pool as CreatePool does.
pub fn create(store: &MemoryStore, pool: &Pool) {
    let new = NewPool { name: pool.name.clone(), spec: pool.encode_to_vec() };
    store.create_pool(&new, None).unwrap().unwrap();
}

/// A leader.
pub struct Drive {
    pub store: MemoryStore,
    pub clock: Arc<SettableClock>,
    pub provider: Arc<Recorder>,
    pub engine: Engine,
    pub term: Term,
}

impl Drive {
    /// A new database with these pools, and the first leader.
    pub fn new(pools: &[Pool]) -> Self {
        let (store, clock) = MemoryStore::settable(START);
        pools.iter().for_each(|pool| create(&store, pool));
        Self::lead(&store, &clock, &Arc::new(Recorder::default()), 1)
    }

    /// Another leader on the same database and provider, once the lease of the one before has ended.
    pub fn next(&self, number: u128) -> Self {
        self.clock.advance(Duration::from_secs(16));
        Self::lead(&self.store, &self.clock, &self.provider, number)
    }

    fn lead(store: &MemoryStore, clock: &Arc<SettableClock>, provider: &Arc<Recorder>, number: u128) -> Self {
        let member = MemberId(Uuid::from_u128(number));
        let lead = store.lead("scaler", member, "http://here", 15_000).unwrap();
        assert_eq!(lead.owner, member);
        let mut engine = Engine::new(EngineSettings { seed: Some(number as u64), ..EngineSettings::default() });
        engine.set_provider("local", Budget::new(10.0, 0.1, 100.0, clock.now()));
        engine.load(store, clock.now()).unwrap();
        let term = Term { lease: "scaler".into(), epoch: lead.epoch };
        Self { store: store.clone(), clock: clock.clone(), provider: provider.clone(), engine, term }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Reads, decides and stores; false when another leads.
    pub fn step(&mut self) -> bool {
        let stepped = self.engine.step(&self.store, &self.term, self.clock.now()).unwrap();
        matches!(stepped, Stepped::Done(_))
    }

    /// The calls that may be made now.
    pub fn calls(&mut self) -> Vec<Call> {
        self.engine.act(self.clock.now()).calls
    }

    /// Makes a call.
    pub fn perform(&self, call: Call) -> Reply {
        block_on(perform(self.provider.as_ref(), call))
    }

    /// Rounds, a second each, with everything that belongs to them. The lease is renewed.
    pub fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            assert!(self.step(), "another leads");
            for call in self.calls() {
                let reply = self.perform(call);
                self.engine.take(reply, self.clock.now());
            }
            self.pass(1);
        }
    }

    /// Rounds until a call of this kind is given out; the call, not made.
    pub fn until_call(&mut self, which: impl Fn(&Work) -> bool) -> Call {
        for _ in 0..100 {
            assert!(self.step());
            let mut found = None;
            for call in self.calls() {
                if found.is_none() && which(&call.work) {
                    found = Some(call);
                } else {
                    let reply = self.perform(call);
                    self.engine.take(reply, self.clock.now());
                }
            }
            match found {
                Some(call) => return call,
                None => self.pass(1),
            }
        }
        panic!("no such call in 100 rounds");
    }

    /// Time passes, with the lease renewed.
    pub fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        let leader = self.store.leader("scaler").unwrap().unwrap();
        self.store.lead("scaler", leader.owner, &leader.endpoint, 15_000).unwrap();
    }

    /// Every node that exists at the provider attaches and is ready.
    pub fn all_join(&mut self) {
        for id in self.provider.there() {
            let node = id.parse().ok();
            let hello = Hello { node, instance: String::new(), pool: String::new(), slots: 1, ready: true };
            // One that the books do not have is refused.
            let _ = self.engine.arrive(&hello, self.clock.now());
        }
    }

    /// Ids of nodes in the books that are in this state.
    pub fn in_state(&self, state: State) -> Vec<NodeId> {
        self.engine.fleet().nodes().filter(|node| node.state == state).map(|node| node.id).collect()
    }

    /// Ids of stored nodes that are not gone.
    pub fn stored(&self) -> Vec<String> {
        let page = self.store.nodes(&NodeFilter::default(), None, 1_000).unwrap();
        let mut ids: Vec<String> = page.rows.iter().map(|row| row.node.id.to_string()).collect();
        ids.sort_unstable();
        ids
    }
}
