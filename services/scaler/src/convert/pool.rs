//! Pools between the contract, their rows and the books.

use std::time::Duration;

use millrace_core::{
    fleet::{Override, Pool, Schedule},
    time::Timestamp,
};
use millrace_proto::scaler::v1 as wire;
use millrace_store::PoolRow;
use prost::Message;

use super::{span, time, timestamp};

/// What a row stores of a pool: what an operator may set. The row itself has the name, the times, the override and the deletion.
pub(crate) fn spec(pool: &wire::Pool) -> wire::Pool {
    wire::Pool {
        executor: executor(pool).into(),
        create_time: None,
        update_time: None,
        deleting: false,
        r#override: None,
        status: None,
        ..pool.clone()
    }
}

/// Reads the spec of a row.
///
/// # Errors
/// When the bytes are not a Pool. A field of a later release is no error, it is passed over.
pub(crate) fn read_spec(row: &PoolRow) -> Result<wire::Pool, String> {
    let decoded = wire::Pool::decode(row.spec.as_slice());
    decoded.map(|pool| wire::Pool { name: row.name.clone(), ..pool }).map_err(|error| format!("its spec: {error}"))
}

/// Reads the override of a row, if it holds at that moment.
///
/// # Errors
/// When the bytes are not an override.
pub(crate) fn read_override(row: &PoolRow, now: Timestamp) -> Result<Option<wire::PoolOverride>, String> {
    let Some(bytes) = &row.override_ else { return Ok(None) };
    let decoded = wire::PoolOverride::decode(bytes.as_slice()).map_err(|error| format!("its override: {error}"))?;
    let holds = decoded.expire_time.as_ref().and_then(timestamp).is_some_and(|until| now < until);
    Ok(holds.then_some(decoded))
}

/// A pool as people see it, without its figures.
///
/// # Errors
/// As of [`read_spec`] and [`read_override`].
pub(crate) fn shown(row: &PoolRow, now: Timestamp) -> Result<wire::Pool, String> {
    Ok(wire::Pool {
        create_time: Some(time(row.created_at_us)),
        update_time: Some(time(row.updated_at_us)),
        deleting: row.deleting,
        r#override: read_override(row, now)?,
        ..read_spec(row)?
    })
}

/// A pool as the books hold it: defaults filled in, and what another release allowed brought within what this one can work with.
///
/// # Errors
/// As of [`read_spec`]. An override that cannot be read is an error too: it may be what keeps nodes alive.
pub(crate) fn booked(row: &PoolRow) -> Result<Pool, String> {
    let spec = read_spec(row)?;
    let by_hand = read_override(row, Timestamp::MIN)?.map(by_hand);
    Ok(Pool { deleting: row.deleting, by_hand, ..of_spec(&spec) })
}

/// The class of executor, with its default.
pub(crate) fn executor(pool: &wire::Pool) -> &str {
    if pool.executor.is_empty() { "process" } else { &pool.executor }
}

fn of_spec(spec: &wire::Pool) -> Pool {
    let max = spec.max_nodes.map_or(10, |max| at_least(max, 1));
    let base = Pool::new(&spec.name, &spec.provider, &[]);
    let span_or = |given: &Option<prost_types::Duration>, default| given.as_ref().and_then(span).unwrap_or(default);
    Pool {
        executor: executor(spec).into(),
        queues: spec.queues.clone(),
        template: spec.template.clone(),
        slots: spec.slots_per_node.map_or(base.slots, |slots| at_least(slots, 1)),
        min: spec.min_nodes.map_or(base.min, |min| at_least(min, 0)).min(max),
        max,
        target_wait: span_or(&spec.target_wait, base.target_wait).max(Duration::from_millis(1)),
        step_up: spec.step_up.map_or(Pool::default_step_up(max), |step| at_least(step, 1)),
        step_down: spec.step_down.map_or(Pool::default_step_down(max), |step| at_least(step, 1)),
        scale_down_after: span_or(&spec.scale_down_after, base.scale_down_after),
        zones: spec.zones.clone(),
        fallback: spec.fallback_pools.clone(),
        join_min: span_or(&spec.join_min, base.join_min),
        join_max: span_or(&spec.join_max, base.join_max),
        destroy_percent: spec
            .destroy_budget_percent
            .map_or(base.destroy_percent, |percent| at_least(percent, 0))
            .min(100),
        schedule: spec.schedule.iter().map(schedule).collect(),
        unproven: spec.unproven_launches.map_or(Pool::default_unproven(max), |launches| at_least(launches, 1)),
        proof_age: span_or(&spec.proof_age, base.proof_age),
        ..base
    }
}

fn schedule(entry: &wire::ScheduledMinimum) -> Schedule {
    let minute = |minute: i32| u16::try_from(minute.clamp(0, 1_440)).unwrap_or(0);
    Schedule {
        days: entry.days.iter().filter_map(|day| u8::try_from(*day).ok()).collect(),
        from: minute(entry.from_minute),
        to: minute(entry.to_minute),
        min: at_least(entry.min_nodes, 0),
    }
}

fn by_hand(given: wire::PoolOverride) -> Override {
    let size = |size: i32| at_least(size, 0);
    Override {
        owner: given.owner,
        reason: given.reason,
        until: given.expire_time.as_ref().and_then(timestamp).unwrap_or(Timestamp::MIN),
        min: given.min_nodes.map(size),
        max: given.max_nodes.map(size),
        desired: given.desired_nodes.map(size),
        no_terminations: given.no_terminations,
        no_launches: given.no_launches,
    }
}

fn at_least(given: i32, least: u32) -> u32 {
    u32::try_from(given).unwrap_or(0).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(spec: &wire::Pool) -> PoolRow {
        PoolRow {
            name: "p".into(),
            spec: spec.encode_to_vec(),
            override_: None,
            deleting: false,
            version: 1,
            created_at_us: 1,
            updated_at_us: 2,
        }
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let spec = wire::Pool { provider: "x".into(), queues: vec!["default".into()], ..wire::Pool::default() };
        assert_eq!(booked(&row(&spec)).unwrap(), Pool::new("p", "x", &["default"]));
        let wide = booked(&row(&wire::Pool { max_nodes: Some(1_000), ..spec })).unwrap();
        assert_eq!((wide.step_up, wide.step_down, wide.unproven), (100, 100, 100));
    }

    #[test]
    fn what_another_release_allowed_is_brought_within_bounds() {
        let spec = wire::Pool {
            slots_per_node: Some(0),
            min_nodes: Some(50),
            max_nodes: Some(-3),
            destroy_budget_percent: Some(900),
            ..wire::Pool::default()
        };
        let pool = booked(&row(&spec)).unwrap();
        assert_eq!((pool.slots, pool.min, pool.max, pool.destroy_percent), (1, 1, 1, 100));
    }

    #[test]
    fn what_is_no_pool_is_an_error_and_an_override_ends_by_itself() {
        let mut bad = row(&wire::Pool::default());
        bad.spec = vec![0xff];
        assert!(booked(&bad).is_err() && shown(&bad, Timestamp(0)).is_err());
        let by_hand =
            wire::PoolOverride { expire_time: Some(time(5_000_000)), owner: "me".into(), ..Default::default() };
        let set = PoolRow { override_: Some(by_hand.encode_to_vec()), ..row(&wire::Pool::default()) };
        assert!(shown(&set, Timestamp(4_999_999)).unwrap().r#override.is_some());
        assert!(shown(&set, Timestamp(5_000_000)).unwrap().r#override.is_none());
        assert_eq!(booked(&set).unwrap().by_hand.unwrap().until, Timestamp(5_000_000));
    }
}
