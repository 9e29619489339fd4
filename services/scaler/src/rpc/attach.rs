//! AttachNode: a node's own stream, at the leader or passed on to it.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt, stream};
use millrace_core::{
    fleet::books::{Missing, News},
    id::{NodeId, is_name},
};
use millrace_proto::scaler::v1::{self as wire, AttachNodeRequest, AttachNodeResponse, attach_node_request::Message};
use millrace_runtime::status::{Fault, Violations};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, Streaming};

use super::Rpc;
use crate::{
    convert,
    engine::{Hello, Stranger},
    leader::{Arrival, Fact, OUTBOX, go_away},
    relay,
};

/// The stream to a node.
pub(super) type Responses = Pin<Box<dyn Stream<Item = Result<AttachNodeResponse, Status>> + Send>>;

/// How long a node may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// How long the leader may take to answer a hello: its database may be slow.
const WELCOME: Duration = Duration::from_secs(5);

/// A provider's name of a node, in bytes.
const MAX_INSTANCE_BYTES: usize = 256;

pub(super) async fn attach(rpc: &Rpc, request: Request<Streaming<AttachNodeRequest>>) -> Result<Responses, Fault> {
    if rpc.context.shutdown.is_draining() {
        return Err(Fault::unavailable("this scaler is stopping", Duration::from_millis(500)));
    }
    let Ok(seat) = rpc.seats.clone().try_acquire_owned() else {
        let message = "this scaler has as many nodes as it takes";
        return Err(Fault::exhausted("TOO_MANY_STREAMS", message, Duration::from_secs(5)));
    };
    let relayed = relay::is_marked(&request);
    let mut inbound = request.into_inner();
    let first = timeout(HELLO, inbound.message()).await;
    let first = first.map_err(|_| Fault::of(Code::DeadlineExceeded, "no NodeHello within 10 s"))?;
    let Some(AttachNodeRequest { message: Some(Message::Hello(hello)) }) = first.map_err(Fault::from)? else {
        return Err(Fault::precondition("HELLO_FIRST", "the first message must be a NodeHello"));
    };
    let known = check(&hello)?;
    match rpc.desk.leader() {
        Some(leader) => here(rpc, leader, known, inbound, seat).await,
        None if relayed => Err(relay::no_leader()),
        None => there(rpc, hello, inbound, seat).await,
    }
}

fn check(hello: &wire::NodeHello) -> Result<Hello, Fault> {
    let mut violations = Violations::new();
    let node: Option<NodeId> = hello.node_id.parse().ok();
    violations.require(hello.node_id.is_empty() || node.is_some(), "hello.node_id", "must be a UUID");
    if hello.node_id.is_empty() {
        violations.require(!hello.instance_id.is_empty(), "hello.instance_id", "must be set without node_id");
        violations.require(!hello.pool.is_empty(), "hello.pool", "must be set without node_id");
    }
    violations.require(hello.instance_id.len() <= MAX_INSTANCE_BYTES, "hello.instance_id", "must be at most 256 bytes");
    violations.require(!hello.instance_id.contains('\0'), "hello.instance_id", "must not contain NUL");
    violations.require(hello.pool.is_empty() || is_name(&hello.pool), "hello.pool", "must be the name of a pool");
    violations.require(hello.slots >= 0, "hello.slots", "must not be negative");
    violations.finish()?;
    Ok(Hello {
        node,
        instance: hello.instance_id.clone(),
        pool: hello.pool.clone(),
        slots: u32::try_from(hello.slots).unwrap_or(0),
        ready: hello.ready,
    })
}

/// This process leads: a task of its own stands for the node until its stream ends, however it does.
async fn here(
    rpc: &Rpc,
    leader: mpsc::Sender<Fact>,
    hello: Hello,
    inbound: Streaming<AttachNodeRequest>,
    seat: OwnedSemaphorePermit,
) -> Result<Responses, Fault> {
    let (outbox, outgoing) = mpsc::channel(OUTBOX);
    let (answer, answered) = oneshot::channel();
    let reading = CancellationToken::new();
    let (told, telling) = oneshot::channel();
    let number = rpc.desk.number();
    let arrival = Arrival { hello, number, outbox, reading: reading.clone(), answer: told };
    tokio::spawn(async move {
        let _seat = seat;
        let arrived = match timeout(WELCOME, arrive(&leader, arrival, telling)).await {
            Ok(arrived) => arrived,
            Err(_) => Err(relay::no_leader()),
        };
        let node = match arrived {
            Ok(node) => node,
            // A caller that has left needs no answer.
            Err(fault) => return drop(answer.send(Err(fault))),
        };
        let _ = answer.send(Ok(()));
        tokio::select! {
            () = reading.cancelled() => {}
            () = listen(&leader, node, number, inbound) => {}
        }
        let _ = leader.send(Fact::News { node, number, news: News::Detached }).await;
    });
    answered.await.unwrap_or_else(|_| Err(relay::no_leader()))?;
    Ok(Box::pin(ReceiverStream::new(outgoing)))
}

async fn arrive(
    leader: &mpsc::Sender<Fact>,
    arrival: Arrival,
    telling: oneshot::Receiver<Result<NodeId, Stranger>>,
) -> Result<NodeId, Fault> {
    leader.send(Fact::Arrival(arrival)).await.map_err(|_| relay::no_leader())?;
    telling.await.map_err(|_| relay::no_leader())?.map_err(|stranger| refusal(&stranger))
}

/// Passes on what a node says, until it leaves. When the leader has more to take in than it can, the node's stream is not read meanwhile.
async fn listen(leader: &mpsc::Sender<Fact>, node: NodeId, number: u64, mut inbound: Streaming<AttachNodeRequest>) {
    while let Ok(Some(request)) = inbound.message().await {
        let Some(news) = request.message.and_then(convert::node::news) else { continue };
        if leader.send(Fact::News { node, number, news }).await.is_err() {
            return;
        }
    }
}

fn refusal(stranger: &Stranger) -> Fault {
    match stranger {
        Stranger::Missing(Missing::Unknown) => Fault::not_found("NODE_UNKNOWN", stranger.to_string()),
        Stranger::Missing(Missing::Gone) => Fault::precondition("NODE_GONE", stranger.to_string()),
        Stranger::OtherPool(pool) => {
            Fault::precondition("NODE_OF_OTHER_POOL", stranger.to_string()).with_metadata("pool", pool)
        }
    }
}

/// Another process leads: the stream is passed on to it, both ways. It ends when the leader's does.
async fn there(
    rpc: &Rpc,
    hello: wire::NodeHello,
    inbound: Streaming<AttachNodeRequest>,
    seat: OwnedSemaphorePermit,
) -> Result<Responses, Fault> {
    let mut leader = rpc.relay.leader(&rpc.desk).ok_or_else(relay::no_leader)?;
    let first = AttachNodeRequest { message: Some(Message::Hello(hello)) };
    let rest = stream::unfold(inbound, |mut inbound| async move {
        // An error ends the stream at the leader as it has ended here.
        let message = inbound.message().await.ok().flatten()?;
        Some((message, inbound))
    });
    let outgoing = stream::once(async { first }).chain(rest);
    let answer = timeout(WELCOME, leader.attach_node(relay::mark(outgoing))).await;
    let answer = answer.map_err(|_| relay::no_leader())?;
    let messages = answer.map_err(|status| passed_on(&status))?.into_inner();
    let stop = rpc.context.shutdown.clone();
    let messages = messages.map(|message| message.map_err(|status| passed_on(&status).into()));
    let last = rpc.context.shutdown.clone();
    let farewell = stream::once(async move { last.is_draining() }).filter_map(|draining| async move {
        let message = Some(go_away("this scaler stops", Some(Duration::ZERO)));
        draining.then_some(Ok(AttachNodeResponse { message }))
    });
    let seated = messages.take_until(async move { stop.draining().await }).chain(farewell);
    Ok(Box::pin(seated.map(move |message| {
        let _seat = &seat;
        message
    })))
}

/// The leader's own answer, made anew: what belongs to the connection to it is left out.
fn passed_on(status: &Status) -> Fault {
    let fault = Fault::from(status);
    match fault.code {
        Code::Unavailable if fault.retry_after.is_none() => relay::no_leader(),
        _ => fault,
    }
}
