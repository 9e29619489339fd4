//! A distributor, as far as the exchange is concerned.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use millrace_core::id::TaskId;
use millrace_proto::queue::v1::{
    Answer, Answers, Demand, Demands, ExchangeHello, ExchangeRequest, ExchangeResponse, Match, Matches, Offer, Offers,
    Ownership, answer::Verdict, exchange_request, exchange_response,
};
use millrace_queue::Host;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

use super::Database;

/// Longer than anything that a host may take, in the tests' own time.
const PATIENCE: Duration = Duration::from_secs(60);

/// One end of an exchange.
pub struct Peer {
    requests: mpsc::Sender<ExchangeRequest>,
    pub responses: BoxStream<'static, Result<ExchangeResponse, Status>>,
    seq: u64,
}

pub fn hello(database: &Database) -> ExchangeHello {
    ExchangeHello {
        replica_id: Uuid::from_u128(99).to_string(),
        min_format: 1,
        max_format: 1,
        incarnation: database.incarnation(),
    }
}

impl Peer {
    /// Opens an exchange without a hello.
    pub fn silent(host: &Host) -> Self {
        let (requests, inbound) = mpsc::channel(64);
        let responses = host.exchange(ReceiverStream::new(inbound).map(Ok));
        Self { requests, responses, seq: 0 }
    }

    /// An end whose other side is elsewhere.
    pub fn of(
        requests: mpsc::Sender<ExchangeRequest>,
        responses: BoxStream<'static, Result<ExchangeResponse, Status>>,
    ) -> Self {
        Self { requests, responses, seq: 0 }
    }

    /// Opens an exchange, says hello and hears which queues are owned.
    pub async fn open(host: &Host, hello: ExchangeHello) -> Self {
        let mut peer = Self::silent(host);
        peer.send(exchange_request::Message::Hello(hello)).await;
        peer.ownership().await;
        peer
    }

    pub async fn send(&self, message: exchange_request::Message) {
        self.requests.send(ExchangeRequest { message: Some(message) }).await.expect("the host reads");
    }

    /// The next message.
    pub async fn next(&mut self) -> Option<Result<exchange_response::Message, Status>> {
        let item = tokio::time::timeout(PATIENCE, self.responses.next()).await.expect("the host says something");
        item.map(|item| item.map(|response| response.message.expect("a message")))
    }

    /// The error with which the stream ends, whatever comes before it.
    pub async fn error(&mut self) -> Status {
        loop {
            match self.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return status,
                None => panic!("the stream ended without an error"),
            }
        }
    }

    /// The next ownership, whatever comes before it.
    pub async fn ownership(&mut self) -> Ownership {
        loop {
            match self.next().await {
                Some(Ok(exchange_response::Message::Ownership(ownership))) => return ownership,
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until the host says that it owns these queues.
    pub async fn hears_owned(&mut self, queues: &[&str]) -> Ownership {
        loop {
            let ownership = self.ownership().await;
            if ownership.queues.iter().map(|owned| owned.queue.as_str()).eq(queues.iter().copied()) {
                return ownership;
            }
        }
    }

    /// The next matches, whatever comes before them.
    pub async fn matches(&mut self) -> Matches {
        loop {
            match self.next().await {
                Some(Ok(exchange_response::Message::Matches(matches))) => return matches,
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next match, which must come alone.
    pub async fn one(&mut self) -> Match {
        let mut matches = self.matches().await.matches;
        assert_eq!(matches.len(), 1, "{matches:?}");
        matches.remove(0)
    }

    /// Says how much a session can take of the queue `default` beyond the match of number `acked`.
    pub async fn demand(&mut self, receiver: u64, credits: u32, acked: u64) {
        self.demand_of("default", receiver, credits, acked).await;
    }

    pub async fn demand_of(&mut self, queue: &str, receiver: u64, credits: u32, acked: u64) {
        self.seq += 1;
        let demand = Demand { queue: queue.into(), receiver, seq: self.seq, credits, acked_seq: acked, closed: false };
        self.send(exchange_request::Message::Demands(Demands { demands: vec![demand] })).await;
    }

    /// Offers tasks of the queue `default`.
    pub async fn offer(&self, offers: Vec<Offer>) {
        self.send(exchange_request::Message::Offers(Offers { queue: "default".into(), offers })).await;
    }

    pub async fn answer(&self, matched: &Match, verdict: Verdict) {
        let answer = Answer { task_id: matched.task_id.clone(), verdict: verdict.into() };
        self.send(exchange_request::Message::Answers(Answers { queue: "default".into(), answers: vec![answer] })).await;
    }
}

/// An offer of a task that joined its queue at this moment.
pub fn offer(task: TaskId, ready_at_us: i64) -> Offer {
    Offer {
        task_id: task.as_bytes().to_vec().into(),
        tenant: "acme".into(),
        ready_at_us,
        min_reader: 1,
        ..Offer::default()
    }
}

/// The task of a match.
pub fn task(matched: &Match) -> TaskId {
    TaskId::from_bytes(&matched.task_id).expect("an id")
}
