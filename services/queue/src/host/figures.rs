//! What a matcher tells of itself.

use std::time::Duration;

/// What the owner of a queue knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Figures {
    /// The epoch of the ownership.
    pub epoch: i64,
    /// Offers per second over the last minute.
    pub arrival_rate: f64,
    /// Claims per second over the last minute.
    pub dispatch_rate: f64,
    /// Entries in the window.
    pub window: usize,
    /// The window's bound.
    pub window_capacity: usize,
    /// Credits that wait for work.
    pub demand: u64,
}

/// How many seconds a rate looks back.
const SPAN: u64 = 60;

/// Events per second over the last minute, or over the time since it was made while that is shorter.
#[derive(Debug)]
pub(super) struct Rate {
    made: Duration,
    /// Events of each second, at the second modulo the span.
    counts: [u64; SPAN as usize],
    /// The newest second that `counts` covers.
    newest: u64,
}

impl Rate {
    /// A rate that has seen nothing. `now` is a clock that only moves forward.
    pub(super) fn new(now: Duration) -> Self {
        Self { made: now, counts: [0; SPAN as usize], newest: now.as_secs() }
    }

    /// Counts events.
    pub(super) fn add(&mut self, now: Duration, events: u64) {
        self.advance(now);
        self.counts[(self.newest % SPAN) as usize] += events;
    }

    /// Events per second.
    pub(super) fn per_second(&mut self, now: Duration) -> f64 {
        self.advance(now);
        let age = now.saturating_sub(self.made).as_secs_f64().clamp(1.0, SPAN as f64);
        self.counts.iter().sum::<u64>() as f64 / age
    }

    fn advance(&mut self, now: Duration) {
        let second = now.as_secs();
        let passed = second.saturating_sub(self.newest).min(SPAN);
        for step in 1..=passed {
            self.counts[((second - passed + step) % SPAN) as usize] = 0;
        }
        self.newest = self.newest.max(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_covers_the_last_minute() {
        let at = Duration::from_secs;
        let mut rate = Rate::new(at(100));
        rate.add(at(100), 30);
        assert_eq!(rate.per_second(at(100)), 30.0, "never divided by less than a second");
        assert_eq!(rate.per_second(at(110)), 3.0);
        rate.add(at(150), 30);
        assert_eq!(rate.per_second(at(159)), 60.0 / 59.0);
        assert_eq!(rate.per_second(at(160)), 0.5, "the first second has left");
        assert_eq!(rate.per_second(at(10_000)), 0.0);
    }
}
