//! DrainNode.

use millrace_proto::scaler::v1::{DrainNodeRequest, DrainNodeResponse};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::Audit;

use super::{Rpc, no_node};
use crate::{
    convert,
    request::request_key,
    validate::{self, MAX_TEXT_BYTES},
};

/// Asks the leader by way of the database, which it reads each second. A node that is gone is as drained as can be: it is returned as it is.
pub(super) async fn drain(rpc: &Rpc, request: DrainNodeRequest) -> Result<DrainNodeResponse, Fault> {
    let mut violations = Violations::new();
    validate::request_id(&request.request_id, &mut violations);
    let node = validate::node_id("id", &request.id, &mut violations);
    validate::some_text("reason", &request.reason, MAX_TEXT_BYTES, &mut violations);
    violations.finish()?;
    let node = node.ok_or_else(|| no_node(&request.id))?;
    let key = request_key("DrainNode", &request.request_id);
    let subject = format!("node {}", request.id);
    let audit = Audit { action: "DrainNode".into(), subject, detail: request.reason.clone() };
    let reason = request.reason;
    // The store writes the audit trail with the change.
    let asked = rpc.calls.change(move |store| store.ask_drain(node, &reason, &audit, key), |_| None);
    let row = asked.await?.ok_or_else(|| no_node(&request.id))?;
    let shown = convert::node::shown(row, rpc.desk.live().get(&node));
    Ok(DrainNodeResponse { node: Some(shown) })
}
