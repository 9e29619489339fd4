//! Open-loop load: calls on a schedule that no answer can hold up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Keeps a schedule until it is dropped.
pub(crate) struct Pace {
    stop: Arc<AtomicBool>,
}

/// Calls `tick` with a number from 0 and the scheduled moment, `rate` times a second, `count` times in all. Latencies that
/// count from the scheduled moment hide no wait, whatever held the call up.
///
/// In a thread of its own: the runtime's timers are only good for a millisecond, this is good for a tenth of it.
/// `tick` must not block.
pub(crate) fn keep(rate: f64, count: u64, mut tick: impl FnMut(u64, Instant) + Send + 'static) -> Pace {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    thread::spawn(move || {
        let start = Instant::now() + Duration::from_millis(10);
        for number in 0..count {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            tick(number, due);
        }
    });
    Pace { stop }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
