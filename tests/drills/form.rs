//! What all drills have in common: marks with limits, figures beside them, phases, and the files and lines at the end.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use millrace_tests::tools;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{chart, judge::now_ns};

/// Something that has to hold.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Mark {
    name: String,
    value: f64,
    limit: f64,
    pass: bool,
}

/// The summary. Its form is the same for all drills.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    drill: &'a str,
    seed: u64,
    passed: bool,
    marks: &'a [Mark],
}

/// A stretch of the drill.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
}

/// A series of the timeline.
#[derive(Debug)]
pub(crate) struct Band {
    /// Its column in samples.csv.
    pub(crate) column: &'static str,
    /// What it is, for people.
    pub(crate) label: &'static str,
    /// Whether more of it is better, which says which of several points counts where they share a place, and its colour.
    pub(crate) more_is: More,
}

/// Whether more of something is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    Better,
    Worse,
    Neither,
}

/// A point of the timeline.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    /// Seconds since the drill began.
    pub(crate) seconds: f64,
    /// The stretch that it belongs to; empty between two.
    pub(crate) phase: String,
    /// A value for each band; none where nobody looked.
    pub(crate) values: Vec<Option<f64>>,
}

/// Everything that comes out of a drill.
pub(crate) struct Report {
    drill: &'static str,
    seed: u64,
    out: PathBuf,
    begin_ns: u64,
    marks: Vec<Mark>,
    figures: Map<String, Value>,
    phases: Vec<Phase>,
    bands: &'static [Band],
    points: Vec<Point>,
}

impl Report {
    pub(crate) fn new(drill: &'static str, seed: u64, out: &Path, bands: &'static [Band]) -> Result<Self> {
        std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
        let (marks, figures, phases, points) = Default::default();
        Ok(Self { drill, seed, out: out.to_owned(), begin_ns: now_ns(), marks, figures, phases, bands, points })
    }

    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Tells on standard error how far the drill is.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", (now_ns() - self.begin_ns) as f64 / 1e9);
    }

    // ── Marks and figures ───────────────────────────────────────────────────────────────────────────────────────────

    /// What must not be less than its limit.
    pub(crate) fn at_least(&mut self, name: impl Into<String>, value: f64, limit: f64) {
        self.mark(name.into(), value, limit, value >= limit);
    }

    /// What must not be more than its limit.
    pub(crate) fn at_most(&mut self, name: impl Into<String>, value: f64, limit: f64) {
        self.mark(name.into(), value, limit, value <= limit);
    }

    /// Counts of which all have to be there.
    pub(crate) fn all(&mut self, name: impl Into<String>, found: usize, of: usize) {
        self.mark(name.into(), found as f64, of as f64, found == of);
    }

    fn mark(&mut self, name: String, value: f64, limit: f64, pass: bool) {
        self.say(&format!("{} {name}: {value:.3}, limit {limit:.3}", if pass { "kept" } else { "MISSED" }));
        self.marks.push(Mark { name, value: rounded(value), limit, pass });
    }

    /// What is reported beside the marks.
    pub(crate) fn figure(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        self.say(&format!("{name}: {value}"));
        self.figures.insert(name.to_owned(), value);
    }

    // ── The timeline ────────────────────────────────────────────────────────────────────────────────────────────────

    /// A stretch begins; the one before has ended.
    pub(crate) fn phase(&mut self, name: &str) {
        self.end_phase();
        self.say(name);
        self.phases.push(Phase { name: name.to_owned(), from_ns: now_ns(), to_ns: u64::MAX });
    }

    /// The stretch has ended.
    pub(crate) fn end_phase(&mut self) {
        if let Some(phase) = self.phases.last_mut().filter(|phase| phase.to_ns == u64::MAX) {
            phase.to_ns = now_ns();
        }
    }

    /// The stretches until now.
    pub(crate) fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// Adds points to the timeline.
    pub(crate) fn timeline(&mut self, points: impl IntoIterator<Item = Point>) {
        self.points.extend(points);
    }

    /// A moment in seconds since the drill began.
    pub(crate) fn seconds(&self, at_ns: u64) -> f64 {
        at_ns.saturating_sub(self.begin_ns) as f64 / 1e9
    }

    /// The stretch to which a moment belongs.
    pub(crate) fn phase_at(&self, at_ns: u64) -> String {
        let within = |phase: &&Phase| (phase.from_ns..phase.to_ns).contains(&at_ns);
        self.phases.iter().rfind(within).map(|phase| phase.name.clone()).unwrap_or_default()
    }

    // ── The end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Writes the files, draws the charts and prints the summary as the last line. Returns whether every mark was kept.
    pub(crate) fn finish(self) -> Result<bool> {
        let passed = !self.marks.is_empty() && self.marks.iter().all(|mark| mark.pass);
        let summary = Summary { drill: self.drill, seed: self.seed, passed, marks: &self.marks };
        self.write("summary.json", &(serde_json::to_string_pretty(&summary)? + "\n"))?;
        self.write("figures.json", &(serde_json::to_string_pretty(&self.figures)? + "\n"))?;
        self.write("samples.csv", &self.csv())?;
        self.draw();
        let colours = std::io::stdout().is_terminal();
        let mut text = chart::timeline(self.bands, &self.points, colours);
        text.push_str(&chart::marks(&self.table(), colours));
        let line = serde_json::to_string(&summary)?;
        writeln!(std::io::stdout().lock(), "{text}{line}").context("writing the summary")?;
        Ok(passed)
    }

    fn table(&self) -> Vec<(String, f64, f64, bool)> {
        self.marks.iter().map(|mark| (mark.name.clone(), mark.value, mark.limit, mark.pass)).collect()
    }

    fn csv(&self) -> String {
        let columns: Vec<&str> = self.bands.iter().map(|band| band.column).collect();
        let mut text = format!("seconds,phase,{}\n", columns.join(","));
        for Point { seconds, phase, values } in &self.points {
            let values: Vec<String> =
                values.iter().map(|value| value.map(|value| rounded(value).to_string()).unwrap_or_default()).collect();
            text.push_str(&format!("{seconds:.3},{phase},{}\n", values.join(",")));
        }
        text
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Has Python draw the timeline, when it was installed (`make drill` does so).
    fn draw(&self) {
        let script = tools::repository().join("tests/drills/plot.py");
        let folder = std::env::var_os("MILLRACE_TOOLS").map(PathBuf::from);
        let folder = folder.unwrap_or_else(|| tools::repository().join("target/tools"));
        let drawn = Command::new(folder.join("venv/bin/python")).arg(script).arg(&self.out).status();
        if !drawn.is_ok_and(|status| status.success()) {
            self.say("no timeline.png: `make drill` installs what draws it");
        }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// A duration as a figure in milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1000.0)
}
