//! Nodes' streams, over gRPC: at the leader, and passed on by a standby.

mod common;

use std::{sync::Arc, time::Duration};

use common::{Client, Recorder, Service, database, pool, refusal, refused, until};
use futures::{Stream, StreamExt};
use millrace_proto::scaler::v1::{
    attach_node_request::Message as Say, attach_node_response::Message as Hear,
    scaler_service_client::ScalerServiceClient, *,
};
use millrace_runtime::{
    metrics::Metrics,
    server::{ServeOptions, routes, serve},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming, service::RoutesBuilder, transport::Channel};

/// A node's end of its stream.
struct Node {
    say: mpsc::Sender<AttachNodeRequest>,
    hear: Streaming<AttachNodeResponse>,
}

impl Node {
    fn hello(id: &str) -> NodeHello {
        NodeHello { node_id: id.into(), slots: 2, ..NodeHello::default() }
    }

    async fn say(&self, message: Say) {
        self.say.send(AttachNodeRequest { message: Some(message) }).await.unwrap();
    }

    async fn hear(&mut self) -> Option<Hear> {
        let message = tokio::time::timeout(Duration::from_secs(20), self.hear.next()).await.expect("in time")?;
        message.unwrap().message
    }

    async fn welcomed(&mut self) -> String {
        match self.hear().await {
            Some(Hear::Welcome(welcome)) => {
                assert_eq!(welcome.health_interval.unwrap().seconds, 5);
                welcome.node_id
            }
            other => panic!("{other:?}"),
        }
    }
}

fn messages(first: Say) -> (mpsc::Sender<AttachNodeRequest>, impl Stream<Item = AttachNodeRequest> + Send + 'static) {
    let (say, said) = mpsc::channel(16);
    say.try_send(AttachNodeRequest { message: Some(first) }).unwrap();
    (say, ReceiverStream::new(said))
}

async fn attach(client: &mut Client, hello: NodeHello) -> Result<Node, Status> {
    let (say, said) = messages(Say::Hello(hello));
    Ok(Node { say, hear: client.attach_node(said).await?.into_inner() })
}

async fn state(client: &mut Client, id: &str) -> millrace_proto::scaler::v1::Node {
    client.get_node(GetNodeRequest { id: id.into() }).await.unwrap().into_inner().node.unwrap()
}

async fn with_nodes(service: &Service, nodes: i32) -> Vec<String> {
    let request = CreatePoolRequest { pool: Some(pool("p", nodes)), ..Default::default() };
    service.client().create_pool(request).await.unwrap();
    let count = nodes as usize;
    until("nodes", async || service.provider.made().len() == count).await;
    service.provider.made()
}

#[tokio::test(start_paused = true)]
async fn a_node_boots_joins_works_drains_and_ends() {
    let store = database();
    let service = Service::start(&store, &[]).await;
    let id = with_nodes(&service, 1).await.remove(0);
    let mut client = service.client();
    let mut node = attach(&mut client, Node::hello(&id)).await.unwrap();
    assert_eq!(node.welcomed().await, id);
    node.say(Say::Boot(BootProgress { stage: "unpacking".into(), percent: Some(40) })).await;
    let mut seen = client.clone();
    until("its boot", async || state(&mut seen, &id).await.boot_percent == Some(40)).await;
    assert_eq!(state(&mut client, &id).await.state(), NodeState::Joining);
    node.say(Say::Ready(NodeReady {})).await;
    until("ready", async || state(&mut seen, &id).await.state() == NodeState::Ready).await;
    node.say(Say::Health(NodeHealth { healthy: false, reason: "no disk".into(), running: 2, slots: 2 })).await;
    until("suspect", async || state(&mut seen, &id).await.state() == NodeState::Suspect).await;
    let shown = state(&mut client, &id).await;
    assert_eq!(
        (shown.healthy, shown.health_reason.as_str(), shown.running, shown.attached),
        (false, "no disk", 2, true)
    );
    node.say(Say::Health(NodeHealth { healthy: true, reason: String::new(), running: 0, slots: 2 })).await;
    until("ready again", async || state(&mut seen, &id).await.state() == NodeState::Ready).await;

    let drain = DrainNodeRequest { id: id.clone(), reason: "old kernel".into(), ..Default::default() };
    client.drain_node(drain).await.unwrap();
    match node.hear().await {
        Some(Hear::Drain(drain)) => assert_eq!(drain.reason, "old kernel"),
        other => panic!("{other:?}"),
    }
    // A stream that is lost meanwhile is told again.
    drop(node);
    let mut node = attach(&mut client, NodeHello { ready: true, ..Node::hello(&id) }).await.unwrap();
    node.welcomed().await;
    assert!(matches!(node.hear().await, Some(Hear::Drain(_))));
    node.say(Say::Drained(NodeDrained {})).await;
    until("its end", async || service.provider.ended() == [format!("i-{id}")]).await;
    until("gone", async || state(&mut seen, &id).await.state() == NodeState::Gone).await;
    let gone = attach(&mut client, Node::hello(&id)).await.map(|_| Response::new(()));
    assert_eq!(refusal(gone), refused(Code::FailedPrecondition, "NODE_GONE"));
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_called_off_when_the_node_is_needed_again() {
    let store = database();
    let service = Service::start(&store, &[]).await;
    let ids = with_nodes(&service, 2).await;
    let mut client = service.client();
    let mut nodes = Vec::new();
    for id in &ids {
        let mut node = attach(&mut client, NodeHello { ready: true, ..Node::hello(id) }).await.unwrap();
        node.welcomed().await;
        nodes.push(node);
    }
    let mut sized = client.clone();
    let mut set = async |min_nodes, scale_down_after| {
        let pool = Pool { min_nodes: Some(min_nodes), scale_down_after: Some(scale_down_after), ..pool("p", 0) };
        let paths = vec!["min_nodes".into(), "scale_down_after".into()];
        let update_mask = Some(prost_types::FieldMask { paths });
        sized.update_pool(UpdatePoolRequest { pool: Some(pool), update_mask, ..Default::default() }).await.unwrap();
    };
    set(0, prost_types::Duration { seconds: 1, nanos: 0 }).await;
    for node in &mut nodes {
        assert!(matches!(node.hear().await, Some(Hear::Drain(_))));
    }
    set(2, prost_types::Duration { seconds: 1, nanos: 0 }).await;
    for node in &mut nodes {
        assert!(matches!(node.hear().await, Some(Hear::Resume(_))));
    }
    assert_eq!(service.provider.made().len(), 2, "nothing new was made");
}

#[tokio::test(start_paused = true)]
async fn strangers_are_refused_and_a_node_may_be_known_by_its_instance() {
    let store = database();
    let service = Service::start(&store, &[]).await;
    let id = with_nodes(&service, 1).await.remove(0);
    let mut client = service.client();
    let mut tries = client.clone();
    let mut refused_as = async |hello| refusal(attach(&mut tries, hello).await.map(|_| Response::new(())));
    let unknown = Node::hello(&uuid::Uuid::now_v7().to_string());
    assert_eq!(refused_as(unknown).await, refused(Code::NotFound, "NODE_UNKNOWN"));
    let other = NodeHello { pool: "q".into(), ..Node::hello(&id) };
    assert_eq!(refused_as(other).await, refused(Code::FailedPrecondition, "NODE_OF_OTHER_POOL"));
    assert_eq!(refused_as(Node::hello("x")).await, common::invalid("hello.node_id"));
    assert_eq!(refused_as(NodeHello::default()).await, common::invalid("hello.instance_id"));
    let (_say, said) = messages(Say::Ready(NodeReady {}));
    let silent = client.attach_node(said).await.map(|_| Response::new(()));
    assert_eq!(refusal(silent), refused(Code::FailedPrecondition, "HELLO_FIRST"));

    let by_name = NodeHello { instance_id: format!("i-{id}"), pool: "p".into(), ..NodeHello::default() };
    let mut node = attach(&mut client, by_name).await.unwrap();
    assert_eq!(node.welcomed().await, id);
}

#[tokio::test(start_paused = true)]
async fn the_newest_stream_of_a_node_wins() {
    let store = database();
    let service = Service::start(&store, &["--scaler-max-streams", "2"]).await;
    let id = with_nodes(&service, 1).await.remove(0);
    let mut client = service.client();
    let mut first = attach(&mut client, NodeHello { ready: true, ..Node::hello(&id) }).await.unwrap();
    first.welcomed().await;
    let mut second = attach(&mut client, NodeHello { ready: true, ..Node::hello(&id) }).await.unwrap();
    second.welcomed().await;
    assert!(matches!(first.hear().await, Some(Hear::GoAway(_))));
    assert_eq!(first.hear().await, None);
    drop(first);
    // The end of the first is not taken for the node's.
    second.say(Say::Health(NodeHealth { healthy: true, running: 1, slots: 2, ..NodeHealth::default() })).await;
    let mut seen = client.clone();
    until("health", async || state(&mut seen, &id).await.running == 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let shown = state(&mut client, &id).await;
    assert_eq!((shown.state(), shown.attached), (NodeState::Ready, true));
    drop(second);
    until("silence", async || !state(&mut seen, &id).await.attached).await;
    until("doubt", async || state(&mut seen, &id).await.state() == NodeState::Suspect).await;
}

#[tokio::test(start_paused = true)]
async fn streams_have_a_bound_and_are_sent_away_when_the_process_stops() {
    let store = database();
    let service = Service::start(&store, &["--scaler-max-streams", "1"]).await;
    let ids = with_nodes(&service, 2).await;
    let mut client = service.client();
    let mut node = attach(&mut client, Node::hello(&ids[0])).await.unwrap();
    node.welcomed().await;
    let more = attach(&mut client, Node::hello(&ids[1])).await.map(|_| Response::new(()));
    assert_eq!(refusal(more), refused(Code::ResourceExhausted, "TOO_MANY_STREAMS"));
    service.context.shutdown.begin();
    assert!(matches!(node.hear().await, Some(Hear::GoAway(_))));
    assert_eq!(node.hear().await, None);
    let late = attach(&mut client, Node::hello(&ids[0])).await.map(|_| Response::new(()));
    assert_eq!(refusal(late), refused(Code::Unavailable, "UNAVAILABLE"));
}

/// Serves a service on a port of its own.
async fn serving(service: &Service, listener: TcpListener) {
    let mut builder = RoutesBuilder::default();
    service.scaler.register(&mut builder);
    let all = routes(builder, &service.context.health, millrace_scaler::SERVICES).unwrap();
    let (health, shutdown) = (service.context.health.clone(), service.context.shutdown.clone());
    tokio::spawn(serve(listener, all, ServeOptions::default(), health, Metrics::new(), shutdown));
}

/// In real time: what goes over sockets does not wait for a paused clock.
#[tokio::test]
async fn a_standby_passes_streams_on_and_takes_over() {
    let store = database();
    let provider = Arc::new(Recorder::default());
    let mut services = Vec::new();
    for number in 1..=2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = Service::standby(&store, number, &endpoint, &provider, &["--scaler-round", "100ms"]);
        serving(&service, listener).await;
        if number == 1 {
            until("a lead", async || service.scaler.leads()).await;
        }
        services.push(service);
    }
    let (leader, standby) = (&services[0], &services[1]);
    let id = with_nodes(leader, 1).await.remove(0);
    let mut client = ScalerServiceClient::<Channel>::connect(standby.context.endpoint.clone()).await.unwrap();
    // It knows the leader from its first look at the lease.
    let mut node = None;
    until("a relay", async || {
        let (say, said) = messages(Say::Hello(NodeHello { ready: true, ..Node::hello(&id) }));
        node = client.attach_node(said).await.ok().map(|hear| Node { say, hear: hear.into_inner() });
        node.is_some()
    })
    .await;
    let mut node = node.unwrap();
    assert_eq!(node.welcomed().await, id);
    node.say(Say::Health(NodeHealth { healthy: true, running: 1, slots: 2, ..NodeHealth::default() })).await;
    let mut seen = standby.client();
    until("what only the leader knows", async || state(&mut seen, &id).await.running == 1).await;
    let (_say, said) = messages(Say::Hello(Node::hello(&uuid::Uuid::now_v7().to_string())));
    let unknown = client.attach_node(said).await.map(|_| Response::new(()));
    assert_eq!(refusal(unknown), refused(Code::NotFound, "NODE_UNKNOWN"), "the leader's own answer");

    leader.context.shutdown.begin();
    assert!(matches!(node.hear().await, Some(Hear::GoAway(_))));
    until("a takeover", async || standby.scaler.leads()).await;
    let (say, said) = messages(Say::Hello(NodeHello { ready: true, ..Node::hello(&id) }));
    let mut node = Node { say, hear: client.attach_node(said).await.unwrap().into_inner() };
    assert_eq!(node.welcomed().await, id);
    assert_eq!((provider.made().len(), provider.ended().len()), (1, 0));
}
