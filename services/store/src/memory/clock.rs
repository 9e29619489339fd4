//! The model's clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use millrace_core::time::{Timestamp, micros};

/// Where a store reads its database's time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A clock that stands still until it is moved, forward or back.
#[derive(Debug)]
pub struct SettableClock {
    now_us: AtomicI64,
}

impl SettableClock {
    /// A clock that shows this moment.
    pub fn new(start: Timestamp) -> Self {
        Self { now_us: AtomicI64::new(start.0) }
    }

    /// The moment that it shows.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.now_us.load(Ordering::SeqCst))
    }

    /// Sets it.
    pub fn set(&self, now: Timestamp) {
        self.now_us.store(now.0, Ordering::SeqCst);
    }

    /// Moves it forward.
    pub fn advance(&self, span: Duration) {
        self.now_us.fetch_add(micros(span), Ordering::SeqCst);
    }

    /// What a store reads it by.
    pub fn reader(self: &Arc<Self>) -> Clock {
        let clock = Arc::clone(self);
        Arc::new(move || clock.now())
    }
}
