//! How many nodes a pool should have.
//!
//! The queues ask for slots by Little's law (J. D. C. Little, "A Proof for the Queuing Formula: L = λW", Operations Research, 1961):
//! λ tasks a second that run for s seconds keep λ·s slots busy, and λ a second that wait for w seconds are a queue of λ·w. A queue
//! longer than λ times the target wait is more than the flow explains, and is to be worked off within that target.
//!
//! Up at once, down late: a pool shrinks only to the greatest size that was asked for in the last `scale_down_after`, as the
//! stabilization window of Kubernetes' HorizontalPodAutoscaler does, and ignores differences of less than a tenth, as its tolerance does.

#[cfg(test)]
mod tests;
mod window;

use std::time::Duration;

use window::Window;

use crate::{fleet::Pool, time::Timestamp};

/// A difference of less than this share of the present size is none, unless tasks wait for too long.
const TOLERANCE: f64 = 0.1;

/// The age of the oldest task makes the backlog count for at most this many times as much.
const MOST_URGENT: f64 = 2.0;

/// What the queues of a pool ask of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Demand {
    /// Tasks that wait, this pool's share of them.
    pub waiting: f64,
    /// How long the longest-waiting has waited; none when none waits.
    pub oldest_age: Option<Duration>,
    /// Tasks that its nodes run.
    pub running: f64,
    /// Tasks a second that come in; none while that is not known.
    pub arrival_rate: Option<f64>,
    /// How long a task runs; none while that is not known.
    pub run_time: Option<Duration>,
}

/// One step of how a size came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was applied: `deleting`, `queues`, `hysteresis`, `min`, `schedule`, `max`, `step` or `override`.
    pub rule: &'static str,
    /// The size after it.
    pub nodes: u32,
    /// With its figures, for people.
    pub detail: String,
}

/// A size, and how it came about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Size {
    /// How many nodes there should be.
    pub desired: u32,
    /// How many there would be without what was set by hand.
    pub without_override: u32,
    /// The steps in the order in which they were applied: `queues`, and the others that changed something.
    pub steps: Vec<Step>,
}

/// The sizes of one pool over time. Some forty numbers at the most.
#[derive(Debug, Clone, Default)]
pub struct SizePolicy {
    window: Window,
}

impl SizePolicy {
    /// The size of the pool now, of which `current` nodes work or are still expected to.
    ///
    /// Demand that is not known, or stale, holds the present size. The first call takes `current` for what was asked for until then, so
    /// that a new leader does not drain what it has not watched.
    pub fn desire(&mut self, pool: &Pool, demand: Option<&Demand>, current: u32, now: Timestamp) -> Size {
        if pool.deleting {
            let detail = "the pool is being deleted".to_owned();
            return Size { desired: 0, without_override: 0, steps: vec![Step { rule: "deleting", nodes: 0, detail }] };
        }
        let mut steps = Steps(Vec::new());
        match demand {
            Some(demand) => {
                let asked = asked(pool, demand);
                steps.0.push(Step { rule: "queues", nodes: asked.nodes(), detail: asked.detail(pool, demand) });
                self.steady(pool, &asked, current, now, &mut steps);
            }
            None => {
                // What is not known may be as much as there is: nothing shrinks for a while after it is known again, either.
                self.window.note(current, pool.scale_down_after, now);
                let detail = format!("demand is not known: {} are kept", count(current));
                steps.0.push(Step { rule: "queues", nodes: current, detail });
            }
        }
        bound(pool, now, &mut steps);
        pace(pool, current, &mut steps);
        let without_override = steps.nodes();
        by_hand(pool, now, &mut steps);
        Size { desired: steps.nodes(), without_override, steps: steps.0 }
    }

    /// Up at once, down to the most that was asked for in a while, and not for a small difference.
    fn steady(&mut self, pool: &Pool, asked: &Asked, current: u32, now: Timestamp, steps: &mut Steps) {
        let nodes = asked.nodes();
        let span = pool.scale_down_after;
        if self.window.is_empty() {
            self.window.note(current, span, now);
        }
        self.window.note(nodes, span, now);
        let most = self.window.most();
        if nodes < current && most > nodes {
            let held = most.min(current);
            steps.set("hysteresis", held, || {
                format!("{most} were asked for within the last {}: not fewer than {held} yet", time(span))
            });
        }
        let difference = steps.nodes().abs_diff(current);
        let small = f64::from(difference) < TOLERANCE * f64::from(current);
        if small && !asked.overdue {
            steps.set("hysteresis", current, || {
                format!("a difference of {difference} to {current} is too small to act on")
            });
        }
    }
}

/// What the queues ask for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// Slots that the flow keeps busy, or that are busy now.
    flow: f64,
    /// Tasks beyond those that wait for no longer than the target, in a flow like this one.
    beyond: f64,
    /// Slots that work them off.
    backlog: f64,
    /// All slots, within their bounds.
    slots: f64,
    /// Slots of a node.
    slots_per_node: f64,
    /// The oldest task has waited for longer than the target.
    overdue: bool,
}

/// Slots for the flow, and for what has gathered beyond it.
fn asked(pool: &Pool, demand: &Demand) -> Asked {
    let (waiting, running) = (figure(demand.waiting), figure(demand.running));
    let rate = figure(demand.arrival_rate.unwrap_or(0.0));
    let target = pool.target_wait.as_secs_f64().max(0.001);
    let age = demand.oldest_age.filter(|_| waiting > 0.0).unwrap_or_default().as_secs_f64();
    let overdue = age > target;
    let (flow, beyond, backlog) = match demand.run_time.map(|run_time| run_time.as_secs_f64()) {
        Some(run_time) => {
            // A queue as long as the flow makes one at the target wait needs no more than the flow does; unless it has waited too long.
            let beyond = if overdue { waiting } else { (waiting - rate * target).max(0.0) };
            // A slot starts one of them at once, and more only while they run for less than the target.
            let slots = beyond * (run_time / target).min(1.0) * (age / target).clamp(1.0, MOST_URGENT);
            ((rate * run_time).max(running), beyond, slots)
        }
        None => (running, waiting, waiting),
    };
    // Something that waits for too long needs a slot that is not taken, however short everything is.
    let least = if overdue { running + 1.0 } else { running };
    let slots = (flow + backlog).max(least).min(waiting + running).max(running);
    Asked { flow, beyond, backlog, slots, slots_per_node: f64::from(pool.slots.max(1)), overdue }
}

impl Asked {
    fn nodes(&self) -> u32 {
        // A hair less, so that sums of shares do not ask for another node by rounding. Casts saturate.
        (self.slots / self.slots_per_node - 1e-6).ceil() as u32
    }

    fn detail(&self, pool: &Pool, demand: &Demand) -> String {
        let mut detail = format!("{:.0} waiting, {:.0} running", figure(demand.waiting), figure(demand.running));
        match (demand.arrival_rate, demand.run_time) {
            (Some(rate), Some(run)) => detail += &format!(", {rate:.2}/s × {}", time(run)),
            (None, Some(run)) => detail += &format!(", each runs {}", time(run)),
            (_, None) => detail += ", run time not known: a slot for each",
        }
        if let Some(age) = demand.oldest_age.filter(|_| self.overdue) {
            detail += &format!(", the oldest for {} of {}", time(age), time(pool.target_wait));
        }
        detail += &format!(": {:.1} slots for the flow", self.flow);
        if self.backlog > 0.0 {
            detail += &format!(" and {:.1} for {:.0} more", self.backlog, self.beyond);
        }
        if self.slots < self.flow + self.backlog - 1e-6 {
            detail += &format!(", but no more than tasks: {:.1}", self.slots);
        }
        detail + &format!(", {} a node", self.slots_per_node)
    }
}

/// The pool's own bounds.
fn bound(pool: &Pool, now: Timestamp, steps: &mut Steps) {
    let min = pool.min.max(steps.nodes());
    steps.set("min", min, || format!("never fewer than {min}"));
    let scheduled = pool.scheduled_min(now).max(steps.nodes());
    steps.set("schedule", scheduled, || format!("not fewer than {scheduled} at this time of the week"));
    let max = pool.max.min(steps.nodes());
    steps.set("max", max, || format!("never more than {max}"));
}

/// No further from the present size than one round may go.
fn pace(pool: &Pool, current: u32, steps: &mut Steps) {
    let (up, down) = (pool.step_up.max(1), pool.step_down.max(1));
    let nodes = steps.nodes().clamp(current.saturating_sub(down), current.saturating_add(up));
    let more = nodes > current;
    steps.set("step", nodes, || match more {
        true => format!("at most {up} more than {current} in one round"),
        false => format!("at most {down} fewer than {current} in one round"),
    });
}

/// What was set by hand. It overrules everything before it, the pool's own bounds too.
fn by_hand(pool: &Pool, now: Timestamp, steps: &mut Steps) {
    let Some(by_hand) = pool.by_hand(now) else { return };
    let nodes = by_hand.desired.unwrap_or(steps.nodes());
    let nodes = nodes.max(by_hand.min.unwrap_or(0)).min(by_hand.max.unwrap_or(u32::MAX));
    steps.set("override", nodes, || format!("{}: {}", by_hand.owner, by_hand.reason));
}

/// The steps so far; the first is always there.
struct Steps(Vec<Step>);

impl Steps {
    fn nodes(&self) -> u32 {
        self.0.last().map_or(0, |step| step.nodes)
    }

    /// Notes a step if it changes something.
    fn set(&mut self, rule: &'static str, nodes: u32, detail: impl FnOnce() -> String) {
        if nodes != self.nodes() {
            self.0.push(Step { rule, nodes, detail: detail() });
        }
    }
}

/// A figure that may have been measured badly: never negative, nor not a number.
fn figure(value: f64) -> f64 {
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

fn count(nodes: u32) -> String {
    if nodes == 1 { "1 node".into() } else { format!("{nodes} nodes") }
}

/// A span for people: `0.4 s`, `40 s`, `12 min`.
fn time(span: Duration) -> String {
    match span.as_secs_f64() {
        seconds if seconds < 10.0 => format!("{} s", (seconds * 10.0).round() / 10.0),
        seconds if seconds < 600.0 => format!("{seconds:.0} s"),
        seconds => format!("{:.0} min", seconds / 60.0),
    }
}
