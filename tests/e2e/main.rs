//! The suite from outside: real processes, real databases, the CLI, gRPC clients in other languages.

mod bad_input;
mod commands;
mod grpc;
mod operate;
mod outside;
mod recovery;
mod separate;
