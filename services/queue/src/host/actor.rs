//! The task that owns one queue's matcher for as long as one ownership lasts.
//!
//! It works in rounds: it takes whatever has come in, then sends every match that is possible. Nothing in a round waits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use millrace_core::{
    id::TaskId,
    matcher::{Answer, Connection, Lane, Matched, Matcher, Offered},
};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Figures, Shared,
    figures::Rate,
    inputs::{Batch, Inputs},
    mailbox::{Command, Demand, Offers, Verdict},
    metrics::QueueMetrics,
    outbox::{Outbox, Pushed},
    reads::{Read, Reads, entries},
    wire,
};

/// How often overdue matches return, figures are published and failed reads are tried again.
const MAINTENANCE: Duration = Duration::from_millis(250);

/// Matches made at a time.
const MATCHES: usize = 2_000;

/// How many times that in one round, before new input is taken.
const MATCH_ROUNDS: usize = 8;

pub(super) struct Actor {
    shared: Arc<Shared>,
    queue: Arc<str>,
    epoch: i64,
    matcher: Matcher,
    inputs: Inputs,
    reads: Reads,
    results: mpsc::Receiver<Read>,
    outboxes: HashMap<Connection, Arc<Outbox>>,
    /// Matches may be left to make: the next round does not wait.
    more: bool,
    maintain_at: Instant,
    arrivals: Rate,
    claims: Rate,
    /// Claims already counted.
    claimed: u64,
    figures: Arc<Mutex<Figures>>,
    metrics: QueueMetrics,
}

impl Actor {
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: Arc<str>,
        epoch: i64,
        mut inputs: Inputs,
        figures: Arc<Mutex<Figures>>,
        metrics: QueueMetrics,
    ) -> Self {
        let mut matcher = Matcher::new(shared.settings.limits);
        matcher.set_paused(inputs.is_paused());
        let discovery = shared.settings.discovery;
        let (reads, results) = Reads::new(queue.clone(), shared.store.clone(), shared.reads.clone(), discovery);
        let now = shared.clock.now();
        Self {
            queue,
            epoch,
            matcher,
            inputs,
            reads,
            results,
            outboxes: HashMap::new(),
            more: false,
            maintain_at: Instant::now(),
            arrivals: Rate::new(now),
            claims: Rate::new(now),
            claimed: 0,
            figures,
            metrics,
            shared,
        }
    }

    /// Runs until the ownership ends.
    pub(super) async fn run(mut self) {
        let mut batch = Batch::default();
        self.start_reads();
        loop {
            let deadline = (!self.more).then_some(self.maintain_at);
            if !self.inputs.gather(&mut batch, &mut self.results, deadline).await {
                self.metrics.clear();
                return;
            }
            self.take(&mut batch);
            if Instant::now() >= self.maintain_at {
                self.maintain();
            }
            self.dispatch();
            self.start_reads();
        }
    }

    fn take(&mut self, batch: &mut Batch) {
        if let Some(paused) = batch.paused.take() {
            self.matcher.set_paused(paused);
        }
        for command in batch.commands.drain(..) {
            self.command(command);
        }
        for read in batch.reads.drain(..) {
            self.read(read);
        }
        for offers in batch.offers.drain(..) {
            self.offers(offers);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Open { connection, newest_format, outbox } => {
                self.matcher.open(connection, newest_format);
                self.outboxes.insert(connection, outbox);
            }
            Command::Close(connection) => self.close(connection),
            Command::Demands(connection, demands) => {
                for demand in demands {
                    self.demand(connection, demand);
                }
            }
            Command::Answers(connection, answers) => {
                for (task, verdict) in answers {
                    self.answer(connection, task, verdict);
                }
            }
        }
    }

    fn demand(&mut self, connection: Connection, demand: Demand) {
        match demand.grant {
            // An older one, or one of the ownership before, changes nothing.
            Some(grant) => {
                self.matcher.demand(connection, demand.receiver, grant.seq, grant.credits, grant.acked);
            }
            None => self.matcher.forget(connection, demand.receiver),
        }
    }

    fn answer(&mut self, connection: Connection, task: TaskId, verdict: Verdict) {
        self.metrics.answered(verdict);
        let answer = match verdict {
            Verdict::Answer(answer) => answer,
            Verdict::Refused => {
                self.refused();
                Answer::Returned
            }
        };
        self.matcher.answer(connection, task, answer);
    }

    /// The gate has refused a claim: the queue is paused, or another owns it, and this process does not know yet. Matching stops until the
    /// ownership loop has looked, which then either sets the pause, whichever it is, or ends this actor.
    fn refused(&mut self) {
        if !self.matcher.is_paused() {
            self.matcher.set_paused(true);
            self.shared.nudge.notify_one();
        }
    }

    fn offers(&mut self, offers: Offers) {
        self.metrics.offers.inc_by(offers.len() as u64);
        let mut arrived = 0;
        for (lane, entry) in offers {
            let counts = self.reads.defer(&lane, entry) || self.matcher.offer(&lane, entry) != Offered::Duplicate;
            arrived += u64::from(counts);
        }
        self.arrivals.add(self.shared.clock.now(), arrived);
    }

    fn read(&mut self, read: Read) {
        let now = self.shared.clock.now();
        match read {
            Read::Feed(feed, result) => {
                let (page, offers) = self.reads.fed(&feed.lane, result, now);
                match page {
                    Some(page) => self.matcher.fed(&feed, entries(page.rows), page.exhausted),
                    None => self.matcher.feed_failed(&feed),
                }
                for entry in offers {
                    self.matcher.offer(&feed.lane, entry);
                }
            }
            Read::Sweep(sweep, result, took) => {
                let page = self.reads.swept(result, took, now);
                // After a failure the sweep goes on with the next lane, and comes back to this one in its turn.
                let (rows, exhausted) = page.map_or((Vec::new(), true), |page| (entries(page.rows), page.exhausted));
                let missing = self.matcher.swept(&sweep, rows, exhausted);
                self.metrics.recovered.inc_by(missing as u64);
            }
            Read::Lanes(result) => {
                let lanes = self.reads.discovered(result, now);
                let lane = |key: millrace_store::LaneKey| Lane { rank: key.rank, tenant: key.tenant.into() };
                self.matcher.discovered(lanes.into_iter().map(lane));
            }
        }
    }

    fn start_reads(&mut self) {
        let now = self.shared.clock.now();
        self.reads.discover(now);
        let free = self.reads.feeds_free(now);
        if free > 0 {
            for feed in self.matcher.feeds(self.shared.clock.wall(), free) {
                self.reads.feed(feed);
            }
        }
        if self.reads.may_sweep(now) {
            let sweep = self.matcher.sweep(now);
            self.reads.sweep(sweep, now);
        }
    }

    /// Sends every match that is possible now.
    fn dispatch(&mut self) {
        let (now, wall) = (self.shared.clock.now(), self.shared.clock.wall());
        for _ in 0..MATCH_ROUNDS {
            let matched = self.matcher.matches(now, wall, MATCHES);
            self.more = matched.len() == MATCHES;
            self.send(matched);
            if !self.more {
                return;
            }
        }
    }

    fn send(&mut self, mut matched: Vec<Matched>) {
        self.metrics.matches.inc_by(matched.len() as u64);
        // A stable sort: each session's matches stay in order.
        matched.sort_by_key(|matched| matched.connection);
        for of_connection in matched.chunk_by(|one, next| one.connection == next.connection) {
            let connection = of_connection[0].connection;
            let Some(outbox) = self.outboxes.get(&connection) else { continue };
            match outbox.push(&self.queue, self.epoch, wire::matches(of_connection)) {
                Pushed::Waits => continue,
                Pushed::Full => {
                    self.shared.metrics.stalled.inc();
                    tracing::warn!(queue = &*self.queue, connection = connection.0, "exchange closed: not read");
                }
                Pushed::Gone => {}
            }
            self.close(connection);
        }
    }

    fn close(&mut self, connection: Connection) {
        self.matcher.close(connection);
        self.outboxes.remove(&connection);
    }

    fn maintain(&mut self) {
        let now = self.shared.clock.now();
        self.maintain_at = Instant::now() + MAINTENANCE;
        let overdue = self.matcher.return_overdue(now);
        self.metrics.overdue(overdue);
        let claimed = self.matcher.claimed();
        self.claims.add(now, claimed - self.claimed);
        self.claimed = claimed;
        let figures = Figures {
            epoch: self.epoch,
            arrival_rate: self.arrivals.per_second(now),
            dispatch_rate: self.claims.per_second(now),
            window: self.matcher.window_len(),
            window_capacity: self.shared.settings.limits.window,
            demand: self.matcher.demand_len(),
        };
        self.metrics.window.set(figures.window as i64);
        self.metrics.demand.set(figures.demand as i64);
        self.metrics.unanswered.set(self.matcher.pending_len() as i64);
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }
}
