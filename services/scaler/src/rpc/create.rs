//! CreatePool.

use millrace_proto::scaler::v1::{CreatePoolRequest, CreatePoolResponse, Pool};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, NewPool, PoolRow, Store, StoreError};
use prost::Message;
use uuid::Uuid;

use super::{Rpc, references, references::Absent, spec, unreadable};
use crate::{convert, request::request_key, validate};

/// What became of it.
enum Created {
    /// It is there.
    Row(PoolRow),
    /// There is one of that name.
    Exists,
    /// Something that it names is not there.
    Absent(Absent),
}

pub(super) async fn create(rpc: &Rpc, request: CreatePoolRequest) -> Result<CreatePoolResponse, Fault> {
    let pool = check(&request)?;
    references::provider(rpc, &pool)?;
    let key = request_key("CreatePool", &request.request_id);
    let new = NewPool { name: pool.name.clone(), spec: convert::pool::spec(&pool).encode_to_vec() };
    let (wanted, name) = (pool.clone(), pool.name.clone());
    let audit =
        Audit { action: "CreatePool".into(), subject: format!("pool {name}"), detail: pool.description.clone() };
    let created = rpc.calls.change(
        move |store| insert(store, &wanted, &new, key),
        move |created| matches!(created, Created::Row(_)).then_some(audit),
    );
    match created.await? {
        Created::Row(row) if row.name == name => {
            let shown = convert::pool::shown(&row, rpc.desk.now()).map_err(|error| unreadable(&name, error))?;
            Ok(CreatePoolResponse { pool: Some(shown) })
        }
        Created::Row(row) => {
            let message = format!("the request id has created the pool `{}`", row.name);
            Err(Fault::already_exists("REQUEST_ID_REUSED", message))
        }
        Created::Exists => {
            let message = format!("there is a pool `{name}` already");
            Err(Fault::already_exists("POOL_EXISTS", message).with_metadata("pool", name))
        }
        Created::Absent(absent) => Err(absent.refusal()),
    }
}

fn check(request: &CreatePoolRequest) -> Result<Pool, Fault> {
    let mut violations = Violations::new();
    validate::request_id(&request.request_id, &mut violations);
    let pool = request.pool.clone().ok_or_else(|| Fault::invalid("pool", "must be set"))?;
    spec::check(&pool, &mut violations);
    violations.finish()?;
    Ok(pool)
}

/// A repeat is answered as the first try was, also when what it names has gone since.
fn insert(store: &dyn Store, pool: &Pool, new: &NewPool, key: Option<Uuid>) -> Result<Created, StoreError> {
    if let Some(absent) = references::look(store, &pool.queues, &pool.fallback_pools)? {
        let made_before = key.is_some() && store.pool(&new.name)?.is_some();
        if !made_before {
            return Ok(Created::Absent(absent));
        }
    }
    Ok(store.create_pool(new, key)?.map_or(Created::Exists, Created::Row))
}
