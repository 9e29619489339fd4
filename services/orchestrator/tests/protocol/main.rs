//! Interleavings of the orchestrator's protocol, each played against a distributor that follows a script.

mod drain;
mod exclusive;
mod links;
mod node;
mod output;
mod sessions;
mod support;
mod tcp;
mod throughput;
mod work;

use std::{sync::Arc, time::Duration};

use millrace_core::{held::digest_of, id::TaskId};
use millrace_orchestrator::{Outcome, OutcomeKind, OutputStream, StopReason, TaskSpec};
use millrace_proto::distributor::v1::{
    ConnectOrchestratorRequest, completion_result::Status as ResultStatus,
    connect_orchestrator_request::Message as Request,
};
use prost::Message as _;
use support::{InstantExecutor, Manual, SESSION, World, assignment, exclusive, lease, options, resent, spec, task};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use uuid::Uuid;

const OTHER_SESSION: &str = "00000000-0000-0000-0000-0000000000bb";

fn session_gone() -> Status {
    let details = ErrorDetails::with_error_info("SESSION_GONE", "millrace", []);
    Status::with_error_details(Code::FailedPrecondition, "the session has expired", details)
}

fn digest(held: &[(u128, i32)]) -> u64 {
    held.iter().fold(0, |digest, (task, attempt)| digest ^ digest_of(TaskId(Uuid::from_u128(*task)), *attempt))
}

fn kind(completion: &millrace_proto::distributor::v1::Completion) -> OutcomeKind {
    completion.outcome.as_ref().map_or(OutcomeKind::Unspecified, |outcome| outcome.kind())
}
