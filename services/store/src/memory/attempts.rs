//! Attempts: claims, and how they end.

use millrace_core::{
    held::LeaseRef,
    task::{Event, State},
    time::Timestamp,
};

use super::model::{Attempt, Model, Task, next, storable};
use crate::{Foreign, Reader, Result, StoreError, types::*};

/// The columns that a claim writes.
const CLAIMED: [&str; 7] =
    ["state", "attempt", "token", "session_id", "ready_at_us", "dispatched_at_us", "started_at_us"];

/// The columns that a requeue writes.
const REQUEUED: [&str; 8] =
    ["state", "token", "session_id", "ready_at_us", "wake_at_us", "failures", "losses", "unsupported"];

impl Model {
    pub(super) fn claim(&mut self, now: i64, foreign: &Foreign, reader: &Reader, claim: &Claim) -> Result<Claimed> {
        let generation = self.live_generation(claim.session);
        let gate_is_open = self.gates.get(&claim.queue).is_some_and(|gate| gate.epoch == claim.epoch && !gate.paused);
        let Some(task) = self.tasks.get(&claim.task) else { return Ok(Claimed::Stale) };
        let is_repeat = task.session == Some(claim.session) && task.token == Some(claim.token);
        if is_repeat && let Some(dispatch) = dispatch(task) {
            return Ok(Claimed::Won(Box::new(dispatch)));
        }
        if generation != Some(claim.generation) {
            return Ok(Claimed::SessionGone);
        }
        if !gate_is_open {
            return Ok(Claimed::GateClosed);
        }
        let waits_there = task.state == State::Queued && task.envelope.queue == claim.queue;
        if !waits_there || task.has_expired(now) || !task.is_readable() {
            return Ok(Claimed::Stale);
        }
        // The claim writes it, so what stands there is nothing to anybody.
        self.rewritten(claim.task, &["ready_at_us"]);
        let Some(task) = self.tasks.get(&claim.task) else { return Ok(Claimed::Stale) };
        if !self.can_run(foreign, reader, task) {
            self.examine(now, reader, claim.task);
            return Ok(Claimed::Stale);
        }
        self.rewritten(claim.task, &CLAIMED);
        let Some(task) = self.tasks.get_mut(&claim.task) else { return Ok(Claimed::Stale) };
        task.state = next(task.state, Event::Claim)?;
        task.attempt += 1;
        task.token = Some(claim.token);
        task.session = Some(claim.session);
        task.ready_at_us = None;
        task.dispatched_at_us = Some(now);
        task.started_at_us = None;
        Ok(dispatch(task).map_or(Claimed::Stale, |dispatch| Claimed::Won(Box::new(dispatch))))
    }

    /// Whether this build can read the row, its spec too.
    fn can_run(&self, foreign: &Foreign, reader: &Reader, task: &Task) -> bool {
        if !self.reads(foreign, task) {
            return false;
        }
        let reading = (reader.spec)(&task.spec);
        reading.ignored.iter().for_each(|defect| foreign.ignored(&defect.column));
        reading.defect.inspect(|defect| foreign.unreadable(None, defect)).is_none()
    }

    pub(super) fn complete(&mut self, now: i64, completion: &Completion) -> Result<Completed> {
        let lease = completion.lease;
        let Some(task) = self.held(lease) else {
            return Ok(match self.ended_with(lease) {
                true => Completed::Recorded,
                false => Completed::Stale,
            });
        };
        // What the distributor wants may have been decided before the task was cancelled: the state decides.
        let event = match (task.state, completion.state) {
            (_, State::Succeeded) => Event::Succeed,
            (_, State::Failed) | (State::Cancelling, State::Cancelled) => Event::Fail,
            (held, wanted) => {
                return Err(StoreError::Internal(format!("a task that is {held} cannot be completed as {wanted}")));
            }
        };
        task.failures = task.failures.max(completion.failures);
        task.losses = task.losses.max(completion.losses);
        self.finish(now, lease.task, event, completion.outcome.clone())?;
        Ok(Completed::Recorded)
    }

    /// Whether the task has ended with this very attempt.
    fn ended_with(&self, lease: LeaseRef) -> bool {
        self.finished
            .get(&lease.task)
            .is_some_and(|finished| finished.task.attempt == lease.attempt && finished.task.token == Some(lease.token))
    }

    pub(super) fn requeue(&mut self, now: i64, requeue: &Requeue) -> Result<Requeued> {
        let lease = requeue.lease;
        let Some(task) = self.held(lease) else {
            let was_requeued =
                self.attempts.get(&(lease.task, lease.attempt)).is_some_and(|attempt| attempt.token == lease.token);
            return Ok(match was_requeued {
                true => Requeued::Waiting { ready_at_us: self.ready_since(lease) },
                false => Requeued::Stale,
            });
        };
        if task.state == State::Cancelling {
            return Ok(Requeued::Cancelling);
        }
        let ended = task.clone();
        (task.state, task.ready_at_us, task.wake_at_us) = match requeue.wait.is_zero() {
            true => (next(task.state, Event::Requeue)?, Some(now), None),
            false => (next(task.state, Event::Backoff)?, None, Some(Timestamp(now).after(requeue.wait).0)),
        };
        task.token = None;
        task.session = None;
        task.failures = requeue.failures;
        task.losses = requeue.losses;
        task.unsupported = requeue.unsupported;
        let ready_at_us = task.ready_at_us;
        self.rewritten(lease.task, &REQUEUED);
        self.keep_attempt(now, &ended, &requeue.outcome);
        Ok(Requeued::Waiting { ready_at_us })
    }

    /// When the task joined its queue after this attempt, if it still waits there since.
    fn ready_since(&self, lease: LeaseRef) -> Option<i64> {
        self.tasks.get(&lease.task).filter(|task| task.attempt == lease.attempt).and_then(|task| task.ready_at_us)
    }

    /// Keeps an attempt that was not the last word.
    pub(super) fn keep_attempt(&mut self, now: i64, task: &Task, outcome: &Outcome) {
        let Some(token) = task.token else { return };
        let outcome = Outcome {
            message: storable(&outcome.message),
            started_at_us: outcome.started_at_us.or(task.started_at_us),
            ..outcome.clone()
        };
        let row = AttemptRow {
            attempt: task.attempt,
            orchestrator: self.orchestrator(task),
            dispatched_at_us: task.dispatched_at_us,
            recorded_at_us: now,
            outcome,
        };
        self.attempts.entry((task.envelope.id, task.attempt)).or_insert(Attempt { token, row });
    }

    /// The name of the orchestrator that has the task, or had it at its end.
    pub(super) fn orchestrator(&self, task: &Task) -> String {
        self.session_of(task).map_or_else(String::new, |session| session.name.clone())
    }

    /// The endpoint of the replica that holds, or held, that orchestrator's stream.
    pub(super) fn replica(&self, task: &Task) -> String {
        self.session_of(task).map_or_else(String::new, |session| session.replica.clone())
    }

    fn session_of(&self, task: &Task) -> Option<&NewSession> {
        task.session.and_then(|id| self.sessions.get(&id)).map(|session| &session.session)
    }

    pub(super) fn held_rows(&self, foreign: &Foreign, leases: &[LeaseRef]) -> Vec<HeldRow> {
        self.tasks
            .values()
            .filter(|task| task.lease().is_some_and(|lease| leases.contains(&lease)))
            .filter(|task| self.reads(foreign, task))
            .filter_map(held_row)
            .collect()
    }
}

/// What an orchestrator is sent of a task that it has.
pub(super) fn dispatch(task: &Task) -> Option<Dispatch> {
    Some(Dispatch {
        lease: task.lease()?,
        queue: task.envelope.queue.clone(),
        spec: task.spec.clone(),
        timeout_ms: task.envelope.timeout_ms,
        trace_context: task.envelope.trace_context.clone(),
        dispatched_at_us: task.dispatched_at_us?,
        state: task.state,
    })
}

/// A held task as the paths of recovery read it.
pub(super) fn held_row(task: &Task) -> Option<HeldRow> {
    Some(HeldRow {
        lease: task.lease()?,
        state: task.state,
        session: task.session?,
        queue: task.envelope.queue.clone(),
        tenant: task.envelope.tenant.clone(),
        rank: task.envelope.rank,
        min_reader: task.envelope.min_reader,
        expires_at_us: task.expires_at_us,
        spec: task.spec.clone(),
        failures: task.failures,
        losses: task.losses,
        unsupported: task.unsupported,
    })
}
