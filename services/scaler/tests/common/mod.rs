//! A database in memory, a provider that remembers, and what drives them.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses its own part")]

mod drive;
mod recorder;
mod service;

pub use drive::{Drive, START, pool};
pub use recorder::{Mode, Recorder};
pub use service::{Client, KedaClient, Service, database};

use std::time::Duration;

use millrace_runtime::status::Fault;
use tonic::{Code, Response, Status};

/// The code, the reason and the first field of a refusal.
pub fn refusal<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> (Code, String, String) {
    let fault = Fault::from(&result.unwrap_err());
    let field = fault.violations.first().map(|violation| violation.field.clone()).unwrap_or_default();
    (fault.code, fault.reason.into_owned(), field)
}

pub fn refused(code: Code, reason: &str) -> (Code, String, String) {
    (code, reason.into(), String::new())
}

pub fn invalid(field: &str) -> (Code, String, String) {
    (Code::InvalidArgument, "INVALID_REQUEST".into(), field.into())
}

/// Waits until the condition holds, for ten minutes at most; looks again whenever some time has passed.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let looking = async {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        while !condition().await {
            looks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), looking).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}
