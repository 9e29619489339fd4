//! Precedence and errors of the configuration, seen through a command like the real ones.

use std::{
    io::Write,
    net::SocketAddr,
    process::{Command, Output},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use millrace_runtime::config::{ConfigError, duration, try_parse_from};
use tempfile::NamedTempFile;

#[derive(Debug, Parser)]
#[command(name = "millrace", version)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    Distributor(Settings),
    SetRoute(RouteSettings),
}

#[derive(Clone, Debug, Args)]
struct Settings {
    #[arg(long, env = "MILLRACE_TEST_LISTEN", default_value = "127.0.0.1:7601")]
    listen: SocketAddr,
    #[arg(long)]
    database_url: String,
    #[arg(long, value_parser = duration, default_value = "30s")]
    drain_grace: Duration,
    #[arg(long)]
    exclusive: bool,
    #[arg(long, value_delimiter = ',')]
    queues: Vec<String>,
    #[arg(long)]
    slots: Option<u32>,
}

#[derive(Clone, Debug, Args)]
struct RouteSettings {
    #[arg(long)]
    only_routes: Option<String>,
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn parse(text: &str, flags: &[&str]) -> Result<Settings, ConfigError> {
    let file = file(text);
    let path = file.path().to_str().unwrap();
    let argv = ["millrace", "distributor", "--config", path].into_iter().chain(flags.iter().copied());
    match try_parse_from::<Cli>(argv, None)?.command {
        Commands::Distributor(settings) => Ok(settings),
        Commands::SetRoute(_) => unreachable!("the command line says distributor"),
    }
}

fn message(text: &str) -> String {
    let error = parse(text, &[]).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    error.to_string()
}

#[test]
fn the_file_fills_what_flags_leave_open() {
    let settings = parse(
        "database_url = \"sqlite:a\"\n[distributor]\nlisten = \"0.0.0.0:1\"\nexclusive = true\n\
         queues = [\"a\", \"b\"]\nslots = 7\n",
        &["--slots", "8"],
    )
    .unwrap();
    assert_eq!(settings.database_url, "sqlite:a", "a required flag may stand in the file");
    assert_eq!(settings.listen, "0.0.0.0:1".parse().unwrap());
    assert!(settings.exclusive);
    assert_eq!(settings.queues, ["a", "b"]);
    assert_eq!(settings.slots, Some(8), "a flag beats the file");
    assert_eq!(settings.drain_grace, Duration::from_secs(30), "the default remains");
}

#[test]
fn a_commands_table_beats_the_top_level() {
    let text = "database_url = \"sqlite:a\"\ndrain_grace = \"1s\"\n[distributor]\ndrain_grace = \"2s\"\n";
    assert_eq!(parse(text, &[]).unwrap().drain_grace, Duration::from_secs(2));
}

#[test]
fn other_commands_keys_and_tables_are_fine() {
    let text = "database_url = \"sqlite:a\"\nonly_routes = \"x\"\n[set_route]\nonly_routes = \"y\"\n";
    parse(text, &[]).unwrap();
}

#[test]
fn a_delimited_text_is_a_list() {
    let settings = parse("database_url = \"x\"\nqueues = \"a,b\"\n", &[]).unwrap();
    assert_eq!(settings.queues, ["a", "b"]);
}

#[test]
fn a_list_on_the_command_line_replaces_the_files() {
    let settings = parse("database_url = \"x\"\nqueues = [\"a\", \"b\"]\n", &["--queues", "c"]).unwrap();
    assert_eq!(settings.queues, ["c"]);
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    assert!(message("lissten = \"x\"\n").contains("unknown key `lissten`"));
    assert!(message("[distributor]\nonly_routes = \"x\"\n").contains("unknown key `distributor.only_routes`"));
    assert!(
        message("[scaler]\nlisten = \"x\"\n")
            .contains("unknown key `scaler` (a table has to be named after a command)")
    );
    assert!(message("database-url = \"x\"\n").contains("keys are written with `_`: `database_url`"));
    assert!(message("config = \"other.toml\"\n").contains("unknown key `config`"));
}

#[test]
fn a_value_of_the_wrong_type_is_an_error_that_names_its_key() {
    assert!(
        message("[distributor]\nexclusive = \"yes\"\n")
            .contains("`distributor.exclusive` has to be true or false, not a string")
    );
    assert!(message("slots = [1]\n").contains("`slots` has to be a string or a number, not an array"));
    assert!(message("listen = 5\n").contains("`listen`: `5`: invalid socket address syntax"));
    assert!(message("slots = -1\n").contains("`slots`: `-1`: "));
    assert!(message("drain_grace = \"soon\"\n").contains("`drain_grace`: `soon`: not a duration"));
}

#[test]
fn a_value_that_a_flag_overrides_is_checked_all_the_same() {
    let error = parse("slots = \"many\"\ndatabase_url = \"x\"\n", &["--slots", "1"]).unwrap_err();
    assert!(matches!(error, ConfigError::BadValue { .. }), "{error}");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_an_error() {
    let argv = ["millrace", "distributor", "--config=/nonexistent/millrace.toml"];
    let error = try_parse_from::<Cli>(argv, None).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }) && error.exit_code() == 64, "{error}");
    assert!(message("listen = \n").contains("is not TOML"));
}

#[test]
fn the_variable_names_the_file_unless_a_flag_does() {
    let (low, high) = (file("database_url = \"low\"\n"), file("database_url = \"high\"\n"));
    let url = |argv: &[&str]| {
        let variable = Some(low.path().as_os_str().to_owned());
        match try_parse_from::<Cli>(argv, variable).unwrap().command {
            Commands::Distributor(settings) => settings.database_url,
            Commands::SetRoute(_) => unreachable!("the command line says distributor"),
        }
    };
    assert_eq!(url(&["millrace", "distributor"]), "low");
    assert_eq!(url(&["millrace", "--config", high.path().to_str().unwrap(), "distributor"]), "high");
}

/// The process that the tests below start: it is this very test binary, told to run this one test.
#[test]
fn child() {
    let Ok(argv) = std::env::var("MILLRACE_TEST_ARGV") else { return };
    match try_parse_from::<Cli>(argv.split(' '), std::env::var_os("MILLRACE_CONFIG")) {
        Ok(Cli { command: Commands::Distributor(settings) }) => println!("listen={}", settings.listen),
        Ok(_) => println!("another command"),
        Err(error) => error.exit(),
    }
}

fn run_child(argv: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env("MILLRACE_TEST_ARGV", argv);
    command.envs(variables.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_variable_beats_the_file_and_a_flag_beats_the_variable() {
    let file = file("database_url = \"x\"\nlisten = \"127.0.0.1:1\"\n");
    let config = ("MILLRACE_CONFIG", file.path().to_str().unwrap());
    let variable = ("MILLRACE_TEST_LISTEN", "127.0.0.1:2");
    let from_file = run_child("millrace distributor", &[config]);
    assert!(stdout(&from_file).contains("listen=127.0.0.1:1"), "{from_file:?}");
    let from_variable = run_child("millrace distributor", &[config, variable]);
    assert!(stdout(&from_variable).contains("listen=127.0.0.1:2"), "{from_variable:?}");
    let from_flag = run_child("millrace distributor --listen 127.0.0.1:3", &[config, variable]);
    assert!(stdout(&from_flag).contains("listen=127.0.0.1:3"), "{from_flag:?}");
    let from_default = run_child("millrace distributor --database-url x", &[]);
    assert!(stdout(&from_default).contains("listen=127.0.0.1:7601"), "{from_default:?}");
}

#[test]
fn a_wrong_configuration_exits_with_64_and_help_with_0() {
    let file = file("lissten = 1\n");
    let config = ("MILLRACE_CONFIG", file.path().to_str().unwrap());
    let unknown = run_child("millrace distributor", &[config]);
    assert_eq!(unknown.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("unknown key `lissten`"), "{unknown:?}");
    assert_eq!(run_child("millrace distributor --nonsense", &[]).status.code(), Some(64));
    assert_eq!(run_child("millrace", &[]).status.code(), Some(64));
    let variable = ("MILLRACE_TEST_LISTEN", "nowhere");
    assert_eq!(run_child("millrace distributor --database-url x", &[variable]).status.code(), Some(64));
    let help = run_child("millrace distributor --help", &[]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("--config <FILE>"), "{help:?}");
    assert_eq!(run_child("millrace --version", &[]).status.code(), Some(0));
}
