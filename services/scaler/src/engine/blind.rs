//! What is stored and cannot be read by this build: it is left alone, and so are the instances behind it.

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::{
    fleet::{Fleet, Override, Pool, books::Seen},
    id::NodeId,
    time::Timestamp,
};

/// Rows that could not be read.
#[derive(Debug, Default)]
pub(super) struct Blind {
    /// Pools, and why.
    pools: BTreeMap<String, String>,
    /// Nodes.
    nodes: BTreeSet<NodeId>,
}

impl Blind {
    /// How many pools, and how many nodes.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.pools.len(), self.nodes.len())
    }

    /// Pools that could not be read this time; each is logged once.
    pub(super) fn set_pools(&mut self, pools: BTreeMap<String, String>) {
        for (pool, error) in pools.iter().filter(|(pool, _)| !self.pools.contains_key(*pool)) {
            tracing::warn!(pool, error, "the pool's row cannot be read: it and its nodes stay as they are");
        }
        self.pools = pools;
    }

    /// Whether this pool could not be read.
    pub(super) fn has_pool(&self, pool: &str) -> bool {
        self.pools.contains_key(pool)
    }

    /// Nodes that could not be read.
    pub(super) fn set_nodes(&mut self, nodes: Vec<(String, String)>) {
        for (node, error) in &nodes {
            tracing::warn!(node, error, "the node's row cannot be read: it is left alone");
        }
        self.nodes = nodes.iter().filter_map(|(id, _)| id.parse().ok()).collect();
    }

    /// What stands in the books for a pool that cannot be read and has nodes: it launches nothing and ends nothing.
    pub(super) fn stand_in(&self, pool: &str, provider: &str) -> Option<Pool> {
        let error = self.pools.get(pool)?;
        let by_hand = Override {
            owner: "the scaler".into(),
            reason: format!("the pool's row cannot be read: {error}"),
            until: Timestamp(i64::MAX),
            min: None,
            max: None,
            desired: None,
            no_terminations: true,
            no_launches: true,
        };
        Some(Pool { by_hand: Some(by_hand), ..Pool::new(pool, provider, &[]) })
    }

    /// A listing without the instances that nothing may be concluded from: those of nodes and pools that cannot be read, and those
    /// that neither the provider nor the books know a pool or a node for, which are someone else's as far as anyone can tell.
    pub(super) fn judged(&self, fleet: &Fleet, provider: &str, seen: Vec<Seen>) -> Vec<Seen> {
        let nameless = |one: &Seen| one.node.is_none() && one.pool.is_empty();
        let known: BTreeSet<String> = match seen.iter().any(nameless) {
            true => fleet.nodes().filter(|node| node.provider == provider).map(|node| node.instance.clone()).collect(),
            false => BTreeSet::new(),
        };
        let unreadable = |one: &Seen| {
            one.node.is_some_and(|node| self.nodes.contains(&node))
                || self.has_pool(&one.pool) && fleet.pool(&one.pool).is_none()
        };
        seen.into_iter().filter(|one| !unreadable(one) && (!nameless(one) || known.contains(&one.instance))).collect()
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::fleet::books::{self, SeenState};
    use uuid::Uuid;

    use super::*;

    fn seen(instance: &str, node: Option<u128>, pool: &str) -> Seen {
        let node = node.map(|number| NodeId(Uuid::from_u128(number)));
        Seen { instance: instance.into(), node, pool: pool.into(), zone: String::new(), state: SeenState::There }
    }

    #[test]
    fn nothing_is_concluded_from_what_cannot_be_read() {
        let mut fleet = Fleet::new(books::Settings::default());
        fleet.set_pool(Pool::new("good", "x", &[]));
        let mut blind = Blind::default();
        blind.set_pools([("bad".into(), "why".into())].into());
        blind.set_nodes(vec![(Uuid::from_u128(7).to_string(), "why".into())]);
        let all = vec![
            seen("a", Some(1), "good"),
            seen("b", Some(7), "good"),
            seen("c", None, "bad"),
            seen("d", None, ""),
            seen("e", None, "deleted"),
        ];
        let left: Vec<String> = blind.judged(&fleet, "x", all).into_iter().map(|one| one.instance).collect();
        assert_eq!(left, ["a", "e"]);
        assert_eq!(blind.counts(), (1, 1));
    }
}
