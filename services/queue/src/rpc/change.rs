//! UpdateQueue.

use millrace_proto::queue::v1::{Queue, UpdateQueueRequest, UpdateQueueResponse};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, QueueChange};

use super::{Rpc, no_queue};
use crate::{convert, request_key, validate};

pub(super) async fn update(rpc: &Rpc, request: UpdateQueueRequest) -> Result<UpdateQueueResponse, Fault> {
    let key = request_key("", "UpdateQueue", &request.request_id);
    let queue = request.queue.ok_or_else(|| Fault::invalid("queue", "must be set"))?;
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    let change = change(&request.request_id, &queue, &paths)?;
    let audit = Audit {
        action: "UpdateQueue".into(),
        subject: format!("queue {}", queue.name),
        detail: format!("changed {}", paths.join(", ")),
    };
    let name = queue.name.clone();
    // The store writes the audit trail with the change.
    let updated = rpc.calls.change(move |store| store.update_queue(&name, &change, &audit, key), |_| None);
    let row = updated.await?.ok_or_else(|| no_queue(&queue.name))?;
    Ok(UpdateQueueResponse { queue: Some(convert::queue(row)) })
}

/// What the mask names; a named field that is unset is cleared.
fn change(request_id: &str, queue: &Queue, paths: &[String]) -> Result<QueueChange, Fault> {
    let mut violations = Violations::new();
    validate::request_id(request_id, &mut violations);
    validate::name("queue.name", &queue.name, &mut violations);
    violations.require(!paths.is_empty(), "update_mask", "must name at least one field");
    let mut change = QueueChange::default();
    for path in paths {
        match path.as_str() {
            "description" => {
                validate::text("queue.description", &queue.description, &mut violations);
                change.description = Some(queue.description.clone());
            }
            "default_timeout" => {
                let given = queue.default_timeout.as_ref();
                change.default_timeout_ms = Some(validate::span_ms("queue.default_timeout", given, &mut violations));
            }
            "default_expire_after" => {
                let (field, given) = ("queue.default_expire_after", queue.default_expire_after.as_ref());
                change.default_expire_after_ms = Some(validate::span_ms(field, given, &mut violations));
            }
            _ => violations.push("update_mask", "may name description, default_timeout and default_expire_after"),
        }
    }
    violations.finish()?;
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue {
        Queue {
            name: "q".into(),
            description: "new".into(),
            default_timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            ..Queue::default()
        }
    }

    fn of(paths: &[&str]) -> Result<QueueChange, Fault> {
        change("", &queue(), &paths.iter().map(|path| path.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn only_what_the_mask_names_changes_and_unset_fields_are_cleared() {
        let change = of(&["default_timeout", "default_expire_after"]).unwrap();
        assert_eq!(
            change,
            QueueChange {
                default_timeout_ms: Some(Some(2_000)),
                default_expire_after_ms: Some(None),
                ..QueueChange::default()
            }
        );
        assert_eq!(of(&["description"]).unwrap().description.as_deref(), Some("new"));
    }

    #[test]
    fn a_mask_must_name_fields_that_can_change() {
        for bad in [&[][..], &["name"], &["description", "pause"], &["queue.description"]] {
            let fault = of(bad).unwrap_err();
            assert_eq!(fault.violations[0].field, "update_mask", "{bad:?}");
        }
    }
}
