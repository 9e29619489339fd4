//! How attempts end: successes in one statement, every other end by the rules of `core::retry`. Mirrors
//! `services/distributor/src/ends.rs`.

use std::{collections::BTreeMap, time::Duration};

use millrace_core::{
    held::LeaseRef,
    retry::{OutcomeKind, Spent, Verdict, after_attempt},
    task::State,
};
use millrace_store::{Completed, Completion, HeldRow, Outcome, Requeue, Requeued, Waiting};
use rand::Rng;

use crate::{
    goodbye, links,
    message::Report,
    people, replica,
    world::{Pid, World},
};

/// A completion on its way into the database.
pub(crate) struct EndItem {
    pub receiver: u64,
    pub lease: LeaseRef,
    pub kind: OutcomeKind,
}

/// How long a task waits whose row is held and cannot be read.
const UNREADABLE_WAIT: Duration = Duration::from_secs(60);

/// How often an end is decided anew because its row changed under it.
const ROUNDS: u32 = 3;

/// The completion gate.
pub(crate) fn run(world: &mut World, pid: Pid) {
    let Some(items) = world.replica(pid).and_then(|replica| replica.ends.take()) else { return };
    let ended = items.iter().map(|item| (item.lease, item.kind)).collect();
    record(world, pid, ended, move |world, reports| {
        let now = world.now;
        for (item, report) in items.into_iter().zip(reports) {
            if let Some(stay) = world.replica(pid).and_then(|replica| replica.stays.get_mut(&item.receiver)) {
                stay.finish(item.lease, report, now);
                replica::flush(world, pid, item.receiver);
            }
            goodbye::handed_back(world, pid, item.lease, report);
        }
        if let Some(replica) = world.replica(pid) {
            replica.ends.busy = false;
        }
        run(world, pid);
    });
}

type Then = Box<dyn FnOnce(&mut World, Vec<Report>)>;

struct Recording {
    pid: Pid,
    ended: Vec<(LeaseRef, OutcomeKind)>,
    reports: Vec<Report>,
    /// Which of them are not decided yet.
    open: Vec<usize>,
    rows: BTreeMap<LeaseRef, HeldRow>,
    rounds: u32,
    then: Then,
}

/// Records how attempts ended, in the order given.
pub(crate) fn record(
    world: &mut World,
    pid: Pid,
    ended: Vec<(LeaseRef, OutcomeKind)>,
    then: impl FnOnce(&mut World, Vec<Report>) + 'static,
) {
    let (good, open): (Vec<usize>, Vec<usize>) =
        (0..ended.len()).partition(|&index| ended[index].1 == OutcomeKind::Succeeded);
    let completions: Vec<(usize, Completion)> = good
        .into_iter()
        .map(|index| (index, completion(ended[index].0, State::Succeeded, ended[index].1, Spent::default())))
        .collect();
    let reports = vec![Report::Unavailable; ended.len()];
    let recording = Recording { pid, ended, reports, open, rows: BTreeMap::new(), rounds: 0, then: Box::new(then) };
    complete(world, recording, completions, decide_open);
}

/// Ends that are not successes: each is decided by its row.
fn decide_open(world: &mut World, mut recording: Recording) {
    if recording.open.is_empty() || recording.rounds == ROUNDS {
        return (recording.then)(world, recording.reports);
    }
    recording.rounds += 1;
    let leases: Vec<LeaseRef> = recording.open.iter().map(|&index| recording.ended[index].0).collect();
    world.persist(
        recording.pid,
        "read held tasks",
        move |db, _| db.store().held_rows(&leases),
        move |world, rows| match rows {
            Ok(rows) => {
                recording.rows = rows.into_iter().map(|row| (row.lease, row)).collect();
                write_open(world, recording);
            }
            Err(_) => (recording.then)(world, recording.reports),
        },
    );
}

fn write_open(world: &mut World, recording: Recording) {
    let (mut finish, mut again) = (Vec::new(), Vec::new());
    for &index in &recording.open {
        let (lease, kind) = recording.ended[index];
        let decided = recording.rows.get(&lease).map(|row| decide(world, row, kind));
        match decided {
            Some((_, Verdict::Finish(state), spent)) => finish.push((index, completion(lease, state, kind, spent))),
            Some((_, Verdict::Again(wait), spent)) => again.push((index, requeue(lease, kind, wait, spent))),
            // Not held any more, or recorded by an earlier try, which the writes tell.
            None => again.push((index, requeue(lease, kind, UNREADABLE_WAIT, Spent::default()))),
        }
    }
    let unread: Vec<usize> = recording
        .open
        .iter()
        .copied()
        .filter(|&index| !recording.rows.contains_key(&recording.ended[index].0))
        .collect();
    complete(world, recording, finish, move |world, mut recording| {
        recording.open.clear();
        requeue_all(world, recording, again, move |world, recording| {
            // What is not held and was not put back before may have been ended before.
            let ended_before = unread.into_iter().filter(|&index| recording.reports[index] == Report::Stale);
            let looked_up: Vec<(usize, Completion)> = ended_before
                .map(|index| {
                    let (lease, kind) = recording.ended[index];
                    (index, completion(lease, State::Failed, kind, Spent::default()))
                })
                .collect();
            complete(world, recording, looked_up, decide_open);
        });
    });
}

fn decide(world: &mut World, row: &HeldRow, kind: OutcomeKind) -> (LeaseRef, Verdict, Spent) {
    let mut spent =
        Spent { failures: row.failures as u32, losses: row.losses as u32, unsupported: row.unsupported as u32 };
    let policy = world.people.plans[people::number(&row.spec) as usize].policy;
    let verdict = after_attempt(row.state, kind, &policy, &mut spent, world.rng.random());
    (row.lease, verdict.unwrap_or(Verdict::Finish(State::Failed)), spent)
}

fn complete(
    world: &mut World,
    mut recording: Recording,
    completions: Vec<(usize, Completion)>,
    next: impl FnOnce(&mut World, Recording) + 'static,
) {
    if completions.is_empty() {
        return next(world, recording);
    }
    let (at, given): (Vec<usize>, Vec<Completion>) = completions.into_iter().unzip();
    world.persist(
        recording.pid,
        "complete",
        move |db, _| db.complete(&given),
        move |world, results| {
            for (index, result) in at.into_iter().zip(results.unwrap_or_default()) {
                recording.reports[index] = match result {
                    Completed::Recorded => Report::Recorded,
                    Completed::Stale => Report::Stale,
                };
            }
            next(world, recording);
        },
    );
}

/// Puts tasks back and offers them; those that are being cancelled are decided again.
fn requeue_all(
    world: &mut World,
    mut recording: Recording,
    requeues: Vec<(usize, Requeue)>,
    next: impl FnOnce(&mut World, Recording) + 'static,
) {
    if requeues.is_empty() {
        return next(world, recording);
    }
    let (at, given): (Vec<usize>, Vec<Requeue>) = requeues.into_iter().unzip();
    world.persist(
        recording.pid,
        "requeue",
        move |db, _| db.requeue(&given),
        move |world, results| {
            for (index, result) in at.into_iter().zip(results.unwrap_or_default()) {
                match result {
                    Requeued::Waiting { ready_at_us } => {
                        recording.reports[index] = Report::Recorded;
                        let row = recording.rows.get(&recording.ended[index].0);
                        if let (Some(ready_at_us), Some(row)) = (ready_at_us, row) {
                            let waiting = Waiting {
                                id: row.lease.task,
                                tenant: row.tenant.clone(),
                                rank: row.rank,
                                ready_at_us,
                                expires_at_us: row.expires_at_us,
                                min_reader: row.min_reader,
                            };
                            links::offer(world, recording.pid, &row.queue, waiting);
                        }
                    }
                    Requeued::Stale => recording.reports[index] = Report::Stale,
                    Requeued::Cancelling => recording.open.push(index),
                }
            }
            next(world, recording);
        },
    );
}

fn completion(lease: LeaseRef, state: State, kind: OutcomeKind, spent: Spent) -> Completion {
    let (failures, losses) = (spent.failures as i32, spent.losses as i32);
    Completion { lease, state, outcome: outcome(kind), failures, losses }
}

fn requeue(lease: LeaseRef, kind: OutcomeKind, wait: Duration, spent: Spent) -> Requeue {
    Requeue {
        lease,
        outcome: outcome(kind),
        wait,
        failures: spent.failures as i32,
        losses: spent.losses as i32,
        unsupported: spent.unsupported as i32,
    }
}

fn outcome(kind: OutcomeKind) -> Outcome {
    Outcome {
        kind,
        exit_code: None,
        signal: None,
        message: String::new(),
        output_tail: Vec::new(),
        output_bytes: 0,
        started_at_us: None,
        ended_at_us: None,
    }
}
