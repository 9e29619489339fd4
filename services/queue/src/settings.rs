//! How the queue service is set up.

use std::time::Duration;

use millrace_core::matcher::Limits;
use millrace_runtime::config::duration;

use crate::{HostSettings, StartError};

/// How the queue service is set up.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Waiting tasks that the matcher of one queue keeps in memory at most
    #[arg(long, env = "MILLRACE_QUEUE_WINDOW", default_value_t = 65_536, value_name = "TASKS")]
    pub queue_window: usize,
    /// Waiting tasks of one tenant and priority that the matcher of one queue keeps in memory at most
    #[arg(long, env = "MILLRACE_QUEUE_LANE", default_value_t = 8_192, value_name = "TASKS")]
    pub queue_lane: usize,
    /// How long a match may go without an answer before its task is matched anew
    #[arg(long, env = "MILLRACE_QUEUE_PATIENCE", default_value = "2s", value_parser = duration, value_name = "DURATION")]
    pub queue_patience: Duration,
    /// How often what waits is read again in full, for tasks of which no distributor told the matcher
    #[arg(long, env = "MILLRACE_QUEUE_SWEEP", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub queue_sweep: Duration,
    /// How long the ownership of a queue outlives its last renewal, in served time
    #[arg(long, env = "MILLRACE_QUEUE_LEASE", default_value = "5s", value_parser = duration, value_name = "DURATION")]
    pub queue_lease: Duration,
    /// How long this service gives its queues up for, at first, when no distributor reaches it
    #[arg(long, env = "MILLRACE_QUEUE_HOLD_BACK", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub queue_hold_back: Duration,
    /// Database reads of all matchers that run at a time
    #[arg(long, env = "MILLRACE_QUEUE_MATCHER_READS", default_value_t = 4, value_name = "COUNT")]
    pub queue_matcher_reads: usize,
    /// Callers of WatchQueues at a time; more are turned away
    #[arg(long, env = "MILLRACE_QUEUE_MAX_WATCHERS", default_value_t = 256, value_name = "COUNT")]
    pub queue_max_watchers: usize,
    /// Reads for people that run at a time; more wait, and are turned away after a while
    #[arg(long, env = "MILLRACE_QUEUE_PEOPLE_READS", default_value_t = 4, value_name = "COUNT")]
    pub queue_people_reads: usize,
}

impl Settings {
    /// The settings of the service's host.
    pub fn host(&self) -> HostSettings {
        let limits = Limits {
            window: self.queue_window,
            lane: self.queue_lane,
            patience: self.queue_patience,
            sweep: self.queue_sweep,
            ..Limits::default()
        };
        HostSettings {
            limits,
            lease_ttl: self.queue_lease,
            hold_back: self.queue_hold_back,
            reads: self.queue_matcher_reads,
            ..HostSettings::default()
        }
    }

    /// Whether the settings make sense together; to be asked before a port is bound.
    ///
    /// # Errors
    /// [`StartError::Settings`] names the first that does not.
    pub fn check(&self) -> Result<(), StartError> {
        let host = self.host();
        let rules = [
            (self.queue_lane >= 2, "--queue-lane must be at least 2"),
            (self.queue_window >= self.queue_lane, "--queue-window must not be below --queue-lane"),
            (self.queue_patience >= Duration::from_millis(100), "--queue-patience must be at least 100ms"),
            (self.queue_sweep >= Duration::from_secs(1), "--queue-sweep must be at least 1s"),
            (self.queue_lease >= host.round * 3, "--queue-lease must be at least 3s"),
            (self.queue_hold_back <= host.max_hold_back, "--queue-hold-back must be at most 5m"),
            (self.queue_matcher_reads >= 1, "--queue-matcher-reads must be at least 1"),
            (self.queue_people_reads >= 1, "--queue-people-reads must be at least 1"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(StartError::Settings(rule)),
            None => Ok(()),
        }
    }
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

    fn parse(flags: &[&str]) -> Settings {
        Cli::parse_from([&["queue"], flags].concat()).settings
    }

    #[test]
    fn the_defaults_are_those_of_the_host() {
        Cli::command().debug_assert();
        let settings = parse(&[]);
        assert!(settings.check().is_ok());
        assert_eq!(settings.host(), HostSettings::default());
    }

    #[test]
    fn settings_that_do_not_go_together_are_named() {
        let error = parse(&["--queue-window", "10"]).check().unwrap_err();
        assert_eq!(error.to_string(), "--queue-window must not be below --queue-lane");
        assert!(parse(&["--queue-lease", "1s"]).check().is_err());
    }
}
