//! Nodes and their events.

use std::{
    ops::Bound::{Excluded, Unbounded},
    time::Duration,
};

use millrace_core::{
    fleet::{Node, State},
    id::NodeId,
    time::Timestamp,
};
use uuid::Uuid;

use super::Kept;
use crate::{
    Audit, LIST_SCAN_BOUND, NodeEventRow, NodeFilter, NodeRow, Nodes, Result, StoreError,
    books::storable,
    memory::model::{Model, at_most},
};

impl Model {
    pub(super) fn live_nodes(&self) -> impl Iterator<Item = &Kept> {
        self.books.nodes.values().filter(|kept| kept.row.node.state != State::Gone)
    }

    pub(super) fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        match self.books.damaged_nodes.get(&id) {
            Some(defect) => Err(StoreError::Unreadable(defect.clone())),
            None => Ok(self.books.nodes.get(&id).map(|kept| kept.row.clone())),
        }
    }

    pub(super) fn nodes(&self, filter: &NodeFilter, below: Option<NodeId>, limit: i64) -> Nodes {
        let mut page = Nodes::default();
        let (mut looked_at, mut last) = (0, None);
        for (id, kept) in self.books.nodes.range((Unbounded, below.map_or(Unbounded, Excluded))).rev() {
            // The databases find these by an index.
            if filter.is_of_the_living() && kept.row.node.state == State::Gone {
                continue;
            }
            if page.rows.len() + page.unreadable.len() >= at_most(limit) || looked_at == LIST_SCAN_BOUND {
                page.next = last;
                break;
            }
            looked_at += 1;
            last = Some(*id);
            match self.books.damaged_nodes.get(id) {
                Some(defect) => page.unreadable.push((id.to_string(), defect.to_string())),
                None if filter.takes(&kept.row.node) => page.rows.push(kept.row.clone()),
                None => {}
            }
        }
        page
    }

    pub(super) fn node_events(&self, id: NodeId, limit: i64) -> Vec<NodeEventRow> {
        self.books.events.get(&id).into_iter().flatten().take(at_most(limit)).cloned().collect()
    }

    pub(super) fn ask_drain(
        &mut self,
        now: i64,
        (id, reason): (NodeId, &str),
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<Option<NodeRow>> {
        let before = self.node(id)?;
        if self.is_known(request) {
            return Ok(before);
        }
        let Some(kept) = self.books.nodes.get_mut(&id) else { return Ok(None) };
        // Of one that has gone there is nothing left to drain.
        let node = &mut kept.row.node;
        if !node.drain_asked && node.state != State::Gone {
            node.drain_asked = true;
            kept.drain_reason = storable(reason);
            kept.row.updated_at_us = now;
            self.audit.push((now, audit.clone()));
        }
        self.remember(now, request, None);
        self.node(id)
    }

    pub(super) fn drains_asked(&self, limit: i64) -> Vec<(NodeId, String)> {
        let asked = self.live_nodes().filter(|kept| kept.row.node.drain_asked);
        asked.map(|kept| (kept.row.node.id, kept.drain_reason.clone())).take(at_most(limit)).collect()
    }

    /// Writes a node, except whether its drain was asked for.
    pub(super) fn write_node(&mut self, now: i64, node: Node) {
        let id = node.id;
        let before = self.books.nodes.remove(&id);
        let drain_asked = before.as_ref().is_some_and(|kept| kept.row.node.drain_asked);
        let drain_reason = before.map_or_else(String::new, |kept| kept.drain_reason);
        let row = NodeRow { node: Node { drain_asked, ..node }, updated_at_us: now };
        self.books.damaged_nodes.remove(&id);
        self.books.nodes.insert(id, Kept { row, drain_reason });
    }

    /// Adds an event of a node that there is. One that is there is not added again, so that a batch can be repeated.
    pub(super) fn write_event(&mut self, event: NodeEventRow) {
        if self.books.nodes.contains_key(&event.node) {
            let events = self.books.events.entry(event.node).or_default();
            if !events.contains(&event) {
                events.push(event);
            }
        }
    }

    pub(super) fn trim_nodes(&mut self, now: i64, keep: Duration, limit: i64) -> i64 {
        let before = Timestamp(now).before(keep);
        let went = |kept: &Kept| kept.row.node.gone_at.filter(|_| kept.row.node.state == State::Gone);
        let old = self.books.nodes.iter().filter_map(|(id, kept)| Some((went(kept)?, *id)));
        let mut old: Vec<(Timestamp, NodeId)> = old.filter(|(gone_at, _)| *gone_at < before).collect();
        old.sort();
        old.truncate(at_most(limit));
        for (_, id) in &old {
            self.books.nodes.remove(id);
            self.books.events.remove(id);
            self.books.damaged_nodes.remove(id);
        }
        old.len() as i64
    }
}
