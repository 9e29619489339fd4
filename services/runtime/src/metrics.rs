//! The metrics of this process and how they are shown.
//!
//! Every name starts with `millrace_`; durations are in seconds. A label's values come from a closed set (methods,
//! codes, queues), never from a caller's free text.

mod exposition;
mod grpc;
mod methods;

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    metrics::info::Info,
    registry::{Metric, Registry},
};

pub use self::grpc::GrpcMetrics;
pub(crate) use self::grpc::{Failure, Recorder};
pub(crate) use self::methods::{Lane, lane};

/// Starts every metric's name.
pub const PREFIX: &str = "millrace";

/// Buckets for anything from a lookup to a call that waits, in seconds.
pub const SECONDS_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The media type of OpenMetrics text.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of Prometheus text.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of this process. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    groups: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// No metrics yet.
    pub fn new() -> Metrics {
        let inner = Inner { registry: Registry::with_prefix(PREFIX), groups: HashMap::new() };
        Metrics { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Adds a metric and returns it. The name gets the prefix `millrace_` and, for a counter, the suffix `_total`; the
    /// help gets a full stop. A name must be registered once in a process: use [`Metrics::group`] where two services of
    /// one process may register the same.
    pub fn register<M>(&self, name: &str, help: &str, metric: M) -> M
    where
        M: Metric + Clone,
    {
        self.lock().registry.register(name, help, metric.clone());
        metric
    }

    /// The group of metrics of type `G`, registered by `make` when the process first asks for it. So a matcher that is
    /// hosted by two services of one process counts in the same series. `make` must not call this object.
    pub fn group<G>(&self, make: impl FnOnce(&mut Registry) -> G) -> Arc<G>
    where
        G: Send + Sync + 'static,
    {
        let mut inner = self.lock();
        let Inner { registry, groups } = &mut *inner;
        let known = groups.get(&TypeId::of::<G>()).cloned();
        if let Some(group) = known.and_then(|group| group.downcast::<G>().ok()) {
            return group;
        }
        let group = Arc::new(make(registry));
        groups.insert(TypeId::of::<G>(), group.clone());
        group
    }

    /// Shows which build this is, as `millrace_build_info{version="…"} 1`.
    pub fn set_build(&self, version: &str) {
        let info = Info::new(vec![("version", version.to_owned())]);
        self.lock().registry.register("build", "The build that runs", info);
    }

    /// The metrics of gRPC calls, which are also the layer that records them.
    pub fn grpc(&self) -> Arc<GrpcMetrics> {
        self.group(GrpcMetrics::register)
    }

    /// All metrics in the OpenMetrics text format ([`OPENMETRICS`]).
    pub fn encode_openmetrics(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.lock().registry);
        text
    }

    /// All metrics in the Prometheus text format ([`PROMETHEUS`]).
    pub fn encode(&self) -> String {
        exposition::to_prometheus(&self.encode_openmetrics())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a gRPC code as the protocol spells it.
pub fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;

    struct Matcher {
        waiting: Gauge,
    }

    impl Matcher {
        fn register(registry: &mut Registry) -> Matcher {
            let waiting = Gauge::default();
            registry.register("matcher_waiting", "Entries waiting", waiting.clone());
            Matcher { waiting }
        }
    }

    #[test]
    fn a_registered_counter_is_shown() {
        let metrics = Metrics::new();
        let claims: Counter = metrics.register("claims", "Claims made", Counter::default());
        claims.inc_by(3);
        metrics.set_build("1.2.3");
        let text = metrics.encode();
        assert!(text.contains("# TYPE millrace_claims_total counter\nmillrace_claims_total 3\n"), "{text}");
        assert!(text.contains("millrace_build_info{version=\"1.2.3\"} 1\n"), "{text}");
        assert!(metrics.encode_openmetrics().ends_with("# EOF\n"));
    }

    #[test]
    fn two_hosts_of_one_group_count_in_the_same_series() {
        let metrics = Metrics::new();
        metrics.group(Matcher::register).waiting.inc();
        metrics.clone().group(Matcher::register).waiting.inc();
        let text = metrics.encode();
        assert_eq!(text.matches("# TYPE millrace_matcher_waiting").count(), 1, "{text}");
        assert!(text.contains("millrace_matcher_waiting 2\n"), "{text}");
    }
}
