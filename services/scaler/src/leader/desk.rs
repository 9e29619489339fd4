//! Where the rest of the process reaches its leader, and learns who leads.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use millrace_core::{fleet::books::News, id::NodeId, time::Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{clock::DatabaseClock, lease::Standing, streams::Outbox};
use crate::{
    convert::node::Live,
    engine::{Hello, Stranger},
};

/// Facts that wait for the leader. Streams whose node says more wait with it, so each node holds back only itself.
pub(crate) const FACTS: usize = 8_192;

/// What a node, or its stream, has to say.
#[derive(Debug)]
pub(crate) enum Fact {
    /// A node attaches.
    Arrival(Arrival),
    /// A node has said something on this stream, or the stream has ended.
    News {
        /// The node.
        node: NodeId,
        /// The stream's number.
        number: u64,
        /// What it said.
        news: News,
    },
}

/// A node that attaches.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Who it says it is.
    pub(crate) hello: Hello,
    /// The stream's number.
    pub(crate) number: u64,
    /// To the node.
    pub(crate) outbox: Outbox,
    /// Ends the task that reads from the node.
    pub(crate) reading: CancellationToken,
    /// Whether it may stay, and under which id.
    pub(crate) answer: oneshot::Sender<Result<NodeId, Stranger>>,
}

/// The way to the leader of this process. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    facts: watch::Sender<Option<mpsc::Sender<Fact>>>,
    standing: watch::Receiver<Option<Standing>>,
    clock: DatabaseClock,
    live: Arc<Mutex<HashMap<NodeId, Live>>>,
    next: Arc<AtomicU64>,
}

impl Desk {
    pub(crate) fn new(standing: watch::Receiver<Option<Standing>>, clock: DatabaseClock) -> Self {
        Self { facts: watch::Sender::new(None), standing, clock, live: Arc::default(), next: Arc::default() }
    }

    /// Where facts go, while this process leads.
    pub(crate) fn leader(&self) -> Option<mpsc::Sender<Fact>> {
        self.facts.borrow().clone()
    }

    /// The endpoint of the leader, when it is another process.
    pub(crate) fn other_leader(&self) -> Option<String> {
        let standing = self.standing.borrow();
        standing.as_ref().filter(|standing| !standing.mine && !standing.has_ended()).map(|one| one.endpoint.clone())
    }

    /// Whether anyone leads, as far as this process knows.
    pub(crate) fn is_led(&self) -> bool {
        self.standing.borrow().as_ref().is_some_and(|standing| !standing.has_ended())
    }

    /// The database's time, or this machine's while the database has not been reached.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now().unwrap_or_else(|| crate::provider::system_clock()())
    }

    /// A number that no other stream of this process has.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// This process leads: facts go there.
    pub(super) fn open(&self, facts: mpsc::Sender<Fact>) {
        self.facts.send_replace(Some(facts));
    }

    /// It leads no longer.
    pub(super) fn close(&self) {
        self.facts.send_replace(None);
        self.live().clear();
    }

    /// What nodes have said to this process while it leads.
    pub(crate) fn live(&self) -> MutexGuard<'_, HashMap<NodeId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
