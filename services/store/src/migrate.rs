//! The schema: migrations, compiled into the binary, and which of them this build works with.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection,
    backend::Backend,
    connection::SimpleConnection,
    migration::{MigrationSource, MigrationVersion},
    sql_query,
    sql_types::{Bool, Text},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::{Result, StoreError};

const POSTGRES: EmbeddedMigrations = embed_migrations!("../../migrations/postgres");
const SQLITE: EmbeddedMigrations = embed_migrations!("../../migrations/sqlite");

/// The oldest migration that this build needs and the newest that it knows, by their versions.
const SCHEMA_RANGE: (&str, &str) = ("00000000000001", "00000000000002");

/// The migration that brings pools and nodes. Only what calls [`crate::FleetStore`] needs it ([`crate::OpenOptions::oldest_schema`]): the
/// rest of this build works without.
pub const FLEETS: &str = "00000000000002";

/// Held while migrations run, so that replicas that start together do not meet. The number only has to be Millrace's own.
const ADVISORY_LOCK: i64 = 0x6d69_6c6c_7261_6365;

/// How long a process waits for another that migrates.
const PATIENCE_WITH_OTHERS: &str = "60s";

/// How long a migration waits for a lock before it lets the others go on and tries again: every statement of the services on a table
/// queues behind a migration that waits for it.
const LOCK_TIMEOUT: &str = "200ms";

/// The wait between two tries, and for how long a migration tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(600));

/// A migration that this build knows or the database has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationStatus {
    /// Its version and name; the version alone when this build does not know it.
    pub name: String,
    /// Whether the database has it.
    pub applied: bool,
    /// Whether this build knows it.
    pub known: bool,
}

/// The oldest migration that this build needs and the newest that it knows. A database with an older schema is refused when it
/// is opened; one with a newer schema only when the database says that it needs builds which know that.
pub fn schema_range() -> (&'static str, &'static str) {
    SCHEMA_RANGE
}

/// Applies what the database does not have yet and returns the names. Makes the file and its directory for `sqlite:PATH`.
pub fn up(url: &str) -> Result<Vec<String>> {
    Target::of(url)?.visit(Visit::Up)
}

/// Takes back the last `steps` migrations and returns the names, the newest first. Data in what they made is gone.
pub fn down(url: &str, steps: usize) -> Result<Vec<String>> {
    Target::of(url)?.visit(Visit::Down(steps))
}

/// Every migration that this build knows or the database has, oldest first. Writes nothing to a PostgreSQL database and makes no file.
pub fn status(url: &str) -> Result<Vec<MigrationStatus>> {
    match Target::of(url)? {
        Target::Postgres(url) => {
            let mut connection = connect_postgres(url)?;
            let applied = match has_migrations_table(&mut connection)? {
                true => applied(&mut connection)?,
                false => Vec::new(),
            };
            describe::<_, diesel::pg::Pg>(POSTGRES, &applied)
        }
        Target::Sqlite(path) => {
            let applied = match Path::new(path).is_file() {
                true => applied(&mut connect_sqlite(path)?)?,
                false => Vec::new(),
            };
            describe::<_, diesel::sqlite::Sqlite>(SQLITE, &applied)
        }
    }
}

/// Whether this build works with the database as it is: [`StoreError::Schema`] says what to do when it does not.
pub fn fits(url: &str) -> Result<()> {
    let applied = status(url)?.into_iter().filter(|one| one.applied).max_by(|a, b| a.name.cmp(&b.name));
    let newest = applied.as_ref().and_then(|one| one.name.split('_').next());
    let needs = match (newest, Target::of(url)?) {
        (None, _) => String::new(),
        (Some(_), Target::Postgres(url)) => needs(
            &mut connect_postgres(url)?,
            "SELECT coalesce(to_jsonb(c) ->> 'needs_schema', '') AS needs FROM cluster c",
        )?,
        (Some(_), Target::Sqlite(path)) => {
            let mut connection = connect_sqlite(path)?;
            let column =
                "SELECT coalesce(max(name), '') AS needs FROM pragma_table_info('cluster') WHERE name = 'needs_schema'";
            match needs(&mut connection, column)?.is_empty() {
                true => String::new(),
                false => needs(&mut connection, "SELECT needs_schema AS needs FROM cluster")?,
            }
        }
    };
    check(newest, &needs)
}

/// The migration that a build must know, in a column that the first migration which takes something away brings.
fn needs<C>(connection: &mut C, query: &str) -> Result<String>
where
    C: diesel::connection::LoadConnection,
    diesel::query_builder::SqlQuery: diesel::query_dsl::LoadQuery<'static, C, Needs>,
{
    sql_query(query).get_result::<Needs>(connection).map(|row| row.needs).map_err(failed)
}

#[derive(QueryableByName)]
struct Needs {
    #[diesel(sql_type = Text)]
    needs: String,
}

/// Whether this build works with a database whose newest migration is this one and which needs builds that know `needs`.
pub(crate) fn check(newest: Option<&str>, needs: &str) -> Result<()> {
    let (oldest_known, newest_known) = SCHEMA_RANGE;
    match newest {
        None => Err(StoreError::Schema("the database has no schema yet: run `millrace migrate up`".into())),
        Some(version) if version < oldest_known => reaches(version, oldest_known),
        // Newer migrations that only add are no hindrance: the release before goes on beside the one that made them.
        Some(version) if needs > newest_known => Err(StoreError::Schema(format!(
            "the database's schema {version} needs a build that knows migration {needs}, and the newest that this one knows is {newest_known}: run a newer build, or `millrace migrate down` with the one that made it"
        ))),
        Some(_) => Ok(()),
    }
}

/// Whether a schema is this old or newer: [`StoreError::Schema`] says what to do when it is not. For what needs more than the rest of
/// its build.
pub fn reaches(version: &str, oldest: &str) -> Result<()> {
    match version >= oldest {
        true => Ok(()),
        false => Err(StoreError::Schema(format!(
            "the database's schema {version} is older than {oldest}, the oldest that this works with: run `millrace migrate up`"
        ))),
    }
}

// ── The work ────────────────────────────────────────────────────────────────────────────────────────────────────────

enum Target<'a> {
    Postgres(&'a str),
    Sqlite(&'a str),
}

#[derive(Clone, Copy)]
enum Visit {
    Up,
    Down(usize),
}

impl<'a> Target<'a> {
    fn of(url: &'a str) -> Result<Self> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(url));
        }
        match url.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() => Ok(Self::Sqlite(path)),
            _ => Err(StoreError::Config(format!("`{url}` is neither postgres://… nor sqlite:PATH"))),
        }
    }

    fn visit(&self, visit: Visit) -> Result<Vec<String>> {
        match self {
            Target::Postgres(url) => {
                let mut connection = connect_postgres(url)?;
                // In English, because what an error means is told by its words. Not every role may say so, and most servers speak it.
                if let Err(error) = connection.batch_execute("SET lc_messages = 'C'") {
                    tracing::debug!(%error, "the language of the database's messages stays what it is");
                }
                let lock = format!(
                    "SET lock_timeout = '{PATIENCE_WITH_OTHERS}';
                     SELECT pg_advisory_lock({ADVISORY_LOCK}); SET lock_timeout = '{LOCK_TIMEOUT}'"
                );
                // The lock ends with the connection.
                connection.batch_execute(&lock).map_err(failed)?;
                run(&mut connection, POSTGRES, visit)
            }
            Target::Sqlite(path) => {
                if let (Visit::Up, Some(folder)) = (visit, Path::new(path).parent()) {
                    std::fs::create_dir_all(folder)
                        .map_err(|error| StoreError::Config(format!("{}: {error}", folder.display())))?;
                }
                run(&mut connect_sqlite(path)?, SQLITE, visit)
            }
        }
    }
}

fn run<C, DB>(connection: &mut C, source: EmbeddedMigrations, visit: Visit) -> Result<Vec<String>>
where
    DB: Backend,
    C: MigrationHarness<DB>,
    EmbeddedMigrations: MigrationSource<DB>,
{
    let mut names = Vec::new();
    match visit {
        Visit::Up => {
            for migration in connection.pending_migrations(source).map_err(failed)? {
                persist(&migration.name(), || connection.run_migration(&migration).map(drop))?;
                names.push(migration.name().to_string());
            }
        }
        Visit::Down(steps) => {
            let known = MigrationSource::<DB>::migrations(&source).map_err(failed)?;
            let applied = applied(connection)?;
            for version in applied.iter().rev().take(steps) {
                let migration =
                    known.iter().find(|one| one.name().version().to_string() == *version).ok_or_else(|| {
                        StoreError::Schema(format!(
                            "this build does not know migration {version}: take it back with the one that made it"
                        ))
                    })?;
                persist(&migration.name(), || connection.revert_migration(&**migration).map(drop))?;
                names.push(migration.name().to_string());
            }
        }
    }
    Ok(names)
}

/// Runs a migration until it gets the locks that it needs. Each try is a transaction of its own, so one that failed has left nothing.
fn persist(
    name: &dyn std::fmt::Display,
    mut migrate: impl FnMut() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<()> {
    let (pause, patience) = RETRY;
    let started = Instant::now();
    loop {
        let Err(error) = migrate() else { return Ok(()) };
        let text = error.to_string();
        let busy = text.contains("due to lock timeout") || text.contains("deadlock detected");
        if !busy || started.elapsed() >= patience {
            return Err(named(name, error));
        }
        tracing::info!(migration = %name, "the migration waits for a lock that others hold, and tries again");
        std::thread::sleep(pause);
    }
}

/// The versions that the database has, oldest first.
fn applied<DB: Backend>(connection: &mut impl MigrationHarness<DB>) -> Result<Vec<String>> {
    let mut versions: Vec<MigrationVersion<'static>> = connection.applied_migrations().map_err(failed)?;
    versions.sort();
    Ok(versions.iter().map(ToString::to_string).collect())
}

fn describe<S: MigrationSource<DB>, DB: Backend>(source: S, applied: &[String]) -> Result<Vec<MigrationStatus>> {
    let mut known: Vec<(String, String)> = source
        .migrations()
        .map_err(failed)?
        .iter()
        .map(|one| (one.name().version().to_string(), one.name().to_string()))
        .collect();
    known.sort();
    let foreign = applied.iter().filter(|version| !known.iter().any(|(one, _)| one == *version));
    let foreign: Vec<MigrationStatus> =
        foreign.map(|version| MigrationStatus { name: version.clone(), applied: true, known: false }).collect();
    let known = known.iter().map(|(version, name)| MigrationStatus {
        name: name.clone(),
        applied: applied.contains(version),
        known: true,
    });
    let mut all: Vec<MigrationStatus> = known.chain(foreign).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn connect_postgres(url: &str) -> Result<PgConnection> {
    PgConnection::establish(url).map_err(|error| crate::postgres::not_connected(&error.to_string()))
}

fn connect_sqlite(path: &str) -> Result<SqliteConnection> {
    let mut connection =
        SqliteConnection::establish(path).map_err(|error| StoreError::Unavailable(format!("{path}: {error}")))?;
    connection.batch_execute("PRAGMA busy_timeout = 60000; PRAGMA journal_mode = WAL").map_err(failed)?;
    Ok(connection)
}

fn has_migrations_table(connection: &mut PgConnection) -> Result<bool> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Bool)]
        found: bool,
    }
    let query = sql_query("SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL AS found");
    query.get_result::<Found>(connection).map(|row| row.found).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Internal(format!("migrating: {error}"))
}

fn named(name: &dyn std::fmt::Display, error: impl std::fmt::Display) -> StoreError {
    StoreError::Internal(format!("migration {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions<DB: Backend>() -> Vec<String>
    where
        EmbeddedMigrations: MigrationSource<DB>,
    {
        let source = if std::any::type_name::<DB>().ends_with("Pg") { POSTGRES } else { SQLITE };
        let mut names: Vec<String> =
            MigrationSource::<DB>::migrations(&source).unwrap().iter().map(|one| one.name().to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn both_databases_have_the_same_migrations_and_the_newest_is_the_end_of_the_range() {
        let (postgres, sqlite) = (versions::<diesel::pg::Pg>(), versions::<diesel::sqlite::Sqlite>());
        assert_eq!(postgres, sqlite);
        assert!(postgres.last().is_some_and(|name| name.starts_with(SCHEMA_RANGE.1)), "{postgres:?}");
        assert!(postgres.iter().any(|name| name.starts_with(SCHEMA_RANGE.0)), "{postgres:?}");
    }

    #[test]
    fn a_schema_outside_of_the_range_is_refused_with_what_to_run() {
        let (oldest, newest) = SCHEMA_RANGE;
        assert!(check(Some(oldest), oldest).is_ok() && check(Some(newest), newest).is_ok());
        assert!(check(Some("99999999999999"), newest).is_ok(), "a later release that only added");
        for (bad, needs) in [(None, ""), (Some("00000000000000"), ""), (Some("99999999999999"), "99999999999999")] {
            let error = check(bad, needs).unwrap_err();
            assert!(matches!(&error, StoreError::Schema(text) if text.contains("run ")), "{error}");
        }
    }

    #[test]
    fn what_needs_more_than_its_build_is_refused_with_what_to_run() {
        assert!(reaches(FLEETS, FLEETS).is_ok() && reaches("99999999999999", FLEETS).is_ok());
        let error = reaches(SCHEMA_RANGE.0, FLEETS).unwrap_err();
        assert!(matches!(&error, StoreError::Schema(text) if text.contains("run ")), "{error}");
        assert!(versions::<diesel::pg::Pg>().iter().any(|name| name.starts_with(FLEETS)));
    }

    #[test]
    fn sqlite_goes_up_and_down_and_makes_its_folder() {
        let folder = std::env::temp_dir().join(format!("millrace-migrate-{}", uuid::Uuid::now_v7()));
        let url = format!("sqlite:{}", folder.join("deep/er/millrace.db").display());
        assert!(status(&url).unwrap().iter().all(|one| !one.applied && one.known));
        let applied = up(&url).unwrap();
        assert!(!applied.is_empty());
        assert_eq!(up(&url).unwrap(), Vec::<String>::new());
        assert!(status(&url).unwrap().iter().all(|one| one.applied && one.known));
        assert_eq!(down(&url, 100).unwrap().len(), applied.len());
        assert!(status(&url).unwrap().iter().all(|one| !one.applied));
        assert_eq!(up(&url).unwrap(), applied);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
