//! The whole service behind a gRPC client, without a network between them.

use std::{sync::Arc, time::Duration};

use millrace_proto::queue::v1::queue_service_client::QueueServiceClient;
use millrace_queue::{QueueServer, SERVICES, Settings};
use millrace_runtime::{Context, health::Health, metrics::Metrics, shutdown::Shutdown};
use tonic::service::{Routes, RoutesBuilder};
use uuid::Uuid;

use super::{Database, Way};

pub type Client = QueueServiceClient<Routes>;

/// A process with a queue service.
pub struct Service {
    pub server: QueueServer,
    pub context: Context,
    pub way: Arc<Way>,
}

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

impl Service {
    /// Starts a service with these flags.
    pub fn start(database: &Database, flags: &[&str]) -> Self {
        let way = database.way();
        let context = Context {
            store: way.clone(),
            member_id: Uuid::from_u128(1),
            endpoint: "http://service".into(),
            build: "test".into(),
            health: Health::new(SERVICES),
            metrics: Metrics::new(),
            shutdown: Shutdown::new(Duration::from_secs(10)),
        };
        let flags = <Flags as clap::Parser>::parse_from([&["queue"], flags].concat());
        let server = QueueServer::start(flags.settings, context.clone()).expect("good settings");
        Self { server, context, way }
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let mut routes = RoutesBuilder::default();
        self.server.register(&mut routes);
        QueueServiceClient::new(routes.routes())
    }

    /// Waits until it owns these queues.
    pub async fn owns(&self, queues: &[&str]) {
        let owns = self
            .server
            .host()
            .wait_owned(|owned| owned.iter().map(|(queue, _)| queue.as_str()).eq(queues.iter().copied()));
        owns.await.expect("the host lives");
    }
}
