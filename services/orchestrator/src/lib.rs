//! Runs tasks for Millrace: a client library for orchestrators, and a ready [`agent`] that runs commands as processes.
//!
//! An orchestrator is one end of the stream `DistributorService.ConnectOrchestrator`. Give [`Orchestrator`] an
//! [`Executor`] and it does the rest: it opens and resumes a session on any of the replicas, asks for as much work as it
//! has free slots, runs what it gets, and keeps every result until the service has recorded it.
//!
//! ```no_run
//! use futures::future::BoxFuture;
//! use millrace_orchestrator::{AttemptHandle, Executor, Options, Orchestrator, Outcome};
//! use tokio_util::sync::CancellationToken;
//!
//! struct Sleeper;
//!
//! impl Executor for Sleeper {
//!     fn name(&self) -> &str {
//!         "sleep"
//!     }
//!
//!     fn run(&self, attempt: AttemptHandle) -> BoxFuture<'_, Outcome> {
//!         Box::pin(async move {
//!             tokio::select! {
//!                 () = tokio::time::sleep(std::time::Duration::from_secs(1)) => Outcome::succeeded(),
//!                 stop = attempt.cancelled() => Outcome::stopped(stop.reason),
//!             }
//!         })
//!     }
//! }
//!
//! # async fn example() -> Result<(), millrace_orchestrator::RunError> {
//! let options = Options { endpoints: vec!["http://127.0.0.1:7601".into()], slots: 4, ..Options::default() };
//! Orchestrator::new(options, Sleeper).run(CancellationToken::new()).await
//! # }
//! ```
//!
//! What it keeps to, whatever happens on the way:
//! - An attempt runs at most once here, however often its assignment arrives (R1).
//! - Silence stops nothing. Only an exclusive task is stopped while the service is out of reach, and in time (R16).
//! - A result holds its slot until it is recorded, so what waits here is bounded by the slots.
//! - Output is live and lossy: each attempt keeps its newest 1 MiB (as set), and what was overwritten shows as a gap in the offsets.
//!
//! The digest that a heartbeat carries is the exclusive-or of [`millrace_core::held::digest_of`] over the attempts held.

pub mod agent;
mod assign;
mod book;
mod connect;
mod duration;
mod engine;
mod executor;
mod grant;
mod health;
mod intake;
mod lease;
mod link;
mod options;
mod outbox;
mod outcome;
mod output;
mod runner;
mod session;
mod status;
mod supervise;

pub use connect::{Connect, TcpConnect, Transport, TransportError};
pub use duration::{InvalidDuration, parse_duration};
pub use executor::{Attempt, AttemptHandle, Executor, Remote, Stop, StopReason};
pub use intake::Intake;
pub use options::{InvalidOptions, Options};
pub use outcome::Outcome;
pub use runner::{Orchestrator, RunError};
pub use status::Status;

pub use millrace_proto::common::v1::{OutcomeKind, OutputChunk, OutputStream, TaskSpec, task_spec::Payload};
