//! Silence, and what it means for exclusive tasks.

use super::*;

#[tokio::test(start_paused = true)]
async fn r16_silence_kills_nothing() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(1), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1)]).await;
    let attempt = started.recv().await.unwrap();
    world.network.set_unreachable(true);
    drop(stream);
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(attempt.handle.stop_requested(), None);
    let tried = world.network.tried().len();
    world.network.set_unreachable(false);
    let mut stream = world.welcome(2).await;
    assert!(world.network.tried().len() > tried);
    assert_eq!(stream.hello.held, [lease(7, 1)]);
    attempt.finish(Outcome::succeeded());
    assert_eq!(kind(&stream.completion().await), OutcomeKind::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn r16_an_exclusive_attempt_is_stopped_before_its_lease_can_end() {
    let (executor, mut started) = Manual::stubborn();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![exclusive(assignment(1, 7, 1)), assignment(2, 8, 1)]).await;
    let (mut alone, other) = (started.recv().await.unwrap(), started.recv().await.unwrap());
    stream.heartbeat().await;
    stream.heartbeat().await;
    let renewed = Instant::now();
    // The answer to the second heartbeat has to arrive before the stream is cut.
    stream.held().await;
    world.network.set_unreachable(true);
    drop(stream);

    let stop = alone.handle.cancelled().await;
    assert_eq!((stop.reason, renewed.elapsed().as_secs()), (StopReason::LeaseExpiring, 12));
    assert!(stop.deadline.unwrap() < renewed + Duration::from_secs(15));
    // An executor that does not mind is dropped, still in time.
    alone.gone().await;
    assert!(renewed.elapsed() < Duration::from_secs(15));
    assert_eq!(other.handle.stop_requested(), None);

    world.network.set_unreachable(false);
    let mut stream = world.welcome(2).await;
    assert_eq!(stream.hello.held.len(), 2);
    assert_eq!(kind(&stream.completion().await), OutcomeKind::HandedBack);
}

#[tokio::test(start_paused = true)]
async fn r16_an_exclusive_attempt_goes_on_while_its_lease_is_renewed() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![exclusive(assignment(1, 7, 1))]).await;
    let attempt = started.recv().await.unwrap();
    for _ in 0..20 {
        stream.heartbeat().await;
    }
    assert_eq!(attempt.handle.stop_requested(), None);
    // A resume in time renews it as well.
    for generation in 2..10 {
        drop(stream);
        stream = world.welcome(generation).await;
        stream.answers_heartbeats = false;
        stream.heartbeat().await;
    }
    assert_eq!(attempt.handle.stop_requested(), None);
}

#[tokio::test(start_paused = true)]
async fn r16_a_new_attempt_of_an_exclusive_task_waits_for_the_old_one_to_end() {
    let (executor, mut started) = Manual::stubborn();
    let mut world = World::start(options(3), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![exclusive(assignment(1, 7, 1))]).await;
    let old = started.recv().await.unwrap();
    stream.assign(vec![exclusive(assignment(2, 7, 2))]).await;
    assert_eq!(old.handle.cancelled().await.reason, StopReason::Revoked);
    assert_eq!(stream.held().await, [lease(7, 2)]);
    assert!(started.try_recv().is_err());
    old.finish(Outcome::succeeded());
    let new = started.recv().await.unwrap();
    assert_eq!(new.handle.attempt, 2);
    new.finish(Outcome::succeeded());
    let completion = stream.completion().await;
    assert_eq!(completion.lease, Some(lease(7, 2)));
    assert_eq!(stream.completions_seen(), 1);
}
