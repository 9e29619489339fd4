//! Exchange streams to the owners of queues: offers, demand and answers out, matches in.
//!
//! There is one [`Link`] per owner that this replica reaches, whether the owner is a queue service, another distributor or
//! this one. What goes out gathers in the link's [`Outbox`] and leaves when the stream has room: offers are hints and are
//! dropped past a bound, demand is computed at the moment of sending so that only the newest goes, and answers are
//! bounded by the credits that led to the matches.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use millrace_core::id::{MemberId, TaskId};
use millrace_proto::{
    distributor::v1::peer_service_client::PeerServiceClient,
    queue::v1::{
        self as wire, answer::Verdict, exchange_request, exchange_response, queue_service_client::QueueServiceClient,
    },
};
use millrace_runtime::status::Fault;
use millrace_store::MemberKind;
use tokio::sync::Notify;
use tonic::{Status, Streaming, transport::Endpoint};

use crate::{
    claims,
    sessions::DemandOf,
    shared::{Shared, lock},
};

/// Offers kept while a stream is slow. More of them are dropped: the owner's feeder reads the database anyway.
const OFFERS: usize = 20_000;

/// Items of one message: far below the bytes that an owner takes.
const CHUNK: usize = 5_000;

/// How long an owner may take to answer a connection or a ping.
const PATIENCE: Duration = Duration::from_secs(2);

/// Every link, and which queue goes over which.
#[derive(Default)]
pub(crate) struct Links {
    table: Mutex<Table>,
    next: AtomicU64,
}

#[derive(Default)]
struct Table {
    by_owner: HashMap<MemberId, Arc<Link>>,
    by_queue: HashMap<String, (Arc<Link>, i64)>,
}

/// A stream to one owner.
pub(crate) struct Link {
    /// Never used again: numbers of one stream mean nothing on another.
    pub(crate) id: u64,
    outbox: Mutex<Outbox>,
    wake: Notify,
}

#[derive(Default)]
struct Outbox {
    offers: HashMap<String, Vec<wire::Offer>>,
    offered: usize,
    /// Queues and receivers whose demand has changed.
    demands: BTreeSet<(String, u64)>,
    answers: HashMap<String, Vec<wire::Answer>>,
    ended: bool,
}

impl Links {
    /// The link of a queue, if its owner is reached.
    pub(crate) fn of(&self, queue: &str) -> Option<Arc<Link>> {
        lock(&self.table).by_queue.get(queue).map(|(link, _)| link.clone())
    }

    /// Whether the owner is reached.
    pub(crate) fn reaches(&self, owner: MemberId) -> bool {
        lock(&self.table).by_owner.contains_key(&owner)
    }

    /// Offers tasks to the queue's owner. Dropped when it is not reached.
    pub(crate) fn offer(&self, queue: &str, offers: impl Iterator<Item = wire::Offer>) {
        if let Some(link) = self.of(queue) {
            link.change(|outbox| {
                if outbox.offered < OFFERS {
                    let gathered = outbox.offers.entry(queue.to_owned()).or_default();
                    let before = gathered.len();
                    gathered.extend(offers);
                    outbox.offered += gathered.len() - before;
                }
            });
        }
    }

    /// Says that a session can take more or less of its queues than before.
    pub(crate) fn demand<'a>(&self, receiver: u64, queues: impl IntoIterator<Item = &'a String>) {
        for queue in queues {
            if let Some(link) = self.of(queue) {
                link.change(|outbox| outbox.demands.insert((queue.clone(), receiver)));
            }
        }
    }
}

impl Link {
    /// Tells the owner what became of a match.
    pub(crate) fn answer(&self, queue: &str, task: TaskId, verdict: Verdict) {
        self.answer_all(queue, [(task, verdict)]);
    }

    /// Tells the owner what became of matches.
    pub(crate) fn answer_all(&self, queue: &str, answers: impl IntoIterator<Item = (TaskId, Verdict)>) {
        self.change(|outbox| {
            let gathered = match outbox.answers.get_mut(queue) {
                Some(gathered) => gathered,
                None => outbox.answers.entry(queue.to_owned()).or_default(),
            };
            gathered.extend(answers.into_iter().map(|(task, verdict)| wire::Answer {
                task_id: Bytes::copy_from_slice(task.as_bytes()),
                verdict: verdict as i32,
            }));
        });
    }

    fn change<R>(&self, change: impl FnOnce(&mut Outbox) -> R) {
        let mut outbox = lock(&self.outbox);
        if !outbox.ended {
            change(&mut outbox);
            drop(outbox);
            self.wake.notify_one();
        }
    }

    /// What has gathered, as messages; none when nothing has.
    fn take(&self, shared: &Shared) -> Option<Vec<wire::ExchangeRequest>> {
        let full = {
            let mut outbox = lock(&self.outbox);
            if outbox.ended {
                return None;
            }
            Outbox { ended: false, ..std::mem::take(&mut *outbox) }
        };
        let message = |message| wire::ExchangeRequest { message: Some(message) };
        let mut messages = Vec::new();
        for (queue, all) in full.answers {
            for answers in all.chunks(CHUNK) {
                let answers = wire::Answers { queue: queue.clone(), answers: answers.to_vec() };
                messages.push(message(exchange_request::Message::Answers(answers)));
            }
        }
        for (queue, all) in full.offers {
            for offers in all.chunks(CHUNK) {
                let offers = wire::Offers { queue: queue.clone(), offers: offers.to_vec() };
                messages.push(message(exchange_request::Message::Offers(offers)));
            }
        }
        let demands: Vec<wire::Demand> = full
            .demands
            .into_iter()
            .filter_map(|(queue, receiver)| {
                let DemandOf { seq, credits, acked, closed } = shared.sessions.demand(receiver, &queue, self.id)?;
                Some(wire::Demand { queue, receiver, seq, credits, acked_seq: acked, closed })
            })
            .collect();
        for demands in demands.chunks(CHUNK) {
            messages.push(message(exchange_request::Message::Demands(wire::Demands { demands: demands.to_vec() })));
        }
        Some(messages)
    }
}

/// Opens a link to an owner and serves it until it ends. Errors are logged once by the caller's streak.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    owner: MemberId,
    endpoint: &str,
    kind: MemberKind,
) -> Result<(), Status> {
    let link = Arc::new(Link {
        id: shared.links.next.fetch_add(1, Ordering::Relaxed) + 1,
        outbox: Mutex::default(),
        wake: Notify::new(),
    });
    let serving = Serving { shared, link, owner };
    exchange(shared, &serving.link, owner, endpoint, kind).await
}

/// Ends a link however serving it ends, also when it is dropped: the outgoing half would otherwise go on.
struct Serving<'a> {
    shared: &'a Shared,
    link: Arc<Link>,
    owner: MemberId,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        lock(&self.link.outbox).ended = true;
        self.link.wake.notify_one();
        let mut table = lock(&self.shared.links.table);
        if table.by_owner.get(&self.owner).is_some_and(|held| held.id == self.link.id) {
            table.by_owner.remove(&self.owner);
        }
        table.by_queue.retain(|_, (held, _)| held.id != self.link.id);
    }
}

async fn exchange(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    owner: MemberId,
    endpoint: &str,
    kind: MemberKind,
) -> Result<(), Status> {
    let mut inbound = connect(shared, link, endpoint, kind).await?;
    while let Some(response) = inbound.message().await? {
        match response.message {
            Some(exchange_response::Message::Ownership(ownership)) => take_ownership(shared, link, owner, ownership),
            Some(exchange_response::Message::Matches(matches)) => claims::matched(shared, link, matches),
            // A message of a later release.
            None => {}
        }
    }
    Ok(())
}

async fn connect(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    endpoint: &str,
    kind: MemberKind,
) -> Result<Streaming<wire::ExchangeResponse>, Status> {
    let unusable = |error: tonic::transport::Error| Status::from(Fault::unavailable(error.to_string(), Duration::ZERO));
    let channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(unusable)?
        .connect_timeout(PATIENCE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PATIENCE)
        .keep_alive_timeout(PATIENCE)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(unusable)?;
    let requests = outbound(shared, link)?;
    let limit = shared.settings.max_message_bytes;
    let response = match kind {
        MemberKind::Queue => {
            QueueServiceClient::new(channel).max_decoding_message_size(limit).exchange(requests).await?
        }
        MemberKind::Distributor => {
            PeerServiceClient::new(channel).max_decoding_message_size(limit).exchange(requests).await?
        }
    };
    Ok(response.into_inner())
}

fn outbound(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
) -> Result<impl futures::Stream<Item = wire::ExchangeRequest> + Send + 'static, Status> {
    let hello = wire::ExchangeHello {
        replica_id: shared.id().to_string(),
        min_format: i32::from(millrace_core::READER_RANGE.0),
        max_format: i32::from(millrace_core::READER_RANGE.1),
        incarnation: i32::from(shared.cluster()?.incarnation),
    };
    let hello = wire::ExchangeRequest { message: Some(exchange_request::Message::Hello(hello)) };
    let gathered = stream::unfold((shared.clone(), link.clone()), |(shared, link)| async move {
        loop {
            let messages = link.take(&shared)?;
            if !messages.is_empty() {
                return Some((stream::iter(messages), (shared, link)));
            }
            link.wake.notified().await;
        }
    });
    Ok(stream::once(async { hello }).chain(gathered.flatten()))
}

fn take_ownership(shared: &Arc<Shared>, link: &Arc<Link>, owner: MemberId, ownership: wire::Ownership) {
    let gained: HashSet<String> = {
        let mut table = lock(&shared.links.table);
        table.by_owner.insert(owner, link.clone());
        let owned: HashMap<String, i64> =
            ownership.queues.into_iter().map(|owned| (owned.queue, owned.epoch)).collect();
        table.by_queue.retain(|queue, (held, epoch)| held.id != link.id || owned.get(queue) == Some(epoch));
        let mut gained = HashSet::new();
        for (queue, epoch) in owned {
            // Two owners may both believe in a queue for a moment: the later epoch is the true one.
            if table.by_queue.get(&queue).is_none_or(|(_, known)| *known < epoch) {
                gained.insert(queue.clone());
                table.by_queue.insert(queue, (link.clone(), epoch));
            }
        }
        gained
    };
    for session in shared.sessions.all() {
        shared.links.demand(session.receiver, session.queues.iter().filter(|queue| gained.contains(*queue)));
    }
}
