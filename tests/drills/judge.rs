//! The judge of what ran: a file, opened for appending, into which every command writes when it starts and when it ends.
//!
//! The commands are functions in this process rather than processes, so that their start is not what is measured; what they write is
//! what `millrace_tests::history` reads.

use std::{
    collections::HashMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use futures::future::BoxFuture;
use millrace_orchestrator::{Attempt, AttemptHandle, Executor, Outcome};
use millrace_tests::history::History;
use tokio::sync::watch;
use uuid::Uuid;

/// How long nothing may end while something is waited for.
const PATIENCE: Duration = Duration::from_secs(45);

/// The file, and how many ends were written to it.
pub(crate) struct Judge {
    path: PathBuf,
    file: File,
    ends: watch::Sender<u64>,
}

impl Judge {
    /// Opens a new file.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        let _ = std::fs::remove_file(path);
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("creating {}", path.display()))?;
        Ok(Arc::new(Self { path: path.to_owned(), file, ends: watch::Sender::new(0) }))
    }

    /// A command: it starts, has nothing to do, and ends.
    fn run(&self, task: Uuid, attempt: i32) -> Outcome {
        let start = now_ns();
        let lines = format!("start {task} {attempt} {start}\nend {task} {attempt} {}\n", now_ns());
        // One write of an append-only file: lines of others do not come in between.
        match (&self.file).write_all(lines.as_bytes()) {
            Ok(()) => {
                self.ends.send_modify(|ends| *ends += 1);
                Outcome::succeeded()
            }
            Err(error) => Outcome::failed(format!("the judge's file cannot be written: {error}")),
        }
    }

    /// What has run until now.
    pub(crate) fn runs(&self) -> Result<Runs> {
        let text = std::fs::read_to_string(&self.path).with_context(|| format!("reading {}", self.path.display()))?;
        Runs::of(&History::read(&text))
    }

    /// Waits until all of these have ended; fails when some are missing and nothing has ended for long.
    pub(crate) async fn all(&self, tasks: &[Uuid]) -> Result<()> {
        let mut ends = self.ends.subscribe();
        loop {
            let seen = *ends.borrow_and_update();
            let runs = self.runs()?;
            let missing: Vec<&Uuid> = tasks.iter().filter(|task| runs.end(task).is_none()).collect();
            let Some(first) = missing.first() else { return Ok(()) };
            // Not before so many have ended as are missing: reading the file costs more with each task.
            let enough = seen + missing.len() as u64;
            loop {
                match tokio::time::timeout(PATIENCE, ends.changed()).await {
                    Ok(changed) => changed?,
                    Err(_) => bail!("{} of {} tasks have not run, such as {first}", missing.len(), tasks.len()),
                }
                if *ends.borrow() >= enough {
                    break;
                }
            }
        }
    }
}

/// What ran, and when, in nanoseconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    first: HashMap<Uuid, (u64, u64)>,
    /// Every end, in order.
    ends: Vec<u64>,
}

impl Runs {
    fn of(history: &History) -> Result<Self> {
        ensure!(history.garbage.is_empty(), "the judge's file holds what no command writes: {:?}", history.garbage);
        let mut runs = Self::default();
        for (task, of_task) in &history.runs {
            let task = Uuid::try_parse(task).with_context(|| format!("`{task}` ran, which is no task's id"))?;
            for run in of_task {
                let Some(end) = run.end else { continue };
                runs.ends.push(end);
                runs.first.entry(task).or_insert((run.start, end));
            }
        }
        runs.ends.sort_unstable();
        Ok(runs)
    }

    /// When a task first started.
    pub(crate) fn start(&self, task: &Uuid) -> Option<u64> {
        self.first.get(task).map(|(start, _)| *start)
    }

    /// When it first ended.
    pub(crate) fn end(&self, task: &Uuid) -> Option<u64> {
        self.first.get(task).map(|(_, end)| *end)
    }

    /// How many ends there were in `from..to`.
    pub(crate) fn ends(&self, from: u64, to: u64) -> usize {
        let before = |moment: u64| self.ends.partition_point(|end| *end < moment);
        before(to).saturating_sub(before(from))
    }

    /// The longest time within `from..to` in which nothing ended, and when it began.
    pub(crate) fn longest_gap(&self, from: u64, to: u64) -> (Duration, u64) {
        let within = self.ends.iter().copied().filter(|end| (from..to).contains(end));
        let mut last = from;
        let mut longest = (0, from);
        for end in within.chain([to]) {
            longest = longest.max((end - last, last));
            last = end;
        }
        (Duration::from_nanos(longest.0), longest.1)
    }
}

/// The executor of the judge's commands.
pub(crate) struct Commands(pub(crate) Arc<Judge>);

impl Executor for Commands {
    fn name(&self) -> &str {
        "process"
    }

    fn run(&self, attempt: AttemptHandle) -> BoxFuture<'_, Outcome> {
        let outcome = self.0.run(attempt.task_id, attempt.attempt);
        Box::pin(std::future::ready(outcome))
    }

    fn run_inline(&self, attempt: &Attempt) -> Option<Outcome> {
        Some(self.0.run(attempt.task_id, attempt.attempt))
    }
}

/// The machine's clock, which the database on it has too, in nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_both_edges() {
        let runs = Runs { ends: vec![20, 30, 70, 90], ..Runs::default() };
        let gap = |from, to| (runs.longest_gap(from, to).0.as_nanos(), runs.longest_gap(from, to).1);
        assert_eq!((gap(10, 100), gap(0, 31), gap(71, 200), gap(31, 60)), ((40, 30), (20, 0), (110, 90), (29, 31)));
        assert_eq!((runs.ends(20, 70), runs.ends(0, 20)), (2, 0));
    }
}
