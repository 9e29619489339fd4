//! The service as a process runs it.

use std::sync::Arc;

use millrace_core::id::MemberId;
use millrace_proto::queue::v1::queue_service_server::QueueServiceServer;
use millrace_runtime::{
    Context,
    server::{MAX_DECODING_MESSAGE_SIZE, MAX_ENCODING_MESSAGE_SIZE},
};
use millrace_store::MemberKind;
use tonic::service::RoutesBuilder;
use uuid::Uuid;

use crate::{Host, HostContext, Settings, calls::Calls, rpc::Rpc, tasks, watch::Watch};

/// The queue service. Clones are the same service.
#[derive(Clone, Debug)]
pub struct QueueServer {
    rpc: Arc<Rpc>,
}

/// Why the service was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings do not make sense together.
    #[error("{0}")]
    Settings(&'static str),
}

impl QueueServer {
    /// Starts the service: its host and its background loops. It stops with the context's shutdown: it gives its queues up, leaves
    /// the members, and ends its streams. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the settings do not pass [`Settings::check`]. A database that is down is no error.
    pub fn start(settings: Settings, context: Context) -> Result<QueueServer, StartError> {
        settings.check()?;
        let member = member_of(&context);
        let host = Host::start(settings.host(), HostContext::new(&context, member, MemberKind::Queue));
        tasks::start(&context, &host, member);
        let calls = Calls::new(context.store.clone(), settings.queue_people_reads);
        let watch = Watch::new(calls.clone(), host.clone(), context.shutdown.clone(), settings.queue_max_watchers);
        Ok(QueueServer { rpc: Arc::new(Rpc { calls, host, watch }) })
    }

    /// Adds the services that [`crate::SERVICES`] names.
    pub fn register(&self, routes: &mut RoutesBuilder) {
        routes.add_service(self.service());
    }

    /// The service's host.
    pub fn host(&self) -> &Host {
        &self.rpc.host
    }

    pub(crate) fn service(&self) -> QueueServiceServer<Rpc> {
        QueueServiceServer::from_arc(self.rpc.clone())
            .max_decoding_message_size(MAX_DECODING_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_ENCODING_MESSAGE_SIZE)
    }
}

/// The service's own id among the members. A process may run other services under the same context, and each of them is a member of
/// its own: an owner of queues must never be taken for another.
fn member_of(context: &Context) -> MemberId {
    MemberId(Uuid::new_v5(&context.member_id, b"queue"))
}
