//! One exchange stream: reads what a distributor sends and passes it to the matchers.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use futures::{Stream, StreamExt};
use millrace_core::matcher::Connection;
use millrace_proto::queue::v1::{self as proto, ExchangeRequest, exchange_request::Message};
use millrace_runtime::status::Fault;
use millrace_store::MemberKind;
use tokio::sync::{mpsc::error::TrySendError, watch};
use tonic::Status;

use super::{
    OwnedQueues, Shared,
    mailbox::{Command, Mailbox},
    outbox::Outbox,
    wire::{self, Hello},
};

type Inbound = Pin<Box<dyn Stream<Item = Result<ExchangeRequest, Status>> + Send>>;

/// Serves one stream until it ends on either side or the host leaves. Its demand then goes and its matches return.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection, mut inbound: Inbound, outbox: Arc<Outbox>) {
    let hello = tokio::select! {
        hello = greet(&shared, &mut inbound) => hello,
        () = outbox.gone() => return,
        () = shared.closing.cancelled() => return outbox.finish(),
    };
    let hello = match hello {
        Ok(hello) => hello,
        Err(fault) => return outbox.fail(fault.into()),
    };
    let _open = OpenStream::new(&shared);
    tracing::info!(connection = connection.0, replica = %hello.replica, newest_format = hello.newest_format, "exchange opened");
    let owned = shared.owned.subscribe();
    let (opened, numbers) = (HashMap::new(), HashMap::new());
    let mut link = Link { shared: &shared, connection, hello, outbox: &outbox, owned, opened, numbers };
    let ended = link.run(&mut inbound).await;
    for (_, mailbox) in link.opened.into_values() {
        // An actor that has ended needs no word of it.
        let _ = mailbox.commands.send(Command::Close(connection)).await;
    }
    match ended {
        Ok(()) => outbox.finish(),
        Err(fault) => outbox.fail(fault.into()),
    }
    tracing::info!(connection = connection.0, replica = %hello.replica, "exchange closed");
}

/// Waits for the hello and checks it.
async fn greet(shared: &Shared, inbound: &mut Inbound) -> Result<Hello, Fault> {
    let first = match tokio::time::timeout(shared.settings.hello, inbound.next()).await {
        Ok(Some(Ok(ExchangeRequest { message: Some(Message::Hello(hello)) }))) => hello,
        Ok(Some(Err(status))) => return Err(Fault::from(&status)),
        Ok(_) | Err(_) => return Err(Fault::invalid("message", "the first message must be a hello, soon")),
    };
    let hello = wire::hello(&first).map_err(|(field, description)| Fault::invalid(field, description))?;
    if !shared.is_incarnation(hello.incarnation).await? {
        let message = "the caller works with another incarnation of the database";
        return Err(Fault::precondition("WRONG_INCARNATION", message));
    }
    if shared.kind == MemberKind::Distributor && shared.owned.borrow().is_empty() {
        return Err(Fault::precondition("NOT_OWNER", "this distributor hosts no matcher"));
    }
    Ok(hello)
}

/// Counts a stream for as long as it is open.
struct OpenStream<'a>(&'a Shared);

impl<'a> OpenStream<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.streams.fetch_add(1, Ordering::Relaxed);
        shared.metrics.streams.inc();
        if shared.holding_back.load(Ordering::Relaxed) {
            // We are reached again.
            shared.nudge.notify_one();
        }
        Self(shared)
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.streams.dec();
    }
}

struct Link<'a> {
    shared: &'a Shared,
    connection: Connection,
    hello: Hello,
    outbox: &'a Arc<Outbox>,
    owned: watch::Receiver<Arc<OwnedQueues>>,
    /// The matchers that know of this connection, with their numbers, by queue.
    opened: HashMap<Arc<str>, (u64, Mailbox)>,
    /// The number of the matcher that each queue has had on this stream.
    numbers: HashMap<Arc<str>, u64>,
}

impl Link<'_> {
    async fn run(&mut self, inbound: &mut Inbound) -> Result<(), Fault> {
        let (shared, outbox) = (self.shared, self.outbox.clone());
        let (gone, closing) = (outbox.gone(), shared.closing.cancelled());
        tokio::pin!(gone, closing);
        self.announce().await?;
        loop {
            tokio::select! {
                biased;
                () = &mut gone => return Ok(()),
                changed = self.owned.changed() => match changed {
                    Ok(()) => self.announce().await?,
                    Err(_) => return Ok(()),
                },
                () = &mut closing => return Ok(()),
                request = inbound.next() => match request {
                    Some(Ok(request)) => self.take(request).await?,
                    Some(Err(status)) => {
                        tracing::debug!(connection = self.connection.0, %status, "exchange broke off");
                        return Ok(());
                    }
                    None => return Ok(()),
                },
            }
        }
    }

    /// Makes this connection known to the matchers that are ours, then tells the distributor which they are: demand comes
    /// only after that, so a matcher knows the connection before its demand.
    ///
    /// Demand and matches are numbered by the stream, and a matcher starts anew. So a queue that was lost and is ours again
    /// needs a new stream, which is the error here; that is rare, and cheaper than to carry the numbers over.
    async fn announce(&mut self) -> Result<(), Fault> {
        let owned = self.owned.borrow_and_update().clone();
        self.opened.retain(|queue, (number, _)| owned.get(queue).is_some_and(|owned| owned.number == *number));
        for (queue, owned) in owned.iter() {
            if self.opened.contains_key(queue) {
                continue;
            }
            if self.numbers.insert(queue.clone(), owned.number).is_some() {
                let message = format!("the queue `{queue}` has a new matcher; open another stream");
                return Err(Fault::aborted("QUEUE_REGAINED", message));
            }
            let mailbox = owned.mailbox.clone();
            let open = Command::Open {
                connection: self.connection,
                newest_format: self.hello.newest_format,
                outbox: self.outbox.clone(),
            };
            if mailbox.commands.send(open).await.is_ok() {
                self.opened.insert(queue.clone(), (owned.number, mailbox));
            }
        }
        self.outbox.announce(wire::ownership(self.shared.member, &owned));
        Ok(())
    }

    /// Passes one message on. What is about a queue that is not ours is ignored: the distributor will hear, or has heard,
    /// that it is not.
    async fn take(&mut self, request: ExchangeRequest) -> Result<(), Fault> {
        match request.message {
            Some(Message::Offers(offers)) => self.offers(offers),
            Some(Message::Demands(demands)) => self.demands(&demands.demands).await,
            Some(Message::Answers(answers)) => self.answers(&answers).await,
            Some(Message::Hello(_)) => return Err(Fault::invalid("message", "only the first message may be a hello")),
            // A kind of message that a later release has added.
            None => self.unreadable(1),
        }
        Ok(())
    }

    fn offers(&self, offers: proto::Offers) {
        let Some((_, mailbox)) = self.opened.get(offers.queue.as_str()) else { return };
        let (read, unreadable) = wire::offers(offers.offers);
        self.unreadable(unreadable);
        if let Err(TrySendError::Full(dropped)) = mailbox.offers.try_send(read) {
            mailbox.dropped.inc_by(dropped.len() as u64);
        }
    }

    async fn demands(&self, demands: &[proto::Demand]) {
        let mut by_queue: Vec<(&str, Vec<_>)> = Vec::new();
        for demand in demands {
            let read = wire::demand(demand);
            match by_queue.iter_mut().find(|(queue, _)| *queue == demand.queue) {
                Some((_, of_queue)) => of_queue.push(read),
                None => by_queue.push((&demand.queue, vec![read])),
            }
        }
        for (queue, demands) in by_queue {
            self.command(queue, Command::Demands(self.connection, demands)).await;
        }
    }

    async fn answers(&self, answers: &proto::Answers) {
        let (read, unreadable) = wire::answers(&answers.answers);
        self.unreadable(unreadable);
        self.command(&answers.queue, Command::Answers(self.connection, read)).await;
    }

    /// Waits while the matcher's mailbox is full, and reads nothing meanwhile: the distributor is held back by its stream.
    async fn command(&self, queue: &str, command: Command) {
        if let Some((_, mailbox)) = self.opened.get(queue) {
            // An actor that has ended needs it no more.
            let _ = mailbox.commands.send(command).await;
        }
    }

    fn unreadable(&self, items: usize) {
        if items > 0 {
            self.shared.metrics.unreadable.inc_by(items as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use millrace_core::{
        id::{MemberId, TaskId},
        time::Timestamp,
    };
    use millrace_runtime::{metrics::Metrics, shutdown::Shutdown};
    use millrace_store::MemoryStore;
    use prometheus_client::metrics::counter::Counter;
    use tokio::sync::mpsc;
    use uuid::Uuid;

    use super::*;
    use crate::{Host, HostContext, HostSettings};

    fn host() -> Host {
        let (store, _clock) = MemoryStore::settable(Timestamp(1_700_000_000_000_000));
        let context = HostContext {
            store: Arc::new(store),
            member_id: MemberId(Uuid::from_u128(1)),
            kind: MemberKind::Queue,
            endpoint: "http://one".into(),
            shutdown: Shutdown::new(Duration::from_secs(1)),
            metrics: Metrics::new(),
        };
        Host::start(HostSettings::default(), context)
    }

    fn offers(count: u128) -> proto::Offers {
        let offer = |number| proto::Offer {
            task_id: TaskId(Uuid::from_u128(number)).as_bytes().to_vec().into(),
            tenant: "acme".into(),
            min_reader: 1,
            ..Default::default()
        };
        proto::Offers { queue: "q".into(), offers: (0..count).map(offer).collect() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_mailbox_drops_offers_and_holds_demand_back() {
        let host = host();
        let ((commands, mut inbox), (offer_sender, mut offer_inbox)) = (mpsc::channel(1), mpsc::channel(1));
        let mailbox = Mailbox { commands, offers: offer_sender, dropped: Counter::default() };
        let dropped = mailbox.dropped.clone();
        let hello = Hello { replica: MemberId(Uuid::nil()), newest_format: 1, incarnation: 1 };
        let link = Link {
            shared: &host.shared,
            connection: Connection(1),
            hello,
            outbox: &Outbox::new(1),
            owned: host.shared.owned.subscribe(),
            opened: HashMap::from([("q".into(), (1, mailbox))]),
            numbers: HashMap::new(),
        };
        link.offers(offers(2));
        link.offers(offers(3));
        assert_eq!((offer_inbox.recv().await.map(|offers| offers.len()), dropped.get()), (Some(2), 3));

        let demand = proto::Demand { queue: "q".into(), ..Default::default() };
        link.demands(std::slice::from_ref(&demand)).await;
        let second = link.demands(std::slice::from_ref(&demand));
        tokio::pin!(second);
        assert!(second.as_mut().now_or_never().is_none(), "it waits");
        inbox.recv().await;
        second.await;
        assert!(inbox.recv().await.is_some(), "and is not lost");
    }
}
