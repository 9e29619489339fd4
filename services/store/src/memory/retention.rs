//! Dropping what is old.

use std::{
    ops::Bound::{Excluded, Unbounded},
    time::Duration,
};

use millrace_core::{
    id::TaskId,
    time::{Timestamp, micros},
};
use uuid::Uuid;

use super::model::{Model, Request, at_most};

impl Model {
    pub(super) fn trim_finished(&mut self, now: i64, keep: Duration) -> i64 {
        self.slice_us = (micros(keep) / 6).max(1);
        let before = Timestamp(now).before(keep).0;
        for slot in 0..8 {
            let newest = self.finished.values().filter(|row| row.slot == slot).map(|row| row.finished_at_us).max();
            // A slot goes as a whole, so its youngest task decides.
            if newest.is_some_and(|newest| newest < before) {
                self.finished.retain(|_, row| row.slot != slot);
                return 1;
            }
        }
        0
    }

    pub(super) fn trim_requests(&mut self, now: i64, keep: Duration, after: Option<Uuid>, limit: i64) -> Option<Uuid> {
        let before = Timestamp(now).before(keep).0;
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        let looked_at: Vec<Uuid> = self.requests.range(range).map(|(key, _)| *key).take(at_most(limit)).collect();
        for key in &looked_at {
            // That of a task which is set aside stays: the task was stored, and has not had its end yet.
            let is_aside = |task: Option<TaskId>| task.is_some_and(|task| self.quarantined.contains_key(&task));
            let is_old = |request: &Request| request.created_at_us < before && !is_aside(request.task);
            if self.requests.get(key).is_some_and(is_old) {
                self.requests.remove(key);
            }
        }
        looked_at.last().copied().filter(|_| looked_at.len() == at_most(limit))
    }

    pub(super) fn trim_attempts(&mut self, after: Option<TaskId>, limit: i64) -> Option<TaskId> {
        let range = (after.map_or(Unbounded, |after| Excluded((after, i32::MAX))), Unbounded);
        let looked_at: Vec<TaskId> = self.attempts.range(range).map(|((id, _), _)| *id).take(at_most(limit)).collect();
        // The last task's attempts go together, even when not all of them were looked at: the next step begins after it.
        let gone = |id: &TaskId| {
            !self.tasks.contains_key(id) && !self.finished.contains_key(id) && !self.quarantined.contains_key(id)
        };
        let gone: Vec<TaskId> = looked_at.iter().copied().filter(gone).collect();
        self.attempts.retain(|(id, _), _| !gone.contains(id));
        looked_at.last().copied().filter(|_| looked_at.len() == at_most(limit))
    }
}
