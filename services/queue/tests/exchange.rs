//! The exchange between distributors and the host of a queue.

mod common;

use std::time::Duration;

use common::{Database, Peer, Process, hello, offer, task};
use millrace_core::id::TaskId;
use millrace_proto::queue::v1::{
    Demand, Demands, ExchangeHello, Offer, answer::Verdict, exchange_request::Message, exchange_response,
};
use millrace_queue::HostSettings;
use millrace_runtime::status::Fault;
use millrace_store::{Claimed, DeleteMode, MemberKind, Store};
use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

fn id(number: u128) -> TaskId {
    TaskId(Uuid::from_u128(number))
}

fn code_and_reason(status: &Status) -> (Code, String) {
    (status.code(), Fault::from(status).reason.into_owned())
}

/// A host that owns `default`, and a peer whose session 1 has shown that the lane of `acme` is open.
async fn open_lane(database: &Database) -> (Process, Peer) {
    let process = Process::queue(database, 1);
    let epoch = process.owns(&["default"]).await[0];
    let mut peer = Peer::open(&process.host, hello(database)).await;
    database.submit(1);
    peer.demand(1, 1, 0).await;
    let matched = peer.one().await;
    assert!(matches!(database.claim(task(&matched), database.session(), epoch), Claimed::Won(_)));
    peer.answer(&matched, Verdict::Claimed).await;
    (process, peer)
}

#[tokio::test(start_paused = true)]
async fn an_offer_becomes_a_match_without_a_timer_or_a_read() {
    let database = Database::new();
    let (process, mut peer) = open_lane(&database).await;
    peer.demand(1, 10, 1).await;
    let (before, pages) = (Instant::now(), process.way.calls("lane_page"));
    // The database does not know the task, so no read can have found it.
    peer.offer(vec![offer(id(7), database.now_us())]).await;
    let matched = peer.one().await;
    assert_eq!((task(&matched), matched.receiver, matched.seq), (id(7), 1, 2));
    assert_eq!(before.elapsed(), Duration::ZERO, "nothing waited for time to pass");
    assert_eq!(process.way.calls("lane_page"), pages);
}

#[tokio::test(start_paused = true)]
async fn what_waited_before_the_owner_came_is_matched_in_order() {
    let database = Database::new();
    let tasks = database.submit(50);
    let process = Process::queue(&database, 1);
    let epochs = process.owns(&["default"]).await;
    let mut peer = Peer::open(&process.host, hello(&database)).await;
    peer.demand(1, 100, 0).await;
    let mut seen = Vec::new();
    while seen.len() < 50 {
        let matches = peer.matches().await;
        assert_eq!((matches.queue.as_str(), matches.epoch), ("default", epochs[0]));
        seen.extend(matches.matches.iter().map(|matched| (task(matched), matched.seq)));
    }
    let mut expected: Vec<TaskId> = tasks.into_iter().map(|(id, _)| id).collect();
    expected.sort();
    assert_eq!(seen, expected.into_iter().zip(1..).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn r3_a_task_whose_offer_was_lost_is_found() {
    let database = Database::new();
    let (_process, mut peer) = open_lane(&database).await;
    peer.demand(1, 10, 1).await;
    let before = Instant::now();
    let (lost, _) = database.submit(1)[0];
    assert_eq!(task(&peer.one().await), lost);
    assert!(before.elapsed() <= Duration::from_secs(11), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn r6_matches_return_when_the_stream_closes() {
    let database = Database::new();
    let (process, mut peer) = open_lane(&database).await;
    peer.demand(1, 1, 1).await;
    peer.offer(vec![offer(id(7), database.now_us())]).await;
    assert_eq!(task(&peer.one().await), id(7));
    let mut other = Peer::open(&process.host, hello(&database)).await;
    other.demand(1, 1, 0).await;
    let before = Instant::now();
    drop(peer);
    let matched = other.one().await;
    assert_eq!((task(&matched), matched.seq), (id(7), 1));
    assert!(before.elapsed() < Duration::from_secs(1), "sooner than patience would return it");
}

#[tokio::test(start_paused = true)]
async fn r6_a_match_without_an_answer_returns_after_its_patience() {
    let database = Database::new();
    let (_process, mut peer) = open_lane(&database).await;
    peer.demand(1, 10, 1).await;
    peer.offer(vec![offer(id(7), database.now_us())]).await;
    assert_eq!(task(&peer.one().await), id(7));
    let before = Instant::now();
    assert_eq!(task(&peer.one().await), id(7), "again");
    assert!((1_990..2_500).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn r6_demand_that_is_withdrawn_gets_nothing_more() {
    let database = Database::new();
    let (_process, mut peer) = open_lane(&database).await;
    for receiver in [1, 2, 3] {
        peer.demand(receiver, 5, u64::from(receiver == 1)).await;
    }
    peer.demand(1, 0, 1).await;
    let closed = Demand { queue: "default".into(), receiver: 2, closed: true, ..Demand::default() };
    peer.send(Message::Demands(Demands { demands: vec![closed] })).await;
    peer.offer(vec![offer(id(7), 1), offer(id(8), 2)]).await;
    let receivers: Vec<u64> = peer.matches().await.matches.iter().map(|matched| matched.receiver).collect();
    assert_eq!(receivers, [3, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_stops_matches_at_once_and_a_resume_starts_them() {
    let database = Database::new();
    let (process, mut peer) = open_lane(&database).await;
    database.pause(true);
    process.host.set_paused("default", true);
    peer.demand(1, 10, 1).await;
    peer.offer(vec![offer(id(7), database.now_us())]).await;
    // A match would come before the answer to a change of ownership.
    database.create("marker");
    process.host.nudge();
    peer.hears_owned(&["default", "marker"]).await;
    database.pause(false);
    process.host.set_paused("default", false);
    let before = Instant::now();
    assert_eq!(task(&peer.one().await), id(7));
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_refused_match_stops_matching_until_the_gate_has_been_read() {
    let database = Database::new();
    let (process, mut peer) = open_lane(&database).await;
    peer.demand(1, 10, 1).await;
    peer.offer(vec![offer(id(7), database.now_us())]).await;
    let matched = peer.one().await;
    // Another process has paused the queue.
    database.pause(true);
    let before = Instant::now();
    let reads = process.way.calls("routing");
    peer.answer(&matched, Verdict::Refused).await;
    common::until("a look at the queue", || process.way.calls("routing") > reads).await;
    assert!(before.elapsed() < Duration::from_millis(100), "at once, not with the next round");
    database.pause(false);
    assert_eq!(task(&peer.one().await), id(7), "it had returned");
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn r9_rows_go_to_replicas_that_can_read_them() {
    let database = Database::new();
    let (process, mut old) = open_lane(&database).await;
    let mut new = Peer::open(&process.host, ExchangeHello { max_format: 2, ..hello(&database) }).await;
    // A reader of a newer format makes the owner read the lanes again, rows that were too new for all included.
    database.submit(1);
    new.demand(1, 1, 0).await;
    let matched = new.one().await;
    new.answer(&matched, Verdict::Stale).await;
    old.demand(1, 10, 1).await;
    let newer = Offer { min_reader: 2, ..offer(id(7), database.now_us()) };
    old.offer(vec![newer, offer(id(8), database.now_us())]).await;
    assert_eq!(task(&old.one().await), id(8));
    new.demand(1, 10, 1).await;
    assert_eq!(task(&new.one().await), id(7));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_closed_and_its_matches_return() {
    let database = Database::new();
    let settings = HostSettings { outbox: 10, ..HostSettings::default() };
    let process = Process::start(&database, 1, MemberKind::Queue, settings);
    process.owns(&["default"]).await;
    let mut stalled = Peer::open(&process.host, hello(&database)).await;
    stalled.demand(1, 100, 0).await;
    database.submit(11);
    // Its eleven matches do not fit, so they are here for another.
    let mut other = Peer::open(&process.host, hello(&database)).await;
    common::until("the end of the stalled stream", || process.host.streams() == 1).await;
    let status = stalled.error().await;
    assert_eq!(code_and_reason(&status), (Code::ResourceExhausted, "EXCHANGE_STALLED".into()));
    other.demand(1, 10, 0).await;
    assert_eq!(other.matches().await.matches.len(), 10);
    assert!(process.metrics.encode().contains("millrace_exchange_stalled_total 1"));
}

#[tokio::test(start_paused = true)]
async fn ownership_is_told_at_the_hello_and_at_each_change() {
    let database = Database::new();
    database.create("first");
    let process = Process::queue(&database, 1);
    process.owns(&["default", "first"]).await;
    let mut peer = Peer::silent(&process.host);
    peer.send(Message::Hello(hello(&database))).await;
    let ownership = peer.ownership().await;
    assert_eq!(ownership.owner_id, Uuid::from_u128(1).to_string());
    let queues: Vec<_> = ownership.queues.iter().map(|owned| (owned.queue.as_str(), owned.epoch)).collect();
    assert_eq!(queues, [("default", 1), ("first", 1)]);
    database.create("second");
    peer.hears_owned(&["default", "first", "second"]).await;
    database.store.delete_queue("first", &DeleteMode::Refuse, None).unwrap();
    peer.hears_owned(&["default", "second"]).await;
}

#[tokio::test(start_paused = true)]
async fn work_for_queues_that_are_not_owned_is_ignored() {
    let database = Database::new();
    let (_process, mut peer) = open_lane(&database).await;
    peer.demand_of("elsewhere", 1, 10, 0).await;
    peer.send(Message::Offers(millrace_proto::queue::v1::Offers {
        queue: "elsewhere".into(),
        offers: vec![offer(id(9), 1)],
    }))
    .await;
    peer.demand(1, 10, 1).await;
    peer.offer(vec![offer(id(7), database.now_us())]).await;
    assert_eq!(task(&peer.one().await), id(7));
}

#[tokio::test(start_paused = true)]
async fn callers_must_say_who_they_are() {
    let database = Database::new();
    let process = Process::queue(&database, 1);
    process.owns(&["default"]).await;

    let mut peer = Peer::silent(&process.host);
    peer.offer(Vec::new()).await;
    assert_eq!(peer.error().await.code(), Code::InvalidArgument);

    let mut peer = Peer::silent(&process.host);
    assert_eq!(peer.error().await.code(), Code::InvalidArgument, "it never says anything");

    let mut peer = Peer::silent(&process.host);
    peer.send(Message::Hello(ExchangeHello { max_format: 0, ..hello(&database) })).await;
    assert_eq!(peer.error().await.code(), Code::InvalidArgument);

    let mut peer = Peer::open(&process.host, hello(&database)).await;
    peer.send(Message::Hello(hello(&database))).await;
    assert_eq!(peer.error().await.code(), Code::InvalidArgument, "twice");
    common::until("the end of every stream", || process.host.streams() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r15_a_caller_of_another_incarnation_is_sent_away() {
    let database = Database::new();
    let process = Process::queue(&database, 1);
    process.owns(&["default"]).await;
    let before = hello(&database);
    let _peer = Peer::open(&process.host, before.clone()).await;

    let mut peer = Peer::silent(&process.host);
    peer.send(Message::Hello(ExchangeHello { incarnation: before.incarnation + 1, ..before })).await;
    let status = peer.error().await;
    assert_eq!(code_and_reason(&status), (Code::FailedPrecondition, "WRONG_INCARNATION".into()));

    // After a restore the host reads the new incarnation when the first caller names it.
    database.store.set_incarnation(database.incarnation() as i16 ^ 1);
    Peer::open(&process.host, hello(&database)).await;
}

#[tokio::test(start_paused = true)]
async fn a_distributor_that_hosts_nothing_says_so() {
    let database = Database::new();
    let process = Process::start(&database, 1, MemberKind::Distributor, HostSettings::default());
    let mut peer = Peer::silent(&process.host);
    peer.send(Message::Hello(hello(&database))).await;
    assert_eq!(code_and_reason(&peer.error().await), (Code::FailedPrecondition, "NOT_OWNER".into()));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_in_order_when_the_process_drains() {
    let database = Database::new();
    let (process, mut peer) = open_lane(&database).await;
    assert!(process.shutdown.finish(Duration::from_secs(10)).await.is_empty());
    peer.hears_owned(&[]).await;
    assert!(peer.next().await.is_none());
    assert_eq!(database.store.owners().unwrap()[0].owner, None, "a successor takes over at once");
    let mut late = Peer::silent(&process.host);
    assert!(matches!(late.next().await, Some(Err(status)) if status.code() == Code::Unavailable));
    assert!(!matches!(late.next().await, Some(Ok(exchange_response::Message::Matches(_)))));
}
