//! Claiming tasks for sessions.

use millrace_core::{id::SessionId, id::TaskId, task::State};
use millrace_store::{Claim, Claimed, Dispatch, QueueChange};
use uuid::Uuid;

use crate::world::{DEFAULT, Worker, World, audit, hours, new_session, requeue, secs, token};

fn pause(world: &World, queue: &str, pause: Option<(String, Option<i64>)>) {
    let change = QueueChange { pause: Some(pause), ..QueueChange::default() };
    world.update_queue(queue, &change, &audit(), None).expect("changing a queue").expect("the queue");
}

pub(crate) fn a_claim_dispatches_the_task(world: &World) {
    let mut task = world.new_task();
    task.envelope.timeout_ms = Some(5000);
    task.envelope.trace_context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into();
    task.spec = vec![0, 255, 0, 1];
    task.expire_after = Some(hours(1));
    let id = world.put(task);
    let worker = world.worker();
    let before = world.now();
    let claim = world.claim_of(worker, DEFAULT, id);
    let Claimed::Won(dispatch) = world.try_claim(&claim) else { panic!("not won") };
    let row = world.row(id);
    assert_eq!((dispatch.lease.task, dispatch.lease.attempt, dispatch.lease.token), (id, 1, claim.token));
    assert_eq!(
        *dispatch,
        Dispatch {
            lease: dispatch.lease,
            queue: DEFAULT.into(),
            spec: vec![0, 255, 0, 1],
            timeout_ms: Some(5000),
            trace_context: row.envelope.trace_context.clone(),
            dispatched_at_us: dispatch.dispatched_at_us,
            state: State::Dispatched,
        }
    );
    assert!(dispatch.dispatched_at_us >= before.0 && dispatch.dispatched_at_us <= world.now().0);
    assert_eq!((row.state, row.attempt, row.token), (State::Dispatched, 1, Some(claim.token)));
    assert_eq!((row.session, row.orchestrator.as_str()), (Some(worker.id), "worker"));
    assert_eq!((row.ready_at_us, row.dispatched_at_us), (None, Some(dispatch.dispatched_at_us)));
    assert_eq!(world.held_by(worker.id).expect("reading what it holds"), [*dispatch]);
}

pub(crate) fn r1_a_repeated_claim_wins_again_with_the_same_token(world: &World) {
    let worker = world.worker();
    let claim = world.claim_of(worker, DEFAULT, world.queued());
    let Claimed::Won(first) = world.try_claim(&claim) else { panic!("not won") };
    // The answer was lost: the same call is made again, before and after the orchestrator has accepted.
    assert_eq!(world.try_claim(&claim), Claimed::Won(first.clone()));
    assert!(world.beat(worker, vec![(first.lease, None)]).0);
    let running = Dispatch { state: State::Running, ..(*first).clone() };
    assert_eq!(world.try_claim(&claim), Claimed::Won(Box::new(running)));
    assert_eq!(world.row(claim.task).attempt, 1);
    // Another token is another claim, even of the same session.
    assert_eq!(world.try_claim(&Claim { token: token(), ..claim.clone() }), Claimed::Stale);
    // And once the attempt has ended, it is not won again.
    world.completed(first.lease, State::Succeeded);
    assert_eq!(world.try_claim(&claim), Claimed::Stale);
}

pub(crate) fn r2_a_claim_with_an_old_generation_is_refused(world: &World) {
    let old = world.worker();
    let task = world.queued();
    let resumed = world.resume_session(old.id, old.generation, "elsewhere").expect("resuming");
    let millrace_store::Resumed::Yes { session, .. } = resumed else { panic!("not resumed") };
    assert_eq!(world.try_claim(&world.claim_of(old, DEFAULT, task)), Claimed::SessionGone);
    let ahead = Worker { id: old.id, generation: session.generation + 1 };
    assert_eq!(world.try_claim(&world.claim_of(ahead, DEFAULT, task)), Claimed::SessionGone);
    assert_eq!(world.state(task), State::Queued);
    world.dispatched(Worker { id: old.id, generation: session.generation }, task);
}

pub(crate) fn r2_a_claim_for_a_closed_or_unknown_session_is_refused(world: &World) {
    let closed = world.worker();
    assert!(world.close_session(closed.id, Some(closed.generation)).expect("closing"));
    let unknown = Worker { id: SessionId(Uuid::now_v7()), generation: 1 };
    let task = world.queued();
    for generation in [closed.generation, closed.generation + 1, closed.generation + 2] {
        let claim = world.claim_of(Worker { id: closed.id, generation }, DEFAULT, task);
        assert_eq!(world.try_claim(&claim), Claimed::SessionGone);
    }
    assert_eq!(world.try_claim(&world.claim_of(unknown, DEFAULT, task)), Claimed::SessionGone);
    assert_eq!(world.state(task), State::Queued);
}

pub(crate) fn r2_a_claim_for_a_reaped_session_is_refused(world: &World) {
    let worker = world.worker_for(secs(100));
    let task = world.queued();
    world.serve(secs(200));
    assert_eq!(world.reap_sessions(10).expect("reaping"), [worker.id]);
    for generation in [worker.generation, worker.generation + 1] {
        let claim = world.claim_of(Worker { id: worker.id, generation }, DEFAULT, task);
        assert_eq!(world.try_claim(&claim), Claimed::SessionGone);
    }
}

pub(crate) fn r5_a_claim_with_another_epoch_is_refused(world: &World) {
    let epoch = world.epoch_of(DEFAULT);
    let worker = world.worker();
    let claim = world.claim_of(worker, DEFAULT, world.queued());
    assert_eq!(claim.epoch, epoch);
    for other in [epoch - 1, epoch + 1, 0, i64::MAX] {
        assert_eq!(world.try_claim(&Claim { epoch: other, ..claim.clone() }), Claimed::GateClosed, "epoch {other}");
    }
    assert!(matches!(world.try_claim(&claim), Claimed::Won(_)));
}

pub(crate) fn r5_a_claim_from_a_paused_queue_is_refused(world: &World) {
    let worker = world.worker();
    let other = world.queue_named("other");
    let claim = world.claim_of(worker, DEFAULT, world.queued());
    let free = world.claim_of(worker, &other, world.put(world.new_task_in(&other)));
    pause(world, DEFAULT, Some(("a test".into(), None)));
    // The pause of one queue is nothing to another, even in one batch.
    let answers = world.claim(&[claim.clone(), free]).expect("claiming");
    assert_eq!(answers[0], Claimed::GateClosed);
    assert!(matches!(answers[1], Claimed::Won(_)), "{answers:?}");
    assert_eq!(world.state(claim.task), State::Queued);
    pause(world, DEFAULT, None);
    assert!(matches!(world.try_claim(&claim), Claimed::Won(_)));
}

pub(crate) fn r5_a_claim_from_a_queue_that_never_was_is_not_won(world: &World) {
    let claim = Claim { queue: "nowhere".into(), ..world.claim_of(world.worker(), DEFAULT, world.queued()) };
    let answer = world.try_claim(&claim);
    assert!(matches!(answer, Claimed::GateClosed | Claimed::Stale), "{answer:?}");
    assert_eq!(world.state(claim.task), State::Queued);
}

pub(crate) fn a_claim_of_what_does_not_wait_there_is_stale(world: &World) {
    let worker = world.worker();
    let other = world.queue_named("other");
    let mut scheduled = world.new_task();
    scheduled.not_before = Some(world.now().after(hours(1)));
    let cases = [
        ("held by another", world.held(world.worker()).task),
        ("held by itself", world.held(worker).task),
        ("scheduled", world.put(scheduled)),
        ("in another queue", world.put(world.new_task_in(&other))),
        ("finished", world.finished(State::Failed)),
        ("cancelled", world.cancelled(world.queued()).envelope.id),
        ("unknown", TaskId(Uuid::now_v7())),
    ];
    for (case, task) in cases {
        let before = world.task(task).expect("reading");
        assert_eq!(world.try_claim(&world.claim_of(worker, DEFAULT, task)), Claimed::Stale, "{case}");
        assert_eq!(world.task(task).expect("reading"), before, "{case}");
    }
}

pub(crate) fn an_expired_task_is_not_claimed(world: &World) {
    let worker = world.worker();
    let mut task = world.new_task();
    task.expire_after = Some(hours(1));
    let id = world.put(task);
    world.advance(hours(2));
    assert_eq!(world.try_claim(&world.claim_of(worker, DEFAULT, id)), Claimed::Stale);
    assert_eq!(world.expire(10).expect("expiring"), [id]);
}

pub(crate) fn two_claims_of_one_batch_for_one_task_never_both_win(world: &World) {
    let (one, other) = (world.worker(), world.worker());
    let task = world.queued();
    let claims = [world.claim_of(one, DEFAULT, task), world.claim_of(other, DEFAULT, task)];
    let answers = world.claim(&claims).expect("claiming");
    let won: Vec<usize> = (0..2).filter(|index| matches!(answers[*index], Claimed::Won(_))).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    assert!(answers.contains(&Claimed::Stale), "{answers:?}");
    let row = world.row(task);
    assert_eq!((row.session, row.token), (Some(claims[won[0]].session), Some(claims[won[0]].token)));
    assert_eq!(row.attempt, 1);
}

pub(crate) fn r8_a_lost_claim_does_not_harm_its_neighbours(world: &World) {
    let worker = world.worker();
    let mut tasks = world.queued_many(6);
    tasks.reverse();
    let mut claims: Vec<Claim> = tasks.iter().map(|task| world.claim_of(worker, DEFAULT, *task)).collect();
    claims[1].epoch += 1;
    claims[3].generation += 1;
    claims[4].task = TaskId(Uuid::now_v7());
    let answers = world.claim(&claims).expect("claiming");
    for (index, (claim, answer)) in claims.iter().zip(&answers).enumerate() {
        match index {
            1 => assert_eq!(*answer, Claimed::GateClosed),
            3 => assert_eq!(*answer, Claimed::SessionGone),
            4 => assert_eq!(*answer, Claimed::Stale),
            _ => match answer {
                Claimed::Won(dispatch) => {
                    assert_eq!((dispatch.lease.task, dispatch.lease.token), (claim.task, claim.token))
                }
                lost => panic!("{index}: {lost:?}"),
            },
        }
    }
}

pub(crate) fn r9_a_row_too_new_for_this_build_is_left_alone(world: &World) {
    let worker = world.worker();
    let newer = millrace_core::READER_RANGE.1 + 1;
    let mut waiting = world.new_task();
    waiting.envelope.min_reader = newer;
    waiting.envelope.format = newer;
    let mut scheduled = world.new_task();
    scheduled.envelope.min_reader = newer;
    scheduled.not_before = Some(world.now().after(hours(1)));
    let mut expiring = world.new_task();
    expiring.envelope.min_reader = newer;
    expiring.expire_after = Some(hours(1));
    let (waiting, scheduled, expiring) = (world.put(waiting), world.put(scheduled), world.put(expiring));
    let neighbour = world.queued();
    world.advance(hours(2));
    let claims = [waiting, neighbour].map(|task| world.claim_of(worker, DEFAULT, task));
    let answers = world.claim(&claims).expect("claiming");
    assert_eq!(answers[0], Claimed::Stale);
    assert!(matches!(answers[1], Claimed::Won(_)), "{answers:?}");
    assert_eq!(world.wake(10).expect("waking"), []);
    assert_eq!(world.expire(10).expect("expiring"), []);
    assert_eq!(world.state(waiting), State::Queued);
    assert_eq!(world.state(scheduled), State::Scheduled);
    assert_eq!(world.state(expiring), State::Queued);
}

pub(crate) fn attempts_count_up_with_a_new_token_each(world: &World) {
    let task = world.queued();
    let mut tokens = Vec::new();
    for attempt in 1..=4 {
        // Another session each time: the number belongs to the task.
        let session = world.open_session(&new_session(hours(10))).expect("opening");
        let worker = Worker { id: session.session.id, generation: session.generation };
        let lease = world.dispatched(worker, task).lease;
        assert_eq!(lease.attempt, attempt);
        assert!(!tokens.contains(&lease.token));
        tokens.push(lease.token);
        world.try_requeue(requeue(lease, secs(0)));
    }
    assert_eq!(world.row(task).attempt, 4);
}
