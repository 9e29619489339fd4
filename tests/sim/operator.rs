//! What people ask of tasks and queues that are there: to cancel, retry, pause, resume and delete. Each is asked until it is
//! answered, with the same request key.

use std::time::Duration;

use millrace_core::id::TaskId;
use millrace_store::{CancelResult, DeleteMode, DeleteResult, RetryResult, StoreError, TaskRow};
use rand::Rng;
use uuid::Uuid;

use crate::{
    config::{FaultKind, Weather},
    database::{Database, EPOCH_US},
    host, people, replica,
    world::{Pid, Target, World},
};

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(8);

/// How soon after a failure it is asked again.
const AGAIN: Duration = Duration::from_millis(700);

#[derive(Debug, Clone)]
enum Wish {
    Cancel(TaskId),
    Retry(TaskId),
    /// Until some moment of the database, or until it is resumed after this span.
    Pause(&'static str, Option<i64>, Duration),
    Resume(&'static str),
    Delete(&'static str, DeleteMode),
}

enum Granted {
    Cancelled(Box<TaskRow>),
    Missing(TaskId),
    Done,
}

/// Plans what will be asked.
pub(crate) fn start(world: &mut World) {
    if matches!(world.config.weather, Weather::Calm | Weather::LateCommits) {
        return;
    }
    for _ in 0..world.config.tasks / 3 {
        let cancels = world.chance(0.6);
        plan(world, move |world| {
            let ids = world.people.acknowledged();
            let id = ids.get(world.pick(ids.len().max(1))).copied()?;
            Some(if cancels { Wish::Cancel(id) } else { Wish::Retry(id) })
        });
    }
    for _ in 0..2 {
        if world.config.faults.contains(&FaultKind::Pause) {
            plan(world, |world| {
                let (queue, span) =
                    (some_queue(world), world.span(Duration::from_millis(200), Duration::from_secs(15)));
                let lifts_itself = world.chance(0.3);
                let until = EPOCH_US + world.db.offset_us + (world.now + span).as_micros() as i64;
                Some(Wish::Pause(queue, lifts_itself.then_some(until), span))
            });
        }
        if world.config.faults.contains(&FaultKind::DeleteQueue) {
            plan(world, |world| {
                let (queue, drain) = (some_queue(world), world.chance(0.5));
                let mode = if drain { DeleteMode::Drain } else { DeleteMode::Move("default".into()) };
                (queue != "default").then_some(Wish::Delete(queue, mode))
            });
        }
    }
}

fn some_queue(world: &mut World) -> &'static str {
    let place = world.pick(world.config.queues.len());
    world.config.queues[place]
}

/// Has something asked at a random moment; what, is seen then.
fn plan(world: &mut World, wish: impl FnOnce(&mut World) -> Option<Wish> + 'static) {
    let at = world.span(Duration::ZERO, world.config.chaos);
    world.after(at, Target::World, "wish", move |world| {
        if let Some(wish) = wish(world) {
            begin(world, wish);
        }
    });
}

fn begin(world: &mut World, wish: Wish) {
    let request = Uuid::from_u128(world.rng.random());
    world.people.asking.insert(request, 0);
    ask(world, wish, request);
}

fn ask(world: &mut World, wish: Wish, request: Uuid) {
    let Some(tries) = world.people.asking.get_mut(&request) else { return };
    *tries += 1;
    let tries = *tries;
    // A process that crashes or stalls under the call does not answer: then another is asked.
    again(world, ANSWER, wish.clone(), request, tries);
    let pid = match wish {
        Wish::Cancel(_) | Wish::Retry(_) => people::some_replica(world),
        Wish::Pause(..) | Wish::Resume(_) | Wish::Delete(..) => some_host(world),
    };
    let Some(pid) = pid else { return again(world, AGAIN, wish, request, tries) };
    let asked = wish.clone();
    world.call(
        pid,
        "wish",
        move |db| grant(db, &asked, request),
        move |world, granted| match granted {
            Ok(granted) => answered(world, pid, wish, request, granted),
            Err(_) => again(world, AGAIN, wish, request, tries),
        },
    );
}

/// Asks again later, unless that has been done, or an answer has come.
fn again(world: &mut World, delay: Duration, wish: Wish, request: Uuid, tries: u32) {
    world.after(delay, Target::World, "ask again", move |world| {
        if world.people.asking.get(&request) == Some(&tries) {
            ask(world, wish, request);
        }
    });
}

fn grant(db: &mut Database, wish: &Wish, request: Uuid) -> Result<Granted, StoreError> {
    Ok(match wish {
        Wish::Cancel(id) => match db.cancel(*id, request)? {
            CancelResult::Done(row) => Granted::Cancelled(row),
            CancelResult::Finished(_) | CancelResult::TooNew(_) => Granted::Done,
            CancelResult::NotFound => Granted::Missing(*id),
        },
        Wish::Retry(id) => match db.retry(*id, request)? {
            RetryResult::NotFound => Granted::Missing(*id),
            RetryResult::Done(_)
            | RetryResult::WrongState(_)
            | RetryResult::QueueClosed(_)
            | RetryResult::TooNew(_) => Granted::Done,
        },
        Wish::Pause(queue, until, _) => {
            db.pause(queue, Some(("simulated".into(), *until)), request)?;
            Granted::Done
        }
        Wish::Resume(queue) => {
            db.pause(queue, None, request)?;
            Granted::Done
        }
        Wish::Delete(queue, mode) => {
            match db.store().delete_queue(queue, mode, Some(request))? {
                DeleteResult::Routed(_) | DeleteResult::NotEmpty => db.oracle.violation("a queue could not be deleted"),
                DeleteResult::Gone | DeleteResult::Draining(_) | DeleteResult::NoTarget | DeleteResult::NotFound => {}
            }
            Granted::Done
        }
    })
}

fn answered(world: &mut World, pid: Pid, wish: Wish, request: Uuid, granted: Granted) {
    world.note(|| format!("granted: {wish:?}"));
    if world.people.asking.remove(&request).is_none() {
        return;
    }
    match granted {
        Granted::Cancelled(row) => replica::hint_cancel(world, pid, &row),
        Granted::Missing(id) => world.violation(format!("{id} was acknowledged and cannot be found")),
        Granted::Done => {}
    }
    match wish {
        Wish::Pause(queue, until, span) => {
            host::set_paused(world, pid, queue, true);
            if until.is_none() {
                let resume = move |world: &mut World| begin(world, Wish::Resume(queue));
                world.after(span, Target::World, "resume", resume);
                world.people.pauses += 1;
            }
        }
        Wish::Resume(queue) => {
            host::set_paused(world, pid, queue, false);
            world.people.pauses -= 1;
        }
        Wish::Cancel(_) | Wish::Retry(_) | Wish::Delete(..) => {}
    }
}

fn some_host(world: &mut World) -> Option<Pid> {
    let place = world.pick(world.config.replicas + world.config.owners);
    world.pid(place)
}
