//! One query an interval for all who watch pools.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use millrace_proto::scaler::v1::{Pool, WatchPoolsResponse};
use millrace_runtime::{shutdown::Shutdown, status::Fault};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tonic::Status;

use crate::{calls::Calls, describe::Described, leader::Desk};

/// The pools that a watcher wants; none means all.
pub(crate) type Names = Option<BTreeSet<String>>;

/// The stream of one watcher.
pub(crate) type Responses = Pin<Box<dyn Stream<Item = Result<WatchPoolsResponse, Status>> + Send>>;

/// Reads pools for all watchers together. Watchers of one interval tick at the same moments; the first to come reads, the others
/// wait for what it reads, so the database sees one query however many watch.
pub(crate) struct Watch {
    calls: Calls,
    desk: Desk,
    shutdown: Shutdown,
    /// Watchers' ticks are multiples of their interval from here.
    origin: Instant,
    /// Bounds the watchers.
    seats: Arc<Semaphore>,
    wanted: Mutex<Wanted>,
    /// Held while the database is read. Who waits here waits no longer than the store's own bounds on a read.
    latest: tokio::sync::Mutex<Option<Latest>>,
}

/// What all watchers want, by their numbers.
#[derive(Debug, Default)]
struct Wanted {
    next: u64,
    names: BTreeMap<u64, Names>,
}

#[derive(Debug)]
struct Latest {
    read_at: Instant,
    names: Names,
    pools: Arc<Vec<Pool>>,
}

impl Watch {
    /// For at most `seats` watchers.
    pub(crate) fn new(calls: Calls, desk: Desk, shutdown: Shutdown, seats: usize) -> Arc<Self> {
        Arc::new(Self {
            calls,
            desk,
            shutdown,
            origin: Instant::now(),
            seats: Arc::new(Semaphore::new(seats)),
            wanted: Mutex::default(),
            latest: tokio::sync::Mutex::new(None),
        })
    }

    /// Watches pools: at once, then at each interval until the caller leaves, the database cannot be read or the process
    /// drains. A caller that reads slowly misses moments.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when there are too many watchers.
    pub(crate) fn watch(self: &Arc<Self>, names: Names, interval: Duration) -> Result<Responses, Fault> {
        let Ok(seat) = self.seats.clone().try_acquire_owned() else {
            let message = "too many callers watch pools of this process";
            return Err(Fault::exhausted("TOO_MANY_WATCHERS", message, Duration::from_secs(10)));
        };
        let watcher = Watcher::new(self.clone(), names, interval, seat);
        let stop = self.shutdown.clone();
        let moments = stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            let item = watcher.next().await;
            let next = item.is_ok().then_some(watcher);
            Some((item, next))
        });
        Ok(Box::pin(moments.take_until(async move { stop.draining().await })))
    }

    /// Pools that were read no longer than `age` ago.
    async fn pools(&self, names: &Names, age: Duration) -> Result<Arc<Vec<Pool>>, Fault> {
        let mut latest = self.latest.lock().await;
        if let Some(latest) = &*latest
            && latest.read_at.elapsed() <= age
            && covers(&latest.names, names)
        {
            return Ok(latest.pools.clone());
        }
        let names = self.wanted().all();
        let (read_at, wanted) = (Instant::now(), names.clone());
        let described = self.calls.read(move |store| {
            let mut pools = store.pools()?;
            pools.rows.retain(|row| wants(&wanted, &row.name));
            Described::of(store, pools)
        });
        let pools = Arc::new(described.await?.pools(self.desk.is_led()));
        *latest = Some(Latest { read_at, names, pools: pools.clone() });
        Ok(pools)
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wanted {
    /// The union of what is wanted.
    fn all(&self) -> Names {
        let names = self.names.values().map(|names| names.as_ref()).collect::<Option<Vec<_>>>()?;
        Some(names.into_iter().flatten().cloned().collect())
    }
}

/// One watcher.
struct Watcher {
    watch: Arc<Watch>,
    number: u64,
    names: Names,
    /// None until the first item, which comes at once.
    ticks: Option<Interval>,
    interval: Duration,
    _seat: OwnedSemaphorePermit,
}

impl Watcher {
    fn new(watch: Arc<Watch>, names: Names, interval: Duration, seat: OwnedSemaphorePermit) -> Self {
        let number = {
            let mut wanted = watch.wanted();
            wanted.next += 1;
            let number = wanted.next;
            wanted.names.insert(number, names.clone());
            number
        };
        Self { watch, number, names, ticks: None, interval, _seat: seat }
    }

    async fn next(&mut self) -> Result<WatchPoolsResponse, Status> {
        match &mut self.ticks {
            Some(ticks) => {
                ticks.tick().await;
            }
            None => self.ticks = Some(aligned(self.watch.origin, self.interval)),
        }
        // What another watcher has read at this same moment will do.
        let pools = self.watch.pools(&self.names, self.interval / 4).await?;
        let pools = pools.iter().filter(|pool| wants(&self.names, &pool.name)).cloned().collect();
        Ok(WatchPoolsResponse { pools })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watch.wanted().names.remove(&self.number);
    }
}

/// Ticks at the multiples of the interval since `origin` that are still to come.
fn aligned(origin: Instant, interval: Duration) -> Interval {
    let passed = origin.elapsed();
    let into = Duration::from_nanos((passed.as_nanos() % interval.as_nanos()) as u64);
    let mut ticks = interval_at(Instant::now() + (interval - into), interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

fn wants(names: &Names, name: &str) -> bool {
    names.as_ref().is_none_or(|names| names.contains(name))
}

fn covers(read: &Names, wanted: &Names) -> bool {
    match (read, wanted) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(read), Some(wanted)) => wanted.is_subset(read),
    }
}
