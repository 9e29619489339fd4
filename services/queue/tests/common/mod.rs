//! A database in memory, hosts on it, and distributors that talk to them. Time is paused: it passes when nothing else can happen.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses its own part")]

mod database;
mod peer;
mod service;
mod way;

pub use database::Database;
pub use peer::{Peer, hello, offer, task};
pub use service::{Client, Service};
pub use way::Way;

use std::{sync::Arc, time::Duration};

use millrace_core::id::MemberId;
use millrace_queue::{Host, HostContext, HostSettings};
use millrace_runtime::{metrics::Metrics, shutdown::Shutdown};
use millrace_store::MemberKind;
use uuid::Uuid;

/// A process with a host.
pub struct Process {
    pub host: Host,
    pub way: Arc<Way>,
    pub shutdown: Shutdown,
    pub metrics: Metrics,
}

impl Process {
    /// Starts a host as the member of this number.
    pub fn start(database: &Database, number: u128, kind: MemberKind, settings: HostSettings) -> Self {
        let (way, shutdown, metrics) = (database.way(), Shutdown::new(Duration::from_secs(10)), Metrics::new());
        let context = HostContext {
            store: way.clone(),
            member_id: MemberId(Uuid::from_u128(number)),
            kind,
            endpoint: format!("http://host-{number}"),
            shutdown: shutdown.clone(),
            metrics: metrics.clone(),
        };
        Self { host: Host::start(settings, context), way, shutdown, metrics }
    }

    /// A queue service's host with the default settings.
    pub fn queue(database: &Database, number: u128) -> Self {
        Self::start(database, number, MemberKind::Queue, HostSettings::default())
    }

    /// Waits until it owns these queues; their epochs, by name.
    pub async fn owns(&self, queues: &[&str]) -> Vec<i64> {
        let owned =
            self.host.wait_owned(|owned| owned.iter().map(|(queue, _)| queue.as_str()).eq(queues.iter().copied()));
        owned.await.expect("the host lives").into_iter().map(|(_, epoch)| epoch).collect()
    }
}

/// Waits until the condition holds, for a minute at most; looks again whenever some time has passed.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let looking = async {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        while !condition() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looking).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}
