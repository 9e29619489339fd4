//! Durations as people write them in flags and files.

use std::time::Duration;

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a duration such as 500ms, 30s, 1m30s, 2h or 7d")]
pub struct InvalidDuration;

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a duration: whole numbers, each with a unit (ms, s, m, h, d), largest first by convention only. For use as a
/// clap `value_parser`.
///
/// # Errors
/// When the text is empty, has a number without a unit or a unit that is not known, or is longer than can be counted.
pub fn duration(text: &str) -> Result<Duration, InvalidDuration> {
    let mut rest = text.trim();
    let mut total_ms: u64 = 0;
    if rest.is_empty() {
        return Err(InvalidDuration);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(InvalidDuration)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let number: u64 = number.parse().map_err(|_| InvalidDuration)?;
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or(InvalidDuration)?;
        let part = number.checked_mul(*factor).ok_or(InvalidDuration)?;
        total_ms = total_ms.checked_add(part).ok_or(InvalidDuration)?;
        rest = tail;
    }
    Ok(Duration::from_millis(total_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration(" 1h 5m "), Ok(Duration::from_secs(3900)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "10", "s", "1.5s", "-1s", "10 parsecs", "99999999999999999999s", "18446744073709551615d", "é"]
        {
            assert_eq!(duration(bad), Err(InvalidDuration), "{bad}");
        }
    }
}
