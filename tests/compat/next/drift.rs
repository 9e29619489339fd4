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

/// What is searched by, too, and while work is under way: rows wait, are held and end as the type of a column changes, in one table and
/// then in the other, and as it returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_flow_while_columns_that_are_searched_become_text_and_return() {
    let mut site = Site::start().await;
    let columns =
        [("rank", "INTEGER"), ("state", "SMALLINT"), ("queue", "TEXT COLLATE \"C\""), ("ready_at_us", "BIGINT")];
    let tables = |column: &str| if column == "ready_at_us" { &["tasks"][..] } else { &["tasks", "finished_tasks"] };
    site.waiting(20).await;
    for (column, _) in columns {
        // A queue's name is text by right.
        let to = if column == "queue" { "JSONB" } else { "TEXT" };
        let using = if column == "queue" { "to_jsonb(queue)".to_owned() } else { format!("{column}::text") };
        for table in tables(column) {
            site.database.execute(&format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {to} USING {using}"));
            if column != "rank" {
                site.load.progress(10).await;
            }
        }
        if column == "rank" {
            site.resume().await;
        }
        site.load.progress(20).await;
    }
    // A process that starts now finds the columns as they are.
    site.distributor.kill();
    site.distributor.start();
    site.distributor.wait_serving();
    site.load.progress(20).await;
    for (column, to) in columns {
        for table in tables(column) {
            let of = to.split(' ').next().unwrap_or(to);
            site.database.execute(&format!(
                "ALTER TABLE {table} ALTER COLUMN {column} TYPE {to} USING (to_jsonb({column}) #>> '{{}}')::{of}"
            ));
            site.load.progress(10).await;
        }
    }
    assert_eq!(site.lines("SELECT task_id::text AS line FROM quarantine"), [""; 0], "every row has its value");
    site.load.finish().await;
}
