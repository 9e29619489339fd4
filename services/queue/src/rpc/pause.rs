//! PauseQueue and ResumeQueue.

use millrace_core::time::Timestamp;
use millrace_proto::queue::v1::{PauseQueueRequest, PauseQueueResponse, ResumeQueueRequest, ResumeQueueResponse};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, QueueChange, QueueRow};
use uuid::Uuid;

use super::{Rpc, no_queue};
use crate::{convert, request_key, validate};

pub(super) async fn pause(rpc: &Rpc, request: PauseQueueRequest) -> Result<PauseQueueResponse, Fault> {
    let until = check(&request, rpc.host.database_now())?;
    let detail = match until {
        Some(until) => format!("until {} us since 1970: {}", until.0, request.reason),
        None => request.reason.clone(),
    };
    let key = request_key("", "PauseQueue", &request.request_id);
    let pause = Some((request.reason, until.map(|until| until.0)));
    let row = set(rpc, "PauseQueue", request.name, pause, detail, key).await?;
    Ok(PauseQueueResponse { queue: Some(convert::queue(row)) })
}

pub(super) async fn resume(rpc: &Rpc, request: ResumeQueueRequest) -> Result<ResumeQueueResponse, Fault> {
    let mut violations = Violations::new();
    validate::request_id(&request.request_id, &mut violations);
    validate::name("name", &request.name, &mut violations);
    violations.finish()?;
    let key = request_key("", "ResumeQueue", &request.request_id);
    let row = set(rpc, "ResumeQueue", request.name, None, String::new(), key).await?;
    Ok(ResumeQueueResponse { queue: Some(convert::queue(row)) })
}

/// Sets or lifts the pause in the database, whose gate then refuses or accepts claims, and tells the matcher if it is here. The matcher
/// follows the row as it is now: a repeated request id may have changed nothing.
async fn set(
    rpc: &Rpc,
    action: &str,
    name: String,
    pause: Option<(String, Option<i64>)>,
    detail: String,
    key: Option<Uuid>,
) -> Result<QueueRow, Fault> {
    let change = QueueChange { pause: Some(pause), ..QueueChange::default() };
    let audit = Audit { action: action.to_owned(), subject: format!("queue {name}"), detail };
    let queue = name.clone();
    // The store writes the audit trail with the change.
    let updated = rpc.calls.change(move |store| store.update_queue(&queue, &change, &audit, key), |_| None);
    let row = updated.await?.ok_or_else(|| no_queue(&name))?;
    rpc.host.set_paused(&name, row.pause.is_some());
    Ok(row)
}

/// Until when to pause. `now` is the database's time.
fn check(request: &PauseQueueRequest, now: Timestamp) -> Result<Option<Timestamp>, Fault> {
    let mut violations = Violations::new();
    validate::request_id(&request.request_id, &mut violations);
    validate::name("name", &request.name, &mut violations);
    violations.require(!request.reason.is_empty(), "reason", "must say why");
    validate::text("reason", &request.reason, &mut violations);
    let until = request.until.as_ref().map(convert::timestamp);
    if let Some(until) = until {
        let later = until.is_some_and(|until| until > now);
        violations.require(later, "until", "must be a moment in the future");
    }
    violations.finish()?;
    Ok(until.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(reason: &str, until_seconds: Option<i64>) -> PauseQueueRequest {
        let until = until_seconds.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
        PauseQueueRequest { name: "q".into(), reason: reason.into(), until, ..Default::default() }
    }

    #[test]
    fn a_pause_has_a_reason_and_ends_in_the_future() {
        let now = Timestamp(10_000_000);
        assert_eq!(check(&request("why", None), now), Ok(None));
        assert_eq!(check(&request("why", Some(11)), now), Ok(Some(Timestamp(11_000_000))));
        let long = "x".repeat(1_025);
        for (bad, field) in [
            (request("", None), "reason"),
            (request(&long, None), "reason"),
            (request("a\0b", None), "reason"),
            (request("why", Some(10)), "until"),
            (request("why", Some(i64::MAX)), "until"),
        ] {
            assert_eq!(check(&bad, now).unwrap_err().violations[0].field, field);
        }
    }
}
