//! Whether this process serves, told over `grpc.health.v1` and `/healthz` from one state.
//!
//! The service is written here rather than taken from tonic-health's reporter for two reasons: a Watch on a name that
//! is not known has to answer SERVICE_UNKNOWN and stay open, as the protocol says, and a Watch has to end when the
//! process drains, because a stream that never ends would hold every drain for its whole grace.

use std::{collections::BTreeSet, fmt, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server};

use crate::status::Fault;

/// The name under which the health service is served.
pub const SERVICE: &str = "grpc.health.v1.Health";

/// Whether the process serves, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It serves.
    Serving,
    /// The database does not answer, or has not answered yet.
    DatabaseDown,
    /// The process is stopping.
    Draining,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Serving => "ok",
            State::DatabaseDown => "the database does not answer",
            State::Draining => "draining",
        })
    }
}

/// The health of this process. Clones are the same state.
#[derive(Clone, Debug)]
pub struct Health {
    services: Arc<BTreeSet<String>>,
    facts: watch::Sender<Facts>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Facts {
    database: bool,
    draining: bool,
}

impl Facts {
    fn state(self) -> State {
        match self {
            Facts { draining: true, .. } => State::Draining,
            Facts { database: false, .. } => State::DatabaseDown,
            Facts { database: true, draining: false } => State::Serving,
        }
    }
}

impl Health {
    /// Health of the named services and of the process as a whole (the empty name). Nothing serves until
    /// [`Health::set_database`] says that the database answers.
    pub fn new(services: &[&str]) -> Health {
        let mut names: BTreeSet<String> = services.iter().map(|name| (*name).to_owned()).collect();
        names.insert(String::new());
        Health { services: Arc::new(names), facts: watch::Sender::new(Facts::default()) }
    }

    /// Says whether the database answers. Watchers hear of changes only.
    pub fn set_database(&self, up: bool) {
        self.change(|facts| facts.database = up);
    }

    /// Says that the process stops. There is no way back.
    pub fn set_draining(&self) {
        self.change(|facts| facts.draining = true);
    }

    /// Whether the process serves, and if not, why.
    pub fn state(&self) -> State {
        self.facts.borrow().state()
    }

    /// The `grpc.health.v1.Health` service, to add to the routes.
    pub fn service(&self) -> health_server::HealthServer<HealthService> {
        health_server::HealthServer::new(HealthService { health: self.clone() })
    }

    fn change(&self, apply: impl FnOnce(&mut Facts)) {
        self.facts.send_if_modified(|facts| {
            let before = *facts;
            apply(facts);
            if before.state() != facts.state() {
                tracing::info!(before = %before.state(), now = %facts.state(), "health");
            }
            before != *facts
        });
    }

    fn status_of(&self, service: &str, state: State) -> Option<ServingStatus> {
        self.services.contains(service).then_some(match state {
            State::Serving => ServingStatus::Serving,
            State::DatabaseDown | State::Draining => ServingStatus::NotServing,
        })
    }
}

/// Answers `grpc.health.v1.Health`.
#[derive(Debug)]
pub struct HealthService {
    health: Health,
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        let Some(status) = self.health.status_of(service, self.health.state()) else {
            return Err(Fault::not_found("UNKNOWN_SERVICE", "this process does not serve such a service").into());
        };
        Ok(Response::new(answer(status)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let states = state_changes(self.health.facts.subscribe());
        let health = self.health.clone();
        let statuses = states.map(move |state| {
            let status = health.status_of(&service, state).unwrap_or(ServingStatus::ServiceUnknown);
            Ok(answer(status))
        });
        Ok(Response::new(Box::pin(statuses)))
    }
}

/// The state now, then each change of it; ends after Draining. A watcher that falls behind misses states in between but
/// never the newest.
fn state_changes(facts: watch::Receiver<Facts>) -> impl Stream<Item = State> + Send {
    stream::unfold((facts, None::<State>), |(mut facts, last)| async move {
        if last == Some(State::Draining) {
            return None;
        }
        // An error means that the process's health is gone, and with it the process.
        let state = facts.wait_for(|facts| Some(facts.state()) != last).await.ok()?.state();
        Some((state, (facts, Some(state))))
    })
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tonic_health::pb::health_server::Health as _;

    use super::*;

    const QUEUE: &str = "millrace.queue.v1.QueueService";

    fn ask(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    async fn check(health: &Health, service: &str) -> Result<ServingStatus, tonic::Code> {
        let service_impl = HealthService { health: health.clone() };
        let answer = service_impl.check(ask(service)).await.map_err(|status| status.code())?;
        Ok(answer.into_inner().status())
    }

    #[tokio::test]
    async fn serves_only_with_a_database_and_before_the_drain() {
        let health = Health::new(&[QUEUE]);
        assert_eq!(health.state(), State::DatabaseDown);
        assert_eq!(check(&health, QUEUE).await, Ok(ServingStatus::NotServing));
        health.set_database(true);
        assert_eq!(check(&health, QUEUE).await, Ok(ServingStatus::Serving));
        assert_eq!(check(&health, "").await, Ok(ServingStatus::Serving));
        health.set_database(false);
        assert_eq!(check(&health, "").await, Ok(ServingStatus::NotServing));
        health.set_database(true);
        health.set_draining();
        assert_eq!(health.state(), State::Draining);
        health.set_database(true);
        assert_eq!(check(&health, QUEUE).await, Ok(ServingStatus::NotServing));
        assert_eq!(check(&health, "other").await, Err(tonic::Code::NotFound));
    }

    #[tokio::test]
    async fn a_watch_hears_each_change_and_ends_with_the_drain() {
        let health = Health::new(&[QUEUE]);
        let service = HealthService { health: health.clone() };
        let mut watch = service.watch(ask(QUEUE)).await.unwrap().into_inner();
        assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        health.set_database(false);
        assert!(watch.next().now_or_never().is_none(), "nothing has changed");
        health.set_database(true);
        assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        health.set_draining();
        assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(watch.next().await.is_none());
    }

    #[tokio::test]
    async fn a_watch_on_an_unknown_name_stays_open() {
        let health = Health::new(&[]);
        let service = HealthService { health: health.clone() };
        let mut watch = service.watch(ask("other")).await.unwrap().into_inner();
        assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        assert!(watch.next().now_or_never().is_none());
    }
}
