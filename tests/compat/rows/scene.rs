//! What services are made to write for the golden rows: tasks in every state and with every outcome, and everything around them.
//!
//! Orchestrators by hand take one task at a time, so that each row stays where its scene leaves it.

use std::time::{Duration, Instant};

use millrace_proto::{
    common::v1::{Command, Outcome, OutcomeKind, RetryPolicy, TaskSpec, TaskState, task_spec::Payload},
    distributor::v1 as wire,
    queue::v1::{self as queues, queue_service_client::QueueServiceClient},
};
use millrace_tests::{
    clients::{Distributor, command, distributor, unknown_field},
    net,
};
use prost::Message;
use prost_types::{Any, Timestamp};
use tonic::{Request, transport::Channel};

use crate::hand::{Hand, lease_of};

const PATIENCE: Duration = Duration::from_secs(60);

/// The year 2100: what waits for it waits whenever this runs.
const FAR: Timestamp = Timestamp { seconds: 4_102_444_800, nanos: 0 };

const DAY: prost_types::Duration = prost_types::Duration { seconds: 86_400, nanos: 0 };

const RECORDED: i32 = 1;

struct Scene {
    endpoint: String,
    tasks: Distributor,
    queues: QueueServiceClient<Channel>,
}

/// Plays every scene. Sessions that are to be found alive stay open as long as what this returns.
pub(super) async fn perform(endpoint: &str, queue_endpoint: &str) -> Vec<Hand> {
    let channel = Channel::from_shared(queue_endpoint.to_owned()).expect("an endpoint").connect_lazy();
    let (endpoint, tasks) = (endpoint.to_owned(), distributor(endpoint));
    let mut scene = Scene { endpoint, tasks, queues: QueueServiceClient::new(channel) };
    scene.queues().await;
    scene.waiting().await;
    scene.ended().await;
    scene.attempts().await;
    let mut sessions = scene.held().await;
    sessions.push(scene.queues_that_go().await);
    sessions
}

// ── The scenes ──────────────────────────────────────────────────────────────────────────────────────────────────────

impl Scene {
    /// A queue with defaults, one for each scene, a pause with an end and one without, and routes with every condition.
    async fn queues(&mut self) {
        let full = queues::Queue {
            name: "batch".into(),
            description: "Nightly work — über alles".into(),
            default_timeout: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }),
            default_expire_after: Some(DAY),
            ..Default::default()
        };
        self.create_queue(full).await;
        for name in ["ended", "attempts", "held", "paused", "paused-until", "draining", "moving", "changed"] {
            self.create_queue(queues::Queue { name: name.into(), ..Default::default() }).await;
            self.route(wire::Route {
                name: name.into(),
                executor: name.into(),
                queue: name.into(),
                ..Default::default()
            })
            .await;
        }
        self.route(wire::Route {
            name: "batch".into(),
            order: Some(10),
            executor: "docker".into(),
            resource_class: "gpu.large".into(),
            tenant: "acme".into(),
            labels: [("zone".to_owned(), "a".to_owned()), ("ü".to_owned(), String::new())].into(),
            queue: "batch".into(),
        })
        .await;
        for (name, until) in [("paused", None), ("paused-until", Some(FAR))] {
            let reason = "maintenance of the \"fleet\"".to_owned();
            let pause =
                queues::PauseQueueRequest { request_id: format!("pause-{name}"), name: name.into(), reason, until };
            self.queues.pause_queue(pause).await.expect("pausing");
        }
        let queue = queues::Queue { name: "changed".into(), description: "after".into(), ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["description".into()] });
        let update = queues::UpdateQueueRequest { request_id: "change".into(), queue: Some(queue), update_mask };
        self.queues.update_queue(update).await.expect("changing a queue");
    }

    /// SCHEDULED and QUEUED tasks, one of them with everything that a submission can say.
    async fn waiting(&mut self) {
        let plain = command(&["true"]);
        self.submit("not-before", TaskSpec { not_before: Some(FAR), executor: "paused".into(), ..plain.clone() }).await;
        self.submit("in-a-pause", TaskSpec { executor: "paused".into(), ..plain.clone() }).await;
        self.submit("", TaskSpec { executor: "paused-until".into(), priority: Some(-1000), ..plain.clone() }).await;
        self.submit_bytes("everything", everything()).await;
        let custom = Any { type_url: "type.example/other.Payload".into(), value: vec![0, 1, 0xFF] };
        let custom =
            TaskSpec { executor: "paused".into(), payload: Some(Payload::Custom(custom)), ..Default::default() };
        self.submit("custom", custom).await;
    }

    /// A finished task of every outcome.
    async fn ended(&mut self) {
        let mut hand = Hand::of(&self.endpoint, "ender", "ended").await;
        for (kind, exit_code, signal) in [
            (OutcomeKind::Succeeded, Some(0), None),
            (OutcomeKind::Failed, Some(3), None),
            (OutcomeKind::Failed, None, Some(9)),
            (OutcomeKind::TimedOut, None, Some(15)),
            (OutcomeKind::NotStarted, None, None),
        ] {
            let id = self.submit("", TaskSpec { executor: "ended".into(), ..command(&["true"]) }).await;
            let lease = lease_of(&hand.take().await);
            assert_eq!(lease.task_id, id);
            let outcome = Outcome { exit_code, signal, ..outcome(kind) };
            assert_eq!(hand.complete(lease, outcome).await, RECORDED);
        }
        // Stopped while it ran.
        let id = self.submit("", TaskSpec { executor: "ended".into(), ..command(&["true"]) }).await;
        hand.take().await;
        self.cancel(&id).await;
        let lease = hand.cancelled().await;
        assert_eq!(hand.complete(lease, outcome(OutcomeKind::Cancelled)).await, RECORDED);
        hand.goodbye().await;
        // Stopped, and expired, while it waited.
        let id = self.submit("", TaskSpec { executor: "ended".into(), ..command(&["true"]) }).await;
        self.cancel(&id).await;
        let soon = Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 });
        let spec = TaskSpec { executor: "ended".into(), expire_after: soon, ..command(&["true"]) };
        let id = self.submit("", spec).await;
        self.wait(&id, TaskState::Expired).await;
        // Retried after its end: it waits again, with what it has spent behind it.
        let mut hand = Hand::of(&self.endpoint, "ender", "ended").await;
        let id = self.submit("", TaskSpec { executor: "ended".into(), ..command(&["false"]) }).await;
        let lease = lease_of(&hand.take().await);
        assert_eq!(hand.complete(lease, outcome(OutcomeKind::Failed)).await, RECORDED);
        hand.goodbye().await;
        self.tasks.retry_task(wire::RetryTaskRequest { request_id: "again".into(), id }).await.expect("retrying");
    }

    /// An attempt of every outcome that another attempt follows, and a task that is set aside after its losses.
    async fn attempts(&mut self) {
        let slow =
            RetryPolicy { max_attempts: Some(5), max_losses: Some(2), min_backoff: Some(DAY), max_backoff: Some(DAY) };
        let mut hand = Hand::of(&self.endpoint, "tryer", "attempts").await;
        for kind in [OutcomeKind::Failed, OutcomeKind::TimedOut, OutcomeKind::NotStarted, OutcomeKind::Unsupported] {
            let spec = TaskSpec { executor: "attempts".into(), retry: Some(slow), ..command(&["false"]) };
            self.submit("", spec).await;
            let lease = lease_of(&hand.take().await);
            assert_eq!(hand.complete(lease, outcome(kind)).await, RECORDED);
        }
        // Two that are lost with their orchestrator: one waits again, one is set aside.
        for losses in [2, 1] {
            let retry = Some(RetryPolicy { max_losses: Some(losses), ..slow });
            self.submit("", TaskSpec { executor: "attempts".into(), retry, ..command(&["true"]) }).await;
        }
        let lost = [hand.take().await.task_id, hand.take().await.task_id];
        let previous_session_id = hand.welcome.session_id.clone();
        let queues = vec!["attempts".to_owned()];
        let hello = wire::Hello { name: "tryer".into(), queues, slots: 1, previous_session_id, ..Default::default() };
        let mut hand = Hand::connect(&self.endpoint, hello).await;
        let (mut waits, mut set_aside) = (None, None);
        for id in &lost {
            match self.task(id).await.spec_losses() {
                1 => set_aside = Some(id),
                _ => waits = Some(id),
            }
        }
        self.wait(set_aside.expect("the one with a budget of one"), TaskState::Failed).await;
        self.wait(waits.expect("the other one"), TaskState::Queued).await;
        // The one that waits is taken again and handed back by its orchestrator's leaving.
        hand.take().await;
        hand.goodbye().await;
        self.wait(waits.expect("the same"), TaskState::Queued).await;
    }

    /// Held tasks: DISPATCHED, RUNNING and CANCELLING.
    async fn held(&mut self) -> Vec<Hand> {
        let mut hand = Hand::of(&self.endpoint, "holder", "held").await;
        let mut leases = Vec::new();
        for exclusive in [false, true, false] {
            let timeout = exclusive.then_some(prost_types::Duration { seconds: 5, nanos: 250_000_000 });
            let spec = TaskSpec { executor: "held".into(), exclusive, timeout, ..command(&["sleep", "60"]) };
            self.submit("", spec).await;
            leases.push(lease_of(&hand.take().await));
        }
        hand.accept(&leases[1..]).await;
        for lease in &leases[1..] {
            self.wait(&lease.task_id, TaskState::Running).await;
        }
        self.cancel(&leases[2].task_id).await;
        self.wait(&leases[2].task_id, TaskState::Cancelling).await;
        vec![hand]
    }

    /// Queues that are being deleted while work waits or runs in them.
    async fn queues_that_go(&mut self) -> Hand {
        let mut hand = Hand::of(&self.endpoint, "mover", "moving").await;
        for executor in ["moving", "moving", "draining"] {
            self.submit("", TaskSpec { executor: executor.into(), ..command(&["true"]) }).await;
        }
        hand.take().await;
        for (name, mode, move_to) in
            [("moving", queues::DeleteMode::Move, "batch"), ("draining", queues::DeleteMode::Drain, "")]
        {
            let route = wire::DeleteRouteRequest { request_id: String::new(), name: name.into() };
            self.tasks.delete_route(route).await.expect("deleting a route");
            let (request_id, name, move_to) = (format!("delete-{name}"), name.to_owned(), move_to.to_owned());
            let delete = queues::DeleteQueueRequest { request_id, name, mode: mode.into(), move_to };
            self.queues.delete_queue(delete).await.expect("deleting a queue");
        }
        hand
    }
}

/// A spec with every field, and one that no release knows.
fn everything() -> Vec<u8> {
    let payload = Command {
        argv: vec!["sh".into(), "-c".into(), "printf 'ü\\n'".into()],
        env: [("KEY".to_owned(), "värde".to_owned())].into(),
        working_dir: "/var/tmp".into(),
        stdin: vec![0, 0xFF, b'\n'].into(),
    };
    let spec = TaskSpec {
        tenant: "acme".into(),
        executor: "docker".into(),
        resource_class: "gpu.large".into(),
        labels: [("zone".to_owned(), "a".to_owned()), ("ü".to_owned(), String::new())].into(),
        priority: Some(7),
        concurrency_key: "branch/main".into(),
        not_before: None,
        expire_after: Some(prost_types::Duration { seconds: 31_000_000, nanos: 0 }),
        timeout: Some(prost_types::Duration { seconds: 90, nanos: 500_000_000 }),
        exclusive: true,
        retry: Some(RetryPolicy {
            max_attempts: Some(3),
            max_losses: Some(4),
            min_backoff: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            max_backoff: Some(DAY),
        }),
        payload: Some(Payload::Command(payload)),
    };
    [spec.encode_to_vec(), unknown_field(b"from the future")].concat()
}

/// An outcome with everything that an orchestrator can say of any.
fn outcome(kind: OutcomeKind) -> Outcome {
    Outcome {
        kind: kind.into(),
        message: format!("it ended as {} — ü", kind.as_str_name()),
        output_tail: b"last words\n\xFF\0".as_slice().into(),
        output_bytes: 70_000,
        start_time: Some(Timestamp { seconds: 1_700_000_000, nanos: 250_000_000 }),
        end_time: Some(Timestamp { seconds: 1_700_000_001, nanos: 0 }),
        ..Default::default()
    }
}

// ── Calls ───────────────────────────────────────────────────────────────────────────────────────────────────────────

trait SpecLosses {
    /// The budget of losses in its spec.
    fn spec_losses(&self) -> i32;
}

impl SpecLosses for wire::Task {
    fn spec_losses(&self) -> i32 {
        let spec = TaskSpec::decode(self.spec.as_ref()).expect("a spec");
        spec.retry.and_then(|retry| retry.max_losses).expect("a budget")
    }
}

impl Scene {
    async fn create_queue(&mut self, queue: queues::Queue) {
        let request_id = format!("create-{}", queue.name);
        let request = queues::CreateQueueRequest { request_id, queue: Some(queue) };
        self.queues.create_queue(request).await.expect("creating a queue");
    }

    async fn route(&mut self, route: wire::Route) {
        let request = wire::SetRouteRequest { request_id: String::new(), route: Some(route) };
        self.tasks.set_route(request).await.expect("setting a route");
    }

    async fn submit(&mut self, request_id: &str, spec: TaskSpec) -> String {
        self.submit_bytes(request_id, spec.encode_to_vec()).await
    }

    async fn submit_bytes(&mut self, request_id: &str, spec: Vec<u8>) -> String {
        let submission = wire::SubmitTaskRequest { request_id: request_id.into(), spec: spec.into() };
        let mut request = Request::new(submission);
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        request.metadata_mut().insert("traceparent", traceparent.parse().expect("metadata"));
        self.tasks.submit_task(request).await.expect("submitting").into_inner().task.expect("a task").id
    }

    async fn cancel(&mut self, id: &str) {
        let (request_id, reason) = (format!("cancel-{id}"), "nobody needs it".to_owned());
        let request = wire::CancelTaskRequest { request_id, id: id.into(), reason };
        self.tasks.cancel_task(request).await.expect("cancelling");
    }

    async fn task(&mut self, id: &str) -> wire::Task {
        let answer = self.tasks.get_task(wire::GetTaskRequest { id: id.into() }).await;
        answer.expect("reading a task").into_inner().task.expect("a task")
    }

    async fn wait(&mut self, id: &str, state: TaskState) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let task = self.task(id).await;
            if task.state == i32::from(state) {
                return;
            }
            assert!(Instant::now() < deadline, "waited for {state:?}: {task:?}");
            tokio::task::spawn_blocking(net::pause).await.expect("a pause");
        }
    }
}
