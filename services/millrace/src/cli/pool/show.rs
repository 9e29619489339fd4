//! Pools as people read them.

use std::time::SystemTime;

use comfy_table::{Cell, Color, Table};
use millrace_proto::scaler::v1::{JoinGrace, LaunchGateState, NodeState, Pool, PoolOverride, PoolStatus};

use super::schedule;
use crate::exit::Failure;
use crate::output::{self, labels, printable};
use crate::time::{ago, short_proto};

/// The table of a list of pools.
pub(crate) fn table(pools: &[Pool]) -> Table {
    let headers = [
        "NAME", "DESIRED", "READY", "STARTING", "JOINING", "SUSPECT", "LEAVING", "RUNNING", "WAITING", "OLDEST",
        "STATE",
    ];
    let mut table = output::table(&headers);
    for pool in pools {
        let status = pool.status.clone().unwrap_or_default();
        let of = |states: &[NodeState]| Cell::new(count(&status, states));
        table.add_row(vec![
            Cell::new(printable(&pool.name)),
            Cell::new(desired(pool, &status)),
            of(&[NodeState::Ready]),
            of(&[NodeState::Requested, NodeState::Starting]),
            of(&[NodeState::Joining]),
            of(&[NodeState::Suspect]),
            of(&[NodeState::Draining, NodeState::Terminating]),
            Cell::new(status.running),
            Cell::new(status.waiting),
            Cell::new(status.oldest_age.as_ref().map(short_proto).unwrap_or_default()),
            output::coloured(&state(pool, &status), colour(pool, &status)),
        ]);
    }
    table
}

/// How many nodes are in one of these states.
pub(crate) fn count(status: &PoolStatus, states: &[NodeState]) -> i32 {
    status.nodes.iter().filter(|nodes| states.contains(&nodes.state())).map(|nodes| nodes.count).sum()
}

/// The size, and what it would be without an override that makes a difference.
fn desired(pool: &Pool, status: &PoolStatus) -> String {
    match pool.r#override.is_some() && status.desired != status.desired_without_override {
        true => format!("{} (else {})", status.desired, status.desired_without_override),
        false => status.desired.to_string(),
    }
}

/// What there is to say about a pool besides figures.
fn state(pool: &Pool, status: &PoolStatus) -> String {
    if status.as_of.is_none() {
        return "no scaler leads".to_owned();
    }
    match (&pool.r#override, status.summary.as_str()) {
        (Some(by_hand), "") => format!("set by hand by {}", printable(&by_hand.owner)),
        (_, summary) => printable(summary),
    }
}

fn colour(pool: &Pool, status: &PoolStatus) -> Option<Color> {
    let gate = status.launches.as_ref().map(|gate| gate.state()).unwrap_or_default();
    if gate == LaunchGateState::Stopped || status.as_of.is_none() {
        return Some(Color::Red);
    }
    (gate == LaunchGateState::Proving || pool.r#override.is_some() || pool.deleting).then_some(Color::Yellow)
}

/// What was set by hand, by whom and until when.
pub(crate) fn override_text(by_hand: &PoolOverride) -> String {
    let size = |name: &str, size: Option<i32>| size.map(|size| format!("{name} {size}"));
    let flag = |name: &str, set: bool| set.then(|| name.to_owned());
    let what = [
        size("nodes", by_hand.desired_nodes),
        size("min", by_hand.min_nodes),
        size("max", by_hand.max_nodes),
        flag("no terminations", by_hand.no_terminations),
        flag("no launches", by_hand.no_launches),
    ];
    let what: Vec<_> = what.into_iter().flatten().collect();
    let until = by_hand.expire_time.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
    format!("{}{until} by {}: {}", what.join(", "), printable(&by_hand.owner), printable(&by_hand.reason))
}

/// Prints one pool in full.
pub(super) fn print_one(pool: &Pool) -> Result<(), Failure> {
    let now = SystemTime::now();
    let at = |time: &Option<prost_types::Timestamp>| {
        time.as_ref().map(|time| format!("{time} ({})", ago(time, now))).unwrap_or_default()
    };
    let duration = |value: &Option<prost_types::Duration>| value.as_ref().map(short_proto).unwrap_or_default();
    let number = |value: Option<i32>| value.map(|value| value.to_string()).unwrap_or_default();
    let schedule: Vec<_> = pool.schedule.iter().map(schedule::text).collect();
    let percent = pool.destroy_budget_percent.map(|percent| format!("{percent} %")).unwrap_or_default();
    let mut fields = vec![
        ("name", printable(&pool.name)),
        ("description", printable(&pool.description)),
        ("executor", printable(&pool.executor)),
        ("queues", printable(&pool.queues.join(","))),
        ("provider", printable(&pool.provider)),
        ("template", printable(&labels(&pool.template))),
        ("slots", number(pool.slots_per_node)),
        ("min", number(pool.min_nodes)),
        ("max", number(pool.max_nodes)),
        ("target wait", duration(&pool.target_wait)),
        ("step up", number(pool.step_up)),
        ("step down", number(pool.step_down)),
        ("scale down after", duration(&pool.scale_down_after)),
        ("zones", printable(&pool.zones.join(","))),
        ("fallback pools", printable(&pool.fallback_pools.join(","))),
        ("join at least", duration(&pool.join_min)),
        ("join at most", duration(&pool.join_max)),
        ("destroy budget", percent),
        ("schedule", schedule.join("; ")),
        ("unproven launches", number(pool.unproven_launches)),
        ("proof age", duration(&pool.proof_age)),
        ("created", at(&pool.create_time)),
        ("updated", at(&pool.update_time)),
        ("deleting", if pool.deleting { "yes; its nodes are drained".to_owned() } else { String::new() }),
        ("set by hand", pool.r#override.as_ref().map(override_text).unwrap_or_default()),
    ];
    if let Some(status) = &pool.status {
        fields.extend(figures(pool, status));
    }
    output::print_fields(&fields)
}

/// The figures of a pool, by name.
fn figures(pool: &Pool, status: &PoolStatus) -> Vec<(&'static str, String)> {
    let nodes: Vec<_> =
        status.nodes.iter().map(|nodes| format!("{} {}", nodes.count, state_name(nodes.state()))).collect();
    let grace: Vec<_> = status.grace.iter().map(grace_text).collect();
    let rate = status.arrival_rate.map(|rate| format!("{rate:.1}")).unwrap_or_default();
    let as_of = status.as_of.as_ref().map(|time| format!("{time} ({})", ago(time, SystemTime::now())));
    vec![
        ("desired", desired(pool, status)),
        ("nodes", nodes.join(", ")),
        ("ready slots", status.ready_slots.to_string()),
        ("running", status.running.to_string()),
        ("waiting", status.waiting.to_string()),
        ("oldest waits for", status.oldest_age.as_ref().map(short_proto).unwrap_or_default()),
        ("in per second", rate),
        ("a task runs", status.run_time.as_ref().map(short_proto).unwrap_or_default()),
        ("join grace", grace.join("; ")),
        ("launches", gate_text(status)),
        ("summary", printable(&status.summary)),
        ("figures of", as_of.unwrap_or_else(|| "no scaler leads".to_owned())),
    ]
}

/// A node's state as people read it.
pub(crate) fn state_name(state: NodeState) -> String {
    state.as_str_name().trim_start_matches("NODE_STATE_").to_lowercase()
}

fn grace_text(grace: &JoinGrace) -> String {
    let zone = if grace.zone.is_empty() { String::new() } else { format!("{}: ", printable(&grace.zone)) };
    let time = grace.grace.as_ref().map(short_proto).unwrap_or_else(|| "unknown".to_owned());
    let median = grace.median.as_ref().map(|median| format!(", half join by {}", short_proto(median)));
    let late = if grace.late_together { ", late together: none is ended for it" } else { "" };
    let from = format!("{} and {} under way", output::count(grace.joins, "join"), grace.pending);
    format!("{zone}{time}{} (from {from}){late}", median.unwrap_or_default())
}

/// Whether launches go on, and if not, why.
pub(super) fn gate_text(status: &PoolStatus) -> String {
    let Some(gate) = &status.launches else { return String::new() };
    let state = match gate.state() {
        LaunchGateState::Open => "go on",
        LaunchGateState::Proving => "only a few, until one has joined",
        LaunchGateState::Stopped => "stopped but for probes",
        LaunchGateState::Unspecified => return String::new(),
    };
    let reason = if gate.reason.is_empty() { String::new() } else { format!(": {}", printable(&gate.reason)) };
    let probe = gate.next_probe.as_ref().map(|probe| format!("; next probe {probe}")).unwrap_or_default();
    format!("{state}{reason}{probe}")
}

#[cfg(test)]
mod tests {
    use millrace_proto::scaler::v1::{LaunchGate, NodeCount};

    use super::*;

    fn status() -> PoolStatus {
        let nodes = |state: NodeState, count| NodeCount { state: state.into(), count };
        PoolStatus {
            desired: 7,
            desired_without_override: 4,
            nodes: vec![nodes(NodeState::Ready, 3), nodes(NodeState::Requested, 1), nodes(NodeState::Starting, 2)],
            as_of: Some(Default::default()),
            summary: "grows".into(),
            ..Default::default()
        }
    }

    #[test]
    fn nodes_are_counted_by_where_they_stand() {
        assert_eq!(count(&status(), &[NodeState::Requested, NodeState::Starting]), 3);
        assert_eq!(count(&status(), &[NodeState::Suspect]), 0);
        assert_eq!(state_name(NodeState::Terminating), "terminating");
    }

    #[test]
    fn an_override_shows_what_would_be_without_it() {
        let by_hand = PoolOverride {
            owner: "me".into(),
            reason: "launch\nday".into(),
            desired_nodes: Some(7),
            no_terminations: true,
            expire_time: Some(Default::default()),
            ..Default::default()
        };
        let text = override_text(&by_hand);
        assert_eq!(text, "nodes 7, no terminations until 1970-01-01T00:00:00Z by me: launch\\nday");
        let pool = Pool { r#override: Some(by_hand), ..Default::default() };
        assert_eq!(desired(&pool, &status()), "7 (else 4)");
        assert_eq!(desired(&Pool::default(), &status()), "7");
    }

    #[test]
    fn a_pool_without_a_leader_says_so_in_red() {
        let pool = Pool::default();
        assert_eq!(
            (state(&pool, &PoolStatus::default()).as_str(), colour(&pool, &PoolStatus::default())),
            ("no scaler leads", Some(Color::Red))
        );
        assert_eq!((state(&pool, &status()).as_str(), colour(&pool, &status())), ("grows", None));
        let gate =
            LaunchGate { state: LaunchGateState::Stopped.into(), reason: "no such image".into(), ..Default::default() };
        let stopped = PoolStatus { launches: Some(gate), ..status() };
        assert_eq!(colour(&pool, &stopped), Some(Color::Red));
        assert_eq!(gate_text(&stopped), "stopped but for probes: no such image");
    }
}
