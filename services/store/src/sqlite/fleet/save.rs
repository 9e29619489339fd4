//! What a round of the leader writes. The transaction is the only one that writes, so nobody takes the lease meanwhile.

use diesel::prelude::*;

use super::{
    super::{failure::Outcome, statement::sql},
    lease::current,
    nodes,
    pools::remove_emptied,
};
use crate::{FleetBatch, NodeEventRow, PoolStatusRow, books::normal};

pub(super) fn save(
    connection: &mut SqliteConnection,
    now: i64,
    name: &str,
    epoch: i64,
    batch: &FleetBatch,
) -> Outcome<bool> {
    if current(connection, now, name)?.is_none_or(|lease| lease.epoch != epoch) {
        return Ok(false);
    }
    let batch = normal(batch);
    for node in &batch.nodes {
        nodes::write(connection, now, node)?;
    }
    for event in &batch.events {
        write_event(connection, event)?;
    }
    remove_emptied(connection, &batch.emptied)?;
    for status in &batch.statuses {
        write_status(connection, status)?;
    }
    Ok(true)
}

/// Adds an event of a node that there is. One that is there is not added again, so that a batch can be repeated.
fn write_event(connection: &mut SqliteConnection, event: &NodeEventRow) -> Outcome<()> {
    sql("WITH item (node_id, at_us, state, reason) AS (VALUES (?, ?, ?, ?)) \
         INSERT INTO node_events (node_id, seq, at_us, state, reason) \
         SELECT node_id, (SELECT coalesce(max(seq), 0) + 1 FROM node_events WHERE node_id = item.node_id), at_us, state, reason \
         FROM item \
         WHERE EXISTS (SELECT 1 FROM nodes WHERE id = item.node_id) \
             AND NOT EXISTS (SELECT 1 FROM node_events e WHERE e.node_id = item.node_id AND e.at_us = item.at_us \
                 AND e.state = item.state AND e.reason = item.reason)")
    .uuid(&event.node.0)
    .integer(event.at_us)
    .integer(i64::from(event.state.number()))
    .text(event.reason.as_str())
    .execute(connection)?;
    Ok(())
}

/// Writes the status of a pool that there is.
fn write_status(connection: &mut SqliteConnection, status: &PoolStatusRow) -> Outcome<()> {
    sql("INSERT OR REPLACE INTO pool_statuses (pool, status, as_of_us) SELECT name, ?, ? FROM pools WHERE name = ?")
        .blob(status.status.as_slice())
        .integer(status.as_of_us)
        .text(status.pool.as_str())
        .execute(connection)?;
    Ok(())
}
