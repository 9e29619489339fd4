//! Storing tasks.

use millrace_core::{id::MAX_NAME_BYTES, id::TaskId, task::State, time::Timestamp};

use super::model::{Model, Task};
use crate::types::*;

/// The longest concurrency key and trace context, in bytes.
const MAX_TEXT_BYTES: usize = 255;

impl Model {
    pub(super) fn submit(&mut self, now: i64, batch: &[NewTask]) -> Vec<Submitted> {
        batch.iter().map(|task| self.submit_one(now, task)).collect()
    }

    fn submit_one(&mut self, now: i64, new: &NewTask) -> Submitted {
        let id = new.envelope.id;
        if let Some(refusal) = refusal(&new.envelope) {
            return Submitted::Refused(refusal);
        }
        if let Some(stored) = self.stored(id) {
            return stored;
        }
        if let Some(existing) = new.request.and_then(|key| self.requests.get(&key)).and_then(|request| request.task) {
            return Submitted::Existing(existing);
        }
        if new.route_version != self.cluster.route_version {
            return Submitted::RoutesChanged;
        }
        if !self.takes_tasks(&new.envelope.queue) {
            return Submitted::QueueClosed;
        }
        self.tasks.insert(id, new_row(now, new));
        self.remember(now, new.request, Some(id));
        self.stored(id).unwrap_or(Submitted::QueueClosed)
    }

    /// What is there of a task that this call, or an earlier try, has stored.
    fn stored(&self, id: TaskId) -> Option<Submitted> {
        let live = self.tasks.get(&id);
        let ended = || self.finished.get(&id).map(|finished| &finished.task);
        let task = live.or_else(ended).or_else(|| self.quarantined.get(&id).map(|aside| &aside.task))?;
        Some(Submitted::Stored {
            created_at_us: task.created_at_us,
            // What has gone on since was QUEUED before.
            state: if task.state == State::Scheduled { State::Scheduled } else { State::Queued },
            ready_at_us: task.ready_at_us,
            expires_at_us: task.expires_at_us,
        })
    }
}

fn new_row(now: i64, new: &NewTask) -> Task {
    let wake_at_us = new.not_before.map(|moment| moment.0).filter(|moment| *moment > now);
    let (state, ready_at_us) = match wake_at_us {
        Some(_) => (State::Scheduled, None),
        None => (State::Queued, Some(now)),
    };
    Task {
        envelope: new.envelope.clone(),
        spec: new.spec.clone(),
        state,
        attempt: 0,
        token: None,
        session: None,
        failures: 0,
        losses: 0,
        unsupported: 0,
        created_at_us: now,
        ready_at_us,
        wake_at_us,
        expires_at_us: new.expire_after.map(|span| Timestamp(now).after(span).0),
        dispatched_at_us: None,
        started_at_us: None,
    }
}

/// Why a database would refuse the data, if it would (R8).
fn refusal(envelope: &Envelope) -> Option<String> {
    let texts = [
        ("tenant", &envelope.tenant, MAX_NAME_BYTES),
        ("queue", &envelope.queue, MAX_NAME_BYTES),
        ("executor", &envelope.executor, MAX_NAME_BYTES),
        ("resource_class", &envelope.resource_class, MAX_NAME_BYTES),
        ("concurrency_key", &envelope.concurrency_key, MAX_TEXT_BYTES),
        ("trace_context", &envelope.trace_context, MAX_TEXT_BYTES),
    ];
    texts.into_iter().find_map(|(column, text, longest)| match text {
        _ if text.contains('\0') => Some(format!("{column} holds a NUL byte")),
        _ if text.len() > longest => Some(format!("{column} is longer than {longest} bytes")),
        _ => None,
    })
}
