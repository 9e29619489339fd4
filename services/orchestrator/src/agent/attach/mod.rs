//! The agent's stream to the scaler, from the start of its boot to its end.
//!
//! What the scaler is to know is one value, [`Facts`], of which the newest counts: nothing piles up here while no scaler
//! answers, and a new stream says what is so and not what was. What the scaler wants is one value too, [`Order`].
//!
//! - [`say`]: what is to be said next on a stream, decided without I/O.
//! - [`stream`]: one stream, opened.
//! - [`keep`]: keeps a stream open, one after the other.
//!
//! No error here ever stops work. A scaler that is away leaves the node as it is; only one that says that the node is not on
//! its books any more ends it, after what runs.

mod keep;
mod say;
mod stream;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use prost_types::Timestamp;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::{boot::Progress, node::Identity};
use crate::{Connect, Status};

/// How long the last word may take to reach the scaler.
const FAREWELL: Duration = Duration::from_secs(5);

/// What the scaler is to know of the agent. The default is that of an agent which boots.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Facts {
    /// How far the boot has come.
    pub(crate) boot: Option<Progress>,
    /// A session was open while the executor was fit for work. Stays true: losing a distributor is not the node's fault.
    pub(crate) ready: bool,
    /// How it is; none before a session was open.
    pub(crate) health: Option<Health>,
    /// Work may be assigned, runs, or has a result that is not recorded yet.
    pub(crate) busy: bool,
    /// The provider is about to take the machine away, and when, if that was said.
    pub(crate) spot: Option<Option<Timestamp>>,
    /// The last word.
    pub(crate) end: Option<End>,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    /// Whether it can work, or why not.
    pub(crate) fit: Result<(), String>,
    /// Attempts that run.
    pub(crate) running: usize,
}

/// How an agent ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// It never came to work.
    BootFailed(String),
    /// It has nothing left to do.
    Left,
}

/// What the scaler wants of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// Take work.
    #[default]
    Work,
    /// Start nothing new.
    Drain(String),
    /// It is not on the books: end once nothing runs.
    Leave(String),
}

/// How the node calls itself, and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) endpoints: Vec<String>,
    pub(crate) identity: Identity,
    pub(crate) slots: u32,
    pub(crate) build: String,
}

/// The agent's end of its attachment. Dropping it ends the stream without a word.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) facts: watch::Sender<Facts>,
    pub(crate) orders: watch::Receiver<Order>,
    /// The node's id; none until it is known.
    id: watch::Receiver<Option<String>>,
    /// Holds the task that keeps the stream; dropping it ends that.
    keeper: JoinSet<()>,
}

impl Attachment {
    /// Attaches, and keeps trying for as long as this value lives. An agent that is no node says its facts to nobody.
    pub(crate) fn start(node: Option<Node>, connector: Arc<dyn Connect>) -> Self {
        let (facts, seen) = watch::channel(Facts::default());
        let (order, orders) = watch::channel(Order::Work);
        let known = node.as_ref().map(|node| node.identity.node_id.clone()).filter(|id| !id.is_empty());
        let (named, id) = watch::channel(known);
        let mut keeper = JoinSet::new();
        keeper.spawn(async move {
            match node {
                Some(node) => keep::Keeper::new(node, connector, seen, order, named).run().await,
                // Whoever listens for orders is to wait for ever, and not to find the sender gone.
                None => order.closed().await,
            }
        });
        Self { facts, orders, id, keeper }
    }

    /// The node's id, once it is known. None when it was not told in time.
    pub(crate) async fn id(&self, limit: Duration) -> Option<String> {
        let mut id = self.id.clone();
        let known = timeout(limit, id.wait_for(Option::is_some)).await;
        known.ok()?.ok()?.clone()
    }

    /// Tells how far the boot has come.
    pub(crate) fn boots(&self, progress: Progress) {
        tracing::info!(stage = %progress.stage, percent = progress.percent, "boot");
        self.facts.send_modify(|facts| facts.boot = Some(progress));
    }

    /// Tells what the orchestrator does. `leaving` when it was told to stop.
    pub(crate) fn works(&self, status: &Status, leaving: bool) {
        self.facts.send_if_modified(|facts| {
            let before = facts.clone();
            facts.busy = status.closed.is_none() || status.running > 0 || status.undelivered > 0;
            let open = status.session_id.is_some();
            if let Some(fitness) = status.fitness.as_ref().filter(|_| open || facts.health.is_some()) {
                let fit = if leaving { Err("the agent shuts down".to_owned()) } else { fitness.clone() };
                facts.ready |= open && fit.is_ok();
                facts.health = Some(Health { fit, running: status.running });
            }
            *facts != before
        });
    }

    /// Says the last word, and waits until the scaler has it, but not for long.
    pub(crate) async fn farewell(self, end: End) {
        let Self { facts, orders, mut keeper, .. } = self;
        facts.send_modify(|facts| facts.end = Some(end));
        // The keeper of an agent that is no node ends when nobody listens for its orders.
        drop(orders);
        if timeout(FAREWELL, keeper.join_next()).await.is_err() {
            tracing::warn!("the scaler was not told that this node has ended; it will find out by itself");
        }
    }
}
