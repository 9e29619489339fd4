//! `millrace migrate`: the schema of the database.

use millrace_core::ROW_FORMAT;
use millrace_store::migrate::{self, MigrationStatus};
use millrace_store::{Activated, Audit, Drift, MemberRow, OpenOptions, StoreError};
use serde_json::json;

use crate::exit::Failure;
use crate::output::{self, Format};
use crate::serve::{DatabaseArgs, redacted, store_failure};

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

A column whose type is not the one that this release expects is named on standard error: only what needs
that column suffers.

Exit code: 0 when this release can work with the schema, 1 when it cannot.")]
    Status(StatusArgs),
    /// Write rows in a newer format from now on
    #[command(after_help = "\
Examples:
  millrace migrate activate 2 --rollback-reads 2 --database-url postgres://millrace@db/millrace

A release that can write a format only does so once it is activated, so that the release before still reads
everything while both run. It is refused while a process runs that cannot read the format, and when the
release that you would roll back to cannot (`millrace --version` of that release says what it reads).")]
    Activate(ActivateArgs),
}

/// Flags of `migrate activate`.
#[derive(Debug, clap::Args)]
pub(crate) struct ActivateArgs {
    /// The format.
    #[arg(value_parser = clap::value_parser!(i16).range(1..))]
    format: i16,
    /// The newest format that the release reads to which you would roll back.
    #[arg(long, value_name = "FORMAT", value_parser = clap::value_parser!(i16).range(1..))]
    rollback_reads: i16,
    #[command(flatten)]
    database: MigrateArgs,
    /// Bounds on the database, as the services have them.
    #[command(flatten)]
    bounds: DatabaseArgs,
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
            MigrateCommand::Activate(args) => activate(args).await,
            MigrateCommand::Status(args) => {
                let status = blocking(&args.database.database_url, migrate::status).await?;
                print_status(args.output, &status)?;
                // The command line is fine; what it was asked to look at is not.
                let unfit = |failure| match failure {
                    Failure::Usage(why) => Failure::Request(why),
                    other => other,
                };
                blocking(&args.database.database_url, migrate::fits).await.map_err(unfit)?;
                // A SQLite database that is in use cannot be opened a second time, and its schema fits all the same.
                match blocking(&args.database.database_url, drift).await {
                    Ok(drift) => drift.iter().for_each(|one| eprintln!("warning: a column's type has changed: {one}")),
                    Err(failure) => eprintln!("warning: the types of columns were not looked at: {failure}"),
                }
                Ok(())
            }
        }
    }
}

/// Applies what is missing and gives the names.
pub(crate) async fn up(url: &str) -> Result<Vec<String>, Failure> {
    blocking(url, migrate::up).await
}

/// Columns whose types are not those that this release expects.
fn drift(url: &str) -> Result<Vec<Drift>, StoreError> {
    let options = OpenOptions { dispatch_connections: 1, read_connections: 1, ..OpenOptions::default() };
    millrace_store::open(url, &options)?.drift()
}

async fn activate(args: ActivateArgs) -> Result<(), Failure> {
    let (format, rollback_reads) = (args.format, args.rollback_reads);
    if format > ROW_FORMAT {
        return Err(Failure::Usage(format!(
            "this release writes formats up to {ROW_FORMAT}; it cannot write {format}"
        )));
    }
    let options = args.bounds.options();
    let audit = Audit {
        action: "activate".into(),
        subject: "write_format".into(),
        detail: format!("format {format}, rollback reads {rollback_reads}, by {}", crate::version::build()),
    };
    let call = move |url: &str| millrace_store::open(url, &options)?.activate(format, rollback_reads, &audit);
    match blocking(&args.database.database_url, call).await? {
        Activated::Done { before } => {
            output::line(&format!("rows are written in format {format}; before it was {before}"))
        }
        Activated::Already(current) => output::line(&format!("rows are written in format {current} already")),
        Activated::RollbackBehind(reads) => Err(Failure::Request(format!(
            "the release to roll back to reads formats up to {reads} and could not read {format}; nothing was changed"
        ))),
        Activated::Behind(members) => {
            let one = |member: &MemberRow| format!("{} ({})", member.endpoint, member.build);
            let list = members.iter().map(one).collect::<Vec<_>>().join(", ");
            Err(Failure::Request(format!(
                "{} cannot read format {format}: {list}; nothing was changed",
                if members.len() == 1 { "a live process" } else { "live processes" }
            )))
        }
    }
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
    Ok(())
}
