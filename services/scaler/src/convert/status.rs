//! What the books report, as people see it.

use std::time::Duration;

use millrace_core::fleet::{
    books::{Decision, PoolReport, ProviderReport},
    gate::{Allowance, GateState},
    joins::Grace,
};
use millrace_proto::scaler::v1 as wire;
use millrace_store::QueueDemand;

use super::{age, count, duration, moment, node};

/// What its queues ask of a pool: its part of each.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Asked {
    /// Tasks that wait, of queues that are not paused or are.
    waiting: f64,
    /// Tasks that orchestrators have.
    running: f64,
    /// Tasks that wait, of queues that are not paused.
    due: f64,
    oldest_age: Option<Duration>,
    arrival_rate: Option<f64>,
    /// Run times and what each counts.
    run_time: (f64, f64),
}

impl Asked {
    /// Adds a part of a queue, 0 to 1.
    pub(crate) fn add(&mut self, row: &QueueDemand, part: f64) {
        if part <= 0.0 {
            return;
        }
        let waiting = row.waiting.max(0) as f64 * part;
        self.waiting += waiting;
        self.running += row.running.max(0) as f64 * part;
        self.due += if row.paused { 0.0 } else { waiting };
        self.oldest_age = self.oldest_age.max(row.oldest_ready_at_us.map(|oldest| age(row.now_us, oldest)));
        let over = row.arrivals_over_us as f64 / 1e6;
        let rate = if over > 0.0 { row.arrivals as f64 / over * part } else { 0.0 };
        self.arrival_rate = Some(self.arrival_rate.unwrap_or(0.0) + rate);
        if let Some(run_time) = row.run_time_us {
            // What comes in counts; of two queues in which nothing does, both count a little.
            let weight = rate + waiting + 1e-3;
            self.run_time = (self.run_time.0 + run_time.max(0) as f64 / 1e6 * weight, self.run_time.1 + weight);
        }
    }

    /// Tasks that want an orchestrator or have one.
    pub(crate) fn outstanding(&self) -> f64 {
        self.due + self.running
    }
}

/// Why a pool has the size that it has: the pool by its name and figures only, the figures without their time.
pub(crate) fn explained(
    report: &PoolReport,
    provider: Option<ProviderReport>,
    asked: &Asked,
) -> wire::ExplainPoolResponse {
    let pool =
        wire::Pool { name: report.pool.name.clone(), status: Some(status(report, asked)), ..wire::Pool::default() };
    let step = |step: &millrace_core::fleet::size::Step| wire::SizeStep {
        rule: step.rule.into(),
        nodes: count(step.nodes),
        detail: step.detail.clone(),
    };
    let mut obstacles = report.obstacles.clone();
    if provider.is_none() {
        let text = format!("the leader has no provider `{}`", report.pool.provider);
        if !obstacles.iter().any(|one| one.contains("is not configured")) {
            obstacles.push(text);
        }
    }
    wire::ExplainPoolResponse {
        pool: Some(pool),
        steps: report.size.steps.iter().map(step).collect(),
        obstacles,
        provider: provider.map(shown_provider),
        decisions: report.decisions.iter().map(decision).collect(),
    }
}

fn status(report: &PoolReport, asked: &Asked) -> wire::PoolStatus {
    let (total, weight) = asked.run_time;
    wire::PoolStatus {
        desired: count(report.size.desired),
        desired_without_override: count(report.size.without_override),
        nodes: report
            .nodes
            .iter()
            .map(|(state, nodes)| wire::NodeCount { state: node::state(*state).into(), count: count(*nodes) })
            .collect(),
        ready_slots: i64::try_from(report.ready_slots).unwrap_or(i64::MAX),
        running: i64::try_from(report.running).unwrap_or(i64::MAX),
        waiting: asked.waiting.round() as i64,
        oldest_age: asked.oldest_age.map(duration),
        arrival_rate: asked.arrival_rate,
        run_time: (weight > 0.0).then(|| duration(Duration::from_secs_f64(total / weight))),
        grace: report.graces.iter().map(|(zone, grace)| shown_grace(zone, grace)).collect(),
        launches: Some(gate(&report.launches)),
        summary: report.summary.clone(),
        as_of: None,
    }
}

fn shown_grace(zone: &str, grace: &Grace) -> wire::JoinGrace {
    wire::JoinGrace {
        zone: zone.into(),
        grace: Some(duration(grace.grace)),
        median: grace.median.map(duration),
        joins: count(grace.joins),
        pending: count(grace.pending),
        late_together: grace.late_together,
    }
}

fn gate(launches: &Allowance) -> wire::LaunchGate {
    let (since, next_probe) = match launches.state {
        GateState::Stopped { since, next_probe } => (Some(since), Some(next_probe)),
        GateState::Open | GateState::Proving => (None, None),
    };
    wire::LaunchGate {
        state: gate_state(launches.state).into(),
        reason: launches.reason.clone(),
        since: since.map(moment),
        next_probe: next_probe.map(moment),
    }
}

/// A gate's state as the contract has it.
pub(crate) fn gate_state(state: GateState) -> wire::LaunchGateState {
    match state {
        GateState::Open => wire::LaunchGateState::Open,
        GateState::Proving => wire::LaunchGateState::Proving,
        GateState::Stopped { .. } => wire::LaunchGateState::Stopped,
    }
}

fn shown_provider(report: ProviderReport) -> wire::ProviderStatus {
    wire::ProviderStatus {
        name: report.name,
        state: report.state.name().into(),
        last_error: report.last_error,
        calls_per_second: report.calls_per_second,
        not_before: report.not_before.map(moment),
        blocked_zones: report
            .blocked
            .into_iter()
            .map(|zone| wire::ZoneBlock { zone: zone.zone, until: Some(moment(zone.until)), error: zone.error })
            .collect(),
    }
}

fn decision(decision: &Decision) -> wire::PoolDecision {
    wire::PoolDecision { time: Some(moment(decision.at)), text: decision.text.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(waiting: i64, paused: bool) -> QueueDemand {
        QueueDemand {
            queue: "q".into(),
            waiting,
            running: 4,
            oldest_ready_at_us: Some(1_000_000),
            paused,
            arrivals: 60,
            arrivals_over_us: 60_000_000,
            run_time_us: Some(2_000_000),
            now_us: 4_000_000,
        }
    }

    #[test]
    fn what_waits_in_a_paused_queue_is_shown_and_asks_for_nothing() {
        let mut asked = Asked::default();
        asked.add(&row(10, false), 0.5);
        asked.add(&row(6, true), 1.0);
        asked.add(&row(1_000, false), 0.0);
        assert_eq!((asked.waiting, asked.running, asked.outstanding()), (11.0, 6.0, 11.0));
        assert_eq!((asked.oldest_age, asked.arrival_rate), (Some(Duration::from_secs(3)), Some(1.5)));
        assert!((asked.run_time.0 / asked.run_time.1 - 2.0).abs() < 1e-9);
    }
}
