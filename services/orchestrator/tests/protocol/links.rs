//! Which replica is talked to, and when.

use super::*;

#[tokio::test(start_paused = true)]
async fn r7_a_replica_that_answers_no_heartbeat_is_left_in_time() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(1), executor);
    let mut stream = world.welcome(1).await;
    let begin = Instant::now();
    stream.assign(vec![assignment(1, 7, 1)]).await;
    let attempt = started.recv().await.unwrap();
    // The stream stays open, and nobody reads it.
    let next = world.accept().await;
    assert_eq!((next.hello.session_id.as_str(), next.hello.held.len()), (SESSION, 1));
    assert!((10..15).contains(&begin.elapsed().as_secs()));
    assert_eq!(attempt.handle.stop_requested(), None);
}

#[tokio::test(start_paused = true)]
async fn go_away_is_obeyed_with_its_delay_and_endpoint() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1), assignment(2, 8, 1)]).await;
    let (seven, _eight) = (started.recv().await.unwrap(), started.recv().await.unwrap());
    let begin = Instant::now();
    stream.go_away(8, "http://two").await;
    // Until then the stream still serves.
    seven.finish(Outcome::succeeded());
    let completion = stream.completion().await;
    stream.answer(&completion, ResultStatus::Recorded).await;
    let mut next = world.accept().await;
    assert_eq!((next.endpoint.as_str(), begin.elapsed().as_secs()), ("http://two", 8));
    assert_eq!((next.hello.session_id.as_str(), next.hello.held.as_slice()), (SESSION, [lease(8, 1)].as_slice()));
    next.welcome(SESSION, 2, &[]).await;
    assert_eq!(next.grant().await, (1, 0));
    drop(next);
    assert_eq!(world.accept().await.endpoint, "http://one");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_after_go_away_does_not_shorten_the_delay() {
    let mut world = World::start(options(1), Manual::new().0);
    let mut stream = world.welcome(1).await;
    stream.grant().await;
    let begin = Instant::now();
    stream.go_away(8, "").await;
    drop(stream);
    let mut next = world.accept().await;
    assert_eq!(begin.elapsed().as_secs(), 8);
    // Also in answer to Hello.
    next.go_away(3, "http://three").await;
    assert_eq!((world.accept().await.endpoint.as_str(), begin.elapsed().as_secs()), ("http://three", 11));
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_tried_in_turn_and_a_retry_delay_is_honoured() {
    let mut options = options(1);
    options.endpoints = vec!["http://one".into(), "http://two".into()];
    let mut world = World::start(options, Manual::new().0);
    let first = world.accept().await;
    let (begin, endpoint) = (Instant::now(), first.endpoint.clone());
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(30)));
    first.refuse(Status::with_error_details(Code::Unavailable, "busy", details)).await;
    let second = world.accept().await;
    assert_ne!(second.endpoint, endpoint);
    assert_eq!(begin.elapsed().as_secs(), 30);
    second.refuse(Status::internal("broken")).await;
    assert_eq!(world.accept().await.endpoint, endpoint);
}

#[tokio::test(start_paused = true)]
async fn a_first_hello_that_is_invalid_ends_the_orchestrator() {
    let mut world = World::start(options(1), Manual::new().0);
    world.accept().await.refuse(Status::invalid_argument("name: too long")).await;
    let error = world.running.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the distributor refuses this orchestrator: name: too long");
}
