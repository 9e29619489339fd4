//! Shutting down.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_drain_lets_attempts_end_then_hands_back_then_says_goodbye() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1), assignment(2, 8, 1)]).await;
    let (seven, eight) = (started.recv().await.unwrap(), started.recv().await.unwrap());
    let begin = Instant::now();
    world.shutdown.cancel();
    while stream.grant().await != (0, 2) {}
    seven.finish(Outcome::succeeded());
    let done = stream.completion().await;
    assert_eq!(kind(&done), OutcomeKind::Succeeded);
    stream.answer(&done, ResultStatus::Recorded).await;

    let handed_back = stream.completion().await;
    assert_eq!((kind(&handed_back), begin.elapsed().as_secs()), (OutcomeKind::HandedBack, 30));
    assert_eq!(eight.handle.stop_requested().unwrap().reason, StopReason::Draining);
    assert!(!world.running.is_finished());
    stream.answer(&handed_back, ResultStatus::Recorded).await;
    stream.goodbye().await;
    drop(stream);
    world.running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_ever_for_results_to_be_recorded() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1)]).await;
    started.recv().await.unwrap().finish(Outcome::succeeded());
    stream.completion().await;
    world.network.set_unreachable(true);
    drop(stream);
    let begin = Instant::now();
    world.shutdown.cancel();
    world.running.await.unwrap().unwrap();
    assert_eq!(begin.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_a_connection_or_work_ends_at_once() {
    let world = World::start(options(2), Manual::new().0);
    world.network.set_unreachable(true);
    world.shutdown.cancel();
    let begin = Instant::now();
    world.running.await.unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
}
