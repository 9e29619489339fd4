//! Sessions of orchestrators.

use std::time::Duration;

use millrace_core::{
    id::SessionId,
    task::{Event, State},
    time::Timestamp,
};

use super::{
    attempts::{dispatch, held_row},
    model::{Model, Session, at_most, next},
};
use crate::{Foreign, Result, StoreError, types::*};

impl Model {
    /// The generation of a session that is neither reaped nor closed.
    pub(super) fn live_generation(&self, id: SessionId) -> Option<i64> {
        self.sessions.get(&id).filter(|session| session.over_at_us.is_none()).map(|session| session.generation)
    }

    pub(super) fn open_session(&mut self, now: i64, new: &NewSession) -> Result<SessionRow> {
        let expires_served_ms = self.clock.served_ms.saturating_add(new.ttl_ms);
        let session = self.sessions.entry(new.id).or_insert_with(|| Session {
            session: new.clone(),
            generation: 1,
            expires_served_ms,
            seen_at_us: now,
            over_at_us: None,
        });
        match session.generation {
            1 => Ok(session_row(session, 0)),
            _ => Err(StoreError::Internal(format!("session {} went on and is not opened again", new.id))),
        }
    }

    pub(super) fn resume_session(
        &mut self,
        now: i64,
        foreign: &Foreign,
        id: SessionId,
        generation: i64,
        replica: &str,
    ) -> Resumed {
        if generation < 1 || self.live_generation(id).is_none_or(|live| live < generation) {
            return Resumed::Gone;
        }
        let served_ms = self.clock.served_ms;
        let Some(session) = self.sessions.get_mut(&id) else { return Resumed::Gone };
        session.generation += 1;
        session.session.replica = replica.to_owned();
        session.renew(now, served_ms);
        Resumed::Yes { session: session_row(session, 0), held: self.held_by(foreign, id) }
    }

    pub(super) fn close_session(&mut self, now: i64, id: SessionId, generation: Option<i64>) -> bool {
        let Some(live) = self.live_generation(id) else { return false };
        if generation.is_some_and(|generation| generation != live) {
            return false;
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.end(now);
        }
        true
    }

    pub(super) fn heartbeat(&mut self, now: i64, foreign: &Foreign, beat: &Heartbeat) -> Result<HeartbeatResult> {
        if self.live_generation(beat.session) != Some(beat.generation) {
            return Ok(HeartbeatResult { renewed: false, cancelling: Vec::new() });
        }
        let served_ms = self.clock.served_ms;
        if let Some(session) = self.sessions.get_mut(&beat.session) {
            session.renew(now, served_ms);
        }
        for (lease, started_at_us) in &beat.accepted {
            if let Some(task) = self.held(*lease)
                && task.session == Some(beat.session)
                && task.state == State::Dispatched
            {
                task.state = next(task.state, Event::Accept)?;
                task.started_at_us = *started_at_us;
                self.rewritten(lease.task, &["state", "started_at_us"]);
            }
        }
        let own = self.tasks.values().filter(|task| task.session == Some(beat.session));
        let cancelling = own.filter(|task| task.state == State::Cancelling && self.reads(foreign, task));
        let cancelling = cancelling.filter_map(|task| task.lease()).collect();
        Ok(HeartbeatResult { renewed: true, cancelling })
    }

    pub(super) fn reap_sessions(&mut self, now: i64, limit: i64) -> Vec<SessionId> {
        if self.clock.is_frozen() {
            return Vec::new();
        }
        let served_ms = self.clock.served_ms;
        let mut reaped = Vec::new();
        for (id, session) in &mut self.sessions {
            let has_run_out = session.over_at_us.is_none() && session.expires_served_ms < served_ms;
            if has_run_out && reaped.len() < at_most(limit) {
                session.end(now);
                reaped.push(*id);
            }
        }
        reaped
    }

    pub(super) fn orphans(&self, foreign: &Foreign, limit: i64) -> Vec<HeldRow> {
        let held = self.tasks.values().filter(|task| task.state.is_held());
        let orphaned = held.filter(|task| task.session.is_none_or(|id| self.live_generation(id).is_none()));
        orphaned.filter(|task| self.reads(foreign, task)).filter_map(held_row).take(at_most(limit)).collect()
    }

    pub(super) fn held_by(&self, foreign: &Foreign, id: SessionId) -> Vec<Dispatch> {
        let held = self.tasks.values().filter(|task| task.session == Some(id));
        held.filter(|task| self.reads(foreign, task)).filter_map(dispatch).collect()
    }

    pub(super) fn live_sessions(&self, limit: i64) -> Vec<SessionRow> {
        let live = self.sessions.values().filter(|session| session.over_at_us.is_none()).take(at_most(limit));
        live.map(|session| session_row(session, self.count_held(session.session.id))).collect()
    }

    fn count_held(&self, id: SessionId) -> i32 {
        let held = self.tasks.values().filter(|task| task.session == Some(id)).count();
        i32::try_from(held).unwrap_or(i32::MAX)
    }

    pub(super) fn trim_sessions(&mut self, now: i64, keep: Duration, limit: i64) -> i64 {
        let before = Timestamp(now).before(keep).0;
        let old = self.sessions.iter().filter(|(id, session)| {
            // What it holds must still be found by its name.
            session.over_at_us.is_some_and(|over| over < before) && self.count_held(**id) == 0
        });
        let old: Vec<SessionId> = old.map(|(id, _)| *id).take(at_most(limit)).collect();
        for id in &old {
            self.sessions.remove(id);
        }
        i64::try_from(old.len()).unwrap_or(i64::MAX)
    }
}

impl Session {
    fn renew(&mut self, now: i64, served_ms: i64) {
        self.expires_served_ms = served_ms.saturating_add(self.session.ttl_ms);
        self.seen_at_us = now;
    }

    /// Its generation rises, so that nothing that was under way for it is done any more (R2).
    fn end(&mut self, now: i64) {
        self.generation += 1;
        self.over_at_us = Some(now);
    }
}

fn session_row(session: &Session, held: i32) -> SessionRow {
    SessionRow {
        session: session.session.clone(),
        generation: session.generation,
        live: session.over_at_us.is_none(),
        expires_served_ms: session.expires_served_ms,
        seen_at_us: session.seen_at_us,
        held,
    }
}
