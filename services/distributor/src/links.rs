//! Exchange streams to the owners of queues: offers, demand and answers out, matches in.
//!
//! There is one [`Link`] per owner that this replica reaches, whether the owner is a queue service, another distributor or
//! this one. What goes out gathers in the link's [`Outbox`] and leaves when the stream has room: offers are hints and are
//! dropped past a bound, demand is computed at the moment of sending so that only the newest goes, and answers are
//! bounded by the credits that led to the matches.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use millrace_core::{
    id::{MemberId, TaskId},
    owners::{LinkEnd, Owners},
};
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
    owners: Owners<u64>,
    /// The links on which an owner has announced its queues, by number.
    links: HashMap<u64, Arc<Link>>,
}

/// A stream to one owner.
pub(crate) struct Link {
    /// Never used again: numbers of one stream mean nothing on another.
    pub(crate) id: u64,
    /// The owner that was dialled.
    owner: MemberId,
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
        let table = lock(&self.table);
        table.owners.link(queue).and_then(|link| table.links.get(&link)).cloned()
    }

    /// Whether the owner is reached.
    pub(crate) fn reaches(&self, owner: MemberId) -> bool {
        lock(&self.table).links.values().any(|link| link.owner == owner)
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

impl Table {
    /// The link that a queue goes over now, and no other.
    fn serves(&self, queue: &str, link: &Link) -> bool {
        self.owners.link(queue) == Some(link.id)
    }
}

impl Link {
    fn new(shared: &Shared, owner: MemberId) -> Arc<Self> {
        let id = shared.links.next.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Self { id, owner, outbox: Mutex::default(), wake: Notify::new() })
    }

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
                // The queue may go over another link by now, which has been sent the demand. Under the lock, so that no
                // number is kept for a link after it has ended.
                let table = lock(&shared.links.table);
                if !table.serves(&queue, self) {
                    return None;
                }
                let DemandOf { seq, credits, acked, closed } = shared.sessions.demand(receiver, &queue, self.id);
                drop(table);
                Some(wire::Demand { queue, receiver, seq, credits, acked_seq: acked, closed })
            })
            .collect();
        for demands in demands.chunks(CHUNK) {
            messages.push(message(exchange_request::Message::Demands(wire::Demands { demands: demands.to_vec() })));
        }
        Some(messages)
    }
}

/// Opens a link to an owner and serves it until it ends. Returns how, and why; errors are logged by the caller.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    owner: MemberId,
    endpoint: &str,
    kind: MemberKind,
) -> (LinkEnd, Result<(), Status>) {
    let serving = Serving { shared, link: Link::new(shared, owner) };
    let ended = exchange(shared, &serving.link, endpoint, kind).await;
    let end = match &ended {
        Err(status) if is_replaced(status) => LinkEnd::Replaced,
        _ if lock(&shared.links.table).owners.has_announced(serving.link.id) => LinkEnd::Announced,
        _ => LinkEnd::Unreached,
    };
    (end, ended)
}

/// Ends a link however serving it ends, also when it is dropped: the outgoing half would otherwise go on.
struct Serving<'a> {
    shared: &'a Shared,
    link: Arc<Link>,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        lock(&self.link.outbox).ended = true;
        self.link.wake.notify_one();
        let changed = {
            let mut table = lock(&self.shared.links.table);
            table.links.remove(&self.link.id);
            table.owners.end(self.link.id)
        };
        self.shared.sessions.forget_link(self.link.id);
        demand_of_all(self.shared, &changed);
    }
}

/// The reason of an endpoint that answers as another owner than the one that was dialled.
const OWNER_REPLACED: &str = "OWNER_REPLACED";

/// Whether the endpoint answers, and the owner is no more: another process was started in its place, or a distributor there
/// owns nothing.
fn is_replaced(status: &Status) -> bool {
    matches!(Fault::from(status).reason.as_ref(), OWNER_REPLACED | "NOT_OWNER")
}

async fn exchange(shared: &Arc<Shared>, link: &Arc<Link>, endpoint: &str, kind: MemberKind) -> Result<(), Status> {
    let mut inbound = connect(shared, link, endpoint, kind).await?;
    while let Some(response) = inbound.message().await? {
        match response.message {
            Some(exchange_response::Message::Ownership(ownership)) => take_ownership(shared, link, ownership)?,
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

/// Takes what the owner says that it owns. Whoever else answers where the owner was is not linked under its name: the queues
/// that it owns would go over two links, one for each name.
fn take_ownership(shared: &Shared, link: &Arc<Link>, ownership: wire::Ownership) -> Result<(), Fault> {
    if ownership.owner_id.parse() != Ok(link.owner) {
        let message = format!("the owner {} answers where {} was", ownership.owner_id, link.owner);
        return Err(Fault::precondition(OWNER_REPLACED, message));
    }
    let queues = ownership.queues.into_iter().map(|owned| (owned.queue, owned.epoch));
    let changed = {
        let mut table = lock(&shared.links.table);
        table.links.insert(link.id, link.clone());
        table.owners.announce(link.id, queues)
    };
    demand_of_all(shared, &changed);
    Ok(())
}

/// Sends every session's demand for queues that go over another link now.
fn demand_of_all(shared: &Shared, queues: &[String]) {
    if queues.is_empty() {
        return;
    }
    for session in shared.sessions.all() {
        shared.links.demand(session.receiver, session.queues.iter().filter(|queue| queues.contains(*queue)));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use futures::stream::BoxStream;
    use millrace_proto::distributor::v1::{
        WatchOutputRequest, WatchOutputResponse,
        peer_service_server::{PeerService, PeerServiceServer},
    };
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response};
    use uuid::Uuid;

    use super::*;
    use crate::fixture;

    const OLD: MemberId = MemberId(Uuid::from_u128(10));
    const NEW: MemberId = MemberId(Uuid::from_u128(11));

    fn ownership(owner: MemberId, queues: &[(&str, i64)]) -> wire::Ownership {
        let queues = queues.iter().map(|(queue, epoch)| wire::OwnedQueue { queue: (*queue).into(), epoch: *epoch });
        wire::Ownership { owner_id: owner.to_string(), queues: queues.collect() }
    }

    fn link<'a>(shared: &'a Arc<Shared>, owner: MemberId, queues: &[(&str, i64)]) -> Serving<'a> {
        let link = Link::new(shared, owner);
        take_ownership(shared, &link, ownership(owner, queues)).unwrap();
        Serving { shared, link }
    }

    /// The queues and receivers of the demand that a link sends.
    fn demands(shared: &Shared, link: &Link) -> Vec<(String, u64)> {
        let messages = link.take(shared).unwrap_or_default();
        let of = |message: wire::ExchangeRequest| match message.message {
            Some(exchange_request::Message::Demands(demands)) => demands.demands,
            other => panic!("{other:?}"),
        };
        messages.into_iter().flat_map(of).map(|demand| (demand.queue, demand.receiver)).collect()
    }

    /// A link on which an owner has announced these queues, and which never ends.
    pub(crate) fn linked(shared: &Arc<Shared>, owner: MemberId, queues: &[(&str, i64)]) -> Arc<Link> {
        let serving = link(shared, owner, queues);
        let link = serving.link.clone();
        std::mem::forget(serving);
        link
    }

    /// What has gathered for an owner, in words.
    pub(crate) fn sent(shared: &Shared, link: &Link) -> Vec<String> {
        let word = |message: wire::ExchangeRequest| match message.message {
            Some(exchange_request::Message::Answers(answers)) => {
                let returned = |answer: &&wire::Answer| answer.verdict == Verdict::Returned as i32;
                let count = answers.answers.iter().filter(returned).count();
                assert_eq!(count, answers.answers.len());
                format!("{count} returned")
            }
            Some(exchange_request::Message::Demands(demands)) => {
                format!("demand of {}", demands.demands.iter().map(|demand| demand.credits).sum::<u32>())
            }
            other => panic!("{other:?}"),
        };
        link.take(shared).unwrap_or_default().into_iter().map(word).collect()
    }

    #[tokio::test]
    async fn r5_a_queue_is_not_lost_with_one_of_two_links_to_its_owner() {
        let replica = fixture::replica();
        let (shared, session) = (&replica.shared, replica.session(&["default"], 3));
        let first = link(shared, OLD, &[("default", 5)]);
        let second = link(shared, NEW, &[("default", 5)]);
        assert_eq!(demands(shared, &first.link), [("default".to_owned(), session.receiver)]);
        assert_eq!(demands(shared, &second.link), []);
        drop(first);
        assert_eq!(shared.links.of("default").unwrap().id, second.link.id);
        assert_eq!(demands(shared, &second.link), [("default".to_owned(), session.receiver)], "it is told anew");
        assert!(!shared.links.reaches(OLD) && shared.links.reaches(NEW));
    }

    #[tokio::test]
    async fn r6_a_demand_goes_out_only_on_the_present_link_of_its_queue() {
        let replica = fixture::replica();
        let (shared, session) = (&replica.shared, replica.session(&["default", "b"], 3));
        let old = link(shared, OLD, &[("default", 5), ("b", 1)]);
        shared.links.demand(session.receiver, &session.queues);
        let new = link(shared, NEW, &[("default", 6)]);
        assert_eq!(demands(shared, &old.link), [("b".to_owned(), session.receiver)]);
        assert_eq!(demands(shared, &new.link), [("default".to_owned(), session.receiver)]);
        // The later one goes, and leaves no numbers behind.
        let number = new.link.id;
        assert!(session.reserve("default", number, 1));
        drop(new);
        assert!(!session.reserve("default", number, 2));
        assert_eq!(demands(shared, &old.link), [("default".to_owned(), session.receiver)]);
    }

    /// A peer that says of each exchange that it is this owner and has these queues, or refuses it.
    struct Fake(Result<wire::Ownership, Fault>);

    #[tonic::async_trait]
    impl PeerService for Fake {
        type ExchangeStream = BoxStream<'static, Result<wire::ExchangeResponse, Status>>;
        type WatchOutputStream = BoxStream<'static, Result<WatchOutputResponse, Status>>;

        async fn exchange(
            &self,
            _: Request<Streaming<wire::ExchangeRequest>>,
        ) -> Result<Response<Self::ExchangeStream>, Status> {
            let message = exchange_response::Message::Ownership(self.0.clone()?);
            Ok(Response::new(stream::iter([Ok(wire::ExchangeResponse { message: Some(message) })]).boxed()))
        }

        async fn watch_output(
            &self,
            _: Request<WatchOutputRequest>,
        ) -> Result<Response<Self::WatchOutputStream>, Status> {
            Err(Fault::internal("not asked for here").into())
        }
    }

    /// Dials the owner where this peer answers, until the link ends.
    async fn dial(shared: &Arc<Shared>, owner: MemberId, peer: Fake) -> (LinkEnd, Option<tonic::Code>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = PeerServiceServer::new(peer);
        let incoming = TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        let server = tokio::spawn(server);
        let (end, ended) = serve(shared, owner, &endpoint, MemberKind::Distributor).await;
        server.abort();
        (end, ended.err().map(|status| status.code()))
    }

    #[tokio::test]
    async fn r5_who_answers_as_another_owner_is_not_linked_under_the_old_name() {
        let replica = fixture::replica();
        let shared = &replica.shared;
        let answers = |owner| Fake(Ok(ownership(owner, &[("default", 7)])));
        let replaced = (LinkEnd::Replaced, Some(tonic::Code::FailedPrecondition));
        assert_eq!(dial(shared, OLD, answers(NEW)).await, replaced);
        let none = Fake(Err(Fault::precondition("NOT_OWNER", "it hosts no matcher")));
        assert_eq!(dial(shared, OLD, none).await, replaced);
        assert_eq!(dial(shared, NEW, answers(NEW)).await, (LinkEnd::Announced, None));
        let busy = Fake(Err(Fault::unavailable("it stops", Duration::ZERO)));
        assert_eq!(dial(shared, OLD, busy).await, (LinkEnd::Unreached, Some(tonic::Code::Unavailable)));
        assert!(shared.links.of("default").is_none());
    }

    #[tokio::test]
    async fn r5_nobody_at_an_endpoint_is_no_reason_to_look_at_once() {
        let replica = fixture::replica();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let (end, ended) = serve(&replica.shared, OLD, &endpoint, MemberKind::Distributor).await;
        assert_eq!((end, ended.unwrap_err().code()), (LinkEnd::Unreached, tonic::Code::Unavailable));
    }
}
