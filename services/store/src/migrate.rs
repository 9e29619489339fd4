//! The schema: migrations, compiled into the binary, and which of them this build works with.

use std::path::Path;

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection,
    backend::Backend,
    connection::SimpleConnection,
    migration::{MigrationSource, MigrationVersion},
    sql_query,
    sql_types::Bool,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::{Result, StoreError};

const POSTGRES: EmbeddedMigrations = embed_migrations!("../../migrations/postgres");
const SQLITE: EmbeddedMigrations = embed_migrations!("../../migrations/sqlite");

/// The oldest and the newest migration that this build works with, by their versions.
const SCHEMA_RANGE: (&str, &str) = ("00000000000001", "00000000000001");

/// Held while migrations run, so that replicas that start together do not meet. The number only has to be Millrace's own.
const ADVISORY_LOCK: i64 = 0x6d69_6c6c_7261_6365;

/// How long a migration waits for another process that migrates, then for each lock: the hot path queues behind a
/// migration that waits for a table.
const TIMEOUTS: (&str, &str) = ("60s", "5s");

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

/// The oldest and the newest migration that this build works with. A database between the two serves; one outside of it
/// is refused when it is opened.
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

/// Whether this build works with a database whose newest migration is this one.
pub(crate) fn check(newest: Option<&str>) -> Result<()> {
    let (oldest_known, newest_known) = SCHEMA_RANGE;
    match newest {
        None => Err(StoreError::Schema("the database has no schema yet: run `millrace migrate up`".into())),
        Some(version) if version < oldest_known => Err(StoreError::Schema(format!(
            "the database's schema {version} is older than {oldest_known}, the oldest that this build works with: run `millrace migrate up`"
        ))),
        Some(version) if version > newest_known => Err(StoreError::Schema(format!(
            "the database's schema {version} is newer than {newest_known}, the newest that this build works with: run a newer build, or `millrace migrate down` with the one that made it"
        ))),
        Some(_) => Ok(()),
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
                let (for_others, for_tables) = TIMEOUTS;
                let lock = format!(
                    "SET lock_timeout = '{for_others}'; SELECT pg_advisory_lock({ADVISORY_LOCK}); SET lock_timeout = '{for_tables}'"
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
                connection.run_migration(&migration).map_err(|error| named(&migration.name(), error))?;
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
                connection.revert_migration(&**migration).map_err(|error| named(&migration.name(), error))?;
                names.push(migration.name().to_string());
            }
        }
    }
    Ok(names)
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
        assert!(check(Some(SCHEMA_RANGE.0)).is_ok() && check(Some(SCHEMA_RANGE.1)).is_ok());
        for bad in [None, Some("00000000000000"), Some("99999999999999")] {
            let error = check(bad).unwrap_err();
            assert!(matches!(&error, StoreError::Schema(text) if text.contains("run ")), "{error}");
        }
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
