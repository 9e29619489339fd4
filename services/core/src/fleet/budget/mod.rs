//! How many calls an account at a provider takes, learnt from its refusals.
//!
//! A token bucket whose rate follows the provider's: additive increase and multiplicative decrease (Chiu and Jain, "Analysis of the
//! Increase and Decrease Algorithms for Congestion Avoidance", 1989), made gentle enough that a refusal comes with one call in thirty
//! or fewer, since each is one of the few that there are:
//!
//! - *The cut is as deep as the refusal shows.* At a refusal the provider's own bucket is empty, whatever its burst. If another comes
//!   after m calls at an even pace, its rate is between m and m + 1 parts in m + 1 of ours; and it is above a rate that has held for many
//!   calls after a refusal. Halving what is left finds it as bisection does, also after it has fallen.
//! - *Growth is quick up to the rate that was last refused, slow around it, and ever faster beyond*, as CUBIC's is around the window of
//!   its last loss (Ha, Rhee and Xu, "CUBIC: A New TCP-Friendly High-Speed TCP Variant", 2008): so that it stays close to a limit that
//!   lasts, and finds one that has risen within minutes.
//!
//! Only time in which calls were wanted counts, since a rate that nobody uses proves nothing.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::time::Timestamp;

/// Calls a second before anything is known.
pub const INITIAL_PER_S: f64 = 1.0;

/// Calls a second at the least: one in 50 seconds still finds out that a provider takes calls again.
pub const FLOOR_PER_S: f64 = 0.02;

/// Calls a second at the most.
pub const CEILING_PER_S: f64 = 100.0;

/// A refusal at an even pace leaves at most this share of the rate.
const JUST_BELOW: f64 = 0.97;

/// A refusal at an even pace of which nothing else is known is taken to leave more than this share of the rate, and so cuts it to half.
const LEAST_LEFT: f64 = 0.25;

/// A refusal while the rate grows leaves this share of it: about as far as it has overshot a limit that allows no burst.
const OVERSHOT: f64 = 0.96;

/// A refusal is dear if the provider asks to be left alone for the time of so many calls.
const DEAR: f64 = 5.0;

/// So far the rate may have overshot a limit that allows bursts.
const BURST_OVERSHOT: f64 = 1.6;

/// After a refusal from which the limit is known to within a tenth the rate stays as it is for so many calls; after another one only for
/// [`UNSURE_CALLS`] more than came before it.
const STEADY_CALLS: u32 = 15;

/// See [`STEADY_CALLS`].
const UNSURE_CALLS: u32 = 3;

/// Seconds for which it then stays at least, or else a fast account would be refused all the time.
const STEADY_S: f64 = 10.0;

/// And times as long as the provider asks to be left alone after a refusal, so that this costs little.
const STEADY_PAUSES: f64 = 60.0;

/// Calls do not keep it steady for more than so many seconds, or else a slow account would never find out that its limit has risen.
const STEADY_CALLS_S: f64 = 240.0;

/// Up to this share of the rate that was last refused, growth is quick.
const NEAR: f64 = 0.9;

/// Growth with each call: the quick one, and the slow one, which grows by itself with every so many calls.
const GROWTH: (f64, f64, f64) = (0.02, 0.003, 30.0);

/// Growth per second is at most this.
const GROWTH_PER_S: f64 = 0.1;

/// When it has lasted for so many seconds, growth per second is at least the other times the seconds since: 2.5-fold in a minute, a
/// thousandfold in three.
const QUICKENS: (f64, f64) = (60.0, 0.0005);

/// While nothing was ever refused the rate grows by this per second.
const GROWTH_UNREFUSED: f64 = 0.35;

/// Unused calls are kept for this long, and one is always.
const BURST: Duration = Duration::from_millis(100);

/// Unused calls are never more than this.
const MOST_BURST: f64 = 10.0;

/// Refusals within this long of a cut, of calls that were under way at it, say nothing new.
const SETTLES: Duration = Duration::from_secs(10);

/// The calls to one account of a provider. A few dozen bytes.
#[derive(Debug, Clone)]
pub struct Budget {
    floor: f64,
    ceiling: f64,
    rate: f64,
    tokens: f64,
    filled_at: Timestamp,
    not_before: Option<Timestamp>,
    /// The last call that was made.
    taken_at: Option<Timestamp>,
    /// Calls that have not been answered.
    under_way: u32,
    /// A rate that held for many calls after a refusal, so that the limit was above it; 0 when none is known.
    good: f64,
    /// The least rate that was refused at an even pace, so that the limit was below it.
    bad: f64,
    since: Since,
}

/// What has happened since the last refusal.
#[derive(Debug, Clone, Copy, Default)]
struct Since {
    /// When it was; none before the first.
    refused_at: Option<Timestamp>,
    /// The rate that was refused, and the one that it was cut to.
    refused_rate: f64,
    even: f64,
    /// Calls under way at it, whose refusals count with it.
    ignore: u32,
    /// Calls taken by the provider since.
    taken: u32,
    /// Seconds since in which calls were wanted.
    seconds: f64,
    /// Seconds for which the rate stays as it is, and calls.
    steady: f64,
    steady_calls: u32,
    /// Seconds for which it has grown, and calls near the rate that was refused and beyond.
    grown: f64,
    near: f64,
}

impl Budget {
    /// A budget of `initial_per_s` calls a second, which never leaves the bounds.
    pub fn new(initial_per_s: f64, floor: f64, ceiling: f64, now: Timestamp) -> Self {
        // A floor of nothing would end all calls for ever.
        let floor = floor.max(1e-3);
        let ceiling = ceiling.max(floor);
        Self {
            floor,
            ceiling,
            // Not a clamp, which would keep what is not a number.
            rate: initial_per_s.max(floor).min(ceiling),
            tokens: 1.0,
            filled_at: now,
            not_before: None,
            taken_at: None,
            under_way: 0,
            good: 0.0,
            bad: f64::INFINITY,
            since: Since::default(),
        }
    }

    /// How many calls may be made now.
    pub fn available(&mut self, now: Timestamp) -> u32 {
        self.fill(now);
        if self.not_before.is_some_and(|at| now < at) {
            return 0;
        }
        // A hair more, so that a rate that divides the time between two looks does not lose every other call to rounding.
        (self.tokens + 1e-6) as u32
    }

    /// Takes one; false when there is none. Each call that is made must end as [`Budget::succeeded`] or [`Budget::throttled`].
    pub fn take(&mut self, now: Timestamp) -> bool {
        if self.available(now) == 0 {
            return false;
        }
        self.grow(now);
        self.tokens -= 1.0;
        self.taken_at = Some(now);
        self.under_way = self.under_way.saturating_add(1);
        true
    }

    /// When the next call may be made, if none is made before; for whoever sleeps until then.
    pub fn next_at(&mut self, now: Timestamp) -> Timestamp {
        self.fill(now);
        let lacking = (1.0 - self.tokens).max(0.0) / self.rate;
        let refilled = now.after(Duration::from_secs_f64(lacking));
        self.not_before.map_or(refilled, |at| refilled.max(at))
    }

    /// A call has ended otherwise than by a refusal for its rate. One whose end is not known counts here as well: it may have been taken.
    pub fn succeeded(&mut self, _now: Timestamp) {
        self.under_way = self.under_way.saturating_sub(1);
        self.since.taken = self.since.taken.saturating_add(1);
        self.since.ignore = self.since.ignore.min(self.under_way);
    }

    /// A call was refused because there are too many; `retry_after` is how long the provider asks to be left alone. The refusals of calls
    /// that were under way together count as one.
    pub fn throttled(&mut self, now: Timestamp, retry_after: Option<Duration>) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(span) = retry_after {
            self.not_before = self.not_before.max(Some(now.after(span)));
        }
        let settles = self.since.refused_at.is_some_and(|at| now < at.after(SETTLES));
        if self.since.ignore > 0 && settles {
            self.since.ignore = (self.since.ignore - 1).min(self.under_way);
            return;
        }
        self.refused(now, retry_after.unwrap_or_default());
    }

    /// Calls a second that are made at most now.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Before this moment no call is made, because the provider asked for it.
    pub fn not_before(&self) -> Option<Timestamp> {
        self.not_before
    }

    fn refused(&mut self, now: Timestamp, pause: Duration) {
        self.fill(now);
        let (refused, taken) = (self.rate, self.since.taken);
        let grows = self.since.refused_at.is_none() || self.since.grown > 0.0;
        let sure = match grows {
            true => {
                self.rate = OVERSHOT * refused;
                // Where each refusal costs many calls, as far back at once as the provider's burst may have let it overshoot.
                if pause.as_secs_f64() * refused > DEAR && refused < BURST_OVERSHOT * self.good {
                    self.rate = self.rate.min(self.good / JUST_BELOW);
                }
                true
            }
            false => {
                let (low, high) = self.bracket();
                self.rate = (low * high).sqrt().min(JUST_BELOW * refused);
                high < 1.2 * low
            }
        };
        self.rate = self.rate.max(self.floor);
        self.since = Since {
            refused_at: Some(now),
            refused_rate: refused,
            even: self.rate,
            ignore: self.under_way,
            steady: if sure { STEADY_S.max(STEADY_PAUSES * pause.as_secs_f64()) } else { 0.0 },
            steady_calls: if sure { STEADY_CALLS } else { STEADY_CALLS.min(taken.saturating_add(UNSURE_CALLS)) },
            ..Since::default()
        };
        // The provider's bucket is empty, so that the next call is due only when it has filled by one.
        self.tokens = self.tokens.min(0.0);
    }

    /// Between which rates the limit is, now that this one was refused at an even pace.
    fn bracket(&mut self) -> (f64, f64) {
        let taken = f64::from(self.since.taken);
        let shown = self.rate * taken / (taken + 1.0);
        // What was refused before is forgotten once more than that is taken, and what held once it is refused.
        if self.bad <= shown || self.bad > self.rate {
            self.bad = self.rate;
        }
        if self.good >= self.bad {
            self.good = 0.0;
        }
        (shown.max(self.good).max(LEAST_LEFT * self.rate), self.bad)
    }

    /// Adds what has come due, up to the burst.
    fn fill(&mut self, now: Timestamp) {
        let span = now.since(self.filled_at).as_secs_f64();
        // Until a call has been taken after a refusal the provider may have room for just one.
        let most = if self.since.taken == 0 { 1.0 } else { (self.rate * BURST.as_secs_f64()).clamp(1.0, MOST_BURST) };
        self.tokens = (self.tokens + self.rate * span).min(most.max(self.tokens));
        self.filled_at = self.filled_at.max(now);
    }

    /// Lets the rate grow for the time since the last call, as far as calls were wanted in it.
    fn grow(&mut self, now: Timestamp) {
        let from = self.taken_at.max(self.since.refused_at).unwrap_or(now);
        // A gap of much more than the pace is a rest. The provider's own bucket has filled in it, too.
        let span = now.since(from).as_secs_f64().min(2.0 / self.rate);
        self.since.seconds += span;
        let growth = match self.since.refused_at {
            None => GROWTH_UNREFUSED,
            Some(_) if self.is_steady() => return,
            Some(_) => {
                if self.since.taken >= STEADY_CALLS / 2 {
                    self.good = self.since.even;
                }
                self.growth(span)
            }
        };
        self.rate = (self.rate * (growth * span).exp()).min(self.ceiling);
    }

    /// Growth per second, after a span of it.
    fn growth(&mut self, span: f64) -> f64 {
        let (quick, slow, every) = GROWTH;
        self.since.grown += span;
        let per_call = match self.rate < NEAR * self.since.refused_rate {
            true => quick,
            false => {
                self.since.near += 1.0;
                slow * (1.0 + self.since.near / every)
            }
        };
        let (after, by) = QUICKENS;
        (per_call * self.rate).max(by * (self.since.grown - after)).min(GROWTH_PER_S)
    }

    fn is_steady(&self) -> bool {
        let since = &self.since;
        since.taken < since.steady_calls && since.seconds < STEADY_CALLS_S || since.seconds < since.steady
    }
}
