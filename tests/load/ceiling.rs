//! What PostgreSQL can do by plain SQL: lives of tasks under pgbench, counted in the tables.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{
    postgres::{Database, Server},
    usage::{self, Used, Watched},
};

/// What one measurement of a ceiling gave.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Ceiling {
    /// Lives or calls a second.
    pub(crate) per_s: f64,
    /// The CPU that it took.
    pub(crate) used: Vec<Used>,
}

/// Lives a second in the bare shape of a task: four connections, each looping over batches of 500 that it inserts, claims by
/// key and completes, a transaction each, while 100,000 other rows wait.
pub(crate) async fn bare(server: &Server, watched: &[Watched], time: Duration) -> Result<Ceiling> {
    let database = server.create("bare").await?;
    database.psql(include_str!("sql/bare_schema.sql")).await?;
    let count = "SELECT count(*) FROM bare WHERE state = 3";
    lives(&database, watched, include_str!("sql/bare.sql"), time, count).await
}

/// Lives a second in our own schema by the store's statements, with or without an idempotency key for each task.
pub(crate) async fn own(server: &Server, watched: &[Watched], time: Duration, keys: bool) -> Result<Ceiling> {
    let database = own_database(server, "own").await?;
    let (key, keyless) = if keys { ("gen_random_uuid()", "FALSE") } else { ("NULL::uuid", "TRUE") };
    let script = include_str!("sql/own.sql")
        .replace("REQUEST AS request", &format!("{key} AS request"))
        .replace("(KEYLESS OR", &format!("({keyless} OR"));
    let lives = lives(&database, watched, &script, time, "SELECT count(*) FROM finished_tasks").await?;
    let keyed = database.number("SELECT count(*) FROM requests").await?;
    if (keyed > 0) != keys {
        bail!("{keyed} idempotency keys were stored, which is not what was to be measured");
    }
    Ok(lives)
}

/// A migrated database with a live session and 100,000 tasks that wait in a queue beside.
pub(crate) async fn own_database(server: &Server, name: &str) -> Result<Database> {
    let database = server.create(name).await?;
    let url = database.url();
    tokio::task::spawn_blocking(move || millrace_store::migrate::up(&url)).await?.context("migrating")?;
    database.psql(include_str!("sql/own_schema.sql")).await?;
    Ok(database)
}

async fn lives(database: &Database, watched: &[Watched], script: &str, time: Duration, count: &str) -> Result<Ceiling> {
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let path = folder.path().join("life.sql");
    std::fs::write(&path, script).context("writing the script")?;
    let before = database.number(count).await?;
    let snapshot = usage::snapshot(watched);
    let seconds = database.pgbench(&path, time).await?;
    let used = |done| usage::since(watched, &snapshot, done);
    match u64::try_from(database.number(count).await? - before) {
        Ok(done) if done > 0 => Ok(Ceiling { per_s: done as f64 / seconds, used: used(done) }),
        _ => bail!("pgbench ran and no life was completed"),
    }
}
