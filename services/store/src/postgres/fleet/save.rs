//! What a round of the leader writes.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    super::{conn::Conn, pool::Pool, rows::uuid, sql::sql},
    lease::fence,
    nodes,
    pools::remove_emptied,
};
use crate::{FleetBatch, NodeEventRow, PoolStatusRow, Result, books::normal};

pub(super) fn save(pool: &Pool, name: &str, epoch: i64, batch: &FleetBatch) -> Result<bool> {
    let (name, batch) = (name.to_owned(), normal(batch));
    pool.transaction(move |conn| {
        if !fence(conn, &name, epoch)? {
            conn.undo();
            return Ok(false);
        }
        lock_nodes(conn, &batch)?;
        nodes::write(conn, &batch.nodes)?;
        write_events(conn, &batch.events)?;
        if !batch.emptied.is_empty() {
            remove_emptied(conn, &batch.emptied)?;
        }
        write_statuses(conn, &batch.statuses)?;
        Ok(true)
    })
}

/// Every node that the batch is about, in the order of their ids: two rounds of one leader may meet, and people ask for drains.
fn lock_nodes(conn: &mut Conn<'_>, batch: &FleetBatch) -> Result<()> {
    let nodes = batch.nodes.iter().map(|node| node.id.0);
    let ids: BTreeSet<Uuid> = nodes.chain(batch.events.iter().map(|event| event.node.0)).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let lock = sql("SELECT id FROM nodes WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE").array(ids);
    conn.rows(lock, uuid).map(drop)
}

/// Adds events of nodes that there are, in the order of the batch. One that is there is not added again, so that a batch can be repeated.
fn write_events(conn: &mut Conn<'_>, events: &[NodeEventRow]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let insert = sql("INSERT INTO node_events (node_id, seq, at_us, state, reason)
        SELECT item.node_id, coalesce((SELECT max(e.seq) FROM node_events e WHERE e.node_id = item.node_id), 0)
                + row_number() OVER (PARTITION BY item.node_id ORDER BY item.place),
            item.at_us, item.state, item.reason
        FROM unnest($1::uuid[], $2::bigint[], $3::smallint[], $4::text[]) WITH ORDINALITY
            AS item(node_id, at_us, state, reason, place)
        JOIN nodes n ON n.id = item.node_id
        WHERE NOT EXISTS (SELECT 1 FROM node_events e WHERE e.node_id = item.node_id AND e.at_us = item.at_us
            AND e.state = item.state AND e.reason = item.reason)");
    let insert = insert
        .array(events.iter().map(|event| event.node.0))
        .array(events.iter().map(|event| event.at_us))
        .array(events.iter().map(|event| event.state.number()))
        .array(events.iter().map(|event| &event.reason));
    conn.execute(insert).map(drop)
}

/// Writes the statuses of pools that there are. Their rows are locked against being deleted, which would leave the status behind.
fn write_statuses(conn: &mut Conn<'_>, statuses: &[PoolStatusRow]) -> Result<()> {
    if statuses.is_empty() {
        return Ok(());
    }
    let insert = sql("WITH known AS MATERIALIZED (
            SELECT name FROM pools WHERE name = ANY($1::text[]) ORDER BY name FOR KEY SHARE
        )
        INSERT INTO pool_statuses (pool, status, as_of_us)
        SELECT item.pool, item.status, item.as_of_us
        FROM unnest($1::text[], $2::bytea[], $3::bigint[]) AS item(pool, status, as_of_us)
        JOIN known ON known.name = item.pool ORDER BY item.pool
        ON CONFLICT (pool) DO UPDATE SET status = excluded.status, as_of_us = excluded.as_of_us");
    let insert = insert
        .array(statuses.iter().map(|status| &status.pool))
        .array(statuses.iter().map(|status| &status.status[..]))
        .array(statuses.iter().map(|status| status.as_of_us));
    conn.execute(insert).map(drop)
}
