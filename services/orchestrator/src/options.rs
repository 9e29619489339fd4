//! How an orchestrator is set up.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// How an orchestrator is set up. Start from `Options::default()` and set what differs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Distributor replicas, as URIs such as `http://127.0.0.1:7601`. At least one; taken in turn.
    pub endpoints: Vec<String>,
    /// A name for people. 1 to 128 bytes.
    pub name: String,
    /// The queues to serve, 1 to 64.
    pub queues: Vec<String>,
    /// How many attempts it can hold, undelivered results included; 1 to 100,000.
    pub slots: u32,
    /// What it offers, to be matched with tasks' labels.
    pub labels: BTreeMap<String, String>,
    /// How long its leases outlive its last heartbeat; 5 s to 10 min.
    pub lease_ttl: Duration,
    /// Where the session's id is kept, so that the next start closes this session when it did not end in order. One
    /// file belongs to one orchestrator.
    pub previous_session_file: Option<PathBuf>,
    /// The build, for people. This crate's version by default.
    pub build: String,
    /// Bytes of output kept with a result; more than the service keeps is cut there. At most `output_ring_bytes`.
    pub output_tail_bytes: usize,
    /// Bytes of live output that each running attempt keeps.
    pub output_ring_bytes: usize,
    /// On shutdown: how long running attempts may go on before they are stopped and handed back.
    pub drain_timeout: Duration,
    /// How long an attempt may outstay an order to stop before its future is dropped.
    pub stop_limit: Duration,
    /// On shutdown: how long to wait for results to be recorded.
    pub deliver_timeout: Duration,
    /// How often the executor is asked whether it is fit for work.
    pub check_interval: Duration,
    /// How long it may take to answer.
    pub check_timeout: Duration,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long to wait for the answer to Hello.
    pub welcome_timeout: Duration,
    /// The longest wait before the first reconnect; doubled with each failure.
    pub min_backoff: Duration,
    /// The longest wait before any reconnect.
    pub max_backoff: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:7600".into()],
            name: "orchestrator".into(),
            queues: vec!["default".into()],
            slots: 1,
            labels: BTreeMap::new(),
            lease_ttl: Duration::from_secs(15),
            previous_session_file: None,
            build: concat!("millrace-orchestrator ", env!("CARGO_PKG_VERSION")).into(),
            output_tail_bytes: 16 * 1024,
            output_ring_bytes: 1024 * 1024,
            drain_timeout: Duration::from_secs(30),
            stop_limit: Duration::from_secs(30),
            deliver_timeout: Duration::from_secs(10),
            check_interval: Duration::from_secs(10),
            check_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            welcome_timeout: Duration::from_secs(10),
            min_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(5),
        }
    }
}

/// An option is out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {problem}")]
pub struct InvalidOptions {
    /// The option's name.
    pub option: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Options {
    /// Checks what can be checked without a connection.
    ///
    /// # Errors
    /// The first option that is out of its bounds.
    pub fn validate(&self) -> Result<(), InvalidOptions> {
        let check = |good: bool, option, problem: &str| match good {
            true => Ok(()),
            false => Err(InvalidOptions { option, problem: problem.into() }),
        };
        check(!self.endpoints.is_empty(), "endpoints", "at least one is needed")?;
        for endpoint in &self.endpoints {
            let uri: Result<http::Uri, _> = endpoint.parse();
            let good = uri.is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
            check(good, "endpoints", &format!("`{endpoint}` is not a URI such as http://127.0.0.1:7601"))?;
        }
        check((1..=128).contains(&self.name.len()), "name", "1 to 128 bytes are needed")?;
        check((1..=64).contains(&self.queues.len()), "queues", "1 to 64 are needed")?;
        for queue in &self.queues {
            check(millrace_core::id::is_name(queue), "queues", &format!("`{queue}` is not a queue's name"))?;
        }
        check((1..=100_000).contains(&self.slots), "slots", "must be from 1 to 100000")?;
        let lease = Duration::from_secs(5)..=Duration::from_secs(600);
        check(lease.contains(&self.lease_ttl), "lease_ttl", "must be from 5 s to 10 min")?;
        let tail = self.output_tail_bytes <= self.output_ring_bytes;
        check(tail, "output_tail_bytes", "must not be more than output_ring_bytes")?;
        check(!self.check_interval.is_zero(), "check_interval", "must not be zero")?;
        let backoff = !self.min_backoff.is_zero() && self.min_backoff <= self.max_backoff;
        check(backoff, "min_backoff", "must not be zero nor more than max_backoff")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bounds_are_named() {
        let problem = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.validate().err().map(|error| error.option)
        };
        assert_eq!(problem(|_| {}), None);
        assert_eq!(problem(|o| o.endpoints.clear()), Some("endpoints"));
        assert_eq!(problem(|o| o.endpoints = vec!["127.0.0.1:7600".into()]), Some("endpoints"));
        assert_eq!(problem(|o| o.name.clear()), Some("name"));
        assert_eq!(problem(|o| o.queues = vec!["no such name".into()]), Some("queues"));
        assert_eq!(problem(|o| o.slots = 0), Some("slots"));
        assert_eq!(problem(|o| o.lease_ttl = Duration::from_secs(4)), Some("lease_ttl"));
        assert_eq!(problem(|o| o.output_tail_bytes = 1 << 21), Some("output_tail_bytes"));
        assert_eq!(problem(|o| o.max_backoff = Duration::ZERO), Some("min_backoff"));
    }
}
