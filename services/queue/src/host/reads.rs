//! A matcher's reads of the database: feeds, sweeps and the discovery of lanes. They run on threads that may block and come
//! back as messages; the permits that all matchers of a host share bound how many run at a time.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_core::{
    matcher::{Entry, Feed, Lane, Sweep},
    time::Timestamp,
};
use millrace_store::{LaneKey, LanePage, Store, StoreError, Waiting};
use tokio::sync::{Semaphore, mpsc};

use crate::blocking;

/// Feeds of one matcher under way at a time.
const FEEDS: usize = 4;

/// Reads of one matcher under way at a time: its feeds, a sweep and a look at the lanes. Each sends one message, so a channel of this
/// size is never full.
pub(super) const READS: usize = FEEDS + 2;

/// Lanes that one read lists.
const LANES: i64 = 500;

/// How long a matcher waits after a read failed before it reads again.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// The sweep rests this many times as long as it read, so that it takes a fifth of one connection at most.
const SWEEP_REST: u32 = 4;

/// How long the sweep waits when nothing is due.
const SWEEP_IDLE: Duration = Duration::from_millis(250);

/// Offers for lanes that are being read, kept until the read is back; past this many they go to the matcher at once, which then
/// reads the lane again.
const DEFERRED: usize = 16_384;

/// What a read brought.
#[derive(Debug)]
pub(super) enum Read {
    Feed(Feed, Result<LanePage, StoreError>),
    Sweep(Sweep, Result<LanePage, StoreError>, Duration),
    Lanes(Result<Vec<LaneKey>, StoreError>),
}

/// The reads of one matcher.
#[derive(Debug)]
pub(super) struct Reads {
    queue: Arc<str>,
    start: Starter,
    /// Lanes being fed, with the offers that came meanwhile: the matcher would have to drop them and then could not know
    /// whether the read had seen them.
    feeding: HashMap<Lane, Vec<Entry>>,
    deferred: usize,
    /// Nothing is fed before this moment, after a failure.
    feed_at: Duration,
    sweeping: bool,
    sweep_at: Duration,
    discovery: Discovery,
    /// How many reads have failed since the last one that did not; one is logged.
    failures: u64,
}

#[derive(Debug)]
struct Discovery {
    every: Duration,
    running: bool,
    at: Duration,
    after: Option<LaneKey>,
}

impl Reads {
    /// Reads of one queue, and the channel on which they come back.
    pub(super) fn new(
        queue: Arc<str>,
        store: Arc<dyn Store>,
        permits: Arc<Semaphore>,
        discovery: Duration,
    ) -> (Self, mpsc::Receiver<Read>) {
        let (done, results) = mpsc::channel(READS);
        let reads = Self {
            queue,
            start: Starter { store, permits, done },
            feeding: HashMap::new(),
            deferred: 0,
            feed_at: Duration::ZERO,
            sweeping: false,
            sweep_at: Duration::ZERO,
            discovery: Discovery { every: discovery, running: false, at: Duration::ZERO, after: None },
            failures: 0,
        };
        (reads, results)
    }

    /// How many feeds may start now.
    pub(super) fn feeds_free(&self, now: Duration) -> usize {
        if now < self.feed_at { 0 } else { FEEDS.saturating_sub(self.feeding.len()) }
    }

    /// Starts a feed that the matcher asked for.
    pub(super) fn feed(&mut self, feed: Feed) {
        self.feeding.insert(feed.lane.clone(), Vec::new());
        let (queue, lane, limit) = (self.queue.clone(), lane_key(&feed.lane), rows(feed.limit));
        let after = feed.after;
        self.start.read(
            move |store| store.lane_page(&queue, &lane, after, None, limit),
            move |result, _| Read::Feed(feed, result),
        );
    }

    /// Keeps an offer until the read of its lane is back. False when the lane is not being read, or too many are kept.
    pub(super) fn defer(&mut self, lane: &Lane, entry: Entry) -> bool {
        match self.feeding.get_mut(lane) {
            Some(offers) if self.deferred < DEFERRED => {
                offers.push(entry);
                self.deferred += 1;
                true
            }
            _ => false,
        }
    }

    /// A feed is back: its rows, or none when it failed; and the offers that came meanwhile.
    pub(super) fn fed(
        &mut self,
        lane: &Lane,
        result: Result<LanePage, StoreError>,
        now: Duration,
    ) -> (Option<LanePage>, Vec<Entry>) {
        let offers = self.feeding.remove(lane).unwrap_or_default();
        self.deferred -= offers.len();
        let page = self.succeeded(result);
        if page.is_none() {
            self.feed_at = now + AFTER_FAILURE;
        }
        (page, offers)
    }

    /// Whether the next part of the sweep may start.
    pub(super) fn may_sweep(&self, now: Duration) -> bool {
        !self.sweeping && now >= self.sweep_at
    }

    /// Starts the part of the sweep that the matcher asked for; none when nothing was due.
    pub(super) fn sweep(&mut self, sweep: Option<Sweep>, now: Duration) {
        let Some(sweep) = sweep else {
            self.sweep_at = now + SWEEP_IDLE;
            return;
        };
        self.sweeping = true;
        let (queue, lane, limit) = (self.queue.clone(), lane_key(&sweep.lane), rows(sweep.limit));
        let (after, up_to) = (sweep.after, sweep.up_to);
        self.start.read(
            move |store| store.lane_page(&queue, &lane, after, up_to, limit),
            move |result, took| Read::Sweep(sweep, result, took),
        );
    }

    /// A part of the sweep is back.
    pub(super) fn swept(
        &mut self,
        result: Result<LanePage, StoreError>,
        took: Duration,
        now: Duration,
    ) -> Option<LanePage> {
        let page = self.succeeded(result);
        self.sweeping = false;
        self.sweep_at = now + if page.is_some() { took * SWEEP_REST } else { AFTER_FAILURE };
        page
    }

    /// Starts the next part of the discovery of lanes, if it is due.
    pub(super) fn discover(&mut self, now: Duration) {
        if self.discovery.running || now < self.discovery.at {
            return;
        }
        self.discovery.running = true;
        let (queue, after) = (self.queue.clone(), self.discovery.after.clone());
        self.start.read(move |store| store.lanes(&queue, after.as_ref(), LANES), |result, _| Read::Lanes(result));
    }

    /// Lanes are back.
    pub(super) fn discovered(&mut self, result: Result<Vec<LaneKey>, StoreError>, now: Duration) -> Vec<LaneKey> {
        let lanes = self.succeeded(result);
        let discovery = &mut self.discovery;
        discovery.running = false;
        match lanes {
            Some(lanes) if lanes.len() as i64 >= LANES => {
                discovery.after = lanes.last().cloned();
                discovery.at = now;
                lanes
            }
            Some(lanes) => {
                discovery.after = None;
                discovery.at = now + discovery.every;
                lanes
            }
            None => {
                discovery.at = now + AFTER_FAILURE;
                Vec::new()
            }
        }
    }

    /// The result, with failures logged once until a read succeeds again.
    fn succeeded<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        match result {
            Ok(value) => {
                if self.failures > 0 {
                    tracing::info!(queue = &*self.queue, failures = self.failures, "the matcher can read again");
                }
                self.failures = 0;
                Some(value)
            }
            Err(error) => {
                self.failures += 1;
                if self.failures == 1 {
                    tracing::warn!(queue = &*self.queue, %error, "the matcher cannot read; it goes on with what it has");
                }
                None
            }
        }
    }
}

/// Starts reads.
#[derive(Clone)]
struct Starter {
    store: Arc<dyn Store>,
    permits: Arc<Semaphore>,
    done: mpsc::Sender<Read>,
}

impl Starter {
    /// Makes the call once a permit is free, and sends what it brought with the time that it took.
    fn read<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
        wrap: impl FnOnce(Result<T, StoreError>, Duration) -> Read + Send + 'static,
    ) {
        let Starter { store, permits, done } = self.clone();
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _permit = permits.acquire_owned().await;
            let started = Instant::now();
            let result = blocking::call(store, call).await;
            // An actor that has ended needs it no more.
            let _ = done.send(wrap(result, started.elapsed())).await;
        });
    }
}

impl std::fmt::Debug for Starter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Starter").finish_non_exhaustive()
    }
}

/// The rows of a page, as the matcher takes them.
pub(super) fn entries(rows: Vec<Waiting>) -> Vec<Entry> {
    let entry = |row: Waiting| Entry {
        id: row.id,
        ready_at: Timestamp(row.ready_at_us),
        expires_at: row.expires_at_us.map(Timestamp),
        min_reader: row.min_reader,
    };
    rows.into_iter().map(entry).collect()
}

fn lane_key(lane: &Lane) -> LaneKey {
    LaneKey { tenant: lane.tenant.to_string(), rank: lane.rank }
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use millrace_core::id::TaskId;
    use millrace_store::MemoryStore;
    use uuid::Uuid;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn entry(number: u128) -> Entry {
        Entry { id: TaskId(Uuid::from_u128(number)), ready_at: Timestamp(1), expires_at: None, min_reader: 1 }
    }

    fn reads() -> (Reads, mpsc::Receiver<Read>) {
        let (store, _clock) = MemoryStore::settable(Timestamp(1_700_000_000_000_000));
        Reads::new("default".into(), Arc::new(store), Arc::new(Semaphore::new(1)), Duration::from_secs(5))
    }

    #[tokio::test]
    async fn r3_offers_for_a_lane_that_is_being_read_are_kept_until_it_has_been() {
        let (mut reads, mut results) = reads();
        let lane = Lane { rank: 0, tenant: "acme".into() };
        assert!(!reads.defer(&lane, entry(1)), "it is not being read");
        reads.feed(Feed { lane: lane.clone(), after: (Timestamp(0), TaskId(Uuid::nil())), limit: 10 });
        assert!(reads.defer(&lane, entry(2)) && reads.defer(&lane, entry(3)));
        assert!(!reads.defer(&Lane { rank: 1, ..lane.clone() }, entry(4)), "another lane");
        let Some(Read::Feed(feed, result)) = results.recv().await else { panic!("a feed") };
        let (page, offers) = reads.fed(&feed.lane, result, NOW);
        assert!(page.is_some_and(|page| page.exhausted && page.rows.is_empty()));
        assert_eq!(offers, [entry(2), entry(3)]);
        assert_eq!((reads.deferred, reads.feeds_free(NOW)), (0, FEEDS));
    }

    #[tokio::test]
    async fn nothing_is_fed_for_a_while_after_a_failure() {
        let (mut reads, _results) = reads();
        let lane = Lane { rank: 0, tenant: "acme".into() };
        let failure = || StoreError::Timeout("by the test".into());
        assert!(reads.fed(&lane, Err(failure()), NOW).0.is_none());
        assert_eq!((reads.feeds_free(NOW), reads.feeds_free(AFTER_FAILURE)), (0, FEEDS));
        assert!(reads.discovered(Err(failure()), NOW).is_empty());
        assert_eq!(reads.failures, 2);
        assert!(reads.discovered(Ok(Vec::new()), NOW).is_empty());
        assert_eq!(reads.failures, 0);
    }

    #[tokio::test]
    async fn lanes_are_listed_page_by_page_then_again_after_a_while() {
        let (mut reads, _results) = reads();
        let page: Vec<LaneKey> = (0..LANES).map(|n| LaneKey { tenant: format!("t{n:04}"), rank: 0 }).collect();
        assert_eq!(reads.discovered(Ok(page.clone()), NOW).len(), page.len());
        assert_eq!((reads.discovery.at, reads.discovery.after.as_ref()), (NOW, page.last()));
        reads.discovered(Ok(page[..1].to_vec()), NOW);
        assert_eq!((reads.discovery.at, reads.discovery.after.as_ref()), (Duration::from_secs(5), None));
    }
}
