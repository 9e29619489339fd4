//! Between rows and the wire.

use std::time::Duration;

use millrace_core::time::Timestamp;
use millrace_proto::queue::v1::{Pause, Queue};
use millrace_store::{PauseRow, QueueRow};

/// A queue without its figures.
pub(crate) fn queue(row: QueueRow) -> Queue {
    Queue {
        name: row.name,
        description: row.description,
        default_timeout: row.default_timeout_ms.map(duration_of_ms),
        default_expire_after: row.default_expire_after_ms.map(duration_of_ms),
        pause: row.pause.map(pause),
        draining: row.draining,
        create_time: Some(time(row.created_at_us)),
        update_time: Some(time(row.updated_at_us)),
        stats: None,
    }
}

fn pause(row: PauseRow) -> Pause {
    Pause { reason: row.reason, until: row.until_us.map(time), since: Some(time(row.since_us)) }
}

/// A moment in microseconds since 1970.
pub(crate) fn time(us: i64) -> prost_types::Timestamp {
    let nanos = us.rem_euclid(1_000_000) * 1_000;
    prost_types::Timestamp { seconds: us.div_euclid(1_000_000), nanos: nanos as i32 }
}

/// Reads a moment; none when it is not a moment from 0001 to 9999, as the type's definition demands.
pub(crate) fn timestamp(time: &prost_types::Timestamp) -> Option<Timestamp> {
    let (first, last) = (-62_135_596_800, 253_402_300_799);
    let valid = (first..=last).contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos);
    valid.then(|| Timestamp(time.seconds * 1_000_000 + i64::from(time.nanos / 1_000)))
}

/// A span, cut to what the wire can carry.
pub(crate) fn duration(span: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: span.subsec_nanos() as i32 }
}

fn duration_of_ms(ms: i64) -> prost_types::Duration {
    prost_types::Duration { seconds: ms.div_euclid(1_000), nanos: (ms.rem_euclid(1_000) * 1_000_000) as i32 }
}

/// Reads a span; none when it is negative or not normal (seconds and nanoseconds of one sign, within their ranges).
pub(crate) fn span(duration: &prost_types::Duration) -> Option<Duration> {
    let valid = (0..=315_576_000_000).contains(&duration.seconds) && (0..1_000_000_000).contains(&duration.nanos);
    valid.then(|| Duration::new(duration.seconds as u64, duration.nanos as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_spans_are_read_back() {
        for us in [0, 1, -1, 1_700_000_000_123_456, -1_500_000] {
            assert_eq!(timestamp(&time(us)), Some(Timestamp(us)), "{us}");
        }
        for ms in [0, 1, 999, 1_000, 90_061_001] {
            assert_eq!(span(&duration_of_ms(ms)), Some(Duration::from_millis(ms as u64)), "{ms}");
        }
        assert_eq!(span(&duration(Duration::new(3, 7))), Some(Duration::new(3, 7)));
    }

    #[test]
    fn what_is_no_moment_and_no_span_is_refused() {
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0)] {
            assert_eq!(timestamp(&prost_types::Timestamp { seconds, nanos }), None);
            assert_eq!(span(&prost_types::Duration { seconds, nanos }), None);
        }
        assert_eq!(span(&prost_types::Duration { seconds: -1, nanos: 0 }), None);
    }
}
