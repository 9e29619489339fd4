//! What people ask of tasks.

use std::ops::Bound::{Excluded, Unbounded};

use millrace_core::{
    id::TaskId,
    retry::OutcomeKind,
    task::{Event, State},
};
use uuid::Uuid;

use super::{
    model::{Finished, Model, Task, at_most},
    waiting::unattempted,
};
use crate::{Foreign, LIST_SCAN_BOUND, Result, types::*};

impl Model {
    pub(super) fn row(&self, id: TaskId) -> Option<TaskRow> {
        let live = self.tasks.get(&id).map(|task| self.task_row(task, None));
        live.or_else(|| self.finished.get(&id).map(|finished| self.task_row(&finished.task, Some(finished))))
    }

    /// Live rows that cannot be read are left out, and are an error where only one was asked for.
    pub(super) fn task(&self, foreign: &Foreign, id: TaskId) -> Result<Option<TaskRow>> {
        self.must_read(foreign, id)?;
        Ok(self.row(id))
    }

    pub(super) fn good_row(&self, foreign: &Foreign, id: TaskId) -> Option<TaskRow> {
        self.task(foreign, id).ok().flatten()
    }

    fn task_row(&self, task: &Task, finished: Option<&Finished>) -> TaskRow {
        TaskRow {
            envelope: task.envelope.clone(),
            spec: task.spec.clone(),
            state: task.state,
            attempt: task.attempt,
            token: task.token,
            session: task.session,
            orchestrator: self.orchestrator(task),
            replica: self.replica(task),
            failures: task.failures,
            losses: task.losses,
            created_at_us: task.created_at_us,
            ready_at_us: task.ready_at_us,
            wake_at_us: task.wake_at_us,
            expires_at_us: task.expires_at_us,
            dispatched_at_us: task.dispatched_at_us,
            started_at_us: task.started_at_us,
            finished_at_us: finished.map(|finished| finished.finished_at_us),
            outcome: finished.map(|finished| finished.outcome.clone()),
            ignored: if finished.is_none() { self.defects(task) } else { Vec::new() },
        }
    }

    pub(super) fn attempts_of(&self, id: TaskId) -> Vec<AttemptRow> {
        self.attempts.range((id, i32::MIN)..=(id, i32::MAX)).map(|(_, attempt)| attempt.row.clone()).collect()
    }

    pub(super) fn list(&self, foreign: &Foreign, filter: &ListFilter, below: Option<TaskId>, limit: i64) -> ListPage {
        let range = (Unbounded, below.map_or(Unbounded, Excluded));
        let mut ids: Vec<TaskId> = self.tasks.range(range).map(|(id, _)| *id).collect();
        ids.extend(self.finished.range(range).map(|(id, _)| *id));
        ids.sort_by(|a, b| b.cmp(a));
        let (mut rows, mut last) = (Vec::new(), None);
        for id in ids.iter().take(at_most(LIST_SCAN_BOUND)) {
            if rows.len() == at_most(limit) {
                break;
            }
            last = Some(*id);
            rows.extend(self.good_row(foreign, *id).filter(|row| fits(filter, row)));
        }
        ListPage { rows, next: last.filter(|last| ids.last() != Some(last)) }
    }

    pub(super) fn cancel(&mut self, now: i64, id: TaskId, reason: &str, request: Option<Uuid>) -> CancelResult {
        let state = match self.row(id) {
            None => return CancelResult::NotFound,
            Some(row) if self.is_known(request) => return CancelResult::Done(Box::new(row)),
            Some(row) => row.state,
        };
        let Ok(next) = state.next(Event::Cancel) else {
            return self.row(id).map_or(CancelResult::NotFound, |row| CancelResult::Finished(Box::new(row)));
        };
        match next {
            State::Cancelled if state.is_waiting() => {
                // The transition has just been found to be legal.
                let _ = self.finish(now, id, Event::Cancel, unattempted(OutcomeKind::Cancelled, reason));
            }
            next => {
                self.rewritten(id, &["state"]);
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.state = next;
                }
            }
        }
        self.remember(now, request, Some(id));
        self.row(id).map_or(CancelResult::NotFound, |row| CancelResult::Done(Box::new(row)))
    }

    pub(super) fn retry(&mut self, now: i64, id: TaskId, request: Option<Uuid>) -> Idempotent<RetryResult> {
        let repeated = self.is_known(request);
        let value = match self.row(id) {
            None => RetryResult::NotFound,
            Some(row) if repeated => RetryResult::Done(Box::new(row)),
            Some(_) if let Some(defect) = self.too_new(id) => RetryResult::TooNew(defect),
            Some(row) => match row.state.next(Event::Retry) {
                Err(_) => RetryResult::WrongState(Box::new(row)),
                Ok(_) if !self.takes_tasks(&row.envelope.queue) => RetryResult::QueueClosed(row.envelope.queue),
                Ok(state) => {
                    self.revive(now, id, state);
                    self.remember(now, request, Some(id));
                    self.row(id).map_or(RetryResult::NotFound, |row| RetryResult::Done(Box::new(row)))
                }
            },
        };
        Idempotent { repeated: repeated && matches!(value, RetryResult::Done(_)), value }
    }

    /// Moves a finished task back among the live ones, with fresh budgets and a fresh deadline of the same length. The
    /// attempt that ended it is one of the earlier ones now.
    fn revive(&mut self, now: i64, id: TaskId, state: State) {
        let Some(Finished { mut task, finished_at_us, outcome, .. }) = self.finished.remove(&id) else { return };
        self.keep_attempt(finished_at_us, &task, &outcome);
        task.state = state;
        task.ready_at_us = Some(now);
        task.token = None;
        task.session = None;
        task.failures = 0;
        task.losses = 0;
        task.unsupported = 0;
        let patience_us = task.expires_at_us.map(|moment| moment.saturating_sub(task.created_at_us));
        task.expires_at_us = patience_us.map(|patience_us| now.saturating_add(patience_us));
        self.tasks.insert(id, task);
    }
}

fn fits(filter: &ListFilter, row: &TaskRow) -> bool {
    let is = |wanted: &Option<String>, given: &str| wanted.as_deref().is_none_or(|wanted| wanted == given);
    is(&filter.tenant, &row.envelope.tenant)
        && is(&filter.queue, &row.envelope.queue)
        && (filter.states.is_empty() || filter.states.contains(&row.state))
}
