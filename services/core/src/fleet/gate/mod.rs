//! Whether launches of a pool go on, or have all failed since a moment.
//!
//! A circuit breaker (Nygard, "Release It!", 2007) over launches, which take minutes to tell. Its failure is a launch that is known
//! to have failed; one that has merely not joined yet is none. It keeps a bad image from eating a fleet: on 10 October 2018 every new
//! machine of a CI service failed to join, which nobody noticed until load rose.
//!
//! - *Open*: launches go on.
//! - *Proving*: nothing of late shows that launches join, so that only a few may be made until one does.
//! - *Stopped*: all launches since a moment have failed. One probe at a time tells when that is over; it leads back through *proving*,
//!   because one that joined among so many that failed may have been lucky. Once another one joins, launches go on.
//!
//! What is judged are the launches made after the newest one that joined. So failures in one zone do not stop launches that join in
//! another, and a share of dead ones does not stop the others: the run of failures that it takes is longer where failures are common.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{fleet::Pool, id::NodeId, time::Timestamp};

/// The wait before the first probe.
pub const FIRST_PROBE: Duration = Duration::from_secs(30);

/// The longest wait before a probe, and how long one that neither joins nor fails keeps the next from being made.
pub const LAST_PROBE: Duration = Duration::from_secs(600);

/// This many failures in a row stop launches, or the pool's `unproven` when that is less.
pub const FAILURES: u32 = 10;

/// Where failures are common, so many in a row as are unlikely to come by chance: one in 100,000.
const BY_CHANCE: f64 = 1e-5;

/// How common failures are is known after this many launches.
const LEAST_KNOWN: usize = 10;

/// Failures are remembered up to this many, and as many other ends; the oldest are forgotten first.
const REMEMBERED: usize = 256;

/// An error is remembered up to this many bytes.
const ERROR_BYTES: usize = 256;

/// The launches of one pool. It grows with the launches under way, which the pool's size bounds, and by at most 512 that ended.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    under_way: BTreeMap<NodeId, Timestamp>,
    /// When the newest launch that joined was launched.
    newest: Option<Timestamp>,
    /// Those launched after it that failed, the latest to fail last.
    failures: VecDeque<Failure>,
    /// Of the others that ended whether each failed, the latest to end last. They are kept apart, because the joins of many from before
    /// must not push out what failed since.
    others: VecDeque<bool>,
    /// When a launch last joined.
    joined_at: Option<Timestamp>,
    /// When a probe joined, until a launch made since has joined too.
    reopened: Option<Timestamp>,
    stop: Option<Stop>,
}

#[derive(Debug, Clone)]
struct Failure {
    launched: Timestamp,
    error: String,
}

#[derive(Debug, Clone)]
struct Stop {
    since: Timestamp,
    back_off: Duration,
    next_probe: Timestamp,
    probe: Option<(NodeId, Timestamp)>,
}

/// The failures among the launches made after the newest one that joined.
#[derive(Debug, Clone, Copy)]
struct Run {
    count: u32,
    /// When the first of them was launched.
    first: Timestamp,
    /// When the last of them was.
    last: Timestamp,
}

/// What the gate lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance {
    /// How many more may be launched now; `u32::MAX` when nothing limits them.
    pub launches: u32,
    /// The state.
    pub state: GateState,
    /// Why, in one line; the failing launches' own error when they fail.
    pub reason: String,
}

/// Whether launches go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateState {
    /// They do.
    Open,
    /// Only a few, until one has joined.
    Proving,
    /// All since a moment have failed.
    Stopped {
        /// Since when they are stopped.
        since: Timestamp,
        /// When the next probe may start.
        next_probe: Timestamp,
    },
}

impl Gate {
    /// A gate that knows of no launch.
    pub fn new() -> Self {
        Self::default()
    }

    /// A launch is under way. While launches are stopped it is the probe.
    pub fn launched(&mut self, node: NodeId, at: Timestamp) {
        self.under_way.insert(node, at);
        // Launches from before the stop that are told late, or again after a change of leader, are no probes.
        if let Some(stop) = self.stop.as_mut().filter(|stop| at >= stop.since) {
            if stop.probe.is_some() {
                // The one before has told nothing for so long that it must have failed.
                stop.back_off(at);
            }
            stop.probe = Some((node, at));
        }
    }

    /// A launch has joined.
    pub fn joined(&mut self, node: NodeId, launched_at: Timestamp, at: Timestamp) {
        self.under_way.remove(&node);
        let run = self.run();
        self.joined_at = self.joined_at.max(Some(at));
        push(&mut self.others, false);
        if self.newest.is_none_or(|newest| newest < launched_at) {
            self.newest = Some(launched_at);
            let before = self.failures.len();
            self.failures.retain(|failure| failure.launched > launched_at);
            (self.failures.len()..before).for_each(|_| push(&mut self.others, true));
        }
        if self.reopened.is_some_and(|reopened| launched_at >= reopened) {
            self.reopened = None;
        }
        // A join of a launch older than the first that failed says nothing about those since.
        if self.stop.is_some() && run.is_none_or(|run| launched_at > run.first) {
            self.stop = None;
            self.reopened = Some(at);
        }
    }

    /// A launch has failed, with its own words.
    pub fn failed(&mut self, node: NodeId, launched_at: Timestamp, at: Timestamp, error: &str) {
        self.under_way.remove(&node);
        if self.newest.is_some_and(|newest| launched_at <= newest) {
            push(&mut self.others, true);
        } else {
            let error = if error.is_empty() { "no error was given" } else { error };
            let error = error[..error.floor_char_boundary(ERROR_BYTES)].into();
            push(&mut self.failures, Failure { launched: launched_at, error });
        }
        if let Some(stop) = &mut self.stop
            && stop.probe.is_some_and(|(probe, _)| probe == node)
        {
            stop.probe = None;
            stop.back_off(at);
        }
    }

    /// The node is off the books. A launch that was under way tells nothing; what became of any other is remembered.
    pub fn forgotten(&mut self, node: NodeId) {
        self.under_way.remove(&node);
        if let Some(stop) = &mut self.stop {
            stop.probe = stop.probe.filter(|(probe, _)| *probe != node);
        }
    }

    /// How many more may be launched now, and why. Launches that were decided and are not told yet ([`Gate::launched`]) are the caller's to
    /// subtract.
    pub fn allowance(&mut self, pool: &Pool, now: Timestamp) -> Allowance {
        let run = self.run();
        let proof = self.joined_at.filter(|at| self.reopened.is_none() && now < at.after(pool.proof_age));
        if self.stop.is_none() && run.is_some_and(|run| self.must_stop(run, pool, proof.is_some())) {
            let next_probe = now.after(FIRST_PROBE);
            self.stop = Some(Stop { since: now, back_off: FIRST_PROBE, next_probe, probe: None });
        }
        if let (Some(stop), Some(run)) = (&self.stop, run) {
            return self.probing(stop, run, now);
        }
        let most = pool.unproven.max(1);
        let until = format!("at most {most} launches until one joins");
        let reason = match (proof, run.filter(|run| self.looks_bad(*run, pool))) {
            (_, Some(run)) => format!("{}; {until}", self.words(run)),
            (Some(at), None) => {
                let reason = format!("the last launch joined at {}", utc(at));
                return Allowance { launches: u32::MAX, state: GateState::Open, reason };
            }
            (None, None) if self.reopened.is_some() => {
                format!("a probe has joined since launches were stopped: {until}")
            }
            (None, None) => format!("no launch has joined within {} min: {until}", pool.proof_age.as_secs() / 60),
        };
        // Those that failed count too, or else each of them would make room for the next.
        let made = self.under_way.len() + run.map_or(0, |run| run.count as usize);
        let launches = most.saturating_sub(u32::try_from(made).unwrap_or(u32::MAX));
        Allowance { launches, state: GateState::Proving, reason }
    }

    fn probing(&self, stop: &Stop, run: Run, now: Timestamp) -> Allowance {
        // A probe that tells nothing must not keep launches stopped for as long as a node may take to join.
        let next_probe = match stop.probe {
            Some((_, at)) => stop.next_probe.max(at.after(LAST_PROBE)),
            None => stop.next_probe,
        };
        let state = GateState::Stopped { since: stop.since, next_probe };
        Allowance { launches: u32::from(now >= next_probe), state, reason: self.words(run) }
    }

    /// The failures since the newest launch that joined.
    fn run(&self) -> Option<Run> {
        let launched = || self.failures.iter().map(|failure| failure.launched);
        let count = u32::try_from(self.failures.len()).unwrap_or(u32::MAX);
        Some(Run { count, first: launched().min()?, last: launched().max()? })
    }

    /// Launches under way that were made among those that failed.
    fn among(&self, run: Run) -> u32 {
        let among = self.under_way.values().filter(|launched| (run.first..=run.last).contains(*launched)).count();
        u32::try_from(among).unwrap_or(u32::MAX)
    }

    /// Whether they are so many that it is not chance, and hardly any launch among them may still join.
    fn must_stop(&self, run: Run, pool: &Pool, proven: bool) -> bool {
        // How common failures were before tells nothing when no launch has joined for long.
        let enough = if proven { self.enough(pool) } else { pool.unproven.clamp(1, FAILURES) };
        run.count >= enough && self.among(run) <= run.count / 4
    }

    /// Whether they are so many, and those under way among them fewer than is usual. Launches need not stop for it, but should not all be
    /// made before the first of them tells.
    fn looks_bad(&self, run: Run, pool: &Pool) -> bool {
        let share = f64::from(run.count) / f64::from(run.count + self.among(run));
        run.count >= self.enough(pool) && self.usual_share().is_none_or(|usual| share > 2.0 * usual)
    }

    /// How many failures in a row are not chance.
    fn enough(&self, pool: &Pool) -> u32 {
        let unlikely = |share: f64| (BY_CHANCE.ln() / share.ln()).ceil() as u32;
        let by_chance = self.usual_share().filter(|share| *share > 0.0).map_or(0, unlikely);
        pool.unproven.clamp(1, FAILURES).max(by_chance.min(4 * FAILURES))
    }

    /// The share of launches that fail when others join; none until it is known.
    fn usual_share(&self) -> Option<f64> {
        let failed = self.others.iter().filter(|failed| **failed).count();
        (self.others.len() >= LEAST_KNOWN).then(|| failed as f64 / self.others.len() as f64)
    }

    /// The failures in one line, with the error that most of them had.
    fn words(&self, run: Run) -> String {
        let mut errors: BTreeMap<&str, u32> = BTreeMap::new();
        for failure in &self.failures {
            *errors.entry(&failure.error).or_default() += 1;
        }
        // Of equally frequent ones always the same, so that the line does not change from round to round.
        let Some((error, count)) = errors.into_iter().rev().max_by_key(|(_, count)| *count) else {
            return String::new();
        };
        let more = if run.count as usize >= REMEMBERED { " or more" } else { "" };
        let all = match run.count {
            1 => "the launch".to_owned(),
            // Those under way may still join, and those that join after them may have been launched among them.
            count if self.among(run) > count / 4 => format!("{count}{more} launches"),
            count => format!("all {count}{more} launches"),
        };
        let of_them = if count < run.count { format!(", {count} of them") } else { String::new() };
        format!("{all} since {} failed{of_them}: {error}", utc(run.first))
    }
}

impl Stop {
    fn back_off(&mut self, at: Timestamp) {
        self.back_off = (2 * self.back_off).min(LAST_PROBE);
        self.next_probe = at.after(self.back_off);
    }
}

/// Remembers one more, at the cost of the oldest.
fn push<T>(all: &mut VecDeque<T>, one: T) {
    if all.len() == REMEMBERED {
        all.pop_front();
    }
    all.push_back(one);
}

/// The moment for people: `2018-10-10 12:04:31 UTC`.
///
/// The date is computed as in Hinnant, "chrono-Compatible Low-Level Date Algorithms", 2013.
fn utc(at: Timestamp) -> String {
    let seconds = at.0.div_euclid(1_000_000);
    let (day, second) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + carry;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}
