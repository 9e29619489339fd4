//! The two times that matching needs: one that only moves forward, and the database's.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use millrace_core::time::{Timestamp, micros};
use tokio::time::Instant;

/// A clock that follows the database's by its ticks.
#[derive(Debug)]
pub(super) struct Clock {
    origin: Instant,
    /// The database's time at `origin`, in microseconds since 1970.
    database_us: AtomicI64,
    ticked: AtomicBool,
}

impl Clock {
    /// A clock that shows this process's time until the first tick.
    pub(super) fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { origin: Instant::now(), database_us: AtomicI64::new(micros(now)), ticked: AtomicBool::new(false) }
    }

    /// Time since the clock was made; only moves forward.
    pub(super) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The database's time. Never ahead of it by more than the drift since the last tick: a tick is taken for the moment of its
    /// arrival, which is later than when the database read its clock, and so feeds go back far enough (R3).
    pub(super) fn wall(&self) -> Timestamp {
        Timestamp(self.database_us.load(Ordering::Relaxed).saturating_add(micros(self.now())))
    }

    /// Follows a tick that has just arrived.
    pub(super) fn set(&self, database_now: Timestamp) {
        self.database_us.store(database_now.0.saturating_sub(micros(self.now())), Ordering::Relaxed);
        self.ticked.store(true, Ordering::Release);
    }

    /// Whether a tick has arrived, so that the time shown is the database's.
    pub(super) fn has_ticked(&self) -> bool {
        self.ticked.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_shows_the_last_tick_and_what_passed_since() {
        let clock = Clock::new();
        tokio::time::advance(Duration::from_secs(5)).await;
        clock.set(Timestamp(1_000_000));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!((clock.wall(), clock.now()), (Timestamp(1_001_000), Duration::from_millis(5_001)));
        clock.set(Timestamp(7));
        assert_eq!(clock.wall(), Timestamp(7), "a clock set back is followed");
    }
}
