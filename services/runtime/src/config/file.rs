//! The configuration file: checked against the commands' flags, then made their defaults.

use std::{ffi::OsStr, path::PathBuf};

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use super::ConfigError;

/// Flags that the file cannot set.
const RESERVED: [&str; 3] = ["config", "help", "version"];

/// A configuration file that has been read.
pub(super) struct File {
    path: PathBuf,
    table: Table,
}

impl File {
    pub(super) fn read(path: PathBuf) -> Result<File, ConfigError> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        match text.parse() {
            Ok(table) => Ok(File { path, table }),
            Err(source) => Err(ConfigError::Syntax { path, source: Box::new(source) }),
        }
    }

    /// Checks every key and value against a command and all below it.
    pub(super) fn check(&self, command: &Command) -> Result<(), ConfigError> {
        self.check_table(command, &self.table, &[])
    }

    /// The table that holds the file's top level.
    pub(super) fn top(&self) -> &Table {
        &self.table
    }

    fn check_table(&self, command: &Command, table: &Table, at: &[&str]) -> Result<(), ConfigError> {
        for (key, value) in table {
            if let Some(inner) = value.as_table()
                && let Some(subcommand) = command.get_subcommands().find(|c| names_command(key, c.get_name()))
            {
                self.check_table(subcommand, inner, &[at, &[key.as_str()]].concat())?;
                continue;
            }
            let full = [at, &[key.as_str()]].concat().join(".");
            let args = if at.is_empty() { everywhere(command, key) } else { own(command, key).into_iter().collect() };
            if args.is_empty() {
                return Err(self.unknown(command, key, full, value.is_table()));
            }
            for arg in args {
                let texts = self.texts(&full, value, arg)?;
                self.check_values(&full, &texts, arg)?;
            }
        }
        Ok(())
    }

    /// Makes the file's values the defaults of a command and of all below it. `here` is the command's own table; the
    /// top level applies where that says nothing.
    pub(super) fn apply(&self, mut command: Command, here: Option<&Table>) -> Command {
        let flags: Vec<_> =
            command.get_arguments().filter_map(|arg| Some((arg.get_id().clone(), key_of(arg)?))).collect();
        for (id, key) in flags {
            let set = |table: Option<&Table>| {
                table.and_then(|table| table.get(&key)).filter(|value| !value.is_table()).cloned()
            };
            let Some(value) = set(here).or_else(|| set(Some(&self.table))) else { continue };
            command = command.mut_arg(id, |arg| match self.texts(&key, &value, &arg) {
                Ok(texts) => arg.required(false).default_values(texts),
                // Cannot happen after the check, which read the same value for the same flag.
                Err(_) => arg,
            });
        }
        let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        for name in names {
            let inner = here.and_then(|table| table.iter().find(|(key, _)| names_command(key, &name)));
            let inner = inner.and_then(|(_, value)| value.as_table());
            command = command.mut_subcommand(name, |subcommand| self.apply(subcommand, inner));
        }
        command
    }

    /// The value as the texts that would follow the flag on a command line.
    fn texts(&self, key: &str, value: &Value, arg: &Arg) -> Result<Vec<String>, ConfigError> {
        let many = matches!(arg.get_action(), ArgAction::Append)
            || arg.get_value_delimiter().is_some()
            || arg.get_num_args().is_some_and(|range| range.max_values() > 1);
        let expected = expected_type(arg, many);
        let wrong = |found: &Value| ConfigError::WrongType {
            path: self.path.clone(),
            key: key.to_owned(),
            expected,
            found: type_name(found),
        };
        let scalar = |value: &Value| match (arg.get_action(), value) {
            (ArgAction::SetTrue | ArgAction::SetFalse, Value::Boolean(on)) => Ok(on.to_string()),
            (ArgAction::SetTrue | ArgAction::SetFalse, _) => Err(wrong(value)),
            (ArgAction::Count, Value::Integer(number)) => Ok(number.to_string()),
            (ArgAction::Count, _) => Err(wrong(value)),
            (_, Value::String(text)) => Ok(text.clone()),
            (_, Value::Integer(number)) => Ok(number.to_string()),
            (_, Value::Float(number)) => Ok(number.to_string()),
            (_, Value::Boolean(on)) => Ok(on.to_string()),
            (_, Value::Datetime(_) | Value::Array(_) | Value::Table(_)) => Err(wrong(value)),
        };
        match value {
            Value::Array(values) if many => values.iter().map(scalar).collect(),
            Value::String(text) if arg.get_value_delimiter().is_some() => {
                Ok(text.split(|c| Some(c) == arg.get_value_delimiter()).map(str::to_owned).collect())
            }
            _ => Ok(vec![scalar(value)?]),
        }
    }

    /// Lets the flag itself judge each value, alone, so that the error names the file and its key.
    fn check_values(&self, key: &str, texts: &[String], arg: &Arg) -> Result<(), ConfigError> {
        let takes_value = arg.get_action().takes_values();
        for text in texts.iter().filter(|_| takes_value) {
            let lone = Arg::new("value")
                .long("value")
                .action(ArgAction::Set)
                .allow_hyphen_values(true)
                .value_parser(arg.get_value_parser().clone());
            let probe = Command::new("probe").arg(lone).disable_help_flag(true);
            if let Err(error) =
                probe.try_get_matches_from([OsStr::new("probe"), OsStr::new("--value"), OsStr::new(text)])
            {
                return Err(ConfigError::BadValue {
                    path: self.path.clone(),
                    key: key.to_owned(),
                    reason: reason_of(&error, text),
                });
            }
        }
        Ok(())
    }

    fn unknown(&self, command: &Command, key: &str, full: String, is_table: bool) -> ConfigError {
        let underscored = key.replace('-', "_");
        let hint = if is_table {
            " (a table has to be named after a command)".to_owned()
        } else if underscored != key && !everywhere(command, &underscored).is_empty() {
            format!(" (keys are written with `_`: `{underscored}`)")
        } else {
            String::new()
        };
        ConfigError::UnknownKey { path: self.path.clone(), key: full, hint }
    }
}

/// The key that sets a flag, if the file may set it.
fn key_of(arg: &Arg) -> Option<String> {
    arg.get_long().filter(|long| !RESERVED.contains(long)).map(|long| long.replace('-', "_"))
}

/// Whether a table's key names this command; here both spellings are unambiguous.
fn names_command(key: &str, command: &str) -> bool {
    key.replace('_', "-") == command
}

/// The flag of this very command that a key names.
fn own<'c>(command: &'c Command, key: &str) -> Option<&'c Arg> {
    command.get_arguments().find(|arg| key_of(arg).as_deref() == Some(key))
}

/// The flags of this command and all below it that a key names.
fn everywhere<'c>(command: &'c Command, key: &str) -> Vec<&'c Arg> {
    let below = command.get_subcommands().flat_map(|subcommand| everywhere(subcommand, key));
    own(command, key).into_iter().chain(below).collect()
}

fn expected_type(arg: &Arg, many: bool) -> &'static str {
    match arg.get_action() {
        ArgAction::SetTrue | ArgAction::SetFalse => "true or false",
        ArgAction::Count => "an integer",
        _ if many => "a string, a number or an array of them",
        _ => "a string or a number",
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a float",
        Value::Boolean(_) => "a boolean",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "an array",
        Value::Table(_) => "a table",
    }
}

/// The part of clap's error that is about the value; the flag in it is the probe's and would only confuse.
fn reason_of(error: &clap::Error, text: &str) -> String {
    let full = error.to_string();
    let first = full.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let reason = first.split_once("': ").map(|(_, reason)| reason).filter(|_| first.contains("--value"));
    let listed = full.lines().map(str::trim).find(|line| line.starts_with("[possible values"));
    match (reason, listed) {
        (Some(reason), _) => format!("`{text}`: {reason}"),
        (None, Some(values)) => format!("`{text}` is not one of {values}"),
        (None, None) => format!("`{text}` is not accepted"),
    }
}
