//! The fix: what is wrong with the bad rows is mended, each kind in the way in which it would be, and all of them run.
//!
//! A patched build reads the other type and takes larger specs, and what was set aside for these, or for want of a queue that is there
//! again, is released by itself. A release that knows the unknown state says what it means. An operator repairs the rest by
//! `QuarantineService`.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result};
use diesel::{QueryableByName, RunQueryDsl, sql_query, sql_types};
use futures::{StreamExt, TryStreamExt, stream};
use millrace_proto::distributor::v1::{
    ColumnChange, RepairQuarantinedRowRequest, quarantine_service_client::QuarantineServiceClient,
};
use tokio::task::block_in_place;
use tonic::transport::Channel;
use uuid::Uuid;

use super::{RAISED, bad};
use crate::{
    form::Report,
    judge::now_ns,
    sql::Sql,
    stand::{Build, Stand},
};

/// Repairs under way at a time.
const REPAIRS: usize = 16;

/// How long nothing may change while rows are released.
const PATIENCE: Duration = Duration::from_secs(45);

/// A row that an operator repairs.
#[derive(Debug, QueryableByName)]
struct Broken {
    #[diesel(sql_type = sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = sql_types::Text)]
    key: String,
    #[diesel(sql_type = sql_types::Text)]
    column_name: String,
    #[diesel(sql_type = sql_types::Binary)]
    original: Vec<u8>,
}

impl Broken {
    /// What the operator puts in the place of what is wrong.
    fn repair(self) -> RepairQuarantinedRowRequest {
        let column = |name: &str, value: &str| ColumnChange { name: name.into(), value: Some(value.into()) };
        let (columns, spec) = match self.column_name.as_str() {
            "concurrency_key" => (vec![column("concurrency_key", &self.key)], None),
            "attempt" => (vec![column("attempt", "0")], None),
            _ => (Vec::new(), Some(self.original.into())),
        };
        let (request_id, task_id) = (Uuid::now_v7().to_string(), self.id.to_string());
        RepairQuarantinedRowRequest { request_id, task_id, columns, spec, validate_only: false }
    }
}

pub(super) async fn run(stand: &mut Stand, report: &mut Report) -> Result<()> {
    let mut sql = stand.sql()?;
    let all = block_in_place(|| bad::count(&mut sql))?;
    let (kept, places) = block_in_place(|| bad::kept(&mut sql))?;
    report.figure("bad_rows", places);
    report.all("bad rows kept with their bytes", kept, all);

    report.phase("mend: operators repair");
    // A later migration takes the type back; no live row holds what it could not.
    sql.execute("ALTER TABLE tasks ALTER concurrency_key TYPE text COLLATE \"C\" USING concurrency_key #>> '{}'")?;
    let client = QuarantineServiceClient::new(stand.channel()?);
    let broken = block_in_place(|| broken(&mut sql))?;
    report.figure("repaired", broken.len());
    stream::iter(broken)
        .map(|row| repair(client.clone(), row))
        .buffer_unordered(REPAIRS)
        .try_collect::<Vec<()>>()
        .await?;

    report.phase("mend: patched build");
    stand.add_queue(bad::AWAY).await?;
    stand.deploy(Build::Patched, RAISED)?;
    sql.execute(
        "UPDATE tasks SET state = CASE WHEN wake_at_us IS NULL THEN 2 ELSE 1 END
        WHERE id IN (SELECT id FROM drill.bad WHERE kind = 'enum')",
    )?;
    released(&mut sql)?;
    report.end_phase();

    let finished = block_in_place(|| {
        sql.number("SELECT count(DISTINCT b.id) AS number FROM drill.bad b JOIN finished_tasks f ON f.id = b.id AND f.state = 6")
    })?;
    let ids: HashSet<Uuid> = block_in_place(|| ids(&mut sql))?.into_iter().collect();
    let runs = stand.judge.runs()?;
    let ran = ids.iter().filter(|id| runs.end(id).is_some()).count();
    report.all("bad rows released and completed after the fix", ran.min(finished as usize), all);
    Ok(())
}

fn broken(sql: &mut Sql) -> Result<Vec<Broken>> {
    sql_query(
        "SELECT b.id, b.key, q.column_name, b.original FROM drill.bad b JOIN quarantine q ON q.task_id = b.id
        WHERE b.kind IN ('column', 'null', 'truncated') ORDER BY b.id",
    )
    .load(&mut sql.0)
    .context("listing what is to be repaired")
}

async fn repair(mut client: QuarantineServiceClient<Channel>, row: Broken) -> Result<()> {
    let name = format!("{} ({})", row.id, row.column_name);
    client.repair_quarantined_row(row.repair()).await.with_context(|| format!("repairing {name}"))?;
    Ok(())
}

/// Waits until no bad row is set aside or waits; or until nothing changes any more, which the mark then shows.
fn released(sql: &mut Sql) -> Result<()> {
    let left = "SELECT (SELECT count(*) FROM drill.bad b JOIN quarantine q ON q.task_id = b.id)
        + (SELECT count(*) FROM drill.bad b JOIN tasks t ON t.id = b.id) AS number";
    block_in_place(|| {
        let (mut before, mut changed) = (i64::MAX, now_ns());
        loop {
            let now = sql.number(left)?;
            if now == 0 || now_ns() - changed > PATIENCE.as_nanos() as u64 {
                return Ok(());
            }
            if now != before {
                (before, changed) = (now, now_ns());
            }
            millrace_tests::net::pause();
        }
    })
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = sql_types::Uuid)]
    id: Uuid,
}

fn ids(sql: &mut Sql) -> Result<Vec<Uuid>> {
    let rows: Vec<Id> = sql_query("SELECT id FROM drill.bad").load(&mut sql.0)?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}
