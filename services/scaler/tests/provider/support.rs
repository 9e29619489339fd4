//! What the tests of all providers share.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use millrace_core::{id::NodeId, time::Timestamp};
use millrace_proto::provider::v1::{
    DescribeNodesRequest, Instance, InstanceState, NodeRef, NodeRequest, NodeResult, RequestNodesRequest,
    RequestResult, TerminateNodesRequest,
    node_provider_service_server::{NodeProviderService, NodeProviderServiceServer},
};
use millrace_scaler::provider::Clock;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Status, transport::Server};
use uuid::Uuid;

/// Serves a provider on a port of its own. The address.
pub(crate) async fn serve(provider: impl NodeProviderService) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(NodeProviderServiceServer::new(provider));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    format!("http://{address}")
}

/// A clock that a test sets.
#[derive(Clone)]
pub(crate) struct Hands(Arc<AtomicI64>);

impl Hands {
    pub(crate) fn at(start: i64) -> Self {
        Self(Arc::new(AtomicI64::new(start)))
    }

    pub(crate) fn clock(&self) -> Clock {
        let hands = Arc::clone(&self.0);
        Arc::new(move || Timestamp(hands.load(Ordering::Relaxed)))
    }

    pub(crate) fn forward(&self, span: Duration) {
        self.0.fetch_add(i64::try_from(span.as_micros()).unwrap(), Ordering::Relaxed);
    }
}

pub(crate) fn ids(count: usize) -> Vec<NodeId> {
    (0..count).map(|_| NodeId(Uuid::now_v7())).collect()
}

/// An order for these nodes, of which as many should be there in the end as it says.
pub(crate) fn order(pool: &str, zone: &str, ids: &[NodeId], expected_total: usize) -> RequestNodesRequest {
    RequestNodesRequest {
        pool: pool.into(),
        zone: zone.into(),
        nodes: ids.iter().map(|id| NodeRequest { node_id: id.to_string() }).collect(),
        expected_total: i32::try_from(expected_total).unwrap(),
        executor: "process".into(),
        slots: 1,
        queues: vec!["default".into()],
        ..RequestNodesRequest::default()
    }
}

pub(crate) fn by_id(pool: &str, zone: &str, ids: &[NodeId]) -> TerminateNodesRequest {
    let node = |id: &NodeId| NodeRef { node_id: id.to_string(), instance_id: String::new() };
    TerminateNodesRequest { pool: pool.into(), zone: zone.into(), nodes: ids.iter().map(node).collect() }
}

pub(crate) fn by_instance(pool: &str, zone: &str, instances: &[&str]) -> TerminateNodesRequest {
    let node = |id: &&str| NodeRef { node_id: String::new(), instance_id: (*id).into() };
    TerminateNodesRequest { pool: pool.into(), zone: zone.into(), nodes: instances.iter().map(node).collect() }
}

pub(crate) async fn request(
    provider: &dyn NodeProviderService,
    order: RequestNodesRequest,
) -> Result<Vec<NodeResult>, Status> {
    Ok(provider.request_nodes(Request::new(order)).await?.into_inner().results)
}

pub(crate) async fn terminate(
    provider: &dyn NodeProviderService,
    nodes: TerminateNodesRequest,
) -> Result<Vec<NodeResult>, Status> {
    Ok(provider.terminate_nodes(Request::new(nodes)).await?.into_inner().results)
}

/// Every page.
pub(crate) async fn list(provider: &dyn NodeProviderService, page_size: i32) -> Result<Vec<Instance>, Status> {
    let mut request = DescribeNodesRequest { page_size, ..DescribeNodesRequest::default() };
    let mut instances = Vec::new();
    loop {
        let page = provider.describe_nodes(Request::new(request.clone())).await?.into_inner();
        assert!(page_size == 0 || page.instances.len() <= usize::try_from(page_size).unwrap());
        instances.extend(page.instances);
        if page.next_page_token.is_empty() {
            return Ok(instances);
        }
        request.page_token = page.next_page_token;
    }
}

pub(crate) fn results(results: &[NodeResult]) -> Vec<RequestResult> {
    results.iter().map(NodeResult::result).collect()
}

pub(crate) fn states(instances: &[Instance]) -> Vec<InstanceState> {
    instances.iter().map(Instance::state).collect()
}

/// Waits for what another process does.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), waited).await.is_err() {
        panic!("not within 20 s: {what}");
    }
}
