//! CreateQueue.

use millrace_proto::queue::v1::{CreateQueueRequest, CreateQueueResponse};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, QueueRow};

use super::Rpc;
use crate::{convert, request_key, validate};

pub(super) async fn create(rpc: &Rpc, request: CreateQueueRequest) -> Result<CreateQueueResponse, Fault> {
    let key = request_key("", "CreateQueue", &request.request_id);
    let row = row(request)?;
    let (name, audit) = (row.name.clone(), audit_entry(&row));
    let created =
        rpc.calls.change(move |store| store.create_queue(&row, key), move |row| row.is_some().then_some(audit));
    match created.await? {
        Some(row) if row.name == name => {
            rpc.host.nudge();
            Ok(CreateQueueResponse { queue: Some(convert::queue(row)) })
        }
        Some(row) => {
            let message = format!("the request id has created the queue `{}`", row.name);
            Err(Fault::already_exists("REQUEST_ID_REUSED", message))
        }
        None => {
            let message = format!("there is a queue `{name}` already");
            Err(Fault::already_exists("QUEUE_EXISTS", message).with_metadata("queue", name))
        }
    }
}

/// The row to be stored; the database sets its times and its epoch.
fn row(request: CreateQueueRequest) -> Result<QueueRow, Fault> {
    let mut violations = Violations::new();
    validate::request_id(&request.request_id, &mut violations);
    let queue = request.queue.ok_or_else(|| Fault::invalid("queue", "must be set"))?;
    validate::name("queue.name", &queue.name, &mut violations);
    validate::text("queue.description", &queue.description, &mut violations);
    let timeout = validate::span_ms("queue.default_timeout", queue.default_timeout.as_ref(), &mut violations);
    let expiry = queue.default_expire_after.as_ref();
    let expiry = validate::span_ms("queue.default_expire_after", expiry, &mut violations);
    violations.finish()?;
    Ok(QueueRow {
        name: queue.name,
        description: queue.description,
        default_timeout_ms: timeout,
        default_expire_after_ms: expiry,
        pause: None,
        draining: false,
        epoch: 0,
        created_at_us: 0,
        updated_at_us: 0,
    })
}

fn audit_entry(row: &QueueRow) -> Audit {
    Audit { action: "CreateQueue".into(), subject: format!("queue {}", row.name), detail: row.description.clone() }
}
