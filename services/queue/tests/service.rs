//! The calls of QueueService, over gRPC.

mod common;

use std::time::Duration;

use common::{Client, Database, Peer, Service, hello, offer, task};
use futures::StreamExt;
use millrace_core::id::TaskId;
use millrace_proto::queue::v1::*;
use millrace_runtime::{health, status::Fault};
use millrace_store::{MemberKind, Store};
use prost_types::{Duration as Span, FieldMask, Timestamp};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};
use uuid::Uuid;

fn queue(name: &str) -> Option<Queue> {
    Some(Queue { name: name.into(), ..Queue::default() })
}

async fn get(client: &mut Client, name: &str) -> Result<Queue, Status> {
    let response = client.get_queue(GetQueueRequest { name: name.into() }).await?;
    Ok(response.into_inner().queue.unwrap())
}

/// The code, the reason and the first field of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> (Code, String, String) {
    let fault = Fault::from(&result.unwrap_err());
    let field = fault.violations.first().map(|violation| violation.field.clone()).unwrap_or_default();
    (fault.code, fault.reason.into_owned(), field)
}

fn refused(code: Code, reason: &str) -> (Code, String, String) {
    (code, reason.into(), String::new())
}

fn invalid(field: &str) -> (Code, String, String) {
    (Code::InvalidArgument, "INVALID_REQUEST".into(), field.into())
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_created_read_changed_and_deleted() {
    let database = Database::new();
    let service = Service::start(&database, &[]);
    let mut client = service.client();
    let wanted = Queue {
        name: "gpu.large".into(),
        description: "for the big ones".into(),
        default_timeout: Some(Span { seconds: 90, nanos: 500_000_000 }),
        draining: true,
        ..Queue::default()
    };
    let request = CreateQueueRequest { request_id: "once".into(), queue: Some(wanted.clone()) };
    let created = client.create_queue(request.clone()).await.unwrap().into_inner().queue.unwrap();
    assert_eq!((&created.name, &created.description), (&wanted.name, &wanted.description));
    assert_eq!((created.default_timeout, created.default_expire_after), (wanted.default_timeout, None));
    assert!(!created.draining && created.create_time.is_some(), "only name, description and defaults are taken");
    let again = client.create_queue(request.clone()).await.unwrap().into_inner().queue.unwrap();
    assert_eq!(again, created, "a repeat is harmless");
    let another = CreateQueueRequest { request_id: String::new(), ..request };
    assert_eq!(refusal(client.create_queue(another).await), refused(Code::AlreadyExists, "QUEUE_EXISTS"));

    let update = UpdateQueueRequest {
        queue: Some(Queue { description: "new".into(), ..Queue { name: "gpu.large".into(), ..Queue::default() } }),
        update_mask: Some(FieldMask { paths: vec!["description".into(), "default_timeout".into()] }),
        ..Default::default()
    };
    let updated = client.update_queue(update.clone()).await.unwrap().into_inner().queue.unwrap();
    assert_eq!((updated.description.as_str(), updated.default_timeout), ("new", None));
    let missing = UpdateQueueRequest { queue: queue("missing"), ..update };
    assert_eq!(refusal(client.update_queue(missing).await), refused(Code::NotFound, "QUEUE_NOT_FOUND"));

    service.owns(&["default", "gpu.large"]).await;
    let request = DeleteQueueRequest { name: "gpu.large".into(), ..Default::default() };
    assert_eq!(client.delete_queue(request.clone()).await.unwrap().into_inner().queue, None);
    service.owns(&["default"]).await;
    assert_eq!(get(&mut client, "gpu.large").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(refusal(client.delete_queue(request).await), refused(Code::NotFound, "QUEUE_NOT_FOUND"));

    let snapshot = format!("{:?}", database.store.snapshot());
    for action in ["CreateQueue", "UpdateQueue", "DeleteQueue"] {
        assert!(snapshot.contains(action), "{action} is not in the audit trail");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_accepted_is_named() {
    let database = Database::new();
    let mut client = Service::start(&database, &[]).client();
    for (bad, field) in [
        (None, "queue"),
        (queue("Bad Name"), "queue.name"),
        (Some(Queue { description: "x".repeat(1_025), ..queue("q").unwrap() }), "queue.description"),
        (Some(Queue { default_timeout: Some(Span::default()), ..queue("q").unwrap() }), "queue.default_timeout"),
        (
            Some(Queue { default_expire_after: Some(Span { seconds: -1, nanos: 0 }), ..queue("q").unwrap() }),
            "queue.default_expire_after",
        ),
    ] {
        let request = CreateQueueRequest { queue: bad, ..Default::default() };
        assert_eq!(refusal(client.create_queue(request).await), invalid(field));
    }
    let long = CreateQueueRequest { request_id: "x".repeat(129), queue: queue("q") };
    assert_eq!(refusal(client.create_queue(long).await), invalid("request_id"));
    assert_eq!(refusal(client.get_queue(GetQueueRequest::default()).await), invalid("name"));
    let list = ListQueuesRequest { page_size: 1_001, page_token: String::new() };
    assert_eq!(refusal(client.list_queues(list).await), invalid("page_size"));
    let list = ListQueuesRequest { page_size: 0, page_token: "made up".into() };
    assert_eq!(refusal(client.list_queues(list).await), invalid("page_token"));
    let pause = PauseQueueRequest { name: "default".into(), ..Default::default() };
    assert_eq!(refusal(client.pause_queue(pause).await), invalid("reason"));
    let past = Some(Timestamp { seconds: database.now_us() / 1_000_000, nanos: 0 });
    let pause = PauseQueueRequest { name: "default".into(), reason: "why".into(), until: past, ..Default::default() };
    assert_eq!(refusal(client.pause_queue(pause).await), invalid("until"));
    let fast = Some(Span { seconds: 0, nanos: 199_000_000 });
    let watch = client.watch_queues(WatchQueuesRequest { names: Vec::new(), interval: fast }).await;
    assert_eq!(refusal(watch), invalid("interval"));
}

#[tokio::test(start_paused = true)]
async fn queues_are_listed_in_pages() {
    let database = Database::new();
    for name in ["a", "b", "c", "d"] {
        database.create(name);
    }
    let mut client = Service::start(&database, &[]).client();
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListQueuesRequest { page_size: 2, page_token };
        let page = client.list_queues(request).await.unwrap().into_inner();
        names.push(page.queues.into_iter().map(|queue| queue.name).collect::<Vec<_>>());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, [vec!["a", "b"], vec!["c", "d"], vec!["default"]]);
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_deleted_the_way_that_was_asked_for() {
    let database = Database::new();
    database.create("other");
    let mut client = Service::start(&database, &[]).client();
    let request = |name: &str, mode: DeleteMode, move_to: &str| DeleteQueueRequest {
        name: name.into(),
        mode: mode.into(),
        move_to: move_to.into(),
        ..Default::default()
    };
    let routed = client.delete_queue(request("default", DeleteMode::Drain, "")).await;
    assert_eq!(refusal(routed), refused(Code::FailedPrecondition, "QUEUE_ROUTED"));
    database.submit(1);
    database.store.delete_route("default", None).unwrap();
    let in_use = client.delete_queue(request("default", DeleteMode::Refuse, "")).await;
    assert_eq!(refusal(in_use), refused(Code::FailedPrecondition, "QUEUE_NOT_EMPTY"));
    let nowhere = client.delete_queue(request("default", DeleteMode::Move, "missing")).await;
    assert_eq!(refusal(nowhere), refused(Code::NotFound, "QUEUE_NOT_FOUND"));
    let drains = client.delete_queue(request("default", DeleteMode::Drain, "")).await.unwrap().into_inner();
    assert!(drains.queue.unwrap().draining);
    let onto_draining = client.delete_queue(request("other", DeleteMode::Move, "default")).await;
    assert_eq!(refusal(onto_draining), refused(Code::FailedPrecondition, "QUEUE_DRAINING"));
    // The work that waits is moved after all, and the queue goes by itself.
    let moved = client.delete_queue(request("default", DeleteMode::Move, "other")).await.unwrap().into_inner();
    if moved.queue.is_some() {
        common::until("the end of the queue", || database.store.queue("default").unwrap().is_none()).await;
    }
    assert_eq!(get(&mut client, "other").await.unwrap().stats.unwrap().depth, 1);
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_until_its_time_or_a_resume() {
    let database = Database::new();
    let service = Service::start(&database, &[]);
    service.owns(&["default"]).await;
    let mut client = service.client();
    let until = Some(Timestamp { seconds: database.now_us() / 1_000_000 + 30, nanos: 0 });
    let pause = PauseQueueRequest { name: "default".into(), reason: "repairs".into(), until, ..Default::default() };
    let paused = client.pause_queue(pause.clone()).await.unwrap().into_inner().queue.unwrap().pause.unwrap();
    assert_eq!((paused.reason.as_str(), paused.until), ("repairs", until));
    assert!(database.store.queue("default").unwrap().unwrap().pause.is_some());
    let before = Instant::now();
    common::until("the end of the pause", || database.store.queue("default").unwrap().unwrap().pause.is_none()).await;
    assert!((28..33).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());

    let forever = PauseQueueRequest { until: None, ..pause };
    client.pause_queue(forever).await.unwrap();
    let resume = ResumeQueueRequest { name: "default".into(), ..Default::default() };
    assert_eq!(client.resume_queue(resume.clone()).await.unwrap().into_inner().queue.unwrap().pause, None);
    assert!(client.resume_queue(resume).await.is_ok(), "twice is no error");
    let missing = ResumeQueueRequest { name: "missing".into(), ..Default::default() };
    assert_eq!(refusal(client.resume_queue(missing).await), refused(Code::NotFound, "QUEUE_NOT_FOUND"));
}

#[tokio::test(start_paused = true)]
async fn figures_tell_what_waits_and_who_owns() {
    let database = Database::new();
    let service = Service::start(&database, &[]);
    service.owns(&["default"]).await;
    database.submit(3);
    let mut client = service.client();
    common::until("the window", || service.server.host().figures("default").is_some_and(|figures| figures.window == 3))
        .await;
    let stats = get(&mut client, "default").await.unwrap().stats.unwrap();
    assert_eq!((stats.depth, stats.depth_is_lower_bound, stats.running, stats.window), (3, false, 0, Some(3)));
    assert_eq!((stats.owner.as_str(), stats.epoch, stats.window_capacity), ("http://service", 1, Some(65_536)));
    assert!(stats.oldest_age.is_some());
}

#[tokio::test(start_paused = true)]
async fn watchers_share_one_query_an_interval() {
    let database = Database::new();
    let service = Service::start(&database, &["--queue-max-watchers", "20"]);
    let mut client = service.client();
    let mut watchers = Vec::new();
    for number in 0..20 {
        let names = if number % 2 == 0 { Vec::new() } else { vec!["default".to_owned()] };
        let request = WatchQueuesRequest { names, interval: Some(Span { seconds: 5, nanos: 0 }) };
        watchers.push(client.watch_queues(request).await.unwrap().into_inner());
    }
    let one_more = client.watch_queues(WatchQueuesRequest::default()).await;
    assert_eq!(refusal(one_more), refused(Code::ResourceExhausted, "TOO_MANY_WATCHERS"));
    database.create("other");
    for watcher in &mut watchers {
        watcher.next().await.unwrap().unwrap();
    }
    let counted = service.way.calls("counts");
    for _ in 0..10 {
        for (number, watcher) in watchers.iter_mut().enumerate() {
            let seen = watcher.next().await.unwrap().unwrap().queues.len();
            assert_eq!(seen, if number % 2 == 0 { 2 } else { 1 });
        }
    }
    assert_eq!(service.way.calls("counts") - counted, 10);
    // A watcher that leaves makes room, and all end with the process.
    watchers.pop();
    let mut last = client.watch_queues(WatchQueuesRequest::default()).await.unwrap().into_inner();
    service.context.shutdown.begin();
    while let Some(item) = last.next().await {
        item.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_hears_when_the_database_cannot_be_read() {
    let database = Database::new();
    let service = Service::start(&database, &[]);
    let mut watcher = service.client().watch_queues(WatchQueuesRequest::default()).await.unwrap().into_inner();
    watcher.next().await.unwrap().unwrap();
    service.way.cut(true);
    let status = watcher.next().await.unwrap().unwrap_err();
    assert_eq!((status.code(), Fault::from(&status).retry_after), (Code::Unavailable, Some(Duration::from_secs(1))));
    assert!(watcher.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_exchange_goes_over_grpc() {
    let database = Database::new();
    let service = Service::start(&database, &[]);
    service.owns(&["default"]).await;
    let (requests, inbound) = mpsc::channel(16);
    let message = Some(exchange_request::Message::Hello(hello(&database)));
    requests.send(ExchangeRequest { message }).await.unwrap();
    let responses = service.client().exchange(ReceiverStream::new(inbound)).await.unwrap().into_inner();
    let mut peer = Peer::of(requests, responses.boxed());
    peer.hears_owned(&["default"]).await;
    database.submit(1);
    peer.demand(1, 2, 0).await;
    let first = peer.one().await;
    peer.answer(&first, answer::Verdict::Claimed).await;
    let hint = TaskId(Uuid::from_u128(7));
    peer.offer(vec![offer(hint, database.now_us())]).await;
    assert_eq!(task(&peer.one().await), hint);
    assert!(service.context.shutdown.finish(Duration::from_secs(10)).await.is_empty());
    peer.hears_owned(&[]).await;
    assert!(peer.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_service_is_a_member_while_it_lives_and_is_reached() {
    let database = Database::new();
    let service = Service::start(&database, &[]);
    let members = || database.store.members().unwrap().into_iter().map(|member| member.kind).collect::<Vec<_>>();
    common::until("the membership", || members() == [MemberKind::Queue]).await;
    assert_eq!(service.context.health.state(), health::State::Serving);
    // Distributors live, and none reaches it: it withdraws, so that one of them hosts the matchers.
    database.distributor(Duration::from_secs(600));
    common::until("the withdrawal", || members() == [MemberKind::Distributor]).await;
    assert!(service.server.host().owned().is_empty());
    common::until("the return", || members().contains(&MemberKind::Queue)).await;
    service.owns(&["default"]).await;
    assert!(service.context.shutdown.finish(Duration::from_secs(10)).await.is_empty());
    assert_eq!(members(), [MemberKind::Distributor]);
}

#[tokio::test(start_paused = true)]
async fn health_follows_the_database() {
    let database = Database::new();
    let service = Service::start(&database, &[]);
    let health = service.context.health.clone();
    common::until("health", || health.state() == health::State::Serving).await;
    service.way.cut(true);
    common::until("no health", || health.state() == health::State::DatabaseDown).await;
    service.way.cut(false);
    common::until("health again", || health.state() == health::State::Serving).await;
}
