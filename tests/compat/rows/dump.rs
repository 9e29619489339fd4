//! Rows as SQL, out of a database and into another: one INSERT a row, every value as a literal that its column's type reads.

use std::{collections::BTreeMap, path::PathBuf};

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection, sql_query,
    sql_types,
};
use millrace_tests::{postgres, sqlite};
use uuid::Uuid;

/// A database of either kind, migrated or not.
pub(super) enum Database {
    Postgres(postgres::Database),
    Sqlite(sqlite::Database),
    /// A file that services have made.
    File(PathBuf),
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = sql_types::Text)]
    line: String,
}

/// The tables that hold rows, without those of the migrations and of SQLite itself, by name.
const POSTGRES_TABLES: &str = "SELECT c.relname::text AS line FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> '__diesel_schema_migrations' ORDER BY 1";
const SQLITE_TABLES: &str = "SELECT name AS line FROM sqlite_master WHERE type = 'table'
    AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name <> '__diesel_schema_migrations' ORDER BY 1";

impl Database {
    pub(super) fn url(&self) -> String {
        match self {
            Database::Postgres(database) => database.url(),
            Database::Sqlite(database) => database.url(),
            Database::File(path) => format!("sqlite:{}", path.display()),
        }
    }

    /// The name of its goldens' folder.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Database::Postgres(_) => "postgres",
            Database::Sqlite(_) | Database::File(_) => "sqlite",
        }
    }

    /// Every table's rows as SQL, by the table's name.
    pub(super) fn dump(&self) -> BTreeMap<String, String> {
        let tables = match self {
            Database::Postgres(_) => self.lines(POSTGRES_TABLES),
            Database::Sqlite(_) | Database::File(_) => self.lines(SQLITE_TABLES),
        };
        tables.into_iter().map(|table| (table.clone(), self.dump_table(&table))).collect()
    }

    fn dump_table(&self, table: &str) -> String {
        let (columns, literal) = match self {
            Database::Postgres(_) => (
                format!(
                    "SELECT quote_ident(attname) AS line FROM pg_attribute
                     WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
                ),
                (|column| format!("quote_nullable({column}::text)")) as fn(&String) -> String,
            ),
            Database::Sqlite(_) | Database::File(_) => (
                format!("SELECT '\"' || name || '\"' AS line FROM pragma_table_info('{table}') ORDER BY cid"),
                (|column| format!("quote({column})")) as fn(&String) -> String,
            ),
        };
        let columns = self.lines(&columns);
        let literals: Vec<String> = columns.iter().map(literal).collect();
        let query = format!(
            "SELECT 'INSERT INTO {table} ({}) VALUES (' || {} || ');' AS line FROM {table} ORDER BY 1",
            columns.join(", "),
            literals.join(" || ', ' || ")
        );
        self.lines(&query).into_iter().map(|line| line + "\n").collect()
    }

    /// Puts a dump into the place of what the database has. Tables that the dump does not know keep their rows.
    pub(super) fn load(&self, dump: &BTreeMap<String, String>) {
        let emptied: String = dump.keys().map(|table| format!("DELETE FROM {table};")).collect();
        let filled: String = dump.values().map(String::as_str).collect();
        self.execute(&format!("BEGIN;{emptied}{filled}COMMIT;"));
    }

    /// The UUIDs that a query gives in a column `key`.
    pub(super) fn uuids(&self, query: &str) -> Vec<Uuid> {
        let text = match self {
            Database::Postgres(_) => format!("SELECT key::text AS line FROM ({query}) AS keys ORDER BY 1"),
            Database::Sqlite(_) | Database::File(_) => format!("SELECT hex(key) AS line FROM ({query}) ORDER BY 1"),
        };
        self.lines(&text).iter().map(|line| Uuid::parse_str(line).expect("a UUID")).collect()
    }

    fn execute(&self, sql: &str) {
        let done = match self {
            Database::Postgres(database) => database.connect().batch_execute(sql),
            Database::Sqlite(database) => database.connect().batch_execute(sql),
            Database::File(path) => open(path).batch_execute(sql),
        };
        done.unwrap_or_else(|error| panic!("{error}: {sql}"));
    }

    fn lines(&self, query: &str) -> Vec<String> {
        let query_of = || sql_query(query);
        let lines: Vec<Line> = match self {
            Database::Postgres(database) => query_of().load::<Line>(&mut database.connect() as &mut PgConnection),
            Database::Sqlite(database) => query_of().load(&mut database.connect()),
            Database::File(path) => query_of().load(&mut open(path)),
        }
        .unwrap_or_else(|error| panic!("{query}: {error}"));
        lines.into_iter().map(|line| line.line).collect()
    }
}

fn open(path: &std::path::Path) -> SqliteConnection {
    SqliteConnection::establish(&path.to_string_lossy()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
