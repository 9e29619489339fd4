//! The boot command: what makes a machine fit to be a node, before any work is asked for.

use std::{collections::VecDeque, io, process::ExitStatus, time::Duration};

use crate::OutputStream;

use super::{process::Patience, shell};

/// What stands before a line of progress.
const MARK: &str = "progress:";
/// Bytes of one line of output; the rest of a longer one is dropped.
const LINE_BYTES: usize = 2048;
/// Lines of the errors that are kept for whoever asks why the boot failed.
const LAST_LINES: usize = 20;
/// Bytes of them; with the sentence before them the contract's 4 KiB.
const LAST_BYTES: usize = 3072;
/// Bytes of a stage, the contract's own bound.
const STAGE_BYTES: usize = 256;
/// How long what the command left in the background may keep its output open.
const LINGER: Duration = Duration::from_secs(2);

/// How far a boot has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The stage, for people.
    pub(crate) stage: String,
    /// 0 to 100; none when it cannot be told.
    pub(crate) percent: Option<u8>,
}

/// Why the boot command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// It could not be started, or not be waited for.
    #[error("the boot command cannot be run: {0}")]
    Io(#[from] io::Error),
    /// It failed.
    #[error("the boot command failed ({status}){}{last}", if last.is_empty() { "" } else { ": " })]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote to standard error.
        last: String,
    },
}

/// Runs the command to its end. Lines of its output such as `progress: 40 fetching the image` are given to `progress`; the
/// others are logged. Dropping the future kills it with everything in its process group.
pub(crate) async fn run(command: &str, mut progress: impl FnMut(Progress)) -> Result<(), BootError> {
    let process = shell::start(command).await?;
    let (mut out, mut err) = (Lines::default(), Lines::default());
    let mut last = VecDeque::new();
    let mut said = |line: &str| match read(line) {
        Some(reached) => progress(reached),
        None => tracing::info!(line, "boot"),
    };
    let mut complained = |line: &str| {
        tracing::warn!(line, "boot");
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line.to_owned());
    };
    let output = |stream, bytes: &[u8]| match stream {
        OutputStream::Stderr => err.push(bytes, &mut complained),
        _ => out.push(bytes, &mut said),
    };
    // Nothing stops it but dropping it, which kills the group at once.
    let patience = Patience { kill_grace: Duration::ZERO, linger: LINGER };
    let finished = process.finish(std::future::pending(), patience, output).await?;
    out.end(&mut said);
    err.end(&mut complained);
    match finished.status.success() {
        true => Ok(()),
        false => Err(BootError::Failed { status: finished.status, last: tail(last) }),
    }
}

/// The progress that a line tells, if it is one of progress.
fn read(line: &str) -> Option<Progress> {
    let (percent, stage) = match line.trim().strip_prefix(MARK)?.trim_start().split_once(char::is_whitespace) {
        Some((percent, stage)) => (percent, stage.trim()),
        None => (line.trim().strip_prefix(MARK)?.trim(), ""),
    };
    let percent = percent.trim_end_matches('%').parse().ok().filter(|percent| *percent <= 100)?;
    Some(Progress { stage: stage[..stage.floor_char_boundary(STAGE_BYTES)].to_owned(), percent: Some(percent) })
}

/// The last lines as one text; of too long ones the end.
fn tail(lines: VecDeque<String>) -> String {
    let text = Vec::from(lines).join("\n");
    text[text.ceil_char_boundary(text.len().saturating_sub(LAST_BYTES))..].to_owned()
}

/// Output as it comes, cut into lines.
#[derive(Debug, Default)]
struct Lines {
    /// The line that has not ended, up to its bound.
    open: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], each: &mut impl FnMut(&str)) {
        let mut parts = bytes.split(|byte| *byte == b'\n');
        // The first part ends the line that is open; what follows each line end is a line of its own.
        self.extend(parts.next().unwrap_or_default());
        for part in parts {
            self.end(each);
            self.extend(part);
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES.saturating_sub(self.open.len()).min(bytes.len());
        self.open.extend_from_slice(&bytes[..room]);
    }

    /// Gives what is open, if it is anything.
    fn end(&mut self, each: &mut impl FnMut(&str)) {
        let line = std::mem::take(&mut self.open);
        let line = String::from_utf8_lossy(&line);
        if !line.trim().is_empty() {
            each(line.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(stage: &str, percent: u8) -> Progress {
        Progress { stage: stage.into(), percent: Some(percent) }
    }

    #[test]
    fn lines_of_progress_are_told_from_others() {
        for (line, expected) in [
            ("progress: 40 fetching the image", Some(progress("fetching the image", 40))),
            ("  progress:0", Some(progress("", 0))),
            ("progress: 100%  done ", Some(progress("done", 100))),
            ("progress: 101 too far", None),
            ("progress: soon", None),
            ("progress:", None),
            ("40 fetching", None),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
        let long = read(&format!("progress: 1 {}", "ü".repeat(200))).unwrap();
        assert_eq!(long.stage.len(), STAGE_BYTES);
    }

    #[test]
    fn output_is_cut_into_lines_wherever_it_was_read() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        let mut each = |line: &str| seen.push(line.to_owned());
        for part in ["one\ntw", "o\n\nthr", "ee"] {
            lines.push(part.as_bytes(), &mut each);
        }
        lines.push("x".repeat(3 * LINE_BYTES).as_bytes(), &mut each);
        lines.end(&mut each);
        assert_eq!(seen[..2], ["one", "two"]);
        assert_eq!(seen[2].len(), LINE_BYTES);
    }

    #[tokio::test]
    async fn a_boot_tells_how_far_it_is() {
        let mut seen = Vec::new();
        let command = "echo progress: 10 one; echo chatter; echo warning >&2; printf 'progress: 90 two'";
        run(command, |progress| seen.push(progress)).await.unwrap();
        assert_eq!(seen, [progress("one", 10), progress("two", 90)]);
    }

    #[tokio::test]
    async fn a_failed_boot_has_its_own_last_words() {
        let command = "i=0; while [ $i -lt 30 ]; do echo line $i >&2; i=$((i+1)); done; exit 3";
        let error = run(command, |_| {}).await.unwrap_err().to_string();
        assert!(error.starts_with("the boot command failed (exit status: 3): line 10\nline 11"), "{error}");
        assert!(error.ends_with("line 29"), "{error}");
        let silent = run("exit 4", |_| {}).await.unwrap_err().to_string();
        assert_eq!(silent, "the boot command failed (exit status: 4)");
        let wide = run("head -c 9000 /dev/zero | tr '\\0' x >&2; exit 1", |_| {}).await.unwrap_err().to_string();
        assert!(wide.len() < 4096);
    }
}
