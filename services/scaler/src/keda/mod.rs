//! `externalscaler.ExternalScaler`: answers KEDA, which scales something else than our own pools by what our queues hold.
//!
//! - The value of the metric is the number of tasks that want an orchestrator or have one: what waits in queues that are not paused, and
//!   what runs. Tasks that run count, or a fleet would shrink under its own work. `targetWaiting` says how many of them there may be for each
//!   replica; without it 1, and for a pool as many as one of its nodes has slots.
//! - `GetMetricSpec` answers from its own metadata and from memory, whatever is down. For a pool of which nothing is known yet it answers 1.
//! - `IsActive` and `GetMetrics` answer from the figures that were last read, however old they are; the header [`AGE`] tells how old.
//!   What was never read is UNAVAILABLE, and what the database does not have is NOT_FOUND: KEDA then keeps the size that there is.

mod figures;
mod subject;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use millrace_proto::foreign::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef, external_scaler_server::ExternalScaler,
};
use millrace_runtime::{shutdown::Shutdown, status::Fault};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Response, Status, metadata::MetadataValue};

pub(crate) use figures::Figures;
use subject::{Subject, Trigger};

/// The header of an answer that tells how old the figures behind it are, in milliseconds.
pub const AGE: &str = "millrace-figures-age-ms";

/// Answers KEDA.
pub(crate) struct Keda {
    pub(crate) figures: Figures,
    pub(crate) shutdown: Shutdown,
    /// Bounds the streams.
    pub(crate) seats: Arc<Semaphore>,
}

#[tonic::async_trait]
impl ExternalScaler for Keda {
    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        let trigger = Trigger::read(Some(request.get_ref()))?;
        let figure = self.figures.of(&trigger.subject).await?;
        Ok(aged(IsActiveResponse { result: figure.outstanding > 0.0 }, figure.age))
    }

    type StreamIsActiveStream = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let trigger = Trigger::read(Some(request.get_ref()))?;
        let Ok(seat) = self.seats.clone().try_acquire_owned() else {
            let message = "too many streams of this kind are open";
            return Err(Fault::exhausted("TOO_MANY_WATCHERS", message, Duration::from_secs(10)).into());
        };
        self.figures.ask(&trigger.subject)?;
        let watcher = Watcher {
            revisions: self.figures.revisions(),
            figures: self.figures.clone(),
            subject: trigger.subject,
            last: None,
            _seat: seat,
        };
        let changes = stream::unfold(watcher, |mut watcher| async move { Some((watcher.next().await?, watcher)) });
        let stop = self.shutdown.clone();
        Ok(Response::new(Box::pin(changes.take_until(async move { stop.draining().await }).map(Ok))))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let trigger = Trigger::read(Some(request.get_ref()))?;
        // That there is no room to remember it is no reason not to answer.
        let _ = self.figures.ask(&trigger.subject);
        let slots = match &trigger.subject {
            Subject::Pool(pool) => self.figures.slots(pool).map(f64::from),
            Subject::Queues(_) => None,
        };
        let target = trigger.target.or(slots).unwrap_or(1.0);
        #[expect(deprecated, reason = "older releases of KEDA read only the whole number")]
        let spec = MetricSpec {
            metric_name: trigger.metric(),
            target_size: (target.round() as i64).max(1),
            target_size_float: target,
        };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        let request = request.into_inner();
        let trigger = Trigger::read(request.scaled_object_ref.as_ref())?;
        let figure = self.figures.of(&trigger.subject).await?;
        let metric_name = match request.metric_name.is_empty() {
            true => trigger.metric(),
            false => request.metric_name,
        };
        #[expect(deprecated, reason = "older releases of KEDA read only the whole number")]
        let value = MetricValue {
            metric_name,
            metric_value: figure.outstanding.ceil() as i64,
            metric_value_float: figure.outstanding,
        };
        Ok(aged(GetMetricsResponse { metric_values: vec![value] }, figure.age))
    }
}

/// Who hears whether there is work, whenever that changes.
struct Watcher {
    revisions: watch::Receiver<u64>,
    figures: Figures,
    subject: Subject,
    last: Option<bool>,
    _seat: OwnedSemaphorePermit,
}

impl Watcher {
    /// The next change; the first figures are one. What cannot be told changes nothing.
    async fn next(&mut self) -> Option<IsActiveResponse> {
        loop {
            self.revisions.mark_unchanged();
            // Asked anew each time, so that what is watched is not forgotten.
            let _ = self.figures.ask(&self.subject);
            if let Some(Ok(figure)) = self.figures.now(&self.subject) {
                let result = figure.outstanding > 0.0;
                if self.last.replace(result) != Some(result) {
                    return Some(IsActiveResponse { result });
                }
            }
            self.revisions.changed().await.ok()?;
        }
    }
}

fn aged<T>(message: T, age: Duration) -> Response<T> {
    let mut response = Response::new(message);
    if let Ok(age) = MetadataValue::try_from(age.as_millis().to_string()) {
        response.metadata_mut().insert(AGE, age);
    }
    response
}

fn no_queue(queue: &str) -> Fault {
    Fault::not_found("QUEUE_NOT_FOUND", format!("there is no queue `{queue}`")).with_metadata("queue", queue)
}

fn no_pool(pool: &str) -> Fault {
    Fault::not_found("POOL_NOT_FOUND", format!("there is no pool `{pool}`")).with_metadata("pool", pool)
}
