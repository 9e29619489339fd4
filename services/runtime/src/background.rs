//! Loops that run an idempotent step on a timer, or sooner when nudged.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

use crate::{shutdown::Shutdown, telemetry::panic_message};

/// After a failure, nudges wait this long (or one period, if that is shorter), so that a database that is down is not
/// asked as fast as callers can nudge.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// Runs `step` at once, then `period` after each end of it, or as soon as `nudge` is notified; until the drain begins.
/// A step in flight is finished first, so a step has to be bounded in time. Periods are spread by a tenth either way,
/// so that replicas started together do not stay in step. Nudges during a step are one more step, however many they
/// are.
///
/// A failure, or a panic, never ends the loop: the first of a streak is logged as a warning, the rest at debug level,
/// and the first success after it is logged with the length of the streak.
pub fn every<F, Fut, E>(
    name: &'static str,
    period: Duration,
    nudge: Arc<Notify>,
    shutdown: &Shutdown,
    mut step: F,
) -> JoinHandle<()>
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), E>> + Send,
    E: std::fmt::Display,
{
    let stop = shutdown.clone();
    shutdown.spawn(name, async move {
        let mut streak = Streak { name, failures: 0 };
        while !stop.is_draining() {
            let failed = run(&mut step, &mut streak).await;
            let ended = Instant::now();
            let next = ended + jittered(period);
            if failed && !pause(&stop, ended + FAILURE_PAUSE.min(period)).await {
                return;
            }
            tokio::select! {
                biased;
                () = stop.draining() => return,
                () = nudge.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    })
}

/// Runs one step; whether it failed.
async fn run<F, Fut, E>(step: &mut F, streak: &mut Streak) -> bool
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    // A step is idempotent and takes no input, so whatever a panic left half done the next step does again.
    let outcome = AssertUnwindSafe(async { step().await }).catch_unwind().await;
    match outcome {
        Ok(Ok(())) => streak.success(),
        Ok(Err(error)) => streak.failure(&error),
        Err(panic) => streak.failure(&panic_message(panic.as_ref())),
    }
    streak.failures > 0
}

/// Waits until `until`; false when the drain began first.
async fn pause(stop: &Shutdown, until: Instant) -> bool {
    tokio::select! {
        biased;
        () = stop.draining() => false,
        () = tokio::time::sleep_until(until) => true,
    }
}

fn jittered(period: Duration) -> Duration {
    period.mul_f64(rand::random_range(0.9..=1.1))
}

struct Streak {
    name: &'static str,
    failures: u64,
}

impl Streak {
    fn success(&mut self) {
        if self.failures > 0 {
            tracing::info!(task = self.name, failures = self.failures, "background task works again");
        }
        self.failures = 0;
    }

    fn failure(&mut self, error: &dyn std::fmt::Display) {
        self.failures += 1;
        if self.failures == 1 {
            tracing::warn!(task = self.name, %error, "background task failed; it will be tried again");
        } else {
            tracing::debug!(task = self.name, %error, failures = self.failures, "background task failed again");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(60);

    struct Loop {
        runs: mpsc::UnboundedReceiver<Instant>,
        nudge: Arc<Notify>,
        shutdown: Shutdown,
    }

    /// Starts a loop whose n-th run (from 0) has the given outcome; it reports the moment of each run.
    fn start(outcome: impl Fn(u64) -> Result<(), String> + Send + Sync + 'static) -> Loop {
        // Unbounded because only a test's own loop writes to it.
        let (report, runs) = mpsc::unbounded_channel();
        let nudge = Arc::new(Notify::new());
        let shutdown = Shutdown::new(Duration::from_secs(10));
        let mut count = 0;
        every("test", PERIOD, nudge.clone(), &shutdown, move || {
            let result = {
                report.send(Instant::now()).unwrap();
                let n = count;
                count += 1;
                outcome(n)
            };
            async move { result }
        });
        Loop { runs, nudge, shutdown }
    }

    #[tokio::test(start_paused = true)]
    async fn runs_at_once_on_the_timer_and_on_a_nudge() {
        let mut fixture = start(|_| Ok(()));
        let first = fixture.runs.recv().await.unwrap();
        let second = fixture.runs.recv().await.unwrap();
        assert!((54..=66).contains(&(second - first).as_secs()), "{:?}", second - first);
        fixture.nudge.notify_one();
        let third = fixture.runs.recv().await.unwrap();
        assert_eq!(third - second, Duration::ZERO);
        assert!(fixture.shutdown.finish(PERIOD).await.is_empty());
        assert!(fixture.runs.recv().await.is_none(), "the loop has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_never_ends_the_loop_and_holds_nudges_back() {
        let mut fixture = start(|n| if n < 2 { Err("down".to_owned()) } else { Ok(()) });
        let first = fixture.runs.recv().await.unwrap();
        fixture.nudge.notify_one();
        let second = fixture.runs.recv().await.unwrap();
        assert!(
            second - first >= FAILURE_PAUSE && second - first < Duration::from_millis(1100),
            "{:?}",
            second - first
        );
        let third = fixture.runs.recv().await.unwrap();
        assert!(third > second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_never_ends_the_loop() {
        let mut fixture = start(|n| if n == 0 { panic!("one bad row") } else { Ok(()) });
        fixture.runs.recv().await.unwrap();
        fixture.runs.recv().await.unwrap();
        assert!(fixture.shutdown.finish(PERIOD).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_started_while_draining_does_nothing() {
        let shutdown = Shutdown::new(PERIOD);
        shutdown.begin();
        let task = every("late", PERIOD, Arc::default(), &shutdown, || async { Err::<(), _>("must not run") });
        task.await.unwrap();
    }
}
