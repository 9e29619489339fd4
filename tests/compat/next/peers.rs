//! Processes of the next release: an orchestrator and a replica that say what nobody here knows.

use millrace_core::READER_RANGE;
use millrace_proto::{
    common::v1::{Outcome, OutputChunk, TaskState},
    distributor::v1::{self as wire, connect_orchestrator_request::Message as Ask},
    queue::v1::{self as queues, exchange_request::Message as Say, exchange_response::Message as Hear},
};
use millrace_tests::clients::{command, distributor, submission, unknown_field};
use prost::Message;

use super::Site;
use crate::hand::{Hand, lease_of};

const RECORDED: i32 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orchestrator_that_says_new_things_is_understood_as_far_as_possible() {
    let mut site = Site::start().await;
    let queue = queues::Queue { name: "next".into(), ..Default::default() };
    let request = queues::CreateQueueRequest { queue: Some(queue), ..Default::default() };
    site.queues.create_queue(request).await.expect("creating a queue");
    let mut client = distributor(&site.distributor.endpoint);
    let route =
        wire::Route { name: "next".into(), executor: "next".into(), queue: "next".into(), ..Default::default() };
    client
        .set_route(wire::SetRouteRequest { route: Some(route), ..Default::default() })
        .await
        .expect("setting a route");
    let mut hand = Hand::of(&site.distributor.endpoint, "next", "next").await;
    hand.say_something_new().await;

    let mut spec =
        millrace_proto::common::v1::TaskSpec { executor: "next".into(), ..command(&["true"]) }.encode_to_vec();
    spec.extend(unknown_field(b"from the future"));
    let mut request = submission("", &command(&["true"]));
    request.spec = spec.clone().into();
    let id = client.submit_task(request).await.expect("submitting").into_inner().task.expect("a task").id;
    let assignment = hand.take().await;
    assert_eq!(assignment.spec, spec, "byte for byte");
    let lease = lease_of(&assignment);
    hand.accept(std::slice::from_ref(&lease)).await;
    // Output of a third stream, and an end without a name here.
    let chunk = OutputChunk { stream: 42, offset: 0, data: b"new".as_slice().into() };
    hand.say(Ask::Progress(wire::Progress { lease: Some(lease.clone()), chunks: vec![chunk] })).await;
    hand.say_something_new().await;
    assert_eq!(hand.complete(lease, Outcome { kind: 42, ..Default::default() }).await, RECORDED);
    let read = |id: &str| wire::GetTaskRequest { id: id.to_owned() };
    let task = client.get_task(read(&id)).await.expect("reading").into_inner().task.expect("a task");
    assert_eq!(task.state, i32::from(TaskState::Failed), "an end all the same: {task:?}");
    assert!(task.outcome.expect("an outcome").message.contains("42"));
    // Its spec is whole after its end, and after another start.
    assert_eq!(task.spec, spec);
    client.retry_task(wire::RetryTaskRequest { request_id: String::new(), id: id.clone() }).await.expect("retrying");
    assert_eq!(hand.take().await.spec, spec);
    hand.goodbye().await;
    site.load.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_says_new_things_is_served_by_the_queue_service() {
    let mut site = Site::start().await;
    let member = uuid::Uuid::now_v7().to_string();
    let incarnation = site.lines("SELECT incarnation::text AS line FROM cluster")[0].parse().expect("a number");
    let hello = queues::ExchangeHello {
        replica_id: member,
        min_format: 1,
        max_format: i32::from(READER_RANGE.1) + 1,
        incarnation,
    };
    let answer = queues::Answer { task_id: vec![7; 16].into(), verdict: 42 };
    let messages = [
        Some(Say::Hello(hello)),
        None,
        Some(Say::Answers(queues::Answers { queue: "default".into(), answers: vec![answer] })),
        Some(Say::Demands(queues::Demands {
            demands: vec![queues::Demand { queue: "default".into(), receiver: 1, seq: 1, ..Default::default() }],
        })),
    ];
    let requests = messages.map(|message| queues::ExchangeRequest { message });
    // Open for as long as the replica lives.
    let stream = futures::StreamExt::chain(futures::stream::iter(requests), futures::stream::pending());
    let mut heard = site.queues.exchange(stream).await.expect("an exchange").into_inner();
    let first = heard.message().await.expect("no error").expect("no end").message;
    assert!(matches!(first, Some(Hear::Ownership(_))), "{first:?}");
    site.load.progress(20).await;
    let more = futures::FutureExt::now_or_never(heard.message());
    assert!(matches!(more, None | Some(Ok(Some(_)))), "the stream has ended: {more:?}");
    site.load.finish().await;
}
