//! The distributor: accepts, routes and persists tasks, and streams them to orchestrators.
//!
//! A replica keeps nothing that the database does not have. Work flows through it in one direction:
//! [`submit`] stores batches and offers them to the queues' owners ([`links`]); owners answer with matches, which
//! [`claims`] claims in batches for [`sessions`]; [`ends`] records how attempts ended. Each of the three writes has one
//! [`gate`], where the next batch gathers while a commit is in flight. Background loops are in [`tasks`], gRPC handlers in
//! [`rpc`]; wire types stop at [`convert`] and [`spec`].

mod answered;
mod beats;
mod claims;
mod convert;
mod ends;
mod gate;
mod links;
mod metrics;
mod notices;
mod outbox;
mod output;
mod quarantine;
mod routing;
mod rpc;
mod sessions;
mod settings;
mod shared;
mod spec;
mod submit;
mod suspicion;
mod tasks;
mod watch;

use std::sync::Arc;

use millrace_proto::distributor::v1::{
    distributor_service_server::DistributorServiceServer, peer_service_server::PeerServiceServer,
    quarantine_service_server::QuarantineServiceServer,
};
use millrace_runtime::Context;
use tonic::service::RoutesBuilder;

pub use settings::Settings;
use shared::Shared;
pub use spec::read_foreign;

/// The gRPC services that a distributor serves.
pub const SERVICES: &[&str] = &[
    "millrace.distributor.v1.DistributorService",
    "millrace.distributor.v1.QuarantineService",
    "millrace.distributor.v1.PeerService",
];

/// A running replica.
pub struct Distributor {
    shared: Arc<Shared>,
}

/// Why a replica could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict themselves.
    #[error("{0}")]
    Settings(String),
    /// The system refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Distributor {
    /// Starts the loops of a replica. The database need not answer yet: the replica is NOT_SERVING until it does.
    pub async fn start(settings: Settings, context: Context) -> Result<Self, StartError> {
        settings.check().map_err(StartError::Settings)?;
        spec::limit_size(settings.max_message_bytes);
        let shared = Shared::start(settings, context)?;
        tasks::start(&shared);
        Ok(Self { shared })
    }

    /// Adds the replica's services.
    pub fn register(&self, routes: &mut RoutesBuilder) {
        let limit = self.shared.settings.max_message_bytes;
        routes.add_service(
            DistributorServiceServer::new(rpc::Tasks::new(self.shared.clone()))
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        );
        routes.add_service(
            QuarantineServiceServer::new(rpc::Quarantine::new(self.shared.clone()))
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        );
        routes.add_service(
            PeerServiceServer::new(rpc::Peer::new(self.shared.clone()))
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        );
    }
}

#[cfg(test)]
mod fixture;
