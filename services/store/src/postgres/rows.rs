//! What the columns of each kind of row mean, in the order in which the statements select them.

use std::collections::BTreeMap;

use millrace_core::{
    foreign::{COUNT, HELD_ATTEMPT, MOMENT, TIMEOUT_MS, attempt_in},
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    route::Route,
    task::State,
};
use uuid::Uuid;

use super::columns::{Columns, Read};
use crate::{
    AttemptRow, Dispatch, Envelope, HeldRow, MemberKind, MemberRow, NewSession, Outcome, PauseRow, QueueRow,
    SessionRow, TaskRow, Waiting,
};

/// The database's time now, in microseconds since 1970.
macro_rules! now_us {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    };
}

/// The columns of a [`Dispatch`], of `tasks` as `t`.
macro_rules! dispatch_columns {
    () => {
        "t.id, t.attempt, t.token, t.queue, t.spec, t.timeout_ms, t.trace_context, t.dispatched_at_us, t.state,
         t.concurrency_key"
    };
}

/// The columns of a [`HeldRow`], of `tasks` as `t`.
macro_rules! held_columns {
    () => {
        "t.id, t.attempt, t.token, t.state, t.session_id, t.queue, t.tenant, t.rank, t.min_reader, t.expires_at_us,
         t.spec, t.failures, t.losses, t.unsupported"
    };
}

/// What both tables have of a task beside its times, as `t`, and what is known of its session, of `sessions` as `s`.
macro_rules! task_columns {
    () => {
        "t.id, t.tenant, t.queue, t.rank, t.executor, t.resource_class, t.concurrency_key, t.exclusive, t.timeout_ms,
         t.trace_context, t.format, t.min_reader, t.spec, t.state, t.attempt, t.token, t.session_id,
         coalesce(s.name, ''), coalesce(s.replica, ''), t.failures, t.losses, t.created_at_us, t.expires_at_us, t.dispatched_at_us, t.started_at_us"
    };
}

/// Reads live and finished tasks as [`TaskRow`]s; the condition is on `t`. One statement, so that a task that moves from one
/// table to the other is in exactly one of them.
macro_rules! select_tasks {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            $crate::postgres::rows::task_columns!(),
            ", t.ready_at_us, t.wake_at_us, NULL::bigint, NULL::smallint,
                NULL::integer, NULL::integer, NULL::text, NULL::bytea, NULL::bigint, NULL::bigint
             FROM tasks t LEFT JOIN sessions s ON s.id = t.session_id WHERE ",
            $condition,
            "
             UNION ALL
             SELECT ",
            $crate::postgres::rows::task_columns!(),
            ", NULL::bigint, NULL::bigint, t.finished_at_us, t.outcome,
                t.exit_code, t.signal, t.message, t.output_tail, t.output_bytes, t.ended_at_us
             FROM finished_tasks t LEFT JOIN sessions s ON s.id = t.session_id WHERE ",
            $condition
        )
    };
}

/// The columns of a [`QueueRow`], of `queues` as `q` and `queue_gates` as `g`.
macro_rules! queue_columns {
    () => {
        "q.name, q.description, q.default_timeout_ms, q.default_expire_after_ms, q.paused, q.pause_reason,
         q.pause_until_us, q.pause_since_us, q.draining, g.epoch, q.created_at_us, q.updated_at_us"
    };
}

/// The columns of a [`SessionRow`] but for what it holds, of `sessions` as `s`.
macro_rules! session_columns {
    () => {
        "s.id, s.name, s.queues, s.slots, s.labels, s.ttl_ms, s.replica, s.build, s.generation, s.state,
         s.expires_served_ms, s.seen_at_us"
    };
}

pub(super) use {dispatch_columns, held_columns, now_us, queue_columns, select_tasks, session_columns, task_columns};

// ── Tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────

fn lease(row: &mut Columns<'_>) -> Read<LeaseRef> {
    Ok(LeaseRef { task: TaskId(row.get()?), attempt: row.within(&HELD_ATTEMPT)?, token: Token(row.get()?) })
}

/// The next columns as id, attempt and token.
pub(super) fn lease_ref(row: &mut Columns<'_>) -> Read<LeaseRef> {
    lease(row)
}

fn state(row: &mut Columns<'_>) -> Read<State> {
    row.get_known(|number: i16| State::try_from(number))
}

fn outcome_kind(number: i16) -> Result<OutcomeKind, String> {
    OutcomeKind::try_from(number).map_err(|number| format!("outcome {number} is not known to this build"))
}

pub(super) fn dispatch(row: &mut Columns<'_>) -> Read<Dispatch> {
    let dispatch = Dispatch {
        lease: lease(row)?,
        queue: row.get()?,
        spec: row.get()?,
        timeout_ms: row.spare_nullable_within(&TIMEOUT_MS),
        trace_context: row.spare_traceparent(),
        dispatched_at_us: row.spare_within(&MOMENT),
        state: state(row)?,
    };
    // Whoever runs it without its key may run it beside another of the same key.
    row.get::<String>()?;
    Ok(dispatch)
}

pub(super) fn held(row: &mut Columns<'_>) -> Read<HeldRow> {
    Ok(HeldRow {
        lease: lease(row)?,
        state: state(row)?,
        session: SessionId(row.get()?),
        queue: row.get()?,
        tenant: row.get()?,
        rank: row.get()?,
        min_reader: row.get()?,
        expires_at_us: row.spare_nullable(),
        spec: row.get()?,
        failures: row.spare_within(&COUNT),
        losses: row.spare_within(&COUNT),
        unsupported: row.spare_within(&COUNT),
    })
}

/// The columns id, tenant, rank, ready_at_us, expires_at_us, min_reader.
pub(super) fn waiting(row: &mut Columns<'_>) -> Read<Waiting> {
    Ok(Waiting {
        id: TaskId(row.get()?),
        tenant: row.get()?,
        rank: row.get()?,
        ready_at_us: row.get()?,
        expires_at_us: row.spare_nullable(),
        min_reader: row.get()?,
    })
}

/// What `select_tasks!` selects.
pub(super) fn task(row: &mut Columns<'_>) -> Read<TaskRow> {
    let (id, tenant, queue, rank, executor) = (row.get()?, row.get()?, row.get()?, row.get()?, row.spare());
    let envelope = Envelope {
        id: TaskId(id),
        tenant,
        queue,
        rank,
        executor,
        resource_class: row.spare(),
        concurrency_key: row.get()?,
        exclusive: row.spare(),
        timeout_ms: row.spare_nullable_within(&TIMEOUT_MS),
        trace_context: row.spare_traceparent(),
        format: row.spare(),
        min_reader: row.get()?,
    };
    let (spec, state) = (row.get()?, state(row)?);
    let attempt = match state.is_terminal() {
        // Nothing acts on it any more: it is shown as it is.
        true => row.get()?,
        false => row.within(attempt_in(state))?,
    };
    let mut task = TaskRow {
        envelope,
        spec,
        state,
        attempt,
        token: row.get_nullable()?.map(Token),
        session: row.get_nullable()?.map(SessionId),
        orchestrator: row.get()?,
        replica: row.get()?,
        failures: row.spare_within(&COUNT),
        losses: row.spare_within(&COUNT),
        created_at_us: row.spare_within(&MOMENT),
        expires_at_us: row.spare_nullable(),
        dispatched_at_us: row.spare_nullable_within(&MOMENT),
        started_at_us: row.spare_nullable_within(&MOMENT),
        ready_at_us: row.nullable_within(&MOMENT)?,
        wake_at_us: row.nullable_within(&MOMENT)?,
        finished_at_us: row.get_nullable()?,
        outcome: None,
        ignored: Vec::new(),
    };
    if task.finished_at_us.is_some() {
        task.outcome = Some(Outcome {
            kind: row.get_as(outcome_kind)?,
            exit_code: row.spare_nullable(),
            signal: row.spare_nullable(),
            message: row.spare(),
            output_tail: row.spare(),
            output_bytes: row.spare(),
            started_at_us: task.started_at_us,
            ended_at_us: row.spare_nullable(),
        });
    }
    task.ignored = row.ignored().to_vec();
    Ok(task)
}

/// The columns attempt, orchestrator, dispatched_at_us, recorded_at_us and those of the outcome.
pub(super) fn attempt(row: &mut Columns<'_>) -> Read<AttemptRow> {
    Ok(AttemptRow {
        attempt: row.get()?,
        orchestrator: row.spare(),
        dispatched_at_us: row.spare_nullable(),
        recorded_at_us: row.spare(),
        outcome: Outcome {
            kind: row.get_as(outcome_kind)?,
            exit_code: row.spare_nullable(),
            signal: row.spare_nullable(),
            message: row.spare(),
            output_tail: row.spare(),
            output_bytes: row.spare(),
            started_at_us: row.spare_nullable(),
            ended_at_us: row.spare_nullable(),
        },
    })
}

// ── Sessions and members ────────────────────────────────────────────────────────────────────────────────────────────

/// What `session_columns!` selects.
pub(super) fn session(row: &mut Columns<'_>) -> Read<SessionRow> {
    let session = NewSession {
        id: SessionId(row.get()?),
        name: row.get()?,
        queues: row.get_as(from_json)?,
        slots: row.get()?,
        labels: row.get_as(from_json)?,
        ttl_ms: row.get()?,
        replica: row.get()?,
        build: row.get()?,
    };
    Ok(SessionRow {
        session,
        generation: row.get()?,
        live: row.get_as(session_state)?,
        expires_served_ms: row.get()?,
        seen_at_us: row.get()?,
        held: 0,
    })
}

fn session_state(number: i16) -> Result<bool, String> {
    match number {
        1 => Ok(true),
        2 => Ok(false),
        _ => Err(format!("session state {number} is not known to this build")),
    }
}

/// The columns id, kind, endpoint, build, min_reader, max_reader, seen_at_us.
pub(super) fn member(row: &mut Columns<'_>) -> Read<MemberRow> {
    let kind = |number: i16| match number {
        1 => Ok(MemberKind::Distributor),
        2 => Ok(MemberKind::Queue),
        _ => Err(format!("member kind {number} is not known to this build")),
    };
    Ok(MemberRow {
        id: MemberId(row.get()?),
        kind: row.get_as(kind)?,
        endpoint: row.get()?,
        build: row.get()?,
        readers: (row.get()?, row.get()?),
        seen_at_us: row.get()?,
    })
}

// ── Queues and routes ───────────────────────────────────────────────────────────────────────────────────────────────

/// What `queue_columns!` selects.
pub(super) fn queue(row: &mut Columns<'_>) -> Read<QueueRow> {
    let mut queue = QueueRow {
        name: row.get()?,
        description: row.get()?,
        default_timeout_ms: row.get_nullable()?,
        default_expire_after_ms: row.get_nullable()?,
        pause: None,
        draining: false,
        epoch: 0,
        created_at_us: 0,
        updated_at_us: 0,
    };
    let paused: bool = row.get()?;
    let (reason, until_us, since_us) = (row.get()?, row.get_nullable()?, row.get_nullable()?);
    queue.pause = paused.then(|| PauseRow { reason, until_us, since_us: since_us.unwrap_or_default() });
    queue.draining = row.get()?;
    queue.epoch = row.get()?;
    queue.created_at_us = row.get()?;
    queue.updated_at_us = row.get()?;
    Ok(queue)
}

/// The columns name, ord, executor, resource_class, tenant, labels, queue.
pub(super) fn route(row: &mut Columns<'_>) -> Read<Route> {
    Ok(Route {
        name: row.get()?,
        order: row.get()?,
        executor: row.get()?,
        resource_class: row.get()?,
        tenant: row.get()?,
        labels: row.get_as(from_json)?,
        queue: row.get()?,
    })
}

// ── Values ──────────────────────────────────────────────────────────────────────────────────────────────────────────

fn from_json<T: serde::de::DeserializeOwned>(text: String) -> Result<T, serde_json::Error> {
    serde_json::from_str(&text)
}

/// A JSON array of strings.
pub(super) fn list_json(list: &[String]) -> String {
    serde_json::Value::from(list.to_vec()).to_string()
}

/// A JSON object of strings.
pub(super) fn map_json(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect::<serde_json::Value>().to_string()
}

/// Text for people as PostgreSQL can keep it: it has no place for a NUL, and a sentence must never cost the outcome that it
/// describes.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

pub(super) fn uuid(row: &mut Columns<'_>) -> Read<Uuid> {
    row.get()
}

pub(super) fn text(row: &mut Columns<'_>) -> Read<String> {
    row.get()
}

pub(super) fn number(row: &mut Columns<'_>) -> Read<i64> {
    row.get()
}
