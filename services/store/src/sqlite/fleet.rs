//! Pools and nodes: what the scaler keeps.

mod demand;
mod lease;
mod nodes;
mod pools;
mod save;

use std::time::Duration;

use millrace_core::id::{MemberId, NodeId};
use uuid::Uuid;

use super::{SqliteStore, connection::Reader};
use crate::{
    Audit, FleetBatch, FleetStore, Lead, NewPool, NodeEventRow, NodeFilter, NodeRow, Nodes, PoolChange, PoolDeletion,
    PoolRow, PoolStatusRow, PoolUpdate, Pools, QueueDemand, Result,
};

#[cfg(test)]
pub(super) use self::{
    demand::{ARRIVALS, RUN_TIMES},
    nodes::{ALL, DRAINS_ASKED, LIVE, LIVE_IN_POOL},
};

impl FleetStore for SqliteStore {
    fn lead(&self, name: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Lead> {
        self.files.write(|connection, now| lease::lead(connection, now, name, owner, endpoint, ttl_ms))
    }

    fn leader(&self, name: &str) -> Result<Option<Lead>> {
        self.files.read(Reader::People, |connection, now| lease::current(connection, now, name))
    }

    fn resign(&self, name: &str, owner: MemberId) -> Result<()> {
        self.files.write(|connection, _| lease::resign(connection, name, owner))
    }

    fn pools(&self) -> Result<Pools> {
        self.files.read(Reader::People, pools::all)
    }

    fn pool(&self, name: &str) -> Result<Option<PoolRow>> {
        self.files.read(Reader::People, |connection, _| pools::one(connection, name))
    }

    fn create_pool(&self, pool: &NewPool, request: Option<Uuid>) -> Result<Option<PoolRow>> {
        self.files.write(|connection, now| pools::create(connection, now, pool, request))
    }

    fn update_pool(
        &self,
        name: &str,
        version: i64,
        change: &PoolChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<PoolUpdate> {
        self.files.write(|connection, now| pools::update(connection, now, (name, version), change, audit, request))
    }

    fn delete_pool(&self, name: &str, drain: bool, audit: &Audit, request: Option<Uuid>) -> Result<PoolDeletion> {
        self.files.write(|connection, now| pools::delete(connection, now, (name, drain), audit, request))
    }

    fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        self.files.read(Reader::People, |connection, _| nodes::one(connection, id))
    }

    fn nodes(&self, filter: &NodeFilter, below: Option<NodeId>, limit: i64) -> Result<Nodes> {
        self.files.read(Reader::People, |connection, _| nodes::page(connection, filter, below, limit))
    }

    fn node_events(&self, id: NodeId, limit: i64) -> Result<Vec<NodeEventRow>> {
        self.files.read(Reader::People, |connection, _| nodes::events(connection, id, limit))
    }

    fn ask_drain(&self, id: NodeId, reason: &str, audit: &Audit, request: Option<Uuid>) -> Result<Option<NodeRow>> {
        self.files.write(|connection, now| nodes::ask_drain(connection, now, (id, reason), audit, request))
    }

    fn drains_asked(&self, limit: i64) -> Result<Vec<(NodeId, String)>> {
        self.files.read(Reader::People, |connection, _| nodes::drains_asked(connection, limit))
    }

    fn save_fleet(&self, name: &str, epoch: i64, batch: &FleetBatch) -> Result<bool> {
        self.files.write(|connection, now| save::save(connection, now, name, epoch, batch))
    }

    fn pool_statuses(&self, names: &[String]) -> Result<Vec<PoolStatusRow>> {
        self.files.read(Reader::People, |connection, _| pools::statuses(connection, names))
    }

    fn trim_nodes(&self, keep: Duration, limit: i64) -> Result<i64> {
        self.files.write(|connection, now| nodes::trim(connection, now, keep, limit))
    }

    fn queue_demand(&self, queues: &[String], window: Duration) -> Result<Vec<QueueDemand>> {
        self.files.read(Reader::People, |connection, now| demand::demand(connection, now, queues, window))
    }
}
