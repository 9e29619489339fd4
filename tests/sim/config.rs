//! What a world is made of, chosen by its seed.

use std::time::Duration;

use millrace_core::matcher::Limits;
use rand::{Rng, rngs::SmallRng};

/// Which kind of world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Some kinds of faults, chosen by the seed.
    Chaos,
    /// None, only latency: then nothing may be lost, sent again or run twice.
    Calm,
    /// Exclusive tasks that run long under short leases, and orchestrators that lose their connection.
    Exclusive,
    /// Owners of queues that come, go and stall, and exchange streams that break.
    Owners,
    /// A database that goes away for a little longer than a write is tried, under one replica.
    Outages,
    /// Messages and calls that take seconds, and processes that stall.
    Slow,
    /// Long lanes that only the feeder knows, transactions that commit late, and nothing else: then the feeder must find every
    /// task without the sweep.
    LateCommits,
}

/// Every kind.
pub(crate) const WEATHERS: [Weather; 7] = [
    Weather::Chaos,
    Weather::Calm,
    Weather::Exclusive,
    Weather::Owners,
    Weather::Outages,
    Weather::Slow,
    Weather::LateCommits,
];

/// The kinds of faults that a world may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    CutStream,
    CrashReplica,
    CrashOwner,
    CrashOrchestrator,
    LeaveOrchestrator,
    DrainReplica,
    StallReplica,
    StallOwner,
    StallOrchestrator,
    Outage,
    FailingCalls,
    Partition,
    IsolateOrchestrator,
    JumpClock,
    StepClock,
    Unfit,
    LoseOffers,
    Pause,
    DeleteQueue,
}

/// Faults under which exclusive tasks must not overlap, and which do not make worlds with them needlessly short of work.
const HARMLESS_TO_EXCLUSIVE: [FaultKind; 8] = [
    FaultKind::CrashReplica,
    FaultKind::CrashOwner,
    FaultKind::DrainReplica,
    FaultKind::StallReplica,
    FaultKind::Outage,
    FaultKind::FailingCalls,
    FaultKind::StepClock,
    FaultKind::Unfit,
];

const KINDS: [FaultKind; 19] = [
    FaultKind::CutStream,
    FaultKind::CrashReplica,
    FaultKind::CrashOwner,
    FaultKind::CrashOrchestrator,
    FaultKind::LeaveOrchestrator,
    FaultKind::DrainReplica,
    FaultKind::StallReplica,
    FaultKind::StallOwner,
    FaultKind::StallOrchestrator,
    FaultKind::Outage,
    FaultKind::FailingCalls,
    FaultKind::Partition,
    FaultKind::IsolateOrchestrator,
    FaultKind::JumpClock,
    FaultKind::StepClock,
    FaultKind::Unfit,
    FaultKind::LoseOffers,
    FaultKind::Pause,
    FaultKind::DeleteQueue,
];

/// A world's parts and pace.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub weather: Weather,
    pub replicas: usize,
    pub owners: usize,
    /// The slots of each orchestrator.
    pub slots: Vec<usize>,
    pub queues: Vec<&'static str>,
    pub tasks: u32,
    /// How long submissions come and faults happen.
    pub chaos: Duration,
    pub faults: Vec<FaultKind>,
    pub fault_count: usize,
    pub limits: Limits,
    /// The usual longest delay of a message or a call.
    pub latency: Duration,
    /// The share of those that take up to `slow_latency`.
    pub slow: f64,
    pub slow_latency: Duration,
    /// The longest until an end of a cut stream notices.
    pub unnoticed: Duration,
    pub longest_transaction: Duration,
    pub exclusive: f64,
    /// The lease of a session, in seconds.
    pub shortest_lease: u64,
    pub longest_lease: u64,
    pub outage: (Duration, Duration),
    pub stall: (Duration, Duration),
    /// Offers that are lost, and that come twice.
    pub offers_lost: f64,
    pub offers_doubled: f64,
}

impl Config {
    /// A world of this kind.
    pub(crate) fn new(weather: Weather, rng: &mut SmallRng) -> Self {
        let ms = Duration::from_millis;
        let all = ["default", "b", "c"];
        let queues = all[..rng.random_range(1..=all.len())].to_vec();
        let faults: Vec<FaultKind> = KINDS.into_iter().filter(|_| rng.random_bool(0.4)).collect();
        let mut config = Self {
            weather,
            replicas: rng.random_range(1..=3),
            owners: rng.random_range(0..=2),
            slots: (0..rng.random_range(1..=4)).map(|_| rng.random_range(1..=4)).collect(),
            queues,
            tasks: rng.random_range(5..=40),
            chaos: Duration::from_secs(rng.random_range(10..=45)),
            fault_count: rng.random_range(1..=25),
            limits: Limits {
                lane: rng.random_range(2..=16),
                window: rng.random_range(4..=32),
                idle_lanes: rng.random_range(1..=8),
                sweep: Duration::from_secs(rng.random_range(2..=10)),
                ..Limits::default()
            },
            latency: ms(rng.random_range(1..=20)),
            slow: if rng.random_bool(0.5) { 0.02 } else { 0.0 },
            slow_latency: ms(rng.random_range(100..=3_000)),
            unnoticed: ms(rng.random_range(100..=10_000)),
            longest_transaction: ms(rng.random_range(5..=8_000)),
            exclusive: if faults.contains(&FaultKind::StallOrchestrator) { 0.0 } else { 0.3 },
            offers_lost: if faults.contains(&FaultKind::LoseOffers) { 0.3 } else { 0.0 },
            offers_doubled: if faults.contains(&FaultKind::LoseOffers) { 0.2 } else { 0.0 },
            shortest_lease: 5,
            longest_lease: 15,
            outage: (ms(100), ms([8_000, 25_000][rng.random_range(0..2)])),
            stall: (ms(100), ms(20_000)),
            faults,
        };
        match weather {
            Weather::Chaos => {}
            Weather::Calm => config.without_faults(),
            Weather::Exclusive => {
                config.faults.retain(|kind| HARMLESS_TO_EXCLUSIVE.contains(kind));
                config.faults.extend([
                    FaultKind::CutStream,
                    FaultKind::IsolateOrchestrator,
                    FaultKind::IsolateOrchestrator,
                ]);
                config.exclusive = 1.0;
                config.longest_lease = rng.random_range(5..=8);
                config.tasks = rng.random_range(4..=10);
            }
            Weather::Owners => {
                config.faults = vec![
                    FaultKind::CrashOwner,
                    FaultKind::CrashReplica,
                    FaultKind::StallOwner,
                    FaultKind::DrainReplica,
                    FaultKind::CutStream,
                    FaultKind::CutStream,
                    FaultKind::CutStream,
                ];
                config.chaos = Duration::from_secs(rng.random_range(30..=70));
                config.fault_count = rng.random_range(10..=30);
            }
            Weather::Outages => {
                config.faults = vec![FaultKind::Outage];
                config.fault_count = rng.random_range(2..=5);
                config.replicas = 1;
                config.shortest_lease = 14;
                config.outage = (ms(4_800), ms(6_500));
            }
            Weather::Slow => {
                config.faults = vec![
                    FaultKind::StallOrchestrator,
                    FaultKind::StallOrchestrator,
                    FaultKind::StallReplica,
                    FaultKind::CutStream,
                    FaultKind::FailingCalls,
                ];
                config.fault_count = rng.random_range(6..=20);
                config.tasks = rng.random_range(20..=50);
                config.exclusive = 0.0;
                config.slow = rng.random_range(0.1..0.4);
                // Longer than an assignment may go unreported, and shorter than a lease.
                config.stall = (ms(6_000), ms(11_000));
                config.shortest_lease = 14;
                config.slow_latency = ms(rng.random_range(2_000..=9_000));
            }
            Weather::LateCommits => {
                config.without_faults();
                config.owners = 1;
                config.slots = vec![rng.random_range(1..=2)];
                config.queues.truncate(1);
                config.tasks = 60;
                config.chaos = Duration::from_secs(15);
                config.longest_transaction = Duration::from_secs(8);
                config.limits.lane = rng.random_range(2..=4);
                config.limits.sweep = Duration::from_secs(3_600);
                // Only the feeder knows.
                config.offers_lost = 0.5;
            }
        }
        config
    }

    fn without_faults(&mut self) {
        self.faults.clear();
        self.fault_count = 0;
        self.slow = 0.0;
        self.offers_lost = 0.0;
        self.offers_doubled = 0.0;
        self.longest_transaction = Duration::from_millis(5);
    }

    /// How many places there are: replicas first, then owners, then orchestrators.
    pub(crate) fn processes(&self) -> usize {
        self.replicas + self.owners + self.slots.len()
    }

    pub(crate) fn replica_places(&self) -> std::ops::Range<usize> {
        0..self.replicas
    }

    pub(crate) fn owner_places(&self) -> std::ops::Range<usize> {
        self.replicas..self.replicas + self.owners
    }

    pub(crate) fn orchestrator_places(&self) -> std::ops::Range<usize> {
        self.replicas + self.owners..self.processes()
    }
}
