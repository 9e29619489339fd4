//! The history checker: what submitters were told, what commands saw of themselves, and whether the two agree.
//!
//! Every command appends a line when it starts and one when it ends, with its task's id and attempt, to one file opened
//! for appending. That file judges what ran, not the database. The database is asked only why a task started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};

/// One run of a command, as the command itself saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The attempt's number.
    pub attempt: i32,
    /// Nanoseconds since 1970 when it started.
    pub start: u64,
    /// The same when it ended; none when it never came to its end.
    pub end: Option<u64>,
}

/// What the commands wrote.
#[derive(Debug, Default, Clone)]
pub struct History {
    /// Every run of each task, in the order of their starts.
    pub runs: BTreeMap<String, Vec<Run>>,
    /// Lines that are not of the form expected; a correct file has none.
    pub garbage: Vec<String>,
}

/// Why a task may have started more than once.
#[derive(Debug, Default, Clone)]
pub struct Reasons {
    /// For each task, the attempts that the distributor recorded as lost or handed back.
    pub excused: BTreeMap<String, BTreeSet<i32>>,
    /// For each task, the attempt that its outcome speaks of.
    pub last_attempt: BTreeMap<String, i32>,
}

/// What is wrong. Empty when nothing is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Acknowledged, and never ran to its end.
    pub lost: Vec<String>,
    /// Ran, though nobody was told that it was stored.
    pub unknown: Vec<String>,
    /// The same attempt started twice.
    pub doubled: Vec<String>,
    /// Started again although the attempt before was neither lost nor handed back.
    pub unexcused: Vec<String>,
    /// The outcome speaks of an attempt that never ran to its end.
    pub stale: Vec<String>,
    /// Lines that no command writes.
    pub garbage: Vec<String>,
}

/// The shell script of a command that takes part: it appends to `file` when it starts and when it ends, and runs `body`
/// in between.
pub fn script(file: &Path, body: &str) -> String {
    let file = file.display();
    format!(
        "echo \"start $MILLRACE_TASK_ID $MILLRACE_ATTEMPT $(date +%s%N)\" >> {file}; {body}; \
         echo \"end $MILLRACE_TASK_ID $MILLRACE_ATTEMPT $(date +%s%N)\" >> {file}"
    )
}

impl History {
    /// Reads what commands wrote.
    pub fn read(text: &str) -> Self {
        let mut history = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let parsed = match fields.as_slice() {
                [kind @ ("start" | "end"), id, attempt, at] => {
                    attempt.parse().ok().zip(at.parse().ok()).map(|(attempt, at)| (*kind, *id, attempt, at))
                }
                _ => None,
            };
            let Some((kind, id, attempt, at)) = parsed else {
                history.garbage.push(line.to_owned());
                continue;
            };
            let runs = history.runs.entry(id.to_owned()).or_default();
            if kind == "start" {
                runs.push(Run { attempt, start: at, end: None });
            } else if let Some(run) = runs.iter_mut().rev().find(|run| run.attempt == attempt && run.end.is_none()) {
                run.end = Some(at);
            } else {
                history.garbage.push(line.to_owned());
            }
        }
        history
    }

    /// Holds the history against what submitters were told and why tasks started again.
    pub fn check(&self, acknowledged: &BTreeSet<String>, reasons: &Reasons) -> Findings {
        let mut findings = Findings { garbage: self.garbage.clone(), ..Findings::default() };
        for id in acknowledged {
            let finished = self.runs.get(id).is_some_and(|runs| runs.iter().any(|run| run.end.is_some()));
            if !finished {
                findings.lost.push(id.clone());
            }
        }
        for (id, runs) in &self.runs {
            if !acknowledged.contains(id) {
                findings.unknown.push(id.clone());
            }
            let attempts: BTreeSet<i32> = runs.iter().map(|run| run.attempt).collect();
            if attempts.len() < runs.len() {
                findings.doubled.push(id.clone());
            }
            let excused = reasons.excused.get(id);
            let latest = attempts.iter().max().copied().unwrap_or(0);
            let unexcused =
                |attempt: &i32| *attempt < latest && !excused.is_some_and(|excused| excused.contains(attempt));
            if attempts.iter().any(unexcused) {
                findings.unexcused.push(id.clone());
            }
            if let Some(last) = reasons.last_attempt.get(id)
                && !runs.iter().any(|run| run.attempt == *last && run.end.is_some())
            {
                findings.stale.push(id.clone());
            }
        }
        findings
    }

    /// How many runs there were in all.
    pub fn starts(&self) -> usize {
        self.runs.values().map(Vec::len).sum()
    }
}

impl Findings {
    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("lost", &self.lost),
            ("unknown", &self.unknown),
            ("doubled", &self.doubled),
            ("unexcused", &self.unexcused),
            ("stale", &self.stale),
            ("garbage", &self.garbage),
        ];
        for (name, list) in lists {
            if !list.is_empty() {
                writeln!(f, "{name}: {} of them, such as {}", list.len(), list[0])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn lost(id: &str, attempt: i32) -> Reasons {
        Reasons { excused: [(id.to_owned(), [attempt].into())].into(), last_attempt: BTreeMap::new() }
    }

    #[test]
    fn a_plain_history_is_clean() {
        let history = History::read("start a 1 10\nstart b 1 11\nend a 1 12\nend b 1 13\n");
        assert!(history.check(&acknowledged(&["a", "b"]), &Reasons::default()).is_empty());
    }

    #[test]
    fn lost_unknown_doubled_and_stale_are_found() {
        let history = History::read("start a 1 10\nstart b 1 11\nend b 1 12\nstart b 1 13\nend b 1 14\nnonsense\n");
        let reasons = Reasons { last_attempt: [("b".to_owned(), 2)].into(), ..Reasons::default() };
        let findings = history.check(&acknowledged(&["a", "c"]), &reasons);
        assert_eq!(findings.lost, ["a", "c"]);
        assert_eq!(findings.unknown, ["b"]);
        assert_eq!(findings.doubled, ["b"]);
        assert_eq!(findings.stale, ["b"]);
        assert_eq!(findings.garbage, ["nonsense"]);
    }

    #[test]
    fn a_second_attempt_needs_an_excuse() {
        let text = "start a 1 10\nstart a 2 20\nend a 2 21\nend a 1 30\n";
        let history = History::read(text);
        assert_eq!(history.check(&acknowledged(&["a"]), &Reasons::default()).unexcused, ["a"]);
        assert!(history.check(&acknowledged(&["a"]), &lost("a", 1)).is_empty());
    }
}
