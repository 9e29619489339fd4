//! Providers: who makes and ends nodes.
//!
//! There is one form of a provider, the contract's `NodeProviderService` as tonic generates it: those of this crate implement it,
//! so that each can run in the scaler's process, be served by one of its own, or be called in a test without a network; and one of
//! another process is called through [`Remote`], which implements it too.
//!
//! - [`Process`]: real agents on this machine.
//! - [`Simulated`]: a scripted cloud that exists in memory, on whatever clock it is given, and keeps a ledger of what was done to it.
//! - [`ExternalGrpc`]: node groups behind the Kubernetes cluster-autoscaler's contract.
//! - [`Remote`]: any provider that speaks the contract.
//!
//! [`Spec`] reads which of them an operator wants, and opens it. What one call may name is bounded by [`MAX_NODES`]; pages by
//! [`MAX_PAGE`].

mod answer;
mod connect;
pub mod externalgrpc;
mod open;
pub mod process;
mod remote;
mod shared;
pub mod simulated;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use millrace_core::time::{Timestamp, micros};

pub use connect::InvalidEndpoint;
pub use externalgrpc::ExternalGrpc;
pub use open::{InvalidSpec, Kind, OpenError, OpenOptions, Opened, Spec, check_names};
pub use process::{Process, ProcessOptions};
pub use remote::Remote;
pub use shared::Shared;
pub use simulated::Simulated;

/// Nodes that one call to a provider of this crate may name at most, whatever it says of itself: more are INVALID_ARGUMENT.
pub const MAX_NODES: usize = 1000;

/// Instances in one page at most, as in the contract.
pub const MAX_PAGE: i32 = 10_000;

/// Tells what time it is.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The clock of this machine.
pub fn system_clock() -> Clock {
    Arc::new(|| Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros)))
}
