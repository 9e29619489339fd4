//! Minimums at times of the week, as people write them: `mon-fri 08:00-18:00=5`.

use millrace_proto::scaler::v1::ScheduledMinimum;

/// The days of the week, Monday first.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// Minutes of a day.
const DAY: i32 = 24 * 60;

/// Reads `[DAYS ]HH:MM-HH:MM=NODES`. Days are names and ranges of them with commas between; without any it is every day. A
/// time that is not later than the one before it ends on the next day.
pub(super) fn parse(text: &str) -> Result<ScheduledMinimum, String> {
    let complaint = |why: &str| format!("'{text}' is no schedule: {why}; write one like 'mon-fri 08:00-18:00=5' (UTC)");
    let (when, nodes) = text.rsplit_once('=').ok_or_else(|| complaint("it has no =NODES"))?;
    let min_nodes: i32 = nodes.trim().parse().map_err(|_| complaint("the number of nodes is none"))?;
    if min_nodes < 0 {
        return Err(complaint("the number of nodes is none"));
    }
    let (days, hours) = match when.trim().rsplit_once(char::is_whitespace) {
        Some((days, hours)) => (days.trim(), hours),
        None => ("", when.trim()),
    };
    let (from, to) = hours.split_once('-').ok_or_else(|| complaint("it has no HH:MM-HH:MM"))?;
    let minute = |text| minute(text).ok_or_else(|| complaint("a time is not HH:MM"));
    let (from_minute, to_minute) = (minute(from)?, minute(to)?);
    if from_minute == DAY {
        return Err(complaint("24:00 is the end of a day"));
    }
    // Midnight as an end is the end of the day.
    let to_minute = if to_minute == 0 { DAY } else { to_minute };
    let days = read_days(days).ok_or_else(|| complaint("a day is none of mon to sun"))?;
    Ok(ScheduledMinimum { days, from_minute, to_minute, min_nodes })
}

/// The days by number, 1 for Monday; none for every day.
fn read_days(text: &str) -> Option<Vec<i32>> {
    let day = |name: &str| DAYS.iter().position(|day| name.trim().eq_ignore_ascii_case(day));
    let mut on = [false; 7];
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        // fri-mon goes over Sunday.
        let length = (last + 7 - first) % 7;
        (first..=first + length).for_each(|day| on[day % 7] = true);
    }
    Some((1..).zip(on).filter(|(_, on)| *on).map(|(number, _)| number).collect())
}

fn minute(text: &str) -> Option<i32> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let number = |text: &str, most: i32| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i32>().ok().filter(|number| digits && *number <= most)
    };
    let minute = number(hours, 24)? * 60 + number(minutes, 59)?;
    (minute <= DAY).then_some(minute)
}

/// The text that reads as this entry.
pub(super) fn text(entry: &ScheduledMinimum) -> String {
    let time = |minute: i32| format!("{:02}:{:02}", minute / 60, minute % 60);
    let days = days_text(&entry.days);
    let space = if days.is_empty() { "" } else { " " };
    format!("{days}{space}{}-{}={}", time(entry.from_minute), time(entry.to_minute), entry.min_nodes)
}

/// Days with ranges of three and more written as such.
fn days_text(days: &[i32]) -> String {
    let on = |day: usize| days.contains(&i32::try_from(day + 1).unwrap_or(0));
    let (mut parts, mut day) = (Vec::new(), 0);
    while day < 7 {
        let end = (day..7).find(|next| !on(*next)).unwrap_or(7);
        match end - day {
            0 => {}
            1 | 2 => parts.extend((day..end).map(|day| DAYS[day].to_owned())),
            _ => parts.push(format!("{}-{}", DAYS[day], DAYS[end - 1])),
        }
        day = end + 1;
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(days: &[i32], from_minute: i32, to_minute: i32, min_nodes: i32) -> ScheduledMinimum {
        ScheduledMinimum { days: days.to_vec(), from_minute, to_minute, min_nodes }
    }

    #[test]
    fn a_schedule_is_read_and_written() {
        for (given, expected, written) in [
            ("mon-fri 08:00-18:00=5", entry(&[1, 2, 3, 4, 5], 480, 1080, 5), "mon-fri 08:00-18:00=5"),
            ("22:00-06:00=2", entry(&[], 1320, 360, 2), "22:00-06:00=2"),
            ("sat,SUN 00:00-24:00 = 0", entry(&[6, 7], 0, 1440, 0), "sat,sun 00:00-24:00=0"),
            ("fri-mon 09:30-00:00=1", entry(&[1, 5, 6, 7], 570, 1440, 1), "mon,fri-sun 09:30-24:00=1"),
        ] {
            let read = parse(given).unwrap();
            assert_eq!(read, expected, "{given}");
            assert_eq!(text(&read), written);
            assert_eq!(parse(written).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_the_reason() {
        for (given, why) in [
            ("", "=NODES"),
            ("mon-fri 08:00-18:00", "=NODES"),
            ("08:00-18:00=many", "number of nodes"),
            ("08:00-18:00=-1", "number of nodes"),
            ("08:00=1", "HH:MM-HH:MM"),
            ("8:00-18:00=1", "not HH:MM"),
            ("08:00-25:00=1", "not HH:MM"),
            ("08:60-09:00=1", "not HH:MM"),
            ("24:00-24:00=1", "end of a day"),
            ("mon-someday 08:00-18:00=1", "mon to sun"),
        ] {
            let complaint = parse(given).unwrap_err();
            assert!(complaint.contains(why) && complaint.contains("mon-fri 08:00-18:00=5"), "{given}: {complaint}");
        }
    }
}
