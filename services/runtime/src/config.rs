//! Configuration: flags, then `MILLRACE_*` variables, then a TOML file, then defaults.
//!
//! The file is named by `--config` or `MILLRACE_CONFIG`. Its keys are the long flags' names with `_` for `-`. A key at
//! the top level applies to every command that has such a flag; a key in a table applies to the command that the table
//! is named after:
//!
//! ```toml
//! database_url = "postgres://millrace@db/millrace"
//!
//! [distributor]
//! listen = "0.0.0.0:7601"
//! ```
//!
//! Each value becomes the default of its flag, so flags and variables win by clap's own rules and `--help` shows what
//! is in force. The whole file is checked whatever the command, before anything is started: a key that no command
//! has, a value that its flag refuses and a table that names no command are errors, because a setting that is silently
//! ignored is found out in an incident.

mod duration;
mod file;

use std::{ffi::OsString, path::PathBuf};

use clap::{Arg, Command, Parser, error::ErrorKind};

pub use self::duration::{InvalidDuration, duration};
use self::file::File;

/// The variable that names the configuration file.
pub const VARIABLE: &str = "MILLRACE_CONFIG";

/// Exit code: it worked.
pub const EXIT_OK: i32 = 0;
/// Exit code: a request failed.
pub const EXIT_REQUEST_FAILED: i32 = 1;
/// Exit code: the command line, a variable or the configuration file is wrong (EX_USAGE).
pub const EXIT_USAGE: i32 = 64;
/// Exit code: a service or the database cannot be reached (EX_UNAVAILABLE).
pub const EXIT_UNAVAILABLE: i32 = 69;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not TOML: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// No command has such a flag.
    #[error("{}: unknown key `{key}`{hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key with its table.
        key: String,
        /// What may have been meant; may be empty.
        hint: String,
    },
    /// The value has a type that its flag cannot take.
    #[error("{}: `{key}` has to be {expected}, not {found}", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The key with its table.
        key: String,
        /// The type that the flag takes.
        expected: &'static str,
        /// The type of the value.
        found: &'static str,
    },
    /// The flag refuses the value.
    #[error("{}: `{key}`: {reason}", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// The key with its table.
        key: String,
        /// The flag's reason.
        reason: String,
    },
    /// The command line or a variable is wrong, or help or the version was asked for.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

impl ConfigError {
    /// The exit code: 0 when help or the version was asked for, else [`EXIT_USAGE`].
    pub fn exit_code(&self) -> i32 {
        match self {
            ConfigError::Usage(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                EXIT_OK
            }
            _ => EXIT_USAGE,
        }
    }

    /// Prints the error (help and the version to stdout, all else to stderr) and ends the process.
    pub fn exit(&self) -> ! {
        match self {
            // A closed pipe is the reader's choice; the exit code says the rest.
            ConfigError::Usage(error) => drop(error.print()),
            other => eprintln!("error: {other}"),
        }
        std::process::exit(self.exit_code())
    }
}

/// Reads this process's configuration; on an error prints it and ends the process with [`EXIT_USAGE`].
pub fn parse<T: Parser>() -> T {
    match try_parse_from(std::env::args_os(), std::env::var_os(VARIABLE)) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    }
}

/// Reads a configuration from a command line (with the program's name first) and the value of [`VARIABLE`]. Variables
/// named by the flags themselves are read from the environment.
///
/// # Errors
/// When anything in the command line, the variables or the file is wrong, or help or the version is asked for.
pub fn try_parse_from<T: Parser>(
    argv: impl IntoIterator<Item = impl Into<OsString>>,
    variable: Option<OsString>,
) -> Result<T, ConfigError> {
    let argv: Vec<OsString> = argv.into_iter().map(Into::into).collect();
    let mut command = with_config_flag(T::command());
    if let Some(path) = config_path(&argv, variable) {
        let file = File::read(path)?;
        file.check(&command)?;
        command = file.apply(command, Some(file.top()));
    }
    let matches = command.try_get_matches_from(argv)?;
    Ok(T::from_arg_matches(&matches)?)
}

/// Every command takes `--config`, whether its author thought of it or not.
fn with_config_flag(command: Command) -> Command {
    if command.get_arguments().any(|arg| arg.get_long() == Some("config")) {
        return command;
    }
    command.arg(
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .env(VARIABLE)
            .global(true)
            .help("TOML file with defaults for the flags (keys: the flags' names with `_` for `-`)"),
    )
}

/// Finds the file before clap runs, because the file's values are part of what clap has to know.
fn config_path(argv: &[OsString], variable: Option<OsString>) -> Option<PathBuf> {
    let mut rest = argv.iter().skip(1).take_while(|arg| *arg != "--");
    while let Some(arg) = rest.next() {
        if arg == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    variable.filter(|value| !value.is_empty()).map(PathBuf::from)
}
