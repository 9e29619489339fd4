//! Sessions that are resumed, lost, or closed by a restart, and attempts whose messages crossed.

use super::*;

#[tokio::test(start_paused = true)]
async fn r1_a_resent_assignment_runs_once_and_is_accepted_again() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1)]).await;
    assert_eq!(stream.accepted().await, [lease(7, 1)]);
    stream.assign(vec![resent(assignment(2, 7, 1)), resent(assignment(3, 7, 1))]).await;
    assert_eq!(stream.accepted().await, [lease(7, 1), lease(7, 1)]);

    started.recv().await.unwrap().finish(Outcome::succeeded());
    let first = stream.completion().await;
    // The repeat crossed the result: the result is sent again, and the attempt is not.
    stream.assign(vec![resent(assignment(4, 7, 1))]).await;
    assert_eq!(stream.completion().await, first);
    assert!(started.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn r1_a_repeat_that_comes_after_the_result_was_recorded_runs_nothing() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1)]).await;
    started.recv().await.unwrap().finish(Outcome::succeeded());
    let completion = stream.completion().await;
    stream.answer(&completion, ResultStatus::Recorded).await;
    stream.assign(vec![resent(assignment(2, 7, 1))]).await;
    assert!(stream.held().await.is_empty());
    assert!(started.try_recv().is_err());
    // The next attempt of the task is another matter.
    stream.assign(vec![assignment(3, 7, 2)]).await;
    assert_eq!(started.recv().await.unwrap().handle.attempt, 2);
}

#[tokio::test(start_paused = true)]
async fn r1_heartbeats_carry_count_and_digest_of_what_is_held() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(3), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1), assignment(2, 8, 4)]).await;
    stream.accepted().await;
    assert_eq!(stream.heartbeat().await, (1, 2, digest(&[(7, 1), (8, 4)])));

    // A result that is not recorded is still held.
    started.recv().await.unwrap().finish(Outcome::succeeded());
    let completion = stream.completion().await;
    assert_eq!(stream.heartbeat().await, (2, 2, digest(&[(7, 1), (8, 4)])));
    assert_eq!(stream.held().await, [lease(7, 1), lease(8, 4)]);

    stream.answer(&completion, ResultStatus::Recorded).await;
    assert_eq!(stream.heartbeat().await, (3, 1, digest(&[(8, 4)])));
    assert_eq!(stream.held().await, [lease(8, 4)]);
}

#[tokio::test(start_paused = true)]
async fn r1_a_resume_names_what_is_held_and_sends_results_again() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(3), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1), assignment(2, 8, 1)]).await;
    stream.accepted().await;
    started.recv().await.unwrap().finish(Outcome::succeeded());
    let unanswered = stream.completion().await;
    drop(stream);

    let mut stream = world.accept().await;
    let mut held = stream.hello.held.clone();
    held.sort_by(|a, b| a.task_id.cmp(&b.task_id));
    assert_eq!(held, [lease(7, 1), lease(8, 1)]);
    assert_eq!((stream.hello.session_id.as_str(), stream.hello.generation), (SESSION, 1));
    stream.welcome(SESSION, 2, &[]).await;
    // Credits start anew on the new stream; the undelivered result still holds its slot.
    assert_eq!(stream.grant().await, (1, 0));
    assert_eq!(stream.accepted().await, [lease(8, 1)]);
    assert_eq!(stream.completion().await, unanswered);
    stream.answer(&unanswered, ResultStatus::Recorded).await;
    assert_eq!(stream.grant().await, (2, 0));
    drop(stream);
    assert_eq!(world.accept().await.hello.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn r1_what_a_resume_revokes_is_stopped_and_not_reported() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(3), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1), assignment(2, 8, 1)]).await;
    let (mut seven, _eight) = (started.recv().await.unwrap(), started.recv().await.unwrap());
    drop(stream);
    let mut stream = world.accept().await;
    stream.welcome(SESSION, 2, &[lease(7, 1)]).await;
    assert_eq!(seven.handle.cancelled().await.reason, StopReason::Revoked);
    seven.gone().await;
    assert_eq!(stream.held().await, [lease(8, 1)]);
    assert_eq!(stream.completions_seen(), 0);
}

#[tokio::test(start_paused = true)]
async fn r2_a_session_that_is_gone_stops_what_it_held_and_a_new_one_is_opened() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1), assignment(2, 8, 1)]).await;
    let (mut seven, eight) = (started.recv().await.unwrap(), started.recv().await.unwrap());
    eight.finish(Outcome::succeeded());
    stream.completion().await;
    drop(stream);

    world.accept().await.refuse(session_gone()).await;
    assert_eq!(seven.handle.cancelled().await.reason, StopReason::Revoked);
    seven.gone().await;
    let mut stream = world.accept().await;
    assert_eq!((stream.hello.session_id.as_str(), stream.hello.held.len()), ("", 0));
    stream.welcome(OTHER_SESSION, 1, &[]).await;
    assert_eq!(stream.grant().await, (2, 0));
    assert!(stream.held().await.is_empty());
    assert_eq!(stream.completions_seen(), 0);
}

#[tokio::test(start_paused = true)]
async fn r2_a_session_that_ends_under_an_open_stream_is_gone_as_well() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(1), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1)]).await;
    let seven = started.recv().await.unwrap();
    stream.refuse(session_gone()).await;
    assert_eq!(seven.handle.cancelled().await.reason, StopReason::Revoked);
    assert_eq!(world.accept().await.hello.session_id, "");
}

#[tokio::test(start_paused = true)]
async fn r2_a_restart_closes_the_session_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = || {
        let previous_session_file = Some(dir.path().join("session"));
        millrace_orchestrator::Options { previous_session_file, ..options(1) }
    };
    let mut first = World::start(options(), Manual::new().0);
    let mut stream = first.welcome(1).await;
    assert_eq!(stream.hello.previous_session_id, "");
    stream.grant().await;
    // As hard as a kill: nothing is said to the service.
    first.running.abort();
    assert!(first.running.await.unwrap_err().is_cancelled());

    let mut second = World::start(options(), Manual::new().0);
    let stream = second.accept().await;
    assert_eq!((stream.hello.previous_session_id.as_str(), stream.hello.session_id.as_str()), (SESSION, ""));
    // Until a Hello is answered, the next one says it again.
    stream.refuse(Status::unavailable("the database is away")).await;
    let mut stream = second.accept().await;
    assert_eq!(stream.hello.previous_session_id, SESSION);
    stream.welcome(OTHER_SESSION, 1, &[]).await;
    stream.grant().await;
    drop(stream);
    let mut stream = second.accept().await;
    assert_eq!((stream.hello.previous_session_id.as_str(), stream.hello.session_id.as_str()), ("", OTHER_SESSION));
    stream.welcome(OTHER_SESSION, 2, &[]).await;
    stream.grant().await;

    // An end in order leaves nothing to close.
    second.shutdown.cancel();
    stream.goodbye().await;
    drop(stream);
    second.running.await.unwrap().unwrap();
    assert!(!dir.path().join("session").exists());
}
