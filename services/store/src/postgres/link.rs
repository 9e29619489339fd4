//! One connection, on a thread of its own.
//!
//! libpq waits for an answer for as long as the socket lives, and a server that is frozen, or a proxy that swallows what it is
//! sent, keeps a socket alive for ever. So the connection belongs to a thread, callers wait for the thread with a deadline,
//! and past it the thread is left behind with its connection: it can no longer commit, and ends when its wait does. There are never
//! more of them than a pool has connections, because a new connection to such a server does not come about either.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use diesel::{PgConnection, r2d2::R2D2Connection};

use super::{
    Known,
    conn::{Conn, Mode},
    pool::Pace,
};
use crate::{Result, StoreError};

type Job = Box<dyn FnOnce(&mut PgConnection) + Send>;

/// A connection that belongs to its thread, which ends when this value is dropped.
pub(super) struct Link {
    jobs: SyncSender<Job>,
    watch: Arc<Watch>,
    known: Arc<Known>,
    pace: Arc<Pace>,
    patience: Duration,
    broken: bool,
    used_at: Instant,
}

/// What the caller and the thread tell each other about a call.
pub(super) struct Watch {
    origin: Instant,
    phase: AtomicU8,
    /// When the statement under way is late, in milliseconds since `origin`.
    late_at_ms: AtomicU64,
    /// The session is set for statements that find no index.
    reading: AtomicBool,
}

/// Nothing that has been sent can have changed the database for good.
const WORKING: u8 = 0;
/// A commit, or a statement that commits by itself, has been sent.
const COMMITTING: u8 = 1;
/// The caller has left: nothing more may be sent that commits.
const ABANDONED: u8 = 2;

impl Watch {
    fn new() -> Self {
        Self {
            origin: Instant::now(),
            phase: AtomicU8::new(WORKING),
            late_at_ms: AtomicU64::new(0),
            reading: AtomicBool::new(false),
        }
    }

    /// The thread is about to send a statement that may take this long.
    pub(super) fn statement(&self, patience: Duration) -> Result<()> {
        self.late_at_ms.store(millis(self.origin.elapsed() + patience), Ordering::SeqCst);
        match self.phase.load(Ordering::SeqCst) {
            ABANDONED => Err(abandoned()),
            _ => Ok(()),
        }
    }

    /// The thread is about to send something that commits.
    pub(super) fn commit(&self, patience: Duration) -> Result<()> {
        self.statement(patience)?;
        match self.phase.compare_exchange(WORKING, COMMITTING, Ordering::SeqCst, Ordering::SeqCst) {
            Err(ABANDONED) => Err(abandoned()),
            _ => Ok(()),
        }
    }

    /// Notes that the session is set for statements that find no index, or for such that do; tells whether it was not before.
    pub(super) fn set_reading(&self, reading: bool) -> bool {
        self.reading.swap(reading, Ordering::Relaxed) != reading
    }

    /// How long the statement under way may still take; zero when it is late.
    fn remaining(&self) -> Duration {
        let late_at = Duration::from_millis(self.late_at_ms.load(Ordering::SeqCst));
        late_at.saturating_sub(self.origin.elapsed())
    }

    /// The caller leaves. The error says whether the database may have changed.
    fn abandon(&self) -> StoreError {
        let text = "the database did not answer within the timeouts; the connection is thrown away".to_owned();
        match self.phase.swap(ABANDONED, Ordering::SeqCst) {
            COMMITTING => StoreError::UnknownOutcome(text),
            _ => StoreError::Timeout(text),
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn abandoned() -> StoreError {
    StoreError::Timeout("the caller has left".into())
}

impl Link {
    /// Connects on a new thread. Statements may take `patience` each before the caller gives up on them.
    pub(super) fn open(
        connect: impl FnOnce() -> Result<PgConnection> + Send + 'static,
        connect_timeout: Duration,
        patience: Duration,
        pace: Arc<Pace>,
        known: Arc<Known>,
    ) -> Result<Self> {
        // One caller at a time has a link, so there is never more than one job.
        let (jobs, queue) = mpsc::sync_channel::<Job>(1);
        let (opened, opening) = mpsc::sync_channel(1);
        let run = move || match connect() {
            Ok(mut connection) => {
                let _ = opened.send(Ok(()));
                for job in queue {
                    job(&mut connection);
                }
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        };
        thread::Builder::new()
            .name("millrace-pg".into())
            .spawn(run)
            .map_err(|error| StoreError::Unavailable(format!("no thread for a connection: {error}")))?;
        match opening.recv_timeout(connect_timeout) {
            Ok(result) => result?,
            Err(_) => return Err(StoreError::Unavailable("connecting took too long".into())),
        }
        Ok(Self { jobs, watch: Arc::new(Watch::new()), known, pace, patience, broken: false, used_at: Instant::now() })
    }

    /// Whether it cannot be used again.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// When it was last used.
    pub(super) fn used_at(&self) -> Instant {
        self.used_at
    }

    /// Runs a call on the connection and waits for it, for as long as its statements may take: as long as they do usually, unless the
    /// call has a patience of its own.
    pub(super) fn run<T: Send + 'static>(
        &mut self,
        mode: Mode,
        patience: Option<Duration>,
        work: impl FnOnce(&mut Conn<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (pace, usual) = (Arc::clone(&self.pace), patience.is_none());
        let patience = patience.unwrap_or(self.patience);
        self.watch.phase.store(WORKING, Ordering::SeqCst);
        self.watch.statement(patience)?;
        let (answer, answers) = mpsc::sync_channel(1);
        let (watch, known) = (Arc::clone(&self.watch), Arc::clone(&self.known));
        let job: Job = Box::new(move |connection| {
            let mut conn = Conn::new(connection, &watch, &known, mode, patience);
            let ready = if usual { conn.set_pace(&pace) } else { Ok(()) };
            let (result, sound) = conn.perform(|conn| ready.and_then(|()| work(conn)));
            let sound = sound && !connection.is_broken();
            let _ = answer.send((result, sound));
        });
        if self.jobs.send(job).is_err() {
            self.broken = true;
            return Err(StoreError::Unavailable("the connection's thread has ended".into()));
        }
        loop {
            match answers.recv_timeout(self.watch.remaining()) {
                Ok((result, sound)) => {
                    self.broken |= !sound;
                    self.used_at = Instant::now();
                    return result;
                }
                Err(RecvTimeoutError::Timeout) if !self.watch.remaining().is_zero() => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.broken = true;
                    return Err(self.watch.abandon());
                }
                // The job panicked, and its connection was closed with its thread.
                Err(RecvTimeoutError::Disconnected) => {
                    self.broken = true;
                    return Err(match self.watch.phase.load(Ordering::SeqCst) {
                        COMMITTING => StoreError::UnknownOutcome("a call panicked".into()),
                        _ => StoreError::Internal("a call panicked".into()),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn r8_a_caller_that_leaves_before_the_commit_knows_that_nothing_was_changed() {
        let watch = Watch::new();
        watch.statement(LONG).unwrap();
        assert!(matches!(watch.abandon(), StoreError::Timeout(_)));
        assert!(watch.commit(LONG).is_err());
        assert!(watch.statement(LONG).is_err());
    }

    #[test]
    fn r8_a_caller_that_leaves_during_the_commit_does_not_know() {
        let watch = Watch::new();
        watch.commit(LONG).unwrap();
        assert!(matches!(watch.abandon(), StoreError::UnknownOutcome(_)));
    }

    #[test]
    fn a_statement_is_late_after_its_patience() {
        let watch = Watch::new();
        watch.statement(LONG).unwrap();
        assert!(watch.remaining() > Duration::from_secs(3000));
        watch.statement(Duration::ZERO).unwrap();
        assert!(watch.remaining().is_zero());
    }
}
