//! ExplainPool.

use millrace_proto::scaler::v1::{ExplainPoolRequest, ExplainPoolResponse};
use millrace_runtime::status::{Fault, Violations};

use super::{Rpc, no_pool};
use crate::{describe::Described, validate};

/// What the leader last wrote down, so any replica answers.
pub(super) async fn explain(rpc: &Rpc, request: ExplainPoolRequest) -> Result<ExplainPoolResponse, Fault> {
    let mut violations = Violations::new();
    validate::name("name", &request.name, &mut violations);
    violations.finish()?;
    let (name, now) = (request.name.clone(), rpc.desk.now());
    let described = rpc.calls.read(move |store| Described::one(store, &name, now)).await?;
    let described = described.ok_or_else(|| no_pool(&request.name))?;
    let mut explained = described.explained(rpc.desk.is_led())?;
    explained.pop().ok_or_else(|| no_pool(&request.name))
}
