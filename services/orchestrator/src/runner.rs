//! The loop around it all: one task that owns the connection, the engine and the stages of a shutdown.

use std::{sync::Arc, time::Duration};

use millrace_proto::distributor::v1::{GoAway, Hello, connect_orchestrator_response::Message as Response};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    Connect, Executor, InvalidOptions, Options, Status, TcpConnect,
    engine::Engine,
    health::Health,
    intake::{Intake, Valve},
    link::{Backoff, Endpoints, Link, LinkEvent, OpenError, Up, is_session_gone, open, retry_delay, writable},
    outbox::Flushed,
    session::{Session, SessionFile},
    status::Seen,
    supervise::Ended,
};

/// Events handled before what they gave rise to is sent. More wait for the next turn.
const EVENTS_PER_TURN: usize = 256;
/// The longest that a distributor can ask us to wait before we reconnect.
const MAX_REQUESTED_DELAY: Duration = Duration::from_secs(60);
/// How long to wait for a distributor to end the stream after Goodbye.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// A client of the distributor that runs tasks with an executor.
pub struct Orchestrator {
    options: Options,
    executor: Arc<dyn Executor>,
    connector: Arc<dyn Connect>,
    status: watch::Sender<Status>,
    intake: Intake,
}

/// Why an orchestrator did not run, or stopped running.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An option is out of its bounds.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// The service refused the very first Hello as invalid: another try would be refused as well.
    #[error("the distributor refuses this orchestrator: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
}

impl Orchestrator {
    /// An orchestrator that connects over TCP.
    pub fn new(options: Options, executor: impl Executor) -> Self {
        Self {
            options,
            executor: Arc::new(executor),
            connector: Arc::new(TcpConnect),
            status: watch::Sender::new(Status::default()),
            intake: Intake::default(),
        }
    }

    /// Uses another way to reach distributors.
    pub fn connect_with(mut self, connector: impl Connect) -> Self {
        self.connector = Arc::new(connector);
        self
    }

    /// Follows what the orchestrator does.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Closes and opens the intake while the orchestrator runs.
    pub fn intake(&self) -> Intake {
        self.intake.clone()
    }

    /// Runs until `shutdown`, and then for as long as the options allow attempts to end and results to be recorded.
    /// Dropping the future instead stops every attempt at once and leaves the session to end with its lease.
    ///
    /// # Errors
    /// Invalid options, and a first Hello that the service refuses as invalid. No outage ends it.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        self.options.validate()?;
        let options = Arc::new(self.options);
        let file = SessionFile::new(options.previous_session_file.clone());
        let now = Instant::now();
        let runner = Runner {
            previous: file.load().await.unwrap_or_default(),
            file,
            health: Health::watch(self.executor.clone(), options.check_interval, options.check_timeout),
            engine: Engine::new(options.clone(), self.executor, now),
            endpoints: Endpoints::new(options.endpoints.clone(), rand::random_range(0..options.endpoints.len())),
            backoff: Backoff::new(options.min_backoff, options.max_backoff),
            link: Link::Waiting(now),
            leave_at: None,
            session: None,
            ever_welcomed: false,
            last_failure: String::new(),
            stage: Stage::Serving,
            connector: self.connector,
            status: self.status,
            valve: self.intake.valve(),
            options,
        };
        runner.run(shutdown).await
    }
}

struct Runner {
    options: Arc<Options>,
    connector: Arc<dyn Connect>,
    status: watch::Sender<Status>,
    engine: Engine,
    health: Health,
    valve: Valve,
    link: Link,
    endpoints: Endpoints,
    backoff: Backoff,
    /// When to leave the replica that said GoAway.
    leave_at: Option<Instant>,
    session: Option<Session>,
    /// A session of an earlier start, to be closed with the first Hello that is answered; may be empty.
    previous: String,
    file: SessionFile,
    ever_welcomed: bool,
    /// The last failure to connect that was logged; the same one again is not news.
    last_failure: String,
    stage: Stage,
}

/// How far a shutdown has come.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Serving,
    /// No work is asked for; attempts may end by themselves until then.
    Draining(Instant),
    /// Attempts were told to stop; they do, or are dropped.
    Stopping,
    /// Nothing runs; results are recorded until then.
    Delivering(Instant),
    /// Goodbye was said; the stream may end until then.
    Leaving(Instant),
    Done,
}

enum Event {
    Link(LinkEvent),
    Ended(Ended),
    /// The executor's fitness has changed, or the intake was closed or opened.
    Intake,
    Shutdown,
    /// Time has passed, output is there, or the stream takes more: what to do about it is seen anyway in each turn.
    Turn,
}

impl Runner {
    async fn run(mut self, shutdown: CancellationToken) -> Result<(), RunError> {
        self.set_intake();
        loop {
            let now = Instant::now();
            self.on_time(now);
            self.advance(now);
            if let Stage::Done = self.stage {
                return Ok(());
            }
            let flushed = self.flush(now);
            self.publish();
            let event = self.next_event(flushed, &shutdown).await;
            self.handle(event).await?;
            self.handle_ready().await?;
        }
    }

    async fn next_event(&mut self, flushed: Flushed, shutdown: &CancellationToken) -> Event {
        let serving = matches!(self.stage, Stage::Serving);
        let (blocked, room) = match flushed {
            Flushed::All => (false, 0),
            Flushed::Blocked(room) => (true, room),
        };
        let stream = self.link.up().filter(|_| blocked).and_then(|up| up.requests.clone());
        let wake = self.wake_at(blocked);
        let timer = async {
            match wake {
                Some(wake) => sleep_until(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.link.next() => Event::Link(event),
            Some(Ok(ended)) = self.engine.tasks.join_next() => Event::Ended(ended),
            () = self.engine.signals.notify.notified() => Event::Turn,
            () = self.health.changed() => Event::Intake,
            () = self.valve.changed() => Event::Intake,
            () = timer => Event::Turn,
            open = writable(stream, room) => if open { Event::Turn } else { Event::Link(LinkEvent::Closed(None)) },
            () = shutdown.cancelled(), if serving => Event::Shutdown,
        }
    }

    /// Handles what else is there already, so that one message can carry all that comes of it.
    async fn handle_ready(&mut self) -> Result<(), RunError> {
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = self.link.try_next() else { break };
            self.handle(Event::Link(event)).await?;
        }
        for _ in 0..self.engine.tasks.len() {
            let Some(Ok(ended)) = self.engine.tasks.try_join_next() else { break };
            self.engine.ended(ended);
        }
        self.engine.collect_output();
        Ok(())
    }

    async fn handle(&mut self, event: Event) -> Result<(), RunError> {
        match event {
            Event::Turn => {}
            Event::Ended(ended) => self.engine.ended(ended),
            Event::Intake => self.set_intake(),
            Event::Shutdown => {
                tracing::info!(running = self.engine.book.running(), "draining");
                self.stage = Stage::Draining(Instant::now() + self.options.drain_timeout);
                self.set_intake();
            }
            Event::Link(LinkEvent::Ready) => self.connect(),
            Event::Link(LinkEvent::Opened(opened)) => match *opened {
                Ok(up) => self.opened(up).await,
                Err(error) => self.not_opened(error)?,
            },
            Event::Link(LinkEvent::Received(message)) => self.received(message),
            Event::Link(LinkEvent::Closed(status)) => self.closed(status).await,
        }
        Ok(())
    }

    fn received(&mut self, message: Option<Response>) {
        let now = Instant::now();
        match message {
            Some(Response::Assignments(message)) => self.engine.assigned(message.assignments, now),
            Some(Response::CompletionResults(message)) => self.engine.results(message.results, now),
            Some(Response::CancelAttempts(message)) => self.engine.cancel(&message.leases),
            Some(Response::RevokeAttempts(message)) => self.engine.revoke(&message.leases),
            Some(Response::HeartbeatResult(message)) => {
                if self.engine.lease.answered(message.seq) {
                    self.backoff.reset();
                }
            }
            Some(Response::SendHeld(_)) => self.engine.outbox.send_held(),
            Some(Response::GoAway(message)) => self.sent_away(message),
            Some(Response::Welcome(_)) => tracing::warn!("second Welcome on a stream ignored"),
            None => tracing::warn!("message of a kind that this build does not know ignored"),
        }
    }

    /// Stays on the stream until it is time to leave, so that heartbeats and results still go through.
    fn sent_away(&mut self, message: GoAway) {
        let delay = requested(&message);
        tracing::info!(reason = %message.reason, ?delay, "replica asks to leave it");
        self.endpoints.prefer(message.endpoint);
        self.leave_at = Some(Instant::now() + delay);
    }

    fn connect(&mut self) {
        let hello = self.hello();
        let endpoint = self.endpoints.next();
        tracing::debug!(%endpoint, session_id = %hello.session_id, "connecting");
        self.link = Link::Opening(Box::pin(open(self.connector.clone(), endpoint, hello, self.options.clone())));
    }

    fn hello(&self) -> Hello {
        let (session_id, generation) = match &self.session {
            Some(session) => (session.id.clone(), session.generation),
            None => (String::new(), 0),
        };
        Hello {
            session_id,
            generation,
            name: self.options.name.clone(),
            queues: self.options.queues.clone(),
            // Lossless: at most 100,000.
            slots: self.options.slots as i32,
            labels: self.options.labels.clone().into_iter().collect(),
            lease_ttl: prost_types::Duration::try_from(self.options.lease_ttl).ok(),
            // Nothing is assigned between this moment and Welcome, and what ends meanwhile stays held.
            held: self.engine.book.leases(),
            previous_session_id: self.previous.clone(),
            build: self.options.build.clone(),
        }
    }

    async fn opened(&mut self, up: Up) {
        let now = Instant::now();
        let Up { welcome, endpoint, resumed, .. } = &up;
        tracing::info!(%endpoint, session_id = %welcome.session_id, replica = %welcome.replica_id, resumed, "connected");
        self.engine.welcomed(welcome, *resumed, up.sent_at, now);
        self.ever_welcomed = true;
        self.last_failure.clear();
        self.leave_at = None;
        if !resumed {
            self.previous.clear();
            self.file.store(&welcome.session_id).await;
        }
        self.session = Some(Session { id: welcome.session_id.clone(), generation: welcome.generation });
        self.link = Link::Up(Box::new(up));
    }

    fn not_opened(&mut self, error: OpenError) -> Result<(), RunError> {
        match error {
            OpenError::Refused(status) if is_session_gone(&status) => self.session_gone(),
            OpenError::Refused(status) if status.code() == Code::InvalidArgument && !self.ever_welcomed => {
                return Err(RunError::Refused(status));
            }
            OpenError::SentElsewhere(message) => {
                self.endpoints.prefer(message.endpoint.clone());
                self.retry(requested(&message));
            }
            error => {
                let text = error.to_string();
                if text != self.last_failure {
                    let running = self.engine.book.running();
                    tracing::warn!(error = %text, running, "not connected; what runs goes on, and trying again");
                    self.last_failure = text;
                }
                let delay = match &error {
                    OpenError::Refused(status) => retry_delay(status).unwrap_or_default(),
                    _ => Duration::ZERO,
                };
                self.retry(delay);
            }
        }
        Ok(())
    }

    async fn closed(&mut self, status: Option<tonic::Status>) {
        if status.is_none() && self.engine.outbox.said_goodbye() {
            self.file.clear().await;
        }
        let delay = status.as_ref().and_then(retry_delay).unwrap_or_default();
        match status {
            Some(status) if is_session_gone(&status) => return self.session_gone(),
            Some(status) => tracing::warn!(code = ?status.code(), message = status.message(), "stream broke"),
            None => tracing::info!("stream ended"),
        }
        // After GoAway the replica may end the stream before the time to reconnect has come.
        match self.leave_at.take() {
            Some(at) => self.link = Link::Waiting(at.max(Instant::now())),
            None => self.retry(delay),
        }
    }

    /// The session has expired, or was closed: nothing that was held is ours, and a new one begins (R2).
    fn session_gone(&mut self) {
        tracing::warn!(held = self.engine.book.held(), "session is gone; stopping what it held and opening another");
        self.engine.forget_all();
        self.session = None;
        self.leave_at = None;
        self.retry(Duration::ZERO);
    }

    /// Tries again after the back-off, or the delay that the service asks for where that is longer.
    fn retry(&mut self, requested: Duration) {
        let delay = self.backoff.next(&mut rand::rng()).max(requested.min(MAX_REQUESTED_DELAY));
        self.link = Link::Waiting(Instant::now() + delay);
    }

    fn set_intake(&mut self) {
        let draining = (!matches!(self.stage, Stage::Serving)).then(|| "the orchestrator shuts down".to_owned());
        self.engine.set_closed(draining.or_else(|| self.valve.reason()).or_else(|| self.health.problem()));
    }

    /// Does what is due. Whatever is missed here is found in [`Self::wake_at`].
    fn on_time(&mut self, now: Instant) {
        self.engine.stop_exclusive(now);
        self.engine.outbox.retry_due(now);
        if self.link.up().is_none() || matches!(self.stage, Stage::Leaving(_)) {
            return;
        }
        if self.leave_at.is_some_and(|at| at <= now) {
            self.leave_at = None;
            self.connect();
        } else if self.engine.lease.give_up_at() <= now {
            tracing::warn!("replica answers no heartbeat; trying another");
            self.leave_at = None;
            self.retry(Duration::ZERO);
        }
    }

    /// When to look again though nothing happens. A `blocked` stream takes no heartbeat, so none is waited for.
    fn wake_at(&self, blocked: bool) -> Option<Instant> {
        let lease = &self.engine.lease;
        let stage = match self.stage {
            Stage::Draining(at) | Stage::Delivering(at) | Stage::Leaving(at) => Some(at),
            Stage::Serving | Stage::Stopping | Stage::Done => None,
        };
        let exclusive = self.engine.book.has_exclusive().then(|| lease.exclusive_end().tell_at);
        let retry = self.engine.outbox.retry_at();
        let streaming = self.link.up().is_some() && !matches!(self.stage, Stage::Leaving(_));
        let beat = (streaming && !blocked).then(|| lease.next_beat());
        let give_up = streaming.then(|| lease.give_up_at());
        let leave = self.leave_at.filter(|_| streaming);
        [stage, exclusive, retry, beat, give_up, leave].into_iter().flatten().min()
    }

    /// Moves a shutdown on, as far as it can go now.
    fn advance(&mut self, now: Instant) {
        loop {
            let book = &self.engine.book;
            self.stage = match self.stage {
                Stage::Draining(until) if book.running() == 0 || until <= now => {
                    self.engine.hand_back();
                    Stage::Stopping
                }
                Stage::Stopping if book.running() + book.stopping() == 0 => {
                    Stage::Delivering(now + self.options.deliver_timeout)
                }
                Stage::Delivering(until) if book.held() == 0 || until <= now => {
                    if book.held() > 0 {
                        tracing::warn!(
                            results = book.held(),
                            "results could not be delivered; their tasks will be tried again"
                        );
                    }
                    self.engine.outbox.say_goodbye();
                    Stage::Leaving(now + GOODBYE_WAIT)
                }
                Stage::Leaving(until) if until <= now || self.link.up().is_none() => Stage::Done,
                Stage::Serving | Stage::Draining(_) | Stage::Stopping | Stage::Delivering(_) | Stage::Leaving(_) => {
                    return;
                }
                Stage::Done => return,
            };
        }
    }

    fn flush(&mut self, now: Instant) -> Flushed {
        let Link::Up(up) = &mut self.link else { return Flushed::All };
        let Some(requests) = &up.requests else { return Flushed::All };
        let flushed = self.engine.flush(requests, now);
        if self.engine.outbox.said_goodbye() {
            // Ends our side of the stream, behind Goodbye.
            up.requests = None;
        }
        flushed
    }

    fn publish(&self) {
        let book = &self.engine.book;
        let fitness = self.health.fitness();
        let seen = Seen {
            endpoint: self.link.up().map(|up| &up.endpoint),
            session_id: self.session.as_ref().map(|session| &session.id),
            running: book.running(),
            undelivered: book.held() - book.running(),
            closed: self.engine.closed(),
            fitness: &fitness,
        };
        self.status.send_if_modified(|status| seen.update(status));
    }
}

fn requested(message: &GoAway) -> Duration {
    let delay = message.delay.and_then(|delay| Duration::try_from(delay).ok()).unwrap_or_default();
    delay.min(MAX_REQUESTED_DELAY)
}
