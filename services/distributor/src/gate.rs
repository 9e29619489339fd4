//! Group commit: while one batch is being written the next one gathers. No timer.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

use millrace_store::StoreError;
use tokio::sync::mpsc;

/// The way into one kind of write. A thread of its own takes whatever has gathered, at most `most` items, and runs it.
pub(crate) struct Gate<T> {
    sender: mpsc::Sender<T>,
}

impl<T: Send + 'static> Gate<T> {
    /// Starts the thread. It ends when every gate handle is dropped. A panic costs the batch that caused it, whose items are
    /// dropped: what an item has promised to others, its `Drop` has to settle.
    pub(crate) fn start(
        name: &'static str,
        capacity: usize,
        most: usize,
        mut run: impl FnMut(Vec<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, mut receiver) = mpsc::channel(capacity);
        thread::Builder::new().name(name.into()).spawn(move || {
            let mut batch = Vec::new();
            while receiver.blocking_recv_many(&mut batch, most) > 0 {
                let full = std::mem::take(&mut batch);
                if catch_unwind(AssertUnwindSafe(|| run(full))).is_err() {
                    tracing::error!(gate = name, "a batch panicked; its items are given up");
                }
            }
        })?;
        Ok(Self { sender })
    }

    /// A gate that gives everything back: what is left when its thread could not be started.
    pub(crate) fn broken() -> Self {
        Self { sender: mpsc::channel(1).0 }
    }

    /// Puts an item in, or gives it back when the gate is full: the caller says so to whoever is waiting.
    pub(crate) fn try_put(&self, item: T) -> Result<(), T> {
        self.sender.try_send(item).map_err(|error| match error {
            mpsc::error::TrySendError::Full(item) | mpsc::error::TrySendError::Closed(item) => item,
        })
    }

    /// Puts an item in, waiting for room: for streams, whose sender then waits as well.
    pub(crate) async fn put(&self, item: T) -> Result<(), T> {
        self.sender.send(item).await.map_err(|error| error.0)
    }
}

/// Runs a write until it succeeds, fails for good, or has been tried for `patience`. The closure is told whether an
/// earlier try may have been committed (R8). Blocks its thread.
pub(crate) fn persist<R>(
    what: &'static str,
    patience: Duration,
    mut write: impl FnMut(bool) -> Result<R, StoreError>,
) -> Result<R, StoreError> {
    let started = Instant::now();
    let (mut repeat, mut wait) = (false, Duration::from_millis(5));
    loop {
        let error = match write(repeat) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        repeat |= matches!(error, StoreError::UnknownOutcome(_));
        if !error.is_transient() || started.elapsed() + wait >= patience {
            tracing::warn!(what, %error, tried_ms = started.elapsed().as_millis() as u64, "a write failed");
            return Err(error);
        }
        tracing::debug!(what, %error, "a write is tried again");
        thread::sleep(wait);
        wait = (wait * 2).min(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use super::*;

    #[test]
    fn r8_what_gathers_during_a_commit_is_the_next_batch() {
        let (sizes, seen) = std_mpsc::channel();
        let (go, wait) = std_mpsc::channel::<()>();
        let gate = Gate::start("test", 100, 10, move |batch: Vec<u32>| {
            sizes.send(batch.len()).unwrap();
            wait.recv().unwrap();
        })
        .unwrap();
        gate.try_put(1).unwrap();
        assert_eq!(seen.recv().unwrap(), 1);
        for number in 0..12 {
            gate.try_put(number).unwrap();
        }
        go.send(()).unwrap();
        assert_eq!(seen.recv().unwrap(), 10);
        go.send(()).unwrap();
        assert_eq!(seen.recv().unwrap(), 2);
        go.send(()).unwrap();
    }

    #[test]
    fn a_full_gate_gives_the_item_back_and_a_panic_costs_one_batch() {
        let (go, wait) = std_mpsc::channel::<()>();
        let (ran, seen) = std_mpsc::channel();
        let gate = Gate::start("test", 1, 1, move |batch: Vec<u32>| {
            ran.send(()).unwrap();
            wait.recv().unwrap();
            assert_ne!(batch, [1], "the first batch panics");
        })
        .unwrap();
        gate.try_put(1).unwrap();
        seen.recv().unwrap();
        gate.try_put(2).unwrap();
        assert_eq!(gate.try_put(3), Err(3));
        go.send(()).unwrap();
        seen.recv().unwrap();
        go.send(()).unwrap();
    }

    #[test]
    fn r8_an_unknown_commit_is_repeated_as_a_repeat_and_bad_data_is_not_repeated() {
        let mut tries = Vec::new();
        let done = persist("test", Duration::from_secs(60), |repeat| {
            tries.push(repeat);
            match tries.len() {
                1 => Err(StoreError::Conflict("deadlock".into())),
                2 => Err(StoreError::UnknownOutcome("cut".into())),
                3 => Err(StoreError::Unavailable("gone".into())),
                _ => Ok(7),
            }
        });
        assert_eq!(done.unwrap(), 7);
        assert_eq!(tries, [false, false, true, true]);
        let mut tries = 0;
        let error = persist::<()>("test", Duration::from_secs(60), |_| {
            tries += 1;
            Err(StoreError::Data { sqlstate: "22021".into(), message: "NUL".into() })
        });
        assert!(error.is_err());
        assert_eq!(tries, 1);
    }
}
