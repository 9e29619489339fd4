//! Submission: store in a group with others, answer after the commit, offer. Mirrors `services/distributor/src/submit.rs`.

use millrace_core::{ROW_FORMAT, id::TaskId};
use millrace_store::{Envelope, NewTask, StoreError, Submitted, Waiting};

use crate::{
    links,
    mutant::Mutant,
    people::{self, Answer},
    world::{Pid, World},
};

const ROUTING_TRIES: u32 = 5;

/// A submission on its way into the database.
pub(crate) struct Submission {
    task: NewTask,
    number: u32,
    tries: u32,
}

/// A client's submission has arrived.
pub(crate) fn submit(world: &mut World, pid: Pid, number: u32) {
    let id = TaskId(world.uuid());
    let plan = world.people.plans[number as usize].clone();
    let not_before = people::not_before(world, &plan);
    let task = NewTask {
        envelope: Envelope {
            id,
            tenant: plan.tenant.into(),
            queue: plan.queue.into(),
            rank: plan.rank,
            executor: "process".into(),
            resource_class: String::new(),
            concurrency_key: String::new(),
            exclusive: plan.exclusive,
            timeout_ms: None,
            trace_context: String::new(),
            format: ROW_FORMAT,
            min_reader: ROW_FORMAT,
        },
        spec: number.to_le_bytes().to_vec(),
        request: plan.request,
        not_before,
        expire_after: plan.expire_after,
        route_version: 0,
    };
    put(world, pid, Submission { task, number, tries: 0 });
}

fn put(world: &mut World, pid: Pid, mut submission: Submission) {
    let Some(replica) = world.replica(pid) else { return };
    let Some(version) = replica.route_version else {
        world.call(
            pid,
            "routing",
            |db| db.store().routing(),
            move |world, routing| {
                match (routing, world.replica(pid)) {
                    (Ok(routing), Some(replica)) => replica.route_version = Some(routing.version),
                    _ => return people::answer(world, submission.number, Answer::Unavailable),
                }
                put(world, pid, submission);
            },
        );
        return;
    };
    submission.task.route_version = version;
    replica.submits.waiting.push(submission);
    run(world, pid);
}

/// The submit gate.
fn run(world: &mut World, pid: Pid) {
    let (mutant, renamed) = (world.mutant, world.uuid());
    let Some(batch) = world.replica(pid).and_then(|replica| replica.submits.take()) else { return };
    let mut tasks: Vec<NewTask> = batch.iter().map(|submission| submission.task.clone()).collect();
    world.persist(
        pid,
        "submit",
        move |db, repeat| {
            if repeat && mutant == Some(Mutant::SubmissionsAreRepeatedAnew) {
                let base = renamed.as_u128();
                for (index, task) in tasks.iter_mut().enumerate() {
                    task.envelope.id = TaskId(uuid::Uuid::from_u128(base + 1 + index as u128));
                    task.request = None;
                }
            }
            db.submit(&tasks, repeat)
        },
        move |world, stored| {
            settle(world, pid, batch, stored);
            if let Some(replica) = world.replica(pid) {
                replica.submits.busy = false;
            }
            run(world, pid);
        },
    );
}

fn settle(world: &mut World, pid: Pid, batch: Vec<Submission>, stored: Result<Vec<Submitted>, StoreError>) {
    let results = stored.ok();
    for (index, mut submission) in batch.into_iter().enumerate() {
        let (id, number) = (submission.task.envelope.id, submission.number);
        let answer = match results.as_ref().map(|results| &results[index]) {
            Some(Submitted::Stored { ready_at_us, expires_at_us, .. }) => {
                if let Some(ready_at_us) = *ready_at_us {
                    let envelope = &submission.task.envelope;
                    let waiting = Waiting {
                        id,
                        tenant: envelope.tenant.clone(),
                        rank: envelope.rank,
                        ready_at_us,
                        expires_at_us: *expires_at_us,
                        min_reader: envelope.min_reader,
                    };
                    links::offer(world, pid, &envelope.queue, waiting);
                }
                Answer::Stored(id)
            }
            Some(Submitted::Existing(id)) => Answer::Stored(*id),
            Some(Submitted::RoutesChanged) if submission.tries < ROUTING_TRIES => {
                submission.tries += 1;
                if let Some(replica) = world.replica(pid) {
                    replica.route_version = None;
                }
                put(world, pid, submission);
                continue;
            }
            Some(Submitted::RoutesChanged) => Answer::Unavailable,
            Some(Submitted::QueueClosed | Submitted::Refused(_)) => Answer::Refused,
            None if world.mutant == Some(Mutant::AcknowledgedBeforeTheCommit) => Answer::Stored(id),
            None => Answer::Unavailable,
        };
        people::answer(world, number, answer);
    }
}
