//! Rate, errors and duration of gRPC calls, per method.
//!
//! A [`Recorder`] is a classifier for tower-http's trace layer, which shows it each call's start, its headers and its
//! trailers. A call is counted once, when its code is known: at once when its headers carry it, else at the end of its
//! stream, else as CANCELLED when it is dropped before. Its duration, recorded with it, is the time to the headers of
//! the answer: for a unary call the whole of it, for a stream the time to open, because how long a stream stays open
//! says nothing about speed.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use http::HeaderMap;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tonic::{Code, Status};
use tower_http::classify::{ClassifiedResponse, ClassifyEos, ClassifyResponse, MakeClassifier};

use super::{
    SECONDS_BUCKETS, code_name,
    methods::{Method, method},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    service: &'static str,
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    service: &'static str,
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// What is counted about gRPC calls and connections.
#[derive(Debug)]
pub struct GrpcMetrics {
    requests: Family<CodeLabels, Counter>,
    durations: Family<MethodLabels, Histogram>,
    open: Family<MethodLabels, Gauge>,
    refused: Family<ReasonLabels, Counter>,
    /// Connections that are open.
    pub(crate) connections: Gauge,
}

impl GrpcMetrics {
    pub(super) fn register(registry: &mut Registry) -> GrpcMetrics {
        let durations: fn() -> Histogram = || Histogram::new(SECONDS_BUCKETS);
        let metrics = GrpcMetrics {
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            open: Family::default(),
            refused: Family::default(),
            connections: Gauge::default(),
        };
        registry.register("grpc_requests", "gRPC calls that ended, by code", metrics.requests.clone());
        registry.register(
            "grpc_request_duration_seconds",
            "Time from a gRPC call's arrival to the headers of its answer",
            metrics.durations.clone(),
        );
        registry.register("grpc_requests_open", "gRPC calls and streams that are open", metrics.open.clone());
        registry.register(
            "grpc_refused",
            "Calls and connections refused to protect the process, by reason",
            metrics.refused.clone(),
        );
        registry.register("grpc_connections", "gRPC connections that are open", metrics.connections.clone());
        metrics
    }

    /// Counts a call or connection that was refused to protect the process.
    pub(crate) fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }
}

/// A call that failed, as far as the trace layer is concerned.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The gRPC code.
    pub(crate) code: Code,
    /// The status's message.
    pub(crate) message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", code_name(self.code), self.message)
    }
}

/// Records calls in a [`GrpcMetrics`]: the classifier to give to the trace layer.
#[derive(Clone, Debug)]
pub(crate) struct Recorder(pub(crate) Arc<GrpcMetrics>);

impl MakeClassifier for Recorder {
    type Classifier = Call;
    type FailureClass = Failure;
    type ClassifyEos = CallEnd;

    fn make_classifier<B>(&self, request: &http::Request<B>) -> Call {
        let method = method(request.uri().path());
        let labels = MethodLabels { service: method.service, method: method.name };
        self.0.open.get_or_create(&labels).inc();
        let record = Record {
            metrics: self.0.clone(),
            method,
            start: Instant::now(),
            duration: OnceLock::new(),
            code: OnceLock::new(),
        };
        Call { record: Arc::new(record) }
    }
}

/// A call that has not been answered. The trace layer wants it to be `Clone`; clones are the same call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    record: Arc<Record>,
}

impl ClassifyResponse for Call {
    type FailureClass = Failure;
    type ClassifyEos = CallEnd;

    fn classify_response<B>(self, response: &http::Response<B>) -> ClassifiedResponse<Failure, CallEnd> {
        self.record.answered();
        match Status::from_header_map(response.headers()) {
            Some(status) => ClassifiedResponse::Ready(self.record.end(&status)),
            None => ClassifiedResponse::RequiresEos(CallEnd { record: self.record }),
        }
    }

    fn classify_error<E>(self, error: &E) -> Failure
    where
        E: fmt::Display + 'static,
    {
        self.record.fail(error)
    }
}

/// A call whose answer has begun.
#[derive(Debug)]
pub(crate) struct CallEnd {
    record: Arc<Record>,
}

impl ClassifyEos for CallEnd {
    type FailureClass = Failure;

    fn classify_eos(self, trailers: Option<&HeaderMap>) -> Result<(), Failure> {
        match trailers.and_then(Status::from_header_map) {
            Some(status) => self.record.end(&status),
            None => Err(self.record.fail(&"the answer has no status")),
        }
    }

    fn classify_error<E>(self, error: &E) -> Failure
    where
        E: fmt::Display + 'static,
    {
        self.record.fail(error)
    }
}

/// Counts one call, exactly once, when dropped.
#[derive(Debug)]
struct Record {
    metrics: Arc<GrpcMetrics>,
    method: Method,
    start: Instant,
    duration: OnceLock<Duration>,
    code: OnceLock<Code>,
}

impl Record {
    fn answered(&self) {
        self.duration.get_or_init(|| self.start.elapsed());
    }

    fn end(&self, status: &Status) -> Result<(), Failure> {
        let code = *self.code.get_or_init(|| status.code());
        if code == Code::Ok { Ok(()) } else { Err(Failure { code, message: status.message().to_owned() }) }
    }

    fn fail(&self, error: &dyn fmt::Display) -> Failure {
        Failure { code: *self.code.get_or_init(|| Code::Unknown), message: error.to_string() }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // A call that its caller gave up has waited too: leaving it out would make a slow method look fast.
        self.answered();
        let Method { service, name: method } = self.method;
        let code = code_name(self.code.get().copied().unwrap_or(Code::Cancelled));
        let labels = MethodLabels { service, method };
        let duration = self.duration.get().copied().unwrap_or_default();
        self.metrics.durations.get_or_create(&labels).observe(duration.as_secs_f64());
        self.metrics.requests.get_or_create(&CodeLabels { service, method, code }).inc();
        self.metrics.open.get_or_create(&labels).dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const CHECK: &str = "/grpc.health.v1.Health/Check";

    fn call(metrics: &Metrics, path: &str) -> Call {
        let request = http::Request::builder().uri(path).body(()).unwrap();
        Recorder(metrics.grpc()).make_classifier(&request)
    }

    fn trailers(code: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), code.parse().unwrap())])
    }

    #[track_caller]
    fn assert_shows(metrics: &Metrics, line: &str) {
        let text = metrics.encode();
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }

    #[test]
    fn a_unary_call_is_counted_with_the_code_of_its_trailers() {
        let metrics = Metrics::new();
        let ClassifiedResponse::RequiresEos(end) = call(&metrics, CHECK).classify_response(&http::Response::new(()))
        else {
            panic!("no status yet")
        };
        assert_shows(&metrics, r#"millrace_grpc_requests_open{service="grpc.health.v1.Health",method="Check"} 1"#);
        end.classify_eos(Some(&trailers("0"))).unwrap();
        assert_shows(
            &metrics,
            r#"millrace_grpc_requests_total{service="grpc.health.v1.Health",method="Check",code="OK"} 1"#,
        );
        assert_shows(&metrics, r#"millrace_grpc_requests_open{service="grpc.health.v1.Health",method="Check"} 0"#);
    }

    #[test]
    fn an_error_in_the_headers_ends_the_call() {
        let metrics = Metrics::new();
        let mut response = http::Response::new(());
        *response.headers_mut() = trailers("5");
        let ClassifiedResponse::Ready(Err(failure)) = call(&metrics, CHECK).classify_response(&response) else {
            panic!("an error")
        };
        assert_eq!(failure.code, Code::NotFound);
        assert_shows(
            &metrics,
            r#"millrace_grpc_requests_total{service="grpc.health.v1.Health",method="Check",code="NOT_FOUND"} 1"#,
        );
    }

    #[test]
    fn a_call_that_is_dropped_was_cancelled_and_a_free_path_is_no_label() {
        let metrics = Metrics::new();
        drop(call(&metrics, "/some.callers/FreeText"));
        assert_shows(
            &metrics,
            r#"millrace_grpc_requests_total{service="unknown",method="unknown",code="CANCELLED"} 1"#,
        );
    }
}
