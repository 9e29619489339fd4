//! The agent's flags.

use std::{path::PathBuf, time::Duration};

use millrace_core::id::is_name;

use crate::{
    InvalidOptions, Options,
    agent::{NodeSettings, ProcessOptions},
    parse_duration,
};

/// What the contract allows of labels: how many, and the bytes of a key and of a value.
const LABELS: (usize, usize, usize) = (32, 63, 255);

/// How the agent is set up.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// A distributor; repeat it for several replicas, which are taken in turn
    #[arg(
        long = "endpoint",
        env = "MILLRACE_ENDPOINT",
        value_name = "URI",
        value_delimiter = ',',
        value_parser = with_scheme,
        default_value = "http://127.0.0.1:7600"
    )]
    pub endpoints: Vec<String>,

    /// A name for people [default: host name and process id]
    #[arg(long, env = "MILLRACE_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// The queues to serve
    #[arg(long, env = "MILLRACE_QUEUES", value_name = "QUEUE", value_delimiter = ',', default_value = "default")]
    pub queues: Vec<String>,

    /// The executors of specs that it runs commands for
    #[arg(long, env = "MILLRACE_EXECUTORS", value_name = "NAME", value_delimiter = ',', default_value = "process")]
    pub executors: Vec<String>,

    /// How many commands run at a time [default: number of CPUs]
    #[arg(long, env = "MILLRACE_SLOTS", value_name = "N")]
    pub slots: Option<u32>,

    /// What this agent offers, to be matched with tasks' labels
    #[arg(long, env = "MILLRACE_LABELS", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    pub labels: Vec<(String, String)>,

    /// How long its leases outlive its last heartbeat
    #[arg(long, env = "MILLRACE_LEASE_TTL", value_name = "DURATION", value_parser = parse_duration, default_value = "15s")]
    pub lease_ttl: Duration,

    /// How long a command has between SIGTERM and SIGKILL
    #[arg(long, env = "MILLRACE_KILL_GRACE", value_name = "DURATION", value_parser = parse_duration, default_value = "10s")]
    pub kill_grace: Duration,

    /// On shutdown, how long commands may go on before they are stopped and handed back
    #[arg(long, env = "MILLRACE_DRAIN_TIMEOUT", value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    pub drain_timeout: Duration,

    /// Bytes of output kept with a result
    #[arg(long, env = "MILLRACE_OUTPUT_TAIL_BYTES", value_name = "BYTES", default_value_t = 16_384)]
    pub output_tail_bytes: usize,

    /// A directory of this agent alone, where it keeps its session's id, so that a restart closes the old session
    #[arg(long, env = "MILLRACE_STATE_DIR", value_name = "PATH")]
    pub state_dir: Option<PathBuf>,

    /// A shell command that succeeds while this machine is fit for work; while it fails no work is asked for
    #[arg(long, env = "MILLRACE_HEALTH_COMMAND", value_name = "COMMAND")]
    pub health_command: Option<String>,

    /// What makes this agent a node of a pool.
    #[command(flatten)]
    pub node: NodeSettings,
}

/// An endpoint as the CLI takes them too: HOST:PORT is http://HOST:PORT.
pub(super) fn with_scheme(text: &str) -> Result<String, std::convert::Infallible> {
    let is_pair = !text.contains("://") && text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if is_pair { format!("http://{text}") } else { text.to_owned() })
}

impl Settings {
    /// Whether the agent can start with these settings, as far as can be told without starting it.
    ///
    /// # Errors
    /// The first setting that is out of its bounds, by the name of its option.
    pub fn check(&self) -> Result<(), InvalidOptions> {
        self.options().validate()?;
        let check = |good: bool, option, problem: String| match good {
            true => Ok(()),
            false => Err(InvalidOptions { option, problem }),
        };
        check(!self.executors.is_empty(), "executors", "at least one is needed".into())?;
        for executor in &self.executors {
            check(is_name(executor), "executors", format!("`{executor}` is not an executor's name"))?;
        }
        let (most, key_bytes, value_bytes) = LABELS;
        check(self.labels.len() <= most, "labels", format!("at most {most} are allowed"))?;
        for (key, value) in &self.labels {
            let good =
                key.len() <= key_bytes && value.len() <= value_bytes && !key.contains('\0') && !value.contains('\0');
            let problem = format!("a key has at most {key_bytes} bytes and a value {value_bytes}: `{key:.63}`");
            check(good, "labels", problem)?;
        }
        // A node's session has one label more.
        let node = self.node.node_id.is_some() || self.node.instance_id.is_some();
        check(!node || self.labels.len() < most, "labels", format!("at most {} are allowed on a node", most - 1))?;
        self.node.check()?;
        let usable = self.state_dir.as_ref().is_none_or(|dir| !dir.exists() || dir.is_dir());
        check(usable, "state_dir", "is not a directory".into())
    }

    /// The client's options; the session's file is not among them yet.
    pub fn options(&self) -> Options {
        let defaults = Options::default();
        Options {
            endpoints: self.endpoints.clone(),
            name: self.name.clone().unwrap_or_else(default_name),
            queues: self.queues.clone(),
            slots: self.slots.unwrap_or_else(cpus),
            labels: self.labels.iter().cloned().collect(),
            lease_ttl: self.lease_ttl,
            build: concat!("millrace-agent ", env!("CARGO_PKG_VERSION")).into(),
            output_tail_bytes: self.output_tail_bytes,
            output_ring_bytes: defaults.output_ring_bytes.max(self.output_tail_bytes),
            drain_timeout: self.drain_timeout,
            // The process is killed after its grace; the rest is for its last output.
            stop_limit: self.kill_grace.saturating_add(Duration::from_secs(10)),
            ..defaults
        }
    }

    pub(crate) fn process_options(&self) -> ProcessOptions {
        ProcessOptions {
            executors: self.executors.clone(),
            kill_grace: self.kill_grace,
            health_command: self.health_command.clone(),
            ..ProcessOptions::default()
        }
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is written key=value".into()),
    }
}

fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let host = match host.trim() {
        "" => "agent",
        host => &host[..host.floor_char_boundary(100)],
    };
    format!("{host}-{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    fn parse(args: &[&str]) -> Result<Settings, clap::Error> {
        let matches = Settings::augment_args(Command::new("agent")).try_get_matches_from(args)?;
        Settings::from_arg_matches(&matches)
    }

    #[test]
    fn a_host_and_port_is_an_endpoint() {
        let parsed = parse(&["agent", "--endpoint", "10.0.0.5:7601,https://b:1"]).unwrap();
        assert_eq!(parsed.endpoints, ["http://10.0.0.5:7601", "https://b:1"]);
        parsed.check().unwrap();
    }

    #[test]
    fn defaults_make_valid_options() {
        let settings = parse(&["agent"]).unwrap();
        let options = settings.options();
        options.validate().unwrap();
        assert_eq!(options.lease_ttl, Duration::from_secs(15));
        assert_eq!(options.queues, ["default"]);
        assert!(options.name.ends_with(&format!("-{}", std::process::id())));
        assert!(settings.process_options().kill_grace < options.stop_limit);
    }

    #[test]
    fn what_the_agent_would_not_start_with_is_named() {
        let problem =
            |args: &[&str]| parse(&[&["agent"], args].concat()).unwrap().check().err().map(|error| error.option);
        assert_eq!(problem(&[]), None);
        assert_eq!(problem(&["--slots", "0"]), Some("slots"));
        assert_eq!(problem(&["--lease-ttl", "1s"]), Some("lease_ttl"));
        assert_eq!(problem(&["--executors", "Bad Name"]), Some("executors"));
        assert_eq!(problem(&["--labels", &format!("key={}", "x".repeat(256))]), Some("labels"));
        assert_eq!(problem(&["--state-dir", "/dev/null"]), Some("state_dir"));
    }

    #[test]
    fn lists_are_repeated_or_joined_by_commas() {
        let settings =
            parse(&["agent", "--queues", "a,b", "--labels", "os=linux", "--labels", "arch=x,gpu=", "--slots", "3"])
                .unwrap();
        assert_eq!(settings.queues, ["a", "b"]);
        let options = settings.options();
        let labels: Vec<_> = options.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(labels, [("arch", "x"), ("gpu", ""), ("os", "linux")]);
        assert!(parse(&["agent", "--labels", "novalue"]).is_err());
        assert!(parse(&["agent", "--lease-ttl", "15"]).is_err());
    }
}
