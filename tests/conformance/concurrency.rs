//! What holds when calls meet. Every test runs real threads over one store and checks what must be true whichever comes
//! first; no test waits for time to pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use millrace_core::{
    held::LeaseRef,
    id::{SessionId, TaskId},
    task::State,
};
use millrace_store::{CancelResult, Claim, Claimed, Completed, NewTask, QueueChange, Requeued, Resumed, Submitted};

use crate::world::{
    DEFAULT, SECOND_MS, Worker, World, again, audit, completion, hours, member, new_task, request, requeue, secs,
    sorted,
};

/// Runs all of these at the same moment, each in a thread of its own.
fn together<'a>(calls: Vec<Box<dyn FnOnce() + Send + 'a>>) {
    let start = Barrier::new(calls.len());
    thread::scope(|scope| {
        for call in calls {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                call();
            });
        }
    });
}

/// The same tasks in another order, by a seed.
fn shuffled<T: Clone>(items: &[T], seed: usize) -> Vec<T> {
    use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
    let mut items = items.to_vec();
    items.shuffle(&mut StdRng::seed_from_u64(seed as u64));
    items
}

fn won(answers: &[Claimed]) -> impl Iterator<Item = LeaseRef> + '_ {
    answers.iter().filter_map(|answer| match answer {
        Claimed::Won(dispatch) => Some(dispatch.lease),
        _ => None,
    })
}

pub(crate) fn two_claimers_for_the_same_tasks_never_both_win(world: &World) {
    let tasks = world.queued_many(120);
    let workers: Vec<Worker> = (0..4).map(|_| world.worker()).collect();
    let wins: Mutex<Vec<(Worker, LeaseRef)>> = Mutex::default();
    together(
        workers
            .iter()
            .enumerate()
            .map(|(seed, worker)| {
                let (wins, tasks) = (&wins, shuffled(&tasks, seed));
                Box::new(move || {
                    for part in tasks.chunks(15) {
                        let claims: Vec<Claim> =
                            part.iter().map(|task| world.claim_of(*worker, DEFAULT, *task)).collect();
                        let answers = again(|_| world.claim(&claims));
                        wins.lock().unwrap().extend(won(&answers).map(|lease| (*worker, lease)));
                    }
                }) as Box<dyn FnOnce() + Send>
            })
            .collect(),
    );
    let wins = wins.into_inner().unwrap();
    assert_eq!(sorted(wins.iter().map(|(_, lease)| lease.task)), tasks, "each task is won, and once");
    for (worker, lease) in wins {
        let row = world.row(lease.task);
        assert_eq!((row.session, row.token, row.attempt), (Some(worker.id), Some(lease.token), 1));
    }
}

/// Claims one task after the other until a call returns that closes the way for such claims, and then some more. No claim
/// that began after the return may win. Returns the leases won.
fn claims_against(
    world: &World,
    tasks: &[TaskId],
    claim: impl Fn(TaskId) -> Claim + Sync,
    refused: &Claimed,
    close: impl FnOnce() + Send,
) -> Vec<LeaseRef> {
    let closed = AtomicBool::new(false);
    let under_way = AtomicUsize::new(0);
    let leases: Mutex<Vec<LeaseRef>> = Mutex::default();
    let claimer = |part: &[TaskId]| {
        for tasks in part.chunks(3) {
            let after = closed.load(Ordering::SeqCst);
            let claims: Vec<Claim> = tasks.iter().map(|task| claim(*task)).collect();
            let answers = again(|_| world.claim(&claims));
            under_way.fetch_add(1, Ordering::SeqCst);
            assert!(answers.iter().all(|answer| matches!(answer, Claimed::Won(_)) || answer == refused), "{answers:?}");
            assert!(!after || won(&answers).count() == 0, "a claim that began after the close was won");
            leases.lock().unwrap().extend(won(&answers));
        }
    };
    let (first, second) = tasks.split_at(tasks.len() / 2);
    together(vec![
        Box::new(|| claimer(first)),
        Box::new(|| claimer(second)),
        Box::new(|| {
            // In the middle of it.
            while under_way.load(Ordering::SeqCst) < 3 {
                thread::yield_now();
            }
            close();
            closed.store(true, Ordering::SeqCst);
        }),
    ]);
    // Whatever was left, none of it can be had in the old way any more.
    for task in tasks {
        assert!(!matches!(world.try_claim(&claim(*task)), Claimed::Won(_)));
    }
    leases.into_inner().unwrap()
}

pub(crate) fn r5_no_claim_of_the_old_epoch_commits_after_the_epoch_was_raised(world: &World) {
    let owner = member();
    let old = world.own_queue(DEFAULT, owner, "here", 1000 * SECOND_MS).expect("owning").expect("an epoch");
    let tasks = world.queued_many(90);
    let worker = world.worker();
    let stamp = world.claim_of(worker, DEFAULT, tasks[0]);
    let claim = |task| Claim { task, token: crate::world::token(), epoch: old, ..stamp.clone() };
    let counted = AtomicUsize::new(0);
    let leases = claims_against(world, &tasks, claim, &Claimed::GateClosed, || {
        world.release_queues(owner, &[DEFAULT.into()]).expect("giving up");
        let new = again(|_| world.own_queue(DEFAULT, member(), "there", 1000 * SECOND_MS));
        assert!(new > Some(old));
        // A new owner counts what runs after its epoch has committed: nothing joins that count from behind.
        counted.store(world.counts(&[DEFAULT.into()]).expect("counting")[0].held as usize, Ordering::SeqCst);
    });
    assert_eq!(counted.into_inner(), leases.len());
}

pub(crate) fn r5_no_claim_commits_after_a_pause_has_returned(world: &World) {
    let tasks = world.queued_many(90);
    let worker = world.worker();
    let claim = |task| world.claim_of(worker, DEFAULT, task);
    let counted = AtomicUsize::new(0);
    let leases = claims_against(world, &tasks, claim, &Claimed::GateClosed, || {
        let pause = QueueChange { pause: Some(Some(("a test".into(), None))), ..QueueChange::default() };
        let key = request();
        again(|_| world.update_queue(DEFAULT, &pause, &audit(), key)).expect("the queue");
        counted.store(world.counts(&[DEFAULT.into()]).expect("counting")[0].held as usize, Ordering::SeqCst);
    });
    assert_eq!(counted.into_inner(), leases.len());
}

pub(crate) fn r5_one_of_many_members_takes_a_queue(world: &World) {
    let queues: Vec<String> = (0..5).map(|number| world.queue_named(&format!("q{number}"))).collect();
    let epochs: Mutex<BTreeMap<&str, Vec<i64>>> = Mutex::default();
    together(
        (0..4)
            .map(|seed| {
                let (epochs, queues) =
                    (&epochs, shuffled(&queues.iter().map(String::as_str).collect::<Vec<_>>(), seed));
                Box::new(move || {
                    let me = member();
                    for queue in queues {
                        if let Some(epoch) = again(|_| world.own_queue(queue, me, "here", 1000 * SECOND_MS)) {
                            epochs.lock().unwrap().entry(queue).or_default().push(epoch);
                        }
                    }
                }) as Box<dyn FnOnce() + Send>
            })
            .collect(),
    );
    for queue in &queues {
        assert_eq!(epochs.lock().unwrap()[queue.as_str()], [world.gate(queue)], "{queue}");
    }
}

pub(crate) fn r2_a_session_reaped_while_claims_run_leaves_no_lost_task(world: &World) {
    let tasks = world.queued_many(90);
    let worker = world.worker_for(hours(1));
    world.serve(hours(2));
    let claim = |task| world.claim_of(worker, DEFAULT, task);
    let leases = claims_against(world, &tasks, claim, &Claimed::SessionGone, || {
        assert_eq!(again(|_| world.reap_sessions(10)), [worker.id]);
    });
    // The sweep finds every task that a claim won, none is held by a session that nobody will ask again.
    let orphans = world.orphans(1000).expect("sweeping");
    assert_eq!(sorted(orphans.iter().map(|row| row.lease)), sorted(leases));
}

pub(crate) fn r2_a_resume_while_claims_run_is_told_of_every_one(world: &World) {
    let tasks = world.queued_many(90);
    let worker = world.worker();
    let claim = |task| world.claim_of(worker, DEFAULT, task);
    let told: Mutex<Vec<LeaseRef>> = Mutex::default();
    let leases = claims_against(world, &tasks, claim, &Claimed::SessionGone, || {
        match again(|_| world.resume_session(worker.id, worker.generation, "elsewhere")) {
            Resumed::Yes { held, .. } => told.lock().unwrap().extend(held.iter().map(|dispatch| dispatch.lease)),
            Resumed::Gone => panic!("a live session"),
        }
    });
    assert_eq!(sorted(told.into_inner().unwrap()), sorted(leases));
}

pub(crate) fn r11_concurrent_submissions_with_one_key_store_one_task(world: &World) {
    for round in 0..5 {
        let key = request();
        let version = world.route_version();
        let answers: Mutex<Vec<(TaskId, Submitted)>> = Mutex::default();
        together(
            (0..4)
                .map(|_| {
                    let answers = &answers;
                    Box::new(move || {
                        // Neighbours on both sides, which are stored in any case.
                        let mut batch: Vec<NewTask> = (0..3).map(|_| new_task(version)).collect();
                        batch[1].request = key;
                        let mut stored = again(|repeat| world.submit(&batch, repeat));
                        for neighbour in [0, 2] {
                            assert!(matches!(stored[neighbour], Submitted::Stored { .. }), "{stored:?}");
                        }
                        answers.lock().unwrap().push((batch[1].envelope.id, stored.swap_remove(1)));
                    }) as Box<dyn FnOnce() + Send>
                })
                .collect(),
        );
        let answers = answers.into_inner().unwrap();
        let stored: Vec<TaskId> = answers
            .iter()
            .filter(|(_, answer)| matches!(answer, Submitted::Stored { .. }))
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(stored.len(), 1, "{answers:?}");
        let existing = answers.iter().filter(|(_, answer)| *answer == Submitted::Existing(stored[0])).count();
        assert_eq!(existing, 3, "{answers:?}");
        assert_eq!(world.request(key.expect("a key")).expect("reading a key"), Some(stored[0]));
        assert_eq!(world.all().len(), (round + 1) * 9);
    }
}

pub(crate) fn r8_batches_that_overlap_in_any_order_do_not_meet(world: &World) {
    // Rows are locked in the order of their ids, so no two batches wait for each other: none of these calls may fail.
    let version = world.route_version();
    let batch: Vec<NewTask> = (0..60).map(|_| NewTask { request: request(), ..new_task(version) }).collect();
    let worker = world.worker();
    let leases: Mutex<BTreeSet<LeaseRef>> = Mutex::default();
    let in_any_order = |call: &(dyn Fn(Vec<NewTask>) + Sync)| {
        together(
            (0..4)
                .map(|seed| {
                    let part = shuffled(&batch, seed);
                    Box::new(move || call(part)) as Box<dyn FnOnce() + Send>
                })
                .collect(),
        );
    };
    in_any_order(&|part| {
        let answers = world.submit(&part, true).expect("submitting");
        assert!(answers.iter().all(|answer| matches!(answer, Submitted::Stored { .. })), "{answers:?}");
    });
    assert_eq!(world.all().len(), batch.len());
    in_any_order(&|part| {
        let claims: Vec<Claim> = part.iter().map(|task| world.claim_of(worker, DEFAULT, task.envelope.id)).collect();
        leases.lock().unwrap().extend(won(&world.claim(&claims).expect("claiming")));
    });
    let held: Vec<LeaseRef> = leases.into_inner().unwrap().into_iter().collect();
    assert_eq!(held.len(), batch.len());
    together(
        (0..4)
            .map(|seed| {
                let (accepted, worker) = (shuffled(&held, seed), &worker);
                Box::new(move || {
                    if seed % 2 == 0 {
                        let accepted = accepted.into_iter().map(|lease| (lease, None)).collect();
                        assert!(world.beat(*worker, accepted).0);
                    } else {
                        let batch: Vec<_> =
                            accepted.into_iter().map(|lease| completion(lease, State::Succeeded)).collect();
                        let answers = world.complete(&batch).expect("completing");
                        assert!(answers.iter().all(|answer| *answer == Completed::Recorded), "{answers:?}");
                    }
                }) as Box<dyn FnOnce() + Send>
            })
            .collect(),
    );
    assert!(held.iter().all(|lease| world.state(lease.task) == State::Succeeded));
}

pub(crate) fn cancel_against_claim(world: &World) {
    let tasks = world.queued_many(40);
    let worker = world.worker();
    let leases: Mutex<BTreeMap<TaskId, LeaseRef>> = Mutex::default();
    let cancelled: Mutex<BTreeMap<TaskId, State>> = Mutex::default();
    together(vec![
        Box::new(|| {
            for task in &tasks {
                let claim = world.claim_of(worker, DEFAULT, *task);
                let answers = again(|_| world.claim(std::slice::from_ref(&claim)));
                leases.lock().unwrap().extend(won(&answers).map(|lease| (*task, lease)));
            }
        }),
        Box::new(|| {
            for task in tasks.iter().rev() {
                match again(|_| world.cancel(*task, "a test", None)) {
                    CancelResult::Done(row) => drop(cancelled.lock().unwrap().insert(*task, row.state)),
                    other => panic!("{other:?}"),
                }
            }
        }),
    ]);
    let leases = leases.into_inner().unwrap();
    for (task, told) in cancelled.into_inner().unwrap() {
        // Either it was cancelled while it waited, and nobody has it, or somebody has it and is told to stop.
        let expected = if leases.contains_key(&task) { State::Cancelling } else { State::Cancelled };
        assert_eq!((world.state(task), told), (expected, expected));
    }
    assert_eq!(sorted(world.beat(worker, vec![]).1), sorted(leases.into_values()));
}

pub(crate) fn cancel_against_complete(world: &World) {
    let worker = world.worker();
    let leases: Vec<LeaseRef> = (0..40).map(|_| world.held(worker)).collect();
    let finished: Mutex<BTreeMap<TaskId, bool>> = Mutex::default();
    together(vec![
        Box::new(|| {
            for part in leases.chunks(2) {
                let batch = [completion(part[0], State::Succeeded), completion(part[1], State::Failed)];
                assert_eq!(again(|_| world.complete(&batch)), [Completed::Recorded; 2]);
            }
        }),
        Box::new(|| {
            for lease in leases.iter().rev() {
                let answer = again(|_| world.cancel(lease.task, "a test", None));
                let was_finished = match answer {
                    CancelResult::Finished(row) => {
                        assert!(row.state.is_terminal());
                        true
                    }
                    CancelResult::Done(row) => {
                        assert_eq!(row.state, State::Cancelling);
                        false
                    }
                    CancelResult::NotFound => panic!("a task on the move was missed"),
                    CancelResult::TooNew(defect) => panic!("a task of this release is too new: {defect}"),
                };
                finished.lock().unwrap().insert(lease.task, was_finished);
            }
        }),
    ]);
    let finished = finished.into_inner().unwrap();
    for (index, lease) in leases.iter().enumerate() {
        // A success is what happened; a failure that came after the cancellation is the cancellation's.
        let expected = match (index % 2 == 0, finished[&lease.task]) {
            (true, _) => State::Succeeded,
            (false, true) => State::Failed,
            (false, false) => State::Cancelled,
        };
        assert_eq!(world.state(lease.task), expected);
    }
}

pub(crate) fn requeue_against_cancel(world: &World) {
    let worker = world.worker();
    let leases: Vec<LeaseRef> = (0..40).map(|_| world.held(worker)).collect();
    let waiting: Mutex<BTreeMap<TaskId, bool>> = Mutex::default();
    together(vec![
        Box::new(|| {
            for part in leases.chunks(4) {
                let batch: Vec<_> = part.iter().map(|lease| requeue(*lease, secs(0))).collect();
                let answers = again(|_| world.requeue(&batch));
                for (lease, answer) in part.iter().zip(answers) {
                    let waits = match answer {
                        Requeued::Waiting { .. } => true,
                        Requeued::Cancelling => false,
                        Requeued::Stale => panic!("{lease:?} is stale"),
                    };
                    waiting.lock().unwrap().insert(lease.task, waits);
                }
            }
        }),
        Box::new(|| {
            for lease in leases.iter().rev() {
                let answer = again(|_| world.cancel(lease.task, "a test", None));
                assert!(matches!(answer, CancelResult::Done(_)), "{answer:?}");
            }
        }),
    ]);
    let waiting = waiting.into_inner().unwrap();
    for lease in &leases {
        // Whoever came first, the cancellation is not lost: it is over, or its orchestrator is told to stop.
        let expected = if waiting[&lease.task] { State::Cancelled } else { State::Cancelling };
        assert_eq!(world.state(lease.task), expected);
    }
}

pub(crate) fn completing_from_two_sides_records_one_outcome(world: &World) {
    let worker = world.worker();
    let leases: Vec<LeaseRef> = (0..30).map(|_| world.held(worker)).collect();
    together(
        (0..3)
            .map(|side| {
                let leases = shuffled(&leases, side);
                Box::new(move || {
                    for part in leases.chunks(5) {
                        let batch: Vec<_> = part
                            .iter()
                            .map(|lease| {
                                let mut completion = completion(*lease, State::Failed);
                                completion.outcome.exit_code = Some(side as i32);
                                completion.failures = side as i32;
                                completion
                            })
                            .collect();
                        let answers = again(|_| world.complete(&batch));
                        assert!(answers.iter().all(|answer| *answer == Completed::Recorded), "{answers:?}");
                    }
                }) as Box<dyn FnOnce() + Send>
            })
            .collect(),
    );
    for lease in &leases {
        let row = world.row(lease.task);
        let exit_code = row.outcome.and_then(|outcome| outcome.exit_code);
        assert_eq!(exit_code, Some(row.failures), "one outcome, whole");
    }
    assert_eq!(world.all().len(), leases.len());
}

pub(crate) fn reapers_wakers_and_expirers_share_the_work(world: &World) {
    let mut scheduled = world.new_task();
    scheduled.not_before = Some(world.now().after(hours(1)));
    let mut expiring = world.new_task();
    expiring.expire_after = Some(hours(1));
    let many = |task: &NewTask| -> Vec<TaskId> {
        let ids = (0..40).map(|_| {
            let mut task = task.clone();
            task.envelope.id = new_task(0).envelope.id;
            world.put(task)
        });
        ids.collect()
    };
    let (scheduled, expiring) = (many(&scheduled), many(&expiring));
    let sessions: Vec<_> = (0..20).map(|_| world.worker_for(hours(1)).id).collect();
    world.serve(hours(2));
    let (woken, expired): (Mutex<Vec<TaskId>>, Mutex<Vec<TaskId>>) = Default::default();
    let reaped: Mutex<Vec<SessionId>> = Mutex::default();
    let sweep = || {
        // Rows that another has locked are skipped, so an empty answer does not mean that nothing is left.
        for _ in 0..40 {
            let found = again(|_| world.wake(7));
            woken.lock().unwrap().extend(found.into_iter().map(|(_, waiting)| waiting.id));
            expired.lock().unwrap().extend(again(|_| world.expire(7)));
            reaped.lock().unwrap().extend(again(|_| world.reap_sessions(7)));
        }
    };
    together((0..3).map(|_| Box::new(sweep) as Box<dyn FnOnce() + Send>).collect());
    // What the last skipped for another who then gave up is found next time.
    sweep();
    let found = [woken, expired].map(|ids| ids.into_inner().unwrap());
    assert_eq!(found.map(sorted), [scheduled, expiring].map(sorted), "each once");
    assert_eq!(sorted(reaped.into_inner().unwrap()), sorted(sessions));
}

pub(crate) fn a_task_on_the_move_is_neither_missed_nor_doubled(world: &World) {
    let worker = world.worker();
    let leases: Vec<LeaseRef> = (0..60).map(|_| world.held(worker)).collect();
    let tasks: Vec<TaskId> = leases.iter().map(|lease| lease.task).collect();
    let newest_first: Vec<TaskId> = tasks.iter().rev().copied().collect();
    let moving = AtomicBool::new(true);
    together(vec![
        Box::new(|| {
            for part in leases.chunks(3) {
                let batch: Vec<_> = part.iter().map(|lease| completion(*lease, State::Failed)).collect();
                again(|_| world.complete(&batch));
                // And back again, so that both ways are taken.
                again(|_| world.retry(part[0].task, None));
            }
            moving.store(false, Ordering::SeqCst);
        }),
        Box::new(|| {
            while moving.load(Ordering::SeqCst) {
                let page = again(|_| world.list(&Default::default(), None, 1000));
                let listed: Vec<TaskId> = page.rows.iter().map(|row| row.envelope.id).collect();
                assert_eq!(listed, newest_first);
            }
        }),
        Box::new(|| {
            while moving.load(Ordering::SeqCst) {
                for task in &tasks {
                    assert!(again(|_| world.task(*task)).is_some(), "{task} was missed");
                }
                assert_eq!(sorted(again(|_| world.tasks(&tasks)).iter().map(|row| row.envelope.id)), tasks);
            }
        }),
    ]);
}
