//! Between the contract's types and the store's. Wire types stop here.

mod quarantine;

use std::time::Duration;

use millrace_core::{
    foreign::{self, Defect},
    held::LeaseRef,
    id::{SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    task::State,
};
use millrace_proto::{common::v1 as common, distributor::v1 as wire};
use millrace_runtime::status::Fault;
use millrace_store::{AttemptRow, Dispatch, Outcome, TaskRow, Waiting};

pub(crate) use quarantine::{quarantine_filter, quarantined_row, set_aside};

use crate::spec;

const MAX_MESSAGE: usize = 1024;
const MAX_TAIL: usize = 64 * 1024;

/// A moment as the contract writes it. Protobuf's time ends with the year 9999, which a damaged row need not.
pub(crate) fn timestamp(us: i64) -> prost_types::Timestamp {
    let us = us.clamp(-62_135_596_800_000_000, 253_402_300_799_999_999);
    prost_types::Timestamp { seconds: us.div_euclid(1_000_000), nanos: (us.rem_euclid(1_000_000) * 1000) as i32 }
}

/// A span as the contract writes it.
pub(crate) fn span(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

/// Reads a task id.
pub(crate) fn task_id(text: &str, field: &str) -> Result<TaskId, Fault> {
    text.parse().map_err(|error| Fault::invalid(field, format!("{error}")))
}

/// Reads the name of an attempt.
pub(crate) fn lease(wire: &wire::LeaseRef) -> Result<LeaseRef, Fault> {
    let task = task_id(&wire.task_id, "lease.task_id")?;
    let token: Token =
        wire.lease_token.parse().map_err(|error| Fault::invalid("lease.lease_token", format!("{error}")))?;
    match foreign::HELD_ATTEMPT.hold(wire.attempt) {
        true => Ok(LeaseRef { task, attempt: wire.attempt, token }),
        false => Err(Fault::invalid("lease.attempt", format!("must be {}", foreign::HELD_ATTEMPT.expected))),
    }
}

/// The attempts that can be read, and the names of the others as they came.
pub(crate) fn leases(named: Vec<wire::LeaseRef>) -> (Vec<LeaseRef>, Vec<wire::LeaseRef>) {
    let (mut leases, mut unreadable) = (Vec::with_capacity(named.len()), Vec::new());
    for named in named {
        match lease(&named) {
            Ok(lease) => leases.push(lease),
            Err(_) => unreadable.push(named),
        }
    }
    (leases, unreadable)
}

/// Writes the name of an attempt.
pub(crate) fn lease_ref(lease: LeaseRef) -> wire::LeaseRef {
    wire::LeaseRef { task_id: lease.task.to_string(), attempt: lease.attempt, lease_token: lease.token.to_string() }
}

/// Reads an orchestrator's outcome. Texts are cut to their bounds; LOST and EXPIRED are not its to say.
pub(crate) fn outcome(wire: common::Outcome) -> Result<Outcome, Fault> {
    let kind = i16::try_from(wire.kind).ok().and_then(|kind| OutcomeKind::try_from(kind).ok());
    let Some(kind) = kind.filter(|kind| !matches!(kind, OutcomeKind::Lost | OutcomeKind::Expired)) else {
        return Err(Fault::invalid("outcome.kind", format!("{} is not an orchestrator's to report", wire.kind)));
    };
    let moment = |moment: Option<prost_types::Timestamp>, field: &str| match moment {
        None => Ok(None),
        Some(moment) if (0..1_000_000_000).contains(&moment.nanos) => {
            Ok(moment.seconds.checked_mul(1_000_000).and_then(|us| us.checked_add(i64::from(moment.nanos) / 1000)))
        }
        Some(_) => Err(Fault::invalid(field, "is not a time")),
    };
    let tail = wire.output_tail;
    Ok(Outcome {
        kind,
        exit_code: wire.exit_code,
        signal: wire.signal,
        message: cut(&wire.message.replace('\0', "\u{FFFD}"), MAX_MESSAGE),
        output_tail: tail.slice(tail.len().saturating_sub(MAX_TAIL)..).to_vec(),
        output_bytes: i64::try_from(wire.output_bytes).unwrap_or(i64::MAX),
        started_at_us: moment(wire.start_time, "outcome.start_time")?,
        ended_at_us: moment(wire.end_time, "outcome.end_time")?,
    })
}

/// The text, cut to at most this many bytes between characters.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Writes an outcome.
pub(crate) fn outcome_to_wire(outcome: Outcome) -> common::Outcome {
    common::Outcome {
        kind: outcome.kind as i32,
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        message: outcome.message,
        output_tail: outcome.output_tail.into(),
        output_bytes: u64::try_from(outcome.output_bytes).unwrap_or(0),
        start_time: outcome.started_at_us.map(timestamp),
        end_time: outcome.ended_at_us.map(timestamp),
    }
}

/// Writes a task.
pub(crate) fn task(row: TaskRow) -> wire::Task {
    let (spec, left_out) = spec::shown(row.spec);
    let (traceparent, no_traceparent) = shown_traceparent(row.envelope.trace_context);
    let known = |defect: &Defect| row.ignored.iter().any(|one| one.column == defect.column);
    let no_traceparent = no_traceparent.filter(|defect| !known(defect));
    wire::Task {
        create_time: created(row.envelope.id, Some(row.created_at_us)),
        tenant: row.envelope.tenant,
        id: row.envelope.id.to_string(),
        spec,
        queue: row.envelope.queue,
        state: row.state as i32,
        attempt: row.attempt,
        ready_time: row.ready_at_us.map(timestamp),
        wake_time: row.wake_at_us.map(timestamp),
        expire_time: row.expires_at_us.map(timestamp),
        dispatch_time: row.dispatched_at_us.map(timestamp),
        start_time: row.started_at_us.map(timestamp),
        finish_time: row.finished_at_us.map(timestamp),
        outcome: row.outcome.map(outcome_to_wire),
        failures: row.failures,
        losses: row.losses,
        session_id: match (row.session, row.state.is_held()) {
            (Some(session), true) => session.to_string(),
            _ => String::new(),
        },
        orchestrator: row.orchestrator,
        traceparent,
        attempts: Vec::new(),
        quarantine: None,
        ignored: row.ignored.into_iter().chain(no_traceparent).chain(left_out).map(defect).collect(),
    }
}

/// When a task was stored: as its row says, or, when that is no moment, as its id does.
fn created(id: TaskId, created_at_us: Option<i64>) -> Option<prost_types::Timestamp> {
    // A column that could not be read has its default.
    let readable = created_at_us.filter(|us| *us != 0 && foreign::MOMENT.hold(*us));
    let by_id = || {
        let (seconds, nanos) = id.0.get_timestamp()?.to_unix();
        i64::try_from(seconds).ok()?.checked_mul(1_000_000)?.checked_add(i64::from(nanos) / 1000)
    };
    readable.or_else(by_id).map(timestamp)
}

/// A stored traceparent as it is sent on and shown; what is none is dropped, as the standard asks, and named.
fn shown_traceparent(stored: String) -> (String, Option<Defect>) {
    match stored.is_empty() || foreign::is_traceparent(&stored) {
        true => (stored, None),
        false => (String::new(), Some(Defect::new("trace_context", "is not a W3C traceparent"))),
    }
}

/// Writes what is wrong with a column.
pub(crate) fn defect(defect: Defect) -> wire::Defect {
    wire::Defect { column: defect.column, error: defect.error }
}

/// Writes an earlier attempt.
pub(crate) fn attempt(row: AttemptRow) -> wire::Attempt {
    wire::Attempt {
        attempt: row.attempt,
        orchestrator: row.orchestrator,
        dispatch_time: row.dispatched_at_us.map(timestamp),
        end_time: Some(timestamp(row.recorded_at_us)),
        outcome: Some(outcome_to_wire(row.outcome)),
    }
}

/// Writes an assignment; `seq` is the stream's number for it.
pub(crate) fn assignment(dispatch: Dispatch, seq: u64, resent: bool) -> wire::Assignment {
    wire::Assignment {
        seq,
        task_id: dispatch.lease.task.to_string(),
        attempt: dispatch.lease.attempt,
        lease_token: dispatch.lease.token.to_string(),
        queue: dispatch.queue,
        spec: spec::clean(dispatch.spec),
        // A time that nobody can have meant is none: it must not end the attempt as it begins.
        timeout: dispatch
            .timeout_ms
            .filter(|ms| foreign::TIMEOUT_MS.hold(*ms))
            .map(|ms| span(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))),
        traceparent: shown_traceparent(dispatch.trace_context).0,
        dispatch_time: Some(timestamp(dispatch.dispatched_at_us)),
        resent,
    }
}

/// Writes an offer to a queue's owner.
pub(crate) fn offer(waiting: &Waiting) -> millrace_proto::queue::v1::Offer {
    millrace_proto::queue::v1::Offer {
        task_id: waiting.id.as_bytes().to_vec().into(),
        tenant: waiting.tenant.clone(),
        priority: waiting.rank.saturating_neg(),
        ready_at_us: waiting.ready_at_us,
        expires_at_us: waiting.expires_at_us,
        min_reader: i32::from(waiting.min_reader),
    }
}

/// The states of a filter: those of the rows of tasks, and whether those that are set aside are meant.
pub(crate) fn states(numbers: &[i32]) -> Result<(Vec<State>, bool), Fault> {
    const QUARANTINED: i32 = common::TaskState::Quarantined as i32;
    let state = |number: &i32| {
        i16::try_from(*number)
            .ok()
            .and_then(|number| State::try_from(number).ok())
            .ok_or_else(|| Fault::invalid("states", format!("{number} is not a state to list by")))
    };
    let states = numbers.iter().filter(|number| **number != QUARANTINED).map(state).collect::<Result<_, _>>()?;
    Ok((states, numbers.is_empty() || numbers.contains(&QUARANTINED)))
}

/// Reads a session id.
pub(crate) fn session_id(text: &str, field: &str) -> Result<SessionId, Fault> {
    text.parse().map_err(|error| Fault::invalid(field, format!("{error}")))
}

/// A W3C traceparent as it came in the metadata; one that is malformed is left out, as the standard asks.
pub(crate) fn traceparent(metadata: &tonic::metadata::MetadataMap) -> String {
    let value = metadata.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or("");
    if foreign::is_traceparent(value) { value.to_owned() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orchestrator_cannot_claim_what_is_the_distributors_to_say() {
        for kind in [0, 8, 9, 10, -1, 70_000] {
            assert!(outcome(common::Outcome { kind, ..Default::default() }).is_err(), "{kind}");
        }
        assert!(outcome(common::Outcome { kind: 2, ..Default::default() }).is_ok());
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("aäb", 2), "a");
        assert_eq!(cut("aäb", 3), "aä");
        assert_eq!(cut("", 3), "");
    }

    #[test]
    fn leases_read_back() {
        let lease_text = wire::LeaseRef {
            task_id: "0190a0b0-0000-7000-8000-00000000002a".into(),
            attempt: 3,
            lease_token: "0001000000000007".into(),
        };
        assert_eq!(lease_ref(lease(&lease_text).unwrap()), lease_text);
        for attempt in [0, -2, i32::MAX] {
            assert!(lease(&wire::LeaseRef { attempt, ..lease_text.clone() }).is_err(), "{attempt}");
        }
        assert!(lease(&wire::LeaseRef { lease_token: "7".into(), ..lease_text }).is_err());
    }

    #[test]
    fn an_assignment_carries_nothing_that_a_damaged_row_holds() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let sent = |trace_context: &str, timeout_ms| {
            let dispatch = Dispatch {
                trace_context: trace_context.into(),
                timeout_ms: Some(timeout_ms),
                ..crate::fixture::dispatch(7)
            };
            let sent = assignment(dispatch, 1, false);
            (sent.traceparent, sent.timeout.map(|span| span.seconds))
        };
        assert_eq!(sent(good, 5000), (good.to_owned(), Some(5)));
        assert_eq!(sent(&"x".repeat(300_000), -5), (String::new(), None));
        assert_eq!(sent("A=1\0B=2", i64::MAX), (String::new(), None));
    }

    #[test]
    fn a_moment_that_the_row_does_not_tell_is_told_by_the_id() {
        let id = TaskId("0198c0de-0000-7000-8000-000000000001".parse().unwrap());
        let by_id = created(id, None).unwrap();
        assert_eq!((by_id.seconds, by_id.nanos), (1_755_582_431, 232_000_000));
        for damaged in [0, -1, i64::MIN, i64::MAX] {
            assert_eq!(created(id, Some(damaged)), Some(by_id), "{damaged}");
        }
        assert_eq!(created(id, Some(5_000_000)).unwrap().seconds, 5);
        assert_eq!(created(TaskId(uuid::Uuid::from_u128(7)), Some(0)), None);
    }

    #[test]
    fn a_malformed_traceparent_is_left_out() {
        let read = |value: &'static str| {
            let mut metadata = tonic::metadata::MetadataMap::new();
            metadata.insert("traceparent", tonic::metadata::MetadataValue::from_static(value));
            traceparent(&metadata)
        };
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(read(good), good);
        assert_eq!(read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"), "");
        assert_eq!(read("00-00000000000000000000000000000000-b7ad6b7169203331-01"), "");
        assert_eq!(read("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), "");
    }
}
