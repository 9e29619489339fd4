//! The host of matchers: owns queues and matches their tasks with the sessions of every distributor.
//!
//! ```text
//!  exchange stream ──▶ connection (one task a stream) ──commands, offers──▶ actor (one task a queue) ──▶ outbox ──▶ exchange stream
//!                                    ▲                                          ▲    │
//!                       ownership ───┘ which queues are ours, their pauses ─────┘    ▼
//!                       (one loop)                                                 reads (feeds, sweeps, lanes; on blocking threads)
//! ```
//!
//! From an offer to its match there are two tasks and no timer, lock wait or database call. Every arrow is bounded; what
//! happens when it is full stands where it is made.

mod actor;
mod clock;
mod connection;
mod figures;
mod inputs;
mod mailbox;
mod metrics;
mod outbox;
mod ownership;
mod policy;
mod reads;
mod upkeep;
mod wire;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use millrace_core::{
    id::MemberId,
    matcher::{Connection, Limits},
    served::TickRule,
    time::Timestamp,
};
use millrace_proto::queue::v1::{ExchangeRequest, ExchangeResponse};
use millrace_runtime::{Context, background, metrics::Metrics, shutdown::Shutdown, status::Fault};
use millrace_store::{MemberKind, Store, StoreError};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub use self::figures::Figures;
use self::{clock::Clock, mailbox::Owned, metrics::HostMetrics, outbox::Outbox, ownership::Ownership};
use crate::blocking;

/// How often the served clock is ticked. A tick moves it by at most [`TickRule::tick_ms`], so ticks come a little more often than
/// that, lest served time fall behind.
const TICK: Duration = Duration::from_millis(450);

/// How a host behaves. Start from the default and set what differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSettings {
    /// Bounds of each matcher.
    pub limits: Limits,
    /// How long an ownership outlives its last renewal, in served time. Several times `round`.
    pub lease_ttl: Duration,
    /// How often ownership is renewed and looked at, and pauses are read.
    pub round: Duration,
    /// A distributor takes queues when it has seen no queue service live for this long.
    pub absence: Duration,
    /// An owner that no distributor reaches for this long, while distributors live, gives its queues up.
    pub unreached: Duration,
    /// How long it then takes none, at first; doubled each time until a distributor reaches it.
    pub hold_back: Duration,
    /// The longest that it takes none.
    pub max_hold_back: Duration,
    /// How often the lanes of a queue are looked up again, for those whose offers were all lost.
    pub discovery: Duration,
    /// Database reads of all matchers under way at a time. Fewer than the store's dispatch connections.
    pub reads: usize,
    /// Messages that may wait for one matcher, offers and the rest apart.
    pub mailbox: usize,
    /// Matches that may wait on one exchange stream; past it the stream is closed and its matches return.
    pub outbox: usize,
    /// How long a caller of Exchange may take to say who it is.
    pub hello: Duration,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            lease_ttl: Duration::from_secs(5),
            round: Duration::from_secs(1),
            absence: Duration::from_secs(3),
            unreached: Duration::from_secs(5),
            hold_back: Duration::from_secs(10),
            max_hold_back: Duration::from_secs(300),
            discovery: Duration::from_secs(5),
            reads: 4,
            mailbox: 256,
            outbox: 65_536,
            hello: Duration::from_secs(10),
        }
    }
}

/// What a host is started with.
#[derive(Clone)]
pub struct HostContext {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The member as which it owns queues. Each host of a process needs one of its own.
    pub member_id: MemberId,
    /// Which kind of service runs it; decides when it takes queues.
    pub kind: MemberKind,
    /// Where distributors reach its Exchange.
    pub endpoint: String,
    /// The process's end: the host then gives its queues up and ends its streams.
    pub shutdown: Shutdown,
    /// The process's metrics.
    pub metrics: Metrics,
}

impl HostContext {
    /// The parts of a service's context that a host needs.
    pub fn new(context: &Context, member_id: MemberId, kind: MemberKind) -> Self {
        Self {
            store: context.store.clone(),
            member_id,
            kind,
            endpoint: context.endpoint.clone(),
            shutdown: context.shutdown.clone(),
            metrics: context.metrics.clone(),
        }
    }
}

/// Owns queues and runs their matchers. Clones are the same host.
#[derive(Clone)]
pub struct Host {
    shared: Arc<Shared>,
}

/// What the parts of a host share.
pub(crate) struct Shared {
    settings: HostSettings,
    store: Arc<dyn Store>,
    member: MemberId,
    kind: MemberKind,
    endpoint: String,
    shutdown: Shutdown,
    metrics: Arc<HostMetrics>,
    clock: Clock,
    /// The queues that are ours; the map is replaced as a whole, so a reader holds a consistent one without a lock.
    owned: watch::Sender<Arc<OwnedQueues>>,
    /// Numbers of connections; never used again.
    connections: AtomicU64,
    /// Exchange streams whose hello was accepted.
    streams: AtomicUsize,
    /// Starts a round of the ownership loop at once.
    nudge: Arc<Notify>,
    /// Database reads of all matchers share these permits.
    reads: Arc<Semaphore>,
    /// No distributor reached us, so we take no queue for a while.
    holding_back: AtomicBool,
    /// Raised by each pause that this process's own calls make, so that a read begun before it does not undo it.
    pauses: AtomicU64,
    /// The cluster's incarnation as last read.
    incarnation: Mutex<Option<i16>>,
    /// The host has given its queues up for good: streams end.
    closing: CancellationToken,
}

pub(crate) type OwnedQueues = BTreeMap<Arc<str>, Owned>;

impl Host {
    /// Starts a host: it takes queues, ticks the served clock, ends pauses and drains at their time, and gives its queues up when the
    /// process drains. Needs a
    /// Tokio runtime.
    pub fn start(settings: HostSettings, context: HostContext) -> Host {
        let shared = Arc::new(Shared {
            reads: Arc::new(Semaphore::new(settings.reads.max(1))),
            settings,
            store: context.store,
            member: context.member_id,
            kind: context.kind,
            endpoint: context.endpoint,
            metrics: context.metrics.group(HostMetrics::register),
            shutdown: context.shutdown,
            clock: Clock::new(),
            owned: watch::Sender::new(Arc::default()),
            connections: AtomicU64::new(0),
            streams: AtomicUsize::new(0),
            nudge: Arc::new(Notify::new()),
            holding_back: AtomicBool::new(false),
            pauses: AtomicU64::new(0),
            incarnation: Mutex::new(None),
            closing: CancellationToken::new(),
        });
        tick(&shared);
        Ownership::run(&shared);
        let host = Host { shared };
        upkeep::start(&host);
        host
    }

    /// Serves one exchange stream: QueueService.Exchange, or PeerService.Exchange of a distributor. The answer is the stream of
    /// responses; dropping it, or the end of `inbound`, closes the exchange, and its unanswered matches return.
    ///
    /// Errors come as the stream's last item: INVALID_ARGUMENT when the first message is no hello or a later one cannot be
    /// understood, FAILED_PRECONDITION WRONG_INCARNATION, FAILED_PRECONDITION NOT_OWNER (a distributor's host that owns no
    /// queue), ABORTED QUEUE_REGAINED when a queue was lost and is this host's again, whose numbers then start on a new
    /// stream, RESOURCE_EXHAUSTED when the caller does not read its matches, UNAVAILABLE while the process stops or
    /// the database cannot say which incarnation it has.
    pub fn exchange(
        &self,
        inbound: impl Stream<Item = Result<ExchangeRequest, Status>> + Send + 'static,
    ) -> BoxStream<'static, Result<ExchangeResponse, Status>> {
        if self.shared.shutdown.is_draining() {
            let fault = Fault::unavailable("this process stops", Duration::from_secs(1));
            return stream::once(async move { Err(fault.into()) }).boxed();
        }
        let connection = Connection(self.shared.connections.fetch_add(1, Ordering::Relaxed) + 1);
        let outbox = Outbox::new(self.shared.settings.outbox);
        let responses = outbox.responses();
        let serving = connection::serve(self.shared.clone(), connection, Box::pin(inbound), outbox);
        self.shared.shutdown.spawn("exchange", serving);
        responses.boxed()
    }

    /// Looks at ownership and pauses now rather than at the next round. For calls that have changed a queue.
    pub fn nudge(&self) {
        self.shared.nudge.notify_one();
    }

    /// Tells the matcher, if it is here, that the queue has been paused or resumed in the database. Takes effect at once.
    pub fn set_paused(&self, queue: &str, paused: bool) {
        self.shared.pauses.fetch_add(1, Ordering::SeqCst);
        if let Some(owned) = self.shared.owned.borrow().get(queue) {
            owned.set_paused(paused);
        }
        self.nudge();
    }

    /// What the matcher of a queue knows of it; none when this host does not own it.
    pub fn figures(&self, queue: &str) -> Option<Figures> {
        self.shared.owned.borrow().get(queue).map(Owned::figures)
    }

    /// The queues that are this host's, with the epochs of their ownership.
    pub fn owned(&self) -> Vec<(String, i64)> {
        self.shared.owned.borrow().iter().map(|(queue, owned)| (queue.to_string(), owned.epoch)).collect()
    }

    /// Completes when the queues that are this host's are as wanted, at once when they are. None when the host is gone.
    pub async fn wait_owned(&self, wanted: impl Fn(&[(String, i64)]) -> bool) -> Option<Vec<(String, i64)>> {
        let mut changes = self.shared.owned.subscribe();
        loop {
            changes.borrow_and_update();
            let owned = self.owned();
            if wanted(&owned) {
                return Some(owned);
            }
            changes.changed().await.ok()?;
        }
    }

    /// Whether it takes no queue for a while because no distributor reached it. A queue service then is no live member,
    /// so that a distributor hosts the matchers.
    pub fn is_holding_back(&self) -> bool {
        self.shared.holding_back.load(Ordering::Relaxed)
    }

    /// Exchange streams that are open.
    pub fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::Relaxed)
    }

    /// The database's time, as far as the last tick told; this process's own before the first.
    pub fn database_now(&self) -> Timestamp {
        self.shared.clock.wall()
    }

    /// Completes when the host has given its queues up after the drain began.
    pub async fn left(&self) {
        self.shared.closing.cancelled().await;
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("member", &self.shared.member)
            .field("kind", &self.shared.kind)
            .field("owned", &self.owned())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Makes one call to the database on a thread that may block.
    async fn call<T, F>(&self, call: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    {
        blocking::call(self.store.clone(), call).await
    }

    /// Ticks the served clock once, and follows the database's time.
    async fn tick(&self) -> Result<(), StoreError> {
        let tick = self.call(|store| store.tick(TickRule::default())).await?;
        self.clock.set(tick.now);
        Ok(())
    }

    /// Whether this is the cluster's incarnation. It is read again before a caller is sent away.
    async fn is_incarnation(&self, theirs: i32) -> Result<bool, StoreError> {
        let known = *self.incarnation.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some_and(|ours| i32::from(ours) == theirs) {
            return Ok(true);
        }
        let ours = self.call(|store| store.cluster()).await?.incarnation;
        *self.incarnation.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours);
        Ok(i32::from(ours) == theirs)
    }
}

/// Ticks the served clock (R7). Every process does; whichever comes first moves it.
fn tick(shared: &Arc<Shared>) {
    let ticking = shared.clone();
    background::every("served clock", TICK, Arc::default(), &shared.shutdown, move || {
        let shared = ticking.clone();
        async move { shared.tick().await }
    });
}
