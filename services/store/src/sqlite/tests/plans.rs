//! How SQLite finds what it is asked for.

use super::*;

fn plan_in(bed: &Bed, sql: &str) -> String {
    #[derive(diesel::QueryableByName)]
    struct Step {
        #[diesel(sql_type = diesel::sql_types::Text)]
        detail: String,
    }
    bed.store
        .files
        .read(Reader::People, |connection, _| {
            let steps: Vec<Step> = sql_query(format!("EXPLAIN QUERY PLAN {sql}")).load(connection)?;
            Ok(steps.into_iter().map(|step| step.detail).collect::<Vec<_>>().join("; "))
        })
        .unwrap()
}

#[test]
fn fleets_are_read_in_the_order_of_an_index() {
    let bed = Bed::new();
    let arrivals = plan_in(&bed, fleet::ARRIVALS);
    assert!(arrivals.starts_with("MERGE (UNION ALL)") && !arrivals.contains("TEMP B-TREE"), "{arrivals}");
    for (sql, index) in [
        (fleet::ALL, "sqlite_autoindex_nodes_1"),
        (fleet::LIVE, "nodes_live"),
        (fleet::LIVE_IN_POOL, "nodes_live_pool"),
        (fleet::DRAINS_ASKED, "nodes_drain_asked"),
        ("SELECT id FROM nodes WHERE gone_at_us < 5 AND state = 8 ORDER BY gone_at_us LIMIT 5", "nodes_gone"),
        (fleet::RUN_TIMES, "sqlite_autoindex_finished_tasks_1"),
    ] {
        let steps = plan_in(&bed, sql) + " ";
        assert!(steps.contains(&format!("INDEX {index} ")) && !steps.contains("TEMP B-TREE"), "{sql}: {steps}");
    }
}

#[test]
fn scans_are_steps_in_an_index() {
    let bed = Bed::new();
    let plan = |sql: &str| plan_in(&bed, sql);
    let next_lane = plan(waiting::NEXT_LANE);
    assert!(next_lane.contains("tasks_waiting (queue=? AND (tenant,rank)>(?,?))"), "{next_lane}");
    let page = plan(waiting::PAGE);
    assert!(page.contains("rank=? AND (ready_at_us,id)>(?,?) AND (ready_at_us,id)<(?,?)"), "{page}");
    // From lane to lane, never over what they hold: of the rows themselves only strays are read.
    let strays = plan(foreign::STRAYS);
    let scans = strays.split("; ").filter(|step| step.starts_with("SCAN") && step.contains("tasks"));
    // The one over rows without a queue is none: SQLite knows that the column always holds something.
    assert_eq!(scans.count(), 1, "{strays}");
    assert!(!strays.contains("AUTOMATIC"), "{strays}");
    let list = plan(people::LIST);
    assert!(list.starts_with("MERGE (UNION ALL)") && !list.contains("TEMP B-TREE"), "{list}");
    for (sql, index) in [
        ("SELECT id FROM tasks WHERE wake_at_us <= 5 AND state = 1 ORDER BY wake_at_us", "tasks_waking"),
        (
            "SELECT id FROM tasks WHERE expires_at_us <= 5 AND session_id IS NULL ORDER BY expires_at_us",
            "tasks_expiring",
        ),
        ("SELECT id FROM tasks WHERE session_id = x'00' ORDER BY id", "tasks_held"),
        ("SELECT 1 FROM tasks WHERE queue = 'q' AND wake_at_us IS NOT NULL LIMIT 5", "tasks_scheduled_queue"),
        ("SELECT 1 FROM tasks WHERE queue = 'q' AND session_id IS NOT NULL LIMIT 5", "tasks_held_queue"),
    ] {
        let steps = plan(sql);
        assert!(steps.contains(&format!("INDEX {index} ")), "{sql}: {steps}");
    }
}
