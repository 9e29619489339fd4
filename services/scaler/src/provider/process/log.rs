//! Agents' logs: appended to by the agents themselves, whether a provider runs or not, and cut by the provider.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Opens it so that what is written goes to its end, also after it was cut.
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Keeps the newer half of a log that is larger than allowed, as `NAME.1`, and empties it. What the agent writes meanwhile may be lost.
pub(super) fn cut(path: &Path, most: u64) -> io::Result<()> {
    if fs::metadata(path).map_or(0, |file| file.len()) <= most {
        return Ok(());
    }
    let kept = last(path, most / 2)?;
    fs::write(older(path), kept)?;
    File::options().write(true).open(path)?.set_len(0)
}

/// The last lines, at most this many bytes of them; empty when there are none.
pub(super) fn tail(path: &Path, most: u64) -> String {
    let mut bytes = last(path, most).unwrap_or_default();
    let room = most.saturating_sub(bytes.len() as u64);
    if room > 0
        && let Ok(mut before) = last(&older(path), room)
    {
        before.append(&mut bytes);
        bytes = before;
    }
    let text = String::from_utf8_lossy(&bytes);
    let whole = match text.find('\n') {
        // The first line is most likely a part of one.
        Some(end) if bytes.len() as u64 >= most => &text[end + 1..],
        _ => &text,
    };
    whole.trim().to_owned()
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn last(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_is_bounded_and_its_end_is_never_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        assert_eq!(tail(&path, 100), "");
        let mut log = open(&path).unwrap();
        for line in 0..1000 {
            writeln!(log, "line {line}").unwrap();
            cut(&path, 1000).unwrap();
            assert!(tail(&path, 100).ends_with(&format!("line {line}")));
            assert!(tail(&path, 100).starts_with("line "), "whole lines only");
        }
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) <= 1010 && size(&older(&path)) <= 500);
    }
}
