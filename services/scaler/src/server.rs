//! The service as a process runs it.

use std::{collections::BTreeMap, sync::Arc};

use millrace_core::id::MemberId;
use millrace_proto::{
    foreign::externalscaler::external_scaler_server::ExternalScalerServer,
    scaler::v1::scaler_service_server::ScalerServiceServer,
};
use millrace_runtime::{
    Context,
    server::{MAX_DECODING_MESSAGE_SIZE, MAX_ENCODING_MESSAGE_SIZE},
};
use tokio::sync::Semaphore;
use tonic::service::RoutesBuilder;
use uuid::Uuid;

use crate::{
    Settings,
    calls::Calls,
    engine::Provider,
    keda::{Figures, Keda},
    leader::{self, Providers},
    metrics::ScalerMetrics,
    provider::{OpenError, Opened},
    relay::Relay,
    rpc::Rpc,
    tasks,
    watch::Watch,
};

/// The scaler. Clones are the same service.
#[derive(Clone)]
pub struct Scaler {
    rpc: Arc<Rpc>,
    keda: Arc<Keda>,
}

/// Why the scaler was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings do not make sense, or not together.
    #[error("{0}")]
    Settings(String),
    /// A provider cannot be opened.
    #[error(transparent)]
    Provider(#[from] OpenError),
}

impl Scaler {
    /// Starts the scaler: its providers, its lease and its background loops. It stops with the context's shutdown: it takes what comes of
    /// its calls, gives the lease up, and ends its streams; fleets stay as they are. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the settings do not pass [`Settings::check`], or a provider cannot be opened. A database that is down is no error, and neither
    /// is a provider that does not answer.
    pub fn start(settings: Settings, context: Context) -> Result<Self, StartError> {
        Self::start_with(settings, context, BTreeMap::new())
    }

    /// The same, with more providers, by name, than the settings have: ones that are called in this process.
    ///
    /// # Errors
    /// As of [`Scaler::start`].
    pub fn start_with(
        settings: Settings,
        context: Context,
        more: BTreeMap<String, Arc<dyn Provider>>,
    ) -> Result<Self, StartError> {
        settings.check()?;
        let options = settings.open_options(&context.endpoint);
        let opened: Result<Vec<Opened>, OpenError> = settings.provider.iter().map(|spec| spec.open(&options)).collect();
        let metrics = context.metrics.group(ScalerMetrics::register);
        let providers = Providers::new(opened?, more, metrics.clone());
        let figures = Figures::default();
        let desk = leader::start(&context, &settings, member_of(&context), providers.clone(), figures.clone(), metrics);
        figures.start(&context);
        tasks::start(&context, &settings, &desk);
        let calls = Calls::new(context.clone(), settings.scaler_people_reads);
        let watch = Watch::new(calls.clone(), desk.clone(), context.shutdown.clone(), settings.scaler_max_watchers);
        let keda = Keda {
            figures,
            shutdown: context.shutdown.clone(),
            seats: Arc::new(Semaphore::new(settings.scaler_max_watchers)),
        };
        let seats = Arc::new(Semaphore::new(settings.scaler_max_streams));
        let rpc = Rpc { context, calls, desk, providers, relay: Relay::default(), watch, seats };
        Ok(Self { rpc: Arc::new(rpc), keda: Arc::new(keda) })
    }

    /// Adds the services that [`crate::SERVICES`] names.
    pub fn register(&self, routes: &mut RoutesBuilder) {
        let scaler = ScalerServiceServer::from_arc(self.rpc.clone())
            .max_decoding_message_size(MAX_DECODING_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_ENCODING_MESSAGE_SIZE);
        let keda = ExternalScalerServer::from_arc(self.keda.clone())
            .max_decoding_message_size(MAX_DECODING_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_ENCODING_MESSAGE_SIZE);
        routes.add_service(scaler).add_service(keda);
    }

    /// Whether this process leads.
    pub fn leads(&self) -> bool {
        self.rpc.desk.leader().is_some()
    }

    /// The providers that the settings named, for a process that ends its own nodes when it stops ([`Opened::end_all`]).
    pub fn providers(&self) -> Vec<Opened> {
        self.rpc.providers.opened().cloned().collect()
    }
}

impl std::fmt::Debug for Scaler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scaler").field("leads", &self.leads()).finish_non_exhaustive()
    }
}

/// The scaler's own id: a process may run other services under the same context.
fn member_of(context: &Context) -> MemberId {
    MemberId(Uuid::new_v5(&context.member_id, b"scaler"))
}
