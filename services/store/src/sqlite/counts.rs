//! The figures of queues.

use std::ops::ControlFlow;

use diesel::prelude::*;

use super::{
    failure::Outcome,
    reading::{all_rows, one_row},
    schema::queues,
    statement::{Statement, sql},
    waiting::{count_lane, each_lane},
};
use crate::{COUNT_BOUND, LIST_SCAN_BOUND, types::QueueCounts};

pub(super) fn counts(connection: &mut SqliteConnection, now: i64, names: &[String]) -> Outcome<Vec<QueueCounts>> {
    let query = queues::table.order(queues::name).select(queues::name);
    let mut existing = all_rows(connection, query, |row| row.text("name"))?;
    if !names.is_empty() {
        existing.retain(|name| names.contains(name));
    }
    existing.into_iter().map(|name| count_queue(connection, now, name)).collect()
}

fn count_queue(connection: &mut SqliteConnection, now_us: i64, name: String) -> Outcome<QueueCounts> {
    let (mut queued, mut oldest_ready_at_us, mut lanes) = (0, None, 0);
    each_lane(connection, &name, None, |connection, lane| {
        lanes += 1;
        queued += count_lane(connection, &name, lane, None, COUNT_BOUND - queued)?;
        let first = sql("SELECT ready_at_us FROM tasks \
                         WHERE queue = ? AND tenant = CAST(? AS TEXT) AND rank = ? AND ready_at_us IS NOT NULL \
                         ORDER BY ready_at_us LIMIT 1")
        .text(name.as_str())
        .blob(lane.tenant.as_slice())
        .integer(lane.rank);
        let first = number(connection, first)?;
        oldest_ready_at_us = [oldest_ready_at_us, first].into_iter().flatten().min();
        // The count may stop; the oldest needs every lane, as far as people's reads go.
        Ok(if lanes >= LIST_SCAN_BOUND { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let scheduled =
        sql("SELECT count(*) FROM (SELECT 1 FROM tasks WHERE queue = ? AND wake_at_us IS NOT NULL LIMIT ?)");
    let held = sql("SELECT count(*) FROM (SELECT 1 FROM tasks WHERE queue = ? AND session_id IS NOT NULL LIMIT ?)");
    Ok(QueueCounts {
        queued,
        scheduled: number(connection, scheduled.text(name.as_str()).integer(COUNT_BOUND))?.unwrap_or_default(),
        held: number(connection, held.text(name.as_str()).integer(COUNT_BOUND))?.unwrap_or_default(),
        oldest_ready_at_us,
        now_us,
        name,
    })
}

/// The one number that a statement gives, if it gives one.
fn number(connection: &mut SqliteConnection, statement: Statement<'_>) -> Outcome<Option<i64>> {
    // Text among the numbers sorts behind them: what is not a number is as good as nothing.
    Ok(one_row(connection, statement, |row| Ok(row.integer("number").ok()))?.flatten())
}
