//! The database of the world: the model store under a clock of its own, with outages, and with calls that fail before or
//! after their commit. What commits, the oracle sees, whoever may have heard of it.

use std::{sync::Arc, time::Duration};

use millrace_core::{
    held::LeaseRef,
    id::{SessionId, TaskId},
    lease::Token,
    served::TickRule,
    time::{Timestamp, micros},
};
use millrace_store::{memory::SettableClock, *};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use uuid::Uuid;

use crate::{config::Config, mutant::Mutant, oracle::Oracle};

/// The database's time when the world begins.
pub(crate) const EPOCH_US: i64 = 1_700_000_000_000_000;

type Result<T> = std::result::Result<T, StoreError>;

/// The store, and what goes wrong with it.
pub(crate) struct Database {
    store: MemoryStore,
    clock: Arc<SettableClock>,
    pub oracle: Oracle,
    /// How far its clock is off, in microseconds.
    pub offset_us: i64,
    /// When the clock may be set forward a little again.
    pub may_step_at: Duration,
    /// Nothing answers, since when.
    pub is_out: bool,
    pub out_since: Duration,
    /// How probably a call fails before it commits, and after.
    pub failing: (f64, f64),
    /// The longest that a transaction may have begun before it commits: its moments are as old.
    longest: Duration,
    mutant: Option<Mutant>,
    rng: SmallRng,
    now: Duration,
}

impl Database {
    pub(crate) fn new(config: &Config, mutant: Option<Mutant>, seed: u64) -> Self {
        let (store, clock) = MemoryStore::settable(Timestamp(EPOCH_US));
        for queue in config.queues.iter().filter(|queue| **queue != "default") {
            let row = QueueRow {
                name: (*queue).into(),
                description: String::new(),
                default_timeout_ms: None,
                default_expire_after_ms: None,
                pause: None,
                draining: false,
                epoch: 0,
                created_at_us: 0,
                updated_at_us: 0,
            };
            store.create_queue(&row, None).expect("a new store takes a queue");
        }
        Self {
            store,
            clock,
            oracle: Oracle::new(config),
            offset_us: 0,
            may_step_at: Duration::ZERO,
            is_out: false,
            out_since: Duration::ZERO,
            failing: (0.0, 0.0),
            longest: config.longest_transaction,
            mutant,
            rng: SmallRng::seed_from_u64(seed),
            now: Duration::ZERO,
        }
    }

    /// What only reads.
    pub(crate) fn store(&self) -> &dyn Store {
        &self.store
    }

    /// The model's own rules.
    pub(crate) fn check(&mut self) {
        if let Err(broken) = self.store.check_invariants() {
            self.oracle.violation(broken);
        }
    }

    /// Every task ended once, here and in the oracle's book.
    pub(crate) fn check_ends(&mut self) {
        self.oracle.check_ends(&self.store);
    }

    /// Makes a call at this moment, if the database is up to it.
    pub(crate) fn run<T>(&mut self, now: Duration, call: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.now = now;
        self.oracle.now = now;
        self.set_clock(Duration::ZERO);
        if self.is_out {
            return Err(StoreError::Unavailable("the database is down".into()));
        }
        if self.failing.0 > 0.0 && self.rng.random_bool(self.failing.0) {
            return Err(match self.rng.random_range(0..4) {
                0 => StoreError::Timeout("simulated".into()),
                1 => StoreError::Conflict("simulated".into()),
                2 => StoreError::UnknownOutcome("simulated, and not committed".into()),
                _ => StoreError::Unavailable("simulated".into()),
            });
        }
        let result = call(self)?;
        match self.failing.1 > 0.0 && self.rng.random_bool(self.failing.1) {
            true => Err(StoreError::UnknownOutcome("simulated, and committed".into())),
            false => Ok(result),
        }
    }

    fn set_clock(&self, earlier: Duration) {
        let now_us = EPOCH_US + self.offset_us + micros(self.now) - micros(earlier);
        self.clock.set(Timestamp(now_us));
    }

    /// A transaction that began a while ago and commits now: the moments that it writes are those of its beginning (R3).
    fn begun_earlier<T>(&mut self, call: impl FnOnce(&MemoryStore) -> Result<T>) -> Result<T> {
        let most = match self.rng.random_bool(0.1) {
            true => self.longest,
            false => Duration::from_millis(5),
        };
        let age = Duration::from_micros(self.rng.random_range(0..=most.as_micros() as u64)).min(self.now);
        self.set_clock(age);
        let result = call(&self.store);
        self.set_clock(Duration::ZERO);
        result
    }

    pub(crate) fn tick(&mut self) -> Result<Tick> {
        let rule = match self.mutant {
            // Counts whatever time has passed.
            Some(Mutant::DowntimeAgesLeases) => TickRule { tick_ms: 3_600_000, gap_ms: 3_600_000, freeze_ms: 0 },
            _ => TickRule::default(),
        };
        let tick = self.store.tick(rule)?;
        self.oracle.ticked(tick);
        Ok(tick)
    }

    pub(crate) fn submit(&mut self, batch: &[NewTask], repeat: bool) -> Result<Vec<Submitted>> {
        let results = self.begun_earlier(|store| store.submit(batch, repeat))?;
        for (task, result) in batch.iter().zip(&results) {
            if let Submitted::Stored { .. } = result {
                self.oracle.stored(task);
            }
        }
        Ok(results)
    }

    pub(crate) fn claim(&mut self, batch: &[Claim]) -> Result<Vec<Claimed>> {
        let claims: Vec<Claim> = batch.iter().map(|claim| self.corrupted(claim)).collect();
        let reopened = self.open_gates(&claims)?;
        let results = self.store.claim(&claims)?;
        self.close_gates(&reopened)?;
        for (claim, result) in batch.iter().zip(&results) {
            if let Claimed::Won(dispatch) = result {
                self.oracle.claimed(claim, dispatch);
            }
        }
        Ok(results)
    }

    pub(crate) fn complete(&mut self, batch: &[Completion]) -> Result<Vec<Completed>> {
        let mut given = batch.to_vec();
        for completion in &mut given {
            completion.lease = self.mistaken(completion.lease)?;
        }
        let results = self.store.complete(&given)?;
        for (completion, result) in batch.iter().zip(&results) {
            if *result == Completed::Recorded {
                let row = self.store.task(completion.lease.task)?;
                self.oracle.completed(completion, row.map(|row| row.state));
            }
        }
        Ok(results)
    }

    pub(crate) fn requeue(&mut self, batch: &[Requeue]) -> Result<Vec<Requeued>> {
        let mut given = batch.to_vec();
        for requeue in &mut given {
            requeue.lease = self.mistaken(requeue.lease)?;
        }
        let results = self.begun_earlier(|store| store.requeue(&given))?;
        for (requeue, result) in batch.iter().zip(&results) {
            if let Requeued::Waiting { .. } = result {
                self.oracle.requeued(requeue);
            }
        }
        Ok(results)
    }

    pub(crate) fn heartbeat(&mut self, batch: &[Heartbeat]) -> Result<Vec<HeartbeatResult>> {
        let results = self.store.heartbeat(batch)?;
        for (beat, result) in batch.iter().zip(&results) {
            if result.renewed {
                self.oracle.renewed(beat.session, beat.generation);
            }
        }
        Ok(results)
    }

    pub(crate) fn open_session(&mut self, session: &NewSession) -> Result<SessionRow> {
        let row = self.store.open_session(session)?;
        self.oracle.opened(&row);
        Ok(row)
    }

    pub(crate) fn resume_session(&mut self, id: SessionId, generation: i64, replica: &str) -> Result<Resumed> {
        let resumed = self.store.resume_session(id, generation, replica)?;
        if let Resumed::Yes { session, .. } = &resumed {
            self.oracle.opened(session);
        }
        Ok(resumed)
    }

    pub(crate) fn close_session(&mut self, id: SessionId, generation: Option<i64>) -> Result<bool> {
        let closed = self.store.close_session(id, generation)?;
        if closed {
            self.oracle.closed(id);
        }
        Ok(closed)
    }

    pub(crate) fn reap_sessions(&mut self, limit: i64) -> Result<Vec<SessionId>> {
        let dead = self.store.reap_sessions(limit)?;
        for id in &dead {
            self.oracle.reaped(*id);
        }
        Ok(dead)
    }

    pub(crate) fn wake(&mut self, limit: i64) -> Result<Vec<(String, Waiting)>> {
        self.begun_earlier(|store| store.wake(limit))
    }

    pub(crate) fn expire(&mut self, limit: i64) -> Result<Vec<TaskId>> {
        let expired = self.store.expire(limit)?;
        for id in &expired {
            self.oracle.expired(*id);
        }
        Ok(expired)
    }

    pub(crate) fn cancel(&mut self, id: TaskId, request: Uuid) -> Result<CancelResult> {
        let repeated = self.store.request(request)?.is_some();
        let result = self.store.cancel(id, "simulated", Some(request))?;
        if let CancelResult::Done(row) = &result
            && !repeated
        {
            self.oracle.cancelled(id, row.state);
        }
        Ok(result)
    }

    pub(crate) fn retry(&mut self, id: TaskId, request: Uuid) -> Result<RetryResult> {
        let result = self.begun_earlier(|store| store.retry(id, Some(request)))?;
        if matches!(result.value, RetryResult::Done(_)) && !result.repeated {
            self.oracle.retried(id);
        }
        Ok(result.value)
    }

    pub(crate) fn pause(&mut self, queue: &str, pause: Option<(String, Option<i64>)>, request: Uuid) -> Result<bool> {
        let audit = Audit { action: "simulated".into(), subject: queue.into(), detail: String::new() };
        let change = QueueChange { pause: Some(pause), ..QueueChange::default() };
        let row = self.store.update_queue(queue, &change, &audit, Some(request))?;
        if let Some(row) = &row {
            self.oracle.paused(queue, row.pause.is_some());
        }
        Ok(row.is_some())
    }

    pub(crate) fn lift_pauses(&mut self) -> Result<Vec<String>> {
        let lifted = self.store.lift_pauses()?;
        for queue in &lifted {
            self.oracle.paused(queue, false);
        }
        Ok(lifted)
    }

    pub(crate) fn own_queue(
        &mut self,
        queue: &str,
        owner: millrace_core::id::MemberId,
        endpoint: &str,
        ttl_ms: i64,
    ) -> Result<Option<i64>> {
        let epoch = self.store.own_queue(queue, owner, endpoint, ttl_ms)?;
        if let Some(epoch) = epoch {
            self.oracle.owned(queue, epoch);
        }
        Ok(epoch)
    }

    // ── Planted bugs ───────────────────────────────────────────────────────────────────────────────────

    fn corrupted(&self, claim: &Claim) -> Claim {
        let mut claim = claim.clone();
        match self.mutant {
            Some(Mutant::EpochIsNotChecked) => {
                claim.epoch = self.store.queue(&claim.queue).ok().flatten().map_or(claim.epoch, |row| row.epoch);
            }
            Some(Mutant::GenerationIsNotChecked) => {
                claim.generation = self.oracle.generation(claim.session).unwrap_or(claim.generation);
            }
            _ => {}
        }
        claim
    }

    /// The lease that the row has now, whichever was given.
    fn mistaken(&self, lease: LeaseRef) -> Result<LeaseRef> {
        if self.mutant != Some(Mutant::StaleReportsCount) {
            return Ok(lease);
        }
        let row = self.store.task(lease.task)?;
        let current =
            row.and_then(|row| row.token.map(|token| LeaseRef { task: lease.task, attempt: row.attempt, token }));
        Ok(current.unwrap_or(lease))
    }

    fn open_gates(&mut self, claims: &[Claim]) -> Result<Vec<QueueRow>> {
        let mut reopened = Vec::new();
        if self.mutant == Some(Mutant::PauseIsNotInTheGate) {
            for claim in claims {
                if let Some(row) = self.store.queue(&claim.queue)?
                    && row.pause.is_some()
                {
                    self.set_pause(&row.name, None)?;
                    reopened.push(row);
                }
            }
        }
        Ok(reopened)
    }

    fn close_gates(&mut self, reopened: &[QueueRow]) -> Result<()> {
        for row in reopened {
            self.set_pause(&row.name, row.pause.clone().map(|pause| (pause.reason, pause.until_us)))?;
        }
        Ok(())
    }

    fn set_pause(&self, queue: &str, pause: Option<(String, Option<i64>)>) -> Result<()> {
        let audit = Audit { action: String::new(), subject: String::new(), detail: String::new() };
        let change = QueueChange { pause: Some(pause), ..QueueChange::default() };
        self.store.update_queue(queue, &change, &audit, None).map(|_| ())
    }
}

/// A token of the cluster's incarnation from random bits.
pub(crate) fn token(incarnation: i16, random: u64) -> Token {
    Token::new(incarnation, random)
}
