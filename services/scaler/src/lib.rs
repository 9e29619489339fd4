//! The scaler: keeps fleets as large as their queues need, through slow joins and throttled providers.
//!
//! - [`Scaler`] is the service: the calls of `millrace.scaler.v1.ScalerService` and of KEDA's `externalscaler.ExternalScaler`, and a leader.
//!   Any number of processes run; one of them leads, by a lease with an epoch in the database, and the others answer reads, change pools,
//!   pass nodes' streams on to the leader, and take over when it is gone.
//! - [`engine`]: what a leader does, without a clock, a task or a connection of its own; drills drive it too.
//! - [`provider`]: who makes and ends nodes. Every provider is the contract's `NodeProviderService`, in this process or another.
//!
//! What is decided, and why, is `millrace_core::fleet`; this crate feeds it facts, stores what it intends, and makes its calls. Wire types
//! stop at `convert`; SQL lives in the store. The leader's books are a copy: they are dropped when it leads no longer.

mod calls;
mod convert;
mod describe;
pub mod engine;
mod keda;
mod leader;
mod metrics;
pub mod provider;
mod relay;
mod request;
mod rpc;
mod server;
mod settings;
mod tasks;
mod validate;
mod watch;

use std::time::Duration;

pub use engine::{Engine, EngineSettings};
pub use keda::AGE;
pub use server::{Scaler, StartError};
pub use settings::Settings;

/// The names of the gRPC services that [`Scaler::register`] adds.
pub const SERVICES: &[&str] = &["millrace.scaler.v1.ScalerService", "externalscaler.ExternalScaler"];

/// How often a node says how it is.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
