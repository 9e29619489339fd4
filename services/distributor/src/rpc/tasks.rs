//! Submit, read, cancel and retry tasks.

use millrace_core::{
    foreign::{Defect, LAST_ATTEMPT},
    id::TaskId,
};
use millrace_proto::distributor::v1 as wire;
use millrace_queue::request_key;
use millrace_runtime::status::{Fault, Violation};
use millrace_store::{Audit, CancelResult, RetryResult, Store, StoreError, TaskRow};
use tonic::Request;
use uuid::Uuid;

use crate::{convert, quarantine::Seen, shared::Shared, spec, submit};

const MAX_BATCH: usize = 10_000;
pub(super) const MAX_REASON: usize = 1024;
const MAX_PAGE: i32 = 1000;

pub(super) async fn submit(
    shared: &Shared,
    request: Request<wire::SubmitTaskRequest>,
) -> Result<wire::SubmitTaskResponse, Fault> {
    let traceparent = convert::traceparent(request.metadata());
    let mut answers = submit::submit(shared, vec![request.into_inner()], &traceparent, |_, name| name.to_owned()).await;
    let accepted = answers.pop().unwrap_or_else(|| Err(Fault::internal("no answer to a submission")))?;
    let task = match accepted.row {
        Some(row) => convert::task(row),
        // Stored by an earlier call and gone since: only the id is left to tell.
        None => wire::Task { id: accepted.id.to_string(), ..Default::default() },
    };
    Ok(wire::SubmitTaskResponse { task: Some(task), existing: accepted.existing })
}

pub(super) async fn batch_submit(
    shared: &Shared,
    request: Request<wire::BatchSubmitTasksRequest>,
) -> Result<wire::BatchSubmitTasksResponse, Fault> {
    let traceparent = convert::traceparent(request.metadata());
    let requests = request.into_inner().requests;
    if requests.is_empty() || requests.len() > MAX_BATCH {
        let found = format!("holds {} requests; from 1 to {MAX_BATCH} are accepted", requests.len());
        return Err(Fault::invalid("requests", found));
    }
    let answers =
        submit::submit(shared, requests, &traceparent, |index, name| format!("requests[{index}].{name}")).await;
    // A database that does not answer is the whole call's failure: the caller tries it again as a whole.
    if let Some(Err(fault)) = answers.iter().find(|answer| matches!(answer, Err(fault) if fault.retry_after.is_some()))
        && answers.iter().all(|answer| answer.is_err())
    {
        return Err(fault.clone());
    }
    Ok(wire::BatchSubmitTasksResponse { results: answers.into_iter().map(result).collect() })
}

fn result(answer: Result<submit::Accepted, Fault>) -> wire::BatchSubmitResult {
    use wire::batch_submit_result::Result as Outcome;
    match answer {
        Ok(accepted) => wire::BatchSubmitResult {
            result: Some(Outcome::TaskId(accepted.id.to_string())),
            existing: accepted.existing,
        },
        Err(fault) => {
            let field = match fault.violations.as_slice() {
                [Violation { field, .. }] => field.clone(),
                _ => String::new(),
            };
            let refusal = wire::Refusal {
                code: fault.code as i32,
                reason: fault.reason.into_owned(),
                message: fault.message,
                field,
            };
            wire::BatchSubmitResult { result: Some(Outcome::Refusal(refusal)), existing: false }
        }
    }
}

pub(super) async fn get(shared: &Shared, request: wire::GetTaskRequest) -> Result<wire::GetTaskResponse, Fault> {
    let id = convert::task_id(&request.id, "id")?;
    let seen = find(shared, id).await?;
    let attempts = shared.read(move |store| store.attempts(id)).await?;
    let mut task = seen.to_wire();
    task.attempts = attempts.into_iter().map(convert::attempt).collect();
    Ok(wire::GetTaskResponse { task: Some(task) })
}

/// Reads a task, also one that is set aside, or says that there is none.
pub(super) async fn find(shared: &Shared, id: TaskId) -> Result<Seen, Fault> {
    shared.read(move |store| Seen::look(store, id)).await?.ok_or_else(|| missing(id))
}

/// Why a task is not among those that can be changed.
async fn absent(shared: &Shared, id: TaskId) -> Fault {
    match shared.read(move |store| store.is_quarantined(id)).await {
        Ok(true) => Fault::precondition(
            "QUARANTINED",
            format!("task {id} is set aside because its row cannot be read; release, repair or discard it first"),
        ),
        Ok(false) => missing(id),
        Err(fault) => fault,
    }
}

fn missing(id: TaskId) -> Fault {
    Fault::not_found("NO_SUCH_TASK", format!("there is no task {id}, or its retention has ended"))
}

/// The page size to use.
pub(super) fn page_size(asked: i32, default: i32) -> Result<i32, Fault> {
    match asked {
        0 => Ok(default),
        1..=MAX_PAGE => Ok(asked),
        _ => Err(Fault::invalid("page_size", format!("must lie between 0 and {MAX_PAGE}"))),
    }
}

pub(super) async fn cancel(
    shared: &Shared,
    request: wire::CancelTaskRequest,
) -> Result<wire::CancelTaskResponse, Fault> {
    let id = convert::task_id(&request.id, "id")?;
    let reason = request.reason;
    if reason.len() > MAX_REASON || reason.contains('\0') {
        return Err(Fault::invalid("reason", "must have at most 1024 bytes, none of them NUL"));
    }
    let key = key("CancelTask", &request.request_id)?;
    let audit = Audit { action: "CancelTask".into(), subject: id.to_string(), detail: reason.clone() };
    let result = shared
        .write(move |store| {
            if reused(store, key, id)? {
                return Ok(None);
            }
            let result = store.cancel(id, &reason, key)?;
            // What was refused was not done, and the trail tells what was.
            if matches!(result, CancelResult::Done(_)) {
                store.audit(&audit)?;
            }
            Ok(Some(result))
        })
        .await?;
    match result.ok_or_else(reused_fault)? {
        CancelResult::Done(row) => {
            hint_cancel(shared, &row);
            shared.watches.nudge(id);
            Ok(wire::CancelTaskResponse { task: Some(convert::task(*row)) })
        }
        CancelResult::Finished(row) => {
            Err(Fault::precondition("ALREADY_FINISHED", format!("task {id} has already ended as {}", row.state)))
        }
        CancelResult::TooNew(defect) => Err(too_new(id, &defect)),
        CancelResult::NotFound => Err(absent(shared, id).await),
    }
}

fn too_new(id: TaskId, defect: &Defect) -> Fault {
    let message = format!("only a later release may act on task {id} ({defect}); ask a replica of that release");
    Fault::precondition("TOO_NEW", message)
}

/// Tells the orchestrator at once when its stream is here; elsewhere its next heartbeat brings it (R13).
fn hint_cancel(shared: &Shared, row: &TaskRow) {
    if let (Some(session), Some(token)) = (row.session, row.token)
        && let Some(session) = shared.sessions.by_id(session)
    {
        session.cancel([millrace_core::held::LeaseRef { task: row.envelope.id, attempt: row.attempt, token }]);
    }
}

pub(super) async fn retry(shared: &Shared, request: wire::RetryTaskRequest) -> Result<wire::RetryTaskResponse, Fault> {
    let id = convert::task_id(&request.id, "id")?;
    let key = key("RetryTask", &request.request_id)?;
    let audit = Audit { action: "RetryTask".into(), subject: id.to_string(), detail: String::new() };
    let result = shared
        .write(move |store| {
            if reused(store, key, id)? {
                return Ok(None);
            }
            if let Some(defect) = unfit_to_run(store, key, id)? {
                return Err(StoreError::Unreadable(defect));
            }
            let result = store.retry(id, key)?;
            if matches!(result.value, RetryResult::Done(_)) && !result.repeated {
                store.audit(&audit)?;
            }
            Ok(Some(result))
        })
        .await?;
    let result = result.ok_or_else(reused_fault)?;
    match result.value {
        RetryResult::Done(row) => {
            if let (Some(ready_at_us), false) = (row.ready_at_us, result.repeated) {
                let waiting = millrace_store::Waiting {
                    id,
                    tenant: row.envelope.tenant.clone(),
                    rank: row.envelope.rank,
                    ready_at_us,
                    expires_at_us: row.expires_at_us,
                    min_reader: row.envelope.min_reader,
                };
                shared.links.offer(&row.envelope.queue, std::iter::once(convert::offer(&waiting)));
            }
            shared.watches.nudge(id);
            Ok(wire::RetryTaskResponse { task: Some(convert::task(*row)) })
        }
        RetryResult::WrongState(row) if row.state == millrace_core::task::State::Succeeded => {
            Err(Fault::precondition("ALREADY_SUCCEEDED", format!("task {id} has succeeded")))
        }
        RetryResult::WrongState(row) => {
            Err(Fault::precondition("NOT_FINISHED", format!("task {id} has not ended: it is {}", row.state)))
        }
        RetryResult::QueueClosed(queue) => Err(crate::routing::queue_closed(&queue)),
        RetryResult::TooNew(defect) => Err(too_new(id, &defect)),
        RetryResult::NotFound => Err(absent(shared, id).await),
    }
}

/// What would have a task set aside as soon as it were queued again: a discard from quarantine, say, has ended it with what could be
/// read. A retry that was made before is not judged again.
fn unfit_to_run(store: &dyn Store, key: Option<Uuid>, id: TaskId) -> Result<Option<Defect>, StoreError> {
    if key.map(|key| store.request(key)).transpose()?.flatten().is_some() {
        return Ok(None);
    }
    let Some(task) = store.task(id)?.filter(|task| task.state.is_terminal()) else { return Ok(None) };
    let empty = |column: &str, text: &str| text.is_empty().then(|| Defect::new(column, "is empty"));
    let attempt = || {
        let error = format!("holds {}, not {}", task.attempt, LAST_ATTEMPT.expected);
        (!LAST_ATTEMPT.hold(task.attempt)).then(|| Defect::new("attempt", error))
    };
    let envelope = empty("tenant", &task.envelope.tenant).or_else(|| empty("queue", &task.envelope.queue));
    Ok(envelope.or_else(attempt).or_else(|| spec::read_foreign(&task.spec).defect))
}

/// Whether the key was used for another task (R11).
fn reused(store: &dyn Store, key: Option<Uuid>, id: TaskId) -> Result<bool, StoreError> {
    let Some(key) = key else { return Ok(false) };
    Ok(store.request(key)?.is_some_and(|used_for| used_for != id))
}

fn reused_fault() -> Fault {
    Fault::already_exists("REQUEST_ID_REUSED", "the request_id was used for another task; nothing was changed")
}

/// The idempotency key of a call that is not a submission; none when the caller gave no request_id.
pub(super) fn key(method: &str, request_id: &str) -> Result<Option<Uuid>, Fault> {
    if request_id.len() > 128 || request_id.contains('\0') {
        return Err(Fault::invalid("request_id", "must have at most 128 bytes, none of them NUL"));
    }
    Ok(request_key("", method, request_id))
}

#[cfg(test)]
mod tests {
    use millrace_core::foreign::Value;
    use millrace_proto::common::v1::TaskState;

    use super::*;
    use crate::fixture;

    fn audited(replica: &fixture::Replica) -> Vec<String> {
        replica.store.audited().into_iter().map(|entry| format!("{} {}", entry.action, entry.subject)).collect()
    }

    #[tokio::test]
    async fn the_trail_tells_what_was_done_and_nothing_that_was_refused() {
        let replica = fixture::replica();
        let (shared, waits, aside) = (&replica.shared, replica.submit(1), replica.submit(2));
        replica.store.quarantine(aside);
        let cancel_it = |id: TaskId| wire::CancelTaskRequest { id: id.to_string(), ..Default::default() };
        let retry_it = |id: TaskId| wire::RetryTaskRequest { id: id.to_string(), ..Default::default() };
        let nobody = TaskId(Uuid::from_u128(9));
        for id in [aside, nobody] {
            cancel(shared, cancel_it(id)).await.unwrap_err();
            retry(shared, retry_it(id)).await.unwrap_err();
        }
        retry(shared, retry_it(waits)).await.unwrap_err();
        assert_eq!(audited(&replica), [] as [String; 0]);
        cancel(shared, cancel_it(waits)).await.unwrap();
        let once = wire::RetryTaskRequest { request_id: "once".into(), ..retry_it(waits) };
        retry(shared, once.clone()).await.unwrap();
        retry(shared, once).await.unwrap();
        assert_eq!(audited(&replica), [format!("CancelTask {waits}"), format!("RetryTask {waits}")]);
    }

    #[tokio::test]
    async fn r9_a_task_that_is_too_new_is_left_to_a_later_release() {
        let replica = fixture::replica();
        for (number, column, value) in [(1, "min_reader", 2), (2, "state", 77)] {
            let task = replica.submit(number);
            replica.store.damage(task, column, Value::Integer(value));
            let request = wire::CancelTaskRequest { id: task.to_string(), ..Default::default() };
            let fault = cancel(&replica.shared, request).await.unwrap_err();
            assert_eq!((fault.code, fault.reason.as_ref()), (tonic::Code::FailedPrecondition, "TOO_NEW"));
            assert!(fault.message.contains(column), "{fault}");
        }
        assert_eq!(audited(&replica), [] as [String; 0]);
    }

    #[tokio::test]
    async fn what_could_not_be_run_is_not_queued_again() {
        let replica = fixture::replica();
        let shared = &replica.shared;
        let audit = Audit { action: "test".into(), subject: String::new(), detail: String::new() };
        let discarded = |number, column: &str, value: Value| {
            let task = replica.submit(number);
            replica.store.damage(task, column, value);
            // Whatever was wrong with it: what is left of it is judged, not why it was set aside.
            replica.store.quarantine(task);
            assert_eq!(replica.store.discard(&[task], "of a test", &audit).unwrap(), [task]);
            task
        };
        let request = |task: TaskId| wire::RetryTaskRequest { id: task.to_string(), ..Default::default() };
        let cut = discarded(1, "spec", Value::Bytes(vec![0x3A, 0xFF]));
        let fault = retry(shared, request(cut)).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_ref()), (tonic::Code::FailedPrecondition, "ROW_UNREADABLE"));
        assert!(replica.store.task(cut).unwrap().unwrap().state.is_terminal(), "nothing was changed");
        let nobody_s = discarded(2, "tenant", Value::Text(String::new()));
        assert!(retry(shared, request(nobody_s)).await.unwrap_err().message.contains("tenant"));
        let sound = discarded(3, "attempt", Value::Integer(0));
        assert_eq!(retry(shared, request(sound)).await.unwrap().task.unwrap().state, TaskState::Queued as i32);
    }

    #[tokio::test]
    async fn a_task_that_is_set_aside_is_found_and_cannot_be_steered() {
        let replica = fixture::replica();
        let (shared, task) = (&replica.shared, replica.submit(1));
        replica.store.quarantine(task);
        let id = task.to_string();
        let found = get(shared, wire::GetTaskRequest { id: id.clone() }).await.unwrap().task.unwrap();
        assert_eq!(found.state, TaskState::Quarantined as i32);
        assert!(found.quarantine.unwrap().since.is_some());
        let cancel_it = wire::CancelTaskRequest { id: id.clone(), ..Default::default() };
        assert_eq!(cancel(shared, cancel_it).await.unwrap_err().reason, "QUARANTINED");
        assert_eq!(
            retry(shared, wire::RetryTaskRequest { id, ..Default::default() }).await.unwrap_err().reason,
            "QUARANTINED"
        );
        let nobody = wire::GetTaskRequest { id: TaskId(Uuid::from_u128(9)).to_string() };
        assert_eq!(get(shared, nobody).await.unwrap_err().reason, "NO_SUCH_TASK");
    }
}
