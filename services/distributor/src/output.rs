//! Live output of attempts whose streams are on this replica: the newest bytes of each, and whoever watches.

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use millrace_core::id::TaskId;
use millrace_proto::{common::v1::OutputChunk, distributor::v1::TaskOutput};
use tokio::sync::mpsc;

use crate::shared::lock;

/// Bytes kept of one attempt.
const RING: usize = 256 * 1024;

/// The largest chunk that is taken.
pub(crate) const MAX_CHUNK: usize = 64 * 1024;

/// Chunks that may wait for one watcher. When it is full a chunk is dropped for that watcher, who sees the gap by the
/// offsets: a slow reader never slows an orchestrator.
const WATCHER: usize = 256;

/// How long the output of an ended attempt is kept for watchers that come late.
const LINGER: Duration = Duration::from_secs(60);

/// Every attempt's output, bounded in all.
pub(crate) struct Outputs {
    bound: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    tasks: HashMap<TaskId, Ring>,
    bytes: usize,
    /// Ended attempts, oldest first; those that have gone on since are skipped.
    ended: VecDeque<(Duration, TaskId, i32)>,
}

#[derive(Default)]
struct Ring {
    attempt: i32,
    chunks: VecDeque<OutputChunk>,
    bytes: usize,
    /// Where the newest chunk ended; repeats of a reconnected orchestrator lie before it.
    end: u64,
    /// When the attempt ended, or its session left this replica. A session that comes back writes on.
    ended: Option<Duration>,
    watchers: Vec<mpsc::Sender<TaskOutput>>,
}

impl Outputs {
    pub(crate) fn new(bound: usize) -> Self {
        Self { bound, table: Mutex::default() }
    }

    /// Takes chunks of an attempt that the sender holds.
    pub(crate) fn push(&self, task: TaskId, attempt: i32, chunks: Vec<OutputChunk>) {
        let mut table = lock(&self.table);
        let table = &mut *table;
        let ring = table.tasks.entry(task).or_default();
        if ring.attempt != attempt {
            table.bytes -= ring.bytes;
            *ring = Ring { attempt, watchers: std::mem::take(&mut ring.watchers), ..Ring::default() };
        }
        ring.ended = None;
        for mut chunk in chunks {
            chunk.data.truncate(MAX_CHUNK);
            // A reconnected orchestrator sends again what it still has.
            let known = ring.end.saturating_sub(chunk.offset);
            if known >= chunk.data.len() as u64 {
                continue;
            }
            chunk.data = chunk.data.slice(known as usize..);
            chunk.offset += known;
            ring.end = chunk.offset + chunk.data.len() as u64;
            let output = TaskOutput { attempt, chunk: Some(chunk.clone()) };
            ring.watchers.retain(|watcher| {
                !matches!(watcher.try_send(output.clone()), Err(mpsc::error::TrySendError::Closed(_)))
            });
            ring.bytes += chunk.data.len();
            table.bytes += chunk.data.len();
            ring.chunks.push_back(chunk);
            while ring.bytes > RING
                && let Some(oldest) = ring.chunks.pop_front()
            {
                ring.bytes -= oldest.data.len();
                table.bytes -= oldest.data.len();
            }
        }
        table.shrink(self.bound);
    }

    /// What is kept of a task's output, and what comes. Nothing may come if the task's stream is on another replica.
    pub(crate) fn watch(&self, task: TaskId) -> (Vec<TaskOutput>, mpsc::Receiver<TaskOutput>) {
        let (sender, receiver) = mpsc::channel(WATCHER);
        let mut table = lock(&self.table);
        let ring = table.tasks.entry(task).or_default();
        ring.watchers.retain(|watcher| !watcher.is_closed());
        ring.watchers.push(sender);
        let attempt = ring.attempt;
        let kept = ring.chunks.iter().map(|chunk| TaskOutput { attempt, chunk: Some(chunk.clone()) }).collect();
        (kept, receiver)
    }

    /// The attempt has ended, or goes on elsewhere: its output stays for a while.
    pub(crate) fn ended(&self, task: TaskId, now: Duration) {
        let mut table = lock(&self.table);
        if let Some(ring) = table.tasks.get_mut(&task) {
            ring.ended = Some(now);
            let attempt = ring.attempt;
            table.ended.push_back((now, task, attempt));
        }
        table.forget(now);
    }

    /// Drops what nobody needs any more; called now and then.
    pub(crate) fn tidy(&self, now: Duration) {
        let mut table = lock(&self.table);
        table.forget(now);
        table.tasks.retain(|_, ring| {
            ring.watchers.retain(|watcher| !watcher.is_closed());
            ring.bytes > 0 || !ring.watchers.is_empty()
        });
    }

    /// Bytes kept.
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.table).bytes
    }
}

impl Table {
    fn forget(&mut self, now: Duration) {
        while let Some(&(ended, task, attempt)) = self.ended.front() {
            if now.saturating_sub(ended) < LINGER {
                break;
            }
            self.ended.pop_front();
            self.drop_ended(task, attempt, ended);
        }
    }

    /// Drops the output of an attempt that has ended at this moment and not gone on since.
    fn drop_ended(&mut self, task: TaskId, attempt: i32, ended: Duration) {
        if self.tasks.get(&task).is_some_and(|ring| ring.ended == Some(ended)) {
            self.drop_chunks(task, attempt);
        }
    }

    /// Past the bound, the output that ended first goes, then the largest.
    fn shrink(&mut self, bound: usize) {
        while self.bytes > bound {
            if let Some((ended, task, attempt)) = self.ended.pop_front() {
                self.drop_ended(task, attempt, ended);
            } else if let Some(task) = self.tasks.iter().max_by_key(|(_, ring)| ring.bytes).map(|(task, _)| *task) {
                let attempt = self.tasks.get(&task).map_or(0, |ring| ring.attempt);
                self.drop_chunks(task, attempt);
            } else {
                return;
            }
        }
    }

    fn drop_chunks(&mut self, task: TaskId, attempt: i32) {
        let Some(ring) = self.tasks.get_mut(&task) else { return };
        if ring.attempt != attempt {
            return;
        }
        self.bytes -= ring.bytes;
        ring.bytes = 0;
        ring.chunks.clear();
        if ring.watchers.iter().all(mpsc::Sender::is_closed) {
            self.tasks.remove(&task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn task(number: u128) -> TaskId {
        TaskId(Uuid::from_u128(number))
    }

    fn chunk(offset: u64, data: &[u8]) -> OutputChunk {
        OutputChunk { stream: 1, offset, data: data.to_vec().into() }
    }

    fn text(outputs: &[TaskOutput]) -> String {
        outputs
            .iter()
            .map(|output| String::from_utf8_lossy(&output.chunk.as_ref().unwrap().data).into_owned())
            .collect()
    }

    #[test]
    fn late_watchers_see_what_is_kept_and_repeats_are_dropped() {
        let outputs = Outputs::new(1_000_000);
        outputs.push(task(1), 1, vec![chunk(0, b"hello "), chunk(6, b"world")]);
        outputs.push(task(1), 1, vec![chunk(0, b"hello world!")]);
        let (kept, mut live) = outputs.watch(task(1));
        assert_eq!(text(&kept), "hello world!");
        outputs.push(task(1), 1, vec![chunk(12, b"?")]);
        assert_eq!(text(&[live.try_recv().unwrap()]), "?");
    }

    #[test]
    fn a_new_attempt_replaces_the_output_and_keeps_the_watchers() {
        let outputs = Outputs::new(1_000_000);
        outputs.push(task(1), 1, vec![chunk(0, b"first")]);
        let (_, mut live) = outputs.watch(task(1));
        outputs.push(task(1), 2, vec![chunk(0, b"second")]);
        assert_eq!(live.try_recv().unwrap().attempt, 2);
        assert_eq!(outputs.bytes(), 6);
    }

    #[test]
    fn memory_is_bounded_per_task_and_in_all() {
        let outputs = Outputs::new(600_000);
        for number in 0..20 {
            for offset in 0..10 {
                outputs.push(task(number), 1, vec![chunk(offset * 50_000, &[b'x'; 50_000])]);
            }
            outputs.ended(task(number), Duration::ZERO);
        }
        assert!(outputs.bytes() <= 600_000);
        outputs.ended(task(99), LINGER);
        assert_eq!(outputs.bytes(), 0);
    }

    #[test]
    fn output_of_an_attempt_that_comes_back_is_kept() {
        let outputs = Outputs::new(1_000_000);
        outputs.push(task(1), 1, vec![chunk(0, b"before")]);
        outputs.ended(task(1), Duration::ZERO);
        outputs.push(task(1), 1, vec![chunk(6, b" after")]);
        outputs.tidy(LINGER);
        assert_eq!(text(&outputs.watch(task(1)).0), "before after");
        outputs.ended(task(1), LINGER);
        outputs.tidy(LINGER * 2);
        assert_eq!(outputs.bytes(), 0);
    }

    #[test]
    fn a_slow_watcher_loses_chunks_and_slows_nobody() {
        let outputs = Outputs::new(1_000_000);
        let (_, mut live) = outputs.watch(task(1));
        for offset in 0..1_000 {
            outputs.push(task(1), 1, vec![chunk(offset, b"x")]);
        }
        let mut seen = 0;
        while live.try_recv().is_ok() {
            seen += 1;
        }
        assert_eq!(seen, WATCHER);
    }
}
