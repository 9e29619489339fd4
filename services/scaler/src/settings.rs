//! How the scaler is set up.

use std::{path::PathBuf, time::Duration};

use millrace_core::{
    fleet::{
        books,
        budget::{Budget, FLOOR_PER_S},
    },
    time::Timestamp,
};
use millrace_runtime::config::duration;

use crate::{
    EngineSettings, StartError,
    leader::CALL_LIMIT,
    provider::{OpenOptions, ProcessOptions, Spec, check_names, externalgrpc, system_clock},
};

/// How the scaler is set up.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// A provider of nodes: NAME=process, NAME=simulated:FILE.toml, NAME=grpc://HOST:PORT or NAME=externalgrpc://HOST:PORT; repeatable
    #[arg(long = "provider", env = "MILLRACE_PROVIDERS", value_delimiter = ',', value_name = "NAME=SPEC")]
    pub provider: Vec<Spec>,
    /// How often the leader decides
    #[arg(long, env = "MILLRACE_SCALER_ROUND", default_value = "1s", value_parser = duration, value_name = "DURATION")]
    pub scaler_round: Duration,
    /// How long the leader's lease outlives its last renewal; a standby takes over after at most this long
    #[arg(long, env = "MILLRACE_SCALER_LEASE", default_value = "15s", value_parser = duration, value_name = "DURATION")]
    pub scaler_lease: Duration,
    /// How often the leader compares its books with what each provider lists
    #[arg(long, env = "MILLRACE_SCALER_LIST_EVERY", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub scaler_list_every: Duration,
    /// Calls a second to each provider at first, and at most, as FIRST/MOST; between them the scaler learns what the provider takes
    #[arg(long, env = "MILLRACE_PROVIDER_CALLS", default_value = "10/100", value_parser = calls, value_name = "FIRST/MOST")]
    pub provider_calls: (f64, f64),
    /// How long nodes that are gone are kept with their histories
    #[arg(long, env = "MILLRACE_SCALER_KEEP_NODES", default_value = "7d", value_parser = duration, value_name = "DURATION")]
    pub scaler_keep_nodes: Duration,
    /// Callers of WatchPools, and of KEDA's StreamIsActive, at a time; more are turned away
    #[arg(long, env = "MILLRACE_SCALER_MAX_WATCHERS", default_value_t = 256, value_name = "COUNT")]
    pub scaler_max_watchers: usize,
    /// Streams of nodes at a time; more are turned away, and come back
    #[arg(long, env = "MILLRACE_SCALER_MAX_STREAMS", default_value_t = 20_000, value_name = "COUNT")]
    pub scaler_max_streams: usize,
    /// Where agents of process providers keep their files
    #[arg(long, env = "MILLRACE_AGENT_DIR", default_value = ".millrace/agents", value_name = "DIR")]
    pub agent_dir: PathBuf,
    /// The distributors that agents of process providers connect to; repeatable
    #[arg(
        long,
        env = "MILLRACE_AGENT_DISTRIBUTORS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7601",
        value_name = "URL"
    )]
    pub agent_distributor: Vec<String>,
    /// Agents of one process provider at a time; more are out of capacity
    #[arg(long, env = "MILLRACE_AGENT_MAX", default_value_t = 64, value_name = "COUNT")]
    pub agent_max: usize,
    /// Reads for people that run at a time; more wait, and are turned away after a while
    #[arg(long, env = "MILLRACE_SCALER_PEOPLE_READS", default_value_t = 4, value_name = "COUNT")]
    pub scaler_people_reads: usize,
}

impl Settings {
    /// The settings of the leader's engine.
    pub fn engine(&self) -> EngineSettings {
        let fleet = books::Settings { list_every: self.scaler_list_every, ..books::Settings::default() };
        EngineSettings { fleet, ..EngineSettings::default() }
    }

    /// A budget of calls to a provider.
    pub(crate) fn budget(&self, now: Timestamp) -> Budget {
        let (first, most) = self.provider_calls;
        Budget::new(first, FLOOR_PER_S.min(first), most, now)
    }

    /// What providers need to be opened. Agents on this machine attach to this process.
    pub(crate) fn open_options(&self, endpoint: &str) -> OpenOptions {
        let process = ProcessOptions {
            distributors: self.agent_distributor.clone(),
            scalers: vec![endpoint.into()],
            max_nodes: self.agent_max,
            ..ProcessOptions::new(&self.agent_dir)
        };
        OpenOptions { process, externalgrpc: externalgrpc::Options::default(), clock: system_clock() }
    }

    /// Whether the settings make sense together; to be asked before a port is bound.
    ///
    /// # Errors
    /// [`StartError::Settings`] names the first that does not.
    pub fn check(&self) -> Result<(), StartError> {
        check_names(&self.provider).map_err(|error| StartError::Settings(error.to_string()))?;
        for spec in &self.provider {
            spec.check()?;
        }
        let milliseconds = Duration::from_millis;
        let rules = [
            (self.scaler_round >= milliseconds(100), "--scaler-round must be at least 100ms"),
            (self.scaler_round <= milliseconds(10_000), "--scaler-round must be at most 10s"),
            // A third of it passes between renewals, and no call may outlive it.
            (self.scaler_lease >= CALL_LIMIT * 2, "--scaler-lease must be at least 10s"),
            (self.scaler_lease <= milliseconds(600_000), "--scaler-lease must be at most 10m"),
            (self.scaler_list_every >= milliseconds(1_000), "--scaler-list-every must be at least 1s"),
            (self.scaler_keep_nodes >= milliseconds(3_600_000), "--scaler-keep-nodes must be at least 1h"),
            (self.scaler_max_streams >= 1, "--scaler-max-streams must be at least 1"),
            (self.scaler_people_reads >= 1, "--scaler-people-reads must be at least 1"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(StartError::Settings(rule.into())),
            None => Ok(()),
        }
    }
}

/// Reads FIRST/MOST.
fn calls(text: &str) -> Result<(f64, f64), String> {
    let numbers = text.split_once('/').and_then(|(first, most)| Some((first.parse().ok()?, most.parse().ok()?)));
    let fits = |(first, most): &(f64, f64)| (0.01..=*most).contains(first) && *most <= 10_000.0;
    numbers.filter(fits).ok_or_else(|| "must be FIRST/MOST, two rates from 0.01 to 10000, such as 10/100".into())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn parse(flags: &[&str]) -> Result<Settings, clap::Error> {
        Ok(Cli::try_parse_from([&["scaler"], flags].concat())?.settings)
    }

    #[test]
    fn the_defaults_make_sense() {
        Cli::command().debug_assert();
        let settings = parse(&[]).unwrap();
        settings.check().unwrap();
        assert_eq!(settings.provider_calls, (10.0, 100.0));
        assert_eq!(settings.scaler_keep_nodes, Duration::from_secs(7 * 86_400));
    }

    #[test]
    fn settings_that_do_not_go_together_are_named() {
        let error = parse(&["--scaler-lease", "5s"]).unwrap().check().unwrap_err();
        assert_eq!(error.to_string(), "--scaler-lease must be at least 10s");
        assert!(parse(&["--provider", "a=process,a=process"]).unwrap().check().is_err(), "a name stands once");
        for bad in ["5", "9/3", "0/3", "a/b", "1/NaN"] {
            assert!(parse(&["--provider-calls", bad]).is_err(), "{bad}");
        }
    }
}
