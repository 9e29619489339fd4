//! Storing new tasks.

use std::collections::{HashMap, HashSet};

use millrace_core::{id::TaskId, task::State, time::micros};
use uuid::Uuid;

use super::{
    conn::Conn,
    pool::Pool,
    rows::{now_us, uuid},
    sql::{Statement, sql},
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
    let tried = match repeat {
        false => {
            let statement = bound(sql(FIRST_TRY), part);
            pool.write(move |conn| stored(conn, statement))
        }
        true => store_again(pool, part),
    };
    let tried = match tried {
        // An id is there already, so this is a repeat, whatever the caller thinks: ids are new with each submission.
        Err(StoreError::Data { sqlstate, .. }) if sqlstate == "23505" && !repeat => store_again(pool, part),
        tried => tried,
    }?;
    answer(pool, part, tried)
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

/// What one try found and did.
struct Try {
    stored: HashMap<Uuid, Submitted>,
    route_version: i64,
    open_queues: HashSet<String>,
}

// ── The statement ───────────────────────────────────────────────────────────────────────────────────────────────────

/// One statement, so one round trip and one commit. The queues are locked so that none is deleted meanwhile (their deletion
/// locks them FOR UPDATE); keys and tasks are inserted in order, so that batches that overlap wait for each other and never both ways
/// round (R8). A key that is there already keeps its task out.
macro_rules! statement {
    ($on_conflict:literal) => {
        concat!(
            "WITH item AS MATERIALIZED (
                SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[], $7::text[],
                    $8::boolean[], $9::bigint[], $10::text[], $11::smallint[], $12::smallint[], $13::bigint[], $14::bigint[],
                    $15::bigint[], $16::uuid[], $17::bytea[])
                AS item(id, tenant, queue, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms,
                    trace_context, format, min_reader, not_before_us, expire_after_us, route_version, request, spec)
            ), open_queue AS MATERIALIZED (
                SELECT name FROM queues WHERE name = ANY($18::text[]) AND NOT draining ORDER BY name FOR KEY SHARE
            ), clock AS MATERIALIZED (
                SELECT ", now_us!(), " AS now_us, (SELECT route_version FROM cluster) AS route_version
            ), fresh AS MATERIALIZED (
                SELECT item.*, clock.now_us, coalesce(item.not_before_us > clock.now_us, FALSE) AS later FROM clock, item
                WHERE item.queue IN (SELECT name FROM open_queue) AND item.route_version = clock.route_version
            ), keyed AS (
                INSERT INTO requests (key, task_id, created_at_us)
                SELECT request, id, now_us FROM fresh WHERE request IS NOT NULL ORDER BY request
                ON CONFLICT (key) DO NOTHING
                RETURNING task_id
            ), stored AS (
                INSERT INTO tasks (id, tenant, queue, state, rank, executor, resource_class, concurrency_key, exclusive,
                    timeout_ms, attempt, failures, losses, unsupported, created_at_us, ready_at_us, wake_at_us,
                    expires_at_us, trace_context, format, min_reader, spec)
                SELECT id, tenant, queue, CASE WHEN later THEN 1 ELSE 2 END, rank, executor, resource_class, concurrency_key,
                    exclusive, timeout_ms, 0, 0, 0, 0, now_us, CASE WHEN NOT later THEN now_us END,
                    CASE WHEN later THEN not_before_us END, now_us + expire_after_us, trace_context, format, min_reader, spec
                FROM fresh WHERE request IS NULL OR id IN (SELECT task_id FROM keyed)",
            $on_conflict,
            " RETURNING id, state, created_at_us, ready_at_us, expires_at_us
            )
            SELECT 1::smallint, id, NULL::text, state, created_at_us, ready_at_us, expires_at_us FROM stored
            UNION ALL SELECT 2::smallint, NULL, NULL, NULL, route_version, NULL, NULL FROM clock
            UNION ALL SELECT 3::smallint, NULL, name, NULL, NULL, NULL, NULL FROM open_queue"
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
        .array(envelopes().map(|one| one.id.0))
        .array(envelopes().map(|one| one.tenant.as_str()))
        .array(envelopes().map(|one| one.queue.as_str()))
        .array(envelopes().map(|one| one.rank))
        .array(envelopes().map(|one| one.executor.as_str()))
        .array(envelopes().map(|one| one.resource_class.as_str()))
        .array(envelopes().map(|one| one.concurrency_key.as_str()))
        .array(envelopes().map(|one| one.exclusive))
        .array(envelopes().map(|one| one.timeout_ms))
        .array(envelopes().map(|one| one.trace_context.as_str()))
        .array(envelopes().map(|one| one.format))
        .array(envelopes().map(|one| one.min_reader))
        .array(tasks().map(|task| task.not_before.map(|moment| moment.0)))
        .array(tasks().map(|task| task.expire_after.map(|span| micros(span).min(i64::MAX / 2))))
        .array(tasks().map(|task| task.route_version))
        .array(tasks().map(|task| task.request))
        .array(tasks().map(|task| task.spec.as_slice()))
        .array(queues)
}

fn stored(conn: &mut Conn<'_>, statement: Statement) -> Result<Try> {
    enum Line {
        Stored(Uuid, Submitted),
        Version(i64),
        Open(String),
    }
    let lines = conn.rows(statement, |row| {
        let kind: i16 = row.get()?;
        let (id, name, state) = (row.get_nullable()?, row.get_nullable()?, row.get_nullable::<i16>()?);
        let number = row.get_nullable()?.unwrap_or_default();
        Ok(match (kind, id, name) {
            (1, Some(id), _) => Line::Stored(
                id,
                Submitted::Stored {
                    created_at_us: number,
                    state: stored_state(state),
                    ready_at_us: row.get_nullable()?,
                    expires_at_us: row.get_nullable()?,
                },
            ),
            (_, _, Some(name)) => Line::Open(name),
            _ => Line::Version(number),
        })
    })?;
    let mut tried = Try { stored: HashMap::with_capacity(lines.len()), route_version: 0, open_queues: HashSet::new() };
    for line in lines {
        match line {
            Line::Stored(id, answer) => drop(tried.stored.insert(id, answer)),
            Line::Version(version) => tried.route_version = version,
            Line::Open(name) => drop(tried.open_queues.insert(name)),
        }
    }
    Ok(tried)
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
fn store_again(pool: &Pool, part: &[NewTask]) -> Result<Try> {
    let statement = bound(sql(REPEAT), part);
    pool.transaction(move |conn| {
        let mut tried = stored(conn, statement)?;
        let inserted: Vec<Uuid> = tried.stored.keys().copied().collect();
        let ended = sql("SELECT id FROM finished_tasks WHERE id = ANY($1::uuid[])
            UNION SELECT task_id FROM quarantine WHERE task_id = ANY($1)");
        let ended = conn.rows(ended.array(inserted.iter().copied()), uuid)?;
        if !ended.is_empty() {
            conn.execute(sql("DELETE FROM tasks WHERE id = ANY($1::uuid[])").array(ended.iter().copied()))?;
            for id in ended {
                tried.stored.remove(&id);
            }
        }
        Ok(tried)
    })
}

// ── The answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// Answers every item, and looks up those that were not stored by this try.
fn answer(pool: &Pool, part: &[NewTask], mut tried: Try) -> Result<Vec<Submitted>> {
    let left_out: Vec<&NewTask> = part.iter().filter(|task| !tried.stored.contains_key(&task.envelope.id.0)).collect();
    let found = match left_out.is_empty() {
        true => Found::default(),
        // What is missing was not stored, and looking why is a call of its own: if it fails the batch is repeated, which finds
        // what is there.
        false => look_up(pool, &left_out).map_err(|error| StoreError::UnknownOutcome(error.to_string()))?,
    };
    let answers = part.iter().map(|task| {
        let id = task.envelope.id;
        if let Some(answer) = tried.stored.remove(&id.0) {
            return Ok(answer);
        }
        match task.request.and_then(|key| found.keys.get(&key)) {
            Some(other) if *other != id => return Ok(Submitted::Existing(*other)),
            Some(_) => return Ok(found.tasks.get(&id).cloned().unwrap_or_else(gone)),
            None => {}
        }
        if let Some(answer) = found.tasks.get(&id) {
            Ok(answer.clone())
        } else if task.route_version != tried.route_version {
            Ok(Submitted::RoutesChanged)
        } else if !tried.open_queues.contains(&task.envelope.queue) {
            Ok(Submitted::QueueClosed)
        } else {
            // Its key was in the way and is gone: it was trimmed between the two looks.
            Err(StoreError::Conflict(format!("the request key of task {id} has just been dropped")))
        }
    });
    answers.collect()
}

/// The answer for a task that was stored, has ended and was dropped by retention before its submission was repeated.
fn gone() -> Submitted {
    Submitted::Stored { created_at_us: 0, state: State::Queued, ready_at_us: None, expires_at_us: None }
}

#[derive(Default)]
struct Found {
    /// The task of each request key.
    keys: HashMap<Uuid, TaskId>,
    tasks: HashMap<TaskId, Submitted>,
}

fn look_up(pool: &Pool, tasks: &[&NewTask]) -> Result<Found> {
    let keys = sql("SELECT key, task_id FROM requests WHERE key = ANY($1::uuid[]) AND task_id IS NOT NULL")
        .array(tasks.iter().filter_map(|task| task.request));
    let ids = sql("SELECT id, state, created_at_us, ready_at_us, expires_at_us FROM tasks WHERE id = ANY($1::uuid[])
        UNION ALL SELECT id, state, created_at_us, NULL, expires_at_us FROM finished_tasks WHERE id = ANY($1)
        UNION ALL SELECT task_id, NULL, first_seen_us, NULL, NULL FROM quarantine WHERE task_id = ANY($1)")
    .array(tasks.iter().map(|task| task.envelope.id.0));
    pool.read(move |conn| {
        let keys = conn.rows(keys, |row| Ok((row.get()?, TaskId(row.get()?))))?;
        let tasks = conn.rows(ids, |row| {
            let id = TaskId(row.get()?);
            let state = stored_state(row.get_nullable()?);
            let created_at_us = row.get()?;
            let (ready_at_us, expires_at_us) = (row.get_nullable()?, row.get_nullable()?);
            Ok((id, Submitted::Stored { created_at_us, state, ready_at_us, expires_at_us }))
        })?;
        Ok(Found { keys: keys.into_iter().collect(), tasks: tasks.into_iter().collect() })
    })
}
