//! Heartbeats: one row a session, many sessions to a statement; what was accepted since becomes RUNNING with it.

use std::sync::Arc;

use millrace_core::held::LeaseRef;
use millrace_store::Heartbeat;

use crate::{notices, sessions::Session, shared::Shared};

/// A heartbeat on its way into the database.
pub(crate) struct Beat {
    session: Arc<Session>,
    seq: u64,
    /// What was accepted since the last heartbeat, while it is being written.
    accepted: Vec<LeaseRef>,
}

impl Beat {
    pub(crate) fn new(session: Arc<Session>, seq: u64) -> Self {
        Self { session, seq, accepted: Vec::new() }
    }
}

/// A heartbeat that was not written, be it because its batch panicked, gives back what it was to write.
impl Drop for Beat {
    fn drop(&mut self) {
        if !self.accepted.is_empty() {
            self.session.give_back_accepted(std::mem::take(&mut self.accepted));
        }
    }
}

/// The heartbeat gate. A heartbeat that cannot be written is not answered: the orchestrator knows from that how old its
/// lease is (R16), and moves to another replica when this one says that it cannot write (R7).
pub(crate) fn run(shared: &Arc<Shared>, mut beats: Vec<Beat>) {
    let batch: Vec<Heartbeat> = beats
        .iter_mut()
        .map(|beat| {
            beat.accepted = beat.session.take_accepted();
            Heartbeat {
                session: beat.session.id,
                generation: beat.session.generation,
                accepted: beat.accepted.iter().map(|lease| (*lease, None)).collect(),
            }
        })
        .collect();
    match shared.persist("heartbeat", batch.len(), |store, _| store.heartbeat(&batch)) {
        Ok(results) => {
            for (mut beat, result) in beats.into_iter().zip(results) {
                beat.accepted.clear();
                if !result.renewed {
                    beat.session.end(Some(notices::session_moved()));
                    continue;
                }
                beat.session.renewed(beat.seq);
                if !result.cancelling.is_empty() {
                    beat.session.cancel(result.cancelling);
                }
            }
        }
        Err(_) => {
            for beat in beats {
                if let Some(other) = shared.other_replica() {
                    beat.session.go_away(notices::go_away("this replica cannot write heartbeats", Some(other)));
                }
            }
        }
    }
}
