//! The suite from outside: real processes, real databases, the CLI, gRPC clients in other languages.

mod agent_killed;
mod bad_input;
mod commands;
mod grpc;
mod operate;
mod outside;
mod preflight;
mod quarantine;
mod recovery;
mod scaler;
mod separate;
