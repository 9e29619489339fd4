//! Chance that can be repeated.
//!
//! A draw is a function of the seed, of what it is for, and of a number (the node's, the call's): so the first node has the same fate
//! whoever asks for it and whatever else was drawn before, and two policies can be compared on the same luck.

use std::time::Duration;

/// What a draw is for.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
pub(super) enum For {
    JoinRadius = 1,
    JoinAngle,
    Death,
    Flapping,
    Turn,
    Spot,
    Reclaim,
    Refusal,
    LostRequest,
    LostAnswer,
    Throttle,
}

/// The seed of a script.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    /// Evenly from 0 to 1, without 1.
    pub(super) fn draw(self, what: For, number: u64) -> f64 {
        let bits = mix(mix(mix(self.0) ^ what as u64) ^ number);
        // The 53 bits that a double can tell apart.
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True for a share of the numbers.
    pub(super) fn falls(self, what: For, number: u64, share: f64) -> bool {
        self.draw(what, number) < share
    }

    /// A time whose logarithm is normally distributed.
    ///
    /// Box and Muller, "A Note on the Generation of Random Normal Deviates" (1958).
    pub(super) fn join(self, number: u64, median: Duration, spread: f64) -> Duration {
        let radius = (-2.0 * (1.0 - self.draw(For::JoinRadius, number)).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.draw(For::JoinAngle, number)).cos();
        scale(median, (spread * normal).exp())
    }

    /// A time until what happens so often, in hours; none when it never does.
    pub(super) fn wait(self, what: For, number: u64, per_hour: f64) -> Option<Duration> {
        let hour = Duration::from_secs(3600);
        (per_hour > 0.0).then(|| scale(hour, -(1.0 - self.draw(what, number)).ln() / per_hour))
    }
}

/// As much longer; a hundred years at most.
pub(super) fn scale(span: Duration, by: f64) -> Duration {
    const LONGEST: f64 = 100.0 * 365.0 * 86_400.0;
    Duration::from_secs_f64((span.as_secs_f64() * by.max(0.0)).min(LONGEST))
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), which turns counting numbers into noise.
fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: u64 = 20_000;

    #[test]
    fn joins_have_the_median_and_the_spread_that_were_asked_for() {
        let median = Duration::from_secs(120);
        let mut joins: Vec<f64> = (0..MANY).map(|n| Chance(7).join(n, median, 0.3).as_secs_f64()).collect();
        joins.sort_by(f64::total_cmp);
        let at = |share: f64| joins[(share * MANY as f64) as usize];
        assert!((118.0..122.0).contains(&at(0.5)), "{}", at(0.5));
        // The 84th hundredth is one standard deviation away.
        assert!((at(0.841) / at(0.5) - 0.3_f64.exp()).abs() < 0.03);
        assert_eq!(Chance(7).join(1, median, 0.0), median);
    }

    #[test]
    fn shares_and_rates_are_met_and_draws_do_not_depend_on_each_other() {
        let share = (0..MANY).filter(|n| Chance(1).falls(For::Death, *n, 0.3)).count() as f64 / MANY as f64;
        assert!((0.29..0.31).contains(&share), "{share}");
        let both =
            (0..MANY).filter(|n| Chance(1).falls(For::Death, *n, 0.5) && Chance(1).falls(For::Flapping, *n, 0.5));
        assert!((0.24..0.26).contains(&(both.count() as f64 / MANY as f64)));
        let hours = (0..MANY).filter_map(|n| Chance(1).wait(For::Spot, n, 2.0)).map(|wait| wait.as_secs_f64() / 3600.0);
        assert!((0.48..0.52).contains(&(hours.sum::<f64>() / MANY as f64)));
        assert_eq!(Chance(1).wait(For::Spot, 0, 0.0), None);
    }
}
