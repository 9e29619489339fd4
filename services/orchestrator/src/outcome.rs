//! How an attempt ended, as an executor says it.

use std::time::SystemTime;

use bytes::Bytes;
use millrace_proto::common::v1::{self as wire, OutcomeKind};

use crate::StopReason;

/// The longest message that the service keeps, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// How one attempt ended. What an executor leaves empty (times, output) the library fills in from what it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended. Lost and expired are not an orchestrator's to say and are reported as failed.
    pub kind: OutcomeKind,
    /// The exit code, where there was a process that exited.
    pub exit_code: Option<i32>,
    /// The signal that killed the process.
    pub signal: Option<i32>,
    /// A sentence for people. Longer than 1 KiB is cut.
    pub message: String,
    /// The last bytes of the output; taken from the attempt's live output when empty.
    pub output_tail: Bytes,
    /// Bytes of output in all; taken from the attempt's live output when 0.
    pub output_bytes: u64,
    /// When the payload started; the moment the executor was called when unset.
    pub start_time: Option<SystemTime>,
    /// When it ended; the moment the executor returned when unset.
    pub end_time: Option<SystemTime>,
}

impl Outcome {
    /// An outcome of a kind, with a sentence for people.
    pub fn new(kind: OutcomeKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            exit_code: None,
            signal: None,
            message: message.into(),
            output_tail: Bytes::new(),
            output_bytes: 0,
            start_time: None,
            end_time: None,
        }
    }

    /// It did what it should.
    pub fn succeeded() -> Self {
        Self::new(OutcomeKind::Succeeded, "")
    }

    /// It failed by its own doing. Spends the task's max_attempts.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(OutcomeKind::Failed, message)
    }

    /// The payload could not be started. Spends the task's max_attempts.
    pub fn not_started(message: impl Into<String>) -> Self {
        Self::new(OutcomeKind::NotStarted, message)
    }

    /// This executor knows no payload in the spec. Spends no budget: the task waits for an orchestrator that does.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(OutcomeKind::Unsupported, message)
    }

    /// Given back unharmed. Spends no budget.
    pub fn handed_back(message: impl Into<String>) -> Self {
        Self::new(OutcomeKind::HandedBack, message)
    }

    /// It ended because it was told to stop.
    pub fn stopped(reason: StopReason) -> Self {
        let kind = match reason {
            StopReason::Cancelled => OutcomeKind::Cancelled,
            StopReason::TimedOut => OutcomeKind::TimedOut,
            // Nothing is reported of a revoked attempt, so its outcome only has to be one.
            StopReason::Revoked | StopReason::LeaseExpiring | StopReason::Draining => OutcomeKind::HandedBack,
        };
        Self::new(kind, reason.to_string())
    }

    pub(crate) fn into_wire(mut self) -> wire::Outcome {
        if matches!(self.kind, OutcomeKind::Unspecified | OutcomeKind::Lost | OutcomeKind::Expired) {
            self.message = format!("the executor reported {}: {}", self.kind.as_str_name(), self.message);
            self.kind = OutcomeKind::Failed;
        }
        wire::Outcome {
            kind: self.kind as i32,
            exit_code: self.exit_code,
            signal: self.signal,
            message: cut(self.message, MAX_MESSAGE_BYTES),
            output_tail: self.output_tail,
            output_bytes: self.output_bytes,
            start_time: self.start_time.map(prost_types::Timestamp::from),
            end_time: self.end_time.map(prost_types::Timestamp::from),
        }
    }
}

fn cut(mut text: String, bytes: usize) -> String {
    let end = text.floor_char_boundary(bytes);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let outcome = Outcome::failed("é".repeat(1000)).into_wire();
        assert_eq!(outcome.message.len(), 1024);
        let outcome = Outcome::failed(format!("x{}", "é".repeat(1000))).into_wire();
        assert_eq!(outcome.message.len(), 1023);
    }

    #[test]
    fn what_is_the_services_to_say_becomes_a_failure() {
        for kind in [OutcomeKind::Unspecified, OutcomeKind::Lost, OutcomeKind::Expired] {
            assert_eq!(Outcome::new(kind, "").into_wire().kind, OutcomeKind::Failed as i32);
        }
    }
}
