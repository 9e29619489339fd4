//! What a pool is like, as flags: those that `pool create` and `pool update` share.

use std::time::Duration;

use millrace_proto::scaler::v1::{Pool, ScheduledMinimum};

use super::schedule;
use crate::cli::task::parse_pair;
use crate::exit::Failure;
use crate::time::{parse_duration, to_proto};

/// What a pool is like. What is not given keeps the service's default, or its present value.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "The pool")]
pub(super) struct SpecArgs {
    /// A sentence for people.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A queue that it serves; several with commas between, or given many times.
    #[arg(long, alias = "queue", value_name = "NAME", value_delimiter = ',')]
    queues: Vec<String>,
    /// What the provider needs to know of each node, such as an image; may be given many times. An update replaces all.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    template: Vec<(String, String)>,
    /// How many tasks a node runs at a time. By default 1.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=1024))]
    slots: Option<i32>,
    /// Never fewer nodes. By default 0.
    #[arg(long, alias = "min-nodes", value_name = "COUNT", value_parser = nodes())]
    min: Option<i32>,
    /// Never more nodes. By default 10.
    #[arg(long, alias = "max-nodes", value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    max: Option<i32>,
    /// How long a task may wait, from 1s to 24h. By default 30s.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    target_wait: Option<Duration>,
    /// At most this many more nodes in one round. By default a tenth of --max, and at least 10.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    step_up: Option<i32>,
    /// At most this many fewer nodes in one round. By default a tenth of --max, and at least 5.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    step_down: Option<i32>,
    /// How long fewer nodes must have been enough before any is drained. By default 5m.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    scale_down_after: Option<Duration>,
    /// A zone, the preferred one first; several with commas between, or given many times. Without any the provider chooses.
    #[arg(long = "zone", value_name = "NAME", value_delimiter = ',')]
    zones: Vec<String>,
    /// A pool to ask for what this one cannot get, in this order; several with commas between, or given many times.
    #[arg(long = "fallback", value_name = "POOL", value_delimiter = ',')]
    fallbacks: Vec<String>,
    /// A node may take at least this long to join, whatever was learnt. By default 1m.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    join_min: Option<Duration>,
    /// A node that has not joined by then is given up, whatever was learnt. By default 1h.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    join_max: Option<Duration>,
    /// At most this share of the pool is ended as lost or late in ten minutes. By default 10.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(i32).range(1..=100))]
    destroy_budget: Option<i32>,
    /// A minimum at times of the week in UTC, such as 'mon-fri 08:00-18:00=5'; may be given many times. An update replaces all.
    #[arg(long, value_name = "[DAYS ]HH:MM-HH:MM=NODES", value_parser = schedule::parse)]
    schedule: Vec<ScheduledMinimum>,
    /// How many launches may be under way while none of late has been seen to join. By default a tenth of --max, at least 5.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    unproven_launches: Option<i32>,
    /// How long a join proves that launches work. By default 1h.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    proof_age: Option<Duration>,
}

/// A number of nodes.
pub(super) fn nodes() -> clap::builder::RangedI64ValueParser<i32> {
    clap::value_parser!(i32).range(0..=100_000)
}

/// What `pool update` can clear, which sets it back to its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Field {
    /// The description.
    Description,
    /// Every entry of the template.
    Template,
    /// The slots of a node.
    Slots,
    /// The least number of nodes.
    Min,
    /// The greatest number of nodes.
    Max,
    /// The target wait.
    TargetWait,
    /// The step up.
    StepUp,
    /// The step down.
    StepDown,
    /// The wait before nodes are drained.
    ScaleDownAfter,
    /// Every zone.
    Zone,
    /// Every fallback pool.
    Fallback,
    /// The least time to join.
    JoinMin,
    /// The greatest time to join.
    JoinMax,
    /// The destroy budget.
    DestroyBudget,
    /// Every entry of the schedule.
    Schedule,
    /// The launches without a proof.
    UnprovenLaunches,
    /// The age of a proof.
    ProofAge,
}

impl Field {
    /// Its name in an update mask.
    fn path(self) -> &'static str {
        match self {
            Field::Description => "description",
            Field::Template => "template",
            Field::Slots => "slots_per_node",
            Field::Min => "min_nodes",
            Field::Max => "max_nodes",
            Field::TargetWait => "target_wait",
            Field::StepUp => "step_up",
            Field::StepDown => "step_down",
            Field::ScaleDownAfter => "scale_down_after",
            Field::Zone => "zones",
            Field::Fallback => "fallback_pools",
            Field::JoinMin => "join_min",
            Field::JoinMax => "join_max",
            Field::DestroyBudget => "destroy_budget_percent",
            Field::Schedule => "schedule",
            Field::UnprovenLaunches => "unproven_launches",
            Field::ProofAge => "proof_age",
        }
    }
}

impl SpecArgs {
    /// Whether any queue is named, which a new pool needs.
    pub(super) fn has_queues(&self) -> bool {
        !self.queues.is_empty()
    }

    /// The fields that are given or cleared.
    pub(super) fn mask(&self, clear: &[Field]) -> Result<Vec<String>, Failure> {
        let given = [
            ("description", self.description.is_some()),
            ("queues", self.has_queues()),
            ("template", !self.template.is_empty()),
            ("slots_per_node", self.slots.is_some()),
            ("min_nodes", self.min.is_some()),
            ("max_nodes", self.max.is_some()),
            ("target_wait", self.target_wait.is_some()),
            ("step_up", self.step_up.is_some()),
            ("step_down", self.step_down.is_some()),
            ("scale_down_after", self.scale_down_after.is_some()),
            ("zones", !self.zones.is_empty()),
            ("fallback_pools", !self.fallbacks.is_empty()),
            ("join_min", self.join_min.is_some()),
            ("join_max", self.join_max.is_some()),
            ("destroy_budget_percent", self.destroy_budget.is_some()),
            ("schedule", !self.schedule.is_empty()),
            ("unproven_launches", self.unproven_launches.is_some()),
            ("proof_age", self.proof_age.is_some()),
        ];
        let mut paths = Vec::new();
        for (path, given) in given {
            let cleared = clear.iter().any(|field| field.path() == path);
            if given && cleared {
                return Err(Failure::Usage(format!("{path} cannot both be given and cleared")));
            }
            if given || cleared {
                paths.push(path.to_owned());
            }
        }
        match paths.is_empty() {
            true => Err(Failure::Usage("nothing to change: give a new value, or --clear FIELD".to_owned())),
            false => Ok(paths),
        }
    }

    /// Whether the values contradict each other, as far as they are given.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let above = |low: Option<i32>, high: Option<i32>| low.zip(high).is_some_and(|(low, high)| low > high);
        let longer =
            |low: Option<Duration>, high: Option<Duration>| low.zip(high).is_some_and(|(low, high)| low > high);
        let twice = |list: &[(String, String)]| {
            list.iter().enumerate().any(|(at, (key, _))| list[..at].iter().any(|(before, _)| before == key))
        };
        let rules = [
            (above(self.min, self.max), "--min is above --max"),
            (longer(self.join_min, self.join_max), "--join-min is above --join-max"),
            (twice(&self.template), "--template names a key twice"),
        ];
        match rules.into_iter().find(|(broken, _)| *broken) {
            Some((_, rule)) => Err(Failure::Usage(rule.to_owned())),
            None => Ok(()),
        }
    }

    /// The pool of that name with these values.
    pub(super) fn pool(self, name: String) -> Pool {
        Pool {
            name,
            description: self.description.unwrap_or_default(),
            queues: self.queues,
            template: self.template.into_iter().collect(),
            slots_per_node: self.slots,
            min_nodes: self.min,
            max_nodes: self.max,
            target_wait: self.target_wait.map(to_proto),
            step_up: self.step_up,
            step_down: self.step_down,
            scale_down_after: self.scale_down_after.map(to_proto),
            zones: self.zones,
            fallback_pools: self.fallbacks,
            join_min: self.join_min.map(to_proto),
            join_max: self.join_max.map(to_proto),
            destroy_budget_percent: self.destroy_budget,
            schedule: self.schedule,
            unproven_launches: self.unproven_launches,
            proof_age: self.proof_age.map(to_proto),
            ..Pool::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Parser, ValueEnum};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        spec: SpecArgs,
        #[arg(long)]
        clear: Vec<Field>,
    }

    fn read(args: &[&str]) -> Line {
        Line::parse_from([&["x"], args].concat())
    }

    #[test]
    fn the_mask_names_what_is_given_or_cleared() {
        let paths = |args: &[&str]| read(args).spec.mask(&read(args).clear);
        assert_eq!(paths(&["--min", "0", "--clear", "schedule"]).unwrap(), ["min_nodes", "schedule"]);
        assert_eq!(paths(&["--queue", "a,b", "--zone", "z"]).unwrap(), ["queues", "zones"]);
        assert_eq!(paths(&[]).unwrap_err().code(), 64);
        assert_eq!(paths(&["--max", "5", "--clear", "max"]).unwrap_err().code(), 64);
        let every: Vec<_> = Field::value_variants().iter().map(|field| field.path()).collect();
        let all = SpecArgs::default().mask(Field::value_variants()).unwrap();
        assert!(all.len() == every.len() && all.iter().all(|path| every.contains(&path.as_str())));
    }

    #[test]
    fn the_pool_has_what_the_flags_say_and_leaves_the_rest_to_the_service() {
        let args = ["--queue", "a", "--queue", "b", "--target-wait", "1m30s", "--template", "image=x=y", "--min", "0"];
        let pool = read(&args).spec.pool("p".into());
        assert_eq!(
            (pool.queues.len(), pool.target_wait.unwrap().seconds, pool.template["image"].as_str()),
            (2, 90, "x=y")
        );
        assert_eq!((pool.min_nodes, pool.max_nodes, pool.join_min), (Some(0), None, None));
    }

    #[test]
    fn contradictions_are_found_before_the_service_is_asked() {
        for args in [
            &["--min", "5", "--max", "3"][..],
            &["--join-min", "2m", "--join-max", "1m"],
            &["--template", "a=1", "--template", "a=2"],
        ] {
            assert_eq!(read(args).spec.check().unwrap_err().code(), 64, "{args:?}");
        }
        read(&["--min", "3", "--max", "3"]).spec.check().unwrap();
    }
}
