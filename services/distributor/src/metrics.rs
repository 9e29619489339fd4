//! The figures of a replica's work.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Sizes of batches.
const SIZES: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0];

/// Seconds of a write, from its first try to its end.
const SECONDS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    write: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// The metrics of a replica.
#[derive(Debug)]
pub(crate) struct Metrics {
    rows: Family<Write, Histogram>,
    seconds: Family<Write, Histogram>,
    failures: Family<Write, Counter>,
    ended: Family<Outcome, Counter>,
    /// Tasks stored.
    pub(crate) submitted: Counter,
    /// Submissions turned away because the gate was full.
    pub(crate) shed: Counter,
    /// Tasks claimed for sessions of this replica.
    pub(crate) claimed: Counter,
    /// Claims that came too late for their match.
    pub(crate) stale_claims: Counter,
    /// Assignments sent more than once.
    pub(crate) resent: Counter,
    /// Orchestrators whose lease ran out, as found by this replica.
    pub(crate) leases_lost: Counter,
    /// Streams ended because their orchestrator did not read them.
    pub(crate) unread_streams: Counter,
    /// Orchestrators connected.
    pub(crate) sessions: Gauge,
    /// Live output kept in memory.
    pub(crate) output_bytes: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            rows: Family::new_with_constructor(|| Histogram::new(SIZES)),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            failures: Family::default(),
            ended: Family::default(),
            submitted: Counter::default(),
            shed: Counter::default(),
            claimed: Counter::default(),
            stale_claims: Counter::default(),
            resent: Counter::default(),
            leases_lost: Counter::default(),
            unread_streams: Counter::default(),
            sessions: Gauge::default(),
            output_bytes: Gauge::default(),
        };
        registry.register("write_batch_rows", "Rows in one transaction of the hot path", metrics.rows.clone());
        registry.register(
            "write_duration_seconds",
            "Time to commit a batch, retries included",
            metrics.seconds.clone(),
        );
        registry.register("write_failures", "Batches that could not be written", metrics.failures.clone());
        registry.register("attempts_ended", "Attempts ended, by outcome", metrics.ended.clone());
        registry.register("tasks_submitted", "Tasks stored", metrics.submitted.clone());
        registry.register("submissions_shed", "Submissions turned away for want of room", metrics.shed.clone());
        registry.register("tasks_claimed", "Tasks claimed for orchestrators", metrics.claimed.clone());
        registry.register("claims_stale", "Claims of tasks that did not wait any more", metrics.stale_claims.clone());
        registry.register("assignments_resent", "Assignments sent again", metrics.resent.clone());
        registry.register("leases_lost", "Orchestrators whose lease ran out", metrics.leases_lost.clone());
        registry.register("streams_unread", "Streams ended for not being read", metrics.unread_streams.clone());
        registry.register("orchestrators_connected", "Orchestrators on this replica", metrics.sessions.clone());
        registry.register("output_kept_bytes", "Live output kept in memory", metrics.output_bytes.clone());
        metrics
    }

    /// Counts a batch that was written, or could not be.
    pub(crate) fn wrote(&self, write: &'static str, rows: usize, took: std::time::Duration, done: bool) {
        let labels = Write { write };
        self.rows.get_or_create(&labels).observe(rows as f64);
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if !done {
            self.failures.get_or_create(&labels).inc();
        }
    }

    /// Counts an attempt that ended.
    pub(crate) fn attempt_ended(&self, kind: millrace_core::retry::OutcomeKind) {
        use millrace_core::retry::OutcomeKind::*;
        let outcome = match kind {
            Succeeded => "succeeded",
            Failed => "failed",
            TimedOut => "timed_out",
            Cancelled => "cancelled",
            NotStarted => "not_started",
            Unsupported => "unsupported",
            HandedBack => "handed_back",
            Lost => "lost",
            Expired => "expired",
        };
        self.ended.get_or_create(&Outcome { outcome }).inc();
    }
}
