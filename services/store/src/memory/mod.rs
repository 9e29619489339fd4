//! The reference model of [`Store`]: what the databases must do, as plainly as it can be said. Ordered maps behind one
//! mutex, a clock that the caller gives, and faults when the caller wants them. The simulation runs on it, and the
//! conformance suite holds the databases to it.

mod attempts;
mod clock;
mod cluster;
mod damage;
mod faults;
mod fleet;
mod model;
mod people;
mod quarantine;
mod queues;
mod retention;
mod sessions;
mod submit;
#[cfg(test)]
mod tests;
mod waiting;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use millrace_core::{
    foreign::{Defect, Value},
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    route::Route,
    served::TickRule,
    time::Timestamp,
};
use uuid::Uuid;

pub use clock::{Clock, SettableClock};
pub use faults::Fault;
pub use model::Model;

use crate::{
    Activated, Drift, Examined, Foreign, Inspected, QuarantineFilter, QuarantinePage, Reader, Reexamined, Released,
    Repair, Repaired, Result, Store, types::*,
};
use faults::Faults;

/// A store in memory. Clones share their content; [`MemoryStore::snapshot`] copies it.
#[derive(Clone)]
pub struct MemoryStore {
    clock: Clock,
    model: Arc<Mutex<Model>>,
    faults: Arc<Mutex<Faults>>,
    foreign: Arc<Foreign>,
    reader: Arc<Reader>,
}

impl MemoryStore {
    /// A new store whose database's time is `clock`.
    pub fn new(clock: Clock) -> Self {
        let model = Arc::new(Mutex::new(Model::new(clock())));
        Self { clock, model, faults: Arc::default(), foreign: Arc::default(), reader: Arc::default() }
    }

    /// The same store, content and all, as another build opens it: with its own reader, and having noticed nothing yet.
    #[must_use]
    pub fn read_by(&self, reader: Reader) -> Self {
        Self { foreign: Arc::default(), reader: Arc::new(reader), ..self.clone() }
    }

    /// A new store and its clock, which stands still at `start` until it is moved.
    pub fn settable(start: Timestamp) -> (Self, Arc<SettableClock>) {
        let clock = Arc::new(SettableClock::new(start));
        (Self::new(clock.reader()), clock)
    }

    /// Makes the next call fail so. Several wait for a call each, in the order in which they were given.
    pub fn fail_next(&self, fault: Fault) {
        locked(&self.faults).push(fault);
    }

    /// Asks `choose` before every call, by the name of its method, whether it shall fail, until another is set or
    /// [`MemoryStore::heal`] is called.
    pub fn fail_when(&self, choose: impl FnMut(&'static str) -> Option<Fault> + Send + 'static) {
        locked(&self.faults).choose_by(Box::new(choose));
    }

    /// No call fails any more.
    pub fn heal(&self) {
        *locked(&self.faults) = Faults::default();
    }

    /// A copy of everything, as a backup would have it.
    pub fn snapshot(&self) -> Model {
        locked(&self.model).clone()
    }

    /// Goes back to a copy, as a restore of a backup does. The incarnation must then be changed (R15).
    pub fn restore(&self, snapshot: Model) {
        *locked(&self.model) = snapshot;
    }

    /// Changes the cluster's incarnation.
    pub fn set_incarnation(&self, incarnation: i16) {
        locked(&self.model).cluster.incarnation = incarnation;
    }

    /// Sets a live task aside in quarantine, whatever is wrong with it.
    pub fn quarantine(&self, task: TaskId) {
        let now = (self.clock)().0;
        locked(&self.model).set_aside(now, &self.reader, task, Defect::new("spec", "was set aside by a test"));
    }

    /// Puts a value into a column of a live task, which may be one that the column is not for, or into a column of a later
    /// release. A value that the column is for mends it.
    pub fn damage(&self, task: TaskId, column: &str, value: Value) {
        locked(&self.model).damage(task, column, value);
    }

    /// The audit trail, oldest first.
    pub fn audited(&self) -> Vec<Audit> {
        locked(&self.model).audit.iter().map(|(_, entry)| entry.clone()).collect()
    }

    /// Checks what holds between any two calls; the error names what is broken.
    pub fn check_invariants(&self) -> std::result::Result<(), String> {
        locked(&self.model).check_invariants()
    }

    fn write<T>(&self, method: &'static str, call: impl FnOnce(&mut Model, i64) -> Result<T>) -> Result<T> {
        let fault = locked(&self.faults).next(method);
        if let Some(fault) = fault
            && !fault.commits()
        {
            return Err(fault.error(method));
        }
        let mut model = locked(&self.model);
        let answer = call(&mut model, (self.clock)().0)?;
        match fault {
            Some(fault) => Err(fault.error(method)),
            None => Ok(answer),
        }
    }

    /// A call that changes nothing has no commit to be unsure about.
    fn read<T>(&self, method: &'static str, call: impl FnOnce(&Model, i64) -> T) -> Result<T> {
        if locked(&self.faults).next(method).is_some() {
            return Err(Fault::BeforeCommit.error(method));
        }
        Ok(call(&locked(&self.model), (self.clock)().0))
    }
}

/// A thread that panicked while it held a lock has failed its test already.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every method takes the one lock, reads the clock once, and lets the model answer.
impl Store for MemoryStore {
    fn cluster(&self) -> Result<Cluster> {
        self.read("cluster", |model, _| model.cluster)
    }

    fn tick(&self, rule: TickRule) -> Result<Tick> {
        self.write("tick", |model, now| Ok(model.tick(now, rule)))
    }

    fn renew_member(&self, member: &MemberRow, ttl_ms: i64) -> Result<()> {
        self.write("renew_member", |model, now| {
            model.renew_member(now, member, ttl_ms);
            Ok(())
        })
    }

    fn remove_member(&self, member: MemberId) -> Result<()> {
        self.write("remove_member", |model, _| {
            model.remove_member(member);
            Ok(())
        })
    }

    fn members(&self) -> Result<Vec<MemberRow>> {
        self.read("members", |model, _| model.members())
    }

    fn schema_version(&self) -> Result<String> {
        self.read("schema_version", |_, _| "memory".to_owned())
    }

    fn submit(&self, batch: &[NewTask], _repeat: bool) -> Result<Vec<Submitted>> {
        // The model looks for what an earlier try has stored in any case.
        self.write("submit", |model, now| Ok(model.submit(now, batch)))
    }

    fn claim(&self, batch: &[Claim]) -> Result<Vec<Claimed>> {
        self.write("claim", |model, now| {
            batch.iter().map(|claim| model.claim(now, &self.foreign, &self.reader, claim)).collect()
        })
    }

    fn complete(&self, batch: &[Completion]) -> Result<Vec<Completed>> {
        self.write("complete", |model, now| batch.iter().map(|one| model.complete(now, one)).collect())
    }

    fn requeue(&self, batch: &[Requeue]) -> Result<Vec<Requeued>> {
        self.write("requeue", |model, now| batch.iter().map(|one| model.requeue(now, one)).collect())
    }

    fn heartbeat(&self, batch: &[Heartbeat]) -> Result<Vec<HeartbeatResult>> {
        self.write("heartbeat", |model, now| batch.iter().map(|one| model.heartbeat(now, &self.foreign, one)).collect())
    }

    fn held_rows(&self, leases: &[LeaseRef]) -> Result<Vec<HeldRow>> {
        self.read("held_rows", |model, _| model.held_rows(&self.foreign, leases))
    }

    fn open_session(&self, session: &NewSession) -> Result<SessionRow> {
        self.write("open_session", |model, now| model.open_session(now, session))
    }

    fn resume_session(&self, session: SessionId, generation: i64, replica: &str) -> Result<Resumed> {
        self.write("resume_session", |model, now| {
            Ok(model.resume_session(now, &self.foreign, session, generation, replica))
        })
    }

    fn close_session(&self, session: SessionId, generation: Option<i64>) -> Result<bool> {
        self.write("close_session", |model, now| Ok(model.close_session(now, session, generation)))
    }

    fn reap_sessions(&self, limit: i64) -> Result<Vec<SessionId>> {
        self.write("reap_sessions", |model, now| Ok(model.reap_sessions(now, limit)))
    }

    fn orphans(&self, limit: i64) -> Result<Vec<HeldRow>> {
        self.read("orphans", |model, _| model.orphans(&self.foreign, limit))
    }

    fn held_by(&self, session: SessionId) -> Result<Vec<Dispatch>> {
        self.read("held_by", |model, _| model.held_by(&self.foreign, session))
    }

    fn sessions(&self, limit: i64) -> Result<Vec<SessionRow>> {
        self.read("sessions", |model, _| model.live_sessions(limit))
    }

    fn trim_sessions(&self, keep: Duration, limit: i64) -> Result<i64> {
        self.write("trim_sessions", |model, now| Ok(model.trim_sessions(now, keep, limit)))
    }

    fn lanes(&self, queue: &str, after: Option<&LaneKey>, limit: i64) -> Result<Vec<LaneKey>> {
        self.read("lanes", |model, _| model.lanes(queue, after, limit))
    }

    fn lane_page(
        &self,
        queue: &str,
        lane: &LaneKey,
        after: (Timestamp, TaskId),
        up_to: Option<(Timestamp, TaskId)>,
        limit: i64,
    ) -> Result<LanePage> {
        self.read("lane_page", |model, now| model.lane_page(now, &self.foreign, (queue, lane), (after, up_to), limit))
    }

    fn wake(&self, limit: i64) -> Result<Vec<(String, Waiting)>> {
        self.write("wake", |model, now| model.wake(now, &self.foreign, limit))
    }

    fn expire(&self, limit: i64) -> Result<Vec<TaskId>> {
        self.write("expire", |model, now| model.expire(now, &self.foreign, limit))
    }

    fn task(&self, id: TaskId) -> Result<Option<TaskRow>> {
        self.read("task", |model, _| model.task(&self.foreign, id))?
    }

    fn tasks(&self, ids: &[TaskId]) -> Result<Vec<TaskRow>> {
        self.read("tasks", |model, _| ids.iter().filter_map(|id| model.good_row(&self.foreign, *id)).collect())
    }

    fn is_quarantined(&self, id: TaskId) -> Result<bool> {
        self.read("is_quarantined", |model, _| model.quarantined.contains_key(&id))
    }

    fn quarantined(&self) -> Result<i64> {
        self.read("quarantined", |model, _| model::bounded(model.quarantined.len()))
    }

    fn attempts(&self, id: TaskId) -> Result<Vec<AttemptRow>> {
        self.read("attempts", |model, _| model.attempts_of(id))
    }

    fn list(&self, filter: &ListFilter, below: Option<TaskId>, limit: i64) -> Result<ListPage> {
        self.read("list", |model, _| model.list(&self.foreign, filter, below, limit))
    }

    fn position(&self, id: TaskId) -> Result<Option<i64>> {
        self.read("position", |model, _| model.position(id))
    }

    fn cancel(&self, id: TaskId, reason: &str, request: Option<Uuid>) -> Result<CancelResult> {
        self.write("cancel", |model, now| {
            if !model.is_known(request)
                && let Some(defect) = model.too_new(id)
            {
                return Ok(CancelResult::TooNew(defect));
            }
            model.must_read(&self.foreign, id)?;
            Ok(model.cancel(now, id, reason, request))
        })
    }

    fn retry(&self, id: TaskId, request: Option<Uuid>) -> Result<Idempotent<RetryResult>> {
        self.write("retry", |model, now| Ok(model.retry(now, id, request)))
    }

    fn request(&self, key: Uuid) -> Result<Option<TaskId>> {
        self.read("request", |model, _| model.requests.get(&key).and_then(|request| request.task))
    }

    fn routing(&self) -> Result<Routing> {
        self.read("routing", |model, _| model.routing())
    }

    fn set_route(&self, route: &Route, request: Option<Uuid>) -> Result<RouteResult> {
        self.write("set_route", |model, now| Ok(model.set_route(now, route, request)))
    }

    fn delete_route(&self, name: &str, request: Option<Uuid>) -> Result<RouteResult> {
        self.write("delete_route", |model, now| Ok(model.delete_route(now, name, request)))
    }

    fn create_queue(&self, queue: &QueueRow, request: Option<Uuid>) -> Result<Option<QueueRow>> {
        self.write("create_queue", |model, now| Ok(model.create_queue(now, queue, request)))
    }

    fn queue(&self, name: &str) -> Result<Option<QueueRow>> {
        self.read("queue", |model, _| model.queue_row(name))
    }

    fn queues(&self) -> Result<Vec<QueueRow>> {
        self.read("queues", |model, _| model.queue_rows())
    }

    fn update_queue(
        &self,
        name: &str,
        change: &QueueChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<Option<QueueRow>> {
        self.write("update_queue", |model, now| Ok(model.update_queue(now, name, change, audit, request)))
    }

    fn delete_queue(&self, name: &str, mode: &DeleteMode, request: Option<Uuid>) -> Result<DeleteResult> {
        self.write("delete_queue", |model, now| Ok(model.delete_queue(now, name, mode, request)))
    }

    fn drain_queues(&self, limit: i64) -> Result<Vec<String>> {
        self.write("drain_queues", |model, now| Ok(model.drain_queues(now, limit)))
    }

    fn lift_pauses(&self) -> Result<Vec<String>> {
        self.write("lift_pauses", |model, now| Ok(model.lift_pauses(now)))
    }

    fn counts(&self, names: &[String]) -> Result<Vec<QueueCounts>> {
        self.read("counts", |model, now| model.counts(now, names))
    }

    fn owners(&self) -> Result<Vec<OwnerRow>> {
        self.read("owners", |model, _| model.owners())
    }

    fn own_queue(&self, queue: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Option<i64>> {
        self.write("own_queue", |model, _| Ok(model.own_queue(queue, owner, endpoint, ttl_ms)))
    }

    fn renew_queues(&self, owner: MemberId, queues: &[(String, i64)], ttl_ms: i64) -> Result<Vec<String>> {
        self.write("renew_queues", |model, _| Ok(model.renew_queues(owner, queues, ttl_ms)))
    }

    fn release_queues(&self, owner: MemberId, queues: &[String]) -> Result<()> {
        self.write("release_queues", |model, _| {
            model.release_queues(owner, queues);
            Ok(())
        })
    }

    fn trim_finished(&self, keep: Duration) -> Result<i64> {
        self.write("trim_finished", |model, now| Ok(model.trim_finished(now, keep)))
    }

    fn trim_requests(&self, keep: Duration, after: Option<Uuid>, limit: i64) -> Result<Option<Uuid>> {
        self.write("trim_requests", |model, now| Ok(model.trim_requests(now, keep, after, limit)))
    }

    fn trim_attempts(&self, after: Option<TaskId>, limit: i64) -> Result<Option<TaskId>> {
        self.write("trim_attempts", |model, _| Ok(model.trim_attempts(after, limit)))
    }

    fn foreign(&self) -> &Foreign {
        &self.foreign
    }

    fn examine(&self, tasks: &[TaskId]) -> Result<Vec<Examined>> {
        self.write("examine", |model, now| {
            Ok(tasks.iter().map(|task| model.examine(now, &self.reader, *task)).collect())
        })
    }

    fn inspect(&self, after: Option<TaskId>, limit: i64) -> Result<Inspected> {
        self.read("inspect", |model, _| model.inspect(&self.reader, after, limit))
    }

    fn strays(&self, limit: i64) -> Result<Vec<TaskId>> {
        self.read("strays", |model, _| model.strays(limit))
    }

    fn quarantine(&self, filter: &QuarantineFilter, after: Option<TaskId>, limit: i64) -> Result<QuarantinePage> {
        self.read("quarantine", |model, _| model.quarantine_page(filter, after, limit))
    }

    fn reexamine(&self, after: Option<TaskId>, limit: i64) -> Result<Reexamined> {
        self.write("reexamine", |model, now| model.reexamine(now, &self.reader, after, limit))
    }

    fn release(&self, tasks: &[TaskId], audit: &Audit) -> Result<Vec<Released>> {
        self.write("release", |model, now| {
            tasks.iter().map(|task| model.release(now, &self.reader, *task, Some(audit))).collect()
        })
    }

    fn repair(&self, task: TaskId, repair: &Repair, only_try: bool, audit: &Audit) -> Result<Repaired> {
        self.write("repair", |model, now| model.repair(now, &self.reader, task, repair, only_try, audit))
    }

    fn discard(&self, tasks: &[TaskId], reason: &str, audit: &Audit) -> Result<Vec<TaskId>> {
        self.write("discard", |model, now| {
            Ok(tasks.iter().copied().filter(|task| model.discard(now, *task, reason, audit)).collect())
        })
    }

    fn drift(&self) -> Result<Vec<Drift>> {
        // The model's columns are of the types of this build.
        self.read("drift", |_, _| Vec::new())
    }

    fn activate(&self, format: i16, rollback_reads: i16, audit: &Audit) -> Result<Activated> {
        self.write("activate", |model, now| Ok(model.activate(now, format, rollback_reads, audit)))
    }

    fn audit(&self, entry: &Audit) -> Result<()> {
        self.write("audit", |model, now| {
            model.audit.push((now, entry.clone()));
            Ok(())
        })
    }
}
