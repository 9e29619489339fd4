//! Storing new tasks.

use std::collections::{HashMap, HashSet};

use millrace_core::{id::TaskId, task::State, time::micros};
use uuid::Uuid;

use super::{
    columns::{Columns, Read},
    conn::Conn,
    pool::Pool,
    rows::{now_us, number, text, uuid},
    sql::{Statement, sql, unless},
};
use crate::{NewTask, Result, StoreError, Submitted, batch::bisect};

pub(super) fn submit(pool: &Pool, batch: &[NewTask], repeat: bool) -> Result<Vec<Submitted>> {
    let refuse = |_: &NewTask, error: StoreError| match error {
        StoreError::Data { message, .. } => Ok(Submitted::Refused(message)),
        error => Err(error),
    };
    bisect(batch, |part| store(pool, part, repeat), refuse)
}

/// Stores a part of a batch in one transaction.
fn store(pool: &Pool, part: &[NewTask], repeat: bool) -> Result<Vec<Submitted>> {
    if part.is_empty() {
        return Ok(Vec::new());
    }
    check_lengths(part)?;
    let first = match repeat {
        false => {
            let statement = bound(sql(FIRST_TRY), part);
            pool.write(move |conn| stored(conn, statement))
        }
        true => store_again(pool, part),
    };
    let stored = match first {
        // An id is there already, so this is a repeat, whatever the caller thinks: ids are new with each submission.
        Err(StoreError::Data { sqlstate, .. }) if sqlstate == "23505" && !repeat => store_again(pool, part),
        stored => stored,
    }?;
    answer(pool, part, stored)
}

/// The longest that a name or a key of a task may be, in bytes. The services allow less; this keeps rows and index entries narrow
/// whatever calls the store. A constraint of the table would be checked again by every claim.
const MAX_TEXT_BYTES: usize = 255;

fn check_lengths(part: &[NewTask]) -> Result<()> {
    let texts = |one: &NewTask| {
        let envelope = &one.envelope;
        let texts = [
            &envelope.tenant,
            &envelope.queue,
            &envelope.executor,
            &envelope.resource_class,
            &envelope.concurrency_key,
            &envelope.trace_context,
        ];
        texts.map(String::len).into_iter().max()
    };
    match part.iter().filter_map(texts).max() {
        Some(longest) if longest > MAX_TEXT_BYTES => Err(StoreError::Data {
            sqlstate: "22001".into(),
            message: format!("a name or key of {longest} bytes is too long: the longest is {MAX_TEXT_BYTES}"),
        }),
        _ => Ok(()),
    }
}

/// The tasks that one try stored.
type Stored = HashMap<TaskId, Submitted>;

// ── The statement ───────────────────────────────────────────────────────────────────────────────────────────────────

/// One statement, so one round trip and one commit. The queues are locked so that none is deleted meanwhile (their deletion
/// locks them FOR UPDATE); keys and tasks are inserted in order, so that batches that overlap wait for each other and never both ways
/// round (R8). A key that is there already keeps its task out.
///
/// The keys are read from arrays of their own, because a common table of the items would copy every spec once more. What
/// most rows have is sent as NULL.
macro_rules! statement {
    ($on_conflict:literal) => {
        concat!(
            "WITH open_queue AS MATERIALIZED (
                SELECT q.name FROM queues q WHERE q.name = ANY($1::text[]) AND NOT q.draining ORDER BY q.name FOR KEY SHARE
            ), clock AS MATERIALIZED (
                SELECT ", now_us!(), " AS now_us, (SELECT c.route_version FROM cluster c) AS route_version
            ), keyed AS (
                INSERT INTO requests AS r (key, task_id, created_at_us)
                SELECT item.request, item.id, (SELECT now_us FROM clock)
                FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[]) AS item(request, id, queue, route_version)
                WHERE item.request IS NOT NULL AND (item.queue IN (SELECT name FROM open_queue)) IS TRUE
                    AND item.route_version = (SELECT route_version FROM clock)
                ORDER BY item.request
                ON CONFLICT (key) DO NOTHING
                RETURNING r.task_id
            )
            INSERT INTO tasks AS t (id, tenant, queue, state, rank, executor, resource_class, concurrency_key, exclusive,
                timeout_ms, attempt, failures, losses, unsupported, created_at_us, ready_at_us, wake_at_us,
                expires_at_us, trace_context, format, min_reader, spec)
            SELECT item.id, item.tenant, item.queue, CASE WHEN not_before_us > now_us THEN 1 ELSE 2 END,
                coalesce(item.rank, 0), item.executor, coalesce(item.resource_class, ''), coalesce(item.concurrency_key, ''),
                coalesce(item.exclusive, FALSE), item.timeout_ms, 0, 0, 0, 0, now_us,
                CASE WHEN not_before_us > now_us THEN NULL ELSE now_us END,
                CASE WHEN not_before_us > now_us THEN not_before_us END, now_us + item.expire_after_us,
                coalesce(item.trace_context, ''), coalesce(item.format, 1), coalesce(item.min_reader, 1), item.spec
            FROM (SELECT now_us FROM clock) AS clock, unnest($3, $6::text[], $4, $7::integer[], $8::text[], $9::text[],
                $10::text[], $11::boolean[], $12::bigint[], $13::text[], $14::smallint[], $15::smallint[], $16::bigint[],
                $17::bigint[], $5, $2, $18::bytea[])
            AS item(id, tenant, queue, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms,
                trace_context, format, min_reader, not_before_us, expire_after_us, route_version, request, spec)
            WHERE (item.queue IN (SELECT name FROM open_queue)) IS TRUE
                AND item.route_version = (SELECT route_version FROM clock)
                AND (item.request IS NULL OR item.id IN (SELECT task_id FROM keyed))",
            $on_conflict,
            " RETURNING t.id, t.state, t.created_at_us, t.ready_at_us, t.expires_at_us"
        )
    };
}

/// Without ON CONFLICT on the tasks, which would cost every row a second record in the log: an id that is there already fails
/// the statement, and the batch is stored as a repeat.
const FIRST_TRY: &str = statement!("");
const REPEAT: &str = statement!(" ON CONFLICT (id) DO NOTHING");

fn bound(statement: Statement, part: &[NewTask]) -> Statement {
    // By id, so that rows are locked in this order.
    let mut order: Vec<&NewTask> = part.iter().collect();
    order.sort_by_key(|task| task.envelope.id);
    let tasks = || order.iter().copied();
    let envelopes = || order.iter().map(|task| &task.envelope);
    let mut queues: Vec<&str> = envelopes().map(|one| one.queue.as_str()).collect();
    queues.sort_unstable();
    queues.dedup();
    statement
        .array(queues)
        .array(tasks().map(|task| task.request))
        .array(envelopes().map(|one| one.id.0))
        .array(envelopes().map(|one| one.queue.as_str()))
        .array(tasks().map(|task| task.route_version))
        .array(envelopes().map(|one| one.tenant.as_str()))
        .array(envelopes().map(|one| unless(0, one.rank)))
        .array(envelopes().map(|one| one.executor.as_str()))
        .array(envelopes().map(|one| unless("", one.resource_class.as_str())))
        .array(envelopes().map(|one| unless("", one.concurrency_key.as_str())))
        .array(envelopes().map(|one| unless(false, one.exclusive)))
        .array(envelopes().map(|one| one.timeout_ms))
        .array(envelopes().map(|one| unless("", one.trace_context.as_str())))
        .array(envelopes().map(|one| unless(1, one.format)))
        .array(envelopes().map(|one| unless(1, one.min_reader)))
        .array(tasks().map(|task| task.not_before.map(|moment| moment.0)))
        .array(tasks().map(|task| task.expire_after.map(|span| micros(span).min(i64::MAX / 2))))
        .array(tasks().map(|task| task.spec.as_slice()))
}

fn stored(conn: &mut Conn<'_>, statement: Statement) -> Result<Stored> {
    Ok(conn.rows(statement, found_task)?.into_iter().collect())
}

/// The columns id, state, created_at_us, ready_at_us, expires_at_us.
fn found_task(row: &mut Columns<'_>) -> Read<(TaskId, Submitted)> {
    let id = TaskId(row.get()?);
    let state = stored_state(row.get_nullable()?);
    let created_at_us = row.get()?;
    let (ready_at_us, expires_at_us) = (row.get_nullable()?, row.get_nullable()?);
    Ok((id, Submitted::Stored { created_at_us, state, ready_at_us, expires_at_us }))
}

/// What a submission is told of its task: whether it waited for a moment. What has happened since is not its business.
fn stored_state(state: Option<i16>) -> State {
    match state.map(State::try_from) {
        Some(Ok(State::Scheduled)) => State::Scheduled,
        _ => State::Queued,
    }
}

/// Stores a batch of which a part, or all, may have been stored before, and may have ended since: what has ended is not
/// in `tasks` any more, and must not be run again. So what was inserted is looked for among the ended, in the same transaction: the
/// insert has waited for whoever was moving the task.
fn store_again(pool: &Pool, part: &[NewTask]) -> Result<Stored> {
    let statement = bound(sql(REPEAT), part);
    pool.transaction(move |conn| {
        let mut stored = stored(conn, statement)?;
        let ended = sql("SELECT (f.id) FROM finished_tasks f WHERE f.id = ANY($1::uuid[])
            UNION SELECT (q.task_id) FROM quarantine q WHERE q.task_id = ANY($1)");
        let ended = conn.rows(ended.array(stored.keys().map(|id| id.0)), uuid)?;
        if !ended.is_empty() {
            conn.execute(sql("DELETE FROM tasks t WHERE t.id = ANY($1::uuid[])").array(ended.iter().copied()))?;
            for id in ended {
                stored.remove(&TaskId(id));
            }
        }
        Ok(stored)
    })
}

// ── The answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// Answers every item, and looks up why those were not stored that this try did not store.
fn answer(pool: &Pool, part: &[NewTask], stored: Stored) -> Result<Vec<Submitted>> {
    let left_out: Vec<&NewTask> = part.iter().filter(|task| !stored.contains_key(&task.envelope.id)).collect();
    let reasons = match left_out.is_empty() {
        true => Reasons::default(),
        // The others are stored, so a failure here leaves the batch half told: it is repeated, which finds what is there.
        false => look_up(pool, &left_out).map_err(|error| StoreError::UnknownOutcome(error.to_string()))?,
    };
    let answers = part.iter().map(|task| match stored.get(&task.envelope.id) {
        Some(answer) => Ok(answer.clone()),
        None => reasons.answer(task),
    });
    answers.collect()
}

/// Why tasks were not stored by a try.
#[derive(Default)]
struct Reasons {
    /// The task of each request key.
    keys: HashMap<Uuid, TaskId>,
    /// Tasks that were stored before.
    tasks: HashMap<TaskId, Submitted>,
    route_version: i64,
    open_queues: HashSet<String>,
}

impl Reasons {
    fn answer(&self, task: &NewTask) -> Result<Submitted> {
        let id = task.envelope.id;
        match task.request.and_then(|key| self.keys.get(&key)) {
            Some(other) if *other != id => return Ok(Submitted::Existing(*other)),
            Some(_) => return Ok(self.tasks.get(&id).cloned().unwrap_or(GONE)),
            None => {}
        }
        if let Some(answer) = self.tasks.get(&id) {
            Ok(answer.clone())
        } else if task.route_version != self.route_version {
            // Making and closing queues changes the version as well, so what is read now is why it was not stored then.
            Ok(Submitted::RoutesChanged)
        } else if !self.open_queues.contains(&task.envelope.queue) {
            Ok(Submitted::QueueClosed)
        } else {
            // Its key was in the way and is gone: it was trimmed between the two looks.
            Err(StoreError::Conflict(format!("the request key of task {id} has just been dropped")))
        }
    }
}

/// The answer for a task that was stored, has ended and was dropped by retention before its submission was repeated.
const GONE: Submitted =
    Submitted::Stored { created_at_us: 0, state: State::Queued, ready_at_us: None, expires_at_us: None };

fn look_up(pool: &Pool, tasks: &[&NewTask]) -> Result<Reasons> {
    let keys = sql("SELECT r.key, r.task_id FROM requests r WHERE r.key = ANY($1::uuid[]) AND r.task_id IS NOT NULL")
        .array(tasks.iter().map(|task| task.request));
    // In parentheses, so that all three have columns of the same types, whatever types those of the tables have (see `drift`).
    let ids = sql("SELECT (t.id), (t.state), (t.created_at_us), (t.ready_at_us), (t.expires_at_us)
            FROM tasks t WHERE t.id = ANY($1::uuid[])
        UNION ALL SELECT (f.id), NULL, (f.created_at_us), NULL, (f.expires_at_us)
            FROM finished_tasks f WHERE f.id = ANY($1)
        UNION ALL SELECT (q.task_id), NULL, (q.first_seen_us), NULL, NULL FROM quarantine q WHERE q.task_id = ANY($1)")
    .array(tasks.iter().map(|task| task.envelope.id.0));
    let open = sql("SELECT q.name FROM queues q WHERE q.name = ANY($1::text[]) AND NOT q.draining")
        .array(tasks.iter().map(|task| task.envelope.queue.as_str()));
    pool.snapshot(move |conn| {
        Ok(Reasons {
            keys: conn.rows(keys, |row| Ok((row.get()?, TaskId(row.get()?))))?.into_iter().collect(),
            tasks: conn.rows(ids, found_task)?.into_iter().collect(),
            route_version: conn.one(sql("SELECT c.route_version FROM cluster c"), number)?,
            open_queues: conn.rows(open, text)?.into_iter().collect(),
        })
    })
}
