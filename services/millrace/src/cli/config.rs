//! `millrace config check`: reads a service's configuration as the service would, and shows what came of it and where
//! each value comes from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches};
use serde_json::json;

use super::Cli;
use crate::exit::Failure;
use crate::output::{self, Format, printable};
use crate::serve::redacted;

/// Commands about configuration.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check flags, variables and the file of a service, and print the values in force with their source
    #[command(after_help = "\
Examples:
  millrace config check distributor --config /etc/millrace.toml
  MILLRACE_SLOTS=8 millrace config check orchestrator -- --queues builds

Nothing is started, no port is bound and no database asked. Flags of the service stand after `--`.
The exit code is 64 when anything is wrong, and standard error has the line with which the service
would not start.")]
    Check(CheckArgs),
}

/// Flags of `config check`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The service.
    #[arg(value_name = "SERVICE", value_enum)]
    service: ServiceName,
    /// How to print.
    #[arg(long, short = 'o', value_name = "FORMAT", value_enum, default_value_t = Format::Table, env = "MILLRACE_OUTPUT")]
    output: Format,
    /// Flags as the service would get them.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// A service whose configuration can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ServiceName {
    /// Everything in one process.
    Dev,
    /// A replica of the distributor.
    Distributor,
    /// The queue service.
    Queue,
    /// The scaler.
    Scaler,
    /// The agent.
    Orchestrator,
}

impl ServiceName {
    fn command(self) -> &'static str {
        match self {
            ServiceName::Dev => "dev",
            ServiceName::Distributor => "distributor",
            ServiceName::Queue => "queue",
            ServiceName::Scaler => "scaler",
            ServiceName::Orchestrator => "orchestrator",
        }
    }
}

/// A value in force.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    /// The flag's long name.
    flag: String,
    /// The value, or nothing when it is unset.
    value: Option<String>,
    /// Where it comes from.
    source: String,
}

/// The whole command line, as clap has read it and as the types of the commands.
struct Raw(ArgMatches, Cli);

impl FromArgMatches for Raw {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // Reading the types as well finds what only their parsers refuse.
        let cli = Cli::from_arg_matches(matches)?;
        Ok(Raw(matches.clone(), cli))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl CommandFactory for Raw {
    fn command() -> clap::Command {
        Cli::command()
    }

    fn command_for_update() -> clap::Command {
        Cli::command_for_update()
    }
}

impl clap::Parser for Raw {}

/// Checks, and prints the values in force. `config` is the file that the command line or the environment names.
pub(crate) fn check(args: &CheckArgs, config: Option<&Path>) -> Result<(), Failure> {
    let name = args.service.command();
    let argv = ["millrace".into(), name.into()].into_iter().chain(args.flags.iter().cloned());
    let raw: Raw = millrace_runtime::config::try_parse_from(argv, config.map(|path| path.as_os_str().to_owned()))
        .map_err(|error| Failure::Usage(first_line(&error.to_string())))?;
    let Some((_, matches)) = raw.0.subcommand() else {
        return Err(Failure::Usage(format!("`millrace {name}` takes no such flags")));
    };
    raw.1.check()?;
    let settings = settings(name, matches, config);
    match args.output {
        Format::Json => settings.iter().try_for_each(|setting| {
            output::line(&json!({"flag": setting.flag, "value": setting.value, "source": setting.source}).to_string())
        }),
        Format::Table => {
            let mut table = output::table(&["FLAG", "VALUE", "SOURCE"]);
            for setting in &settings {
                let value = setting.value.clone().unwrap_or_default();
                table.add_row(vec![format!("--{}", setting.flag), printable(&value), setting.source.clone()]);
            }
            output::print_table(&table)
        }
    }
}

/// What is wrong, without clap's usage lines behind it.
fn first_line(text: &str) -> String {
    let text = text.trim_start_matches("error: ");
    text.split("\n\n").next().unwrap_or(text).to_owned()
}

/// Every flag of a command with its value.
fn settings(command: &str, matches: &ArgMatches, config: Option<&Path>) -> Vec<Setting> {
    let root = Cli::command();
    let Some(command) = root.find_subcommand(command) else { return Vec::new() };
    let file = config
        .and_then(|path| Some((path.to_owned(), std::fs::read_to_string(path).ok()?.parse::<toml::Table>().ok()?)));
    let flags =
        command.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| !["help", "config"].contains(&long)));
    flags.map(|arg| setting(arg, command.get_name(), matches, file.as_ref())).collect()
}

fn setting(arg: &Arg, command: &str, matches: &ArgMatches, file: Option<&(PathBuf, toml::Table)>) -> Setting {
    let id = arg.get_id().as_str();
    let flag = arg.get_long().unwrap_or(id).to_owned();
    let raw = matches.try_get_raw(id).ok().flatten();
    let value =
        raw.map(|values| values.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(","));
    let source = match matches.value_source(id) {
        Some(ValueSource::CommandLine) => "flag".to_owned(),
        Some(ValueSource::EnvVariable) => {
            format!("variable {}", arg.get_env().map(|name| name.to_string_lossy()).unwrap_or_default())
        }
        // The file's values become the flags' defaults, so clap cannot tell them from the built-in ones.
        Some(_) => match file.filter(|(_, table)| in_file(table, command, &flag)) {
            Some((path, _)) => format!("file {}", path.display()),
            None => "default".to_owned(),
        },
        None => "unset".to_owned(),
    };
    let value = if flag == "database-url" { value.map(|url| redacted(&url)) } else { value };
    Setting { flag, value, source }
}

/// Whether the file sets a flag for a command, in the command's table or at the top.
fn in_file(table: &toml::Table, command: &str, flag: &str) -> bool {
    let key = flag.replace('-', "_");
    let own = table.get(command).and_then(toml::Value::as_table).and_then(|table| table.get(&key));
    own.or_else(|| table.get(&key)).is_some_and(|value| !value.is_table())
}
