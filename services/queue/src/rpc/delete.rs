//! DeleteQueue.

use millrace_proto::queue::v1::{DeleteMode as WireMode, DeleteQueueRequest, DeleteQueueResponse};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, DeleteMode, DeleteResult};

use super::{Rpc, no_queue};
use crate::{convert, request_key, validate};

pub(super) async fn delete(rpc: &Rpc, request: DeleteQueueRequest) -> Result<DeleteQueueResponse, Fault> {
    let key = request_key("", "DeleteQueue", &request.request_id);
    let mode = mode(&request)?;
    let audit = audit_entry(&request.name, &mode);
    let name = request.name.clone();
    let deleted = rpc.calls.change(
        move |store| store.delete_queue(&name, &mode, key),
        move |result| matches!(result, DeleteResult::Gone | DeleteResult::Draining(_)).then_some(audit),
    );
    let name = request.name;
    match deleted.await? {
        DeleteResult::Gone => {
            rpc.host.nudge();
            Ok(DeleteQueueResponse { queue: None })
        }
        DeleteResult::Draining(row) => Ok(DeleteQueueResponse { queue: Some(convert::queue(*row)) }),
        DeleteResult::NotEmpty => {
            Err(Fault::precondition("QUEUE_NOT_EMPTY", format!("work waits or runs in the queue `{name}`")))
        }
        DeleteResult::Routed(route) => {
            let message = format!("the route `{route}` names the queue `{name}`");
            Err(Fault::precondition("QUEUE_ROUTED", message).with_metadata("route", route))
        }
        DeleteResult::NoTarget => Err(no_target(rpc, request.move_to).await?),
        DeleteResult::NotFound => Err(no_queue(&name)),
    }
}

fn mode(request: &DeleteQueueRequest) -> Result<DeleteMode, Fault> {
    let mut violations = Violations::new();
    validate::request_id(&request.request_id, &mut violations);
    validate::name("name", &request.name, &mut violations);
    let mode = match WireMode::try_from(request.mode) {
        Ok(WireMode::Unspecified | WireMode::Refuse) => Some(DeleteMode::Refuse),
        Ok(WireMode::Drain) => Some(DeleteMode::Drain),
        Ok(WireMode::Move) => Some(DeleteMode::Move(request.move_to.clone())),
        Err(_) => None,
    };
    match &mode {
        Some(DeleteMode::Move(to)) => {
            validate::name("move_to", to, &mut violations);
            violations.require(*to != request.name, "move_to", "must be another queue");
        }
        Some(_) => violations.require(request.move_to.is_empty(), "move_to", "may be set with MOVE only"),
        None => violations.push("mode", "must be a mode that this release knows"),
    }
    violations.finish()?;
    mode.ok_or_else(|| Fault::internal("a mode was accepted that is none"))
}

/// Why the queue to move to cannot take the work.
async fn no_target(rpc: &Rpc, move_to: String) -> Result<Fault, Fault> {
    let name = move_to.clone();
    Ok(match rpc.calls.read(move |store| store.queue(&name)).await? {
        Some(row) if row.draining => {
            let message = format!("the queue `{move_to}` is itself being deleted");
            Fault::precondition("QUEUE_DRAINING", message).with_metadata("queue", move_to)
        }
        Some(_) => Fault::aborted("QUEUE_CHANGED", format!("the queue `{move_to}` has changed meanwhile")),
        None => no_queue(&move_to),
    })
}

fn audit_entry(name: &str, mode: &DeleteMode) -> Audit {
    let detail = match mode {
        DeleteMode::Refuse => "only if empty".to_owned(),
        DeleteMode::Drain => "drains first".to_owned(),
        DeleteMode::Move(to) => format!("moves what waits to {to}"),
    };
    Audit { action: "DeleteQueue".into(), subject: format!("queue {name}"), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(mode: i32, move_to: &str) -> DeleteQueueRequest {
        DeleteQueueRequest { name: "q".into(), mode, move_to: move_to.into(), ..Default::default() }
    }

    #[test]
    fn a_mode_goes_with_its_target_only() {
        assert_eq!(mode(&request(0, "")), Ok(DeleteMode::Refuse));
        assert_eq!(mode(&request(WireMode::Move.into(), "r")), Ok(DeleteMode::Move("r".into())));
        for (bad, move_to, field) in [
            (WireMode::Move.into(), "", "move_to"),
            (WireMode::Move.into(), "q", "move_to"),
            (WireMode::Drain.into(), "r", "move_to"),
            (99, "", "mode"),
        ] {
            assert_eq!(mode(&request(bad, move_to)).unwrap_err().violations[0].field, field, "{bad} {move_to}");
        }
    }
}
