//! Nodes and their events.

use std::time::Duration;

use diesel::prelude::*;
use millrace_core::{
    fleet::{Node, State},
    id::NodeId,
    time::{Timestamp, micros},
};
use uuid::Uuid;

use super::super::{
    cluster::{audit, remember, repeated},
    failure::Outcome,
    reading::{all_rows, each_row, one_row},
    statement::sql,
    values::{BadColumn, Columns},
};
use crate::{
    LIST_SCAN_BOUND, NodeEventRow, NodeFilter, NodeRow, Nodes,
    books::{node_state, storable},
    types::Audit,
};

/// The columns of a [`NodeRow`], of the rows for which the rest says.
macro_rules! select_nodes {
    ($rest:literal) => {
        concat!(
            "SELECT id, pool, provider, zone, instance, state, reason, requested_at_us, started_at_us, attached_at_us, \
             ready_at_us, since_us, gone_at_us, boot_stage, boot_percent, boot_at_us, slots, drain_asked, adopted, calls, \
             unknown, ending, updated_at_us FROM nodes ",
            $rest
        )
    };
}

/// What only people look at may be missing: a node whose last words cannot be read is a node all the same.
fn row(row: &mut Columns) -> Result<NodeRow, BadColumn> {
    let node = Node {
        id: id(row)?,
        pool: row.text("pool")?,
        provider: row.text("provider")?,
        zone: row.text("zone")?,
        instance: row.text("instance")?,
        state: state(row)?,
        reason: row.spare(|row| row.text("reason")),
        requested_at: Timestamp(row.integer("requested_at_us")?),
        started_at: row.optional_integer("started_at_us")?.map(Timestamp),
        attached_at: row.optional_integer("attached_at_us")?.map(Timestamp),
        ready_at: row.optional_integer("ready_at_us")?.map(Timestamp),
        since: Timestamp(row.integer("since_us")?),
        gone_at: row.optional_integer("gone_at_us")?.map(Timestamp),
        boot_stage: row.spare(|row| row.text("boot_stage")),
        boot_percent: row.spare(|row| row.optional_narrow("boot_percent")),
        boot_at: row.spare(|row| row.optional_integer("boot_at_us")).map(Timestamp),
        slots: row.narrow("slots")?,
        drain_asked: row.boolean("drain_asked")?,
        adopted: row.boolean("adopted")?,
        calls: row.narrow("calls")?,
        unknown: row.boolean("unknown")?,
        ending: row.boolean("ending")?,
    };
    Ok(NodeRow { node, updated_at_us: row.integer("updated_at_us")? })
}

/// The id by which a row is found again: only as its 16 bytes, because nothing else finds it.
fn id(row: &mut Columns) -> Result<NodeId, BadColumn> {
    row.task_id("id").map(|id| NodeId(id.0))
}

fn state(row: &mut Columns) -> Result<State, BadColumn> {
    let number: i16 = row.narrow("state")?;
    node_state(number).map_err(|_| BadColumn::later("state", "a state that this build knows", number))
}

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn one(connection: &mut SqliteConnection, id: NodeId) -> Outcome<Option<NodeRow>> {
    one_row(connection, sql(select_nodes!("WHERE id = ?")).uuid(&id.0), row)
}

pub(in super::super) const ALL: &str = select_nodes!("WHERE id < ? ORDER BY id DESC LIMIT ?");
pub(in super::super) const LIVE: &str = select_nodes!("WHERE id < ? AND state <> 8 ORDER BY id DESC LIMIT ?");
pub(in super::super) const LIVE_IN_POOL: &str =
    select_nodes!("WHERE id < ? AND pool = ? AND state <> 8 ORDER BY id DESC LIMIT ?");

pub(super) fn page(
    connection: &mut SqliteConnection,
    filter: &NodeFilter,
    below: Option<NodeId>,
    limit: i64,
) -> Outcome<Nodes> {
    let below = below.map_or(Uuid::max(), |id| id.0);
    let query = match &filter.pool {
        Some(pool) if filter.is_of_the_living() => sql(LIVE_IN_POOL).uuid(&below).text(pool.as_str()),
        _ if filter.is_of_the_living() => sql(LIVE).uuid(&below),
        _ => sql(ALL).uuid(&below),
    };
    let mut page = Nodes::default();
    let (mut looked_at, mut last) = (0, None);
    each_row(connection, query.integer(LIST_SCAN_BOUND + 1), |columns| {
        if (page.rows.len() + page.unreadable.len()) as i64 >= limit || looked_at == LIST_SCAN_BOUND {
            page.next = last;
            return false;
        }
        looked_at += 1;
        let id = columns.peek_task_id().map(|id| NodeId(id.0));
        last = id.or(last);
        match row(columns) {
            Ok(row) if filter.takes(&row.node) => page.rows.push(row),
            Ok(_) => {}
            Err(bad) => {
                let id = id.map_or_else(|| "an id that cannot be read".to_owned(), |id| id.to_string());
                page.unreadable.push((id, bad.defect().to_string()));
            }
        }
        true
    })?;
    Ok(page)
}

pub(super) fn events(connection: &mut SqliteConnection, node: NodeId, limit: i64) -> Outcome<Vec<NodeEventRow>> {
    let query = sql("SELECT at_us, state, reason FROM node_events WHERE node_id = ? ORDER BY seq LIMIT ?");
    let rows = all_rows(connection, query.uuid(&node.0).integer(limit.max(0)), |row| {
        Ok(NodeEventRow {
            node,
            at_us: row.integer("at_us")?,
            state: state(row)?,
            reason: row.spare(|row| row.text("reason")),
        })
    })?;
    Ok(rows)
}

pub(in super::super) const DRAINS_ASKED: &str =
    "SELECT id, drain_reason FROM nodes WHERE drain_asked = 1 AND state <> 8 ORDER BY id LIMIT ?";

pub(super) fn drains_asked(connection: &mut SqliteConnection, limit: i64) -> Outcome<Vec<(NodeId, String)>> {
    let query = sql(DRAINS_ASKED).integer(limit.max(0));
    Ok(all_rows(connection, query, |row| Ok((id(row)?, row.spare(|row| row.text("drain_reason")))))?)
}

// ── Changing ────────────────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn ask_drain(
    connection: &mut SqliteConnection,
    now: i64,
    (id, reason): (NodeId, &str),
    entry: &Audit,
    request: Option<Uuid>,
) -> Outcome<Option<NodeRow>> {
    let before = one(connection, id)?;
    if before.is_none() || repeated(connection, request)? {
        return Ok(before);
    }
    let reason = storable(reason);
    // Of one that has gone there is nothing left to drain.
    let asked = sql("UPDATE nodes SET drain_asked = 1, drain_reason = ?, updated_at_us = ? \
                     WHERE id = ? AND drain_asked = 0 AND state <> 8")
    .text(reason.as_str())
    .integer(now)
    .uuid(&id.0)
    .execute(connection)?;
    if asked > 0 {
        audit(connection, now, entry)?;
    }
    remember(connection, now, request, None)?;
    one(connection, id)
}

const UPSERT: &str = "INSERT INTO nodes (id, pool, provider, zone, instance, state, reason, requested_at_us, started_at_us, \
         attached_at_us, ready_at_us, since_us, gone_at_us, boot_stage, boot_percent, boot_at_us, slots, drain_asked, \
         drain_reason, adopted, calls, unknown, ending, updated_at_us) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '', ?, ?, ?, ?, ?) \
     ON CONFLICT (id) DO UPDATE SET pool = excluded.pool, provider = excluded.provider, zone = excluded.zone, \
         instance = excluded.instance, state = excluded.state, reason = excluded.reason, \
         requested_at_us = excluded.requested_at_us, started_at_us = excluded.started_at_us, \
         attached_at_us = excluded.attached_at_us, ready_at_us = excluded.ready_at_us, since_us = excluded.since_us, \
         gone_at_us = excluded.gone_at_us, boot_stage = excluded.boot_stage, boot_percent = excluded.boot_percent, \
         boot_at_us = excluded.boot_at_us, slots = excluded.slots, adopted = excluded.adopted, calls = excluded.calls, \
         unknown = excluded.unknown, ending = excluded.ending, updated_at_us = excluded.updated_at_us";

pub(super) fn write(connection: &mut SqliteConnection, now: i64, node: &Node) -> Outcome<()> {
    let moment = |moment: Option<Timestamp>| moment.map(|moment| moment.0);
    sql(UPSERT)
        .uuid(&node.id.0)
        .text(node.pool.as_str())
        .text(node.provider.as_str())
        .text(node.zone.as_str())
        .text(node.instance.as_str())
        .integer(i64::from(node.state.number()))
        .text(node.reason.as_str())
        .integer(node.requested_at.0)
        .integer(moment(node.started_at))
        .integer(moment(node.attached_at))
        .integer(moment(node.ready_at))
        .integer(node.since.0)
        .integer(moment(node.gone_at))
        .text(node.boot_stage.as_str())
        .integer(node.boot_percent.map(i64::from))
        .integer(moment(node.boot_at))
        .integer(i64::from(node.slots))
        .integer(i64::from(node.adopted))
        .integer(i64::from(node.calls))
        .integer(i64::from(node.unknown))
        .integer(i64::from(node.ending))
        .integer(now)
        .execute(connection)?;
    Ok(())
}

pub(super) fn trim(connection: &mut SqliteConnection, now: i64, keep: Duration, limit: i64) -> Outcome<i64> {
    let query = sql("SELECT id FROM nodes WHERE gone_at_us < ? AND state = 8 ORDER BY gone_at_us LIMIT ?")
        .integer(now.saturating_sub(micros(keep)))
        .integer(limit.max(0));
    let gone = all_rows(connection, query, id)?;
    for id in &gone {
        sql("DELETE FROM node_events WHERE node_id = ?").uuid(&id.0).execute(connection)?;
        sql("DELETE FROM nodes WHERE id = ?").uuid(&id.0).execute(connection)?;
    }
    Ok(gone.len() as i64)
}
