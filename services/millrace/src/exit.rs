//! How a command ends when it does not end well, and the exit code that says so.

use std::process::ExitCode;

/// The request was understood and refused, or what was asked about is not well.
pub(crate) const FAILED: u8 = 1;
/// The command line, a file it names, or the configuration is wrong (EX_USAGE of sysexits.h).
pub(crate) const USAGE: u8 = 64;
/// A service or a database cannot be reached (EX_UNAVAILABLE of sysexits.h).
pub(crate) const UNAVAILABLE: u8 = 69;
/// `task run`: the command ran past its timeout, as timeout(1) says it.
pub(crate) const TIMED_OUT: u8 = 124;
/// `task run`: every end that is not the command's own.
pub(crate) const NOT_THE_COMMANDS: u8 = 125;

/// Why a command does not exit with 0. The text is one line for people.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Exit code 1.
    #[error("{0}")]
    Request(String),
    /// Exit code 64.
    #[error("{0}")]
    Usage(String),
    /// Exit code 69.
    #[error("{0}")]
    Unavailable(String),
    /// A command that was followed ended with this code, and there may be something to say about it.
    #[error("{}", .1.as_deref().unwrap_or_default())]
    Ended(u8, Option<String>),
    /// Whoever read standard output has left, as `head` does. Nothing went wrong.
    #[error("standard output was closed")]
    OutputClosed,
}

impl Failure {
    /// The process's exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::Request(_) => FAILED,
            Failure::Usage(_) => USAGE,
            Failure::Unavailable(_) => UNAVAILABLE,
            Failure::Ended(code, _) => *code,
            Failure::OutputClosed => 0,
        }
    }

    /// What to print on standard error, when there is something.
    pub(crate) fn line(&self) -> Option<String> {
        match self {
            Failure::OutputClosed | Failure::Ended(_, None) => None,
            Failure::Ended(_, Some(text)) => Some(format!("millrace: {}", one_line(text))),
            other => Some(format!("error: {}", one_line(&other.to_string()))),
        }
    }

    /// Prints what there is to say and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if let Some(line) = self.line() {
            eprintln!("{line}");
        }
        ExitCode::from(self.code())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Request(format!("cannot write the output: {error}")),
        }
    }
}

/// A text from elsewhere on one line: line breaks become spaces.
pub(crate) fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_the_documented_code() {
        assert_eq!(Failure::Request("x".into()).code(), 1);
        assert_eq!(Failure::Usage("x".into()).code(), 64);
        assert_eq!(Failure::Unavailable("x".into()).code(), 69);
        assert_eq!(Failure::Ended(143, None).code(), 143);
        assert_eq!(Failure::OutputClosed.code(), 0);
    }

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::Request("first\nsecond\r\n  third".into());
        assert_eq!(failure.line().as_deref(), Some("error: first second third"));
        assert_eq!(Failure::Ended(3, None).line(), None);
        assert_eq!(Failure::OutputClosed.line(), None);
    }

    #[test]
    fn a_closed_output_is_no_error() {
        let closed: Failure = std::io::Error::from(std::io::ErrorKind::BrokenPipe).into();
        assert!(matches!(closed, Failure::OutputClosed));
    }
}
