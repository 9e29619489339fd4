//! Submission: validate, route, store in a group with others, answer after the commit, offer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use millrace_core::{READER_RANGE, ROW_FORMAT, id::TaskId, task::State, time::micros};
use millrace_proto::{
    common::v1::TaskSpec,
    distributor::v1::{self as wire},
};
use millrace_queue::request_key;
use millrace_runtime::{failpoint, status::Fault};
use millrace_store::{Envelope, NewTask, Submitted, TaskRow, Waiting};
use prost::Message;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    convert,
    routing::{RoutingTable, queue_closed},
    settings::Settings,
    shared::{Shared, lock},
    spec,
};

/// The name of the method in idempotency keys; a batch and a single call share it, so that a client may change from one
/// to the other.
const METHOD: &str = "SubmitTask";

const MAX_REQUEST_ID: usize = 128;

/// How often a submission is routed anew because the routes changed under it.
const ROUTING_TRIES: usize = 5;

/// Submissions that are committed together and answered together.
pub(crate) struct Group {
    tasks: Vec<NewTask>,
    reply: Reply,
}

/// Where a group's answers go, in the order of its tasks, and its place among those that wait. Dropped without answers, because
/// its batch panicked, it says that nobody knows whether the tasks were stored.
struct Reply {
    sender: Option<oneshot::Sender<Vec<Result<Submitted, Fault>>>>,
    count: usize,
    /// Given back before the answer, so that whoever has it finds the room.
    place: Option<Place>,
}

impl Reply {
    /// Whether the caller has gone.
    fn is_unwanted(&self) -> bool {
        self.sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn send(mut self, results: Vec<Result<Submitted, Fault>>) {
        self.place = None;
        if let Some(sender) = self.sender.take() {
            // A caller that has gone does not need its answer.
            let _ = sender.send(results);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.place = None;
        if let Some(sender) = self.sender.take() {
            let message = "the submission was given up; it may have been stored, so repeat it with the same request_id";
            let fault = Fault::unavailable(message, Duration::from_secs(1));
            let _ = sender.send(vec![Err(fault); self.count]);
        }
    }
}

/// How much waits for a commit, in tasks and in bytes of their specs: what a full gate of calls, each with many tasks, would
/// hold is more than memory.
#[derive(Debug)]
pub(crate) struct Room {
    most: Load,
    waiting: Mutex<Load>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Load {
    tasks: usize,
    bytes: usize,
}

/// A group's part of the room, given back when it is dropped.
#[derive(Debug)]
struct Place {
    room: Arc<Room>,
    load: Load,
}

impl Room {
    pub(crate) fn new(settings: &Settings) -> Arc<Self> {
        let most = Load { tasks: settings.max_pending_tasks, bytes: settings.max_pending_bytes };
        Arc::new(Self { most, waiting: Mutex::default() })
    }

    /// Takes room for a group, unless what waits already fills it. So it is exceeded by one group at most, and a group that is
    /// larger than all of the room is taken when nothing waits.
    fn take(self: &Arc<Self>, tasks: &[NewTask]) -> Option<Place> {
        let load = Load { tasks: tasks.len(), bytes: tasks.iter().map(|task| task.spec.len()).sum() };
        let mut waiting = lock(&self.waiting);
        if waiting.tasks >= self.most.tasks || waiting.bytes >= self.most.bytes {
            return None;
        }
        waiting.tasks += load.tasks;
        waiting.bytes += load.bytes;
        drop(waiting);
        Some(Place { room: self.clone(), load })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = lock(&self.room.waiting);
        waiting.tasks -= self.load.tasks;
        waiting.bytes -= self.load.bytes;
    }
}

/// A submission that was accepted.
pub(crate) struct Accepted {
    pub(crate) id: TaskId,
    pub(crate) existing: bool,
    /// The task as stored; none when an earlier call stored it.
    pub(crate) row: Option<TaskRow>,
}

/// Stores tasks; each is accepted or refused by itself.
pub(crate) async fn submit(
    shared: &Shared,
    requests: Vec<wire::SubmitTaskRequest>,
    traceparent: &str,
    field: impl Fn(usize, &str) -> String,
) -> Vec<Result<Accepted, Fault>> {
    let mut table = match shared.routing.current(shared).await {
        Ok(table) => table,
        Err(fault) => return requests.iter().map(|_| Err(fault.clone())).collect(),
    };
    // What the cluster writes is an operator's decision (R14); before the first look at it, what every release reads.
    let format = shared.cluster().map_or(READER_RANGE.0, |cluster| cluster.write_format).min(ROW_FORMAT);
    let mut answers: Vec<Option<Result<Accepted, Fault>>> = requests.iter().map(|_| None).collect();
    let mut open: Vec<(usize, Candidate)> = Vec::new();
    for (index, request) in requests.into_iter().enumerate() {
        let read = Candidate::read(shared, request, traceparent, |name| field(index, name));
        match read {
            Ok(candidate) => open.push((index, candidate)),
            Err(fault) => answers[index] = Some(Err(fault)),
        }
    }
    for _ in 0..ROUTING_TRIES {
        if open.is_empty() {
            break;
        }
        let mut tasks = Vec::with_capacity(open.len());
        open.retain_mut(|(index, candidate)| match candidate.task(&table, format) {
            Ok(task) => {
                tasks.push(task);
                true
            }
            Err(fault) => {
                answers[*index] = Some(Err(fault));
                false
            }
        });
        let results = store(shared, tasks.clone()).await;
        let mut again = Vec::new();
        for (((index, candidate), task), result) in open.into_iter().zip(tasks).zip(results) {
            match result {
                Ok(Submitted::RoutesChanged) => again.push((index, candidate)),
                result => answers[index] = Some(answer(shared, candidate, task, result).await),
            }
        }
        open = again;
        if !open.is_empty() {
            match shared.routing.refresh(shared).await {
                Ok(fresh) => table = fresh,
                Err(fault) => {
                    for (index, _) in open.drain(..) {
                        answers[index] = Some(Err(fault.clone()));
                    }
                }
            }
        }
    }
    let unsettled =
        || Err(Fault::unavailable("the routes keep changing; nothing was stored", Duration::from_millis(100)));
    answers.into_iter().map(|answer| answer.unwrap_or_else(unsettled)).collect()
}

/// A submission that keeps every bound.
struct Candidate {
    id: TaskId,
    spec: spec::Spec,
    bytes: Bytes,
    request: Option<Uuid>,
    traceparent: String,
}

impl Candidate {
    fn read(
        shared: &Shared,
        request: wire::SubmitTaskRequest,
        traceparent: &str,
        field: impl Fn(&str) -> String,
    ) -> Result<Self, Fault> {
        let key = &request.request_id;
        if key.len() > MAX_REQUEST_ID || key.contains('\0') {
            return Err(Fault::invalid(field("request_id"), "must have at most 128 bytes, none of them NUL"));
        }
        let spec = spec::read(&request.spec, &field("spec"), shared.settings.max_spec_bytes)?;
        let request_key = request_key(&spec.tenant, METHOD, key);
        Ok(Self {
            id: TaskId(Uuid::now_v7()),
            spec,
            bytes: request.spec,
            request: request_key,
            traceparent: traceparent.to_owned(),
        })
    }

    /// The row to store, by these routes and in this format.
    fn task(&self, table: &RoutingTable, format: i16) -> Result<NewTask, Fault> {
        let queue = table.queue_for(&self.spec)?;
        let wire = &self.spec.wire;
        let default = |ms: Option<i64>| ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let timeout = self.spec.timeout.or(default(queue.default_timeout_ms));
        Ok(NewTask {
            envelope: Envelope {
                id: self.id,
                tenant: self.spec.tenant.clone(),
                queue: queue.name.clone(),
                rank: self.spec.rank,
                executor: wire.executor.clone(),
                resource_class: wire.resource_class.clone(),
                concurrency_key: wire.concurrency_key.clone(),
                exclusive: wire.exclusive,
                timeout_ms: timeout.map(|timeout| micros(timeout).div_euclid(1000).max(1)),
                trace_context: self.traceparent.clone(),
                format,
                min_reader: format,
            },
            spec: self.bytes.to_vec(),
            request: self.request,
            not_before: self.spec.not_before,
            expire_after: self.spec.expire_after.or(default(queue.default_expire_after_ms)),
            route_version: table.routes.version(),
        })
    }
}

/// Puts tasks through the gate and waits for their commit.
async fn store(shared: &Shared, tasks: Vec<NewTask>) -> Vec<Result<Submitted, Fault>> {
    let count = tasks.len();
    if count == 0 {
        return Vec::new();
    }
    let all = |fault: Fault| (0..count).map(|_| Err(fault.clone())).collect::<Vec<_>>();
    let (sender, answer) = oneshot::channel();
    let put = shared.room.take(&tasks).is_some_and(|place| {
        let reply = Reply { sender: Some(sender), count, place: Some(place) };
        // A group that comes back answers itself, and that answer is not looked at.
        shared.submits.try_put(Group { tasks, reply }).is_ok()
    });
    if !put {
        shared.metrics.shed.inc_by(count as u64);
        // There is no room: the database is slower than the submitters.
        let message = "too many submissions wait for the database";
        return all(Fault::exhausted("OVERLOADED", message, Duration::from_millis(200)));
    }
    match answer.await {
        Ok(results) => results,
        Err(_) => all(Fault::unavailable("the replica is stopping", Duration::from_secs(1))),
    }
}

async fn answer(
    shared: &Shared,
    candidate: Candidate,
    task: NewTask,
    result: Result<Submitted, Fault>,
) -> Result<Accepted, Fault> {
    match result? {
        Submitted::Stored { created_at_us, state, ready_at_us, expires_at_us } => {
            let row = stored_row(task, created_at_us, state, ready_at_us, expires_at_us);
            Ok(Accepted { id: candidate.id, existing: false, row: Some(row) })
        }
        Submitted::Existing(id) => same_content(shared, id, &candidate.spec.wire).await,
        Submitted::QueueClosed => Err(queue_closed(&task.envelope.queue)),
        Submitted::Refused(message) => Err(Fault::invalid("spec", message)),
        Submitted::RoutesChanged => Err(Fault::internal("routes changed after the last try")),
    }
}

/// R11: the same request_id must carry the same content, compared as messages, since maps have no order in bytes.
async fn same_content(shared: &Shared, id: TaskId, spec: &TaskSpec) -> Result<Accepted, Fault> {
    let stored = shared.read(move |store| store.task(id)).await?;
    match stored {
        Some(row) if TaskSpec::decode(&*row.spec).is_ok_and(|stored| stored == *spec) => {
            Ok(Accepted { id, existing: true, row: Some(row) })
        }
        Some(_) => Err(Fault::already_exists(
            "REQUEST_ID_REUSED",
            format!("the request_id was used for task {id} with other content; nothing was stored"),
        )),
        // Retention, or the quarantine, has it: it was stored, and a repeat must not store it again.
        None => Ok(Accepted { id, existing: true, row: None }),
    }
}

fn stored_row(
    task: NewTask,
    created_at_us: i64,
    state: State,
    ready_at_us: Option<i64>,
    expires_at_us: Option<i64>,
) -> TaskRow {
    TaskRow {
        wake_at_us: if state == State::Scheduled { task.not_before.map(|moment| moment.0) } else { None },
        envelope: task.envelope,
        spec: task.spec,
        state,
        attempt: 0,
        token: None,
        session: None,
        orchestrator: String::new(),
        replica: String::new(),
        failures: 0,
        losses: 0,
        created_at_us,
        ready_at_us,
        expires_at_us,
        dispatched_at_us: None,
        started_at_us: None,
        finished_at_us: None,
        outcome: None,
        ignored: Vec::new(),
    }
}

/// The submit gate: commits groups together, replies, and offers what now waits. A group whose caller has gone before is not
/// written: nothing was promised, and after an overload nobody waits for the oldest ones.
pub(crate) fn run(shared: &Arc<Shared>, groups: Vec<Group>) {
    let mut rest = groups.into_iter().filter(|group| !group.reply.is_unwanted()).peekable();
    while rest.peek().is_some() {
        let (mut batch, mut tasks) = (Vec::new(), Vec::new());
        while tasks.len() < shared.settings.max_batch
            && let Some(mut group) = rest.next()
        {
            tasks.append(&mut group.tasks);
            batch.push(group.reply);
        }
        commit(shared, batch, tasks);
    }
}

fn commit(shared: &Arc<Shared>, batch: Vec<Reply>, tasks: Vec<NewTask>) {
    let stored = shared.persist("submit", tasks.len(), |store, repeat| {
        let stored = store.submit(&tasks, repeat);
        match failpoint::hit("submit.after_commit") {
            Some(_) if stored.is_ok() => Err(millrace_store::StoreError::UnknownOutcome("fail point".into())),
            _ => stored,
        }
    });
    let mut results = match stored {
        Ok(results) => {
            offer(shared, &tasks, &results);
            results.into_iter().map(Ok).collect::<Vec<_>>()
        }
        Err(error) => {
            let fault = Fault::from(error);
            tasks.iter().map(|_| Err(fault.clone())).collect()
        }
    }
    .into_iter();
    for reply in batch {
        let count = reply.count;
        reply.send(results.by_ref().take(count).collect());
    }
}

fn offer(shared: &Shared, tasks: &[NewTask], results: &[Submitted]) {
    let mut by_queue: HashMap<&str, Vec<Waiting>> = HashMap::new();
    let stored = results.iter().filter(|result| matches!(result, Submitted::Stored { .. })).count();
    shared.metrics.submitted.inc_by(stored as u64);
    for (task, result) in tasks.iter().zip(results) {
        if let Submitted::Stored { ready_at_us: Some(ready_at_us), expires_at_us, .. } = result {
            by_queue.entry(&task.envelope.queue).or_default().push(Waiting {
                id: task.envelope.id,
                tenant: task.envelope.tenant.clone(),
                rank: task.envelope.rank,
                ready_at_us: *ready_at_us,
                expires_at_us: *expires_at_us,
                min_reader: task.envelope.min_reader,
            });
        }
    }
    for (queue, waiting) in by_queue {
        shared.links.offer(queue, waiting.iter().map(convert::offer));
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::poll;
    use millrace_store::Store;

    use super::*;
    use crate::{fixture, gate::Gate};

    fn task(bytes: usize) -> NewTask {
        let envelope = Envelope {
            id: TaskId(Uuid::now_v7()),
            tenant: "acme".into(),
            queue: "default".into(),
            rank: 0,
            executor: "process".into(),
            resource_class: String::new(),
            concurrency_key: String::new(),
            exclusive: false,
            timeout_ms: None,
            trace_context: String::new(),
            format: ROW_FORMAT,
            min_reader: ROW_FORMAT,
        };
        let spec = vec![0; bytes];
        NewTask { envelope, spec, request: None, not_before: None, expire_after: None, route_version: 0 }
    }

    fn group(room: &Arc<Room>, tasks: Vec<NewTask>) -> (Group, oneshot::Receiver<Vec<Result<Submitted, Fault>>>) {
        let (sender, answer) = oneshot::channel();
        let (count, place) = (tasks.len(), room.take(&tasks).unwrap());
        (Group { tasks, reply: Reply { sender: Some(sender), count, place: Some(place) } }, answer)
    }

    fn room(tasks: usize, bytes: usize) -> Arc<Room> {
        Arc::new(Room { most: Load { tasks, bytes }, waiting: Mutex::default() })
    }

    #[tokio::test]
    async fn a_batch_that_panics_answers_its_callers_and_makes_room() {
        let room = room(3, 100);
        let gate = Gate::start("test", 10, 10, |_: Vec<Group>| panic!("a defect")).unwrap();
        let (group, answer) = group(&room, vec![task(1), task(2)]);
        assert!(gate.try_put(group).is_ok());
        let answers = answer.await.unwrap();
        let codes: Vec<_> = answers.into_iter().map(|answer| answer.unwrap_err().code).collect();
        assert_eq!(codes, [tonic::Code::Unavailable; 2]);
        let (emptied, _) = self::group(&room, vec![task(1)]);
        drop(emptied);
        assert_eq!(*lock(&room.waiting), Load::default());
    }

    #[test]
    fn what_waits_is_bounded_by_tasks_and_by_bytes() {
        let room = room(3, 100);
        let larger_than_all = room.take(&[task(60), task(60), task(60), task(60)]).unwrap();
        assert!(room.take(&[task(1)]).is_none());
        drop(larger_than_all);
        let places = [room.take(&[task(1), task(1)]).unwrap(), room.take(&[task(1)]).unwrap()];
        assert!(room.take(&[task(1)]).is_none(), "as many tasks as may wait");
        drop(places);
        let large = room.take(&[task(100)]).unwrap();
        assert!(room.take(&[task(1)]).is_none(), "as many bytes as may wait");
        drop(large);
        assert!(room.take(&[task(1)]).is_some());
    }

    #[tokio::test]
    async fn submitters_past_the_bound_are_told_when_to_come_again() {
        let replica = fixture::replica_with(&["--max-pending-tasks", "2"]);
        let shared = &replica.shared;
        let held = shared.room.take(&[task(1), task(1)]).unwrap();
        let refused = store(shared, vec![task(1)]).await.pop().unwrap().unwrap_err();
        assert_eq!((refused.code, refused.reason.as_ref()), (tonic::Code::ResourceExhausted, "OVERLOADED"));
        assert!(refused.retry_after.is_some());
        assert_eq!(shared.metrics.shed.get(), 1);
        drop(held);
        let mut task = task(1);
        task.route_version = shared.store().routing().unwrap().version;
        assert!(matches!(store(shared, vec![task]).await[..], [Ok(Submitted::Stored { .. })]));
    }

    #[tokio::test]
    async fn a_group_whose_caller_has_gone_is_not_written() {
        let replica = fixture::replica();
        let (shared, room) = (&replica.shared, room(10, 100));
        let version = replica.store.routing().unwrap().version;
        let routed = || NewTask { route_version: version, ..task(1) };
        let (gone, answer) = group(&room, vec![routed()]);
        drop(answer);
        let (wanted, mut answer) = group(&room, vec![routed()]);
        let id = wanted.tasks[0].envelope.id;
        run(shared, vec![gone, wanted]);
        assert!(matches!(poll!(&mut answer), Poll::Ready(Ok(_))));
        let stored = replica.store.tasks(&[id]).unwrap().len();
        assert_eq!((stored, shared.metrics.submitted.get()), (1, 1));
    }
}
