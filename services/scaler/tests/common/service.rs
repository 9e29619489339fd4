//! The whole service behind gRPC clients, without a network between them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use millrace_core::time::{Timestamp, micros};
use millrace_proto::{
    foreign::externalscaler::external_scaler_client::ExternalScalerClient,
    scaler::v1::scaler_service_client::ScalerServiceClient,
};
use millrace_runtime::{Context, health::Health, metrics::Metrics, shutdown::Shutdown};
use millrace_scaler::{SERVICES, Scaler, Settings, engine::Provider};
use millrace_store::MemoryStore;
use tokio::time::Instant;
use tonic::service::{Routes, RoutesBuilder};
use uuid::Uuid;

use super::{Recorder, START};

pub type Client = ScalerServiceClient<Routes>;
pub type KedaClient = ExternalScalerClient<Routes>;

/// A database in memory whose time is tokio's.
pub fn database() -> MemoryStore {
    let origin = Instant::now();
    MemoryStore::new(Arc::new(move || Timestamp(START.0 + micros(origin.elapsed()))))
}

/// A process with a scaler whose provider `local` is a [`Recorder`].
pub struct Service {
    pub scaler: Scaler,
    pub context: Context,
    pub provider: Arc<Recorder>,
}

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

impl Service {
    /// Starts a service with these flags, and waits until it leads.
    pub async fn start(store: &MemoryStore, flags: &[&str]) -> Self {
        let service = Self::standby(store, 1, "http://service", &Arc::new(Recorder::default()), flags);
        super::until("a lead", async || service.scaler.leads()).await;
        service
    }

    /// Starts one that may not lead.
    pub fn standby(
        store: &MemoryStore,
        number: u128,
        endpoint: &str,
        provider: &Arc<Recorder>,
        flags: &[&str],
    ) -> Self {
        let context = Context {
            store: Arc::new(store.clone()),
            member_id: Uuid::from_u128(number),
            endpoint: endpoint.into(),
            build: "test".into(),
            health: Health::new(SERVICES),
            metrics: Metrics::new(),
            shutdown: Shutdown::new(Duration::from_secs(10)),
        };
        let flags = <Flags as clap::Parser>::parse_from([&["scaler"], flags].concat());
        let local: Arc<dyn Provider> = provider.clone();
        let providers = BTreeMap::from([("local".to_owned(), local)]);
        let scaler = Scaler::start_with(flags.settings, context.clone(), providers).expect("good settings");
        Self { scaler, context, provider: provider.clone() }
    }

    pub fn routes(&self) -> Routes {
        let mut routes = RoutesBuilder::default();
        self.scaler.register(&mut routes);
        routes.routes()
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        ScalerServiceClient::new(self.routes())
    }

    /// A client as KEDA is one.
    pub fn keda(&self) -> KedaClient {
        ExternalScalerClient::new(self.routes())
    }
}
