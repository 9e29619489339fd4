//! A provider in another process.

use std::time::Duration;

use millrace_proto::provider::v1::{
    DescribeNodesRequest, DescribeNodesResponse, RequestNodesRequest, RequestNodesResponse, TerminateNodesRequest,
    TerminateNodesResponse, node_provider_service_client::NodeProviderServiceClient,
    node_provider_service_server::NodeProviderService,
};
use tonic::{Request, Response, Status, transport::Channel};

use super::connect::{self, CALL_LIMIT, InvalidEndpoint, MAX_ANSWER};

/// Calls a provider of another process. Errors are passed as they come; a call that has no answer within 5 s ends as
/// DEADLINE_EXCEEDED, and one that finds nobody as UNAVAILABLE.
#[derive(Debug, Clone)]
pub struct Remote {
    client: NodeProviderServiceClient<Channel>,
    limit: Duration,
}

impl Remote {
    /// Connects with the first call. To be called within a tokio runtime.
    ///
    /// # Errors
    /// A text that is not an address such as `http://127.0.0.1:7700`.
    pub fn new(endpoint: &str) -> Result<Self, InvalidEndpoint> {
        let client = NodeProviderServiceClient::new(connect::channel(endpoint)?).max_decoding_message_size(MAX_ANSWER);
        Ok(Self { client, limit: CALL_LIMIT })
    }

    /// Waits this long for an answer, instead of 5 s.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The message with a deadline, so that the peer can give the call up too; a little later than this side does, whose answer
    /// says what happened.
    fn bounded<T>(&self, request: Request<T>) -> Request<T> {
        let mut request = Request::new(request.into_inner());
        request.set_timeout(self.limit.saturating_add(Duration::from_secs(1)));
        request
    }
}

#[tonic::async_trait]
impl NodeProviderService for Remote {
    async fn describe_nodes(
        &self,
        request: Request<DescribeNodesRequest>,
    ) -> Result<Response<DescribeNodesResponse>, Status> {
        connect::within(self.limit, self.client.clone().describe_nodes(self.bounded(request))).await
    }

    async fn request_nodes(
        &self,
        request: Request<RequestNodesRequest>,
    ) -> Result<Response<RequestNodesResponse>, Status> {
        connect::within(self.limit, self.client.clone().request_nodes(self.bounded(request))).await
    }

    async fn terminate_nodes(
        &self,
        request: Request<TerminateNodesRequest>,
    ) -> Result<Response<TerminateNodesResponse>, Status> {
        connect::within(self.limit, self.client.clone().terminate_nodes(self.bounded(request))).await
    }
}
