//! The rate at which a simulated provider takes calls.

use std::time::Duration;

use millrace_core::time::Timestamp;

use super::{
    conditions::Throttle,
    draw::{Chance, For},
    script::Script,
};

/// A token bucket whose rate and size change with the script.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    filled: Timestamp,
}

/// A call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What the answer says of when to come back.
    pub(super) retry_after: Option<Duration>,
}

impl Bucket {
    pub(super) fn new(script: &Script, start: Timestamp) -> Self {
        Self { tokens: f64::from(script.at(start, start).throttle.burst), filled: start }
    }

    /// Takes a call, or refuses it.
    pub(super) fn take(
        &mut self,
        script: &Script,
        start: Timestamp,
        now: Timestamp,
        (chance, call): (Chance, u64),
    ) -> Result<(), Refusal> {
        self.fill(script, start, now);
        let throttle = &script.at(start, now).throttle;
        let refusal = |after| Err(Refusal { retry_after: throttle.retry_info.then_some(after) });
        let Some(rate) = throttle.per_second else {
            return match chance.falls(For::Throttle, call, throttle.share) {
                true => refusal(throttle.retry_after.0),
                false => Ok(()),
            };
        };
        if self.tokens < 1.0 {
            let after = Duration::from_secs_f64((1.0 - self.tokens) / rate);
            self.tokens = (self.tokens - throttle.penalty).max(-f64::from(throttle.burst));
            return refusal(after);
        }
        self.tokens -= 1.0;
        match chance.falls(For::Throttle, call, throttle.share) {
            true => refusal(throttle.retry_after.0),
            false => Ok(()),
        }
    }

    fn fill(&mut self, script: &Script, start: Timestamp, now: Timestamp) {
        for (from, to) in stretches(script, start, self.filled, now) {
            let throttle = &script.at(start, from).throttle;
            let (room, span) = (f64::from(throttle.burst), to.since(from).as_secs_f64());
            // Without a rate nothing is counted: the next rate begins with a full bucket.
            self.tokens = throttle.per_second.map_or(room, |rate| (self.tokens + rate * span).min(room));
        }
        self.filled = self.filled.max(now);
    }
}

/// How many calls may be answered between two times: the burst, and what the rates let through. None when some of that time has no
/// limit.
pub(super) fn quota(script: &Script, start: Timestamp, from: Timestamp, to: Timestamp) -> Option<f64> {
    let of = |(from, to): (Timestamp, Timestamp)| {
        let Throttle { per_second, .. } = script.at(start, from).throttle;
        per_second.map(|rate| rate * to.since(from).as_secs_f64())
    };
    let burst = f64::from(script.at(start, from).throttle.burst);
    stretches(script, start, from, to).map(of).sum::<Option<f64>>().map(|calls| calls + burst)
}

/// The time between two moments, cut where what holds changes.
fn stretches(
    script: &Script,
    start: Timestamp,
    from: Timestamp,
    to: Timestamp,
) -> impl Iterator<Item = (Timestamp, Timestamp)> {
    let mut cuts: Vec<Timestamp> = script.changes(start, from, to).collect();
    cuts.insert(0, from);
    cuts.push(to.max(from));
    (1..cuts.len()).map(move |index| (cuts[index - 1], cuts[index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(0);

    fn second(second: u64) -> Timestamp {
        START.after(Duration::from_secs(second))
    }

    fn taken(script: &Script, at: impl Iterator<Item = Timestamp>) -> usize {
        let mut bucket = Bucket::new(script, START);
        at.enumerate().filter(|(call, at)| bucket.take(script, START, *at, (Chance(1), *call as u64)).is_ok()).count()
    }

    #[test]
    fn a_changing_rate_lets_through_its_sum_and_the_burst() {
        let script = Script::parse(
            "throttle.per_second = 10.0\nthrottle.burst = 5\n[[change]]\nat = \"60s\"\nthrottle.per_second = 1.0",
        )
        .unwrap();
        let calls = (0..120 * 50).map(|tick| START.after(Duration::from_millis(20 * tick)));
        let expected = quota(&script, START, START, second(120)).unwrap();
        assert_eq!(expected, 5.0 + 600.0 + 60.0);
        let taken = taken(&script, calls) as f64;
        assert!((expected - 2.0..=expected).contains(&taken), "{taken}");
        assert_eq!(quota(&Script::default(), START, START, second(1)), None);
    }

    #[test]
    fn a_refusal_says_when_to_come_back_and_is_right() {
        let script = Script::parse("throttle.per_second = 0.5\nthrottle.burst = 1").unwrap();
        let mut bucket = Bucket::new(&script, START);
        let mut take = |at| bucket.take(&script, START, at, (Chance(1), 0));
        assert!(take(START).is_ok());
        let Err(Refusal { retry_after: Some(after) }) = take(second(1)) else { panic!("it is refused, with a delay") };
        assert_eq!(after, Duration::from_secs(1));
        assert!(take(second(2)).is_ok());
    }

    #[test]
    fn with_a_penalty_whoever_keeps_calling_stays_throttled() {
        let at = || (0..600).map(|tick| START.after(Duration::from_millis(100 * tick)));
        let patient = Script::parse("throttle.per_second = 2.0\nthrottle.burst = 2").unwrap();
        let strict = Script::parse("throttle.per_second = 2.0\nthrottle.burst = 2\nthrottle.penalty = 1.0").unwrap();
        assert!(taken(&patient, at()) > 100);
        assert!(taken(&strict, at()) <= 4);
    }

    #[test]
    fn a_share_is_refused_whatever_the_rate() {
        let script = Script::parse("throttle.share = 0.9\nthrottle.retry_info = false").unwrap();
        let taken = taken(&script, (0..10_000).map(second));
        assert!((900..1100).contains(&taken), "{taken}");
        let mut bucket = Bucket::new(&script, START);
        let refused = (0..100).find_map(|call| bucket.take(&script, START, START, (Chance(1), call)).err());
        assert_eq!(refused, Some(Refusal { retry_after: None }));
    }
}
