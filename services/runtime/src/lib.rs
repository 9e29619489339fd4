//! The shell that every Millrace service shares: configuration, logs, metrics, health, the gRPC and HTTP servers, the
//! way a process stops, and the one place where an error becomes a gRPC status.
//!
//! A process puts it together in this order: [`config::parse`] (everything is checked before a port is bound),
//! [`telemetry::init`], [`failpoint::init`], [`shutdown::Shutdown::on_signals`], its services with a [`Context`],
//! [`http::serve`] and [`server::serve`], and at the end [`shutdown::Shutdown::finish`].

pub mod background;
pub mod config;
mod context;
pub mod failpoint;
pub mod foreign;
pub mod health;
pub mod http;
pub mod metrics;
pub mod server;
pub mod shutdown;
pub mod status;
pub mod telemetry;

pub use context::Context;
