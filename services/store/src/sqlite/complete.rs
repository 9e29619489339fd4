//! The ends of attempts.

use diesel::prelude::*;
use millrace_core::{
    held::LeaseRef,
    lease::Token,
    task::{Event, State},
    time::Timestamp,
};

use super::{
    failure::Outcome,
    moves::{Ending, finish},
    reading::good_row,
    schema::{Key, attempts, finished_tasks, tasks},
    statement::sql,
};
use crate::types::{Completed, Completion, Requeue, Requeued};

pub(super) fn complete(connection: &mut SqliteConnection, now: i64, batch: &[Completion]) -> Outcome<Vec<Completed>> {
    batch.iter().map(|completion| complete_one(connection, now, completion)).collect()
}

fn complete_one(connection: &mut SqliteConnection, now: i64, completion: &Completion) -> Outcome<Completed> {
    let Some(held) = state_of(connection, completion.lease)? else {
        return Ok(match is_finished(connection, completion.lease)? {
            true => Completed::Recorded,
            false => Completed::Stale,
        });
    };
    let Some(state) = end_of(held, completion.state) else { return Ok(Completed::Stale) };
    let ending = Ending {
        state,
        outcome: &completion.outcome,
        failures: Some(completion.failures),
        losses: Some(completion.losses),
    };
    finish(connection, now, completion.lease.task, &ending)?;
    Ok(Completed::Recorded)
}

/// The terminal state of a task held in `held` that its distributor wants to end as `wanted`. What it wants may have
/// been decided before the task was cancelled.
fn end_of(held: State, wanted: State) -> Option<State> {
    match wanted {
        State::Succeeded => held.next(Event::Succeed).ok(),
        State::Failed => held.next(Event::Fail).ok(),
        State::Cancelled | State::Expired => Some(wanted),
        _ => None,
    }
}

pub(super) fn requeue(connection: &mut SqliteConnection, now: i64, batch: &[Requeue]) -> Outcome<Vec<Requeued>> {
    batch.iter().map(|requeue| requeue_one(connection, now, requeue)).collect()
}

fn requeue_one(connection: &mut SqliteConnection, now: i64, requeue: &Requeue) -> Outcome<Requeued> {
    let lease = requeue.lease;
    let Some(held) = state_of(connection, lease)? else {
        return match was_requeued(connection, lease)? {
            true => Ok(Requeued::Waiting { ready_at_us: ready_at(connection, lease)? }),
            false => Ok(Requeued::Stale),
        };
    };
    if held == State::Cancelling {
        return Ok(Requeued::Cancelling);
    }
    let (event, ready_at_us, wake_at_us) = match requeue.wait.is_zero() {
        true => (Event::Requeue, Some(now), None),
        false => (Event::Backoff, None, Some(Timestamp(now).after(requeue.wait).0)),
    };
    let Ok(state) = held.next(event) else { return Ok(Requeued::Stale) };
    keep_attempt(connection, now, requeue)?;
    diesel::update(tasks::table.filter(tasks::id.eq(Key(lease.task.0))))
        .set((
            tasks::state.eq(state as i16),
            tasks::token.eq(None::<i64>),
            tasks::session_id.eq(None::<Key>),
            tasks::ready_at_us.eq(ready_at_us),
            tasks::wake_at_us.eq(wake_at_us),
            tasks::failures.eq(requeue.failures),
            tasks::losses.eq(requeue.losses),
            tasks::unsupported.eq(requeue.unsupported),
        ))
        .execute(connection)?;
    Ok(Requeued::Waiting { ready_at_us })
}

fn keep_attempt(connection: &mut SqliteConnection, now: i64, requeue: &Requeue) -> Outcome<()> {
    let outcome = &requeue.outcome;
    let message = outcome.message.replace('\0', "\u{FFFD}");
    sql("INSERT INTO attempts (task_id, attempt, token, session_id, orchestrator, dispatched_at_us, recorded_at_us, outcome, \
             exit_code, signal, message, output_tail, output_bytes, started_at_us, ended_at_us) \
         SELECT id, attempt, token, session_id, coalesce((SELECT name FROM sessions WHERE sessions.id = session_id), ''), \
             dispatched_at_us, ?, ?, ?, ?, ?, ?, ?, coalesce(?, started_at_us), ? \
         FROM tasks WHERE id = ? \
         ON CONFLICT DO NOTHING")
    .integer(now)
    .integer(i64::from(outcome.kind as i16))
    .integer(outcome.exit_code.map(i64::from))
    .integer(outcome.signal.map(i64::from))
    .text(message.as_str())
    .blob(outcome.output_tail.as_slice())
    .integer(outcome.output_bytes)
    .integer(outcome.started_at_us)
    .integer(outcome.ended_at_us)
    .uuid(&requeue.lease.task.0)
    .execute(connection)?;
    Ok(())
}

/// The state of a task that is held with this very lease. Nothing else of the row is read, so nothing else in it can
/// stand in the way of its end.
fn state_of(connection: &mut SqliteConnection, lease: LeaseRef) -> Outcome<Option<State>> {
    let query = tasks::table
        .filter(
            tasks::id
                .eq(Key(lease.task.0))
                .and(tasks::attempt.eq(lease.attempt))
                .and(tasks::token.eq(lease.token.0))
                .and(tasks::session_id.is_not_null()),
        )
        .select(tasks::state);
    let state = good_row(connection, query, |row| row.state("state"))?;
    Ok(state.filter(|state| state.is_held()))
}

fn is_finished(connection: &mut SqliteConnection, lease: LeaseRef) -> Outcome<bool> {
    let query = finished_tasks::table
        .filter(finished_tasks::id.eq(Key(lease.task.0)))
        .select((finished_tasks::attempt, finished_tasks::token));
    let finished = good_row(connection, query, |row| Ok((row.narrow("attempt")?, row.optional_token("token")?)))?;
    Ok(finished == Some((lease.attempt, Some(lease.token))))
}

fn was_requeued(connection: &mut SqliteConnection, lease: LeaseRef) -> Outcome<bool> {
    let query = attempts::table
        .filter(attempts::task_id.eq(Key(lease.task.0)).and(attempts::attempt.eq(lease.attempt)))
        .select(attempts::token);
    let token = good_row(connection, query, |row| row.optional_integer("token"))?;
    Ok(token.flatten().map(Token) == Some(lease.token))
}

/// When the task joined its queue after this attempt; none when it does not wait there, or not since this attempt.
fn ready_at(connection: &mut SqliteConnection, lease: LeaseRef) -> Outcome<Option<i64>> {
    let query = tasks::table
        .filter(tasks::id.eq(Key(lease.task.0)).and(tasks::attempt.eq(lease.attempt)))
        .select(tasks::ready_at_us);
    Ok(good_row(connection, query, |row| row.optional_integer("ready_at_us"))?.flatten())
}
