//! What every part of a replica shares.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use millrace_core::id::{MemberId, TaskId};
use millrace_queue::Host;
use millrace_runtime::{Context, foreign::ForeignRows, status::Fault};
use millrace_store::{Cluster, MemberRow, Store, StoreError, Waiting};
use tokio::sync::{Notify, Semaphore};

use crate::{
    StartError, answered::Answered, beats::Beat, claims::ClaimItem, convert, ends::End, gate, gate::Gate, links::Links,
    metrics::Metrics, output::Outputs, routing::RoutingCache, sessions::Sessions, settings::Settings, submit::Group,
    submit::Room, suspicion::Survey, watch::Watches,
};

/// Reads by people that may be under way at once; more of them wait.
const READS: usize = 8;

/// Writes by people and sessions that open, resume or compare, under way at once; more of them wait. Fewer than the pool's
/// connections, so that the gates and the loops always find one.
const WRITES: usize = 3;

/// The whole of a replica.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) context: Context,
    pub(crate) routing: RoutingCache,
    pub(crate) links: Links,
    pub(crate) sessions: Sessions,
    pub(crate) outputs: Outputs,
    pub(crate) watches: Watches,
    pub(crate) host: Host,
    pub(crate) metrics: Arc<Metrics>,
    /// Rows that this process cannot read.
    pub(crate) foreign: Arc<ForeignRows>,
    /// What the last look at the quarantine and the schema found.
    pub(crate) survey: Mutex<Survey>,
    /// Answers to operators' changes of the quarantine, for those who ask again.
    pub(crate) answered: Answered,
    /// What the last look at the cluster found; none before the first.
    pub(crate) cluster: Mutex<Option<Cluster>>,
    /// The members that the last look found.
    pub(crate) members: Mutex<Vec<MemberRow>>,
    /// Wakes the loop that looks for queues' owners.
    pub(crate) look_for_owners: Arc<Notify>,
    /// Wakes the loop that puts tasks back whose session is over.
    pub(crate) reap: Arc<Notify>,
    pub(crate) submits: Gate<Group>,
    /// How much may wait in the submit gate.
    pub(crate) room: Arc<Room>,
    pub(crate) claims: Gate<ClaimItem>,
    pub(crate) ends: Gate<End>,
    pub(crate) beats: Gate<Beat>,
    reads: Semaphore,
    writes: Semaphore,
    started: Instant,
}

impl Shared {
    pub(crate) fn start(settings: Settings, context: Context) -> Result<Arc<Self>, StartError> {
        let host = crate::tasks::host(&context);
        let (most, pending) = (settings.max_batch, settings.max_pending_submissions);
        let mut failed = None;
        // The gates' threads hold the replica weakly: they end with it.
        let shared = Arc::new_cyclic(|weak: &std::sync::Weak<Self>| {
            let mut gate = Starter { weak, failed: &mut failed };
            Self {
                routing: RoutingCache::default(),
                links: Links::default(),
                sessions: Sessions::default(),
                outputs: Outputs::new(settings.output_bytes),
                watches: Watches::new(settings.max_watchers),
                host,
                metrics: context.metrics.group(Metrics::register),
                foreign: ForeignRows::of(&context),
                survey: Mutex::default(),
                answered: Answered::default(),
                cluster: Mutex::new(None),
                members: Mutex::new(Vec::new()),
                look_for_owners: Arc::new(Notify::new()),
                reap: Arc::new(Notify::new()),
                submits: gate.start("submit", pending, most, crate::submit::run),
                room: Room::new(&settings),
                claims: gate.start("claim", 65_536, most, crate::claims::run),
                ends: gate.start("complete", 65_536, most, crate::ends::run),
                beats: gate.start("heartbeat", 16_384, most, crate::beats::run),
                reads: Semaphore::new(READS),
                writes: Semaphore::new(WRITES),
                started: Instant::now(),
                settings,
                context,
            }
        });
        match failed {
            Some(error) => Err(StartError::Thread(error)),
            None => Ok(shared),
        }
    }

    /// The store.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.context.store
    }

    /// This replica's id.
    pub(crate) fn id(&self) -> MemberId {
        MemberId(self.context.member_id)
    }

    /// Time since the replica started: a clock that only moves forward.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The cluster, or UNAVAILABLE while the database has not answered yet.
    pub(crate) fn cluster(&self) -> Result<Cluster, Fault> {
        lock(&self.cluster)
            .ok_or_else(|| Fault::unavailable("the database has not answered yet", Duration::from_secs(1)))
    }

    /// Runs a call of a person on the store, waiting for a place among the few that may run at once.
    pub(crate) async fn read<R: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Store) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, Fault> {
        let _place = self.reads.acquire().await.map_err(|_| Fault::internal("the replica is stopping"))?;
        self.blocking(call).await
    }

    /// Runs a call that a client asked for on the connections of dispatch, waiting for a place among the few that may run at once.
    pub(crate) async fn write<R: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Store) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, Fault> {
        let _place = self.writes.acquire().await.map_err(|_| Fault::internal("the replica is stopping"))?;
        self.blocking(call).await
    }

    /// Runs a call of the background loops on the store; each has one under way at a time.
    pub(crate) async fn blocking<R: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Store) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, Fault> {
        let store = self.store().clone();
        match tokio::task::spawn_blocking(move || call(&*store)).await {
            Ok(result) => result.map_err(Fault::from),
            Err(_) => Err(Fault::internal("a call of the store panicked")),
        }
    }

    /// Writes a batch of `rows`, trying again as [`gate::persist`] does, and counts it. Blocks its thread.
    pub(crate) fn persist<R>(
        &self,
        what: &'static str,
        rows: usize,
        mut write: impl FnMut(&dyn Store, bool) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let started = Instant::now();
        let written = gate::persist(what, self.settings.write_patience, |repeat| write(&**self.store(), repeat));
        self.metrics.wrote(what, rows, started.elapsed(), written.is_ok());
        written
    }

    /// How many distributors live, this one included: what all of them share, each does its part of.
    pub(crate) fn replicas(&self) -> usize {
        let members = lock(&self.members);
        members.iter().filter(|member| member.kind == millrace_store::MemberKind::Distributor).count().max(1)
    }

    /// Notes that tasks were released from quarantine, and offers those that wait again: their queues' feeders have passed them.
    pub(crate) async fn released(&self, tasks: Vec<TaskId>) {
        if tasks.is_empty() {
            return;
        }
        self.foreign.released(tasks.len());
        for task in &tasks {
            self.watches.nudge(*task);
        }
        // Without an offer a feeder finds them by and by.
        for row in self.read(move |store| store.tasks(&tasks)).await.unwrap_or_default() {
            let Some(ready_at_us) = row.ready_at_us else { continue };
            let waiting = Waiting {
                id: row.envelope.id,
                tenant: row.envelope.tenant,
                rank: row.envelope.rank,
                ready_at_us,
                expires_at_us: row.expires_at_us,
                min_reader: row.envelope.min_reader,
            };
            self.links.offer(&row.envelope.queue, std::iter::once(convert::offer(&waiting)));
        }
    }

    /// Another live distributor, for orchestrators that must leave this one.
    pub(crate) fn other_replica(&self) -> Option<String> {
        let own = self.id();
        let members = lock(&self.members);
        let others: Vec<&MemberRow> = members
            .iter()
            .filter(|member| member.kind == millrace_store::MemberKind::Distributor && member.id != own)
            .collect();
        // Any of them, so that not everybody goes to the same.
        (!others.is_empty()).then(|| others[rand::random_range(0..others.len())].endpoint.clone())
    }
}

struct Starter<'a> {
    weak: &'a std::sync::Weak<Shared>,
    failed: &'a mut Option<std::io::Error>,
}

impl Starter<'_> {
    fn start<T: Send + 'static>(
        &mut self,
        name: &'static str,
        capacity: usize,
        most: usize,
        run: fn(&Arc<Shared>, Vec<T>),
    ) -> Gate<T> {
        let weak = self.weak.clone();
        let gate = Gate::start(name, capacity, most, move |batch| {
            if let Some(shared) = weak.upgrade() {
                run(&shared, batch);
            }
        });
        gate.unwrap_or_else(|error| {
            *self.failed = Some(error);
            Gate::broken()
        })
    }
}

/// Locks a mutex whose holder may have panicked: every holder here leaves its data consistent between statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
