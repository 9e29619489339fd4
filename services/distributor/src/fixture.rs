//! A replica on a database in memory, for tests.

use std::{sync::Arc, time::Duration};

use millrace_core::{
    held::LeaseRef,
    id::{SessionId, TaskId},
    lease::Token,
    task::State,
    time::Timestamp,
};
use millrace_proto::common::v1 as wire;
use millrace_runtime::{Context, health::Health, metrics::Metrics, shutdown::Shutdown};
use millrace_store::{Dispatch, Envelope, MemoryStore, NewTask, Store};
use prost::Message;
use uuid::Uuid;

use crate::{
    SERVICES, Settings,
    sessions::Session,
    shared::{Shared, lock},
};

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// A replica without its loops, which knows the cluster.
pub(crate) struct Replica {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: MemoryStore,
}

/// Starts one with the default settings. Needs a Tokio runtime.
pub(crate) fn replica() -> Replica {
    replica_with(&[])
}

/// Starts one with these flags.
pub(crate) fn replica_with(flags: &[&str]) -> Replica {
    let (store, _clock) = MemoryStore::settable(Timestamp(1_700_000_000_000_000));
    let context = Context {
        store: Arc::new(store.clone()),
        member_id: Uuid::from_u128(1),
        endpoint: "http://replica".into(),
        build: "test".into(),
        health: Health::new(SERVICES),
        metrics: Metrics::new(),
        shutdown: Shutdown::new(Duration::from_secs(1)),
    };
    let flags = <Flags as clap::Parser>::parse_from([&["distributor"], flags].concat());
    let shared = Shared::start(flags.settings, context).expect("threads");
    *lock(&shared.cluster) = Some(store.cluster().expect("a new store"));
    Replica { shared, store }
}

impl Replica {
    /// Stores a command that waits in the queue `default`, as the task of this number.
    pub(crate) fn submit(&self, number: u128) -> TaskId {
        let id = TaskId(Uuid::from_u128(number));
        let envelope = Envelope {
            id,
            tenant: "default".into(),
            queue: "default".into(),
            rank: 0,
            executor: "process".into(),
            resource_class: String::new(),
            concurrency_key: String::new(),
            exclusive: false,
            timeout_ms: None,
            trace_context: String::new(),
            format: 1,
            min_reader: 1,
        };
        let command = wire::Command { argv: vec!["true".into()], ..Default::default() };
        let payload = Some(wire::task_spec::Payload::Command(command));
        let spec = wire::TaskSpec { executor: "process".into(), payload, ..Default::default() }.encode_to_vec();
        let route_version = self.store.routing().expect("routes").version;
        let task = NewTask { envelope, spec, request: None, not_before: None, expire_after: None, route_version };
        self.store.submit(&[task], false).expect("storing a task");
        id
    }

    /// A session that serves these queues and has this many credits.
    pub(crate) fn session(&self, queues: &[&str], credits: u32) -> Arc<Session> {
        let queues = queues.iter().map(|queue| (*queue).to_owned()).collect();
        let session =
            self.shared.sessions.enter(SessionId(Uuid::now_v7()), 1, "one".into(), queues).expect("it is new");
        let grant = millrace_proto::distributor::v1::Grant { seq: 1, credits, ..Default::default() };
        assert!(session.grant(grant));
        session
    }
}

/// The first attempt of a task that has this number.
pub(crate) fn dispatch(number: u128) -> Dispatch {
    Dispatch {
        lease: LeaseRef { task: TaskId(Uuid::from_u128(number)), attempt: 1, token: Token::new(1, 7) },
        queue: "default".into(),
        spec: Vec::new(),
        timeout_ms: None,
        trace_context: String::new(),
        dispatched_at_us: 0,
        state: State::Dispatched,
    }
}
