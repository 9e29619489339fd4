//! DeletePool.

use millrace_proto::scaler::v1::{DeletePoolRequest, DeletePoolResponse};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, PoolDeletion};

use super::{Rpc, no_pool, unreadable};
use crate::{convert, request::request_key, validate};

pub(super) async fn delete(rpc: &Rpc, request: DeletePoolRequest) -> Result<DeletePoolResponse, Fault> {
    let mut violations = Violations::new();
    validate::request_id(&request.request_id, &mut violations);
    validate::name("name", &request.name, &mut violations);
    violations.finish()?;
    let key = request_key("DeletePool", &request.request_id);
    let audit = Audit {
        action: "DeletePool".into(),
        subject: format!("pool {}", request.name),
        detail: if request.drain { "its nodes are drained first".into() } else { String::new() },
    };
    let (name, drain) = (request.name.clone(), request.drain);
    // The store writes the audit trail with the change.
    let deleted = rpc.calls.change(move |store| store.delete_pool(&name, drain, &audit, key), |_| None);
    let name = request.name;
    match deleted.await? {
        PoolDeletion::Gone => Ok(DeletePoolResponse { pool: None }),
        PoolDeletion::Draining(row) => {
            let shown = convert::pool::shown(&row, rpc.desk.now()).map_err(|error| unreadable(&name, error))?;
            Ok(DeletePoolResponse { pool: Some(shown) })
        }
        PoolDeletion::NotEmpty(nodes) => {
            let message = format!("the pool `{name}` has {nodes} nodes: delete it with `drain`, or drain them first");
            Err(Fault::precondition("POOL_NOT_EMPTY", message).with_metadata("nodes", nodes.to_string()))
        }
        PoolDeletion::Missing => Err(no_pool(&name)),
    }
}
