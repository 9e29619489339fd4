//! What an engine stores: nodes, what happened to them, statuses.

use std::time::Duration;

use millrace_core::{
    fleet::{
        Node, State,
        books::{Batch, Happened},
    },
    time::Timestamp,
};
use millrace_runtime::failpoint;
use millrace_store::{FleetBatch, NodeEventRow, Result, Store};

use super::{Done, Engine, Term};

/// The points of a launch, and of an end, at which a drill may stop the process. The drills name them in `MILLRACE_FAILPOINTS`.
///
/// A launch passes `scaler.before_intent`, `scaler.after_intent`, `scaler.before_call`, `scaler.after_call`,
/// `scaler.before_answer_stored` and `scaler.after_answer_stored`, in this order; an end the same with `scaler.end.` in front.
pub(crate) fn point(end: bool, step: &str) -> String {
    format!("scaler.{}{step}", if end { "end." } else { "" })
}

/// Passes a point, for launches and ends alike. Only an exit or a delay has an effect there.
fn pass((launch, end): (bool, bool), step: &str) {
    if launch {
        let _ = failpoint::hit(&point(false, step));
    }
    if end {
        let _ = failpoint::hit(&point(true, step));
    }
}

impl Engine {
    /// Stores everything that is not stored; false when the lease is another's. Bounded by the books: each batch takes some of what is
    /// left, and nothing is added meanwhile.
    pub(super) fn save(&mut self, store: &dyn Store, term: &Term, now: Timestamp, done: &mut Done) -> Result<bool> {
        self.stored = false;
        let mut statuses = self.statuses_due(now);
        loop {
            let batch = self.fleet.unsaved();
            if batch.is_empty() && statuses.is_empty() {
                break;
            }
            let rows = FleetBatch { statuses: std::mem::take(&mut statuses), ..rows_of(&batch) };
            let intents = (batch.nodes.iter().any(is_intent), batch.nodes.iter().any(is_end));
            pass(intents, "before_intent");
            pass(self.unstored, "before_answer_stored");
            let saved = store.save_fleet(&term.lease, term.epoch, &rows);
            let stored = matches!(saved, Ok(true));
            if stored {
                pass(intents, "after_intent");
                pass(self.unstored, "after_answer_stored");
                self.note(&batch, done);
            }
            self.fleet.saved(batch, stored);
            if !saved? {
                return Ok(false);
            }
            self.statuses.sent(&rows.statuses, now);
        }
        self.unstored = (false, false);
        self.stored = true;
        Ok(true)
    }

    /// What was stored, for logs and metrics.
    fn note(&self, batch: &Batch, done: &mut Done) {
        for one in &batch.happened {
            let node = batch.nodes.binary_search_by(|node| node.id.cmp(&one.node)).ok().map(|at| &batch.nodes[at]);
            if let Some(took) = node.and_then(|node| took_to_join(node, one)) {
                done.joined.push((one.pool.clone(), took));
            }
        }
        done.happened.extend(batch.happened.iter().cloned());
    }
}

/// How long the node took to join, if this is when it did.
fn took_to_join(node: &Node, one: &Happened) -> Option<Duration> {
    let joined = one.state == State::Ready && node.ready_at == Some(one.at);
    joined.then(|| one.at.since(node.started_at.unwrap_or(node.requested_at)))
}

/// The intent of a launch for which nobody was called.
fn is_intent(node: &Node) -> bool {
    node.state == State::Requested && node.calls == 0
}

/// The intent of an end.
fn is_end(node: &Node) -> bool {
    node.state == State::Terminating && node.ending
}

fn rows_of(batch: &Batch) -> FleetBatch {
    let event =
        |one: &Happened| NodeEventRow { node: one.node, at_us: one.at.0, state: one.state, reason: one.reason.clone() };
    FleetBatch {
        nodes: batch.nodes.clone(),
        events: batch.happened.iter().map(event).collect(),
        statuses: Vec::new(),
        emptied: batch.emptied.clone(),
    }
}
