//! Pools and nodes: what the scaler keeps.
//!
//! Locks are taken in one order: the lease, request keys, nodes, pools; within each by key. What people read, and the demand, goes through
//! people's pool. What is written goes through that of dispatch, which writes: the leader has one round at a time, so it takes one
//! connection at most.

mod demand;
mod lease;
mod nodes;
mod pools;
mod save;

use std::time::Duration;

use millrace_core::id::{MemberId, NodeId};
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    Audit, FleetBatch, FleetStore, Lead, NewPool, NodeEventRow, NodeFilter, NodeRow, Nodes, PoolChange, PoolDeletion,
    PoolRow, PoolStatusRow, PoolUpdate, Pools, QueueDemand, Result,
};

impl FleetStore for PostgresStore {
    fn lead(&self, name: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Lead> {
        lease::lead(&self.dispatch, name, owner, endpoint, ttl_ms)
    }

    fn leader(&self, name: &str) -> Result<Option<Lead>> {
        lease::leader(&self.people, name)
    }

    fn resign(&self, name: &str, owner: MemberId) -> Result<()> {
        lease::resign(&self.dispatch, name, owner)
    }

    fn pools(&self) -> Result<Pools> {
        pools::all(&self.people)
    }

    fn pool(&self, name: &str) -> Result<Option<PoolRow>> {
        pools::one(&self.people, name)
    }

    fn create_pool(&self, pool: &NewPool, request: Option<Uuid>) -> Result<Option<PoolRow>> {
        pools::create(&self.dispatch, pool, request)
    }

    fn update_pool(
        &self,
        name: &str,
        version: i64,
        change: &PoolChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<PoolUpdate> {
        pools::update(&self.dispatch, (name, version), change, audit, request)
    }

    fn delete_pool(&self, name: &str, drain: bool, audit: &Audit, request: Option<Uuid>) -> Result<PoolDeletion> {
        pools::delete(&self.dispatch, name, drain, audit, request)
    }

    fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        nodes::one(&self.people, id)
    }

    fn nodes(&self, filter: &NodeFilter, below: Option<NodeId>, limit: i64) -> Result<Nodes> {
        nodes::page(&self.people, filter, below, limit)
    }

    fn node_events(&self, id: NodeId, limit: i64) -> Result<Vec<NodeEventRow>> {
        nodes::events(&self.people, id, limit)
    }

    fn ask_drain(&self, id: NodeId, reason: &str, audit: &Audit, request: Option<Uuid>) -> Result<Option<NodeRow>> {
        nodes::ask_drain(&self.dispatch, id, reason, audit, request)
    }

    fn drains_asked(&self, limit: i64) -> Result<Vec<(NodeId, String)>> {
        nodes::drains_asked(&self.people, limit)
    }

    fn save_fleet(&self, name: &str, epoch: i64, batch: &FleetBatch) -> Result<bool> {
        save::save(&self.dispatch, name, epoch, batch)
    }

    fn pool_statuses(&self, names: &[String]) -> Result<Vec<PoolStatusRow>> {
        pools::statuses(&self.people, names)
    }

    fn trim_nodes(&self, keep: Duration, limit: i64) -> Result<i64> {
        nodes::trim(&self.dispatch, keep, limit)
    }

    fn queue_demand(&self, queues: &[String], window: Duration) -> Result<Vec<QueueDemand>> {
        demand::demand(&self.people, queues, window)
    }
}
