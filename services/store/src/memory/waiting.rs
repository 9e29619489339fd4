//! Tasks that wait.

use std::collections::BTreeSet;

use millrace_core::{
    id::TaskId,
    retry::OutcomeKind,
    task::{Event, State},
    time::Timestamp,
};

use super::{
    damage::Readable,
    model::{Model, Task, at_most, bounded, next},
};
use crate::{Foreign, Result, types::*};

impl Model {
    pub(super) fn lanes(&self, queue: &str, after: Option<&LaneKey>, limit: i64) -> Vec<LaneKey> {
        let lanes: BTreeSet<LaneKey> = self.queued_in(queue).map(lane_of).collect();
        lanes.into_iter().filter(|lane| after.is_none_or(|after| lane > after)).take(at_most(limit)).collect()
    }

    pub(super) fn lane_page(
        &self,
        now: i64,
        foreign: &Foreign,
        (queue, lane): (&str, &LaneKey),
        (after, up_to): ((Timestamp, TaskId), Option<(Timestamp, TaskId)>),
        limit: i64,
    ) -> LanePage {
        let in_lane = self.queued_in(queue).filter(|task| lane_of(task) == *lane);
        let mut tasks: Vec<&Task> = in_lane
            .filter(|task| task.place().is_some_and(|place| place > after && up_to.is_none_or(|last| place <= last)))
            .collect();
        tasks.sort_by_key(|task| task.place());
        let exhausted = tasks.len() <= at_most(limit);
        let rows = tasks.into_iter().take(at_most(limit)).filter_map(|task| self.offered(foreign, task)).collect();
        LanePage { rows, exhausted, now: Timestamp(now) }
    }

    /// A row that cannot be read keeps its place, so that whoever goes through the lane gets past it, but no reader takes it.
    fn offered(&self, foreign: &Foreign, task: &Task) -> Option<Waiting> {
        let waiting = waiting(task)?;
        if !self.reads(foreign, task) {
            return Some(Waiting { min_reader: i16::MAX, ..waiting });
        }
        foreign.too_new(u64::from(!task.is_readable()));
        Some(waiting)
    }

    fn queued_in<'a>(&'a self, queue: &'a str) -> impl Iterator<Item = &'a Task> + 'a {
        self.tasks
            .values()
            .filter(move |task| task.state == State::Queued && task.envelope.queue == queue)
            .filter(|task| self.is_in_a_lane(task))
    }

    pub(super) fn wake(&mut self, now: i64, foreign: &Foreign, limit: i64) -> Result<Vec<(String, Waiting)>> {
        let due = self.tasks.iter().filter(|(_, task)| task.wake_at_us.is_some_and(|moment| moment <= now));
        let due = due.filter(|(_, task)| task.is_readable() && self.reads(foreign, task));
        let due: Vec<TaskId> = due.map(|(id, _)| *id).take(at_most(limit)).collect();
        let mut woken = Vec::new();
        for id in due {
            self.rewritten(id, &["state", "wake_at_us", "ready_at_us"]);
            if let Some(task) = self.tasks.get_mut(&id) {
                task.state = next(task.state, Event::Wake)?;
                task.wake_at_us = None;
                task.ready_at_us = Some(now);
                woken.extend(waiting(task).map(|waiting| (task.envelope.queue.clone(), waiting)));
            }
        }
        Ok(woken)
    }

    pub(super) fn expire(&mut self, now: i64, foreign: &Foreign, limit: i64) -> Result<Vec<TaskId>> {
        let due = self
            .tasks
            .iter()
            .filter(|(_, task)| task.state.is_waiting() && task.has_expired(now) && task.is_readable())
            .filter(|(_, task)| self.reads(foreign, task));
        let due: Vec<TaskId> = due.map(|(id, _)| *id).take(at_most(limit)).collect();
        for id in &due {
            self.finish(now, *id, Event::Expire, unattempted(OutcomeKind::Expired, "waited past its deadline"))?;
        }
        Ok(due)
    }

    pub(super) fn position(&self, id: TaskId) -> Option<i64> {
        let order = |task: &Task| task.place().map(|place| (task.envelope.rank, place));
        let task = self.tasks.get(&id).filter(|task| task.state == State::Queued)?;
        if self.readable(task) != Readable::Yes {
            return None;
        }
        Some(bounded(self.queued_in(&task.envelope.queue).filter(|other| order(other) < order(task)).count()))
    }
}

/// The outcome of a task that ended while it waited.
pub(super) fn unattempted(kind: OutcomeKind, message: &str) -> Outcome {
    Outcome {
        kind,
        exit_code: None,
        signal: None,
        message: message.to_owned(),
        output_tail: Vec::new(),
        output_bytes: 0,
        started_at_us: None,
        ended_at_us: None,
    }
}

fn lane_of(task: &Task) -> LaneKey {
    LaneKey { tenant: task.envelope.tenant.clone(), rank: task.envelope.rank }
}

fn waiting(task: &Task) -> Option<Waiting> {
    Some(Waiting {
        id: task.envelope.id,
        tenant: task.envelope.tenant.clone(),
        rank: task.envelope.rank,
        ready_at_us: task.ready_at_us?,
        expires_at_us: task.expires_at_us,
        min_reader: task.envelope.min_reader,
    })
}
