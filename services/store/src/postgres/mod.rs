//! The store on PostgreSQL: the production one.
//!
//! Two pools ([`pool`]): what people read can never take the connections of dispatch. A connection lives on a thread of its
//! own ([`link`]), so that no call waits for ever; a call is one transaction ([`conn`]). Statements are fixed texts that stay
//! prepared ([`sql`]), in files by subject, and fitted to columns whose types have changed ([`drift`]); batches travel as arrays, so a statement has one plan whatever the batch's length.
//!
//! Locks are taken in one order everywhere: queues, gates, sessions, request keys, tasks, finished tasks, the cluster's row;
//! and within each by key (R8).

mod actions;
mod claim;
mod cluster;
mod columns;
mod complete;
mod conn;
mod drain;
mod drift;
mod failure;
mod fleet;
mod foreign;
mod link;
mod moves;
mod owners;
mod people;
mod pool;
mod pooling;
mod quarantine;
mod queues;
mod requeue;
mod retention;
mod routes;
mod rows;
mod sessions;
mod sql;
mod submit;
mod unindexed;
mod waiting;

use std::{sync::Arc, time::Duration};

use millrace_core::{
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    route::Route,
    served::TickRule,
    time::Timestamp,
};
use r2d2::ManageConnection;
use uuid::Uuid;

use self::{
    conn::Mode,
    pool::{Manager, Pool, Purpose, ServerState},
};
use crate::*;

pub(crate) use self::{pool::not_connected, pooling::transaction_pooling};

/// A store on PostgreSQL 15 or later.
pub(crate) struct PostgresStore {
    dispatch: Pool,
    people: Pool,
    known: Arc<Known>,
    reader: Reader,
}

/// What the connections of a store tell each other.
#[derive(Debug, Default)]
struct Known {
    foreign: Foreign,
    shape: drift::Shape,
}

impl PostgresStore {
    /// Connects and checks the schema. [`StoreError::Unavailable`] when there is no connection, [`StoreError::Schema`] when this build
    /// cannot work with the schema.
    pub(crate) fn open(url: &str, options: &OpenOptions) -> Result<Self> {
        // A connection outside of the pools says in its own words, and at once, what is wrong.
        let known = Arc::new(Known::default());
        let state = Arc::new(ServerState::default());
        let manager = Manager::new(url, Purpose::Dispatch, options, state, Arc::clone(&known));
        manager.connect()?.run(Mode::Read, None, |conn| {
            cluster::check_schema(conn)?;
            conn.look().map(drop)
        })?;
        Ok(Self {
            dispatch: Pool::new(url, Purpose::Dispatch, options, &known),
            people: Pool::new(url, Purpose::People, options, &known),
            known,
            reader: options.reader.clone(),
        })
    }
}

impl Store for PostgresStore {
    fn cluster(&self) -> Result<Cluster> {
        cluster::cluster(&self.dispatch)
    }

    fn tick(&self, rule: TickRule) -> Result<Tick> {
        cluster::tick(&self.dispatch, rule)
    }

    fn renew_member(&self, member: &MemberRow, ttl_ms: i64) -> Result<()> {
        cluster::renew_member(&self.dispatch, member, ttl_ms)
    }

    fn remove_member(&self, member: MemberId) -> Result<()> {
        cluster::remove_member(&self.dispatch, member)
    }

    fn members(&self) -> Result<Vec<MemberRow>> {
        cluster::members(&self.dispatch)
    }

    fn schema_version(&self) -> Result<String> {
        cluster::schema_version(&self.dispatch)
    }

    fn submit(&self, batch: &[NewTask], repeat: bool) -> Result<Vec<Submitted>> {
        submit::submit(&self.dispatch, batch, repeat)
    }

    fn claim(&self, batch: &[Claim]) -> Result<Vec<Claimed>> {
        claim::claim(&self.dispatch, &self.reader, batch)
    }

    fn complete(&self, batch: &[Completion]) -> Result<Vec<Completed>> {
        complete::complete(&self.dispatch, batch)
    }

    fn requeue(&self, batch: &[Requeue]) -> Result<Vec<Requeued>> {
        requeue::requeue(&self.dispatch, batch)
    }

    fn heartbeat(&self, batch: &[Heartbeat]) -> Result<Vec<HeartbeatResult>> {
        sessions::heartbeat(&self.dispatch, batch)
    }

    fn held_rows(&self, leases: &[LeaseRef]) -> Result<Vec<HeldRow>> {
        requeue::held_rows(&self.dispatch, leases)
    }

    fn open_session(&self, session: &NewSession) -> Result<SessionRow> {
        sessions::open(&self.dispatch, session)
    }

    fn resume_session(&self, session: SessionId, generation: i64, replica: &str) -> Result<Resumed> {
        sessions::resume(&self.dispatch, &self.reader, session, generation, replica)
    }

    fn close_session(&self, session: SessionId, generation: Option<i64>) -> Result<bool> {
        sessions::close(&self.dispatch, session, generation)
    }

    fn reap_sessions(&self, limit: i64) -> Result<Vec<SessionId>> {
        sessions::reap(&self.dispatch, limit)
    }

    fn orphans(&self, limit: i64) -> Result<Vec<HeldRow>> {
        sessions::orphans(&self.dispatch, limit)
    }

    fn held_by(&self, session: SessionId) -> Result<Vec<Dispatch>> {
        sessions::held_by(&self.dispatch, &self.reader, session)
    }

    fn sessions(&self, limit: i64) -> Result<Vec<SessionRow>> {
        sessions::list(&self.people, limit)
    }

    fn trim_sessions(&self, keep: Duration, limit: i64) -> Result<i64> {
        sessions::trim(&self.dispatch, keep, limit)
    }

    fn lanes(&self, queue: &str, after: Option<&LaneKey>, limit: i64) -> Result<Vec<LaneKey>> {
        waiting::lanes(&self.dispatch, queue, after, limit)
    }

    fn lane_page(
        &self,
        queue: &str,
        lane: &LaneKey,
        after: (Timestamp, TaskId),
        up_to: Option<(Timestamp, TaskId)>,
        limit: i64,
    ) -> Result<LanePage> {
        waiting::lane_page(&self.dispatch, queue, lane, after, up_to, limit)
    }

    fn wake(&self, limit: i64) -> Result<Vec<(String, Waiting)>> {
        waiting::wake(&self.dispatch, limit)
    }

    fn expire(&self, limit: i64) -> Result<Vec<TaskId>> {
        waiting::expire(&self.dispatch, limit)
    }

    fn task(&self, id: TaskId) -> Result<Option<TaskRow>> {
        people::one(&self.people, id)
    }

    fn tasks(&self, ids: &[TaskId]) -> Result<Vec<TaskRow>> {
        people::many(&self.people, ids)
    }

    fn is_quarantined(&self, id: TaskId) -> Result<bool> {
        people::is_quarantined(&self.people, id)
    }

    fn quarantined(&self) -> Result<i64> {
        people::quarantined(&self.people)
    }

    fn attempts(&self, id: TaskId) -> Result<Vec<AttemptRow>> {
        people::attempts(&self.people, id)
    }

    fn list(&self, filter: &ListFilter, below: Option<TaskId>, limit: i64) -> Result<ListPage> {
        people::list(&self.people, filter, below, limit)
    }

    fn position(&self, id: TaskId) -> Result<Option<i64>> {
        people::position(&self.people, id)
    }

    fn cancel(&self, id: TaskId, reason: &str, request: Option<Uuid>) -> Result<CancelResult> {
        actions::cancel(&self.dispatch, id, reason, request)
    }

    fn retry(&self, id: TaskId, request: Option<Uuid>) -> Result<Idempotent<RetryResult>> {
        actions::retry(&self.dispatch, id, request)
    }

    fn request(&self, key: Uuid) -> Result<Option<TaskId>> {
        actions::request(&self.people, key)
    }

    fn routing(&self) -> Result<Routing> {
        routes::routing(&self.dispatch)
    }

    fn set_route(&self, route: &Route, request: Option<Uuid>) -> Result<RouteResult> {
        routes::set(&self.dispatch, route, request)
    }

    fn delete_route(&self, name: &str, request: Option<Uuid>) -> Result<RouteResult> {
        routes::delete(&self.dispatch, name, request)
    }

    fn create_queue(&self, queue: &QueueRow, request: Option<Uuid>) -> Result<Option<QueueRow>> {
        queues::create(&self.dispatch, queue, request)
    }

    fn queue(&self, name: &str) -> Result<Option<QueueRow>> {
        queues::one(&self.people, name)
    }

    fn queues(&self) -> Result<Vec<QueueRow>> {
        queues::all(&self.people)
    }

    fn update_queue(
        &self,
        name: &str,
        change: &QueueChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<Option<QueueRow>> {
        queues::update(&self.dispatch, name, change, audit, request)
    }

    fn delete_queue(&self, name: &str, mode: &DeleteMode, request: Option<Uuid>) -> Result<DeleteResult> {
        drain::delete(&self.dispatch, name, mode, request)
    }

    fn drain_queues(&self, limit: i64) -> Result<Vec<String>> {
        drain::drain(&self.dispatch, limit)
    }

    fn lift_pauses(&self) -> Result<Vec<String>> {
        queues::lift_pauses(&self.dispatch)
    }

    fn counts(&self, names: &[String]) -> Result<Vec<QueueCounts>> {
        queues::counts(&self.people, names)
    }

    fn owners(&self) -> Result<Vec<OwnerRow>> {
        owners::list(&self.dispatch)
    }

    fn own_queue(&self, queue: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Option<i64>> {
        owners::own(&self.dispatch, queue, owner, endpoint, ttl_ms)
    }

    fn renew_queues(&self, owner: MemberId, queues: &[(String, i64)], ttl_ms: i64) -> Result<Vec<String>> {
        owners::renew(&self.dispatch, owner, queues, ttl_ms)
    }

    fn release_queues(&self, owner: MemberId, queues: &[String]) -> Result<()> {
        owners::release(&self.dispatch, owner, queues)
    }

    fn trim_finished(&self, keep: Duration) -> Result<i64> {
        retention::trim_finished(&self.dispatch, keep)
    }

    fn trim_requests(&self, keep: Duration, after: Option<Uuid>, limit: i64) -> Result<Option<Uuid>> {
        retention::trim_requests(&self.dispatch, keep, after, limit)
    }

    fn trim_attempts(&self, after: Option<TaskId>, limit: i64) -> Result<Option<TaskId>> {
        retention::trim_attempts(&self.dispatch, after, limit)
    }

    fn foreign(&self) -> &Foreign {
        &self.known.foreign
    }

    fn examine(&self, tasks: &[TaskId]) -> Result<Vec<Examined>> {
        foreign::examine(&self.dispatch, &self.reader, tasks)
    }

    fn inspect(&self, after: Option<TaskId>, limit: i64) -> Result<Inspected> {
        foreign::inspect(&self.people, &self.reader, after, limit)
    }

    fn strays(&self, limit: i64) -> Result<Vec<TaskId>> {
        foreign::strays(&self.dispatch, limit)
    }

    fn quarantine(&self, filter: &QuarantineFilter, after: Option<TaskId>, limit: i64) -> Result<QuarantinePage> {
        quarantine::page(&self.people, filter, after, limit)
    }

    fn reexamine(&self, after: Option<TaskId>, limit: i64) -> Result<Reexamined> {
        quarantine::reexamine(&self.dispatch, &self.reader, after, limit)
    }

    fn release(&self, tasks: &[TaskId], audit: &Audit) -> Result<Vec<Released>> {
        quarantine::release(&self.dispatch, &self.reader, tasks, audit)
    }

    fn repair(&self, task: TaskId, repair: &Repair, only_try: bool, audit: &Audit) -> Result<Repaired> {
        quarantine::repair(&self.dispatch, &self.reader, task, repair, only_try, audit)
    }

    fn discard(&self, tasks: &[TaskId], reason: &str, audit: &Audit) -> Result<Vec<TaskId>> {
        quarantine::discard(&self.dispatch, tasks, reason, audit)
    }

    fn drift(&self) -> Result<Vec<Drift>> {
        drift::drift(&self.people)
    }

    fn activate(&self, format: i16, rollback_reads: i16, audit: &Audit) -> Result<Activated> {
        cluster::activate(&self.dispatch, format, rollback_reads, audit)
    }

    fn audit(&self, entry: &Audit) -> Result<()> {
        cluster::audit(&self.dispatch, entry)
    }
}
