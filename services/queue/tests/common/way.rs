//! A way to the store that a test can cut and count.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use millrace_core::{
    held::LeaseRef,
    id::{MemberId, NodeId, SessionId, TaskId},
    route::Route,
    served::TickRule,
    time::Timestamp,
};
use millrace_store::*;
use uuid::Uuid;

/// One process's way to the database. Others have their own, so one process can be cut off alone.
pub struct Way {
    inner: Arc<dyn Store>,
    cut: AtomicBool,
    calls: Mutex<BTreeMap<&'static str, usize>>,
}

impl Way {
    /// A way to this store.
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { inner, cut: AtomicBool::new(false), calls: Mutex::default() })
    }

    /// Cuts or mends it.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    /// How often a call was made.
    pub fn calls(&self, name: &str) -> usize {
        self.calls.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    fn pass(&self, name: &'static str) -> Result<()> {
        *self.calls.lock().unwrap().entry(name).or_default() += 1;
        match self.cut.load(Ordering::SeqCst) {
            true => Err(StoreError::Unavailable("cut by the test".into())),
            false => Ok(()),
        }
    }
}

macro_rules! delegate {
    ($trait:ident { $($other:item)* } $(fn $name:ident(&self $(, $argument:ident: $type:ty)*) -> $result:ty;)*) => {
        impl $trait for Way {
            $(fn $name(&self $(, $argument: $type)*) -> $result {
                self.pass(stringify!($name))?;
                self.inner.$name($($argument),*)
            })*

            $($other)*
        }
    };
}

delegate! {
    Store {
        fn foreign(&self) -> &Foreign {
            self.inner.foreign()
        }
    }
    fn cluster(&self) -> Result<Cluster>;
    fn tick(&self, rule: TickRule) -> Result<Tick>;
    fn renew_member(&self, member: &MemberRow, ttl_ms: i64) -> Result<()>;
    fn remove_member(&self, member: MemberId) -> Result<()>;
    fn members(&self) -> Result<Vec<MemberRow>>;
    fn schema_version(&self) -> Result<String>;
    fn submit(&self, batch: &[NewTask], repeat: bool) -> Result<Vec<Submitted>>;
    fn claim(&self, batch: &[Claim]) -> Result<Vec<Claimed>>;
    fn complete(&self, batch: &[Completion]) -> Result<Vec<Completed>>;
    fn requeue(&self, batch: &[Requeue]) -> Result<Vec<Requeued>>;
    fn heartbeat(&self, batch: &[Heartbeat]) -> Result<Vec<HeartbeatResult>>;
    fn held_rows(&self, leases: &[LeaseRef]) -> Result<Vec<HeldRow>>;
    fn open_session(&self, session: &NewSession) -> Result<SessionRow>;
    fn resume_session(&self, session: SessionId, generation: i64, replica: &str) -> Result<Resumed>;
    fn close_session(&self, session: SessionId, generation: Option<i64>) -> Result<bool>;
    fn reap_sessions(&self, limit: i64) -> Result<Vec<SessionId>>;
    fn orphans(&self, limit: i64) -> Result<Vec<HeldRow>>;
    fn held_by(&self, session: SessionId) -> Result<Vec<Dispatch>>;
    fn sessions(&self, limit: i64) -> Result<Vec<SessionRow>>;
    fn trim_sessions(&self, keep: Duration, limit: i64) -> Result<i64>;
    fn lanes(&self, queue: &str, after: Option<&LaneKey>, limit: i64) -> Result<Vec<LaneKey>>;
    fn lane_page(&self, queue: &str, lane: &LaneKey, after: (Timestamp, TaskId), up_to: Option<(Timestamp, TaskId)>, limit: i64) -> Result<LanePage>;
    fn wake(&self, limit: i64) -> Result<Vec<(String, Waiting)>>;
    fn expire(&self, limit: i64) -> Result<Vec<TaskId>>;
    fn task(&self, id: TaskId) -> Result<Option<TaskRow>>;
    fn tasks(&self, ids: &[TaskId]) -> Result<Vec<TaskRow>>;
    fn is_quarantined(&self, id: TaskId) -> Result<bool>;
    fn quarantined(&self) -> Result<i64>;
    fn attempts(&self, id: TaskId) -> Result<Vec<AttemptRow>>;
    fn list(&self, filter: &ListFilter, below: Option<TaskId>, limit: i64) -> Result<ListPage>;
    fn position(&self, id: TaskId) -> Result<Option<i64>>;
    fn cancel(&self, id: TaskId, reason: &str, request: Option<Uuid>) -> Result<CancelResult>;
    fn retry(&self, id: TaskId, request: Option<Uuid>) -> Result<Idempotent<RetryResult>>;
    fn request(&self, key: Uuid) -> Result<Option<TaskId>>;
    fn routing(&self) -> Result<Routing>;
    fn set_route(&self, route: &Route, request: Option<Uuid>) -> Result<RouteResult>;
    fn delete_route(&self, name: &str, request: Option<Uuid>) -> Result<RouteResult>;
    fn create_queue(&self, queue: &QueueRow, request: Option<Uuid>) -> Result<Option<QueueRow>>;
    fn queue(&self, name: &str) -> Result<Option<QueueRow>>;
    fn queues(&self) -> Result<Vec<QueueRow>>;
    fn update_queue(&self, name: &str, change: &QueueChange, audit: &Audit, request: Option<Uuid>) -> Result<Option<QueueRow>>;
    fn delete_queue(&self, name: &str, mode: &DeleteMode, request: Option<Uuid>) -> Result<DeleteResult>;
    fn drain_queues(&self, limit: i64) -> Result<Vec<String>>;
    fn lift_pauses(&self) -> Result<Vec<String>>;
    fn counts(&self, names: &[String]) -> Result<Vec<QueueCounts>>;
    fn owners(&self) -> Result<Vec<OwnerRow>>;
    fn own_queue(&self, queue: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Option<i64>>;
    fn renew_queues(&self, owner: MemberId, queues: &[(String, i64)], ttl_ms: i64) -> Result<Vec<String>>;
    fn release_queues(&self, owner: MemberId, queues: &[String]) -> Result<()>;
    fn trim_finished(&self, keep: Duration) -> Result<i64>;
    fn trim_requests(&self, keep: Duration, after: Option<Uuid>, limit: i64) -> Result<Option<Uuid>>;
    fn trim_attempts(&self, after: Option<TaskId>, limit: i64) -> Result<Option<TaskId>>;
    fn examine(&self, tasks: &[TaskId]) -> Result<Vec<Examined>>;
    fn inspect(&self, after: Option<TaskId>, limit: i64) -> Result<Inspected>;
    fn strays(&self, limit: i64) -> Result<Vec<TaskId>>;
    fn quarantine(&self, filter: &QuarantineFilter, after: Option<TaskId>, limit: i64) -> Result<QuarantinePage>;
    fn reexamine(&self, after: Option<TaskId>, limit: i64) -> Result<Reexamined>;
    fn release(&self, tasks: &[TaskId], audit: &Audit) -> Result<Vec<Released>>;
    fn repair(&self, task: TaskId, repair: &Repair, only_try: bool, audit: &Audit) -> Result<Repaired>;
    fn discard(&self, tasks: &[TaskId], reason: &str, audit: &Audit) -> Result<Vec<TaskId>>;
    fn drift(&self) -> Result<Vec<Drift>>;
    fn activate(&self, format: i16, rollback_reads: i16, audit: &Audit) -> Result<Activated>;
    fn audit(&self, entry: &Audit) -> Result<()>;
}

delegate! {
    FleetStore {}
    fn lead(&self, name: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Lead>;
    fn leader(&self, name: &str) -> Result<Option<Lead>>;
    fn resign(&self, name: &str, owner: MemberId) -> Result<()>;
    fn pools(&self) -> Result<Pools>;
    fn pool(&self, name: &str) -> Result<Option<PoolRow>>;
    fn create_pool(&self, pool: &NewPool, request: Option<Uuid>) -> Result<Option<PoolRow>>;
    fn update_pool(&self, name: &str, version: i64, change: &PoolChange, audit: &Audit, request: Option<Uuid>) -> Result<PoolUpdate>;
    fn delete_pool(&self, name: &str, drain: bool, audit: &Audit, request: Option<Uuid>) -> Result<PoolDeletion>;
    fn node(&self, id: NodeId) -> Result<Option<NodeRow>>;
    fn nodes(&self, filter: &NodeFilter, below: Option<NodeId>, limit: i64) -> Result<Nodes>;
    fn node_events(&self, id: NodeId, limit: i64) -> Result<Vec<NodeEventRow>>;
    fn ask_drain(&self, id: NodeId, reason: &str, audit: &Audit, request: Option<Uuid>) -> Result<Option<NodeRow>>;
    fn drains_asked(&self, limit: i64) -> Result<Vec<(NodeId, String)>>;
    fn save_fleet(&self, name: &str, epoch: i64, batch: &FleetBatch) -> Result<bool>;
    fn pool_statuses(&self, names: &[String]) -> Result<Vec<PoolStatusRow>>;
    fn trim_nodes(&self, keep: Duration, limit: i64) -> Result<i64>;
    fn queue_demand(&self, queues: &[String], window: Duration) -> Result<Vec<QueueDemand>>;
}
