//! The scaler's metrics. Labels are names of pools and providers, states, methods and results: closed sets.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use millrace_core::fleet::{State, books::PoolReport};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{convert::status::gate_state, engine::Engine};

/// From a node of a warm pool to one that is given up, in seconds.
const JOIN_BUCKETS: [f64; 13] = [1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0, 720.0, 1_200.0, 1_800.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    pool: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    provider: String,
    method: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabels {
    table: &'static str,
}

/// A gauge with a fraction.
type Rate = Gauge<f64, AtomicU64>;

/// The scaler's metrics. What a pool is shown with comes from the leader alone: a standby shows none.
#[derive(Debug)]
pub(crate) struct ScalerMetrics {
    nodes: Family<NodeLabels, Gauge>,
    desired: Family<PoolLabels, Gauge>,
    ready_slots: Family<PoolLabels, Gauge>,
    lost_slots: Family<PoolLabels, Gauge>,
    launch_gate: Family<PoolLabels, Gauge>,
    join_seconds: Family<PoolLabels, Histogram>,
    calls: Family<CallLabels, Counter>,
    calls_per_second: Family<ProviderLabels, Rate>,
    unreadable: Family<TableLabels, Gauge>,
    leader: Gauge,
    streams: Gauge,
    round_seconds: Histogram,
    /// Pools that are shown, so that the series of those that have gone can be dropped.
    shown: Mutex<BTreeSet<String>>,
}

impl ScalerMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            nodes: Family::default(),
            desired: Family::default(),
            ready_slots: Family::default(),
            lost_slots: Family::default(),
            launch_gate: Family::default(),
            join_seconds: Family::new_with_constructor(|| Histogram::new(JOIN_BUCKETS)),
            calls: Family::default(),
            calls_per_second: Family::default(),
            unreadable: Family::default(),
            leader: Gauge::default(),
            streams: Gauge::default(),
            round_seconds: Histogram::new(millrace_runtime::metrics::SECONDS_BUCKETS),
            shown: Mutex::default(),
        };
        let mut add = |name: &str, help: &str, metric: Box<dyn Add>| metric.add(registry, name, help);
        add("scaler_nodes", "Nodes by state", Box::new(metrics.nodes.clone()));
        add("scaler_desired", "Nodes that there should be", Box::new(metrics.desired.clone()));
        add("scaler_ready_slots", "Slots of nodes that take work", Box::new(metrics.ready_slots.clone()));
        add(
            "scaler_lost_slots",
            "Slots of nodes that are unhealthy or held back",
            Box::new(metrics.lost_slots.clone()),
        );
        let help = "Whether launches go on: 1 they do, 2 only a few until one has joined, 3 they have stopped";
        add("scaler_launch_gate", help, Box::new(metrics.launch_gate.clone()));
        add("scaler_join_seconds", "From a launch to a node that takes work", Box::new(metrics.join_seconds.clone()));
        add("scaler_provider_calls", "Calls to providers by result", Box::new(metrics.calls.clone()));
        let help = "Calls a second that a provider is thought to take";
        add("scaler_provider_calls_per_second", help, Box::new(metrics.calls_per_second.clone()));
        add("scaler_unreadable_rows", "Rows that this build cannot read", Box::new(metrics.unreadable.clone()));
        add("scaler_leader", "1 while this process leads", Box::new(metrics.leader.clone()));
        add("scaler_streams", "Nodes that are attached to this process", Box::new(metrics.streams.clone()));
        add(
            "scaler_round_seconds",
            "How long a round takes, its reads and writes included",
            Box::new(metrics.round_seconds.clone()),
        );
        metrics
    }

    /// This process leads, or leads no longer.
    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            for pool in std::mem::take(&mut *self.shown.lock().unwrap_or_else(PoisonError::into_inner)) {
                self.forget(&pool);
            }
            self.calls_per_second.clear();
            self.unreadable.clear();
            self.streams.set(0);
        }
    }

    /// A call to a provider has ended.
    pub(crate) fn called(&self, provider: &str, method: &'static str, result: &'static str) {
        self.calls.get_or_create(&CallLabels { provider: provider.into(), method, result }).inc();
    }

    /// Nodes that have joined.
    pub(crate) fn joined(&self, joined: &[(String, Duration)]) {
        for (pool, took) in joined {
            self.join_seconds.get_or_create(&PoolLabels { pool: pool.clone() }).observe(took.as_secs_f64());
        }
    }

    /// How things stand after a round.
    pub(crate) fn round(&self, engine: &Engine, took: Duration, streams: usize) {
        self.round_seconds.observe(took.as_secs_f64());
        self.streams.set(i64::try_from(streams).unwrap_or(i64::MAX));
        let mut now = BTreeSet::new();
        for report in engine.reports() {
            now.insert(report.pool.name.clone());
            self.show(report, engine.fleet().lost_slots(&report.pool.name));
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.difference(&now).for_each(|gone| self.forget(gone));
        *shown = now;
        let (pools, nodes) = engine.unreadable();
        for (table, rows) in [("pools", pools), ("nodes", nodes)] {
            self.unreadable.get_or_create(&TableLabels { table }).set(i64::try_from(rows).unwrap_or(i64::MAX));
        }
    }

    /// What a provider is thought to take.
    pub(crate) fn provider(&self, provider: &str, calls_per_second: f64) {
        self.calls_per_second.get_or_create(&ProviderLabels { provider: provider.into() }).set(calls_per_second);
    }

    fn show(&self, report: &PoolReport, lost_slots: u64) {
        let labels = PoolLabels { pool: report.pool.name.clone() };
        for state in State::ALL.into_iter().filter(|state| *state != State::Gone) {
            let nodes = report.nodes.get(&state).copied().unwrap_or(0);
            let labels = NodeLabels { pool: labels.pool.clone(), state: state_name(state) };
            self.nodes.get_or_create(&labels).set(nodes.into());
        }
        let set = |family: &Family<PoolLabels, Gauge>, value: i64| {
            family.get_or_create(&labels).set(value);
        };
        set(&self.desired, report.size.desired.into());
        set(&self.ready_slots, i64::try_from(report.ready_slots).unwrap_or(i64::MAX));
        set(&self.lost_slots, i64::try_from(lost_slots).unwrap_or(i64::MAX));
        set(&self.launch_gate, (gate_state(report.launches.state) as i32).into());
    }

    /// Drops the series of a pool that this process does not look after any more. Its histogram stays: it counts what was seen.
    fn forget(&self, pool: &str) {
        let labels = PoolLabels { pool: pool.into() };
        for family in [&self.desired, &self.ready_slots, &self.lost_slots, &self.launch_gate] {
            family.remove(&labels);
        }
        for state in State::ALL {
            self.nodes.remove(&NodeLabels { pool: pool.into(), state: state_name(state) });
        }
    }
}

/// A metric of any type.
trait Add {
    fn add(self: Box<Self>, registry: &mut Registry, name: &str, help: &str);
}

impl<M: prometheus_client::registry::Metric> Add for M {
    fn add(self: Box<Self>, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, *self);
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Requested => "requested",
        State::Starting => "starting",
        State::Joining => "joining",
        State::Ready => "ready",
        State::Suspect => "suspect",
        State::Draining => "draining",
        State::Terminating => "terminating",
        State::Gone => "gone",
    }
}
