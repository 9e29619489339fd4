//! Between rows, the books and the wire: wire types stop here.

pub(crate) mod node;
pub(crate) mod pool;
pub(crate) mod status;

use std::time::Duration;

use millrace_core::time::Timestamp;

/// A moment in microseconds since 1970.
pub(crate) fn time(us: i64) -> prost_types::Timestamp {
    let nanos = us.rem_euclid(1_000_000) * 1_000;
    prost_types::Timestamp { seconds: us.div_euclid(1_000_000), nanos: nanos as i32 }
}

/// A moment as the books have it.
pub(crate) fn moment(at: Timestamp) -> prost_types::Timestamp {
    time(at.0)
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

/// Reads a span; none when it is negative or not normal (seconds and nanoseconds of one sign, within their ranges).
pub(crate) fn span(duration: &prost_types::Duration) -> Option<Duration> {
    let valid = (0..=315_576_000_000).contains(&duration.seconds) && (0..1_000_000_000).contains(&duration.nanos);
    valid.then(|| Duration::new(duration.seconds as u64, duration.nanos as u32))
}

/// How long ago a moment of the database was, by its own clock.
pub(crate) fn age(now_us: i64, then_us: i64) -> Duration {
    Timestamp(now_us).since(Timestamp(then_us))
}

/// A count as the wire has it; the greatest there is when it does not fit.
pub(crate) fn count<N: TryInto<i32>>(count: N) -> i32 {
    count.try_into().unwrap_or(i32::MAX)
}

/// The beginning of a text that came from outside, cut to so many bytes, at a character.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].replace('\0', "\u{FFFD}")
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
            let given = Duration::from_millis(ms);
            assert_eq!(span(&duration(given)), Some(given), "{ms}");
        }
    }

    #[test]
    fn what_is_no_moment_and_no_span_is_refused() {
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0)] {
            assert_eq!(timestamp(&prost_types::Timestamp { seconds, nanos }), None);
            assert_eq!(span(&prost_types::Duration { seconds, nanos }), None);
        }
        assert_eq!(span(&prost_types::Duration { seconds: -1, nanos: 0 }), None);
    }

    #[test]
    fn texts_are_cut_at_a_character() {
        assert_eq!(
            (cut("größer", 3), cut("größer", 4), cut("a\0b", 9)),
            ("gr".into(), "grö".into(), "a\u{FFFD}b".into())
        );
    }
}
