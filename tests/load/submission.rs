//! Submission: callers of SubmitTask and BatchSubmitTasks.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use millrace_proto::distributor::v1::{
    BatchSubmitTasksRequest, SubmitTaskRequest, batch_submit_result,
    distributor_service_client::DistributorServiceClient,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use crate::{
    closed::{self, Call, Loop},
    payload::Kind,
    plan::{BATCH, CONNECTIONS, IN_FLIGHT},
};

/// A client of the distributor.
pub(crate) type Client = DistributorServiceClient<Channel>;

/// Whether submissions carry request ids, each its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// A new one for each task.
    Distinct,
    /// None.
    None,
}

impl Ids {
    /// The next request id.
    pub(crate) fn next(self) -> String {
        match self {
            Self::Distinct => Uuid::now_v7().to_string(),
            Self::None => String::new(),
        }
    }
}

/// Opens connections.
pub(crate) async fn channels(endpoint: &str, count: usize) -> Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true).timeout(Duration::from_secs(30));
        channels.push(endpoint.connect().await.with_context(|| format!("connecting to {}", endpoint.uri()))?);
    }
    Ok(channels)
}

/// Submits one task a call.
#[derive(Clone)]
pub(crate) struct Unary {
    client: Client,
    spec: Bytes,
    ids: Ids,
}

impl Unary {
    /// Callers over these connections, in turn.
    pub(crate) fn callers(channels: &[Channel], count: usize, kind: &Kind, ids: Ids) -> Vec<Self> {
        let spec = kind.spec();
        let client = |one: usize| Client::new(channels[one % channels.len()].clone());
        (0..count).map(|one| Self { client: client(one), spec: spec.clone(), ids }).collect()
    }
}

impl Call for Unary {
    async fn call(&mut self) -> Result<u64, Status> {
        let request = SubmitTaskRequest { request_id: self.ids.next(), spec: self.spec.clone() };
        self.client.submit_task(request).await?;
        Ok(1)
    }
}

/// Submits many tasks a call.
#[derive(Clone)]
pub(crate) struct Batch {
    client: Client,
    spec: Bytes,
    ids: Ids,
    size: usize,
}

impl Batch {
    /// Callers over these connections, in turn.
    pub(crate) fn callers(channels: &[Channel], count: usize, kind: &Kind, ids: Ids, size: usize) -> Vec<Self> {
        let spec = kind.spec();
        let client = |one: usize| Client::new(channels[one % channels.len()].clone());
        (0..count).map(|one| Self { client: client(one), spec: spec.clone(), ids, size }).collect()
    }
}

impl Call for Batch {
    async fn call(&mut self) -> Result<u64, Status> {
        let one = || SubmitTaskRequest { request_id: self.ids.next(), spec: self.spec.clone() };
        let request = BatchSubmitTasksRequest { requests: (0..self.size).map(|_| one()).collect() };
        let response = self.client.batch_submit_tasks(request).await?.into_inner();
        for result in &response.results {
            if let Some(batch_submit_result::Result::Refusal(refusal)) = &result.result {
                return Err(Status::new(
                    refusal.code.into(),
                    format!("a task of a batch was refused: {}", refusal.message),
                ));
            }
        }
        Ok(response.results.len() as u64)
    }
}

/// Durable unary SubmitTask, 64 in flight on four connections.
pub(crate) async fn unary(endpoint: &str, tenant: &str, ids: Ids, time: Duration) -> Result<Loop> {
    let channels = channels(endpoint, CONNECTIONS).await?;
    closed::for_time(Unary::callers(&channels, IN_FLIGHT, &Kind::of(tenant), ids), time / 5, time).await
}

/// Submits tasks in batches of 500, so many batches in flight.
pub(crate) async fn fill(endpoint: &str, kind: &Kind, ids: Ids, tasks: u64, in_flight: u16) -> Result<Loop> {
    let channels = channels(endpoint, CONNECTIONS).await?;
    let callers = Batch::callers(&channels, usize::from(in_flight), kind, ids, BATCH);
    closed::for_calls(callers, tasks / BATCH as u64).await
}
