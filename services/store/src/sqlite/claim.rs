//! Giving tasks to sessions.

use std::collections::HashMap;

use diesel::prelude::*;
use millrace_core::{
    READER_RANGE,
    foreign::{Defect, TIMEOUT_MS, attempt_in},
    held::LeaseRef,
    id::SessionId,
    task::{Event, State},
};

use super::{
    failure::Outcome,
    foreign::examine_one,
    reading::{each_row, good_row, noted},
    schema::{Key, SESSION_LIVE, queue_gates, sessions, tasks},
    values::{BadColumn, Columns},
};
use crate::{
    Foreign, Reader,
    types::{Claim, Claimed, Dispatch},
};

pub(super) fn claim(
    connection: &mut SqliteConnection,
    now: i64,
    foreign: &Foreign,
    reader: &Reader,
    batch: &[Claim],
) -> Outcome<Vec<Claimed>> {
    let mut claims = Claims { now, foreign, reader, gates: HashMap::new(), sessions: HashMap::new() };
    batch.iter().map(|claim| claims.one(connection, claim)).collect()
}

/// One batch. Its transaction is the only one that writes, so what it has read of gates and sessions holds until the
/// commit (R2, R5).
struct Claims<'a> {
    now: i64,
    foreign: &'a Foreign,
    reader: &'a Reader,
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

/// A task's row as a claim finds it.
enum Found {
    Nothing,
    Candidate(Candidate),
    /// It cannot be read.
    Unread,
}

impl<'a> Claims<'a> {
    fn one(&mut self, connection: &mut SqliteConnection, claim: &'a Claim) -> Outcome<Claimed> {
        let found = self.find(connection, claim)?;
        if let Found::Candidate(candidate) = &found
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
        let candidate = match found {
            Found::Candidate(candidate) if candidate.waits => candidate,
            Found::Candidate(_) | Found::Nothing => return Ok(Claimed::Stale),
            Found::Unread => return self.examine(connection, claim),
        };
        if self.refuses(&candidate.dispatch.spec) {
            return self.examine(connection, claim);
        }
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

    /// Sets the row aside, if it is as bad as it looks; it would have been this claim's.
    fn examine(&self, connection: &mut SqliteConnection, claim: &Claim) -> Outcome<Claimed> {
        examine_one(connection, self.now, self.reader, claim.task)?;
        Ok(Claimed::Stale)
    }

    /// Whether this build could not run the spec.
    fn refuses(&self, spec: &[u8]) -> bool {
        let reading = (self.reader.spec)(spec);
        reading.ignored.iter().for_each(|defect| self.foreign.ignored(&defect.column));
        let note = |defect: &Defect| self.foreign.unreadable(None, defect);
        reading.defect.inspect(note).is_some()
    }

    fn find(&self, connection: &mut SqliteConnection, claim: &Claim) -> Outcome<Found> {
        let query = tasks::table.filter(tasks::id.eq(Key(claim.task.0))).select((
            tasks::id,
            tasks::attempt,
            tasks::token,
            tasks::queue,
            tasks::spec,
            tasks::timeout_ms,
            tasks::trace_context,
            tasks::dispatched_at_us,
            tasks::min_reader,
            tasks::state,
            tasks::session_id,
            tasks::expires_at_us,
            // Only so that a row which others could not read is never held.
            (tasks::tenant, tasks::rank, tasks::concurrency_key),
        ));
        let mut found = Found::Nothing;
        each_row(connection, query, |row| {
            found = match noted(self.foreign, row, |row| self.decide(row, claim)) {
                Ok(candidate) => Found::Candidate(candidate),
                Err(_) => Found::Unread,
            };
            false
        })?;
        Ok(found)
    }

    fn decide(&self, row: &mut Columns, claim: &Claim) -> Result<Candidate, BadColumn> {
        let task = row.task_id("id")?;
        let attempt: i32 = row.narrow("attempt")?;
        // While a task waits, what stands there of an earlier time is nothing to anybody.
        let token = row.optional_token("token").ok().flatten();
        let (queue, spec) = (row.text("queue")?, row.blob("spec")?);
        let timeout_ms = row.spare(|row| row.optional_within("timeout_ms", &TIMEOUT_MS));
        let trace_context = row.spare(|row| row.traceparent("trace_context"));
        let dispatched_at_us = row.optional_integer("dispatched_at_us").ok().flatten().unwrap_or(self.now);
        let readable = row.narrow::<i16>("min_reader")? <= READER_RANGE.1;
        let state = row.state("state")?;
        if !attempt_in(state).hold(attempt) {
            return Err(BadColumn::outside("attempt", attempt_in(state), attempt));
        }
        let session = row.optional_session_id("session_id").ok().flatten();
        let expires_at_us = row.spare(|row| row.optional_integer("expires_at_us"));
        row.text("tenant")?;
        row.narrow::<i32>("rank")?;
        row.text("concurrency_key")?;
        let expired = expires_at_us.is_some_and(|moment| moment <= self.now);
        let waits = state == State::Queued && queue == claim.queue && !expired && readable;
        let lease = LeaseRef { task, attempt, token: token.unwrap_or(claim.token) };
        let dispatch = Dispatch { lease, queue, spec, timeout_ms, trace_context, dispatched_at_us, state };
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
