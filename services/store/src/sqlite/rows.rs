//! What rows are read as. Each list of columns stands beside the function that takes them in the same order.

use millrace_core::{
    foreign::{COUNT, HELD_ATTEMPT, MOMENT, TIMEOUT_MS, attempt_in},
    held::LeaseRef,
};

use super::{
    schema::{attempts, finished_tasks, queue_gates, queues, sessions, tasks},
    values::{BadColumn, Columns},
};
use crate::types::{
    AttemptRow, Dispatch, Envelope, HeldRow, NewSession, Outcome, PauseRow, QueueRow, SessionRow, TaskRow,
};

type Decoded<T> = Result<T, BadColumn>;

macro_rules! columns {
    ($(#[$doc:meta])* $name:ident: $($table:ident { $($column:ident),* $(,)? }),*) => {
        $(#[$doc])*
        pub(super) const $name: ($($($table::$column,)*)*) = ($($($table::$column,)*)*);
    };
}

columns! {
    /// For [`live_task`].
    LIVE_TASK: tasks {
        id, tenant, queue, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms, trace_context, format,
        min_reader, spec, state, attempt, token, session_id, failures, losses, created_at_us, expires_at_us,
        dispatched_at_us, started_at_us, ready_at_us, wake_at_us,
    }
}

/// A live task, without the names of its orchestrator and replica.
pub(super) fn live_task(row: &mut Columns) -> Decoded<TaskRow> {
    let mut task = task(row)?;
    task.ready_at_us = row.optional_within("ready_at_us", &MOMENT)?;
    task.wake_at_us = row.optional_within("wake_at_us", &MOMENT)?;
    task.ignored = row.ignored().to_vec();
    Ok(task)
}

columns! {
    /// For [`finished_task`].
    FINISHED_TASK: finished_tasks {
        id, tenant, queue, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms, trace_context, format,
        min_reader, spec, state, attempt, token, session_id, failures, losses, created_at_us, expires_at_us,
        dispatched_at_us, started_at_us, finished_at_us, outcome, exit_code, signal, message, output_tail, output_bytes,
        ended_at_us,
    }
}

/// A finished task, without the names of its orchestrator and replica.
pub(super) fn finished_task(row: &mut Columns) -> Decoded<TaskRow> {
    let mut task = task(row)?;
    task.finished_at_us = Some(row.integer("finished_at_us")?);
    task.outcome = Some(Outcome { started_at_us: task.started_at_us, ..outcome(row)? });
    task.ignored = row.ignored().to_vec();
    Ok(task)
}

fn task(row: &mut Columns) -> Decoded<TaskRow> {
    let envelope = Envelope {
        id: row.task_id("id")?,
        tenant: row.text("tenant")?,
        queue: row.text("queue")?,
        rank: row.narrow("rank")?,
        executor: row.spare(|row| row.text("executor")),
        resource_class: row.spare(|row| row.text("resource_class")),
        concurrency_key: row.text("concurrency_key")?,
        exclusive: row.spare(|row| row.boolean("exclusive")),
        timeout_ms: row.spare(|row| row.optional_within("timeout_ms", &TIMEOUT_MS)),
        trace_context: row.spare(|row| row.traceparent("trace_context")),
        format: row.spare(|row| row.narrow("format")),
        min_reader: row.narrow("min_reader")?,
    };
    let (spec, state) = (row.blob("spec")?, row.state("state")?);
    let attempt = match state.is_terminal() {
        // Nothing acts on it any more: it is shown as it is.
        true => row.narrow("attempt")?,
        false => row.within("attempt", attempt_in(state))?,
    };
    Ok(TaskRow {
        envelope,
        spec,
        state,
        attempt,
        token: row.optional_token("token")?,
        session: row.optional_session_id("session_id")?,
        orchestrator: String::new(),
        replica: String::new(),
        failures: row.spare(|row| row.within("failures", &COUNT)),
        losses: row.spare(|row| row.within("losses", &COUNT)),
        created_at_us: row.spare(|row| row.within("created_at_us", &MOMENT)),
        expires_at_us: row.spare(|row| row.optional_integer("expires_at_us")),
        dispatched_at_us: row.spare(|row| row.optional_within("dispatched_at_us", &MOMENT)),
        started_at_us: row.spare(|row| row.optional_within("started_at_us", &MOMENT)),
        ready_at_us: None,
        wake_at_us: None,
        finished_at_us: None,
        outcome: None,
        ignored: Vec::new(),
    })
}

/// An outcome's own columns; when it started stands elsewhere in the row.
fn outcome(row: &mut Columns) -> Decoded<Outcome> {
    Ok(Outcome {
        kind: row.outcome_kind("outcome")?,
        exit_code: row.spare(|row| row.optional_narrow("exit_code")),
        signal: row.spare(|row| row.optional_narrow("signal")),
        message: row.spare(|row| row.text("message")),
        output_tail: row.spare(|row| row.blob("output_tail")),
        output_bytes: row.spare(|row| row.integer("output_bytes")),
        ended_at_us: row.spare(|row| row.optional_integer("ended_at_us")),
        started_at_us: None,
    })
}

columns! {
    /// For [`attempt`].
    ATTEMPT: attempts {
        attempt, orchestrator, dispatched_at_us, recorded_at_us, outcome, exit_code, signal, message, output_tail,
        output_bytes, ended_at_us, started_at_us,
    }
}

/// An attempt that was not the last word.
pub(super) fn attempt(row: &mut Columns) -> Decoded<AttemptRow> {
    Ok(AttemptRow {
        attempt: row.narrow("attempt")?,
        orchestrator: row.spare(|row| row.text("orchestrator")),
        dispatched_at_us: row.spare(|row| row.optional_integer("dispatched_at_us")),
        recorded_at_us: row.spare(|row| row.integer("recorded_at_us")),
        outcome: {
            let outcome = outcome(row)?;
            Outcome { started_at_us: row.spare(|row| row.optional_integer("started_at_us")), ..outcome }
        },
    })
}

columns! {
    /// For [`dispatch`].
    DISPATCH: tasks {
        id, attempt, token, queue, spec, timeout_ms, trace_context, dispatched_at_us, state, concurrency_key,
    }
}

/// A held task as its orchestrator needs it.
pub(super) fn dispatch(row: &mut Columns) -> Decoded<Dispatch> {
    let dispatch = Dispatch {
        lease: lease(row)?,
        queue: row.text("queue")?,
        spec: row.blob("spec")?,
        timeout_ms: row.spare(|row| row.optional_within("timeout_ms", &TIMEOUT_MS)),
        trace_context: row.spare(|row| row.traceparent("trace_context")),
        dispatched_at_us: row.spare(|row| row.within("dispatched_at_us", &MOMENT)),
        state: row.state("state")?,
    };
    // Whoever runs it without its key may run it beside another of the same key.
    row.text("concurrency_key")?;
    Ok(dispatch)
}

columns! {
    /// For [`lease`].
    LEASE: tasks { id, attempt, token }
}

/// The lease of a held task.
pub(super) fn lease(row: &mut Columns) -> Decoded<LeaseRef> {
    Ok(LeaseRef {
        task: row.task_id("id")?,
        attempt: row.within("attempt", &HELD_ATTEMPT)?,
        token: row.token("token")?,
    })
}

columns! {
    /// For [`held`].
    HELD: tasks {
        id, attempt, token, state, session_id, queue, tenant, rank, min_reader, expires_at_us, spec, failures, losses,
        unsupported,
    }
}

/// A held task as the recovery and failure paths read it.
pub(super) fn held(row: &mut Columns) -> Decoded<HeldRow> {
    Ok(HeldRow {
        lease: lease(row)?,
        state: row.state("state")?,
        session: row.session_id("session_id")?,
        queue: row.text("queue")?,
        tenant: row.text("tenant")?,
        rank: row.narrow("rank")?,
        min_reader: row.narrow("min_reader")?,
        expires_at_us: row.spare(|row| row.optional_integer("expires_at_us")),
        spec: row.blob("spec")?,
        failures: row.spare(|row| row.within("failures", &COUNT)),
        losses: row.spare(|row| row.within("losses", &COUNT)),
        unsupported: row.spare(|row| row.within("unsupported", &COUNT)),
    })
}

columns! {
    /// For [`session`].
    SESSION: sessions {
        id, name, queues, slots, labels, ttl_ms, replica, build, generation, state, expires_served_ms, seen_at_us,
    }
}

/// A session, without the number of tasks that it holds.
pub(super) fn session(row: &mut Columns) -> Decoded<SessionRow> {
    Ok(SessionRow {
        session: NewSession {
            id: row.session_id("id")?,
            name: row.text("name")?,
            queues: row.list("queues")?,
            slots: row.narrow("slots")?,
            labels: row.map("labels")?,
            ttl_ms: row.integer("ttl_ms")?,
            replica: row.text("replica")?,
            build: row.text("build")?,
        },
        generation: row.integer("generation")?,
        live: row.narrow::<i16>("state")? == super::schema::SESSION_LIVE,
        expires_served_ms: row.integer("expires_served_ms")?,
        seen_at_us: row.integer("seen_at_us")?,
        held: 0,
    })
}

columns! {
    /// For [`queue`].
    QUEUE: queues {
        name, description, default_timeout_ms, default_expire_after_ms, paused, pause_reason, pause_until_us,
        pause_since_us, draining, created_at_us, updated_at_us
    }, queue_gates { epoch }
}

/// A queue with the epoch of its gate.
pub(super) fn queue(row: &mut Columns) -> Decoded<QueueRow> {
    Ok(QueueRow {
        name: row.text("name")?,
        description: row.text("description")?,
        default_timeout_ms: row.optional_integer("default_timeout_ms")?,
        default_expire_after_ms: row.optional_integer("default_expire_after_ms")?,
        pause: {
            let paused = row.boolean("paused")?;
            let reason = row.text("pause_reason")?;
            let until_us = row.optional_integer("pause_until_us")?;
            let since_us = row.optional_integer("pause_since_us")?.unwrap_or_default();
            paused.then_some(PauseRow { reason, until_us, since_us })
        },
        draining: row.boolean("draining")?,
        created_at_us: row.integer("created_at_us")?,
        updated_at_us: row.integer("updated_at_us")?,
        epoch: row.integer("epoch")?,
    })
}
