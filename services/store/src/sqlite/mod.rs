//! The store on SQLite, for `millrace dev`: one process, one file, the same behaviour as on PostgreSQL.
//!
//! A lock beside the file keeps other processes out. One connection writes, one transaction at a time (`BEGIN
//! IMMEDIATE`), so nothing here locks rows or meets deadlocks; others read what is committed (WAL). The clock is the
//! process's own and never goes back while the store is open. Statements are the query builder's where it can say them,
//! and [`statement`]'s where it cannot; both stay prepared. Rows are read column by column ([`values`]); a row of a task that
//! cannot be read is left out and noted ([`reading`]), and set aside once it has been examined ([`foreign`], [`quarantine`]).
//!
//! Of the bounds in [`OpenOptions`], those on statements do not reach SQLite: diesel offers no way to interrupt one. What a
//! call looks at is bounded instead, and waits for the connection that writes are.

mod claim;
mod cluster;
mod complete;
mod connection;
mod counts;
mod failure;
mod fleet;
mod foreign;
mod moves;
mod owners;
mod people;
mod quarantine;
mod queues;
mod raw;
mod reading;
mod retention;
mod routes;
mod rows;
mod schema;
mod sessions;
mod statement;
mod submit;
mod values;
mod waiting;

#[cfg(test)]
mod tests;

use std::time::Duration;

use millrace_core::{
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    route::Route,
    served::TickRule,
    time::Timestamp,
};
use uuid::Uuid;

use self::{
    connection::{Files, Reader},
    waiting::Part,
};
use crate::{
    Activated, Drift, Examined, Foreign, Inspected, OpenOptions, QuarantineFilter, QuarantinePage, Reexamined,
    Released, Repair, Repaired, Result, Store, StoreError, migrate, types::*,
};

/// The store in a file of SQLite.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    files: Files,
    foreign: Foreign,
    reader: crate::Reader,
}

impl SqliteStore {
    /// Opens the database at `path`, which exists and has a schema of this build's range; [`StoreError::Schema`]
    /// otherwise. [`StoreError::Config`] when another process has it open.
    pub(crate) fn open(path: &str, options: &OpenOptions) -> Result<Self> {
        let files = Files::open(path, options)?;
        let store = Self { files, foreign: Foreign::default(), reader: options.reader.clone() };
        let version = match store.schema_version() {
            Ok(version) => Some(version).filter(|version| !version.is_empty()),
            Err(StoreError::Schema(_)) => None,
            Err(error) => return Err(error),
        };
        let needs = match &version {
            Some(_) => store.files.read(Reader::Dispatch, |connection, _| cluster::needs_schema(connection))?,
            None => String::new(),
        };
        migrate::check(version.as_deref(), &needs)?;
        // One process has the file, and this is it: the processes before it are gone, so nobody waits for their leases to end.
        store.files.write(|connection, _| {
            cluster::forget_members(connection)?;
            owners::forget_owners(connection)
        })?;
        Ok(store)
    }
}

impl Store for SqliteStore {
    fn cluster(&self) -> Result<Cluster> {
        self.files.read(Reader::Dispatch, |connection, _| cluster::cluster(connection))
    }

    fn tick(&self, rule: TickRule) -> Result<Tick> {
        self.files.write(|connection, now| cluster::tick(connection, now, rule))
    }

    fn renew_member(&self, member: &MemberRow, ttl_ms: i64) -> Result<()> {
        self.files.write(|connection, now| cluster::renew_member(connection, now, member, ttl_ms))
    }

    fn remove_member(&self, member: MemberId) -> Result<()> {
        self.files.write(|connection, _| cluster::remove_member(connection, member))
    }

    fn members(&self) -> Result<Vec<MemberRow>> {
        self.files.read(Reader::Dispatch, |connection, _| cluster::members(connection))
    }

    fn schema_version(&self) -> Result<String> {
        self.files.read(Reader::Dispatch, |connection, _| cluster::schema_version(connection))
    }

    fn submit(&self, batch: &[NewTask], repeat: bool) -> Result<Vec<Submitted>> {
        self.files.write(|connection, now| submit::submit(connection, now, batch, repeat))
    }

    fn claim(&self, batch: &[Claim]) -> Result<Vec<Claimed>> {
        self.files.write(|connection, now| claim::claim(connection, now, &self.foreign, &self.reader, batch))
    }

    fn complete(&self, batch: &[Completion]) -> Result<Vec<Completed>> {
        self.files.write(|connection, now| complete::complete(connection, now, batch))
    }

    fn requeue(&self, batch: &[Requeue]) -> Result<Vec<Requeued>> {
        self.files.write(|connection, now| complete::requeue(connection, now, batch))
    }

    fn heartbeat(&self, batch: &[Heartbeat]) -> Result<Vec<HeartbeatResult>> {
        self.files.write(|connection, now| sessions::heartbeat(connection, now, &self.foreign, batch))
    }

    fn held_rows(&self, leases: &[LeaseRef]) -> Result<Vec<HeldRow>> {
        self.files.read(Reader::Dispatch, |connection, _| sessions::held_rows(connection, &self.foreign, leases))
    }

    fn open_session(&self, session: &NewSession) -> Result<SessionRow> {
        self.files.write(|connection, now| sessions::open_session(connection, now, session))
    }

    fn resume_session(&self, session: SessionId, generation: i64, replica: &str) -> Result<Resumed> {
        self.files.write(|connection, now| {
            sessions::resume_session(connection, now, &self.foreign, session, generation, replica)
        })
    }

    fn close_session(&self, session: SessionId, generation: Option<i64>) -> Result<bool> {
        self.files.write(|connection, now| sessions::close_session(connection, now, session, generation))
    }

    fn reap_sessions(&self, limit: i64) -> Result<Vec<SessionId>> {
        self.files.write(|connection, now| sessions::reap_sessions(connection, now, limit))
    }

    fn orphans(&self, limit: i64) -> Result<Vec<HeldRow>> {
        self.files.read(Reader::Dispatch, |connection, _| sessions::orphans(connection, &self.foreign, limit))
    }

    fn held_by(&self, session: SessionId) -> Result<Vec<Dispatch>> {
        self.files.read(Reader::Dispatch, |connection, _| sessions::held_by(connection, &self.foreign, session))
    }

    fn sessions(&self, limit: i64) -> Result<Vec<SessionRow>> {
        self.files.read(Reader::People, |connection, _| sessions::sessions(connection, limit))
    }

    fn trim_sessions(&self, keep: Duration, limit: i64) -> Result<i64> {
        self.files.write(|connection, now| sessions::trim_sessions(connection, now, keep, limit))
    }

    fn lanes(&self, queue: &str, after: Option<&LaneKey>, limit: i64) -> Result<Vec<LaneKey>> {
        self.files.read(Reader::Dispatch, |connection, _| waiting::lanes(connection, queue, after, limit))
    }

    fn lane_page(
        &self,
        queue: &str,
        lane: &LaneKey,
        after: (Timestamp, TaskId),
        up_to: Option<(Timestamp, TaskId)>,
        limit: i64,
    ) -> Result<LanePage> {
        let part = Part { queue, lane, after, up_to, limit };
        self.files.read(Reader::Dispatch, |connection, now| waiting::lane_page(connection, now, &self.foreign, &part))
    }

    fn wake(&self, limit: i64) -> Result<Vec<(String, Waiting)>> {
        self.files.write(|connection, now| waiting::wake(connection, now, &self.foreign, limit))
    }

    fn expire(&self, limit: i64) -> Result<Vec<TaskId>> {
        self.files.write(|connection, now| waiting::expire(connection, now, &self.foreign, limit))
    }

    fn task(&self, id: TaskId) -> Result<Option<TaskRow>> {
        self.files.read(Reader::People, |connection, _| people::task(connection, &self.foreign, id))
    }

    fn tasks(&self, ids: &[TaskId]) -> Result<Vec<TaskRow>> {
        self.files.read(Reader::People, |connection, _| people::tasks(connection, &self.foreign, ids))
    }

    fn is_quarantined(&self, id: TaskId) -> Result<bool> {
        self.files.read(Reader::People, |connection, _| people::is_quarantined(connection, id))
    }

    fn quarantined(&self) -> Result<i64> {
        self.files.read(Reader::People, |connection, _| people::quarantined(connection))
    }

    fn attempts(&self, id: TaskId) -> Result<Vec<AttemptRow>> {
        self.files.read(Reader::People, |connection, _| people::attempts(connection, id))
    }

    fn list(&self, filter: &ListFilter, below: Option<TaskId>, limit: i64) -> Result<ListPage> {
        self.files.read(Reader::People, |connection, _| people::list(connection, &self.foreign, filter, below, limit))
    }

    fn position(&self, id: TaskId) -> Result<Option<i64>> {
        self.files.read(Reader::People, |connection, _| people::position(connection, &self.foreign, id))
    }

    fn cancel(&self, id: TaskId, reason: &str, request: Option<Uuid>) -> Result<CancelResult> {
        self.files.write(|connection, now| people::cancel(connection, now, &self.foreign, id, reason, request))
    }

    fn retry(&self, id: TaskId, request: Option<Uuid>) -> Result<Idempotent<RetryResult>> {
        self.files.write(|connection, now| people::retry(connection, now, &self.foreign, id, request))
    }

    fn request(&self, key: Uuid) -> Result<Option<TaskId>> {
        self.files.read(Reader::People, |connection, _| cluster::request(connection, key).map(Option::flatten))
    }

    fn routing(&self) -> Result<Routing> {
        self.files.read(Reader::Dispatch, |connection, _| routes::routing(connection))
    }

    fn set_route(&self, route: &Route, request: Option<Uuid>) -> Result<RouteResult> {
        self.files.write(|connection, now| routes::set_route(connection, now, route, request))
    }

    fn delete_route(&self, name: &str, request: Option<Uuid>) -> Result<RouteResult> {
        self.files.write(|connection, now| routes::delete_route(connection, now, name, request))
    }

    fn create_queue(&self, queue: &QueueRow, request: Option<Uuid>) -> Result<Option<QueueRow>> {
        self.files.write(|connection, now| queues::create_queue(connection, now, queue, request))
    }

    fn queue(&self, name: &str) -> Result<Option<QueueRow>> {
        self.files.read(Reader::People, |connection, _| queues::queue(connection, name))
    }

    fn queues(&self) -> Result<Vec<QueueRow>> {
        self.files.read(Reader::People, |connection, _| queues::queues(connection))
    }

    fn update_queue(
        &self,
        name: &str,
        change: &QueueChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<Option<QueueRow>> {
        self.files.write(|connection, now| queues::update_queue(connection, now, name, change, audit, request))
    }

    fn delete_queue(&self, name: &str, mode: &DeleteMode, request: Option<Uuid>) -> Result<DeleteResult> {
        self.files.write(|connection, now| queues::delete_queue(connection, now, name, mode, request))
    }

    fn drain_queues(&self, limit: i64) -> Result<Vec<String>> {
        self.files.write(|connection, now| queues::drain_queues(connection, now, limit))
    }

    fn lift_pauses(&self) -> Result<Vec<String>> {
        self.files.write(queues::lift_pauses)
    }

    fn counts(&self, names: &[String]) -> Result<Vec<QueueCounts>> {
        self.files.read(Reader::People, |connection, now| counts::counts(connection, now, names))
    }

    fn owners(&self) -> Result<Vec<OwnerRow>> {
        self.files.read(Reader::Dispatch, |connection, _| owners::owners(connection))
    }

    fn own_queue(&self, queue: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Option<i64>> {
        self.files.write(|connection, _| owners::own_queue(connection, queue, owner, endpoint, ttl_ms))
    }

    fn renew_queues(&self, owner: MemberId, queues: &[(String, i64)], ttl_ms: i64) -> Result<Vec<String>> {
        self.files.write(|connection, _| owners::renew_queues(connection, owner, queues, ttl_ms))
    }

    fn release_queues(&self, owner: MemberId, queues: &[String]) -> Result<()> {
        self.files.write(|connection, _| owners::release_queues(connection, owner, queues))
    }

    fn trim_finished(&self, keep: Duration) -> Result<i64> {
        let Some(slot) = self.files.write(|connection, now| retention::due_slot(connection, now, keep))? else {
            return Ok(0);
        };
        // Other writers get their turn between the pieces.
        while self.files.write(|connection, now| retention::empty_slot(connection, now, keep, slot))? {}
        Ok(1)
    }

    fn trim_requests(&self, keep: Duration, after: Option<Uuid>, limit: i64) -> Result<Option<Uuid>> {
        self.files.write(|connection, now| retention::trim_requests(connection, now, keep, after, limit))
    }

    fn trim_attempts(&self, after: Option<TaskId>, limit: i64) -> Result<Option<TaskId>> {
        self.files.write(|connection, _| retention::trim_attempts(connection, after, limit))
    }

    fn foreign(&self) -> &Foreign {
        &self.foreign
    }

    fn examine(&self, tasks: &[TaskId]) -> Result<Vec<Examined>> {
        self.files.write(|connection, now| foreign::examine(connection, now, &self.reader, tasks))
    }

    fn inspect(&self, after: Option<TaskId>, limit: i64) -> Result<Inspected> {
        self.files.read(Reader::People, |connection, _| foreign::inspect(connection, &self.reader, after, limit))
    }

    fn strays(&self, limit: i64) -> Result<Vec<TaskId>> {
        self.files.read(Reader::Dispatch, |connection, _| foreign::strays(connection, limit))
    }

    fn quarantine(&self, filter: &QuarantineFilter, after: Option<TaskId>, limit: i64) -> Result<QuarantinePage> {
        self.files
            .read(Reader::People, |connection, _| quarantine::page(connection, &self.foreign, filter, after, limit))
    }

    fn reexamine(&self, after: Option<TaskId>, limit: i64) -> Result<Reexamined> {
        self.files.write(|connection, now| quarantine::reexamine(connection, now, &self.reader, after, limit))
    }

    fn release(&self, tasks: &[TaskId], audit: &Audit) -> Result<Vec<Released>> {
        self.files.write(|connection, now| quarantine::release(connection, now, &self.reader, tasks, audit))
    }

    fn repair(&self, task: TaskId, repair: &Repair, only_try: bool, audit: &Audit) -> Result<Repaired> {
        self.files
            .write(|connection, now| quarantine::repair(connection, now, &self.reader, task, repair, only_try, audit))
    }

    fn discard(&self, tasks: &[TaskId], reason: &str, audit: &Audit) -> Result<Vec<TaskId>> {
        self.files.write(|connection, now| quarantine::discard(connection, now, tasks, reason, audit))
    }

    fn drift(&self) -> Result<Vec<Drift>> {
        self.files.read(Reader::People, |connection, _| foreign::drift(connection))
    }

    fn activate(&self, format: i16, rollback_reads: i16, audit: &Audit) -> Result<Activated> {
        self.files.write(|connection, now| cluster::activate(connection, now, format, rollback_reads, audit))
    }

    fn audit(&self, entry: &Audit) -> Result<()> {
        self.files.write(|connection, now| cluster::audit(connection, now, entry))
    }
}
