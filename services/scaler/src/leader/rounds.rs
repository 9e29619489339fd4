//! A term of the leader: steps of the engine at a steady pace, and what comes in between.

use std::time::Duration;

use millrace_core::{
    fleet::{
        State,
        books::{Happened, News},
    },
    id::NodeId,
    time::Timestamp,
};
use millrace_proto::scaler::v1::{self as wire, attach_node_response::Message};
use millrace_runtime::status::Fault;
use millrace_store::StoreError;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};

use super::{
    CALL_LIMIT, Leader,
    desk::{Arrival, Fact},
    streams::{Stream, Streams, order},
};
use crate::{
    HEALTH_INTERVAL, convert,
    engine::{Actions, Done, Engine, Reply, Stepped, Term},
};

/// Facts that are taken at a time: then a round that is due comes first.
const AT_ONCE: usize = 512;

/// One term.
pub(super) struct Rounds {
    leader: Leader,
    term: Term,
    /// None only while a step has it.
    engine: Option<Box<Engine>>,
    streams: Streams,
    replies: mpsc::Sender<Reply>,
    /// Steps in a row that could not be stored, and reads in a row that failed: the first of each is logged.
    failures: (u32, u32),
}

/// Why a term is over.
type End = &'static str;

impl Rounds {
    pub(super) fn new(leader: Leader, term: Term, engine: Engine, replies: mpsc::Sender<Reply>) -> Self {
        let engine = Some(Box::new(engine));
        Self { leader, term, engine, streams: Streams::default(), replies, failures: (0, 0) }
    }

    /// Leads until the lease is lost or the process drains; says why it ended.
    pub(super) async fn run(mut self, mut facts: mpsc::Receiver<Fact>, mut replies: mpsc::Receiver<Reply>) -> End {
        let shutdown = self.leader.context.shutdown.clone();
        let mut standing = self.leader.standing.clone();
        let mut ticks = interval(self.leader.settings.scaler_round);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut some = Vec::with_capacity(AT_ONCE);
        loop {
            let end = tokio::select! {
                biased;
                () = shutdown.draining() => {
                    self.finish(&mut replies).await;
                    return "the process stops";
                }
                _ = standing.changed() => self.lost(),
                _ = ticks.tick() => self.round().await,
                Some(reply) = replies.recv() => self.replied(reply),
                _ = facts.recv_many(&mut some, AT_ONCE) => self.heard(&mut some),
            };
            if let Some(end) = end {
                self.streams.end("another scaler leads", Some(Duration::from_millis(500)));
                return end;
            }
        }
    }

    /// Why this process leads no longer, if it does not.
    fn lost(&self) -> Option<End> {
        let standing = self.leader.standing.borrow();
        match standing.as_ref().filter(|standing| standing.mine && standing.epoch == self.term.epoch) {
            None => Some("the lease is another's"),
            Some(standing) if standing.has_ended() => Some("the lease could not be renewed in time"),
            Some(_) => None,
        }
    }

    /// Whether a call that begins now has ended before anyone else can lead.
    fn may_act(&self) -> bool {
        let standing = self.leader.standing.borrow();
        standing.as_ref().is_some_and(|standing| standing.epoch == self.term.epoch && standing.may_act())
    }

    /// Reads, decides, stores, then acts. While the lease is about to end it does nothing: it may be renewed yet.
    async fn round(&mut self) -> Option<End> {
        if let Some(end) = self.lost() {
            return Some(end);
        }
        if !self.may_act() {
            self.leader.lease.notify_one();
            return None;
        }
        let (now, began) = (self.now(), Instant::now());
        match self.step(now, false).await {
            Err(end) => return Some(end),
            Ok(Err(error)) => {
                self.failures.0 = self.failures.0.saturating_add(1);
                if self.failures.0 == 1 {
                    tracing::warn!(%error, "what was decided could not be stored; nothing is done until it is");
                }
                return None;
            }
            Ok(Ok(Stepped::Fenced)) => {
                self.leader.lease.notify_one();
                return Some("the lease is another's");
            }
            Ok(Ok(Stepped::Done(done))) => {
                self.failures.0 = 0;
                self.told(done);
            }
        }
        if self.may_act() {
            self.act();
        }
        let engine = self.engine.as_ref()?;
        self.leader.metrics.round(engine, began.elapsed(), self.streams.len());
        for provider in self.leader.providers.names() {
            if let Some(report) = engine.fleet().provider(provider, now) {
                self.leader.metrics.provider(provider, report.calls_per_second);
            }
        }
        None
    }

    /// One step of the engine, on a thread that may block. An engine that panics is lost, and with it the term.
    async fn step(&mut self, now: Timestamp, closing: bool) -> Result<Result<Stepped, StoreError>, End> {
        let Some(mut engine) = self.engine.take() else { return Err("the books are lost") };
        let term = self.term.clone();
        let stepped = self.leader.context.call(move |store| {
            let stepped = match closing {
                false => engine.step(store, &term, now),
                true => engine.close(store, &term, now),
            };
            Ok((engine, stepped))
        });
        match stepped.await {
            Ok((engine, stepped)) => {
                self.engine = Some(engine);
                Ok(stepped)
            }
            Err(error) => {
                tracing::error!(%error, "a round broke off: the books are loaded anew");
                Err("a round broke off")
            }
        }
    }

    /// Makes the calls that may be made now, and passes on orders.
    fn act(&mut self) {
        let now = self.now();
        let Some(engine) = self.engine.as_mut() else { return };
        let Actions { calls, orders } = engine.act(now);
        for call in calls {
            self.leader.providers.make(call, self.replies.clone());
        }
        for (node, given) in orders {
            if !self.streams.send(node, order(given)) {
                self.detached(node, now);
            }
        }
    }

    fn replied(&mut self, reply: Reply) -> Option<End> {
        let now = self.now();
        if let Some(engine) = self.engine.as_mut() {
            engine.take(reply, now);
        }
        None
    }

    fn heard(&mut self, facts: &mut Vec<Fact>) -> Option<End> {
        let now = self.now();
        for fact in facts.drain(..) {
            match fact {
                Fact::Arrival(arrival) => self.arrival(arrival, now),
                Fact::News { node, number, news } if self.streams.is_current(node, number) => {
                    self.news(node, news, now)
                }
                // The node has attached anew since.
                Fact::News { .. } => {}
            }
        }
        None
    }

    fn arrival(&mut self, arrival: Arrival, now: Timestamp) {
        let Arrival { hello, number, outbox, reading, answer } = arrival;
        let Some(engine) = self.engine.as_mut().filter(|_| !answer.is_closed()) else { return };
        let (node, standing) = match engine.arrive(&hello, now) {
            Ok(arrived) => arrived,
            Err(stranger) => return drop(answer.send(Err(stranger))),
        };
        self.streams.enter(node, Stream::new(number, outbox, reading));
        let welcome =
            wire::NodeWelcome { node_id: node.to_string(), health_interval: Some(convert::duration(HEALTH_INTERVAL)) };
        // An outbox that is new has room for both.
        let _ = self.streams.send(node, Message::Welcome(welcome));
        if let Some(standing) = standing {
            let _ = self.streams.send(node, order(standing));
        }
        self.leader.desk.live().entry(node).or_default().attached = true;
        let _ = answer.send(Ok(node));
    }

    fn news(&mut self, node: NodeId, news: News, now: Timestamp) {
        if let News::Detached = news {
            self.streams.remove(node);
            return self.detached(node, now);
        }
        if let News::Health { healthy, reason, running, .. } = &news {
            let mut live = self.leader.desk.live();
            let live = live.entry(node).or_default();
            (live.healthy, live.running) = (*healthy, *running);
            live.health_reason.clone_from(reason);
        }
        let Some(engine) = self.engine.as_mut() else { return };
        if engine.heard(node, news, now).is_err() {
            // It lives on after its end in the books; its provider ends it.
            self.streams.refuse(node, node_gone(node).into());
            self.leader.desk.live().remove(&node);
        }
    }

    fn detached(&mut self, node: NodeId, now: Timestamp) {
        if let Some(live) = self.leader.desk.live().get_mut(&node) {
            live.attached = false;
        }
        if let Some(engine) = self.engine.as_mut() {
            // A node that has gone meanwhile is not missed.
            let _ = engine.heard(node, News::Detached, now);
        }
    }

    /// Logs what a step came to, and passes it on.
    fn told(&mut self, done: Done) {
        for decision in &done.decisions {
            tracing::info!(pool = decision.pool, decision = decision.text, "decided");
        }
        for happened in &done.happened {
            log(happened);
            if happened.state == State::Gone {
                self.leader.desk.live().remove(&happened.node);
            }
        }
        self.leader.metrics.joined(&done.joined);
        if let Some(rows) = &done.demand {
            self.leader.figures.put(rows);
        }
        if done.pools_changed
            && let Some(engine) = &self.engine
        {
            self.leader.assign(engine);
        }
        match &done.unread {
            None => self.failures.1 = 0,
            Some(error) => {
                self.failures.1 = self.failures.1.saturating_add(1);
                if self.failures.1 == 1 {
                    tracing::warn!(%error, "what queues ask for could not be read; sizes are held once it is too old");
                }
            }
        }
    }

    /// Takes what comes of the calls under way, stores it, and lets go of the nodes.
    async fn finish(&mut self, replies: &mut mpsc::Receiver<Reply>) {
        self.streams.end("this scaler stops", Some(Duration::ZERO));
        let limit = Instant::now() + CALL_LIMIT;
        while self.engine.as_ref().is_some_and(|engine| engine.under_way() > 0) {
            match timeout_at(limit, replies.recv()).await {
                Ok(Some(reply)) => drop(self.replied(reply)),
                Ok(None) | Err(_) => break,
            }
        }
        match self.step(self.now(), true).await {
            Ok(Ok(Stepped::Done(done))) => self.told(done),
            Ok(Ok(Stepped::Fenced)) | Err(_) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last answers could not be stored; the next leader lists"),
        }
    }

    fn now(&self) -> Timestamp {
        self.leader.desk.now()
    }
}

/// One line for each turn in a node's life: at info what someone may be woken for.
fn log(happened: &Happened) {
    let Happened { node, pool, state, reason, .. } = happened;
    match state {
        State::Suspect | State::Terminating => tracing::info!(%node, pool, ?state, reason, "node"),
        _ => tracing::debug!(%node, pool, ?state, reason, "node"),
    }
}

/// FAILED_PRECONDITION for a node that is gone.
pub(super) fn node_gone(node: NodeId) -> Fault {
    Fault::precondition("NODE_GONE", format!("the node {node} is gone")).with_metadata("node", node.to_string())
}
