//! What queues hold, in memory: read in the background by every replica for whatever KEDA has asked about, so that answers need neither
//! the database nor the queue service at that moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use millrace_core::fleet::Pool;
use millrace_runtime::{Context, background, status::Fault};
use millrace_store::{QueueDemand, StoreError};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

use super::subject::Subject;
use crate::{
    convert::{self, status::Asked},
    engine::Shares,
};

/// How often what is asked about is read.
const PERIOD: Duration = Duration::from_secs(2);

/// Figures that someone else (the leader of this process) has read so recently are not read again.
const FRESH: Duration = Duration::from_millis(1_500);

/// How often pools are read.
const POOLS_EVERY: Duration = Duration::from_secs(10);

/// What nobody has asked about for this long is not read any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Subjects that are remembered at most; one more is refused.
const SUBJECTS: usize = 1_024;

/// Queues of one statement.
const QUEUES: usize = 64;

/// Over which arrivals are counted, which nobody here looks at: the shorter, the cheaper.
const WINDOW: Duration = Duration::from_secs(1);

/// How long the first question about something may wait for its first figures.
const FIRST: Duration = Duration::from_secs(1);

/// What queues hold. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Raised when anything is read.
    revision: watch::Sender<u64>,
    nudge: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    asked: BTreeMap<Subject, Instant>,
    pools: BTreeMap<String, Pool>,
    pools_read: Option<Instant>,
    /// None for a queue that does not exist.
    queues: BTreeMap<String, (Option<QueueDemand>, Instant)>,
}

/// What there is to say about a subject.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figure {
    /// Tasks that want an orchestrator or have one.
    pub(crate) outstanding: f64,
    /// How old the oldest figure behind it is.
    pub(crate) age: Duration,
}

impl Figures {
    /// Reads in the background until the process drains.
    pub(crate) fn start(&self, context: &Context) {
        let (this, reading) = (self.clone(), context.clone());
        background::every("figures for KEDA", PERIOD, self.inner.nudge.clone(), &context.shutdown, move || {
            let (this, context) = (this.clone(), reading.clone());
            async move { this.refresh(&context).await }
        });
    }

    /// Figures that were read elsewhere.
    pub(crate) fn put(&self, rows: &[QueueDemand]) {
        let now = Instant::now();
        let mut state = self.state();
        for row in rows {
            state.queues.insert(row.queue.clone(), (Some(row.clone()), now));
        }
        drop(state);
        self.changed();
    }

    /// The slots of a pool's nodes, if it is known.
    pub(crate) fn slots(&self, pool: &str) -> Option<u32> {
        self.state().pools.get(pool).map(|pool| pool.slots)
    }

    /// Remembers that someone asks about this, so that it is read from now on.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when too much is asked about.
    pub(crate) fn ask(&self, subject: &Subject) -> Result<(), Fault> {
        let now = Instant::now();
        let mut state = self.state();
        state.asked.retain(|_, asked| now.saturating_duration_since(*asked) < FORGOTTEN_AFTER);
        if state.asked.len() >= SUBJECTS && !state.asked.contains_key(subject) {
            let message = "too many different queues and pools are asked about";
            return Err(Fault::exhausted("TOO_MANY_SUBJECTS", message, Duration::from_secs(60)));
        }
        if state.asked.insert(subject.clone(), now).is_none() {
            self.inner.nudge.notify_one();
        }
        Ok(())
    }

    /// The figures of a subject, from memory. Only the first question about something waits a moment for the first figures.
    ///
    /// # Errors
    /// NOT_FOUND when the database has no such queue or pool; UNAVAILABLE when it has never been read.
    pub(crate) async fn of(&self, subject: &Subject) -> Result<Figure, Fault> {
        self.ask(subject)?;
        let mut revision = self.inner.revision.subscribe();
        let seen = async {
            loop {
                if let Some(figure) = self.now(subject) {
                    return figure;
                }
                // The sender lives as long as this object.
                let _ = revision.changed().await;
            }
        };
        let never = || Err(Fault::unavailable("its figures have not been read yet", Duration::from_secs(2)));
        timeout(FIRST, seen).await.unwrap_or_else(|_| never())
    }

    /// The figures of a subject as they are in memory; none while they were never read.
    pub(crate) fn now(&self, subject: &Subject) -> Option<Result<Figure, Fault>> {
        let state = self.state();
        let parts: BTreeMap<&str, f64> = match subject {
            Subject::Queues(queues) => queues.iter().map(|queue| (queue.as_str(), 1.0)).collect(),
            Subject::Pool(name) => match state.pools.get(name) {
                Some(pool) => Shares::of(state.pools.values()).parts(pool),
                None => {
                    state.pools_read?;
                    return Some(Err(super::no_pool(name)));
                }
            },
        };
        let (mut asked, mut age) = (Asked::default(), Duration::ZERO);
        for (queue, part) in parts {
            let (row, read) = state.queues.get(queue)?;
            match row {
                Some(row) => asked.add(row, part),
                None => return Some(Err(super::no_queue(queue))),
            }
            age = age.max(read.elapsed());
        }
        Some(Ok(Figure { outstanding: asked.outstanding(), age }))
    }

    /// Tells of every reading.
    pub(crate) fn revisions(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    async fn refresh(&self, context: &Context) -> Result<(), StoreError> {
        if self.pools_due() {
            let pools = context.call(|store| store.pools()).await?;
            // A pool whose row cannot be read is not known here; the leader says so.
            let read = pools.rows.iter().filter_map(|row| convert::pool::booked(row).ok());
            let read = read.map(|pool| (pool.name.clone(), pool)).collect();
            let mut state = self.state();
            (state.pools, state.pools_read) = (read, Some(Instant::now()));
        }
        let queues: Vec<String> = self.queues_due().into_iter().collect();
        for part in queues.chunks(QUEUES) {
            let names = part.to_vec();
            let rows = context.call(move |store| store.queue_demand(&names, WINDOW)).await?;
            let mut rows: BTreeMap<String, QueueDemand> =
                rows.into_iter().map(|row| (row.queue.clone(), row)).collect();
            let now = Instant::now();
            let mut state = self.state();
            for queue in part {
                let row = rows.remove(queue);
                state.queues.insert(queue.clone(), (row, now));
            }
        }
        self.changed();
        Ok(())
    }

    /// Whether pools are to be read: from time to time, and when one is asked about that is not known.
    fn pools_due(&self) -> bool {
        let state = self.state();
        let unknown = |subject: &Subject| matches!(subject, Subject::Pool(name) if !state.pools.contains_key(name));
        state.pools_read.is_none_or(|read| read.elapsed() >= POOLS_EVERY) || state.asked.keys().any(unknown)
    }

    /// Queues that are asked about and whose figures are not fresh. Others are forgotten.
    fn queues_due(&self) -> BTreeSet<String> {
        let mut state = self.state();
        let State { asked, pools, queues, .. } = &mut *state;
        let of = |subject: &Subject| match subject {
            Subject::Queues(queues) => queues.clone(),
            Subject::Pool(name) => pools.get(name).map(|pool| pool.queues.clone()).unwrap_or_default(),
        };
        let recent = asked.iter().filter(|(_, asked)| asked.elapsed() < FORGOTTEN_AFTER);
        let mut wanted: BTreeSet<String> = recent.flat_map(|(subject, _)| of(subject)).collect();
        queues.retain(|queue, (_, read)| wanted.contains(queue) || read.elapsed() < FORGOTTEN_AFTER);
        wanted.retain(|queue| queues.get(queue).is_none_or(|(_, read)| read.elapsed() >= FRESH));
        wanted
    }

    fn changed(&self) {
        self.inner.revision.send_modify(|revision| *revision += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
