//! Nodes as people read them.

use std::time::SystemTime;

use comfy_table::{Cell, Color, Table};
use millrace_proto::scaler::v1::{Node, NodeEvent, NodeState};

use crate::cli::pool::state_name;
use crate::exit::Failure;
use crate::output::{self, cut, printable};
use crate::time::{ago, between, short};

/// The longest reason in a table of many nodes.
const REASON: usize = 60;

/// The table of a list of nodes, without a row.
pub(super) fn table() -> Table {
    output::table(&["ID", "POOL", "ZONE", "INSTANCE", "STATE", "AGE", "BOOT", "RUNNING", "REASON"])
}

/// Adds a node to the table.
pub(super) fn add_row(table: &mut Table, node: &Node) {
    let age = node.request_time.as_ref().map(|time| ago(time, SystemTime::now())).unwrap_or_default();
    let load = if node.slots == 0 { String::new() } else { format!("{}/{}", node.running, node.slots) };
    table.add_row(vec![
        Cell::new(printable(&node.id)),
        Cell::new(printable(&node.pool)),
        Cell::new(printable(&node.zone)),
        Cell::new(printable(&node.instance_id)),
        output::coloured(&state_name(node.state()), colour(node.state())),
        Cell::new(age),
        Cell::new(boot(node)),
        Cell::new(load),
        Cell::new(cut(&printable(&reason(node)), REASON)),
    ]);
}

fn colour(state: NodeState) -> Option<Color> {
    match state {
        NodeState::Ready => Some(Color::Green),
        NodeState::Suspect => Some(Color::Red),
        NodeState::Draining | NodeState::Terminating => Some(Color::Yellow),
        _ => None,
    }
}

/// How far the boot is, while the node boots.
fn boot(node: &Node) -> String {
    if node.ready_time.is_some() || node.state() == NodeState::Gone {
        return String::new();
    }
    let percent = node.boot_percent.map(|percent| format!("{percent} % ")).unwrap_or_default();
    format!("{percent}{}", printable(&node.boot_stage)).trim_end().to_owned()
}

/// Why it stands where it stands.
fn reason(node: &Node) -> String {
    match node.health_reason.is_empty() || node.reason.contains(&node.health_reason) {
        true => node.reason.clone(),
        false => format!("{}; unhealthy: {}", node.reason, node.health_reason),
    }
}

/// Prints one node in full, with its history.
pub(super) fn print_one(node: &Node) -> Result<(), Failure> {
    let now = SystemTime::now();
    let at = |time: &Option<prost_types::Timestamp>| {
        time.as_ref().map(|time| format!("{time} ({})", ago(time, now))).unwrap_or_default()
    };
    let yes = |flag: bool, text: &str| if flag { text.to_owned() } else { String::new() };
    let joined = between(node.request_time.as_ref(), node.ready_time.as_ref()).map(short).unwrap_or_default();
    output::print_fields(&[
        ("id", printable(&node.id)),
        ("pool", printable(&node.pool)),
        ("provider", printable(&node.provider)),
        ("zone", printable(&node.zone)),
        ("instance", printable(&node.instance_id)),
        ("state", state_name(node.state())),
        ("reason", printable(&reason(node))),
        ("requested", at(&node.request_time)),
        ("confirmed", at(&node.start_time)),
        ("first heard of", at(&node.attach_time)),
        ("ready", at(&node.ready_time)),
        ("joined within", joined),
        ("gone", at(&node.gone_time)),
        ("boot", boot(node)),
        ("slots", if node.slots == 0 { String::new() } else { node.slots.to_string() }),
        ("running", node.running.to_string()),
        ("stream", if node.attached { "up".to_owned() } else { "down".to_owned() }),
        ("adopted", yes(node.adopted, "found at its provider, which the scaler had not asked for it")),
        ("calls", node.calls.to_string()),
        ("updated", at(&node.update_time)),
    ])?;
    if node.history.is_empty() {
        return Ok(());
    }
    output::line("\nhistory")?;
    output::print_table(&history(node, now))
}

/// What happened, the oldest first, each with the time since the request.
fn history(node: &Node, now: SystemTime) -> Table {
    let mut table = output::table(&["TIME", "AFTER", "AGO", "STATE", "REASON"]);
    for NodeEvent { time, state, reason } in &node.history {
        let state = NodeState::try_from(*state).unwrap_or_default();
        let after = between(node.request_time.as_ref(), time.as_ref()).map(short).unwrap_or_default();
        table.add_row(vec![
            Cell::new(time.as_ref().map(ToString::to_string).unwrap_or_default()),
            Cell::new(after),
            Cell::new(time.as_ref().map(|time| ago(time, now)).unwrap_or_default()),
            output::coloured(&state_name(state), colour(state)),
            Cell::new(printable(reason)),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_shown_until_the_node_is_ready() {
        let mut node = Node { boot_stage: "fetching".into(), boot_percent: Some(40), ..Default::default() };
        assert_eq!(boot(&node), "40 % fetching");
        node.boot_percent = None;
        assert_eq!(boot(&node), "fetching");
        node.ready_time = Some(Default::default());
        assert_eq!(boot(&node), "");
    }

    #[test]
    fn a_reason_is_told_once() {
        let mut node =
            Node { reason: "unhealthy: disk full".into(), health_reason: "disk full".into(), ..Default::default() };
        assert_eq!(reason(&node), "unhealthy: disk full");
        node.reason = "it drains".into();
        assert_eq!(reason(&node), "it drains; unhealthy: disk full");
    }

    #[test]
    fn the_history_counts_from_the_request() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let event = NodeEvent { time: at(130), state: NodeState::Joining.into(), reason: "it boots".into() };
        let node = Node { request_time: at(100), history: vec![event], ..Default::default() };
        let text = history(&node, SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(190)).to_string();
        for part in ["30s", "1m00s", "joining", "it boots"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
