//! What processes use of the machine, by /proc.

use std::{fs, time::Instant};

use anyhow::{Context, Result};

/// Ticks of the kernel's clock in which /proc counts CPU time; 100 a second on every Linux that we run on.
const TICKS_PER_S: f64 = 100.0;

/// Memory of a process in MB of 1,000,000 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resident {
    /// Everything that is resident, the binary's own pages included.
    pub(crate) all_mb: f64,
    /// What the process has allocated.
    pub(crate) anonymous_mb: f64,
}

/// Reads the memory of a process.
pub(crate) fn resident(pid: u32) -> Result<Resident> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let mb = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let line = line.with_context(|| format!("no {name} in /proc"))?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().with_context(|| format!("{name}: {line}"))?;
        Ok(kib * 1024.0 / 1e6)
    };
    Ok(Resident { all_mb: mb("VmRSS")?, anonymous_mb: mb("RssAnon")? })
}

/// The machine's load of the last minute; 0 where /proc does not tell.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// A process, or a process with its children, whose CPU time is of interest.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    /// What it is, in tables.
    pub(crate) name: &'static str,
    /// Its id.
    pub(crate) pid: u32,
    /// Whether its children, ended ones included, count as well.
    pub(crate) with_children: bool,
}

/// CPU time of several processes at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    at: Instant,
    seconds: Vec<f64>,
}

/// CPU that a process used.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Used {
    /// What it is.
    pub(crate) process: &'static str,
    /// Its share on average, 1 being one core all the time.
    pub(crate) cores: f64,
    /// Microseconds of CPU for each item. Other work on the machine changes this less than it changes rates.
    pub(crate) us_per_item: f64,
}

/// Reads the CPU times now.
pub(crate) fn snapshot(watched: &[Watched]) -> Snapshot {
    Snapshot { at: Instant::now(), seconds: watched.iter().map(seconds).collect() }
}

/// What was used since the snapshot, in which so many items were done.
pub(crate) fn since(watched: &[Watched], before: &Snapshot, items: u64) -> Vec<Used> {
    let wall = before.at.elapsed().as_secs_f64();
    let used = watched.iter().zip(&before.seconds).map(|(one, before)| {
        let cpu = (seconds(one) - before).max(0.0);
        Used { process: one.name, cores: cpu / wall, us_per_item: cpu * 1e6 / items.max(1) as f64 }
    });
    used.collect()
}

fn seconds(watched: &Watched) -> f64 {
    let own = stat(watched.pid).map_or(0, |stat| match watched.with_children {
        true => stat.own + stat.ended_children,
        false => stat.own,
    });
    let children = match watched.with_children {
        true => children(watched.pid),
        false => 0,
    };
    (own + children) as f64 / TICKS_PER_S
}

/// CPU time of the living children in ticks.
fn children(parent: u32) -> u64 {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(stat).filter(|stat| stat.parent == parent).map(|stat| stat.own + stat.ended_children).sum()
}

/// The parent of a process.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    stat(pid).map(|stat| stat.parent)
}

struct Stat {
    parent: u32,
    own: u64,
    ended_children: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads a line of /proc/PID/stat; the name in it is in parentheses and may hold any character.
fn parse_stat(line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    // proc(5) counts from 1 and these begin with its third field.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(4)?).ok()?,
        own: number(14)? + number(15)?,
        ended_children: number(16)? + number(17)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_the_name() {
        let line = "42 (a (b) c) S 7 42 42 0 -1 4194304 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.parent, stat.own, stat.ended_children), (7, 120, 7));
        let resident = resident(std::process::id()).unwrap();
        assert!(resident.anonymous_mb > 0.1 && resident.all_mb >= resident.anonymous_mb);
        assert!(parse_stat("nonsense").is_none());
    }
}
