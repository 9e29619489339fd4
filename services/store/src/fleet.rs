//! Pools and nodes as they are stored. [`crate::Store`] includes [`FleetStore`].

use std::time::Duration;

use millrace_core::{
    fleet::{Node, State},
    id::{MemberId, NodeId},
    time::Timestamp,
};
use uuid::Uuid;

use crate::{Audit, Result};

/// What the scaler needs of a database.
///
/// Rows that cannot be read (an unknown state, a wrong type) are left out of every answer and named beside it; they are
/// left as they are, and their neighbours are read.
pub trait FleetStore {
    /// Takes the lease of this name for `ttl_ms` of the database's time when nobody has it, renews it when it is this owner's, and says
    /// who has it. Taking raises the epoch. A lease that has ended is anyone's, and its former owner too takes it anew.
    fn lead(&self, name: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Lead>;

    /// Who leads, without taking or renewing anything. None when the lease has ended or was given up.
    fn leader(&self, name: &str) -> Result<Option<Lead>>;

    /// Gives up the lease, if it is this owner's.
    fn resign(&self, name: &str, owner: MemberId) -> Result<()>;

    /// Every pool by name, at most 10,000.
    fn pools(&self) -> Result<Pools>;

    /// One pool.
    fn pool(&self, name: &str) -> Result<Option<PoolRow>>;

    /// Creates a pool. None when there is one of that name, unless this request key made it.
    fn create_pool(&self, pool: &NewPool, request: Option<Uuid>) -> Result<Option<PoolRow>>;

    /// Changes a pool that is still at this version, raises the version and writes the audit trail. A repeated request key changes nothing and
    /// answers with the pool as it is.
    fn update_pool(
        &self,
        name: &str,
        version: i64,
        change: &PoolChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<PoolUpdate>;

    /// Deletes a pool: at once when it has no node that is not gone; otherwise, with `drain`, marks it, and [`FleetStore::save_fleet`] of a batch
    /// that names it in `emptied` deletes it. With a request key that has deleted it before: Gone.
    fn delete_pool(&self, name: &str, drain: bool, audit: &Audit, request: Option<Uuid>) -> Result<PoolDeletion>;

    /// One node.
    fn node(&self, id: NodeId) -> Result<Option<NodeRow>>;

    /// Nodes that match, below an id in falling order of the ids (the newest first), at most `limit`.
    fn nodes(&self, filter: &NodeFilter, below: Option<NodeId>, limit: i64) -> Result<Nodes>;

    /// What happened to a node, the oldest first, at most `limit`.
    fn node_events(&self, id: NodeId, limit: i64) -> Result<Vec<NodeEventRow>>;

    /// Asks for a node's drain: sets `drain_asked` and the reason. None when there is no such node. Asking again changes nothing, and neither
    /// does asking for one that has gone.
    fn ask_drain(&self, id: NodeId, reason: &str, audit: &Audit, request: Option<Uuid>) -> Result<Option<NodeRow>>;

    /// Nodes that are not gone and whose drain was asked for, at most `limit`, with the reasons given.
    fn drains_asked(&self, limit: i64) -> Result<Vec<(NodeId, String)>>;

    /// Writes a batch in one transaction, if the lease of this name still has this epoch (its row is locked, so that no other
    /// can take it meanwhile) and has not ended; false, and nothing written, otherwise. Nodes are inserted or replaced by id, in the order of the ids,
    /// except `drain_asked`, which only [`FleetStore::ask_drain`] sets. Events of nodes that there are not, and statuses of such pools, are left
    /// out. Safe to repeat: an event that is there is not added again.
    fn save_fleet(&self, name: &str, epoch: i64, batch: &FleetBatch) -> Result<bool>;

    /// Statuses of pools, as the leader last wrote them; of all when none is named.
    fn pool_statuses(&self, names: &[String]) -> Result<Vec<PoolStatusRow>>;

    /// Drops nodes that went longer than `keep` ago with their events, at most `limit`; returns how many.
    fn trim_nodes(&self, keep: Duration, limit: i64) -> Result<i64>;

    /// What waits, runs and comes in, for each of these queues that exists, by name. Arrivals are counted over the last `window` or the last
    /// 20,000 tasks of all queues, whichever is less, by the moments in their ids; the run time over at most 2,000 of the queue's tasks that
    /// have ended as SUCCEEDED or FAILED, the last submitted first, among the last 20,000 of all queues that have ended. By people's pool.
    fn queue_demand(&self, queues: &[String], window: Duration) -> Result<Vec<QueueDemand>>;
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lead {
    /// The leader.
    pub owner: MemberId,
    /// Where it is reached.
    pub endpoint: String,
    /// Raised with every change of owner.
    pub epoch: i64,
    /// When the lease ends by the database's clock, microseconds.
    pub expires_at_us: i64,
    /// The database's time, microseconds.
    pub now_us: i64,
}

/// Pools.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pools {
    /// By name.
    pub rows: Vec<PoolRow>,
    /// Names of rows that could not be read, and why.
    pub unreadable: Vec<(String, String)>,
    /// The database's time, microseconds.
    pub now_us: i64,
}

/// A new pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPool {
    /// Its name.
    pub name: String,
    /// The contract's Pool, encoded, as it was asked for.
    pub spec: Vec<u8>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRow {
    /// Its name.
    pub name: String,
    /// The contract's Pool, encoded, without times, override and status.
    pub spec: Vec<u8>,
    /// The contract's PoolOverride, encoded.
    pub override_: Option<Vec<u8>>,
    /// It goes once its nodes have.
    pub deleting: bool,
    /// Raised with every change.
    pub version: i64,
    /// When it was created, microseconds.
    pub created_at_us: i64,
    /// When it was last changed, microseconds.
    pub updated_at_us: i64,
}

/// A change of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolChange {
    /// A new spec.
    Spec(Vec<u8>),
    /// A new override, or none.
    Override(Option<Vec<u8>>),
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolUpdate {
    /// Done.
    Changed(PoolRow),
    /// It is at another version: read it again.
    Moved,
    /// There is none.
    Missing,
}

/// What became of a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolDeletion {
    /// It is gone.
    Gone,
    /// Its nodes are drained first.
    Draining(PoolRow),
    /// It has nodes, this many.
    NotEmpty(i64),
    /// There is none.
    Missing,
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRow {
    /// The node.
    pub node: Node,
    /// When the row was last written, microseconds.
    pub updated_at_us: i64,
}

/// Which nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFilter {
    /// Only of this pool.
    pub pool: Option<String>,
    /// Only in these states; none means all but gone ones.
    pub states: Vec<State>,
    /// Only nodes that have gone, or were requested, since then.
    pub since: Option<Timestamp>,
}

/// A page of nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Nodes {
    /// The newest first.
    pub rows: Vec<NodeRow>,
    /// Ids of rows that could not be read, and why.
    pub unreadable: Vec<(String, String)>,
    /// Below this id there may be more; none at the end.
    pub next: Option<NodeId>,
}

/// Something that happened to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEventRow {
    /// The node.
    pub node: NodeId,
    /// When, microseconds.
    pub at_us: i64,
    /// The state from then on.
    pub state: State,
    /// Why.
    pub reason: String,
}

/// A pool's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStatusRow {
    /// The pool.
    pub pool: String,
    /// The contract's ExplainPoolResponse, encoded, without the pool's spec.
    pub status: Vec<u8>,
    /// When it was computed, microseconds.
    pub as_of_us: i64,
}

/// What a round of the leader writes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FleetBatch {
    /// Nodes as they are now.
    pub nodes: Vec<Node>,
    /// What happened to them.
    pub events: Vec<NodeEventRow>,
    /// Statuses of pools.
    pub statuses: Vec<PoolStatusRow>,
    /// Deleted pools whose last node has gone. One that has a node which is not gone, or is not being deleted, stays.
    pub emptied: Vec<String>,
}

/// What a queue asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDemand {
    /// The queue.
    pub queue: String,
    /// Tasks that wait for an orchestrator, up to [`crate::COUNT_BOUND`].
    pub waiting: i64,
    /// Tasks that orchestrators have, up to [`crate::COUNT_BOUND`].
    pub running: i64,
    /// When the longest-waiting of them joined, microseconds.
    pub oldest_ready_at_us: Option<i64>,
    /// It is paused: what waits asks for no nodes.
    pub paused: bool,
    /// Tasks that were submitted within `arrivals_over_us`.
    pub arrivals: i64,
    /// The span over which arrivals were counted, microseconds: the window, or at least a second of it when there were too many.
    pub arrivals_over_us: i64,
    /// How long tasks ran by their orchestrators' clocks, on average, microseconds; none when none of those looked at says.
    pub run_time_us: Option<i64>,
    /// The database's time, microseconds.
    pub now_us: i64,
}
