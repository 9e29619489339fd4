//! Durations and moments as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The units of a duration, and how many milliseconds each has. Longer names first, so that `ms` is not read as `m`.
const UNITS: [(&str, u64); 6] =
    [("ms", 1), ("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

/// Reads a duration: numbers with units, largest first or not, such as `500ms`, `30s`, `1h30m`, `2d`. `0` needs no
/// unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let complaint = || format!("'{text}' is not a duration; write one like 500ms, 30s, 5m, 1h30m or 2d");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(complaint)?;
        let number: u64 = rest[..digits].parse().map_err(|_| complaint())?;
        let (unit, scale) = UNITS.iter().find(|(unit, _)| rest[digits..].starts_with(unit)).ok_or_else(complaint)?;
        total = number.checked_mul(*scale).and_then(|ms| total.checked_add(ms)).ok_or_else(complaint)?;
        rest = &rest[digits + unit.len()..];
    }
    if text.is_empty() { Err(complaint()) } else { Ok(Duration::from_millis(total)) }
}

/// Reads a moment: RFC 3339 (`2027-01-31T08:00:00Z`), or `+` and a duration from now (`+5m`).
pub(crate) fn parse_moment(text: &str, now: SystemTime) -> Result<prost_types::Timestamp, String> {
    if let Some(delay) = text.strip_prefix('+') {
        let delay = parse_duration(delay)?;
        return now.checked_add(delay).map(Into::into).ok_or_else(|| format!("'{text}' lies too far ahead"));
    }
    // A date alone would be read as midnight UTC, which is seldom what the writer meant.
    let whole = text.contains(['T', 't', ' ']);
    text.parse()
        .ok()
        .filter(|_| whole)
        .ok_or_else(|| format!("'{text}' is not a time; write RFC 3339 like 2027-01-31T08:00:00Z, or +5m"))
}

/// A duration of the contracts. It holds at most some 292 billion years, and so does `Duration` of what
/// `parse_duration` gives.
pub(crate) fn to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A duration of the contracts for people; negative ones count as none.
pub(crate) fn short_proto(duration: &prost_types::Duration) -> String {
    short((*duration).try_into().unwrap_or(Duration::ZERO))
}

/// A duration in its two largest units: `850ms`, `12s`, `3m04s`, `2h10m`, `5d03h`.
pub(crate) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.is_zero() => "0s".to_owned(),
        0 => format!("{}ms", duration.as_millis().max(1)),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// How long ago a moment was, for a column; a moment ahead reads `in 5m00s`.
pub(crate) fn ago(moment: &prost_types::Timestamp, now: SystemTime) -> String {
    let moment = system_time(moment);
    match now.duration_since(moment) {
        Ok(past) => short(past),
        Err(ahead) => format!("in {}", short(ahead.duration())),
    }
}

/// The latest of some moments.
pub(crate) fn newest<'a>(moments: impl Iterator<Item = &'a prost_types::Timestamp>) -> Option<SystemTime> {
    moments.map(system_time).max()
}

/// The time between two moments, when both are known and in order.
pub(crate) fn between(from: Option<&prost_types::Timestamp>, to: Option<&prost_types::Timestamp>) -> Option<Duration> {
    system_time(to?).duration_since(system_time(from?)).ok()
}

/// A moment of the contracts as the standard library has it; what lies outside its range becomes 1970.
fn system_time(moment: &prost_types::Timestamp) -> SystemTime {
    SystemTime::try_from(*moment).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_units() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1m500ms", 60_500),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "m", "5 m", "-5m", "5y", "1.5h", "99999999999999999999s", "18446744073709551615w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_are_absolute_or_relative() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(parse_moment("+5m", now).map(|t| t.seconds), Ok(1_300));
        assert_eq!(parse_moment("1970-01-01T00:00:10Z", now).map(|t| t.seconds), Ok(10));
        assert_eq!(parse_moment("1970-01-01T02:00:10+02:00", now).map(|t| t.seconds), Ok(10));
        for text in ["", "tomorrow", "5m", "1970-01-01", "+", "+5"] {
            assert!(parse_moment(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_shown_in_two_units() {
        for (milliseconds, text) in [
            (0, "0s"),
            (850, "850ms"),
            (12_000, "12s"),
            (184_000, "3m04s"),
            (7_800_000, "2h10m"),
            (442_800_000, "5d03h"),
        ] {
            assert_eq!(short(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn a_moment_ahead_reads_as_one() {
        let now = UNIX_EPOCH + Duration::from_secs(100);
        let at = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
        assert_eq!(ago(&at(40), now), "1m00s");
        assert_eq!(ago(&at(105), now), "in 5s");
        assert_eq!(between(Some(&at(5)), Some(&at(3))), None);
        assert_eq!(between(Some(&at(5)), Some(&at(8))), Some(Duration::from_secs(3)));
    }
}
