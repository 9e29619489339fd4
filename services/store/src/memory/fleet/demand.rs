//! What queues ask for.

use std::{collections::BTreeMap, time::Duration};

use millrace_core::{
    id::TaskId,
    time::{Timestamp, micros},
};

use crate::{
    QueueDemand,
    books::{LOOKED_AT, RAN, RunTime, first_id_at, span_us},
    memory::model::{Model, at_most},
};

impl Model {
    pub(super) fn queue_demand(&self, now: i64, queues: &[String], window: Duration) -> Vec<QueueDemand> {
        // None would mean all.
        if queues.is_empty() {
            return Vec::new();
        }
        let (arrivals, arrivals_over_us) = self.arrivals(now, window);
        let run_times = self.run_times();
        let demand = self.counts(now, queues).into_iter().map(|of| QueueDemand {
            waiting: of.queued,
            running: of.held,
            oldest_ready_at_us: of.oldest_ready_at_us,
            paused: self.queues.get(&of.name).is_some_and(|queue| queue.pause.is_some()),
            arrivals: arrivals.get(of.name.as_str()).copied().unwrap_or(0),
            arrivals_over_us,
            run_time_us: run_times.get(of.name.as_str()).and_then(RunTime::average_us),
            now_us: now,
            queue: of.name,
        });
        demand.collect()
    }

    /// How many tasks came into each queue, and over which span, by the moments in their ids.
    fn arrivals(&self, now: i64, window: Duration) -> (BTreeMap<&str, i64>, i64) {
        let first = TaskId(first_id_at(Timestamp(now).before(window).0));
        let live = self.tasks.range(first..).map(|(id, task)| (*id, task));
        let finished = self.finished.range(first..).map(|(id, finished)| (*id, &finished.task));
        let mut newest: Vec<_> = live.chain(finished).collect();
        newest.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        newest.truncate(at_most(LOOKED_AT));
        let mut arrivals = BTreeMap::new();
        for (_, task) in &newest {
            *arrivals.entry(task.envelope.queue.as_str()).or_default() += 1;
        }
        let oldest = newest.last().map(|(id, _)| id.0);
        (arrivals, span_us(now, micros(window), newest.len() as i64, oldest))
    }

    /// How long the last tasks of each queue ran, of those that are among the last of all.
    fn run_times(&self) -> BTreeMap<&str, RunTime> {
        let mut run_times: BTreeMap<&str, RunTime> = BTreeMap::new();
        for finished in self.finished.values().rev().take(at_most(LOOKED_AT)) {
            let (task, outcome) = (&finished.task, &finished.outcome);
            if RAN.contains(&(task.state as i16))
                && let Some((started_at_us, ended_at_us)) = task.started_at_us.zip(outcome.ended_at_us)
            {
                run_times.entry(&task.envelope.queue).or_default().see(started_at_us, ended_at_us);
            }
        }
        run_times
    }
}
