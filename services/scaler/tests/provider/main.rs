//! Providers, each over real gRPC, and through the failures that they are made for.

mod cloud;
mod externalgrpc;
mod process;
mod process_killed;
mod remote;
mod simulated;
mod support;
