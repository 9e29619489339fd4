//! A database that fails for a moment while rows are read, good ones and bad ones: only data is bad data (R10), so no good row is set
//! aside, whatever its read ended with.

use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use tokio::task::block_in_place;
use uuid::Uuid;

use super::{
    bad,
    mixes::{self, Cell, Place},
};
use crate::{
    form::Report,
    load::{Kind, Open},
    sql::{self, Sql},
    stand::Stand,
};

/// How often every connection of the services is cut.
const CUTS: u32 = 3;

/// How long the table of tasks is locked: longer than statements and locks may take.
const LOCKED: Duration = Duration::from_millis(2_600);

/// Fails the database while a load goes on and each cut finds so many bad rows that have just been let go. One that is claimed right then
/// may stay with its session for a minute.
pub(super) async fn run(stand: &Stand, rate: f64, bad: usize, random: &mut StdRng, report: &mut Report) -> Result<()> {
    report.phase("hiccup: connections cut and a table locked");
    let tenant = "hiccup";
    let load = Open::start(&stand.replicas, Kind::of(tenant), rate / 2.0, u64::MAX);
    let cell = Cell { place: Place::Head, share: 0.0, bad, good: 0, rate };
    let mut connection = stand.sql()?;
    for cut in 0..CUTS {
        let tenant = format!("{tenant}-{cut}");
        mixes::at_the_head(stand, &cell, &tenant, Some(random)).await?;
        block_in_place(|| terminate(&mut connection))?;
    }
    block_in_place(|| lock(&mut connection))?;
    let good: Vec<Uuid> = load.stop().await?.iter().map(|sent| sent.task).collect();
    stand.judge.all(&good).await?;
    mixes::set_aside(stand, report).await?;
    report.end_phase();
    report.figure("hiccup_tasks", good.len());
    let innocent = block_in_place(|| bad::innocent(&mut connection))?;
    report.at_most("hiccup: good rows set aside", innocent as f64, 0.0);
    Ok(())
}

fn terminate(connection: &mut Sql) -> Result<()> {
    let cut = connection.number(&format!(
        "SELECT count(pg_terminate_backend(pid)) AS number FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> '{}'",
        sql::NAME
    ))?;
    anyhow::ensure!(cut > 0, "the services have no connections to cut");
    Ok(())
}

fn lock(connection: &mut Sql) -> Result<()> {
    connection.execute(&format!(
        "BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({}); COMMIT",
        LOCKED.as_secs_f64()
    ))
}
