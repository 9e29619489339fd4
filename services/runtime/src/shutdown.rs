//! How a process stops: first it drains, for at most a grace period; then whatever is left is cut.
//!
//! The first SIGTERM or SIGINT begins the drain; a second one ends the grace at once. Everything here tolerates a stop
//! before the start and any number of stops.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// How long a drain may take when nothing else is configured.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// How long tracked tasks may take to end once the servers have returned, when nothing else is configured. A process's
/// whole end takes at most the drain's grace plus this.
pub const LAST_GRACE: Duration = Duration::from_secs(5);

/// The state of a process's end, shared by everything that has to notice it. Clones are the same state.
#[derive(Clone, Debug)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    grace: Duration,
    began: OnceLock<Instant>,
    draining: CancellationToken,
    cut: CancellationToken,
    finished: CancellationToken,
    failure: OnceLock<&'static str>,
    tracker: TaskTracker,
    /// The names of tracked tasks that run, by the order of their start; only for reports.
    running: Mutex<BTreeMap<u64, &'static str>>,
    next: AtomicU64,
}

impl Shutdown {
    /// A shutdown that begins when [`Shutdown::begin`] is called and lasts `grace` at most.
    pub fn new(grace: Duration) -> Shutdown {
        Shutdown {
            inner: Arc::new(Inner {
                grace,
                began: OnceLock::new(),
                draining: CancellationToken::new(),
                cut: CancellationToken::new(),
                finished: CancellationToken::new(),
                failure: OnceLock::new(),
                tracker: TaskTracker::new(),
                running: Mutex::default(),
                next: AtomicU64::new(0),
            }),
        }
    }

    /// A shutdown that begins with the first SIGTERM or SIGINT; the second signal ends the grace at once. Needs a Tokio
    /// runtime.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals(grace: Duration) -> io::Result<Shutdown> {
        let shutdown = Shutdown::new(grace);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if listener.is_draining() {
                    tracing::warn!(signal = name, "second signal: the grace ends now");
                    listener.cut();
                } else {
                    tracing::info!(signal = name, grace_ms = grace.as_millis() as u64, "draining");
                    listener.begin();
                }
            }
        });
        Ok(shutdown)
    }

    /// Begins the drain. Only the first call counts.
    pub fn begin(&self) {
        self.inner.began.get_or_init(Instant::now);
        self.inner.draining.cancel();
    }

    /// Begins the drain, if need be, and ends its grace at once: what is still open is cut.
    pub fn cut(&self) {
        self.begin();
        self.inner.cut.cancel();
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.is_cancelled()
    }

    /// Completes when the drain begins, at once when it has. Cancel-safe.
    pub async fn draining(&self) {
        self.inner.draining.cancelled().await;
    }

    /// Completes when the drain has begun and its grace is over. Cancel-safe.
    pub async fn grace_over(&self) {
        self.draining().await;
        let began = *self.inner.began.get_or_init(Instant::now);
        tokio::select! {
            () = tokio::time::sleep_until(began + self.inner.grace) => {}
            () = self.inner.cut.cancelled() => {}
        }
    }

    /// Completes when [`Shutdown::finish`] has waited for the tracked tasks. What must answer until the very end
    /// (metrics, health over HTTP) ends with this. Cancel-safe.
    pub async fn finished(&self) {
        self.inner.finished.cancelled().await;
    }

    /// A token that is cancelled when the drain begins, for code that knows no [`Shutdown`]. Cancelling it does not
    /// begin the drain.
    pub fn token(&self) -> CancellationToken {
        self.inner.draining.child_token()
    }

    /// Runs a task that [`Shutdown::finish`] waits for. The task has to end by itself once the drain begins. If it
    /// panics, only it ends.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = self.running(name);
        let span = tracing::error_span!("task", name);
        self.inner.tracker.spawn(
            async move {
                let _running = running;
                task.await;
            }
            .instrument(span),
        )
    }

    /// Runs a task without which the process is of no use. Should it panic, or end before the drain has begun, then the
    /// drain begins and [`Shutdown::failure`] names the task: a replica that serves without its loops is worse than
    /// none.
    pub fn spawn_critical<F>(&self, name: &'static str, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let critical = Critical { shutdown: self.clone(), name };
        self.spawn(name, async move {
            let _critical = critical;
            task.await;
        })
    }

    /// The critical task whose end began the drain, if one did.
    pub fn failure(&self) -> Option<&'static str> {
        self.inner.failure.get().copied()
    }

    /// Begins the drain, if need be, waits for the tracked tasks for at most `grace` from now (or until
    /// [`Shutdown::cut`]), and returns the names of those that still run. Call it when the servers have returned; see
    /// [`LAST_GRACE`].
    pub async fn finish(&self, grace: Duration) -> Vec<&'static str> {
        self.begin();
        self.inner.tracker.close();
        tokio::select! {
            biased;
            () = self.inner.tracker.wait() => {}
            () = self.inner.cut.cancelled() => {}
            () = tokio::time::sleep(grace) => {}
        }
        let left: Vec<_> = self.names().values().copied().collect();
        if !left.is_empty() {
            tracing::warn!(tasks = ?left, "tasks still run after the grace; they are abandoned");
        }
        self.inner.finished.cancel();
        left
    }

    fn running(&self, name: &'static str) -> Running {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.names().insert(number, name);
        Running { shutdown: self.clone(), number }
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<u64, &'static str>> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a task's name off the list however the task ends.
struct Running {
    shutdown: Shutdown,
    number: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.names().remove(&self.number);
    }
}

/// Notices the end of a critical task however it comes: return, panic or abort.
struct Critical {
    shutdown: Shutdown,
    name: &'static str,
}

impl Drop for Critical {
    fn drop(&mut self) {
        if !self.shutdown.is_draining() {
            tracing::error!(task = self.name, "a task that must not end has ended; draining");
            let _ = self.shutdown.inner.failure.set(self.name);
            self.shutdown.begin();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stop_before_start_lets_a_task_see_the_drain_at_once() {
        let shutdown = Shutdown::new(DEFAULT_GRACE);
        shutdown.begin();
        let watcher = shutdown.clone();
        shutdown.spawn("late", async move { watcher.draining().await });
        assert!(shutdown.finish(DEFAULT_GRACE).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_stop_does_not_extend_the_grace() {
        let shutdown = Shutdown::new(Duration::from_secs(10));
        assert!(shutdown.draining().now_or_never().is_none());
        shutdown.begin();
        tokio::time::advance(Duration::from_secs(9)).await;
        shutdown.begin();
        let before = Instant::now();
        shutdown.grace_over().await;
        assert_eq!(before.elapsed().as_secs(), 1);
        assert!(shutdown.is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn finish_waits_for_tracked_tasks_and_names_those_that_hang() {
        let shutdown = Shutdown::new(DEFAULT_GRACE);
        let watcher = shutdown.clone();
        shutdown.spawn("well behaved", async move { watcher.draining().await });
        shutdown.spawn("hanging", std::future::pending());
        let before = Instant::now();
        assert_eq!(shutdown.finish(Duration::from_secs(5)).await, ["hanging"]);
        assert_eq!(before.elapsed().as_secs(), 5);
        shutdown.finished().await;
    }

    #[tokio::test(start_paused = true)]
    async fn finish_twice_is_fine_and_a_cut_ends_it_at_once() {
        let shutdown = Shutdown::new(DEFAULT_GRACE);
        shutdown.spawn("hanging", std::future::pending());
        shutdown.cut();
        shutdown.grace_over().await;
        let before = Instant::now();
        assert_eq!(shutdown.finish(DEFAULT_GRACE).await, ["hanging"]);
        assert_eq!(shutdown.finish(DEFAULT_GRACE).await, ["hanging"]);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_ends_its_task_alone_unless_the_task_is_critical() {
        let shutdown = Shutdown::new(DEFAULT_GRACE);
        shutdown.spawn("stream", async { panic!("one bad task") }).await.unwrap_err();
        assert!(!shutdown.is_draining());
        shutdown.spawn_critical("writer", async { panic!("the loop itself") }).await.unwrap_err();
        assert!(shutdown.is_draining());
        assert_eq!(shutdown.failure(), Some("writer"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_critical_task_may_end_once_draining() {
        let shutdown = Shutdown::new(DEFAULT_GRACE);
        let watcher = shutdown.clone();
        let task = shutdown.spawn_critical("writer", async move { watcher.draining().await });
        shutdown.begin();
        task.await.unwrap();
        assert_eq!(shutdown.failure(), None);
    }

    #[tokio::test]
    async fn a_child_token_follows_the_drain_and_does_not_begin_it() {
        let shutdown = Shutdown::new(DEFAULT_GRACE);
        shutdown.token().cancel();
        assert!(!shutdown.is_draining());
        let token = shutdown.token();
        shutdown.begin();
        token.cancelled().await;
    }
}
