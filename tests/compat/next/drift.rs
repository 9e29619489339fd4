//! Columns whose type the next release has changed under running services. The column degrades, the service does not.

use super::Site;

async fn flows_with(change: &str) {
    let mut site = Site::start().await;
    site.waiting(20).await;
    site.database.execute(change);
    site.resume().await;
    site.load.progress(20).await;
    // A process that starts now finds the columns as they are, too.
    site.distributor.kill();
    site.distributor.start();
    site.distributor.wait_serving();
    site.load.progress(20).await;
    assert_eq!(site.lines("SELECT task_id::text AS line FROM quarantine"), [""; 0], "every row has its value");
    site.load.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_flow_after_rank_was_widened() {
    flows_with(
        "ALTER TABLE tasks ALTER COLUMN rank TYPE BIGINT;
         ALTER TABLE finished_tasks ALTER COLUMN rank TYPE BIGINT",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_flow_after_a_timeout_became_text() {
    flows_with(
        "ALTER TABLE tasks ALTER COLUMN timeout_ms TYPE TEXT;
         ALTER TABLE finished_tasks ALTER COLUMN timeout_ms TYPE TEXT;
         UPDATE tasks SET timeout_ms = '60s'",
    )
    .await;
}
