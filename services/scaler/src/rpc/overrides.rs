//! OverridePool and ClearPoolOverride.

use std::time::Duration;

use millrace_core::time::Timestamp;
use millrace_proto::scaler::v1::{
    ClearPoolOverrideRequest, ClearPoolOverrideResponse, OverridePoolRequest, OverridePoolResponse, Pool, PoolOverride,
};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, PoolChange, PoolUpdate, Store, StoreError};
use prost::Message;
use uuid::Uuid;

use super::{Rpc, no_pool, spec::MAX_NODES, unreadable};
use crate::{
    convert,
    request::request_key,
    validate::{self, MAX_TEXT_BYTES},
};

/// The longest time for which a size may be set by hand.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// The longest name of an owner, in bytes.
const MAX_OWNER_BYTES: usize = 256;

/// Changes that came between are met so often before the caller is told.
const TRIES: usize = 5;

pub(super) async fn set(rpc: &Rpc, request: OverridePoolRequest) -> Result<OverridePoolResponse, Fault> {
    let now = rpc.desk.now();
    let by_hand = check(&request, now)?;
    let audit =
        Audit { action: "OverridePool".into(), subject: format!("pool {}", request.name), detail: detail(&by_hand) };
    let key = request_key("OverridePool", &request.request_id);
    let pool = write(rpc, request.name, Some(by_hand.encode_to_vec()), audit, key).await?;
    Ok(OverridePoolResponse { pool: Some(pool) })
}

pub(super) async fn clear(rpc: &Rpc, request: ClearPoolOverrideRequest) -> Result<ClearPoolOverrideResponse, Fault> {
    let mut violations = Violations::new();
    validate::request_id(&request.request_id, &mut violations);
    validate::name("name", &request.name, &mut violations);
    violations.finish()?;
    let subject = format!("pool {}", request.name);
    let audit = Audit { action: "ClearPoolOverride".into(), subject, detail: String::new() };
    let key = request_key("ClearPoolOverride", &request.request_id);
    let pool = write(rpc, request.name, None, audit, key).await?;
    Ok(ClearPoolOverrideResponse { pool: Some(pool) })
}

/// What is to be stored. `now` is the database's time.
fn check(request: &OverridePoolRequest, now: Timestamp) -> Result<PoolOverride, Fault> {
    let mut violations = Violations::new();
    validate::request_id(&request.request_id, &mut violations);
    validate::name("name", &request.name, &mut violations);
    let given = request.r#override.as_ref().ok_or_else(|| Fault::invalid("override", "must be set"))?;
    validate::some_text("override.owner", &given.owner, MAX_OWNER_BYTES, &mut violations);
    validate::some_text("override.reason", &given.reason, MAX_TEXT_BYTES, &mut violations);
    let until = given.expire_time.as_ref().and_then(convert::timestamp);
    let soon = until.is_some_and(|until| until > now && until <= now.after(LONGEST));
    violations.require(soon, "override.expire_time", "must be a moment in the future, within 7 days");
    sizes(given, &mut violations);
    violations.finish()?;
    Ok(PoolOverride { create_time: Some(convert::moment(now)), ..given.clone() })
}

fn sizes(given: &PoolOverride, violations: &mut Violations) {
    let (min, max, desired) = (given.min_nodes, given.max_nodes, given.desired_nodes);
    for (field, size) in [("min_nodes", min), ("max_nodes", max), ("desired_nodes", desired)] {
        validate::number(&format!("override.{field}"), size, 0, MAX_NODES, violations);
    }
    let says = [min, max, desired].iter().any(Option::is_some) || given.no_terminations || given.no_launches;
    let text = "must set min_nodes, max_nodes, desired_nodes, no_terminations or no_launches";
    violations.require(says, "override", text);
    let crossed = |low: Option<i32>, high: Option<i32>| low.zip(high).is_some_and(|(low, high)| low > high);
    violations.require(!crossed(min, max), "override.min_nodes", "must not be above max_nodes");
    let outside = crossed(min, desired) || crossed(desired, max);
    violations.require(!outside, "override.desired_nodes", "must be between min_nodes and max_nodes");
}

/// For the audit trail.
fn detail(by_hand: &PoolOverride) -> String {
    let size = |name: &str, size: Option<i32>| size.map(|size| format!("{name} {size}, ")).unwrap_or_default();
    let flag = |name: &str, set: bool| if set { format!("{name}, ") } else { String::new() };
    let until = by_hand.expire_time.as_ref().and_then(convert::timestamp).unwrap_or(Timestamp::MIN);
    format!(
        "{}{}{}{}{}until {} us since 1970, by {}: {}",
        size("min", by_hand.min_nodes),
        size("max", by_hand.max_nodes),
        size("desired", by_hand.desired_nodes),
        flag("no terminations", by_hand.no_terminations),
        flag("no launches", by_hand.no_launches),
        until.0,
        by_hand.owner,
        by_hand.reason
    )
}

async fn write(
    rpc: &Rpc,
    name: String,
    by_hand: Option<Vec<u8>>,
    audit: Audit,
    key: Option<Uuid>,
) -> Result<Pool, Fault> {
    let pool = name.clone();
    // The store writes the audit trail with the change.
    let written = rpc.calls.change(move |store| change(store, &pool, by_hand, &audit, key), |_| None);
    match written.await? {
        PoolUpdate::Changed(row) => {
            convert::pool::shown(&row, rpc.desk.now()).map_err(|error| unreadable(&name, error))
        }
        PoolUpdate::Missing => Err(no_pool(&name)),
        PoolUpdate::Moved => Err(Fault::aborted("POOL_CHANGED", format!("the pool `{name}` is changed by others"))),
    }
}

fn change(
    store: &dyn Store,
    name: &str,
    by_hand: Option<Vec<u8>>,
    audit: &Audit,
    key: Option<Uuid>,
) -> Result<PoolUpdate, StoreError> {
    let change = PoolChange::Override(by_hand);
    for _ in 0..TRIES {
        let Some(row) = store.pool(name)? else { return Ok(PoolUpdate::Missing) };
        if change == PoolChange::Override(None) && row.override_.is_none() {
            return Ok(PoolUpdate::Changed(row));
        }
        match store.update_pool(name, row.version, &change, audit, key)? {
            PoolUpdate::Moved => {}
            done => return Ok(done),
        }
    }
    Ok(PoolUpdate::Moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn request(change: impl FnOnce(&mut PoolOverride)) -> OverridePoolRequest {
        let mut by_hand = PoolOverride {
            owner: "ada".into(),
            reason: "a surge".into(),
            expire_time: Some(convert::moment(NOW.after(Duration::from_secs(60)))),
            desired_nodes: Some(5),
            ..PoolOverride::default()
        };
        change(&mut by_hand);
        OverridePoolRequest { name: "p".into(), r#override: Some(by_hand), ..Default::default() }
    }

    #[test]
    fn an_override_has_an_owner_a_reason_an_end_and_something_to_say() {
        let stored = check(&request(|_| {}), NOW).unwrap();
        assert_eq!(stored.create_time, Some(convert::moment(NOW)));
        let long = LONGEST + Duration::from_secs(1);
        for (bad, field) in [
            (request(|one| one.owner.clear()), "override.owner"),
            (request(|one| one.reason = "  ".into()), "override.reason"),
            (request(|one| one.expire_time = None), "override.expire_time"),
            (request(|one| one.expire_time = Some(convert::moment(NOW))), "override.expire_time"),
            (request(|one| one.expire_time = Some(convert::moment(NOW.after(long)))), "override.expire_time"),
            (request(|one| one.desired_nodes = None), "override"),
            (request(|one| one.desired_nodes = Some(-1)), "override.desired_nodes"),
            (request(|one| one.max_nodes = Some(4)), "override.desired_nodes"),
            (request(|one| (one.min_nodes, one.max_nodes) = (Some(9), Some(8))), "override.min_nodes"),
        ] {
            assert_eq!(check(&bad, NOW).unwrap_err().violations[0].field, field);
        }
    }

    #[test]
    fn the_audit_trail_says_it_all() {
        let by_hand = check(&request(|one| one.no_launches = true), NOW).unwrap();
        assert_eq!(detail(&by_hand), "desired 5, no launches, until 1060000000 us since 1970, by ada: a surge");
    }
}
