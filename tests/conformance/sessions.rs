//! Sessions of orchestrators, and what they hold.

use std::collections::BTreeMap;

use millrace_core::{held::LeaseRef, id::SessionId, task::State};
use millrace_store::{Heartbeat, NewSession, Resumed, SessionRow};
use uuid::Uuid;

use crate::world::{DEFAULT, Worker, World, hours, new_session, secs, sorted, token};

fn resume(world: &World, worker: Worker) -> Option<SessionRow> {
    match world.resume_session(worker.id, worker.generation, "elsewhere").expect("resuming") {
        Resumed::Yes { session, .. } => Some(session),
        Resumed::Gone => None,
    }
}

fn whole_session() -> NewSession {
    NewSession {
        name: "mac-17 «été»".into(),
        queues: vec!["default".into(), "mac.m2".into()],
        slots: 100_000,
        labels: BTreeMap::from([("os".into(), "macos \"15\"".into()), ("a".into(), String::new())]),
        build: "0.1.0+abc".into(),
        ..new_session(secs(15))
    }
}

pub(crate) fn a_session_is_opened_once(world: &World) {
    let session = whole_session();
    let before = world.now();
    let served = world.served_ms();
    let opened = world.open_session(&session).expect("opening");
    assert_eq!(opened.session, session);
    assert_eq!((opened.generation, opened.live, opened.held), (1, true, 0));
    assert!(opened.expires_served_ms >= served + 15_000 && opened.expires_served_ms <= world.served_ms() + 15_000);
    assert!(opened.seen_at_us >= before.0 && opened.seen_at_us <= world.now().0);
    // The answer was lost: the same call again.
    let again = world.open_session(&session).expect("opening again");
    assert_eq!((again.session, again.generation, again.live), (session, 1, true));
    assert_eq!(world.sessions(10).expect("listing").len(), 1);
}

pub(crate) fn a_session_that_went_on_is_not_opened_again(world: &World) {
    let (resumed, closed) = (new_session(hours(1)), new_session(hours(1)));
    for session in [&resumed, &closed] {
        world.open_session(session).expect("opening");
    }
    resume(world, Worker { id: resumed.id, generation: 1 }).expect("a resumed session");
    world.close_session(closed.id, None).expect("closing");
    for session in [&resumed, &closed] {
        assert!(world.open_session(session).is_err());
    }
    assert_eq!(resume(world, Worker { id: resumed.id, generation: 2 }).map(|row| row.generation), Some(3));
}

pub(crate) fn r1_a_resumed_session_is_told_what_it_holds(world: &World) {
    let worker = world.worker();
    let other = world.held(world.worker());
    let (dispatched, running, cancelling) = (world.held(worker), world.held(worker), world.held(worker));
    world.beat(worker, vec![(running, None)]);
    world.cancelled(cancelling.task);
    let (finished, requeued) = (world.held(worker), world.held(worker));
    world.completed(finished, State::Succeeded);
    world.requeued(requeued, secs(0));
    let resumed = world.resume_session(worker.id, worker.generation, "elsewhere").expect("resuming");
    let Resumed::Yes { session, held } = resumed else { panic!("not resumed") };
    assert_eq!((session.generation, session.live, session.session.replica.as_str()), (2, true, "elsewhere"));
    let states: BTreeMap<LeaseRef, State> = held.iter().map(|dispatch| (dispatch.lease, dispatch.state)).collect();
    let expected = [(dispatched, State::Dispatched), (running, State::Running), (cancelling, State::Cancelling)];
    assert_eq!(states, BTreeMap::from(expected));
    assert!(held.iter().all(|dispatch| dispatch.spec == b"spec" && dispatch.queue == DEFAULT));
    let key = |dispatch: &millrace_store::Dispatch| dispatch.lease;
    let mut held = held;
    held.sort_by_key(key);
    let mut read = world.held_by(worker.id).expect("reading what it holds");
    read.sort_by_key(key);
    assert_eq!(read, held);
    assert!(!states.contains_key(&other));
    // It goes on under its old leases: the generation is the session's, the token the attempt's.
    world.completed(dispatched, State::Succeeded);
}

pub(crate) fn r2_a_resume_raises_the_generation(world: &World) {
    let worker = world.worker();
    for generation in 2..6 {
        let resumed = resume(world, Worker { generation: generation - 1, ..worker }).expect("a live session");
        assert_eq!(resumed.generation, generation);
    }
    assert_eq!(world.sessions(10).expect("listing")[0].generation, 5);
}

pub(crate) fn r2_a_live_session_resumes_by_any_generation_that_it_has_had(world: &World) {
    let worker = world.worker();
    let lease = world.held(worker);
    assert_eq!(resume(world, Worker { generation: 0, ..worker }), None);
    assert_eq!(resume(world, Worker { generation: 2, ..worker }), None);
    assert_eq!(resume(world, Worker { id: SessionId(Uuid::now_v7()), generation: 1 }), None);
    assert!(resume(world, worker).is_some());
    let again = resume(world, worker).expect("its Welcome was lost, so it knows only the generation before");
    assert_eq!(again.generation, 3);
    assert!(world.close_session(worker.id, Some(3)).expect("closing"));
    for generation in 1..6 {
        assert_eq!(resume(world, Worker { generation, ..worker }), None);
    }
    assert_eq!(world.state(lease.task), State::Dispatched);
}

pub(crate) fn a_session_closes_once(world: &World) {
    let worker = world.worker();
    let lease = world.held(worker);
    assert!(world.close_session(worker.id, Some(1)).expect("closing"));
    assert!(!world.close_session(worker.id, Some(1)).expect("closing again"));
    assert!(!world.close_session(worker.id, None).expect("closing again"));
    assert!(!world.close_session(SessionId(Uuid::now_v7()), None).expect("closing what never was"));
    assert_eq!(world.sessions(10).expect("listing"), []);
    assert!(!world.beat(worker, vec![]).0);
    // What it held is nobody's to lose yet.
    assert_eq!(world.state(lease.task), State::Dispatched);
}

pub(crate) fn a_session_is_closed_by_its_generation_or_by_any(world: &World) {
    let (one, other) = (world.worker(), world.worker());
    for worker in [one, other] {
        resume(world, worker).expect("a live session");
    }
    assert!(!world.close_session(one.id, Some(1)).expect("closing"), "a late goodbye of the old stream");
    assert!(!world.close_session(one.id, Some(3)).expect("closing"));
    assert!(world.close_session(one.id, Some(2)).expect("closing"));
    assert!(world.close_session(other.id, None).expect("closing"));
}

pub(crate) fn a_heartbeat_makes_accepted_attempts_run(world: &World) {
    let worker = world.worker();
    let (with_start, without, silent) = (world.held(worker), world.held(worker), world.held(worker));
    let cancelling = world.held(worker);
    world.cancelled(cancelling.task);
    let accepted = vec![(with_start, Some(1_700_000_000_000_123)), (without, None), (cancelling, Some(7))];
    assert_eq!(world.beat(worker, accepted), (true, vec![cancelling]));
    let row = world.row(with_start.task);
    assert_eq!((row.state, row.started_at_us), (State::Running, Some(1_700_000_000_000_123)));
    let row = world.row(without.task);
    assert_eq!((row.state, row.started_at_us), (State::Running, None));
    assert_eq!(world.state(silent.task), State::Dispatched);
    assert_eq!(world.state(cancelling.task), State::Cancelling, "saying that it runs takes no cancellation back");
    // An accept that comes twice changes nothing.
    assert_eq!(world.beat(worker, vec![(with_start, None)]), (true, vec![cancelling]));
    let row = world.row(with_start.task);
    assert_eq!((row.state, row.started_at_us), (State::Running, Some(1_700_000_000_000_123)));
}

pub(crate) fn a_heartbeat_of_an_old_generation_renews_nothing(world: &World) {
    let worker = world.worker_for(secs(100));
    let lease = world.held(worker);
    let cancelling = world.held(worker);
    world.cancelled(cancelling.task);
    let expires = resume(world, worker).expect("a live session").expires_served_ms;
    world.serve(secs(50));
    let healthy = world.worker();
    let beat = |worker: Worker, accepted| Heartbeat { session: worker.id, generation: worker.generation, accepted };
    let unknown = Worker { id: SessionId(Uuid::now_v7()), generation: 1 };
    let batch = [beat(worker, vec![(lease, None)]), beat(healthy, vec![]), beat(unknown, vec![])];
    let answers = world.heartbeat(&batch).expect("sending heartbeats");
    let renewed: Vec<bool> = answers.iter().map(|answer| answer.renewed).collect();
    assert_eq!(renewed, [false, true, false]);
    assert_eq!(world.state(lease.task), State::Dispatched);
    let rows = world.sessions(10).expect("listing");
    let row = rows.iter().find(|row| row.session.id == worker.id).expect("the session");
    assert_eq!((row.expires_served_ms, row.generation), (expires, 2));
}

pub(crate) fn a_heartbeat_accepts_only_its_own_leases(world: &World) {
    let (one, other) = (world.worker(), world.worker());
    let (own, foreign) = (world.held(one), world.held(other));
    let accepted =
        vec![(foreign, None), (LeaseRef { token: token(), ..own }, None), (LeaseRef { attempt: 2, ..own }, None)];
    assert!(world.beat(one, accepted).0);
    assert_eq!((world.state(own.task), world.state(foreign.task)), (State::Dispatched, State::Dispatched));
}

pub(crate) fn r13_heartbeats_bring_cancellations(world: &World) {
    let (one, other) = (world.worker(), world.worker());
    let (first, second, foreign) = (world.held(one), world.held(one), world.held(other));
    world.beat(one, vec![(second, None)]);
    assert_eq!(world.beat(one, vec![]), (true, vec![]));
    for lease in [first, second, foreign] {
        world.cancelled(lease.task);
    }
    let beat = |worker: Worker| Heartbeat { session: worker.id, generation: worker.generation, accepted: vec![] };
    // They come with each heartbeat until the attempt has ended, whichever replica the cancellation was sent to.
    for _ in 0..2 {
        let answers = world.heartbeat(&[beat(other), beat(one)]).expect("sending heartbeats");
        assert_eq!(answers[0].cancelling, [foreign]);
        assert_eq!(sorted(answers[1].cancelling.clone()), sorted([first, second]));
    }
    world.completed(first, State::Cancelled);
    assert_eq!(world.beat(one, vec![]), (true, vec![second]));
}

pub(crate) fn r2_orphans_are_what_dead_sessions_hold(world: &World) {
    let (closed, reaped, live) = (world.worker(), world.worker_for(secs(100)), world.worker());
    let leases = [world.held(closed), world.held(closed), world.held(reaped)];
    let (running, cancelling) = (world.held(reaped), world.held(closed));
    world.beat(reaped, vec![(running, None)]);
    world.cancelled(cancelling.task);
    world.held(live);
    assert_eq!(world.orphans(10).expect("sweeping"), []);
    world.close_session(closed.id, None).expect("closing");
    world.serve(secs(200));
    assert_eq!(world.reap_sessions(10).expect("reaping"), [reaped.id]);
    let orphans = world.orphans(10).expect("sweeping");
    let mut expected = leases.to_vec();
    expected.extend([running, cancelling]);
    assert_eq!(sorted(orphans.iter().map(|row| row.lease)), sorted(expected));
    for row in &orphans {
        assert_eq!(row.state, world.state(row.lease.task));
        assert_eq!((row.queue.as_str(), row.spec.as_slice()), (DEFAULT, b"spec".as_slice()));
    }
    // The sweep is bounded and comes to an end as its finds are dealt with.
    assert_eq!(world.orphans(2).expect("sweeping").len(), 2);
    let mut left = orphans.len();
    while let [orphan, ..] = &world.orphans(1).expect("sweeping")[..] {
        match orphan.state {
            State::Cancelling => world.completed(orphan.lease, State::Cancelled),
            _ => world.requeued(orphan.lease, secs(0)),
        }
        left -= 1;
    }
    assert_eq!(left, 0);
}

pub(crate) fn r2_orphans_are_found_after_their_session_was_trimmed(world: &World) {
    let worker = world.worker();
    let lease = world.held(worker);
    world.close_session(worker.id, None).expect("closing");
    world.advance(hours(10));
    world.trim_sessions(hours(1), 10).expect("trimming");
    let orphans = world.orphans(10).expect("sweeping");
    assert_eq!(orphans.iter().map(|row| row.lease).collect::<Vec<_>>(), [lease]);
    world.requeued(lease, secs(0));
    assert_eq!(world.state(lease.task), State::Queued);
}

pub(crate) fn live_sessions_are_listed_with_what_they_hold(world: &World) {
    let session = whole_session();
    world.open_session(&session).expect("opening");
    let (idle, closed) = (world.worker(), world.worker());
    let busy = Worker { id: session.id, generation: 1 };
    let lease = world.held(busy);
    world.held(busy);
    world.held(closed);
    world.cancelled(lease.task);
    world.close_session(closed.id, None).expect("closing");
    let rows = world.sessions(10).expect("listing");
    let held: BTreeMap<SessionId, i32> = rows.iter().map(|row| (row.session.id, row.held)).collect();
    assert_eq!(held, BTreeMap::from([(busy.id, 2), (idle.id, 0)]));
    let row = rows.iter().find(|row| row.session.id == busy.id).expect("the session");
    assert_eq!((&row.session, row.live), (&session, true));
    assert_eq!(world.sessions(1).expect("listing").len(), 1);
}

pub(crate) fn sessions_over_for_long_are_trimmed(world: &World) {
    let (old, young, live) = (world.worker(), world.worker(), world.worker());
    world.close_session(old.id, None).expect("closing");
    world.advance(hours(2));
    world.close_session(young.id, None).expect("closing");
    assert_eq!(world.trim_sessions(hours(1), 10).expect("trimming"), 1);
    assert_eq!(world.trim_sessions(hours(1), 10).expect("trimming"), 0);
    world.advance(hours(2));
    let more: Vec<Worker> = (0..2).map(|_| world.worker()).collect();
    for worker in more {
        world.close_session(worker.id, None).expect("closing");
    }
    world.advance(hours(2));
    assert_eq!(world.trim_sessions(hours(1), 2).expect("trimming"), 2);
    assert_eq!(world.trim_sessions(hours(1), 2).expect("trimming"), 1);
    assert!(world.beat(live, vec![]).0);
}
