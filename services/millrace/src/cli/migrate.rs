//! `millrace migrate`: the schema of the database.

use millrace_store::StoreError;
use millrace_store::migrate::{self, MigrationStatus};
use serde_json::json;

use crate::exit::Failure;
use crate::output::{self, Format};
use crate::serve::{redacted, store_failure};

/// Commands about the schema.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum MigrateCommand {
    /// Bring the schema up to what this release works with
    #[command(after_help = "\
Examples:
  millrace migrate up --database-url postgres://millrace@db/millrace

It is safe while services of this release and the one before run, and safe to run twice or at the same time.")]
    Up(MigrateArgs),
    /// Take the newest migration back
    #[command(after_help = "\
Examples:
  millrace migrate down --database-url postgres://millrace@db/millrace --yes

What the migration added is lost. Stop the services first.")]
    Down(DownArgs),
    /// Show what the database has and what this release works with
    #[command(after_help = "\
Examples:
  millrace migrate status --database-url sqlite:.millrace/millrace.db

Exit code: 0 when this release can work with the schema, 1 when it cannot.")]
    Status(StatusArgs),
}

/// Flags of `migrate up`.
#[derive(Debug, clap::Args)]
pub(crate) struct MigrateArgs {
    /// The database: postgres://… or sqlite:PATH.
    #[arg(long, env = "MILLRACE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: String,
}

/// Flags of `migrate down`.
#[derive(Debug, clap::Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    database: MigrateArgs,
    /// Says that losing what the migration added is meant.
    #[arg(long)]
    yes: bool,
}

/// Flags of `migrate status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    database: MigrateArgs,
    /// How to print.
    #[arg(long, short = 'o', value_name = "FORMAT", value_enum, default_value_t = Format::Table, env = "MILLRACE_OUTPUT")]
    output: Format,
}

impl MigrateCommand {
    /// Runs the command.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            MigrateCommand::Up(args) => {
                let applied = up(&args.database_url).await?;
                say(&applied, "applied", "the schema is up to date")
            }
            MigrateCommand::Down(args) if !args.yes => Err(Failure::Usage(format!(
                "what the newest migration of {} added would be lost; say --yes when that is meant",
                redacted(&args.database.database_url)
            ))),
            MigrateCommand::Down(args) => {
                let taken_back = blocking(&args.database.database_url, |url| migrate::down(url, 1)).await?;
                say(&taken_back, "taken back", "there is nothing to take back")
            }
            MigrateCommand::Status(args) => {
                let status = blocking(&args.database.database_url, migrate::status).await?;
                print_status(args.output, &status)
            }
        }
    }
}

/// Applies what is missing and gives the names.
pub(crate) async fn up(url: &str) -> Result<Vec<String>, Failure> {
    blocking(url, migrate::up).await
}

/// Runs a call to the database where it may block.
async fn blocking<T: Send + 'static>(
    url: &str,
    call: impl FnOnce(&str) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Failure> {
    let owned = url.to_owned();
    match tokio::task::spawn_blocking(move || call(&owned)).await {
        Ok(result) => result.map_err(|error| store_failure(&error, url)),
        Err(error) => Err(Failure::Request(format!("the migration did not end: {error}"))),
    }
}

fn say(names: &[String], what: &str, nothing: &str) -> Result<(), Failure> {
    match names {
        [] => output::line(nothing),
        names => names.iter().try_for_each(|name| output::line(&format!("{name} {what}"))),
    }
}

fn print_status(format: Format, status: &[MigrationStatus]) -> Result<(), Failure> {
    let state = |one: &MigrationStatus| match (one.applied, one.known) {
        (true, true) => "applied",
        (false, _) => "pending",
        (true, false) => "applied, and unknown to this release",
    };
    match format {
        Format::Json => status.iter().try_for_each(|one| {
            output::line(&json!({"name": one.name, "applied": one.applied, "known": one.known}).to_string())
        })?,
        Format::Table => {
            let mut table = output::table(&["MIGRATION", "STATE"]);
            status.iter().for_each(|one| {
                table.add_row(vec![one.name.as_str(), state(one)]);
            });
            output::print_table(&table)?;
        }
    }
    let newest = status.iter().filter(|one| one.applied).map(|one| version_of(&one.name)).max();
    fits(newest, migrate::schema_range()).map_err(Failure::Request)
}

/// The version at the start of a migration's name.
fn version_of(name: &str) -> &str {
    name.split('_').next().unwrap_or(name)
}

/// Whether this release works with a database whose newest migration is this one.
fn fits(newest: Option<&str>, (oldest_known, newest_known): (&str, &str)) -> Result<(), String> {
    match newest {
        None => Err("the database has no schema yet; run `millrace migrate up`".to_owned()),
        Some(newest) if newest < oldest_known => Err(format!(
            "the schema {newest} is older than this release works with ({oldest_known}); run `millrace migrate up`"
        )),
        Some(newest) if newest > newest_known => Err(format!(
            "the schema {newest} is newer than this release works with ({newest_known}); run a newer release"
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_fits_within_the_range_only() {
        let range = ("00000000000002", "00000000000005");
        assert!(fits(None, range).unwrap_err().contains("migrate up"));
        assert!(fits(Some("00000000000001"), range).unwrap_err().contains("older"));
        assert!(fits(Some("00000000000006"), range).unwrap_err().contains("newer release"));
        for version in ["00000000000002", "00000000000005"] {
            assert_eq!(fits(Some(version), range), Ok(()));
        }
        assert_eq!(version_of("00000000000001_first"), "00000000000001");
    }
}
