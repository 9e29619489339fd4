//! Admission: how many calls may wait at a time over all connections, and for how long.
//!
//! A call that finds no place is answered at once, without being read, with RESOURCE_EXHAUSTED and a RetryInfo, so that
//! overload costs less than work. A place is held until the answer's headers: the handler's own time for a unary call,
//! the opening of a stream and no more. The timeout frees the place of a caller that never sends its request.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::ServeOptions;
use crate::{
    metrics::{GrpcMetrics, Lane, lane},
    status::Fault,
};

/// Wraps a service in [`Admission`]. Clones share their places.
#[derive(Clone, Debug)]
pub(super) struct AdmissionLayer {
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    timeout: Duration,
    retry_after: Duration,
    metrics: Arc<GrpcMetrics>,
}

impl AdmissionLayer {
    pub(super) fn new(options: &ServeOptions, metrics: Arc<GrpcMetrics>) -> AdmissionLayer {
        let places = options.max_concurrent_requests.min(Semaphore::MAX_PERMITS);
        AdmissionLayer {
            calls: Arc::new(Semaphore::new(places)),
            streams: Arc::new(Semaphore::new(places)),
            timeout: options.request_timeout,
            retry_after: options.retry_after,
            metrics,
        }
    }

    /// A place for a call of this path, or the refusal to send.
    fn admit(&self, path: &str) -> Result<Option<OwnedSemaphorePermit>, Fault> {
        let places = match lane(path) {
            Lane::Free => return Ok(None),
            Lane::Streams => &self.streams,
            Lane::Calls => &self.calls,
        };
        places.clone().try_acquire_owned().map(Some).map_err(|_| {
            self.metrics.refuse("overload");
            Fault::exhausted("OVERLOADED", "this replica has as many calls as it can bear", self.retry_after)
        })
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission { inner, layer: self.clone() }
    }
}

/// Admits calls to the inner service, or refuses them.
#[derive(Clone, Debug)]
pub(super) struct Admission<S> {
    inner: S,
    layer: AdmissionLayer,
}

impl<S, B, R> Service<http::Request<B>> for Admission<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
    R: axum::body::HttpBody<Data = axum::body::Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let permit = match self.layer.admit(request.uri().path()) {
            Ok(permit) => permit,
            Err(fault) => return Box::pin(std::future::ready(Ok(refusal(fault)))),
        };
        let timeout = self.layer.timeout;
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _place = permit;
            match tokio::time::timeout(timeout, answer).await {
                Ok(Ok(response)) => Ok(response.map(Body::new)),
                Err(_) => Ok(refusal(too_slow(timeout))),
            }
        })
    }
}

fn too_slow(timeout: Duration) -> Fault {
    let message = format!("the answer did not begin within {} ms", timeout.as_millis());
    Fault::of(Code::DeadlineExceeded, message).with_reason("SERVER_TIMEOUT")
}

fn refusal(fault: Fault) -> http::Response<Body> {
    Status::from(fault).into_http()
}
