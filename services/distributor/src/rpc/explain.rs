//! Why a task is not running now.

use millrace_core::task::State;
use millrace_proto::distributor::v1::{self as wire, explanation::Reason};
use millrace_runtime::status::Fault;
use millrace_store::{COUNT_BOUND, OwnerRow, QuarantinedRow, QueueRow, SessionRow, TaskRow};

use super::tasks::find;
use crate::{convert, quarantine::Seen, shared::Shared};

/// Sessions that are looked at.
const SESSIONS: i64 = 1000;

/// What the reasons are read from.
struct Facts {
    task: TaskRow,
    queue: Option<QueueRow>,
    owner: Option<OwnerRow>,
    /// Live sessions that serve the queue.
    sessions: Vec<SessionRow>,
    position: Option<i64>,
}

pub(super) async fn task(
    shared: &Shared,
    request: wire::ExplainTaskRequest,
) -> Result<wire::ExplainTaskResponse, Fault> {
    let id = convert::task_id(&request.id, "id")?;
    let task = match find(shared, id).await? {
        Seen::Task(task) => *task,
        Seen::SetAside(row) => return Ok(quarantined(*row)),
    };
    let queue = task.envelope.queue.clone();
    let facts = shared
        .read(move |store| {
            let owners = store.owners()?;
            let sessions = store.sessions(SESSIONS)?;
            Ok(Facts {
                queue: store.queue(&queue)?,
                owner: owners.into_iter().find(|owner| owner.queue == queue),
                sessions: sessions.into_iter().filter(|session| session.session.queues.contains(&queue)).collect(),
                position: store.position(id)?,
                task,
            })
        })
        .await?;
    let explanations = explain(&facts);
    Ok(wire::ExplainTaskResponse { task: Some(convert::task(facts.task)), explanations })
}

fn quarantined(row: QuarantinedRow) -> wire::ExplainTaskResponse {
    let since = convert::timestamp(row.first_seen_us);
    let message = format!(
        "its row is set aside since {since}, whole: {}; a build that can read it releases it, or somebody repairs it",
        row.defect
    );
    wire::ExplainTaskResponse {
        task: Some(convert::set_aside(row)),
        explanations: vec![reason(Reason::Quarantined, message)],
    }
}

/// The reasons, the most decisive first.
fn explain(facts: &Facts) -> Vec<wire::Explanation> {
    let mut reasons = Vec::new();
    match facts.task.state {
        State::Scheduled => reasons.push(waiting_for_a_moment(&facts.task)),
        State::Dispatched => reasons.push(reason(
            Reason::AwaitingAccept,
            format!("sent to orchestrator {}, which has not yet said that it runs", facts.task.orchestrator),
        )),
        State::Queued => queued(facts, &mut reasons),
        _ => {}
    }
    reasons
}

fn waiting_for_a_moment(task: &TaskRow) -> wire::Explanation {
    let until = task.wake_at_us.map(convert::timestamp).map(|moment| moment.to_string()).unwrap_or_default();
    match task.attempt {
        0 => reason(Reason::NotBefore, format!("waits for its not_before, {until}")),
        attempts => reason(Reason::RetryBackoff, format!("waits after attempt {attempts} until {until}")),
    }
}

fn queued(facts: &Facts, reasons: &mut Vec<wire::Explanation>) {
    let name = &facts.task.envelope.queue;
    if facts.task.envelope.min_reader > millrace_core::READER_RANGE.1 {
        reasons.push(reason(Reason::TooNew, "its row is too new for this build; a newer one will take it".into()));
    }
    if let Some(pause) = facts.queue.as_ref().and_then(|queue| queue.pause.as_ref()) {
        let until = match pause.until_us {
            Some(until) => format!("until {}", convert::timestamp(until)),
            None => "until someone resumes it".into(),
        };
        reasons.push(reason(Reason::QueuePaused, format!("queue {name} is paused {until}: {}", pause.reason)));
    }
    if facts.owner.as_ref().is_none_or(|owner| owner.owner.is_none()) {
        reasons.push(reason(Reason::NoOwner, format!("no service matches queue {name} at the moment")));
    }
    if facts.sessions.is_empty() {
        reasons.push(reason(Reason::NoOrchestrator, format!("no orchestrator is connected that serves queue {name}")));
    } else {
        let held: i64 = facts.sessions.iter().map(|session| i64::from(session.held)).sum();
        let slots: i64 = facts.sessions.iter().map(|session| i64::from(session.session.slots)).sum();
        if held >= slots {
            let count = facts.sessions.len();
            reasons.push(reason(
                Reason::NoDemand,
                format!("{count} orchestrators serve queue {name} and all their {slots} slots are taken"),
            ));
        }
    }
    if let Some(position) = facts.position {
        let ahead = match position {
            COUNT_BOUND.. => format!("at least {COUNT_BOUND}"),
            position => position.to_string(),
        };
        reasons.push(reason(Reason::Position, format!("{ahead} tasks stand before it in queue {name}")));
    }
}

fn reason(reason: Reason, message: String) -> wire::Explanation {
    wire::Explanation { reason: reason as i32, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[tokio::test]
    async fn a_task_that_is_set_aside_says_why_and_since_when() {
        let replica = fixture::replica();
        let id = replica.submit(1);
        replica.store.quarantine(id);
        let request = wire::ExplainTaskRequest { id: id.to_string() };
        let answer = task(&replica.shared, request).await.unwrap();
        assert_eq!(answer.explanations[0].reason, Reason::Quarantined as i32);
        let message = &answer.explanations[0].message;
        assert!(message.contains("since 2023-11-14T22:13:20Z") && message.contains("spec was set aside"), "{message}");
        assert!(answer.task.unwrap().quarantine.is_some());
    }
}
