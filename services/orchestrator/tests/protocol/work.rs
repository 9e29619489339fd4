//! What becomes of assignments: credits, results, cancellation, refusals.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_task_is_accepted_run_and_completed() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.accept().await;
    let hello = &stream.hello;
    assert_eq!((hello.session_id.as_str(), hello.slots, hello.name.as_str()), ("", 2, "test"));
    assert_eq!((hello.queues.as_slice(), hello.labels["os"].as_str()), (["default".to_owned()].as_slice(), "any"));
    assert_eq!(hello.lease_ttl.unwrap().seconds, 15);
    stream.welcome(SESSION, 1, &[]).await;
    assert_eq!(stream.grant().await, (2, 0));

    stream.assign(vec![assignment(1, 7, 1)]).await;
    assert_eq!(stream.accepted().await, [lease(7, 1)]);
    let attempt = started.recv().await.unwrap();
    assert_eq!((attempt.handle.task_id.to_string(), attempt.handle.attempt), (task(7), 1));
    attempt.finish(Outcome::succeeded());
    let completion = stream.completion().await;
    assert_eq!((completion.lease.clone(), kind(&completion)), (Some(lease(7, 1)), OutcomeKind::Succeeded));
    let outcome = completion.outcome.as_ref().unwrap();
    assert!(outcome.start_time.is_some() && outcome.end_time.is_some());

    stream.answer(&completion, ResultStatus::Recorded).await;
    assert_eq!(stream.grant().await, (2, 1));
    assert!(stream.held().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn r6_grants_are_absolute_and_count_what_is_held() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(3), executor);
    let mut stream = world.welcome(1).await;
    assert_eq!(stream.grant().await, (3, 0));
    stream.assign(vec![assignment(1, 1, 1), assignment(2, 2, 1), assignment(3, 3, 1)]).await;
    stream.accepted().await;
    started.recv().await.unwrap().finish(Outcome::succeeded());
    let first = stream.completion().await;
    stream.answer(&first, ResultStatus::Recorded).await;
    // One of the three slots is free again beyond assignment 3; the assignments themselves needed no new grant.
    assert_eq!(stream.grant().await, (1, 3));
    stream.assign(vec![assignment(4, 4, 1)]).await;
    stream.accepted().await;
    started.recv().await.unwrap().finish(Outcome::failed("broken"));
    let second = stream.completion().await;
    stream.answer(&second, ResultStatus::StaleLease).await;
    assert_eq!(stream.grant().await, (1, 4));
    let grants = stream.log.iter().filter(|message| matches!(message, Request::Grant(_))).count();
    assert_eq!(grants, 3);
}

#[tokio::test(start_paused = true)]
async fn r6_what_was_not_asked_for_is_handed_back() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(1), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 1, 1), assignment(2, 2, 1)]).await;
    let completion = stream.completion().await;
    assert_eq!((completion.lease.clone(), kind(&completion)), (Some(lease(2, 1)), OutcomeKind::HandedBack));
    assert!(started.recv().await.is_some() && started.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_revoked_attempt_is_stopped_and_not_reported() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(1), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1)]).await;
    let attempt = started.recv().await.unwrap();
    // Another's token revokes nothing.
    let mut other = lease(7, 1);
    other.lease_token = "another".into();
    stream.revoke(vec![other]).await;
    assert_eq!(stream.held().await, [lease(7, 1)]);
    stream.revoke(vec![lease(7, 1)]).await;
    assert_eq!(attempt.handle.cancelled().await.reason, StopReason::Revoked);
    // The slot is free when the executor is back, not before.
    while stream.grant().await != (1, 1) {}
    assert!(stream.held().await.is_empty());
    assert_eq!(stream.completions_seen(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_attempt_ends_as_cancelled_or_as_it_ended_first() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1), assignment(2, 8, 1)]).await;
    let (seven, eight) = (started.recv().await.unwrap(), started.recv().await.unwrap());
    stream.cancel(vec![lease(7, 1)]).await;
    assert_eq!(seven.handle.cancelled().await.reason, StopReason::Cancelled);
    assert_eq!(kind(&stream.completion().await), OutcomeKind::Cancelled);
    eight.finish(Outcome::succeeded());
    assert_eq!(kind(&stream.completion().await), OutcomeKind::Succeeded);
    stream.cancel(vec![lease(8, 1)]).await;
    assert_eq!(stream.held().await, [lease(7, 1), lease(8, 1)]);
    assert_eq!(stream.completions_seen(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_told_when_its_timeout_is_over_and_dropped_when_it_does_not_mind() {
    let (executor, mut started) = Manual::stubborn();
    let mut world = World::start(options(1), executor);
    let mut stream = world.welcome(1).await;
    let timeout = Some(prost_types::Duration { seconds: 20, nanos: 0 });
    stream.assign(vec![millrace_proto::distributor::v1::Assignment { timeout, ..assignment(1, 7, 1) }]).await;
    let (mut attempt, begin) = (started.recv().await.unwrap(), Instant::now());
    assert_eq!(attempt.handle.timeout, Some(Duration::from_secs(20)));
    let told = tokio::spawn({
        let handle = attempt.handle.clone();
        async move { (handle.cancelled().await.reason, begin.elapsed().as_secs()) }
    });
    assert_eq!(kind(&stream.completion().await), OutcomeKind::TimedOut);
    assert_eq!(told.await.unwrap(), (StopReason::TimedOut, 20));
    attempt.gone().await;
    assert_eq!(begin.elapsed().as_secs(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_executor_is_the_attempts_failure_alone() {
    struct Panics;
    impl millrace_orchestrator::Executor for Panics {
        fn name(&self) -> &str {
            "fake"
        }
        fn run(&self, attempt: millrace_orchestrator::AttemptHandle) -> futures::future::BoxFuture<'_, Outcome> {
            assert!(attempt.attempt != 1, "before the first await");
            Box::pin(async { panic!("after it") })
        }
    }
    let mut world = World::start(options(3), Panics);
    let mut stream = world.welcome(1).await;
    for (seq, attempt, text) in [(1, 1, "before the first await"), (2, 2, "after it")] {
        stream.assign(vec![assignment(seq, u128::from(seq), attempt)]).await;
        let completion = stream.completion().await;
        assert_eq!(kind(&completion), OutcomeKind::Failed);
        assert!(completion.outcome.unwrap().message.contains(text));
    }
}

#[tokio::test(start_paused = true)]
async fn r12_a_spec_that_cannot_be_run_is_unsupported() {
    let executor = Arc::new(InstantExecutor::default());
    let mut world = World::start(options(10), executor);
    let mut stream = world.welcome(1).await;
    let with_spec = |seq, bytes: Vec<u8>| millrace_proto::distributor::v1::Assignment {
        spec: bytes.into(),
        ..assignment(seq, u128::from(seq), 1)
    };
    let other = TaskSpec { executor: "other".into(), ..spec() }.encode_to_vec();
    let empty = TaskSpec { payload: None, ..spec() }.encode_to_vec();
    stream.assign(vec![with_spec(1, vec![0xFF, 0xFF]), with_spec(2, other), with_spec(3, empty)]).await;
    let completions = stream.completions().await;
    assert_eq!(completions.len(), 3);
    assert!(completions.iter().all(|completion| kind(completion) == OutcomeKind::Unsupported));
}

#[tokio::test(start_paused = true)]
async fn r12_the_executor_gets_the_spec_byte_for_byte() {
    let executor = Arc::new(InstantExecutor { seen: Some(Default::default()) });
    let mut world = World::start(options(1), executor.clone());
    let mut stream = world.welcome(1).await;
    let mut bytes = spec().encode_to_vec();
    // Field 1000, of a later release.
    bytes.extend([0xC2, 0x3E, 3, b'n', b'e', b'w']);
    let later = millrace_proto::distributor::v1::Assignment {
        spec: bytes.clone().into(),
        traceparent: "00-trace".into(),
        dispatch_time: Some(prost_types::Timestamp { seconds: 5, nanos: 0 }),
        ..assignment(1, 7, 1)
    };
    stream.assign(vec![later]).await;
    assert_eq!(kind(&stream.completion().await), OutcomeKind::Succeeded);
    let seen = executor.seen.as_ref().unwrap().lock().unwrap();
    assert_eq!((&seen[0].spec_bytes[..], &seen[0].spec), (&bytes[..], &spec()));
    assert_eq!((seen[0].traceparent.as_str(), seen[0].queue.as_str()), ("00-trace", "default"));
    assert_eq!(seen[0].dispatch_time, Some(std::time::UNIX_EPOCH + Duration::from_secs(5)));
}

#[tokio::test(start_paused = true)]
async fn results_of_a_batch_share_a_message_of_bounded_size() {
    let mut world = World::start(options(2500), InstantExecutor::default());
    let mut stream = world.welcome(1).await;
    stream.assign((1..=2500).map(|seq| assignment(seq, u128::from(seq), 1)).collect()).await;
    for expected in [1000, 1000, 500] {
        assert_eq!(stream.completions().await.len(), expected);
    }
    assert!(!stream.log.iter().any(|message| matches!(message, Request::Accepted(_))), "the results say it all");

    struct Verbose;
    impl millrace_orchestrator::Executor for Verbose {
        fn name(&self) -> &str {
            "fake"
        }
        fn run(&self, _: millrace_orchestrator::AttemptHandle) -> futures::future::BoxFuture<'_, Outcome> {
            unreachable!("every attempt runs inline")
        }
        fn run_inline(&self, _: &millrace_orchestrator::Attempt) -> Option<Outcome> {
            Some(Outcome { output_tail: vec![0; 16 * 1024].into(), ..Outcome::succeeded() })
        }
    }
    let mut world = World::start(options(1000), Verbose);
    let mut stream = world.welcome(1).await;
    stream.assign((1..=1000).map(|seq| assignment(seq, u128::from(seq), 1)).collect()).await;
    let mut seen = 0;
    while seen < 1000 {
        seen += stream.completions().await.len();
        let message = ConnectOrchestratorRequest { message: stream.log.last().cloned() };
        assert!(message.encoded_len() < 2 << 20);
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_that_could_not_be_recorded_is_kept_and_sent_again() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(1), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1)]).await;
    started.recv().await.unwrap().finish(Outcome::succeeded());
    for _ in 0..3 {
        let completion = stream.completion().await;
        stream.answer(&completion, ResultStatus::Unavailable).await;
    }
    let completion = stream.completion().await;
    assert_eq!(stream.held().await, [lease(7, 1)]);
    stream.answer(&completion, ResultStatus::Invalid).await;
    while stream.grant().await != (1, 1) {}
    assert!(stream.held().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unfit_executor_asks_for_no_work_and_what_runs_goes_on() {
    let (executor, mut started, fitness) = Manual::with_fitness(Err("no daemon".into()));
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    assert_eq!(stream.grant().await, (0, 0));
    fitness.send(Ok(())).unwrap();
    assert_eq!(stream.grant().await, (2, 0));
    stream.assign(vec![assignment(1, 7, 1)]).await;
    stream.accepted().await;
    fitness.send(Err("disk full".into())).unwrap();
    assert_eq!(stream.grant().await, (0, 1));
    assert_eq!(world.status.borrow().closed.as_deref(), Some("the executor is not fit for work: disk full"));
    // It was under way when the credits were withdrawn.
    stream.assign(vec![assignment(2, 8, 1)]).await;
    let completion = stream.completion().await;
    assert_eq!((completion.lease.clone(), kind(&completion)), (Some(lease(8, 1)), OutcomeKind::HandedBack));
    stream.answer(&completion, ResultStatus::Recorded).await;
    started.recv().await.unwrap().finish(Outcome::succeeded());
    assert_eq!(kind(&stream.completion().await), OutcomeKind::Succeeded);
}
