//! Served time: the clock by which leases expire (R7).
//!
//! It counts only the time in which the system could have heard a heartbeat. Whichever replica ticks first moves it by
//! the time since the last tick, at most one tick; after a gap, in which nobody ticked, it stands still for as long as
//! an orchestrator may need to come back. A database that was down, replicas that were all gone and a clock that was
//! set therefore age no lease. Before the first millisecond that it counts there is no lease that could have aged: the time between
//! the making of a database and the first process on it is no gap.

use std::time::Duration;

use crate::time::Timestamp;

/// How much longer a session's lease lasts in the database than its orchestrator is told (R16). Served time moves in ticks: the
/// first tick after a renewal may count what had passed before it, up to one tick, and one tick more when the database's
/// clock is set forward a little. An orchestrator that stops exclusive work by its own clock is then never late.
pub const LEASE_SLACK: Duration = Duration::from_millis(1_000);

/// The clock's state: one row of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedClock {
    /// Served time, in milliseconds since the database was made.
    pub served_ms: i64,
    /// The database's time at the last tick.
    pub ticked_at: Timestamp,
    /// How much longer it stands still, in milliseconds.
    pub frozen_ms: i64,
}

/// How the clock is driven. Every replica uses the same values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TickRule {
    /// The longest step of one tick, in milliseconds.
    pub tick_ms: i64,
    /// Longer without a tick than this is a gap, in milliseconds.
    pub gap_ms: i64,
    /// How long it stands still after a gap, in milliseconds: the longest delay before an orchestrator reconnects.
    pub freeze_ms: i64,
}

impl Default for TickRule {
    fn default() -> Self {
        Self { tick_ms: 500, gap_ms: 3_000, freeze_ms: 10_000 }
    }
}

impl ServedClock {
    /// The clock after a tick at the database's time `now`.
    pub fn tick(self, now: Timestamp, rule: TickRule) -> Self {
        let passed_ms = now.0.saturating_sub(self.ticked_at.0).div_euclid(1000);
        let step_ms = passed_ms.clamp(0, rule.tick_ms);
        let (served_ms, frozen_ms) = if passed_ms > rule.gap_ms && self.is_new() {
            (0, 0)
        } else if passed_ms > rule.gap_ms {
            (self.served_ms, rule.freeze_ms)
        } else if self.frozen_ms > 0 {
            (self.served_ms, (self.frozen_ms - step_ms).max(0))
        } else {
            (self.served_ms + step_ms, 0)
        };
        // What a tick rounds away must not add up: only the milliseconds counted are taken off the next step.
        let ticked_at =
            if (0..=rule.tick_ms).contains(&passed_ms) { Timestamp(self.ticked_at.0 + passed_ms * 1000) } else { now };
        Self { served_ms, ticked_at, frozen_ms }
    }

    /// Whether it has never counted anything.
    fn is_new(self) -> bool {
        self.served_ms == 0 && self.frozen_ms == 0
    }

    /// Whether it stands still after a gap.
    pub fn is_frozen(self) -> bool {
        self.frozen_ms > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: TickRule = TickRule { tick_ms: 500, gap_ms: 3_000, freeze_ms: 10_000 };

    fn run(ticks_ms: &[i64]) -> ServedClock {
        let start = ServedClock { served_ms: 0, ticked_at: Timestamp(0), frozen_ms: 0 };
        ticks_ms.iter().fold(start, |clock, at| clock.tick(Timestamp(at * 1000), RULE))
    }

    #[test]
    fn r7_time_is_counted_once_however_many_replicas_tick() {
        assert_eq!(run(&[500, 1000, 1500]).served_ms, 1500);
        assert_eq!(run(&[100, 500, 510, 520, 1000, 1500]).served_ms, 1500);
    }

    #[test]
    fn r7_a_gap_ages_nothing_and_is_followed_by_a_freeze() {
        let clock = run(&[500, 1000, 600_000]);
        assert_eq!((clock.served_ms, clock.is_frozen()), (1000, true));
        let ticks: Vec<i64> = [500, 1000, 600_000].into_iter().chain((1..=20).map(|n| 600_000 + n * 500)).collect();
        assert_eq!(run(&ticks).served_ms, 1000);
        let ticks: Vec<i64> = [500, 1000, 600_000].into_iter().chain((1..=22).map(|n| 600_000 + n * 500)).collect();
        assert_eq!(run(&ticks).served_ms, 2000);
    }

    #[test]
    fn r7_the_time_before_the_first_process_is_no_outage() {
        let clock = run(&[600_000]);
        assert_eq!((clock.served_ms, clock.is_frozen()), (0, false));
        let clock = run(&[600_000, 600_500]);
        assert_eq!((clock.served_ms, clock.is_frozen()), (500, false));
        assert!(run(&[600_000, 600_500, 700_000]).is_frozen());
    }

    #[test]
    fn r7_a_clock_set_back_or_forward_never_moves_it_back_or_ages_a_lease() {
        assert_eq!(run(&[500, 1000, -3_600_000, -3_599_500]).served_ms, 1500);
        let forward = run(&[500, 1000, 3_600_000, 3_600_500]);
        assert_eq!((forward.served_ms, forward.is_frozen()), (1000, true));
    }

    #[test]
    fn r16_a_lease_never_ends_before_its_orchestrator_believes() {
        let ttl_ms = 5_000;
        // Renewals at every moment between two ticks, ticks at every pace up to a gap, and one small step of the clock.
        for (pace_ms, renewed_ms, step_ms) in (50..=RULE.gap_ms)
            .step_by(50)
            .flat_map(|pace| (0..pace).step_by(10).flat_map(move |at| [(pace, at, 0), (pace, at, 400)]))
        {
            let mut clock = ServedClock { served_ms: 0, ticked_at: Timestamp(0), frozen_ms: 0 };
            let expires_ms = clock.served_ms + ttl_ms + LEASE_SLACK.as_millis() as i64;
            let mut real_ms = 0;
            while clock.served_ms <= expires_ms {
                real_ms += pace_ms;
                let stepped_ms = if real_ms > renewed_ms + 2_000 { step_ms } else { 0 };
                clock = clock.tick(Timestamp((real_ms + stepped_ms) * 1000), RULE);
            }
            let lasted_ms = real_ms - renewed_ms;
            assert!(lasted_ms >= ttl_ms, "renewed at {renewed_ms} of a tick of {pace_ms}: {lasted_ms}");
        }
    }

    #[test]
    fn r7_a_slow_tick_counts_as_one() {
        assert_eq!(run(&[500, 3_000]).served_ms, 1000);
    }
}
