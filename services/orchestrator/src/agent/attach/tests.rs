//! The attachment against a scaler that follows a script, on the paused clock and without a network.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::Status as Refusal;

use super::{Attachment, End, Node, Order, Progress};
use crate::{Status, agent::node::Identity};

/// The types of this crate that the fake needs, under the name by which it knows them.
mod lib {
    pub(crate) use crate::{Connect, Transport, TransportError};
}

#[path = "../../../tests/protocol/support/scaler.rs"]
mod scaler;

use scaler::{Scaler, refusal};

const ID: &str = "00000000-0000-0000-0000-000000000007";

fn node(node_id: &str) -> Node {
    let identity = Identity { node_id: node_id.into(), instance_id: "i-1".into(), pool: "builds".into() };
    Node { endpoints: vec!["http://one".into(), "http://two".into()], identity, slots: 4, build: "b".into() }
}

fn attach() -> (Scaler, Attachment) {
    let (scaler, way) = Scaler::new();
    (scaler, Attachment::start(Some(node(ID)), Arc::new(way)))
}

/// An orchestrator with a session that runs so many and is open, or closed.
fn status(running: usize, open: bool) -> Status {
    Status {
        session_id: Some("s".into()),
        running,
        closed: (!open).then(|| "closed".into()),
        fitness: Some(Ok(())),
        ..Status::default()
    }
}

fn progress(percent: u8) -> Progress {
    Progress { stage: "fetching".into(), percent: Some(percent) }
}

async fn order(attachment: &Attachment, wanted: Order) {
    attachment.orders.clone().wait_for(|order| *order == wanted).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_boots_becomes_ready_and_tells_how_it_is() {
    let (mut scaler, attachment) = attach();
    let mut stream = scaler.accept().await;
    let hello = &stream.hello;
    assert_eq!((hello.node_id.as_str(), hello.instance_id.as_str(), hello.pool.as_str()), (ID, "i-1", "builds"));
    assert_eq!((hello.slots, hello.build.as_str(), hello.ready), (4, "b", false));
    stream.welcome().await;
    attachment.boots(progress(40));
    assert_eq!(stream.boot().await, ("fetching".into(), Some(40)));
    attachment.works(&status(0, true), false);
    assert!(stream.health().await.healthy);
    stream.ready().await;

    attachment.works(&status(3, true), false);
    assert_eq!((stream.running(3).await.slots, stream.log.len()), (4, 4));
    let begin = Instant::now();
    assert_eq!(stream.health().await.running, 3);
    assert_eq!(begin.elapsed().as_secs(), 10, "nothing has changed, so the interval counts");
    let unfit = Status { fitness: Some(Err("disk full".into())), ..status(3, true) };
    let begin = Instant::now();
    attachment.works(&unfit, false);
    let health = stream.health().await;
    assert_eq!((health.healthy, health.reason.as_str(), begin.elapsed().as_millis()), (false, "disk full", 0));
}

#[tokio::test(start_paused = true)]
async fn an_executor_that_was_never_fit_is_not_ready() {
    let (mut scaler, attachment) = attach();
    let mut stream = scaler.welcome().await;
    attachment.works(&Status { fitness: Some(Err("no docker".into())), ..status(0, false) }, false);
    assert_eq!(stream.health().await.reason, "no docker");
    attachment.works(&status(0, true), false);
    assert!(stream.health().await.healthy);
    assert_eq!(stream.log.len(), 2);
    stream.ready().await;
    assert_eq!(stream.log.len(), 3, "the first readiness comes with the first fitness");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_know_its_id_is_told() {
    let (mut scaler, way) = Scaler::new();
    let attachment = Attachment::start(Some(node("")), Arc::new(way));
    assert_eq!(attachment.id(Duration::from_secs(1)).await, None);
    let stream = scaler.welcome().await;
    let id = attachment.id(Duration::from_secs(1)).await.unwrap();
    assert_eq!(id, uuid::Uuid::from_u128(77).to_string());
    drop(stream);
    assert_eq!(scaler.accept().await.hello.node_id, id);
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_answered_once_nothing_runs_and_called_off_by_a_resume() {
    let (mut scaler, attachment) = attach();
    let mut stream = scaler.welcome().await;
    attachment.works(&status(1, true), false);
    stream.ready().await;
    stream.drain("fewer are needed").await;
    order(&attachment, Order::Drain("fewer are needed".into())).await;
    attachment.works(&status(1, false), false);
    assert_eq!(stream.health().await.running, 1, "it says that it lives, and not that it is drained");
    attachment.works(&status(0, false), false);
    stream.drained().await;
    stream.resume().await;
    order(&attachment, Order::Work).await;
    attachment.works(&status(0, true), false);
    stream.drain("again").await;
    order(&attachment, Order::Drain("again".into())).await;
    attachment.works(&status(0, false), false);
    stream.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_node_says_so_again_on_each_stream_that_repeats_the_drain() {
    let (mut scaler, attachment) = attach();
    let mut stream = scaler.welcome().await;
    attachment.works(&status(0, false), false);
    stream.drain("go").await;
    stream.drained().await;
    drop(stream);
    let mut stream = scaler.welcome().await;
    stream.drain("go").await;
    stream.drained().await;
    assert_eq!(*attachment.orders.borrow(), Order::Drain("go".into()));
    drop(stream);
    // The drain was called off while no stream was up: nobody repeats it.
    let _stream = scaler.welcome().await;
    let begin = Instant::now();
    order(&attachment, Order::Work).await;
    assert_eq!(begin.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_lost_stream_is_opened_again_and_says_what_is_so_by_then() {
    let (mut scaler, attachment) = attach();
    let mut stream = scaler.welcome().await;
    attachment.boots(progress(10));
    stream.boot().await;
    stream.fail(Refusal::unavailable("restarting")).await;
    scaler.refuse(Some(Refusal::unavailable("restarting")));
    for percent in 11..=99 {
        attachment.boots(progress(percent));
    }
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(*attachment.orders.borrow(), Order::Work, "an outage orders nothing");
    scaler.refuse(None);
    let begin = Instant::now();
    let mut stream = scaler.welcome().await;
    assert!(begin.elapsed() <= Duration::from_secs(15), "the back-off is bounded: {:?}", begin.elapsed());
    assert_eq!(stream.boot().await.1, Some(99));
    assert_eq!(stream.log.len(), 1, "what was so meanwhile is not news");
    attachment.works(&status(2, true), false);
    stream.ready().await;
    drop(stream);
    let mut stream = scaler.welcome().await;
    assert!(stream.hello.ready);
    assert_eq!(stream.health().await.running, 2);
    assert_eq!(stream.log.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_sent_away_comes_back_when_it_was_told_to() {
    let (mut scaler, _attachment) = attach();
    let stream = scaler.welcome().await;
    let begin = Instant::now();
    stream.go_away(20).await;
    scaler.welcome().await;
    let waited = begin.elapsed();
    assert!((20..=21).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_leaves_and_one_that_is_unknown_waits_a_minute() {
    let (scaler, attachment) = attach();
    scaler.refuse(Some(refusal("WRONG_POOL")));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(*attachment.orders.borrow(), Order::Work);
    scaler.refuse(Some(refusal("NODE_UNKNOWN")));
    let begin = Instant::now();
    let mut orders = attachment.orders.clone();
    orders.wait_for(|order| matches!(order, Order::Leave(_))).await.unwrap();
    assert!((60..=90).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());

    let (mut scaler, attachment) = attach();
    let stream = scaler.welcome().await;
    stream.fail(refusal("NODE_GONE")).await;
    let mut orders = attachment.orders.clone();
    orders.wait_for(|order| matches!(order, Order::Leave(_))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_last_word_is_said_before_the_agent_ends_and_not_waited_for_for_ever() {
    let (mut scaler, attachment) = attach();
    let mut stream = scaler.welcome().await;
    attachment.works(&status(0, true), false);
    stream.ready().await;
    let farewell = tokio::spawn(attachment.farewell(End::Left));
    stream.drained().await;
    assert!(!farewell.is_finished());
    stream.over().await;
    farewell.await.unwrap();

    // The stream is down at that moment: one more try is made at once.
    let (mut scaler, attachment) = attach();
    scaler.welcome().await.fail(Refusal::unavailable("restarting")).await;
    tokio::task::yield_now().await;
    let farewell = tokio::spawn(attachment.farewell(End::BootFailed("no disk".into())));
    let mut stream = scaler.welcome().await;
    assert_eq!(stream.boot_failed().await, "no disk");
    stream.over().await;
    farewell.await.unwrap();

    let (scaler, attachment) = attach();
    scaler.refuse(Some(Refusal::unavailable("away")));
    let begin = Instant::now();
    attachment.farewell(End::Left).await;
    assert_eq!(begin.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_spot_notice_is_told_on_every_stream() {
    let (mut scaler, attachment) = attach();
    let mut stream = scaler.welcome().await;
    let at = prost_types::Timestamp { seconds: 5, nanos: 0 };
    attachment.facts.send_modify(|facts| facts.spot = Some(Some(at)));
    for _ in 0..2 {
        let notice = stream.next(|message| match message {
            millrace_proto::scaler::v1::attach_node_request::Message::SpotNotice(notice) => Some(*notice),
            _ => None,
        });
        assert_eq!(notice.await.at, Some(at));
        drop(stream);
        stream = scaler.welcome().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_no_node_says_nothing_and_ends_at_once() {
    let (_scaler, way) = Scaler::new();
    let attachment = Attachment::start(None, Arc::new(way));
    attachment.works(&status(1, true), false);
    assert_eq!(*attachment.orders.borrow(), Order::Work);
    let begin = Instant::now();
    attachment.farewell(End::Left).await;
    assert!(begin.elapsed().is_zero());
}
