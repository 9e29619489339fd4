//! A cloud that exists in memory and does what a script says.
//!
//! It is deterministic: chance comes from the script's seed, time from the caller or from the clock that it was given. Nothing of it
//! waits, except the calls of the contract when the script has a latency or loses messages: those wait in tokio's time. A drill on a
//! virtual clock uses [`Simulated::request_at`] and its like, which say when their answer is there instead of waiting for it.
//!
//! What is true of it, whatever the scaler believes, stands in its [`Ledger`]. What its nodes would tell the scaler on their own
//! streams comes from [`Simulated::happenings`].
//!
//! The script is explained in [`EXAMPLE`].

mod calls;
mod conditions;
mod draw;
mod ledger;
mod life;
mod script;
mod throttle;
mod world;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_core::{id::NodeId, time::Timestamp};
use millrace_proto::provider::v1::{
    DescribeNodesRequest, DescribeNodesResponse, RequestNodesRequest, RequestNodesResponse, TerminateNodesRequest,
    TerminateNodesResponse, node_provider_service_server::NodeProviderService,
};
use tonic::{Request, Response, Status};

pub use conditions::HowDead;
pub use ledger::{Call, CallFate, Fate, Ledger, Method, NodeRecord, Tally};
pub use script::{EXAMPLE, Script, ScriptError};

use self::world::World;
use crate::provider::Clock;

/// A simulated provider.
pub struct Simulated {
    world: Mutex<World>,
    clock: Clock,
}

/// An answer, and when the caller has it.
#[derive(Debug)]
pub struct Reply<T> {
    /// When: later than the call by the script's latency, or by its time-out when a message was lost.
    pub at: Timestamp,
    /// The answer.
    pub result: Result<T, Status>,
}

/// Something that a node says, or that is seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// When.
    pub at: Timestamp,
    /// The node's id; none when the provider keeps no tokens, so that the node does not know it either.
    pub node_id: Option<NodeId>,
    /// The provider's name of it.
    pub instance_id: String,
    /// Its pool.
    pub pool: Arc<str>,
    /// Its zone.
    pub zone: Arc<str>,
    /// What.
    pub happening: Happening,
}

/// What a node says, or what is seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// Its boot has come this far. The first one attaches it.
    Boot {
        /// The stage.
        stage: String,
        /// 0 to 100.
        percent: u8,
    },
    /// It takes work; also when its stream is back after `Lost`.
    Ready,
    /// Its boot has failed; it will not join.
    BootFailed {
        /// Why.
        error: String,
    },
    /// Its executor cannot work.
    Unhealthy {
        /// Why.
        reason: String,
    },
    /// It can again.
    Healthy,
    /// Its stream is gone; the node may live.
    Lost,
    /// The provider takes it away.
    SpotNotice {
        /// When.
        at: Timestamp,
    },
    /// It is no more, whoever saw to that. A stream that it had is gone.
    Exited,
}

impl Simulated {
    /// Starts the script now, by the clock.
    pub fn new(script: Script, clock: Clock) -> Self {
        let start = clock();
        Self { world: Mutex::new(World::new(script, start, true)), clock }
    }

    /// One whose nodes nobody listens to: [`Simulated::happenings`] gives nothing, and nothing is kept for it.
    pub fn unwatched(script: Script, clock: Clock) -> Self {
        let start = clock();
        Self { world: Mutex::new(World::new(script, start, false)), clock }
    }

    /// DescribeNodes at this time.
    pub fn describe_at(&self, now: Timestamp, request: &DescribeNodesRequest) -> Reply<DescribeNodesResponse> {
        self.world().describe(now, request)
    }

    /// RequestNodes at this time.
    pub fn request_at(&self, now: Timestamp, request: &RequestNodesRequest) -> Reply<RequestNodesResponse> {
        self.world().request(now, request)
    }

    /// TerminateNodes at this time.
    pub fn terminate_at(&self, now: Timestamp, request: &TerminateNodesRequest) -> Reply<TerminateNodesResponse> {
        self.world().terminate(now, request)
    }

    /// What has happened to nodes since the last call, until this time, the oldest first. At most a million are kept between two calls:
    /// of more, the oldest are lost, which a warning tells.
    pub fn happenings(&self, now: Timestamp) -> Vec<Happened> {
        let mut world = self.world();
        world.advance(now);
        let (heard, forgotten) = world.take_heard();
        if forgotten > 0 {
            tracing::warn!(forgotten, "what simulated nodes said was not asked for in time");
        }
        heard
    }

    /// When something happens next; none when nothing will. For a clock that jumps.
    pub fn next_at(&self) -> Option<Timestamp> {
        self.world().next_at()
    }

    /// Reads the ledger, as of the last call of anything with a time.
    pub fn ledger<T>(&self, read: impl FnOnce(&Ledger) -> T) -> T {
        read(&self.world().ledger)
    }

    /// The ledger, counted at this time.
    pub fn tally(&self, now: Timestamp) -> Tally {
        let mut world = self.world();
        world.advance(now);
        world.ledger.tally(now)
    }

    /// How many calls the script's rates let through between two times, its burst at the beginning included. None when there is no limit
    /// for some of that time.
    pub fn quota(&self, from: Timestamp, to: Timestamp) -> Option<f64> {
        let world = self.world();
        throttle::quota(&world.script, world.start, from, to)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        // Nothing in there is left half done by a panic that would matter more than the panic.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the caller has the answer.
    async fn answered<T>(&self, now: Timestamp, reply: Reply<T>) -> Result<Response<T>, Status> {
        let wait = reply.at.since(now);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        reply.result.map(Response::new)
    }
}

#[tonic::async_trait]
impl NodeProviderService for Simulated {
    async fn describe_nodes(
        &self,
        request: Request<DescribeNodesRequest>,
    ) -> Result<Response<DescribeNodesResponse>, Status> {
        let now = (self.clock)();
        let reply = self.describe_at(now, request.get_ref());
        self.answered(now, reply).await
    }

    async fn request_nodes(
        &self,
        request: Request<RequestNodesRequest>,
    ) -> Result<Response<RequestNodesResponse>, Status> {
        let now = (self.clock)();
        let reply = self.request_at(now, request.get_ref());
        self.answered(now, reply).await
    }

    async fn terminate_nodes(
        &self,
        request: Request<TerminateNodesRequest>,
    ) -> Result<Response<TerminateNodesResponse>, Status> {
        let now = (self.clock)();
        let reply = self.terminate_at(now, request.get_ref());
        self.answered(now, reply).await
    }
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated").field("ledger", &self.world().ledger.nodes.len()).finish_non_exhaustive()
    }
}
