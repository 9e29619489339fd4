//! What queues ask for.

use std::{collections::HashMap, time::Duration};

use diesel::prelude::*;
use millrace_core::time::micros;

use super::super::{
    counts::counts,
    failure::Outcome,
    reading::{all_rows, each_row, good_row},
    statement::sql,
};
use crate::{
    QueueDemand,
    books::{LOOKED_AT, RAN, RunTime, first_id_at, span_us},
};

pub(super) fn demand(
    connection: &mut SqliteConnection,
    now: i64,
    queues: &[String],
    window: Duration,
) -> Outcome<Vec<QueueDemand>> {
    // None would mean all.
    if queues.is_empty() {
        return Ok(Vec::new());
    }
    let counts = counts(connection, now, queues)?;
    let (arrivals, arrivals_over_us) = arrivals(connection, now, micros(window))?;
    let run_times = run_times(connection)?;
    let mut demand = Vec::with_capacity(counts.len());
    for of in counts {
        demand.push(QueueDemand {
            waiting: of.queued,
            running: of.held,
            oldest_ready_at_us: of.oldest_ready_at_us,
            paused: is_paused(connection, &of.name)?,
            arrivals: arrivals.get(&of.name).copied().unwrap_or(0),
            arrivals_over_us,
            run_time_us: run_times.get(&of.name).and_then(RunTime::average_us),
            now_us: now,
            queue: of.name,
        });
    }
    Ok(demand)
}

fn is_paused(connection: &mut SqliteConnection, queue: &str) -> Outcome<bool> {
    let query = sql("SELECT paused FROM queues WHERE name = ?").text(queue);
    Ok(good_row(connection, query, |row| row.boolean("paused"))? == Some(true))
}

/// Both tables at once, newest first. SQLite merges them as it goes: what is not looked at is not read.
pub(in super::super) const ARRIVALS: &str = "SELECT id, queue FROM tasks WHERE id >= ? \
     UNION ALL SELECT id, queue FROM finished_tasks WHERE id >= ? ORDER BY 1 DESC LIMIT ?";

/// How many tasks came into each queue, and over which span, by the moments in their ids.
fn arrivals(connection: &mut SqliteConnection, now: i64, window_us: i64) -> Outcome<(HashMap<String, i64>, i64)> {
    let first = first_id_at(now.saturating_sub(window_us));
    let query = sql(ARRIVALS).uuid(&first).uuid(&first).integer(LOOKED_AT);
    let mut arrivals = HashMap::new();
    let (mut looked_at, mut oldest) = (0, None);
    each_row(connection, query, |row| {
        looked_at += 1;
        oldest = row.peek_task_id().map(|id| id.0).or(oldest);
        if let Ok(queue) = row.task_id("id").and_then(|_| row.text("queue")) {
            *arrivals.entry(queue).or_default() += 1;
        }
        true
    })?;
    Ok((arrivals, span_us(now, window_us, looked_at, oldest)))
}

pub(in super::super) const RUN_TIMES: &str =
    "SELECT queue, state, started_at_us, ended_at_us FROM finished_tasks ORDER BY id DESC LIMIT ?";

/// How long the last tasks of each queue ran, of those that are among the last of all.
fn run_times(connection: &mut SqliteConnection) -> Outcome<HashMap<String, RunTime>> {
    let rows = all_rows(connection, sql(RUN_TIMES).integer(LOOKED_AT), |row| {
        let (queue, state) = (row.text("queue")?, row.narrow::<i16>("state")?);
        Ok((queue, state, row.optional_integer("started_at_us")?, row.optional_integer("ended_at_us")?))
    })?;
    let mut run_times: HashMap<String, RunTime> = HashMap::new();
    for (queue, state, started_at_us, ended_at_us) in rows {
        if RAN.contains(&state)
            && let Some((started_at_us, ended_at_us)) = started_at_us.zip(ended_at_us)
        {
            run_times.entry(queue).or_default().see(started_at_us, ended_at_us);
        }
    }
    Ok(run_times)
}
