//! What must be stored, and what may be done once it is.

use std::collections::BTreeMap;

use super::{Fleet, Order};
use crate::{
    fleet::{Node, State},
    id::NodeId,
    time::Timestamp,
};

/// Nodes that one batch holds at most; the rest goes with the next one.
const BATCH: usize = 5_000;

/// Something that happened to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// The node.
    pub node: NodeId,
    /// Its pool.
    pub pool: String,
    /// When.
    pub at: Timestamp,
    /// The state from then on.
    pub state: State,
    /// Why.
    pub reason: String,
}

/// What must be stored in one transaction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Nodes as they are now.
    pub nodes: Vec<Node>,
    /// What happened to them.
    pub happened: Vec<Happened>,
    /// Deleted pools whose last node is gone.
    pub emptied: Vec<String>,
}

impl Batch {
    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.happened.is_empty() && self.emptied.is_empty()
    }
}

impl Fleet {
    /// Takes what must be stored. It must come back through [`Fleet::saved`], with the word whether it was.
    pub fn unsaved(&mut self) -> Batch {
        let mut nodes = BTreeMap::new();
        while nodes.len() < BATCH
            && let Some((id, node)) = self.gone.pop_first()
        {
            self.unsaved.remove(&id);
            nodes.insert(id, node);
        }
        while nodes.len() < BATCH
            && let Some(id) = self.unsaved.pop_first()
        {
            if let Some(entry) = self.nodes.get(&id) {
                nodes.insert(id, entry.node.clone());
            }
        }
        let (now, later) =
            std::mem::take(&mut self.happened).into_iter().partition(|one| nodes.contains_key(&one.node));
        self.happened = later;
        let emptied = std::mem::take(&mut self.emptied).into_iter().collect();
        Batch { nodes: nodes.into_values().collect(), happened: now, emptied }
    }

    /// The batch is stored, or is not and comes back with the next one.
    pub fn saved(&mut self, batch: Batch, stored: bool) {
        if !stored {
            for node in batch.nodes {
                match self.nodes.contains_key(&node.id) {
                    true => drop(self.unsaved.insert(node.id)),
                    // It may have changed since, but not after its end.
                    false => drop(self.gone.insert(node.id, node)),
                }
            }
            self.happened.splice(0..0, batch.happened);
            self.emptied.extend(batch.emptied);
            return;
        }
        for node in batch.nodes {
            if let Some(entry) = self.nodes.get_mut(&node.id) {
                entry.stored = true;
            }
        }
        for pool in batch.emptied {
            self.remove_pool(&pool);
        }
    }

    /// Takes what nodes are to do. Orders to nodes that are not attached are given when they attach ([`Fleet::standing_order`]).
    pub fn orders(&mut self) -> Vec<(NodeId, Order)> {
        std::mem::take(&mut self.orders)
    }
}
