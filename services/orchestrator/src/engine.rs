//! What an orchestrator does with each message and event. It knows no stream and no clock: messages, events and the time
//! come in as arguments, and what is to be sent waits in the outbox.

use std::{sync::Arc, time::SystemTime};

use millrace_proto::distributor::v1::{
    Assignment, CompletionResult, LeaseRef, Welcome, completion_result::Status as ResultStatus,
};
use tokio::{
    task::JoinSet,
    time::{Duration, Instant},
};
use uuid::Uuid;

use crate::{
    Attempt, Executor, Options, Outcome, Stop, StopReason, assign,
    book::{Book, Held, LocalId, State},
    executor::Control,
    grant::Grants,
    lease::Lease,
    outbox::Outbox,
    output::Signals,
    supervise::{Ended, supervise},
};

/// How long a result waits that the service could not record because its database did not answer.
const RESULT_RETRY: Duration = Duration::from_secs(1);

/// The orchestrator's state beside its connection.
pub(crate) struct Engine {
    pub(crate) options: Arc<Options>,
    executor: Arc<dyn Executor>,
    /// One task for each attempt that an executor has; dropping the engine stops them. Bounded by the book.
    pub(crate) tasks: JoinSet<Ended>,
    pub(crate) book: Book,
    pub(crate) grants: Grants,
    pub(crate) lease: Lease,
    pub(crate) outbox: Outbox,
    pub(crate) signals: Arc<Signals>,
    /// Why no work is taken at present; none when it is.
    closed: Option<String>,
    last_local: u64,
}

impl Engine {
    pub(crate) fn new(options: Arc<Options>, executor: Arc<dyn Executor>, now: Instant) -> Self {
        Self {
            book: Book::new(options.slots as usize),
            lease: Lease::new(options.lease_ttl, now),
            options,
            executor,
            tasks: JoinSet::new(),
            grants: Grants::default(),
            outbox: Outbox::default(),
            signals: Arc::default(),
            closed: None,
            last_local: 0,
        }
    }

    /// Takes work, or says why not. Attempts that run go on either way.
    pub(crate) fn set_closed(&mut self, closed: Option<String>) {
        self.closed = closed;
    }

    pub(crate) fn closed(&self) -> Option<&String> {
        self.closed.as_ref()
    }

    /// How many assignments to ask for.
    pub(crate) fn credits(&self) -> u32 {
        match self.closed {
            // Lossless: free() is at most the slots, which are a u32.
            None => self.book.free() as u32,
            Some(_) => 0,
        }
    }

    /// A stream was opened. `resumed` tells whether its session is the one that holds what is in the book. Everything
    /// that the former stream may have lost is announced again.
    pub(crate) fn welcomed(&mut self, welcome: &Welcome, resumed: bool, sent_at: Instant, now: Instant) {
        self.lease.opened(welcome, sent_at, now);
        self.grants.reset();
        self.outbox.reset();
        match resumed {
            true => self.revoke(&welcome.revoked),
            false => self.forget_all(),
        }
        for (task, held) in self.book.iter() {
            match &held.state {
                State::Waiting(_) => {}
                State::Running(control) => {
                    self.outbox.accept(held.lease.clone());
                    if rewind(control) {
                        self.outbox.progress(task, held.local);
                    }
                }
                State::Ended { control, .. } => {
                    control.as_ref().map(rewind);
                    self.outbox.complete(task);
                }
            }
        }
    }

    /// The session is gone, and with it every lease: what runs is stopped, and nothing is reported of it.
    pub(crate) fn forget_all(&mut self) {
        for task in self.book.tasks() {
            self.release(task);
        }
    }

    pub(crate) fn assigned(&mut self, assignments: Vec<Assignment>, now: Instant) {
        for assignment in assignments {
            self.grants.received(assignment.seq, assignment.resent);
            let Ok(task) = Uuid::try_parse(&assignment.task_id) else {
                tracing::error!(task_id = %assignment.task_id, "assignment without a valid task id ignored");
                continue;
            };
            if self.is_news(task, &assignment) {
                self.take(task, assignment, now);
            }
        }
    }

    /// Whether the assignment has to be run. A repeat is only announced again (R1), and a newer attempt takes the place
    /// of the one before it, which must be over.
    fn is_news(&mut self, task: Uuid, assignment: &Assignment) -> bool {
        let Some(held) = self.book.get(task) else {
            // A repeat that was under way while the result was being recorded.
            return !(assignment.resent && self.book.is_over(task, assignment.attempt));
        };
        if held.lease.attempt == assignment.attempt && held.lease.lease_token == assignment.lease_token {
            match held.state {
                State::Waiting(_) => {}
                State::Running(_) => self.outbox.accept(held.lease.clone()),
                State::Ended { .. } => self.outbox.complete(task),
            }
            return false;
        }
        if held.lease.attempt > assignment.attempt {
            tracing::warn!(task_id = %task, attempt = assignment.attempt, "assignment of an older attempt ignored");
            return false;
        }
        self.release(task);
        true
    }

    fn take(&mut self, task: Uuid, assignment: Assignment, now: Instant) {
        let lease = LeaseRef {
            task_id: assignment.task_id.clone(),
            attempt: assignment.attempt,
            lease_token: assignment.lease_token.clone(),
        };
        self.last_local += 1;
        let local = LocalId(self.last_local);
        let started = SystemTime::now();
        let read = match self.refusal() {
            Some(reason) => Err(Box::new(Outcome::handed_back(reason))),
            None => assign::read(assignment, task, &*self.executor),
        };
        let (exclusive, state) = match read {
            Err(outcome) => (false, ended(*outcome, started, None)),
            Ok(attempt) if attempt.spec.exclusive && now >= self.lease.exclusive_end().tell_at => {
                (true, ended(Outcome::stopped(StopReason::LeaseExpiring), started, None))
            }
            Ok(attempt) if attempt.spec.exclusive && self.book.is_stopping(task) => {
                (true, State::Waiting(Box::new(attempt)))
            }
            Ok(attempt) => (attempt.spec.exclusive, self.start(attempt, local, started)),
        };
        match &state {
            State::Waiting(_) => {}
            State::Running(_) => self.outbox.accept(lease.clone()),
            State::Ended { .. } => self.outbox.complete(task),
        }
        self.book.insert(task, Held { lease, local, exclusive, state });
    }

    /// Why no assignment can be taken now: it may have been under way when the credits were withdrawn.
    fn refusal(&self) -> Option<String> {
        match &self.closed {
            Some(reason) => Some(reason.clone()),
            None if self.book.free() == 0 => Some("no free slot".into()),
            None => None,
        }
    }

    fn start(&mut self, attempt: Attempt, local: LocalId, started: SystemTime) -> State {
        if let Some(outcome) = assign::run_inline(&attempt, &*self.executor) {
            return ended(outcome, started, None);
        }
        let control = Arc::new(Control::new(attempt, local, self.options.output_ring_bytes, self.signals.clone()));
        self.tasks.spawn(supervise(self.executor.clone(), control.clone(), self.options.stop_limit));
        State::Running(control)
    }

    /// An executor has returned.
    pub(crate) fn ended(&mut self, event: Ended) {
        let Ended { task, local, outcome, started } = event;
        let control = match self.book.get(task) {
            Some(Held { local: held, state: State::Running(control), .. }) if *held == local => control.clone(),
            _ => {
                self.book.stopped(local);
                self.start_waiting(task);
                return;
            }
        };
        let outcome = self.with_output(outcome, &control);
        self.book.set_state(task, ended(outcome, started, Some(control)));
        self.outbox.complete(task);
    }

    fn with_output(&self, mut outcome: Outcome, control: &Control) -> Outcome {
        let mut ring = control.ring();
        ring.seal();
        if outcome.output_bytes == 0 && outcome.output_tail.is_empty() {
            outcome.output_bytes = ring.end();
            outcome.output_tail = ring.tail(self.options.output_tail_bytes);
        }
        outcome
    }

    /// Starts the attempt that waited for an earlier one of its task to end here.
    fn start_waiting(&mut self, task: Uuid) {
        if self.book.is_stopping(task) {
            return;
        }
        let Some(Held { lease, local, state: State::Waiting(attempt), .. }) = self.book.get(task) else { return };
        let (lease, local, attempt) = (lease.clone(), *local, (**attempt).clone());
        let state = self.start(attempt, local, SystemTime::now());
        match state {
            State::Ended { .. } => self.outbox.complete(task),
            _ => self.outbox.accept(lease),
        }
        self.book.set_state(task, state);
    }

    /// The service says what became of results. Only one that it could not record is kept.
    pub(crate) fn results(&mut self, results: Vec<CompletionResult>, now: Instant) {
        for result in results {
            let Some(task) = result.lease.as_ref().and_then(|lease| self.book.find(lease)) else { continue };
            if !matches!(self.book.get(task), Some(Held { state: State::Ended { .. }, .. })) {
                continue;
            }
            match ResultStatus::try_from(result.status) {
                Ok(ResultStatus::Recorded) => {}
                Ok(ResultStatus::StaleLease) => {
                    tracing::info!(task_id = %task, "result dropped: the lease is another's");
                }
                Ok(ResultStatus::Invalid) => {
                    tracing::error!(task_id = %task, "the service refused the result as invalid")
                }
                // An answer that this build does not know may mean anything, so the result is kept as well.
                Ok(ResultStatus::Unavailable | ResultStatus::Unspecified) | Err(_) => {
                    self.outbox.retry(task, now + RESULT_RETRY);
                    continue;
                }
            }
            self.book.finish(task);
        }
    }

    /// Stops attempts whose tasks are being cancelled. One that has ended already keeps what it ended with.
    pub(crate) fn cancel(&mut self, leases: &[LeaseRef]) {
        for lease in leases {
            if let Some(task) = self.book.find(lease) {
                self.stop(task, StopReason::Cancelled);
            }
        }
    }

    /// Stops attempts that are not this session's. Nothing is reported of them.
    pub(crate) fn revoke(&mut self, leases: &[LeaseRef]) {
        for lease in leases {
            if let Some(task) = self.book.find(lease) {
                tracing::info!(task_id = %task, attempt = lease.attempt, "attempt revoked");
                self.release(task);
            }
        }
    }

    /// Stops everything that runs, to hand it back.
    pub(crate) fn hand_back(&mut self) {
        for task in self.book.tasks() {
            self.stop(task, StopReason::Draining);
        }
    }

    /// Stops what is exclusive when the lease could not be renewed in time (R16).
    pub(crate) fn stop_exclusive(&mut self, now: Instant) {
        let end = self.lease.exclusive_end();
        if !self.book.has_exclusive() || now < end.tell_at {
            return;
        }
        for control in self.book.take_exclusive() {
            tracing::warn!(task_id = %control.attempt.task_id, "exclusive attempt stopped: its lease cannot be renewed in time");
            let reason = StopReason::LeaseExpiring;
            control.stop(Stop { reason, deadline: Some(end.end_by), abort_at: end.abort_at });
        }
    }

    /// Puts what executors have written since the last call into the outbox.
    pub(crate) fn collect_output(&mut self) {
        for (task, local) in self.signals.drain() {
            self.outbox.progress(task, local);
        }
    }

    fn stop(&mut self, task: Uuid, reason: StopReason) {
        match self.book.get(task).map(|held| &held.state) {
            Some(State::Running(control)) => control.stop(Stop::new(reason, self.options.stop_limit)),
            Some(State::Waiting(_)) => {
                self.book.set_state(task, ended(Outcome::stopped(reason), SystemTime::now(), None));
                self.outbox.complete(task);
            }
            Some(State::Ended { .. }) | None => {}
        }
    }

    fn release(&mut self, task: Uuid) {
        if let Some(control) = self.book.release(task) {
            control.stop(Stop::new(StopReason::Revoked, self.options.stop_limit));
        }
    }
}

/// Makes the output that is still there news again. False when there is none.
fn rewind(control: &Arc<Control>) -> bool {
    let mut ring = control.ring();
    ring.rewind();
    ring.has_news()
}

fn ended(mut outcome: Outcome, started: SystemTime, control: Option<Arc<Control>>) -> State {
    outcome.start_time.get_or_insert(started);
    outcome.end_time.get_or_insert_with(SystemTime::now);
    State::Ended { outcome: Box::new(outcome.into_wire()), control }
}
