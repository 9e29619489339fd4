//! The columns. Those of tasks have a test each, which run side by side; those of every other table change together.

use super::{flows_through, flows_through_after};

macro_rules! columns {
    ($($column:ident)*) => {
        $(#[test]
        fn $column() {
            super::flows_through(&["tasks", "finished_tasks"], &[stringify!($column)], true);
        })*
    };
}

mod r10_of_both_tables_of_tasks {
    columns! {
        tenant queue state rank executor resource_class concurrency_key exclusive timeout_ms attempt token session_id failures
        losses unsupported created_at_us expires_at_us dispatched_at_us started_at_us trace_context format min_reader
    }
}

/// A release may change one of the tables and leave the other.
#[test]
fn r10_of_live_tasks_alone() {
    for column in ["ready_at_us", "wake_at_us"] {
        flows_through(&["tasks"], &[column], true);
    }
    let searched =
        ["tenant", "queue", "state", "rank", "attempt", "token", "session_id", "min_reader", "expires_at_us"];
    flows_through(&["tasks"], &searched, true);
    let carried =
        ["exclusive", "timeout_ms", "failures", "created_at_us", "dispatched_at_us", "started_at_us", "format"];
    flows_through(&["tasks"], &carried, true);
}

/// A row whose id cannot be read is nowhere, so there are no bad values.
#[test]
fn r10_of_ids() {
    flows_through(&["tasks"], &["id"], false);
    flows_through(&["tasks", "finished_tasks"], &["id"], false);
}

#[test]
fn r10_of_finished_tasks_alone() {
    let columns = [
        "id",
        "tenant",
        "state",
        "rank",
        "exclusive",
        "timeout_ms",
        "attempt",
        "token",
        "session_id",
        "failures",
        "created_at_us",
        "expires_at_us",
        "started_at_us",
        "finished_at_us",
        "outcome",
        "exit_code",
        "message",
        "output_bytes",
        "ended_at_us",
        "min_reader",
    ];
    flows_through(&["finished_tasks"], &columns, false);
}

/// An index that is made for a type has to go before the type can.
#[test]
fn of_sessions() {
    let columns = [
        "id",
        "generation",
        "state",
        "name",
        "queues",
        "labels",
        "slots",
        "ttl_ms",
        "expires_served_ms",
        "replica",
        "created_at_us",
        "seen_at_us",
        "over_at_us",
    ];
    flows_through_after("DROP INDEX sessions_live", &["sessions"], &columns, false);
}

#[test]
fn of_queues() {
    let columns = [
        "name",
        "description",
        "default_timeout_ms",
        "paused",
        "pause_reason",
        "pause_until_us",
        "pause_since_us",
        "draining",
        "move_to",
        "created_at_us",
    ];
    flows_through(&["queues"], &columns, false);
}

#[test]
fn of_gates_and_their_owners() {
    flows_through(&["queue_gates"], &["queue", "epoch", "paused"], false);
    flows_through(&["queue_leases"], &["queue", "owner", "epoch", "expires_served_ms", "endpoint"], false);
    flows_through(&["routes"], &["name", "ord", "labels", "queue"], false);
}

#[test]
fn of_requests_and_attempts() {
    flows_through(&["requests"], &["key", "task_id", "created_at_us"], false);
    let columns = ["task_id", "attempt", "token", "session_id", "outcome", "recorded_at_us", "started_at_us"];
    flows_through(&["attempts"], &columns, false);
}

#[test]
fn of_the_cluster_and_its_clock() {
    flows_through(&["cluster"], &["incarnation", "write_format", "route_version"], false);
    flows_through(&["served_clock"], &["served_ms", "ticked_at_us", "frozen_ms"], false);
    flows_through(&["members"], &["id", "kind", "max_reader", "expires_served_ms", "seen_at_us"], false);
}

#[test]
fn of_the_quarantine() {
    let columns = ["task_id", "tenant", "column_name", "writer_format", "refused_by", "first_seen_us"];
    flows_through(&["quarantine"], &columns, false);
}
