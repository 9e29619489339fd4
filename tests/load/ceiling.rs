//! What PostgreSQL can do by plain SQL: lives of tasks under pgbench, counted in the tables.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::postgres::{Database, Server};

/// Lives a second in the bare shape of a task: four connections, each looping over batches of 500 that it inserts, claims by
/// key and completes, a transaction each, while 100,000 other rows wait.
pub(crate) async fn bare(server: &Server, time: Duration) -> Result<f64> {
    let database = server.create("bare").await?;
    database.psql(include_str!("sql/bare_schema.sql")).await?;
    lives(&database, include_str!("sql/bare.sql"), time, "SELECT count(*) FROM bare WHERE state = 3").await
}

/// Lives a second in our own schema by the store's statements, with or without an idempotency key for each task.
pub(crate) async fn own(server: &Server, time: Duration, keys: bool) -> Result<f64> {
    let database = own_database(server, "own").await?;
    let key = if keys { "gen_random_uuid()" } else { "NULL::uuid" };
    let script = include_str!("sql/own.sql").replace("REQUEST AS request", &format!("{key} AS request"));
    let per_s = lives(&database, &script, time, "SELECT count(*) FROM finished_tasks").await?;
    let keyed = database.number("SELECT count(*) FROM requests").await?;
    if (keyed > 0) != keys {
        bail!("{keyed} idempotency keys were stored, which is not what was to be measured");
    }
    Ok(per_s)
}

/// A migrated database with a live session and 100,000 tasks that wait in a queue beside.
pub(crate) async fn own_database(server: &Server, name: &str) -> Result<Database> {
    let database = server.create(name).await?;
    let url = database.url();
    tokio::task::spawn_blocking(move || millrace_store::migrate::up(&url)).await?.context("migrating")?;
    database.psql(include_str!("sql/own_schema.sql")).await?;
    Ok(database)
}

async fn lives(database: &Database, script: &str, time: Duration, count: &str) -> Result<f64> {
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let path = folder.path().join("life.sql");
    std::fs::write(&path, script).context("writing the script")?;
    let before = database.number(count).await?;
    let seconds = database.pgbench(&path, time).await?;
    let done = database.number(count).await? - before;
    if done <= 0 {
        bail!("pgbench ran and no life was completed");
    }
    Ok(done as f64 / seconds)
}
