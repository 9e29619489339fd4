//! The command line.

use std::{path::PathBuf, time::Duration};

use millrace_orchestrator::parse_duration;

/// Replays an incident and judges what came of it.
#[derive(Debug, clap::Parser)]
#[command(name = "millrace-drill", max_term_width = 110)]
#[command(after_help = "\
Examples:
  make drill D=D1a
  make drill D=D1a SEED=7
  make drill D=D1b
  tests/with-postgres.sh target/debug/millrace-drill D1a --time 10s --only incident

D1a runs against real services: it needs a debug build of `millrace` beside its own binary, and a PostgreSQL in which it may create
databases; they are dropped at the end. The others run the scaler's own books on a virtual clock, against a simulated provider. The last line of its output is the summary; the exit code is 1 when a mark was missed.")]
pub(crate) struct Cli {
    /// Which incident
    #[arg(value_enum, value_name = "DRILL", ignore_case = true)]
    pub(crate) drill: Drill,
    /// Repeats the choices of another run, as far as processes repeat [default: a new one]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Where the results go [default: target/drill/DRILL]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only whether it is correct, in less than a minute: of D1a no figure is measured and none judged, of the others fewer seeds are run
    #[arg(long)]
    pub(crate) short: bool,
    /// Only these parts
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',', conflicts_with = "short")]
    only: Vec<Part>,
    /// How long each measurement takes
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "20s")]
    pub(crate) time: Duration,
    /// Tasks a second [default: half of what the machine can do, measured first]
    #[arg(long, value_name = "TASKS", value_parser = clap::value_parser!(u32).range(10..=100_000))]
    pub(crate) rate: Option<u32>,
}

/// An incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Drill {
    /// A field changes its type, and back: rows that nobody can read
    #[value(name = "D1a")]
    D1a,
    /// Nodes join slowly in the middle of a surge, and the provider takes few calls
    #[value(name = "D1b")]
    D1b,
    /// Zones run out of capacity, calls are throttled, answers get lost
    #[value(name = "D2")]
    D2,
    /// New machines never become healthy
    #[value(name = "D4")]
    D4,
    /// Ten thousand nodes in two hundred pools
    #[value(name = "fleet")]
    Fleet,
}

impl Drill {
    /// Its name in the list of incidents.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::D1a => "D1a",
            Self::D1b => "D1b",
            Self::D2 => "D2",
            Self::D4 => "D4",
            Self::Fleet => "fleet",
        }
    }

    /// Whether it runs against real services, for which a PostgreSQL and a build with failpoints are needed; the others run on a virtual
    /// clock.
    pub(crate) fn is_real(self) -> bool {
        self == Self::D1a
    }
}

/// A part of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// The incident as it was
    Incident,
    /// The same script against a reader that stops at the first bad row
    Naive,
    /// Shares and kinds of bad rows, each beside the same load without
    Mixes,
    /// A database that fails for a moment
    Hiccup,
}

impl Cli {
    /// Whether a part is wanted.
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    pub(crate) fn seed(&self) -> u64 {
        // Small, so that it is easily typed.
        self.seed.unwrap_or_else(|| rand::random_range(0..1_000_000))
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| PathBuf::from("target/drill").join(self.drill.name()))
    }
}
