//! Keeps a stream open, one after the other.

use std::sync::Arc;

use millrace_proto::scaler::v1::{
    AttachNodeRequest, NodeHello, NodeWelcome, attach_node_request::Message as Request,
    attach_node_response::Message as Response,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, sleep_until, timeout},
};

use super::{
    Facts, Node, Order,
    say::{Next, Said},
    stream::{Lost, Missing, Stream, open},
};
use crate::{
    Connect,
    link::{Backoff, Endpoints},
};

/// The longest wait before the first reconnect; doubled with each failure.
const MIN_BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait before any reconnect: ten thousand nodes come back at less than two thousand a second.
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// The longest that a scaler can ask us to wait.
const MAX_REQUESTED_DELAY: Duration = Duration::from_secs(60);
/// The health is told at least and at most this often.
const HEALTH_INTERVALS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(300));
/// A new stream repeats a drain that goes on; when it has not by then, the drain was called off while no stream was up.
const REPEAT: Duration = Duration::from_secs(3);
/// A scaler that does not know the node may find it in its provider's list yet; after this time it never will.
const UNKNOWN: Duration = Duration::from_secs(60);

/// Keeps the agent attached.
pub(super) struct Keeper {
    node: Node,
    connector: Arc<dyn Connect>,
    endpoints: Endpoints,
    backoff: Backoff,
    facts: watch::Receiver<Facts>,
    orders: watch::Sender<Order>,
    named: watch::Sender<Option<String>>,
    /// Since when scalers have said that they do not know the node.
    unknown_since: Option<Instant>,
    /// The last failure that was logged; the same one again is not news.
    last_failure: String,
    /// The last word was there before the last try.
    hurried: bool,
}

/// How a stream ended.
enum Ended {
    /// Everything was said.
    Done,
    Lost(Lost),
}

/// What a stream may bring.
enum Event {
    Received(Option<Response>),
    Closed(Lost),
    /// Something was sent or is due, or the facts have changed.
    Turn,
}

impl Keeper {
    pub(super) fn new(
        node: Node,
        connector: Arc<dyn Connect>,
        facts: watch::Receiver<Facts>,
        orders: watch::Sender<Order>,
        named: watch::Sender<Option<String>>,
    ) -> Self {
        let start = rand::random_range(0..node.endpoints.len().max(1));
        Self {
            endpoints: Endpoints::new(node.endpoints.clone(), start),
            node,
            connector,
            backoff: Backoff::new(MIN_BACKOFF, MAX_BACKOFF),
            facts,
            orders,
            named,
            unknown_since: None,
            last_failure: String::new(),
            hurried: false,
        }
    }

    /// Runs until the last word is said, or the node is not wanted.
    pub(super) async fn run(mut self) {
        loop {
            let endpoint = self.endpoints.next();
            let hello = self.hello();
            let ended = match open(&*self.connector, &endpoint, hello.clone()).await {
                Ok(stream) => {
                    let began = Instant::now();
                    let ended = self.attached(&endpoint, &hello, stream).await;
                    // A scaler that welcomes nodes and falls over again and again is not to be run into by all at once.
                    if began.elapsed() >= MAX_BACKOFF {
                        self.backoff.reset();
                    }
                    ended
                }
                Err(lost) => Ended::Lost(lost),
            };
            let Ended::Lost(lost) = ended else { return };
            if let Some(reason) = self.not_wanted(&lost) {
                tracing::warn!(%reason, "this node is not wanted; it ends once nothing runs");
                self.orders.send_replace(Order::Leave(reason));
                return;
            }
            self.wait(&lost).await;
        }
    }

    fn hello(&self) -> NodeHello {
        NodeHello {
            node_id: self.node.identity.node_id.clone(),
            instance_id: self.node.identity.instance_id.clone(),
            pool: self.node.identity.pool.clone(),
            slots: i32::try_from(self.node.slots).unwrap_or(i32::MAX),
            build: self.node.build.clone(),
            ready: self.facts.borrow().ready,
        }
    }

    /// Why the scaler does not want the node, when it is sure of that.
    fn not_wanted(&mut self, lost: &Lost) -> Option<String> {
        let now = Instant::now();
        match lost.missing() {
            None => None,
            Some(Missing::Gone) => Some(lost.to_string()),
            Some(Missing::Unknown) => {
                let since = *self.unknown_since.get_or_insert(now);
                (now.duration_since(since) >= UNKNOWN).then(|| lost.to_string())
            }
        }
    }

    /// Waits before the next try; not at all when the agent has said its last word meanwhile and wants to be gone.
    async fn wait(&mut self, lost: &Lost) {
        let text = lost.to_string();
        if text != self.last_failure {
            tracing::warn!(error = %text, "not attached to a scaler; work goes on, and trying again");
            self.last_failure = text;
        }
        let delay = self.backoff.next(&mut rand::rng()).max(lost.delay().min(MAX_REQUESTED_DELAY));
        if self.hurried {
            return tokio::time::sleep(delay).await;
        }
        let ends = self.facts.wait_for(|facts| facts.end.is_some());
        if let Ok(Ok(_)) = timeout(delay, ends).await {
            self.hurried = true;
        }
    }

    /// Talks on a stream until it ends.
    async fn attached(&mut self, endpoint: &str, hello: &NodeHello, mut stream: Stream) -> Ended {
        let welcome = std::mem::take(&mut stream.welcome);
        let interval = self.welcomed(endpoint, &welcome);
        let began = Instant::now();
        let mut said = Said::new(hello.ready, self.node.slots, interval, began);
        let mut repeat_by = matches!(*self.orders.borrow(), Order::Drain(_)).then_some(began + REPEAT);
        // At most one message waits here for the stream to take it: the next one is chosen from what is so then.
        let mut waiting: Option<Request> = None;
        loop {
            let now = Instant::now();
            if repeat_by.is_some_and(|by| by <= now) {
                repeat_by = None;
                self.resume("the scaler did not repeat its drain");
            }
            let mut wake = repeat_by;
            if waiting.is_none() && stream.requests.is_some() {
                let facts = self.facts.borrow_and_update().clone();
                let draining = matches!(*self.orders.borrow(), Order::Drain(_));
                match said.next(&facts, draining, now) {
                    Next::Say(message) => waiting = Some(message),
                    // Our side of the stream ends; the scaler ends its own once it has read everything.
                    Next::Close => stream.requests = None,
                    Next::Wait(at) => wake = [wake, at].into_iter().flatten().min(),
                }
            }
            let event = tokio::select! {
                () = send(stream.requests.as_ref(), &mut waiting) => Event::Turn,
                message = stream.responses.message() => match message {
                    Ok(Some(response)) => Event::Received(response.message),
                    Ok(None) => Event::Closed(Lost::Ended),
                    Err(status) => Event::Closed(status.into()),
                },
                changed = self.facts.changed() => match changed {
                    Ok(()) => Event::Turn,
                    Err(_) => return Ended::Done,
                },
                () = at(wake) => Event::Turn,
            };
            match event {
                Event::Turn => {}
                Event::Closed(Lost::Ended) if stream.requests.is_none() => return Ended::Done,
                Event::Closed(lost) => return Ended::Lost(lost),
                Event::Received(Some(Response::GoAway(away))) => return Ended::Lost(Lost::SentAway(away)),
                Event::Received(message) => {
                    repeat_by =
                        repeat_by.filter(|_| !matches!(message, Some(Response::Drain(_) | Response::Resume(_))));
                    self.received(message);
                }
            }
        }
    }

    /// Takes the scaler's welcome in, and gives how often it wants to hear of the health.
    fn welcomed(&mut self, endpoint: &str, welcome: &NodeWelcome) -> Duration {
        self.last_failure.clear();
        self.unknown_since = None;
        if self.node.identity.node_id.is_empty() {
            self.node.identity.node_id.clone_from(&welcome.node_id);
        }
        let id = &self.node.identity.node_id;
        tracing::info!(%endpoint, node_id = %id, "attached to a scaler");
        self.named.send_if_modified(|named| {
            let news = named.is_none() && !id.is_empty();
            if news {
                *named = Some(id.clone());
            }
            news
        });
        let interval = welcome.health_interval.and_then(|interval| interval.try_into().ok());
        let (least, most) = HEALTH_INTERVALS;
        interval.unwrap_or(Duration::from_secs(10)).clamp(least, most)
    }

    fn received(&mut self, message: Option<Response>) {
        match message {
            Some(Response::Drain(drain)) => {
                let order = Order::Drain(drain.reason);
                if *self.orders.borrow() != order {
                    tracing::info!(?order, "the scaler drains this node");
                    self.orders.send_replace(order);
                }
            }
            Some(Response::Resume(_)) => self.resume("the scaler called the drain off"),
            Some(Response::Welcome(_)) => tracing::warn!("second Welcome on a stream ignored"),
            // The caller has taken it out.
            Some(Response::GoAway(_)) => {}
            None => tracing::warn!("message of a kind that this build does not know ignored"),
        }
    }

    fn resume(&mut self, why: &str) {
        if matches!(*self.orders.borrow(), Order::Drain(_)) {
            tracing::info!(why, "this node takes work again");
            self.orders.send_replace(Order::Work);
        }
    }
}

/// Sends what waits, once the stream takes it. Never resolves when nothing waits, nor on a stream that is closed: its other
/// side tells that as well.
async fn send(requests: Option<&mpsc::Sender<AttachNodeRequest>>, waiting: &mut Option<Request>) {
    let (Some(requests), true) = (requests, waiting.is_some()) else { return std::future::pending().await };
    let Ok(permit) = requests.reserve().await else { return std::future::pending().await };
    permit.send(AttachNodeRequest { message: waiting.take() });
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
