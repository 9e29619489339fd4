//! Nodes and their events.

use std::time::Duration;

use millrace_core::{
    fleet::Node,
    id::NodeId,
    time::{Timestamp, micros},
};
use uuid::Uuid;

use super::super::{
    actions::keep_request,
    cluster::write_audit,
    columns::{Columns, Read},
    conn::Conn,
    pool::Pool,
    rows::{now_us, number},
    sql::{Statement, sql},
};
use crate::{
    Audit, LIST_SCAN_BOUND, NodeEventRow, NodeFilter, NodeRow, Nodes, Result,
    books::{node_state, storable},
};

/// The columns of a [`NodeRow`].
macro_rules! node_columns {
    () => {
        "id, pool, provider, zone, instance, state, reason, requested_at_us, started_at_us, attached_at_us, ready_at_us,
         since_us, gone_at_us, boot_stage, boot_percent, boot_at_us, slots, drain_asked, adopted, calls, unknown, ending,
         updated_at_us"
    };
}

/// What only people look at may be missing: a node whose last words cannot be read is a node all the same.
fn row(row: &mut Columns<'_>) -> Read<NodeRow> {
    let node = Node {
        id: NodeId(row.get()?),
        pool: row.get()?,
        provider: row.get()?,
        zone: row.get()?,
        instance: row.get()?,
        state: row.get_known(node_state)?,
        reason: row.spare(),
        requested_at: Timestamp(row.get()?),
        started_at: moment(row)?,
        attached_at: moment(row)?,
        ready_at: moment(row)?,
        since: Timestamp(row.get()?),
        gone_at: moment(row)?,
        boot_stage: row.spare(),
        boot_percent: row.spare_nullable(),
        boot_at: row.spare_nullable().map(Timestamp),
        slots: row.get()?,
        drain_asked: row.get()?,
        adopted: row.get()?,
        calls: row.get()?,
        unknown: row.get()?,
        ending: row.get()?,
    };
    Ok(NodeRow { node, updated_at_us: row.get()? })
}

fn moment(row: &mut Columns<'_>) -> Read<Option<Timestamp>> {
    Ok(row.get_nullable()?.map(Timestamp))
}

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

fn by_id(conn: &mut Conn<'_>, id: NodeId) -> Result<Option<NodeRow>> {
    conn.first(sql(concat!("SELECT ", node_columns!(), " FROM nodes WHERE id = $1")).bind(id.0), row)
}

pub(super) fn one(people: &Pool, id: NodeId) -> Result<Option<NodeRow>> {
    people.read(move |conn| by_id(conn, id))
}

/// How many rows one step of a list looks at.
const STEP: i64 = 1000;

pub(super) fn page(people: &Pool, filter: &NodeFilter, below: Option<NodeId>, limit: i64) -> Result<Nodes> {
    let filter = filter.clone();
    people.read(move |conn| {
        let mut page = Nodes::default();
        let mut below = below.map_or(Uuid::max(), |id| id.0);
        let mut looked_at = 0;
        while looked_at < LIST_SCAN_BOUND {
            let step = (limit.max(0) + 1).min(STEP);
            let rows = step_below(conn, &filter, below, step)?;
            let exhausted = (rows.len() as i64) < step;
            for (id, row) in rows {
                if (page.rows.len() + page.unreadable.len()) as i64 >= limit {
                    page.next = Some(NodeId(below));
                    return Ok(page);
                }
                below = id;
                looked_at += 1;
                match row {
                    Ok(row) if filter.takes(&row.node) => page.rows.push(row),
                    Ok(_) => {}
                    Err(why) => page.unreadable.push((id.to_string(), why)),
                }
            }
            if exhausted {
                return Ok(page);
            }
        }
        page.next = Some(NodeId(below));
        Ok(page)
    })
}

/// Nodes that may match, with their ids, or why they cannot be read.
fn step_below(
    conn: &mut Conn<'_>,
    filter: &NodeFilter,
    below: Uuid,
    step: i64,
) -> Result<Vec<(Uuid, std::result::Result<NodeRow, String>)>> {
    let statement = match &filter.pool {
        Some(pool) if filter.is_of_the_living() => sql(concat!(
            "SELECT ",
            node_columns!(),
            " FROM nodes
             WHERE id < $1 AND pool = $2 AND state <> 8 ORDER BY id DESC LIMIT $3"
        ))
        .bind(below)
        .bind(pool.as_str()),
        _ if filter.is_of_the_living() => sql(concat!(
            "SELECT ",
            node_columns!(),
            " FROM nodes WHERE id < $1 AND state <> 8 ORDER BY id DESC LIMIT $2"
        ))
        .bind(below),
        _ => {
            sql(concat!("SELECT ", node_columns!(), " FROM nodes WHERE id < $1 ORDER BY id DESC LIMIT $2")).bind(below)
        }
    };
    conn.rows(statement.bind(step), |columns| {
        let read = row(columns);
        // The column is the table's key, so there is always one; its type alone could change.
        let id = columns.task_id().map_or(Uuid::nil(), |id| id.0);
        Ok((id, read.map_err(|defect| defect.to_string())))
    })
}

pub(super) fn events(people: &Pool, id: NodeId, limit: i64) -> Result<Vec<NodeEventRow>> {
    let statement =
        sql("SELECT node_id, at_us, state, reason FROM node_events WHERE node_id = $1 ORDER BY seq LIMIT $2");
    let statement = statement.bind(id.0).bind(limit.max(0));
    people.read(move |conn| {
        conn.readable_rows(statement, |row| {
            Ok(NodeEventRow {
                node: NodeId(row.get()?),
                at_us: row.get()?,
                state: row.get_known(node_state)?,
                reason: row.spare(),
            })
        })
    })
}

pub(super) fn drains_asked(people: &Pool, limit: i64) -> Result<Vec<(NodeId, String)>> {
    let statement = sql("SELECT id, drain_reason FROM nodes WHERE drain_asked AND state <> 8 ORDER BY id LIMIT $1")
        .bind(limit.max(0));
    people.read(move |conn| conn.readable_rows(statement, |row| Ok((NodeId(row.get()?), row.spare()))))
}

// ── Changing ────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn ask_drain(
    pool: &Pool,
    id: NodeId,
    reason: &str,
    audit: &Audit,
    request: Option<Uuid>,
) -> Result<Option<NodeRow>> {
    let (reason, audit) = (storable(reason), audit.clone());
    pool.transaction(move |conn| {
        if !keep_request(conn, request, None)? {
            return by_id(conn, id);
        }
        // Of one that has gone there is nothing left to drain.
        let ask = sql(concat!(
            "UPDATE nodes SET drain_asked = TRUE, drain_reason = $1, updated_at_us = ",
            now_us!(),
            " WHERE id = $2 AND NOT drain_asked AND state <> 8"
        ));
        if conn.execute(ask.bind(reason).bind(id.0))? > 0 {
            write_audit(conn, &audit)?;
        }
        let row = by_id(conn, id)?;
        if row.is_none() {
            conn.undo();
        }
        Ok(row)
    })
}

/// Writes nodes, each once and in the order of their ids.
pub(super) fn write(conn: &mut Conn<'_>, nodes: &[Node]) -> Result<()> {
    if nodes.is_empty() {
        return Ok(());
    }
    conn.execute(upsert(nodes)).map(drop)
}

fn upsert(nodes: &[Node]) -> Statement {
    let statement = sql(concat!(
        "INSERT INTO nodes (id, pool, provider, zone, instance, state, reason, requested_at_us, started_at_us, attached_at_us,
            ready_at_us, since_us, gone_at_us, boot_stage, boot_percent, boot_at_us, slots, drain_asked, drain_reason,
            adopted, calls, unknown, ending, updated_at_us)
         SELECT item.id, item.pool, item.provider, item.zone, item.instance, item.state, item.reason, item.requested_at_us,
            item.started_at_us, item.attached_at_us, item.ready_at_us, item.since_us, item.gone_at_us, item.boot_stage,
            item.boot_percent, item.boot_at_us, item.slots, FALSE, '', item.adopted, item.calls, item.unknown, item.ending,
            (SELECT ", now_us!(), ")
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::text[], $8::bigint[],
            $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::text[], $15::smallint[],
            $16::bigint[], $17::integer[], $18::boolean[], $19::integer[], $20::boolean[], $21::boolean[])
            AS item(id, pool, provider, zone, instance, state, reason, requested_at_us, started_at_us, attached_at_us,
                ready_at_us, since_us, gone_at_us, boot_stage, boot_percent, boot_at_us, slots, adopted, calls, unknown,
                ending)
         ORDER BY item.id
         ON CONFLICT (id) DO UPDATE SET pool = excluded.pool, provider = excluded.provider, zone = excluded.zone,
            instance = excluded.instance, state = excluded.state, reason = excluded.reason,
            requested_at_us = excluded.requested_at_us, started_at_us = excluded.started_at_us,
            attached_at_us = excluded.attached_at_us, ready_at_us = excluded.ready_at_us, since_us = excluded.since_us,
            gone_at_us = excluded.gone_at_us, boot_stage = excluded.boot_stage, boot_percent = excluded.boot_percent,
            boot_at_us = excluded.boot_at_us, slots = excluded.slots, adopted = excluded.adopted, calls = excluded.calls,
            unknown = excluded.unknown, ending = excluded.ending, updated_at_us = excluded.updated_at_us"
    ));
    let moments = |of: fn(&Node) -> Option<Timestamp>| nodes.iter().map(move |node| of(node).map(|moment| moment.0));
    statement
        .array(nodes.iter().map(|node| node.id.0))
        .array(nodes.iter().map(|node| &node.pool))
        .array(nodes.iter().map(|node| &node.provider))
        .array(nodes.iter().map(|node| &node.zone))
        .array(nodes.iter().map(|node| &node.instance))
        .array(nodes.iter().map(|node| node.state.number()))
        .array(nodes.iter().map(|node| &node.reason))
        .array(nodes.iter().map(|node| node.requested_at.0))
        .array(moments(|node| node.started_at))
        .array(moments(|node| node.attached_at))
        .array(moments(|node| node.ready_at))
        .array(nodes.iter().map(|node| node.since.0))
        .array(moments(|node| node.gone_at))
        .array(nodes.iter().map(|node| &node.boot_stage))
        .array(nodes.iter().map(|node| node.boot_percent))
        .array(moments(|node| node.boot_at))
        .array(nodes.iter().map(|node| node.slots))
        .array(nodes.iter().map(|node| node.adopted))
        .array(nodes.iter().map(|node| node.calls))
        .array(nodes.iter().map(|node| node.unknown))
        .array(nodes.iter().map(|node| node.ending))
}

pub(super) fn trim(pool: &Pool, keep: Duration, limit: i64) -> Result<i64> {
    let statement = sql(concat!(
        "WITH gone AS MATERIALIZED (
            SELECT id FROM nodes WHERE gone_at_us < (SELECT ",
        now_us!(),
        ") - $1 AND state = 8
            ORDER BY gone_at_us LIMIT $2 FOR UPDATE SKIP LOCKED
        ), events AS (
            DELETE FROM node_events e USING gone WHERE e.node_id = gone.id
        ), dropped AS (
            DELETE FROM nodes n USING gone WHERE n.id = gone.id RETURNING n.id
        )
        SELECT count(*) FROM dropped"
    ));
    let statement = statement.bind(micros(keep).min(i64::MAX / 2)).bind(limit.max(0));
    pool.write(move |conn| conn.one(statement, number))
}
