//! How long each part of the run takes.

use std::time::Duration;

/// Tasks in a call of BatchSubmitTasks and in a transaction of the ceilings.
pub(crate) const BATCH: usize = 500;
/// Bytes of a spec and of a null call.
pub(crate) const BYTES: usize = 500;
/// Connections of every client.
pub(crate) const CONNECTIONS: usize = 4;
/// Unary calls in flight.
pub(crate) const IN_FLIGHT: usize = 64;
/// Other tasks that wait meanwhile, in the ceilings and beside the services alike.
pub(crate) const PARKED: u64 = 100_000;
/// The first point at which memory is read.
pub(crate) const FEW_PARKED: u64 = 1_000;
/// Tasks a second whose dispatch is timed.
pub(crate) const DISPATCH_RATE: u32 = 200;

/// The lengths of the parts.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How often the ceilings are measured: before the services and, where it is 2, after them again, because machines
    /// drift; the figure is then the mean.
    pub(crate) passes: u32,
    /// Each pgbench run.
    pub(crate) pgbench: Duration,
    /// The store crate without gRPC.
    pub(crate) store: Duration,
    /// Each run of null calls.
    pub(crate) null: Duration,
    /// Unary SubmitTask, after as much as a fifth of it for warming up.
    pub(crate) submit: Duration,
    /// Tasks of the backlog that is drained.
    pub(crate) backlog: u64,
    /// Tasks of the whole life.
    pub(crate) life: u64,
    /// Dispatch with the spawning client.
    pub(crate) dispatch: Duration,
    /// Dispatch with the real agent.
    pub(crate) agent: Duration,
}

impl Plan {
    /// The lengths of a full or of a quick run.
    pub(crate) fn new(quick: bool) -> Self {
        let seconds = Duration::from_secs;
        match quick {
            false => Self {
                passes: 2,
                pgbench: seconds(6),
                store: seconds(5),
                null: seconds(4),
                submit: seconds(10),
                backlog: 100_000,
                life: 300_000,
                dispatch: seconds(22),
                agent: seconds(10),
            },
            true => Self {
                passes: 1,
                pgbench: seconds(3),
                store: seconds(2),
                null: seconds(2),
                submit: seconds(3),
                backlog: 30_000,
                life: 60_000,
                dispatch: seconds(6),
                agent: seconds(3),
            },
        }
    }
}
