//! What the database shows over time, four times a second, by a connection of its own.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Result;
use diesel::{QueryableByName, RunQueryDsl, sql_query, sql_types};
use millrace_tests::postgres::Database;

use crate::{judge::now_ns, sql::Sql};

/// Time between two looks.
pub(crate) const PERIOD: Duration = Duration::from_millis(250);

/// The age counts tasks that are QUEUED in a queue that exists; so a row that waits for a later release has none.
const LOOK: &str = "SELECT (SELECT count(*) FROM quarantine) AS quarantine,
    coalesce((extract(epoch FROM clock_timestamp()) * 1000000)::bigint - (SELECT min(ready_at_us) FROM tasks
        WHERE state = 2 AND queue IN (SELECT name FROM queues)), 0) AS age_us";

/// One look.
#[derive(Debug, Clone, Copy, QueryableByName)]
struct Look {
    #[diesel(sql_type = sql_types::BigInt)]
    quarantine: i64,
    #[diesel(sql_type = sql_types::BigInt)]
    age_us: i64,
}

/// What was seen at a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// When, in nanoseconds since 1970.
    pub(crate) at_ns: u64,
    /// Rows in quarantine.
    pub(crate) quarantine: i64,
    /// For how long the oldest waiting task has waited, in seconds.
    pub(crate) age_s: f64,
}

/// Looks until it is dropped.
pub(crate) struct Sampler {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(crate) fn start(database: &Database) -> Result<Self> {
        let mut sql = Sql::connect(database)?;
        // A look must not wait for a lock that is part of the drill: there is none for that time.
        sql.execute("SET lock_timeout = '100ms'; SET statement_timeout = '1s'")?;
        let (samples, stop) = (Arc::<Mutex<Vec<Sample>>>::default(), Arc::new(AtomicBool::new(false)));
        let (into, stopped) = (samples.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let begin = Instant::now();
            for number in 0.. {
                let due = begin + PERIOD * number;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let at_ns = now_ns();
                if let Ok(Look { quarantine, age_us }) = sql_query(LOOK).get_result(&mut sql.0) {
                    let age_s = age_us.max(0) as f64 / 1e6;
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(Sample { at_ns, quarantine, age_s });
                }
            }
        });
        Ok(Self { samples, stop, thread: Some(thread) })
    }

    /// What was seen until now.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}
