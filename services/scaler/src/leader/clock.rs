//! The database's time between two readings of it.

use std::sync::{Arc, Mutex, PoisonError};

use millrace_core::time::{Timestamp, micros};
use tokio::time::Instant;

/// The database's time, by this process's monotonic clock since the last reading. Clones are the same clock.
#[derive(Debug, Clone, Default)]
pub(crate) struct DatabaseClock {
    inner: Arc<Mutex<Reading>>,
}

#[derive(Debug, Default)]
struct Reading {
    read: Option<(i64, Instant)>,
    /// What was last told: time never goes back while the process runs, only stands still until a database that stepped back has caught up.
    told: i64,
}

/// A database that has stepped back by more than this is followed: standing still for as long would be worse.
const STEP_US: i64 = 60_000_000;

impl DatabaseClock {
    /// The database said that it was this time, at this moment.
    pub(crate) fn set(&self, now_us: i64, at: Instant) {
        let mut reading = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        reading.read = Some((now_us, at));
        if reading.told.saturating_sub(now_us) > STEP_US {
            tracing::warn!(by_us = reading.told - now_us, "the database's clock has stepped back");
            reading.told = now_us;
        }
    }

    /// What time it is by the database's clock; none before its first reading.
    pub(crate) fn now(&self) -> Option<Timestamp> {
        let mut reading = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (now_us, at) = reading.read?;
        reading.told = reading.told.max(now_us.saturating_add(micros(at.elapsed())));
        Some(Timestamp(reading.told))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_goes_on_between_readings_and_never_back() {
        let clock = DatabaseClock::default();
        assert_eq!(clock.now(), None);
        clock.set(1_000_000_000, Instant::now());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.now(), Some(Timestamp(1_002_000_000)));
        clock.set(1_001_000_000, Instant::now());
        assert_eq!(clock.now(), Some(Timestamp(1_002_000_000)), "a reading a little behind");
        clock.set(900_000_000, Instant::now());
        assert_eq!(clock.now(), Some(Timestamp(900_000_000)), "a database that was set back is followed");
    }
}
