//! What is on its way to an orchestrator, and the messages in which it goes.

use millrace_proto::distributor::v1::{self as wire, connect_orchestrator_response::Message};

/// Items of one message. With a spec of the largest size beyond it, a message stays below the bound of either side.
const CHUNK_ITEMS: usize = 1_000;

/// Bytes after which a message of assignments is full.
const CHUNK_BYTES: usize = 1024 * 1024;

/// What is on its way to the orchestrator. Assignments are bounded by credits, and the lists together by [`OUTBOX`].
#[derive(Default)]
pub(crate) struct Outbox {
    pub(crate) assignments: Vec<wire::Assignment>,
    pub(crate) results: Vec<wire::CompletionResult>,
    pub(crate) cancels: Vec<wire::LeaseRef>,
    pub(crate) revoked: Vec<wire::LeaseRef>,
    pub(crate) heartbeat: Option<u64>,
    pub(crate) send_held: bool,
    pub(crate) go_away: Option<wire::GoAway>,
}

impl Outbox {
    /// Entries that wait beyond the assignments, which credits bound.
    pub(crate) fn waiting(&self) -> usize {
        self.results.len() + self.cancels.len() + self.revoked.len()
    }

    pub(crate) fn messages(self) -> Vec<wire::ConnectOrchestratorResponse> {
        let mut messages = Vec::new();
        for results in self.results.chunks(CHUNK_ITEMS) {
            messages.push(Message::CompletionResults(wire::CompletionResults { results: results.to_vec() }));
        }
        for assignments in by_size(self.assignments) {
            messages.push(Message::Assignments(wire::Assignments { assignments }));
        }
        for leases in self.cancels.chunks(CHUNK_ITEMS) {
            messages.push(Message::CancelAttempts(wire::CancelAttempts { leases: leases.to_vec() }));
        }
        for leases in self.revoked.chunks(CHUNK_ITEMS) {
            messages.push(Message::RevokeAttempts(wire::RevokeAttempts { leases: leases.to_vec() }));
        }
        if let Some(seq) = self.heartbeat {
            messages.push(Message::HeartbeatResult(wire::HeartbeatResult { seq }));
        }
        if self.send_held {
            messages.push(Message::SendHeld(wire::SendHeld {}));
        }
        if let Some(go_away) = self.go_away {
            messages.push(Message::GoAway(go_away));
        }
        messages.into_iter().map(|message| wire::ConnectOrchestratorResponse { message: Some(message) }).collect()
    }
}

/// Assignments in messages that either side can take.
fn by_size(assignments: Vec<wire::Assignment>) -> Vec<Vec<wire::Assignment>> {
    let mut messages: Vec<Vec<wire::Assignment>> = Vec::new();
    let mut bytes = 0;
    for assignment in assignments {
        bytes += assignment.spec.len() + 256;
        match messages.last_mut() {
            Some(message) if bytes <= CHUNK_BYTES && message.len() < CHUNK_ITEMS => message.push(assignment),
            _ => {
                bytes = assignment.spec.len() + 256;
                messages.push(vec![assignment]);
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(bytes: usize) -> wire::Assignment {
        wire::Assignment { spec: vec![0; bytes].into(), ..Default::default() }
    }

    #[test]
    fn messages_stay_below_what_either_side_takes() {
        let large: Vec<_> = (0..100).map(|_| assignment(256 * 1024)).collect();
        let messages = by_size(large);
        assert_eq!(messages.iter().map(Vec::len).sum::<usize>(), 100);
        assert!(messages.iter().all(|message| message.iter().map(|one| one.spec.len()).sum::<usize>() <= CHUNK_BYTES));
        assert_eq!(by_size((0..2_500).map(|_| assignment(10)).collect()).len(), 3);
        assert_eq!(by_size(vec![assignment(5 * CHUNK_BYTES)]).len(), 1);
    }
}
