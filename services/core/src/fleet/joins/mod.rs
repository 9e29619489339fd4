//! How long a node may take to join, learnt from the launches of its pool and zone.
//!
//! Three rules stand between a slow node and its end, because a node that is ended while it boots costs more than one that is
//! waited for (the incident of 8 November 2021 in the list of incidents):
//!
//! 1. The grace: what hardly any node has exceeded of late, with a margin. Launches still under way count (right-censored), so that a
//!    slow-down shows before the first slow node has joined.
//! 2. Neighbours: a node is late by itself only when those launched just before it and just after it have mostly joined, and it has taken
//!    longer than any of them makes likely. A node among slow ones is not late, whatever the grace says; and while nothing launched
//!    after it can be judged, it is only doubtful: what replaces it will tell.
//! 3. Late together: when fewer than half of the newest launches that had the grace's time have joined, the estimate is wrong, not the
//!    nodes, and none should be ended.
//!
//! All of them end at the pool's longest join time, after which a node is given up.

mod survival;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use survival::{Assumed, Curve, Sample};

use crate::{id::NodeId, time::Timestamp};

/// With fewer joins than this nothing is learnt: a node may take as long as the pool allows.
pub const LEAST_JOINS: usize = 5;

/// The grace is learnt from this many of the newest launches that ended, and from all that are under way (the newest [`MOST_PENDING`]).
pub const LEARNT_FROM: usize = 256;

/// Of the launches under way this many of the newest count.
pub const MOST_PENDING: usize = 10_000;

/// Ended launches that are remembered as neighbours of others, at most; the oldest are forgotten first.
const REMEMBERED: usize = 4096;

/// Ended launches beyond [`LEARNT_FROM`] are forgotten after this long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2 * 3600);

/// The share of the nodes that join which the grace covers before its margin.
const COVERED: f64 = 0.99;

/// What the grace gives beyond that.
const MARGIN: f64 = 1.5;

/// The grace is also at least this many standard deviations above the mean of the newest (logarithmic) join times. Beyond it comes about
/// one healthy node in 30,000, which is then doubtful for a while.
const DOUBTFUL: f64 = 4.0;

/// Likewise, above the mean of its neighbours, for a node to be late. Beyond it comes about one healthy node in 3,000,000.
const LATE: f64 = 5.0;

/// The level of join times is that of this many of the newest joins.
const LEVEL: usize = 32;

/// Neighbours on each side that a late node is compared with.
const NEIGHBOURS: usize = 16;

/// What the pool's spread of join times is worth in observations, beside that of a node's neighbours.
const OWN_SPREAD: f64 = 8.0;

/// Neighbours launched after it that must have joined before a node is late by itself.
const OVERTAKEN_BY: usize = 3;

/// Of this many of the newest launches that had the grace's time, half must have joined.
const COHORT: usize = 24;

/// With fewer late nodes than this they are not called late together.
const TOGETHER: usize = 3;

/// The launches of one pool and zone. It grows with the launches under way, and by at most 4,096 that ended (about 100 bytes each).
#[derive(Debug, Clone, Default)]
pub struct Joins {
    /// Launches under way, in launch order; with them when their boot last went forward.
    pending: BTreeMap<Launch, Option<Timestamp>>,
    /// Launches that ended, in launch order.
    ended: BTreeMap<Launch, Fate>,
    /// When each of them was launched.
    launched: BTreeMap<NodeId, Timestamp>,
}

/// Launches sort by time; those of one call, which share a time, by node.
type Launch = (Timestamp, NodeId);

/// How a launch ended.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// It joined at this age.
    Joined(Duration),
    /// It was known to be dead, or given up, at this age: it had not joined by then.
    Failed(Duration),
}

/// How long nodes may take to join, as of one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Grace {
    /// A node that has taken longer is doubtful.
    pub grace: Duration,
    /// A node that has taken longer is given up. The pool's.
    pub max: Duration,
    /// Half of the nodes that join have joined by then; none until enough is known.
    pub median: Option<Duration>,
    /// Joins that it was learnt from.
    pub joins: u32,
    /// Launches still under way, which count as well.
    pub pending: u32,
    /// Those of them that have taken longer than the grace.
    pub late: u32,
    /// So many are late that the estimate is taken to be wrong: none should be ended for it, except at `max`.
    pub late_together: bool,
    /// The spread of join times, as a standard deviation of their logarithms, rather too large than too small.
    pub spread: f64,
}

/// How a node that has not joined stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lateness {
    /// It is within the grace, or it is not under way.
    InTime,
    /// It has taken longer than the grace, but so have its neighbours, or nothing launched after it has had the time to tell. It is
    /// not to be counted on, and not to be ended.
    Doubtful,
    /// It has taken longer, and its neighbours on both sides have joined. It may be ended unless many are late together.
    Late,
    /// It has taken as long as the pool allows.
    Over,
}

impl Joins {
    /// A launch: the provider has taken the call for this node. Telling it twice keeps the first time.
    pub fn launched(&mut self, node: NodeId, at: Timestamp) {
        if let Entry::Vacant(place) = self.launched.entry(node) {
            place.insert(at);
            self.pending.insert((at, node), None);
        }
    }

    /// Its boot has gone forward: from then on it has the whole grace again, up to the pool's longest.
    pub fn progressed(&mut self, node: NodeId, at: Timestamp) {
        let Some(launched) = self.launched.get(&node) else { return };
        if let Some(progressed) = self.pending.get_mut(&(*launched, node)) {
            *progressed = (*progressed).max(Some(at));
        }
    }

    /// It has joined; also one that had been given up, from which most is to be learnt.
    pub fn joined(&mut self, node: NodeId, at: Timestamp) {
        let Some(launched) = self.launched.get(&node).copied() else { return };
        let before = self.ended.get(&(launched, node));
        // Its first join is the one that took so long, not the one after a restart.
        if !matches!(before, Some(Fate::Joined(_))) {
            self.end(launched, node, Fate::Joined(at.since(launched)), at);
        }
    }

    /// It will not join: the provider or its boot said so, or it was given up.
    pub fn failed(&mut self, node: NodeId, at: Timestamp) {
        let Some(launched) = self.launched.get(&node).copied() else { return };
        if self.pending.contains_key(&(launched, node)) {
            self.end(launched, node, Fate::Failed(at.since(launched)), at);
        }
    }

    /// It is off the books. One that was cancelled under way tells nothing; what became of any other is remembered.
    pub fn forget(&mut self, node: NodeId) {
        if let Some(launched) = self.launched.get(&node).copied()
            && self.pending.remove(&(launched, node)).is_some()
        {
            self.launched.remove(&node);
        }
    }

    fn end(&mut self, launched: Timestamp, node: NodeId, fate: Fate, at: Timestamp) {
        self.pending.remove(&(launched, node));
        self.ended.insert((launched, node), fate);
        let old = at.before(FORGOTTEN_AFTER);
        while self.ended.len() > LEARNT_FROM
            && self.ended.first_key_value().is_some_and(|(first, _)| self.ended.len() > REMEMBERED || first.0 < old)
        {
            if let Some(((_, node), _)) = self.ended.pop_first() {
                self.launched.remove(&node);
            }
        }
    }

    /// How long nodes may take to join, between the pool's bounds.
    pub fn grace(&self, min: Duration, max: Duration, now: Timestamp) -> Grace {
        let (samples, logs) = self.samples(now);
        let joins = logs.len();
        let spread = survival::upper_spread(&logs);
        let mut grace = Grace {
            grace: max,
            max,
            median: None,
            joins: u32::try_from(joins).unwrap_or(u32::MAX),
            pending: u32::try_from(self.pending.len()).unwrap_or(u32::MAX),
            late: 0,
            late_together: false,
            spread,
        };
        if joins >= LEAST_JOINS {
            let curve = Curve::of(samples);
            grace.median = curve.quantile(0.5).map(Duration::from_secs_f64);
            let covered = curve.quantile(COVERED).unwrap_or(f64::INFINITY) * MARGIN;
            let level = &logs[joins.saturating_sub(LEVEL)..];
            let likely = survival::limit(level, spread, DOUBTFUL).unwrap_or(f64::INFINITY);
            grace.grace = seconds(covered.max(likely)).max(min).min(max);
        }
        let late = self.pending.iter().filter(|((launched, _), boot)| now >= grace.deadline(*launched, **boot)).count();
        grace.late = u32::try_from(late).unwrap_or(u32::MAX);
        grace.late_together = self.are_late_together(grace.grace, now);
        grace
    }

    /// The launches to learn from, and the logarithms of the join times among them in launch order.
    fn samples(&self, now: Timestamp) -> (Vec<Sample>, Vec<f64>) {
        let pending = self.pending.keys().rev().take(MOST_PENDING);
        let mut samples: Vec<Sample> =
            pending.map(|(launched, _)| Sample { age: now.since(*launched).as_secs_f64(), joined: false }).collect();
        let mut logs = Vec::with_capacity(LEARNT_FROM);
        for fate in self.ended.values().rev().take(LEARNT_FROM) {
            match fate {
                Fate::Joined(age) => {
                    samples.push(Sample { age: age.as_secs_f64(), joined: true });
                    logs.push(survival::log(age.as_secs_f64()));
                }
                Fate::Failed(age) => samples.push(Sample { age: age.as_secs_f64(), joined: false }),
            }
        }
        logs.reverse();
        (samples, logs)
    }

    fn are_late_together(&self, grace: Duration, now: Timestamp) -> bool {
        // Beyond every node that was launched at that very moment.
        let newest = (now.before(grace), NodeId(uuid::Uuid::max()));
        let cohort = self.earlier(newest, COHORT);
        let joined = cohort.iter().flatten().count();
        cohort.len() - joined >= TOGETHER && joined * 2 < cohort.len()
    }

    /// When the node becomes doubtful; none when it is not under way.
    pub fn deadline(&self, node: NodeId, grace: &Grace) -> Option<Timestamp> {
        let launched = *self.launched.get(&node)?;
        let boot = *self.pending.get(&(launched, node))?;
        Some(grace.deadline(launched, boot))
    }

    /// How a node that has not joined stands. `grace` should be that of the same round.
    pub fn lateness(&self, node: NodeId, grace: &Grace, now: Timestamp) -> Lateness {
        let Some(deadline) = self.deadline(node, grace) else { return Lateness::InTime };
        let Some(launched) = self.launched.get(&node).copied() else { return Lateness::InTime };
        if now >= launched.after(grace.max) {
            Lateness::Over
        } else if now < deadline {
            Lateness::InTime
        } else if self.stands_alone((launched, node), grace, now) {
            Lateness::Late
        } else {
            Lateness::Doubtful
        }
    }

    /// Whether the node may be ended for not having joined, unless many are late together: it is late by itself, or has taken as long
    /// as the pool allows.
    pub fn is_late(&self, node: NodeId, grace: &Grace, now: Timestamp) -> bool {
        self.lateness(node, grace, now) >= Lateness::Late
    }

    /// Whether the node has taken longer than the grace, alone or among others: it should not be counted on.
    pub fn is_doubtful(&self, node: NodeId, grace: &Grace, now: Timestamp) -> bool {
        self.lateness(node, grace, now) >= Lateness::Doubtful
    }

    /// Whether its neighbours have joined, in times that make its own unlikely.
    fn stands_alone(&self, launch: Launch, grace: &Grace, now: Timestamp) -> bool {
        let earlier = self.earlier(launch, NEIGHBOURS);
        let later = self.later(launch, grace.grace, now);
        let (before, after) = (logs(&earlier), logs(&later));
        // Slow nodes are often also more spread out than the pool's have been so far.
        let together: Vec<f64> = before.iter().rev().chain(&after).copied().collect();
        let spread = survival::spread(&together, Assumed { spread: grace.spread, worth: OWN_SPREAD }).max(grace.spread);
        let exceeds = |logs: &[f64]| {
            survival::limit(logs, spread, LATE).is_some_and(|limit| now.since(launch.0).as_secs_f64() > limit)
        };
        // Nothing may have been launched before the first node; but what is launched after a node has to tell, since those before it
        // say nothing about a slow-down that began with it.
        (earlier.len() < TOGETHER || have_joined(&earlier, before.len(), 1) && exceeds(&before))
            && have_joined(&later, after.len(), OVERTAKEN_BY)
            && exceeds(&after)
    }

    /// The nearest launches before this one, the nearest first: their join times, or none when they have not joined. Those known to
    /// be dead are left out, since they say nothing about how long the others take.
    fn earlier(&self, launch: Launch, count: usize) -> Vec<Option<Duration>> {
        let pending = self.pending.range(..launch).rev().take(count).map(|(key, _)| (*key, None));
        let joined = self.ended.range(..launch).rev().filter_map(joined).take(count);
        let mut nearest: Vec<(Launch, Option<Duration>)> = pending.chain(joined).collect();
        nearest.sort_unstable_by_key(|(key, _)| std::cmp::Reverse(*key));
        nearest.into_iter().take(count).map(|(_, age)| age).collect()
    }

    /// The nearest launches after this one which have had the grace's time, likewise.
    ///
    /// Younger ones do not count even if they have joined: of them only the fast ones can have.
    fn later(&self, launch: Launch, grace: Duration, now: Timestamp) -> Vec<Option<Duration>> {
        let until = now.before(grace);
        let timely = |key: &Launch| *key != launch && key.0 <= until;
        let pending = self.pending.range(launch..).map(|(key, _)| (*key, None)).filter(|(key, _)| *key != launch);
        let pending = pending.take_while(|(key, _)| timely(key)).take(NEIGHBOURS);
        let ended = self.ended.range(launch..).take_while(|(key, _)| timely(key));
        let mut nearest: Vec<(Launch, Option<Duration>)> =
            pending.chain(ended.filter_map(joined).take(NEIGHBOURS)).collect();
        nearest.sort_unstable_by_key(|(key, _)| *key);
        nearest.into_iter().take(NEIGHBOURS).map(|(_, age)| age).collect()
    }
}

impl Grace {
    fn deadline(&self, launched: Timestamp, boot: Option<Timestamp>) -> Timestamp {
        let from = boot.map_or(launched, |boot| boot.max(launched));
        from.after(self.grace).min(launched.after(self.max))
    }
}

fn joined((key, fate): (&Launch, &Fate)) -> Option<(Launch, Option<Duration>)> {
    match fate {
        Fate::Joined(age) => Some((*key, Some(*age))),
        Fate::Failed(_) => None,
    }
}

/// The logarithms of the join times among these.
fn logs(neighbours: &[Option<Duration>]) -> Vec<f64> {
    neighbours.iter().flatten().map(|age| survival::log(age.as_secs_f64())).collect()
}

/// Whether a third of these have joined, and at least so many of them. A third and not half, so that among launches of which 30 % are
/// dead hardly a dead one is taken for a slow one of many.
fn have_joined(neighbours: &[Option<Duration>], joined: usize, least: usize) -> bool {
    joined >= least.max(neighbours.len().div_ceil(3))
}

/// A span of so many seconds; the longest there is when it does not fit.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}
