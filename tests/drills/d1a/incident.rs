//! The incident as it was.
//!
//! Old rows wait when a release is deployed that expects another type of a field: they cannot be read any more. That release is rolled
//! back, and what was submitted to it cannot be read. A patched build reads both. Submitters go on for all the time, each replica in
//! the form of its own release; good tasks are those that the builds which run can read.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::task::block_in_place;
use uuid::Uuid;

use super::LIMIT;
use crate::{
    form::{Phase, Report, ms},
    judge::now_ns,
    load::{Kind, Open},
    sql::Sql,
    stand::{Build, Stand},
};

/// The longest time without the end of a good task.
const GAP_MS: f64 = 1_000.0;

/// How much waits when the deploy begins, as the time in which so much is offered.
const BACKLOG: Duration = Duration::from_secs(10);

/// How long nothing may be released while rows are set aside.
const PATIENCE: Duration = Duration::from_secs(45);

const TENANT: &str = "incident";

pub(super) async fn run(stand: &mut Stand, rate: f64, time: Duration, report: &mut Report) -> Result<()> {
    let mut sql = stand.sql()?;
    let base = block_in_place(|| quarantined(&mut sql))?;
    report.phase("a backlog of old rows");
    stand.pause().await?;
    let backlog = vec![Kind::of(TENANT); (rate * BACKLOG.as_secs_f64()) as usize];
    let mut tasks = stand.replicas.batch(&backlog).await?;
    stand.resume().await?;
    stand.judge.all(&tasks[..1]).await?;

    let from = now_ns();
    let load = Open::start(&stand.replicas, Kind::of(TENANT), rate, u64::MAX);
    report.phase("incident: deploy of another type");
    stand.deploy(Build::Next, LIMIT)?;
    report.phase("incident: other type");
    tokio::time::sleep(time / 2).await;
    let old = block_in_place(|| quarantined(&mut sql))? - base;
    report.phase("incident: roll back");
    stand.deploy(Build::This, LIMIT)?;
    report.phase("incident: rolled back");
    tokio::time::sleep(time / 2).await;
    let between = block_in_place(|| quarantined(&mut sql))? - base;
    report.phase("incident: patched build");
    stand.deploy(Build::Patched, LIMIT)?;
    report.phase("incident: patched");
    tokio::time::sleep(time / 2).await;
    let to = now_ns();
    let sent = load.stop().await?;

    report.phase("incident: last releases");
    let left = block_in_place(|| released(&mut sql))?;
    tasks.extend(sent.iter().map(|sent| sent.task));
    let missing = match stand.judge.all(&tasks).await {
        Ok(()) => 0,
        Err(error) => {
            report.say(&format!("{error:#}"));
            let runs = stand.judge.runs()?;
            tasks.iter().filter(|task: &&Uuid| runs.end(task).is_none()).count()
        }
    };
    report.phase("this release again");
    stand.deploy(Build::This, LIMIT)?;
    report.end_phase();

    report.figure("incident_tasks", tasks.len());
    report.figure("incident_old_rows_set_aside", old);
    report.figure("incident_rows_from_in_between_set_aside", between);
    let runs = stand.judge.runs()?;
    let part = |phase: &Phase| (phase.from_ns.max(from), phase.to_ns.min(to));
    let gaps =
        report.phases().iter().map(|phase| (phase.name.clone(), part(phase))).filter(|(_, (from, to))| from < to);
    let gaps: serde_json::Map<_, _> =
        gaps.map(|(name, (from, to))| (name, json!(ms(runs.longest_gap(from, to).0)))).collect();
    report.figure("incident_gaps_ms", gaps);
    let (gap, at) = runs.longest_gap(from, to);
    report.figure(
        "incident_longest_gap",
        json!({ "ms": ms(gap), "from_s": report.seconds(at), "in": report.phase_at(at) }),
    );
    report.at_most("incident: longest time without a finished good task (ms)", ms(gap), GAP_MS);
    report.at_least("incident: old rows set aside by the deploy", old as f64, 1.0);
    report.at_least("incident: rows set aside by the rollback", between as f64, 1.0);
    report.at_most("incident: rows still set aside after the patch", left as f64, 0.0);
    report.all("incident: tasks completed", tasks.len() - missing, tasks.len());
    Ok(())
}

fn quarantined(sql: &mut Sql) -> Result<i64> {
    sql.number("SELECT count(*) AS number FROM quarantine")
}

/// Waits until nothing is set aside, or nothing changes any more; returns how much is left.
fn released(sql: &mut Sql) -> Result<i64> {
    let (mut before, mut changed) = (i64::MAX, now_ns());
    loop {
        let now = quarantined(sql)?;
        if now == 0 || now_ns() - changed > PATIENCE.as_nanos() as u64 {
            return Ok(now);
        }
        if now != before {
            (before, changed) = (now, now_ns());
        }
        millrace_tests::net::pause();
    }
}
