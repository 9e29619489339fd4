//! Pools and nodes: what the scaler keeps.

mod demand;
mod nodes;
mod pools;

use std::{collections::BTreeMap, time::Duration};

use millrace_core::{
    foreign::Defect,
    id::{MemberId, NodeId},
};
use uuid::Uuid;

use super::{MemoryStore, locked, model::Model};
use crate::{
    Audit, FleetBatch, FleetStore, Lead, NewPool, NodeEventRow, NodeFilter, NodeRow, Nodes, PoolChange, PoolDeletion,
    PoolRow, PoolStatusRow, PoolUpdate, Pools, QueueDemand, Result, books::normal,
};

/// The tables of fleets.
#[derive(Debug, Clone, Default)]
pub(super) struct Books {
    leases: BTreeMap<String, Lease>,
    pools: BTreeMap<String, PoolRow>,
    statuses: BTreeMap<String, PoolStatusRow>,
    nodes: BTreeMap<NodeId, Kept>,
    events: BTreeMap<NodeId, Vec<NodeEventRow>>,
    /// Rows that cannot be read because a test wants it.
    damaged_pools: BTreeMap<String, Defect>,
    damaged_nodes: BTreeMap<NodeId, Defect>,
}

#[derive(Debug, Clone, Default)]
struct Lease {
    owner: Option<MemberId>,
    endpoint: String,
    epoch: i64,
    expires_at_us: i64,
}

#[derive(Debug, Clone)]
struct Kept {
    row: NodeRow,
    drain_reason: String,
}

impl Books {
    /// What holds between any two calls: whether it does, of what, and the rule.
    pub(super) fn rules(&self) -> impl Iterator<Item = (bool, String, &'static str)> {
        let events = self.events.keys().map(|id| {
            (self.nodes.contains_key(id), format!("an event of {id}"), "an event is of a node that there is")
        });
        let statuses = self.statuses.keys().map(|pool| {
            (self.pools.contains_key(pool), format!("the status of {pool}"), "a status is of a pool that there is")
        });
        events.chain(statuses)
    }
}

impl MemoryStore {
    /// Makes a column of a node unreadable, until the node is written again.
    pub fn damage_node(&self, id: NodeId, column: &str) {
        let defect = Defect::new(column, "was damaged by a test");
        locked(&self.model).books.damaged_nodes.insert(id, defect);
    }

    /// Makes a column of a pool unreadable for good.
    pub fn damage_pool(&self, name: &str, column: &str) {
        let defect = Defect::new(column, "was damaged by a test");
        locked(&self.model).books.damaged_pools.insert(name.to_owned(), defect);
    }
}

/// Every method takes the one lock, reads the clock once, and lets the model answer.
impl FleetStore for MemoryStore {
    fn lead(&self, name: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Lead> {
        self.write("lead", |model, now| Ok(model.lead(now, name, owner, endpoint, ttl_ms)))
    }

    fn leader(&self, name: &str) -> Result<Option<Lead>> {
        self.read("leader", |model, now| model.leader(now, name))
    }

    fn resign(&self, name: &str, owner: MemberId) -> Result<()> {
        self.write("resign", |model, _| {
            model.resign(name, owner);
            Ok(())
        })
    }

    fn pools(&self) -> Result<Pools> {
        self.read("pools", |model, now| model.pools(now))
    }

    fn pool(&self, name: &str) -> Result<Option<PoolRow>> {
        self.read("pool", |model, _| model.pool(name))?
    }

    fn create_pool(&self, pool: &NewPool, request: Option<Uuid>) -> Result<Option<PoolRow>> {
        self.write("create_pool", |model, now| model.create_pool(now, pool, request))
    }

    fn update_pool(
        &self,
        name: &str,
        version: i64,
        change: &PoolChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<PoolUpdate> {
        self.write("update_pool", |model, now| model.update_pool(now, (name, version), change, audit, request))
    }

    fn delete_pool(&self, name: &str, drain: bool, audit: &Audit, request: Option<Uuid>) -> Result<PoolDeletion> {
        self.write("delete_pool", |model, now| model.delete_pool(now, (name, drain), audit, request))
    }

    fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        self.read("node", |model, _| model.node(id))?
    }

    fn nodes(&self, filter: &NodeFilter, below: Option<NodeId>, limit: i64) -> Result<Nodes> {
        self.read("nodes", |model, _| model.nodes(filter, below, limit))
    }

    fn node_events(&self, id: NodeId, limit: i64) -> Result<Vec<NodeEventRow>> {
        self.read("node_events", |model, _| model.node_events(id, limit))
    }

    fn ask_drain(&self, id: NodeId, reason: &str, audit: &Audit, request: Option<Uuid>) -> Result<Option<NodeRow>> {
        self.write("ask_drain", |model, now| model.ask_drain(now, (id, reason), audit, request))
    }

    fn drains_asked(&self, limit: i64) -> Result<Vec<(NodeId, String)>> {
        self.read("drains_asked", |model, _| model.drains_asked(limit))
    }

    fn save_fleet(&self, name: &str, epoch: i64, batch: &FleetBatch) -> Result<bool> {
        self.write("save_fleet", |model, now| Ok(model.save_fleet(now, name, epoch, batch)))
    }

    fn pool_statuses(&self, names: &[String]) -> Result<Vec<PoolStatusRow>> {
        self.read("pool_statuses", |model, _| model.pool_statuses(names))
    }

    fn trim_nodes(&self, keep: Duration, limit: i64) -> Result<i64> {
        self.write("trim_nodes", |model, now| Ok(model.trim_nodes(now, keep, limit)))
    }

    fn queue_demand(&self, queues: &[String], window: Duration) -> Result<Vec<QueueDemand>> {
        self.read("queue_demand", |model, now| model.queue_demand(now, queues, window))
    }
}

// ── The lease ───────────────────────────────────────────────────────────────────────────────────────────────────────

impl Model {
    fn lead(&mut self, now: i64, name: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Lead {
        let current = self.leader(now, name);
        if let Some(other) = current.as_ref().filter(|lead| lead.owner != owner) {
            return other.clone();
        }
        let lease = self.books.leases.entry(name.to_owned()).or_default();
        *lease = Lease {
            owner: Some(owner),
            endpoint: endpoint.to_owned(),
            epoch: lease.epoch + i64::from(current.is_none()),
            expires_at_us: now.saturating_add(ttl_ms.saturating_mul(1000)),
        };
        let Lease { endpoint, epoch, expires_at_us, .. } = lease.clone();
        Lead { owner, endpoint, epoch, expires_at_us, now_us: now }
    }

    /// The lease, when somebody has it and it has not ended.
    fn leader(&self, now: i64, name: &str) -> Option<Lead> {
        let lease = self.books.leases.get(name).filter(|lease| lease.expires_at_us > now)?;
        Some(Lead {
            owner: lease.owner?,
            endpoint: lease.endpoint.clone(),
            epoch: lease.epoch,
            expires_at_us: lease.expires_at_us,
            now_us: now,
        })
    }

    fn resign(&mut self, name: &str, owner: MemberId) {
        if let Some(lease) = self.books.leases.get_mut(name).filter(|lease| lease.owner == Some(owner)) {
            *lease = Lease { epoch: lease.epoch, ..Lease::default() };
        }
    }

    fn save_fleet(&mut self, now: i64, name: &str, epoch: i64, batch: &FleetBatch) -> bool {
        if self.leader(now, name).is_none_or(|lead| lead.epoch != epoch) {
            return false;
        }
        let FleetBatch { nodes, events, statuses, emptied } = normal(batch);
        nodes.into_iter().for_each(|node| self.write_node(now, node));
        events.into_iter().for_each(|event| self.write_event(event));
        emptied.iter().for_each(|pool| self.remove_emptied(pool));
        statuses.into_iter().for_each(|status| self.write_status(status));
        true
    }
}
