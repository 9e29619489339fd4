//! The baseline: a distributor as it was in the incident. It loads a batch into typed rows, which fails as a whole when one row does,
//! and then starts again from the top. It is here for comparison only and has no mark.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use diesel::{PgConnection, Queryable, QueryableByName, RunQueryDsl, prelude::*, sql_query, sql_types};
use millrace_tests::postgres::{self, Database};
use serde_json::json;
use tokio::task::block_in_place;

use crate::{
    form::Report,
    judge::now_ns,
    pace::{self, Pace},
    sql::Sql,
};

/// Rows of a batch.
const BATCH: i64 = 100;

/// The pause before a failed batch is loaded again.
const AGAIN: Duration = Duration::from_millis(50);

diesel::table! {
    /// What waits. A release writes the key as text, the next one as a number.
    naive (id) {
        id -> BigInt,
        key -> Text,
        key_number -> BigInt,
    }
}

/// The types as the database has them: either column may hold nothing.
const SCHEMA: &str = "CREATE TABLE naive (id bigserial PRIMARY KEY, key text, key_number bigint)";

/// The releases, in the order in which they are deployed.
const THIS: u8 = 0;
const NEXT: u8 = 1;
const PATCHED: u8 = 2;

#[derive(Queryable)]
struct OfThis {
    id: i64,
    #[expect(dead_code, reason = "loaded for its type")]
    key: String,
}

#[derive(Queryable)]
struct OfNext {
    id: i64,
    #[expect(dead_code, reason = "loaded for its type")]
    key_number: i64,
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = sql_types::BigInt)]
    id: i64,
}

/// Runs the incident's script: this release with a backlog, the next one, this one again, the patched one, each for `time`.
pub(super) async fn run(rate: f64, time: Duration, report: &mut Report) -> Result<()> {
    let database = postgres::fresh_database();
    let mut sql = Sql::connect(&database)?;
    sql.execute(SCHEMA)?;
    sql.execute(&format!("INSERT INTO naive (key) SELECT 'old' FROM generate_series(1, {})", rate as i64))?;
    let naive = Naive::start(&database, rate);
    let mut seconds = Vec::new();
    for (release, name) in [(THIS, "before"), (NEXT, "other type"), (THIS, "rolled back"), (PATCHED, "patched")] {
        naive.release.store(release, Ordering::Relaxed);
        report.phase(&format!("naive reader: {name}"));
        let from = now_ns();
        if release == NEXT {
            // What had been written and not been read when the deploy came.
            block_in_place(|| sql.execute("INSERT INTO naive (id, key) VALUES (-1, 'old')"))?;
        }
        tokio::time::sleep(time).await;
        let to = now_ns();
        seconds.push((name, naive.ended(from, to) as f64 / time.as_secs_f64()));
        super::timeline::ends(report, &naive.ends());
    }
    let figures: serde_json::Map<_, _> =
        seconds.iter().map(|(name, per_s)| ((*name).to_owned(), json!(per_s))).collect();
    report.figure("naive_reader_good_per_s", figures);
    Ok(())
}

/// The reader and the submitter beside it.
struct Naive {
    release: Arc<AtomicU8>,
    ends: Arc<Mutex<Vec<u64>>>,
    stop: Arc<AtomicBool>,
    _pace: Pace,
}

impl Naive {
    fn start(database: &Database, rate: f64) -> Self {
        let (release, stop) = (Arc::new(AtomicU8::new(THIS)), Arc::new(AtomicBool::new(false)));
        let ends: Arc<Mutex<Vec<u64>>> = Arc::default();
        let (mut submitter, mut reader) = (database.connect(), database.connect());
        let (of, stopped, into) = (release.clone(), stop.clone(), ends.clone());
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match pass(&mut reader, of.load(Ordering::Relaxed)) {
                    Ok(done) if done > 0 => {
                        let now = now_ns();
                        into.lock().unwrap_or_else(PoisonError::into_inner).extend((0..done).map(|_| now));
                    }
                    // Nothing waits; or the batch failed, and is read again from the top.
                    _ => std::thread::sleep(AGAIN),
                }
            }
        });
        let of = release.clone();
        let pace = pace::keep(rate, u64::MAX, move |_, _| {
            let column = if of.load(Ordering::Relaxed) == NEXT { "key_number" } else { "key" };
            // Its failure at the end of the drill, when the database is dropped, is nobody's business.
            let _ = sql_query(format!("INSERT INTO naive ({column}) VALUES (1)")).execute(&mut submitter);
        });
        Self { release, ends, stop, _pace: pace }
    }

    fn ends(&self) -> Vec<u64> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ended(&self, from: u64, to: u64) -> usize {
        self.ends().iter().filter(|end| (from..to).contains(end)).count()
    }
}

impl Drop for Naive {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Loads a batch as a release has it, and takes what it got out of the table.
fn pass(connection: &mut PgConnection, release: u8) -> diesel::QueryResult<usize> {
    let top = naive::table.order(naive::id).limit(BATCH);
    let ids: Vec<i64> = match release {
        THIS => {
            let rows: Vec<OfThis> = top.select((naive::id, naive::key)).load(connection)?;
            rows.into_iter().map(|row| row.id).collect()
        }
        NEXT => {
            let rows: Vec<OfNext> = top.select((naive::id, naive::key_number)).load(connection)?;
            rows.into_iter().map(|row| row.id).collect()
        }
        _ => {
            let rows: Vec<Id> =
                sql_query(format!("SELECT id FROM naive ORDER BY id LIMIT {BATCH}")).load(connection)?;
            rows.into_iter().map(|row| row.id).collect()
        }
    };
    diesel::delete(naive::table.filter(naive::id.eq_any(&ids))).execute(connection)
}
