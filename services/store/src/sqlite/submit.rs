//! Storing tasks.

use std::collections::HashMap;

use diesel::prelude::*;
use millrace_core::{id::TaskId, task::State, time::Timestamp};

use super::{
    cluster::{cluster, plain, remember, request},
    failure::{Failure, Outcome},
    queues::takes_tasks,
    reading::one_row,
    schema::{Key, tasks},
    statement::sql,
};
use crate::{
    StoreError,
    types::{NewTask, Submitted},
};

/// The longest text in a column that an index of some database holds, in bytes: the contract's bound of a concurrency
/// key, which no name exceeds. SQLite would take any, PostgreSQL would not.
const MAX_NAME_BYTES: usize = 255;

pub(super) fn submit(
    connection: &mut SqliteConnection,
    now: i64,
    batch: &[NewTask],
    repeat: bool,
) -> Outcome<Vec<Submitted>> {
    let route_version = cluster(connection)?.route_version;
    let mut submission = Submission { now, repeat, route_version, open: HashMap::new() };
    batch
        .iter()
        .map(|task| match submission.store(connection, task) {
            // An item writes its task first, in one statement, and nothing else can be refused for its data: what is
            // refused has left nothing behind.
            Err(failure) => match failure.into_store() {
                StoreError::Data { message, .. } => Ok(Submitted::Refused(message)),
                other => Err(other.into()),
            },
            stored => stored,
        })
        .collect()
}

struct Submission<'a> {
    now: i64,
    repeat: bool,
    route_version: i64,
    open: HashMap<&'a str, bool>,
}

impl<'a> Submission<'a> {
    fn store(&mut self, connection: &mut SqliteConnection, task: &'a NewTask) -> Outcome<Submitted> {
        let envelope = &task.envelope;
        let names = [
            envelope.tenant.as_str(),
            &envelope.queue,
            &envelope.executor,
            &envelope.resource_class,
            &envelope.concurrency_key,
        ];
        plain(&names)?;
        plain(&[&envelope.trace_context])?;
        short(&names)?;
        if self.repeat
            && let Some(stored) = stored(connection, envelope.id)?
        {
            return Ok(stored);
        }
        if let Some(key) = task.request
            && let Some(Some(earlier)) = request(connection, key)?
        {
            return Ok(match earlier == envelope.id {
                true => stored(connection, earlier)?.unwrap_or(Submitted::Existing(earlier)),
                false => Submitted::Existing(earlier),
            });
        }
        if task.route_version != self.route_version {
            return Ok(Submitted::RoutesChanged);
        }
        if !self.is_open(connection, &envelope.queue)? {
            return Ok(Submitted::QueueClosed);
        }
        let submitted = self.insert(connection, task)?;
        remember(connection, self.now, task.request, Some(envelope.id))?;
        Ok(submitted)
    }

    fn is_open(&mut self, connection: &mut SqliteConnection, queue: &'a str) -> Outcome<bool> {
        if let Some(&open) = self.open.get(queue) {
            return Ok(open);
        }
        let open = takes_tasks(connection, queue)?;
        self.open.insert(queue, open);
        Ok(open)
    }

    fn insert(&self, connection: &mut SqliteConnection, task: &NewTask) -> Outcome<Submitted> {
        let (envelope, now) = (&task.envelope, self.now);
        let wake_at_us = task.not_before.map(|moment| moment.0).filter(|moment| *moment > now);
        let (state, ready_at_us) = match wake_at_us {
            Some(_) => (State::Scheduled, None),
            None => (State::Queued, Some(now)),
        };
        let expires_at_us = task.expire_after.map(|span| Timestamp(now).after(span).0);
        let inserted = diesel::insert_into(tasks::table)
            .values((
                tasks::id.eq(Key(envelope.id.0)),
                tasks::tenant.eq(&envelope.tenant),
                tasks::queue.eq(&envelope.queue),
                tasks::state.eq(state as i16),
                tasks::rank.eq(envelope.rank),
                tasks::executor.eq(&envelope.executor),
                tasks::resource_class.eq(&envelope.resource_class),
                tasks::concurrency_key.eq(&envelope.concurrency_key),
                tasks::exclusive.eq(envelope.exclusive),
                tasks::timeout_ms.eq(envelope.timeout_ms),
                (tasks::attempt.eq(0), tasks::failures.eq(0), tasks::losses.eq(0), tasks::unsupported.eq(0)),
                tasks::created_at_us.eq(now),
                tasks::ready_at_us.eq(ready_at_us),
                tasks::wake_at_us.eq(wake_at_us),
                tasks::expires_at_us.eq(expires_at_us),
                tasks::trace_context.eq(&envelope.trace_context),
                tasks::format.eq(envelope.format),
                tasks::min_reader.eq(envelope.min_reader),
                tasks::spec.eq(&task.spec),
            ))
            .on_conflict_do_nothing()
            .execute(connection)?;
        match inserted {
            0 => stored(connection, envelope.id)?.ok_or_else(|| {
                Failure::Store(StoreError::Internal(format!("task {} is there and cannot be found", envelope.id)))
            }),
            _ => Ok(Submitted::Stored { created_at_us: now, state, ready_at_us, expires_at_us }),
        }
    }
}

/// What is there of a task that an earlier try may have stored, even when it has ended or was set aside since. It is told
/// how it began; what has become of it is not the submission's business.
fn stored(connection: &mut SqliteConnection, id: TaskId) -> Outcome<Option<Submitted>> {
    let query = sql("SELECT created_at_us, state, ready_at_us, expires_at_us FROM tasks WHERE id = ? \
                     UNION ALL SELECT created_at_us, state, NULL, expires_at_us FROM finished_tasks WHERE id = ? \
                     UNION ALL SELECT first_seen_us, NULL, NULL, NULL FROM quarantine WHERE task_id = ?")
    .uuid(&id.0)
    .uuid(&id.0)
    .uuid(&id.0);
    one_row(connection, query, |row| {
        Ok(Submitted::Stored {
            created_at_us: row.integer("created_at_us")?,
            state: row.state("state").ok().filter(|state| state.is_waiting()).unwrap_or(State::Queued),
            ready_at_us: row.optional_integer("ready_at_us")?,
            expires_at_us: row.optional_integer("expires_at_us")?,
        })
    })
}

fn short(names: &[&str]) -> Result<(), StoreError> {
    match names.iter().map(|name| name.len()).max() {
        Some(longest) if longest > MAX_NAME_BYTES => Err(StoreError::Data {
            sqlstate: "22001".into(),
            message: format!("a name or key of {longest} bytes is longer than {MAX_NAME_BYTES}"),
        }),
        _ => Ok(()),
    }
}
