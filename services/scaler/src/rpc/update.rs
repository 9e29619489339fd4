//! UpdatePool.

use millrace_proto::scaler::v1::{Pool, UpdatePoolRequest, UpdatePoolResponse};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, PoolChange, PoolRow, PoolUpdate, Store, StoreError};
use prost::Message;
use uuid::Uuid;

use super::{Rpc, no_pool, references, references::Absent, spec, unreadable};
use crate::{convert, request::request_key, validate};

/// Changes that came between are met so often before the caller is told.
const TRIES: usize = 5;

/// What became of it.
enum Updated {
    Row(PoolRow),
    Missing,
    Absent(Absent),
    /// The pool as it would be is not one that there may be, or cannot be read.
    Refused(Fault),
    /// Others changed it each time.
    Moved,
}

pub(super) async fn update(rpc: &Rpc, request: UpdatePoolRequest) -> Result<UpdatePoolResponse, Fault> {
    let key = request_key("UpdatePool", &request.request_id);
    let given = request.pool.ok_or_else(|| Fault::invalid("pool", "must be set"))?;
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    check(&request.request_id, &given, &paths)?;
    let name = given.name.clone();
    let audit = Audit {
        action: "UpdatePool".into(),
        subject: format!("pool {name}"),
        detail: format!("changed {}", paths.join(", ")),
    };
    // The store writes the audit trail with the change.
    let updated = rpc.calls.change(move |store| write(store, &given, &paths, &audit, key), |_| None);
    match updated.await? {
        Updated::Row(row) => {
            let shown = convert::pool::shown(&row, rpc.desk.now()).map_err(|error| unreadable(&name, error))?;
            Ok(UpdatePoolResponse { pool: Some(shown) })
        }
        Updated::Missing => Err(no_pool(&name)),
        Updated::Absent(absent) => Err(absent.refusal()),
        Updated::Refused(fault) => Err(fault),
        Updated::Moved => Err(Fault::aborted("POOL_CHANGED", format!("the pool `{name}` is changed by others"))),
    }
}

fn check(request_id: &str, given: &Pool, paths: &[String]) -> Result<(), Fault> {
    let mut violations = Violations::new();
    validate::request_id(request_id, &mut violations);
    validate::name("pool.name", &given.name, &mut violations);
    violations.require(!paths.is_empty(), "update_mask", "must name at least one field");
    let mut tried = Pool::default();
    for path in paths {
        let known = copy(path, given, &mut tried);
        violations.require(known, "update_mask", format!("may not name `{path}`: it is no field that can be changed"));
    }
    violations.finish()
}

fn write(
    store: &dyn Store,
    given: &Pool,
    paths: &[String],
    audit: &Audit,
    key: Option<Uuid>,
) -> Result<Updated, StoreError> {
    let named = |path: &str| paths.iter().any(|one| one == path);
    let queues: &[String] = if named("queues") { &given.queues } else { &[] };
    let fallbacks: &[String] = if named("fallback_pools") { &given.fallback_pools } else { &[] };
    if let Some(absent) = references::look(store, queues, fallbacks)? {
        return Ok(Updated::Absent(absent));
    }
    for _ in 0..TRIES {
        let Some(row) = store.pool(&given.name)? else { return Ok(Updated::Missing) };
        let changed = match merged(&row, given, paths) {
            Ok(changed) => PoolChange::Spec(convert::pool::spec(&changed).encode_to_vec()),
            Err(fault) => return Ok(Updated::Refused(fault)),
        };
        match store.update_pool(&given.name, row.version, &changed, audit, key)? {
            PoolUpdate::Changed(row) => return Ok(Updated::Row(row)),
            PoolUpdate::Missing => return Ok(Updated::Missing),
            PoolUpdate::Moved => {}
        }
    }
    Ok(Updated::Moved)
}

/// The pool as it would be.
fn merged(row: &PoolRow, given: &Pool, paths: &[String]) -> Result<Pool, Fault> {
    let mut pool = convert::pool::read_spec(row).map_err(|error| unreadable(&row.name, error))?;
    for path in paths {
        copy(path, given, &mut pool);
    }
    let mut violations = Violations::new();
    spec::check(&pool, &mut violations);
    violations.finish()?;
    Ok(pool)
}

/// Copies a field that can be changed; false for any other.
fn copy(path: &str, from: &Pool, to: &mut Pool) -> bool {
    match path {
        "description" => to.description.clone_from(&from.description),
        "queues" => to.queues.clone_from(&from.queues),
        "template" => to.template.clone_from(&from.template),
        "slots_per_node" => to.slots_per_node = from.slots_per_node,
        "min_nodes" => to.min_nodes = from.min_nodes,
        "max_nodes" => to.max_nodes = from.max_nodes,
        "target_wait" => to.target_wait = from.target_wait,
        "step_up" => to.step_up = from.step_up,
        "step_down" => to.step_down = from.step_down,
        "scale_down_after" => to.scale_down_after = from.scale_down_after,
        "zones" => to.zones.clone_from(&from.zones),
        "fallback_pools" => to.fallback_pools.clone_from(&from.fallback_pools),
        "join_min" => to.join_min = from.join_min,
        "join_max" => to.join_max = from.join_max,
        "destroy_budget_percent" => to.destroy_budget_percent = from.destroy_budget_percent,
        "schedule" => to.schedule.clone_from(&from.schedule),
        "unproven_launches" => to.unproven_launches = from.unproven_launches,
        "proof_age" => to.proof_age = from.proof_age,
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> PoolRow {
        let pool = Pool {
            name: "p".into(),
            provider: "x".into(),
            queues: vec!["a".into()],
            min_nodes: Some(2),
            max_nodes: Some(20),
            ..Pool::default()
        };
        PoolRow {
            name: "p".into(),
            spec: pool.encode_to_vec(),
            override_: None,
            deleting: false,
            version: 1,
            created_at_us: 0,
            updated_at_us: 0,
        }
    }

    fn of(given: Pool, paths: &[&str]) -> Result<Pool, Fault> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).into()).collect();
        let given = Pool { name: "p".into(), ..given };
        check("", &given, &paths)?;
        merged(&row(), &given, &paths)
    }

    #[test]
    fn only_what_the_mask_names_changes_and_unset_fields_are_cleared() {
        let pool = of(Pool { min_nodes: None, max_nodes: Some(3), ..Pool::default() }, &["min_nodes"]).unwrap();
        assert_eq!((pool.min_nodes, pool.max_nodes, pool.queues.len()), (None, Some(20), 1));
    }

    #[test]
    fn the_whole_pool_must_still_make_sense() {
        let fault = of(Pool { max_nodes: Some(1), ..Pool::default() }, &["max_nodes"]).unwrap_err();
        assert_eq!(fault.violations[0].field, "pool.min_nodes");
        for bad in [&[][..], &["name"], &["provider"], &["executor"], &["status"], &["min_nodes", "pool.max_nodes"]] {
            assert_eq!(of(Pool::default(), bad).unwrap_err().violations[0].field, "update_mask", "{bad:?}");
        }
    }
}
