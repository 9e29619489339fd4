//! Giving tasks to sessions.

use std::collections::HashMap;

use diesel::prelude::*;
use millrace_core::{
    READER_RANGE,
    held::LeaseRef,
    id::SessionId,
    task::{Event, State},
};

use super::{
    failure::Outcome,
    schema::{Key, SESSION_LIVE, queue_gates, sessions, tasks},
    values::{BadColumn, Columns, good_row},
};
use crate::types::{Claim, Claimed, Dispatch};

pub(super) fn claim(connection: &mut SqliteConnection, now: i64, batch: &[Claim]) -> Outcome<Vec<Claimed>> {
    let mut claims = Claims { now, gates: HashMap::new(), sessions: HashMap::new() };
    batch.iter().map(|claim| claims.one(connection, claim)).collect()
}

/// One batch. Its transaction is the only one that writes, so what it has read of gates and sessions holds until the
/// commit (R2, R5).
struct Claims<'a> {
    now: i64,
    /// Epochs of the gates that are open.
    gates: HashMap<&'a str, Option<i64>>,
    /// Generations of the sessions that are live.
    sessions: HashMap<SessionId, Option<i64>>,
}

/// As much of a row as decides.
struct Candidate {
    dispatch: Dispatch,
    session: Option<SessionId>,
    waits: bool,
}

impl<'a> Claims<'a> {
    fn one(&mut self, connection: &mut SqliteConnection, claim: &'a Claim) -> Outcome<Claimed> {
        let candidate = self.candidate(connection, claim)?;
        if let Some(candidate) = &candidate
            && candidate.session == Some(claim.session)
            && candidate.dispatch.lease.token == claim.token
        {
            return Ok(Claimed::Won(Box::new(candidate.dispatch.clone())));
        }
        if self.gate(connection, &claim.queue)? != Some(claim.epoch) {
            return Ok(Claimed::GateClosed);
        }
        if self.session(connection, claim.session)? != Some(claim.generation) {
            return Ok(Claimed::SessionGone);
        }
        let Some(candidate) = candidate.filter(|candidate| candidate.waits) else { return Ok(Claimed::Stale) };
        let Ok(state) = candidate.dispatch.state.next(Event::Claim) else { return Ok(Claimed::Stale) };
        let lease = LeaseRef {
            task: claim.task,
            attempt: candidate.dispatch.lease.attempt.saturating_add(1),
            token: claim.token,
        };
        diesel::update(tasks::table.filter(tasks::id.eq(Key(claim.task.0))))
            .set((
                tasks::state.eq(state as i16),
                tasks::attempt.eq(lease.attempt),
                tasks::token.eq(lease.token.0),
                tasks::session_id.eq(Key(claim.session.0)),
                tasks::ready_at_us.eq(None::<i64>),
                tasks::dispatched_at_us.eq(self.now),
                tasks::started_at_us.eq(None::<i64>),
            ))
            .execute(connection)?;
        Ok(Claimed::Won(Box::new(Dispatch { lease, dispatched_at_us: self.now, state, ..candidate.dispatch })))
    }

    /// The row. One that cannot be read is no candidate, and is left as it is.
    fn candidate(&self, connection: &mut SqliteConnection, claim: &Claim) -> Outcome<Option<Candidate>> {
        let query = tasks::table.filter(tasks::id.eq(Key(claim.task.0))).select((
            tasks::id,
            tasks::attempt,
            tasks::token,
            tasks::queue,
            tasks::spec,
            tasks::timeout_ms,
            tasks::trace_context,
            tasks::dispatched_at_us,
            tasks::state,
            tasks::session_id,
            tasks::expires_at_us,
            tasks::min_reader,
            // Only so that a row which the paths of recovery could not read is never held.
            tasks::tenant,
            tasks::rank,
        ));
        Ok(good_row(connection, query, |row| self.decide(row, claim))?)
    }

    fn decide(&self, row: &mut Columns, claim: &Claim) -> Result<Candidate, BadColumn> {
        let dispatch = Dispatch {
            lease: LeaseRef {
                task: row.task_id("id")?,
                attempt: row.narrow("attempt")?,
                token: row.optional_token("token")?.unwrap_or(claim.token),
            },
            queue: row.text("queue")?,
            spec: row.blob("spec")?,
            timeout_ms: row.optional_integer("timeout_ms")?,
            trace_context: row.text("trace_context")?,
            dispatched_at_us: row.optional_integer("dispatched_at_us")?.unwrap_or(self.now),
            state: row.state("state")?,
        };
        let session = row.optional_session_id("session_id")?;
        let expired = row.optional_integer("expires_at_us")?.is_some_and(|moment| moment <= self.now);
        let readable = row.narrow::<i16>("min_reader")? <= READER_RANGE.1;
        row.text("tenant")?;
        row.narrow::<i32>("rank")?;
        let waits = dispatch.state == State::Queued && dispatch.queue == claim.queue && !expired && readable;
        Ok(Candidate { dispatch, session, waits })
    }

    /// The epoch of the queue's gate, if it is open.
    fn gate(&mut self, connection: &mut SqliteConnection, queue: &'a str) -> Outcome<Option<i64>> {
        if let Some(&epoch) = self.gates.get(queue) {
            return Ok(epoch);
        }
        let query =
            queue_gates::table.filter(queue_gates::queue.eq(queue)).select((queue_gates::epoch, queue_gates::paused));
        let gate = good_row(connection, query, |row| Ok((row.integer("epoch")?, row.boolean("paused")?)))?;
        let epoch = gate.and_then(|(epoch, paused)| (!paused).then_some(epoch));
        self.gates.insert(queue, epoch);
        Ok(epoch)
    }

    /// The session's generation, if it is live.
    fn session(&mut self, connection: &mut SqliteConnection, session: SessionId) -> Outcome<Option<i64>> {
        if let Some(&generation) = self.sessions.get(&session) {
            return Ok(generation);
        }
        let query = sessions::table
            .filter(sessions::id.eq(Key(session.0)).and(sessions::state.eq(SESSION_LIVE)))
            .select(sessions::generation);
        let generation = good_row(connection, query, |row| row.integer("generation"))?;
        self.sessions.insert(session, generation);
        Ok(generation)
    }
}
