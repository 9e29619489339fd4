//! The queue service: the matching point of queues over all distributor replicas, and the calls that manage queues.
//!
//! - [`Host`] owns queues and runs one matcher for each. It is the one code path that hosts matchers: the queue service runs
//!   it, and a distributor embeds it and stands in while no queue service lives.
//! - [`QueueServer`] is the service: a host, the calls of `millrace.queue.v1.QueueService`, and the background loops.
//!
//! Wire types stop at `convert.rs` and `host/wire.rs`; SQL lives in the store; the rules of matching live in `millrace-core`.
//! What is in memory here may be lost at any moment: the claims in the database are the fence.

mod blocking;
mod calls;
mod convert;
mod describe;
mod host;
mod request;
mod rpc;
mod server;
mod settings;
mod tasks;
mod validate;
mod watch;

pub use host::{Figures, Host, HostContext, HostSettings};
pub use request::request_key;
pub use server::{QueueServer, StartError};
pub use settings::Settings;

/// The names of the gRPC services that [`QueueServer::register`] adds.
pub const SERVICES: &[&str] = &["millrace.queue.v1.QueueService"];
