//! Heartbeats: one row a session, many sessions to a statement; what was accepted since becomes RUNNING with it.

use std::sync::Arc;

use millrace_store::Heartbeat;

use crate::{notices, sessions::Session, shared::Shared};

/// A heartbeat on its way into the database.
pub(crate) struct Beat {
    pub(crate) session: Arc<Session>,
    pub(crate) seq: u64,
}

/// The heartbeat gate. A heartbeat that cannot be written is not answered: the orchestrator knows from that how old its
/// lease is (R16), and moves to another replica when this one says that it cannot write (R7).
pub(crate) fn run(shared: &Arc<Shared>, beats: Vec<Beat>) {
    let batch: Vec<Heartbeat> = beats
        .iter()
        .map(|beat| Heartbeat {
            session: beat.session.id,
            generation: beat.session.generation,
            accepted: beat.session.take_accepted().into_iter().map(|lease| (lease, None)).collect(),
        })
        .collect();
    match shared.persist("heartbeat", batch.len(), |store, _| store.heartbeat(&batch)) {
        Ok(results) => {
            for (beat, result) in beats.into_iter().zip(results) {
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
            for (beat, heartbeat) in beats.into_iter().zip(batch) {
                beat.session.give_back_accepted(heartbeat.accepted.into_iter().map(|(lease, _)| lease).collect());
                if let Some(other) = shared.other_replica() {
                    beat.session.go_away(notices::go_away("this replica cannot write heartbeats", Some(other)));
                }
            }
        }
    }
}
