//! What a pool may be: every rule of the contract, each violation by its field.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_core::id::is_name;
use millrace_proto::scaler::v1::{Pool, ScheduledMinimum};
use millrace_runtime::status::Violations;

use crate::{
    convert,
    validate::{self, MAX_TEXT_BYTES},
};

/// The greatest number of nodes.
pub(super) const MAX_NODES: i32 = 100_000;

const MAX_QUEUES: usize = 64;
const MAX_ZONES: usize = 64;
const MAX_ZONE_BYTES: usize = 128;
const MAX_FALLBACKS: usize = 8;
const MAX_SCHEDULE: usize = 64;
const MAX_TEMPLATE: usize = 64;
const MAX_TEMPLATE_BYTES: usize = 16 * 1_024;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// Adds what is wrong with a pool. Fields are named as in `pool.…`.
pub(super) fn check(pool: &Pool, violations: &mut Violations) {
    validate::name("pool.name", &pool.name, violations);
    validate::text("pool.description", &pool.description, MAX_TEXT_BYTES, violations);
    validate::name("pool.executor", convert::pool::executor(pool), violations);
    validate::name("pool.provider", &pool.provider, violations);
    queues(pool, violations);
    template(&pool.template, violations);
    numbers(pool, violations);
    spans(pool, violations);
    zones(&pool.zones, violations);
    fallbacks(pool, violations);
    violations.require(pool.schedule.len() <= MAX_SCHEDULE, "pool.schedule", "must be at most 64 entries");
    for (index, entry) in pool.schedule.iter().enumerate().take(MAX_SCHEDULE) {
        schedule(index, entry, max_nodes(pool), violations);
    }
}

fn max_nodes(pool: &Pool) -> i32 {
    pool.max_nodes.unwrap_or(10)
}

fn queues(pool: &Pool, violations: &mut Violations) {
    let count = pool.queues.len();
    violations.require((1..=MAX_QUEUES).contains(&count), "pool.queues", "must be 1 to 64 queues");
    for (index, queue) in pool.queues.iter().enumerate().take(MAX_QUEUES) {
        validate::name(&format!("pool.queues[{index}]"), queue, violations);
    }
    violations.require(are_different(&pool.queues), "pool.queues", "must name each queue once");
}

fn template(template: &BTreeMap<String, String>, violations: &mut Violations) {
    let field = "pool.template";
    violations.require(template.len() <= MAX_TEMPLATE, field, "must be at most 64 entries");
    let bytes: usize = template.iter().map(|(key, value)| key.len() + value.len()).sum();
    violations.require(bytes <= MAX_TEMPLATE_BYTES, field, "must be at most 16 KiB");
    violations.require(template.keys().all(|key| !key.is_empty()), field, "must have no empty key");
    let clean = |text: &String| !text.contains('\0');
    violations.require(template.iter().all(|(key, value)| clean(key) && clean(value)), field, "must not contain NUL");
}

fn numbers(pool: &Pool, violations: &mut Violations) {
    validate::number("pool.slots_per_node", pool.slots_per_node, 1, 1_024, violations);
    validate::number("pool.max_nodes", pool.max_nodes, 1, MAX_NODES, violations);
    validate::number("pool.min_nodes", pool.min_nodes, 0, MAX_NODES, violations);
    validate::number("pool.step_up", pool.step_up, 1, MAX_NODES, violations);
    validate::number("pool.step_down", pool.step_down, 1, MAX_NODES, violations);
    validate::number("pool.destroy_budget_percent", pool.destroy_budget_percent, 1, 100, violations);
    validate::number("pool.unproven_launches", pool.unproven_launches, 1, MAX_NODES, violations);
    let above = pool.min_nodes.unwrap_or(0) > max_nodes(pool);
    violations.require(!above, "pool.min_nodes", "must not be above max_nodes (10 when unset)");
}

fn spans(pool: &Pool, violations: &mut Violations) {
    let minute = SECOND * 60;
    validate::span("pool.target_wait", pool.target_wait.as_ref(), (SECOND, DAY), violations);
    validate::span("pool.scale_down_after", pool.scale_down_after.as_ref(), (Duration::ZERO, DAY * 7), violations);
    let join_min = validate::span("pool.join_min", pool.join_min.as_ref(), (SECOND, DAY), violations);
    let join_max = validate::span("pool.join_max", pool.join_max.as_ref(), (SECOND, DAY), violations);
    validate::span("pool.proof_age", pool.proof_age.as_ref(), (minute, DAY * 7), violations);
    let crossed = join_min.unwrap_or(minute) > join_max.unwrap_or(minute * 30);
    violations.require(!crossed, "pool.join_min", "must not be above join_max (1 and 60 minutes when unset)");
}

fn zones(zones: &[String], violations: &mut Violations) {
    violations.require(zones.len() <= MAX_ZONES, "pool.zones", "must be at most 64 zones");
    for (index, zone) in zones.iter().enumerate().take(MAX_ZONES) {
        validate::some_text(&format!("pool.zones[{index}]"), zone, MAX_ZONE_BYTES, violations);
    }
    violations.require(are_different(zones), "pool.zones", "must name each zone once");
}

fn fallbacks(pool: &Pool, violations: &mut Violations) {
    let (field, others) = ("pool.fallback_pools", &pool.fallback_pools);
    violations.require(others.len() <= MAX_FALLBACKS, field, "must be at most 8 pools");
    violations.require(others.iter().all(|name| is_name(name)), field, "must be names of pools");
    violations.require(!others.contains(&pool.name), field, "must not name the pool itself");
    violations.require(are_different(others), field, "must name each pool once");
}

fn schedule(index: usize, entry: &ScheduledMinimum, most: i32, violations: &mut Violations) {
    let field = |name: &str| format!("pool.schedule[{index}].{name}");
    let days = entry.days.iter().all(|day| (1..=7).contains(day)) && entry.days.len() <= 7;
    violations.require(days, field("days"), "must be from 1 for Monday to 7 for Sunday");
    validate::number(&field("from_minute"), Some(entry.from_minute), 0, 1_439, violations);
    validate::number(&field("to_minute"), Some(entry.to_minute), 1, 1_440, violations);
    validate::number(&field("min_nodes"), Some(entry.min_nodes), 0, most.clamp(1, MAX_NODES), violations);
}

fn are_different(texts: &[String]) -> bool {
    texts.iter().collect::<BTreeSet<_>>().len() == texts.len()
}

#[cfg(test)]
mod tests {
    use prost_types::Duration as Span;

    use super::*;

    fn pool() -> Pool {
        Pool { name: "p".into(), provider: "x".into(), queues: vec!["default".into()], ..Pool::default() }
    }

    fn fields(pool: &Pool) -> Vec<String> {
        let mut violations = Violations::new();
        check(pool, &mut violations);
        let fault = violations.finish().err();
        fault.map(|fault| fault.violations.into_iter().map(|one| one.field).collect()).unwrap_or_default()
    }

    #[test]
    fn a_pool_needs_little() {
        assert_eq!(fields(&pool()), Vec::<String>::new());
        assert_eq!(fields(&Pool::default()), ["pool.name", "pool.provider", "pool.queues"]);
    }

    #[test]
    fn every_field_has_its_bounds() {
        let seconds = |seconds| Some(Span { seconds, nanos: 0 });
        let entry = ScheduledMinimum { days: vec![1, 7], from_minute: 60, to_minute: 30, min_nodes: 10 };
        for (bad, field) in [
            (Pool { description: "x".repeat(1_025), ..pool() }, "pool.description"),
            (Pool { executor: "A".into(), ..pool() }, "pool.executor"),
            (Pool { queues: vec!["a".into(), "a".into()], ..pool() }, "pool.queues"),
            (Pool { queues: vec!["a".into(), "".into()], ..pool() }, "pool.queues[1]"),
            (Pool { template: [("".into(), "x".into())].into(), ..pool() }, "pool.template"),
            (Pool { template: [("k".into(), "x".repeat(16_384))].into(), ..pool() }, "pool.template"),
            (Pool { slots_per_node: Some(0), ..pool() }, "pool.slots_per_node"),
            (Pool { slots_per_node: Some(1_025), ..pool() }, "pool.slots_per_node"),
            (Pool { max_nodes: Some(0), ..pool() }, "pool.max_nodes"),
            (Pool { max_nodes: Some(100_001), ..pool() }, "pool.max_nodes"),
            (Pool { min_nodes: Some(11), ..pool() }, "pool.min_nodes"),
            (Pool { step_up: Some(0), ..pool() }, "pool.step_up"),
            (Pool { step_down: Some(-1), ..pool() }, "pool.step_down"),
            (Pool { destroy_budget_percent: Some(101), ..pool() }, "pool.destroy_budget_percent"),
            (Pool { unproven_launches: Some(0), ..pool() }, "pool.unproven_launches"),
            (Pool { target_wait: seconds(0), ..pool() }, "pool.target_wait"),
            (Pool { scale_down_after: seconds(-1), ..pool() }, "pool.scale_down_after"),
            (Pool { join_min: seconds(1_801), ..pool() }, "pool.join_min"),
            (Pool { join_max: seconds(59), ..pool() }, "pool.join_min"),
            (Pool { join_max: seconds(86_401), ..pool() }, "pool.join_max"),
            (Pool { proof_age: seconds(59), ..pool() }, "pool.proof_age"),
            (Pool { zones: vec!["a".into(), "a".into()], ..pool() }, "pool.zones"),
            (Pool { zones: vec![" ".into()], ..pool() }, "pool.zones[0]"),
            (Pool { fallback_pools: vec!["p".into()], ..pool() }, "pool.fallback_pools"),
            (
                Pool { schedule: vec![ScheduledMinimum { days: vec![8], ..entry.clone() }], ..pool() },
                "pool.schedule[0].days",
            ),
            (
                Pool { schedule: vec![ScheduledMinimum { to_minute: 0, ..entry.clone() }], ..pool() },
                "pool.schedule[0].to_minute",
            ),
            (
                Pool { schedule: vec![ScheduledMinimum { min_nodes: 11, ..entry.clone() }], ..pool() },
                "pool.schedule[0].min_nodes",
            ),
        ] {
            assert!(fields(&bad).contains(&field.to_owned()), "{field}: {:?}", fields(&bad));
        }
        assert_eq!(fields(&Pool { schedule: vec![entry], ..pool() }), Vec::<String>::new());
    }
}
