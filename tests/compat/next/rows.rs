//! Rows of the next release: a higher format, states without a name here, columns and fields that nobody here knows.

use millrace_core::READER_RANGE;

use super::{Site, listed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readable_rows_flow_and_too_new_ones_are_left_as_they_are() {
    let site = Site::start().await;
    let ids = site.waiting(40).await;
    let (readable, too_new, unknown) = (&ids[..28], &ids[28..34], &ids[34..]);
    // In between the others, so that each has neighbours on both sides.
    let next = READER_RANGE.1 + 1;
    for (rows, change) in [
        (readable, format!("format = {next}")),
        (too_new, format!("format = {next}, min_reader = {next}")),
        (unknown, format!("format = {next}, state = 42")),
    ] {
        site.database.execute(&format!("UPDATE tasks SET {change} WHERE id IN ({})", listed(rows)));
    }
    let aside: Vec<String> = [too_new, unknown].concat();
    let before = site.rows_of(&aside);
    site.resume().await;
    for id in readable {
        crate::load::ended_task(std::slice::from_ref(&site.distributor.endpoint), id).await;
    }
    // Claims, sweeps and the feeder have gone over them many times by now.
    site.load.progress(40).await;
    assert_eq!(site.rows_of(&aside), before, "a row that is too new was touched");
    assert_eq!(site.lines("SELECT task_id::text AS line FROM quarantine"), [""; 0], "too new is not unreadable");
    // The release that wrote them goes, or this one is replaced by it: nothing of them is lost. What they are now is noticed by the
    // sweep, without a restart.
    site.database.execute(&format!(
        "UPDATE tasks SET min_reader = {0}, format = {0}, state = 2 WHERE id IN ({1})",
        READER_RANGE.1,
        listed(&aside)
    ));
    site.load.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_appear_under_running_services_stop_nobody() {
    let mut site = Site::start().await;
    let ids = site.waiting(10).await;
    for table in
        ["tasks", "finished_tasks", "attempts", "sessions", "queues", "routes", "members", "cluster", "requests"]
    {
        site.database
            .execute(&format!("ALTER TABLE {table} ADD COLUMN shard INTEGER NOT NULL DEFAULT 7, ADD COLUMN note TEXT"));
    }
    site.database.execute(&format!("UPDATE tasks SET note = 'of the next release' WHERE id IN ({})", listed(&ids)));
    site.resume().await;
    site.load.progress(20).await;
    // A process that starts now finds them, too.
    site.distributor.kill();
    site.distributor.start();
    site.distributor.wait_serving();
    site.load.progress(20).await;
    site.load.finish().await;
}

/// A later release may have written what no decoder here takes. Each such row is set aside with its bytes, and its neighbours flow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_read_are_set_aside_whole_and_nothing_else_is() {
    let site = Site::start().await;
    let ids = site.waiting(24).await;
    site.database.execute("ALTER TABLE tasks ALTER concurrency_key DROP NOT NULL, ALTER trace_context DROP NOT NULL");
    let cases = [
        ("a required column is NULL", "concurrency_key = NULL", &ids[2..4]),
        ("the spec is cut off", "spec = substr(spec, 1, length(spec) / 2)", &ids[8..10]),
        ("its queue is gone", "queue = 'gone'", &ids[14..16]),
    ];
    let optional = &ids[20..22];
    site.database.execute(&format!("UPDATE tasks SET trace_context = NULL WHERE id IN ({})", listed(optional)));
    for (_, change, rows) in &cases {
        site.database.execute(&format!("UPDATE tasks SET {change} WHERE id IN ({})", listed(rows)));
    }
    let bad: Vec<String> = cases.iter().flat_map(|(_, _, rows)| rows.iter().cloned()).collect();
    let specs = |rows: &str| {
        site.lines(&format!(
            "SELECT encode(spec, 'hex') AS line FROM ({rows}) AS rows (id, spec) WHERE id IN ({}) ORDER BY id",
            listed(&bad)
        ))
    };
    let aside = "SELECT task_id, spec FROM quarantine";
    // The sweep may have met some of them by now.
    let written = specs(&format!("SELECT id, spec FROM tasks UNION ALL {aside}"));
    site.resume().await;
    let endpoint = [site.distributor.endpoint.clone()];
    for id in ids.iter().filter(|id| !bad.contains(id)) {
        crate::load::ended_task(&endpoint, id).await;
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while specs(aside).len() < bad.len() {
        let found = site.lines("SELECT task_id || ' ' || column_name || ': ' || error AS line FROM quarantine");
        assert!(std::time::Instant::now() < deadline, "of {cases:?} only these are set aside: {found:?}");
        site.load.progress(4).await;
    }
    assert_eq!(specs(aside), written, "byte for byte");
    let found = site.lines("SELECT count(*)::text AS line FROM quarantine");
    assert_eq!(found, [bad.len().to_string()], "and no other");
}
