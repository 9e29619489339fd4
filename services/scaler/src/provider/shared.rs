//! A provider of any kind, to be served.

use std::sync::Arc;

use millrace_proto::provider::v1::{
    DescribeNodesRequest, DescribeNodesResponse, RequestNodesRequest, RequestNodesResponse, TerminateNodesRequest,
    TerminateNodesResponse, node_provider_service_server::NodeProviderService,
};
use tonic::{Request, Response, Status};

/// Any provider, as one type: tonic's server takes no `dyn`.
#[derive(Clone)]
pub struct Shared(pub Arc<dyn NodeProviderService>);

#[tonic::async_trait]
impl NodeProviderService for Shared {
    async fn describe_nodes(
        &self,
        request: Request<DescribeNodesRequest>,
    ) -> Result<Response<DescribeNodesResponse>, Status> {
        self.0.describe_nodes(request).await
    }

    async fn request_nodes(
        &self,
        request: Request<RequestNodesRequest>,
    ) -> Result<Response<RequestNodesResponse>, Status> {
        self.0.request_nodes(request).await
    }

    async fn terminate_nodes(
        &self,
        request: Request<TerminateNodesRequest>,
    ) -> Result<Response<TerminateNodesResponse>, Status> {
        self.0.terminate_nodes(request).await
    }
}
