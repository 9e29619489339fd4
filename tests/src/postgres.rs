//! PostgreSQL databases for tests: clones of one migrated template.

use std::{
    process,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_query};

/// The variable that names the server.
pub const SERVER: &str = "MILLRACE_TEST_POSTGRES";

/// Every database of these tests has a name that starts so, followed by the key of the process that made it.
const PREFIX: &str = "millrace_test";

/// A migrated database of the test's own, dropped with this value.
pub struct Database {
    name: String,
    /// A role that owns it and nothing else.
    role: Option<String>,
}

/// Clones the process's template into a new database.
///
/// # Panics
/// When MILLRACE_TEST_POSTGRES is not set, or the server cannot make the database.
pub fn fresh_database() -> Database {
    let template = template();
    let name = next_name(template);
    execute(&mut connect("postgres"), &format!("CREATE DATABASE {name} TEMPLATE {}", template.name));
    Database { name, role: None }
}

/// An empty database of a role that may do nothing else; its URL is that role's.
///
/// # Panics
/// As [`fresh_database`].
pub fn empty_database_of_a_plain_role() -> Database {
    let name = next_name(template());
    let mut connection = connect("postgres");
    execute(&mut connection, &format!("CREATE ROLE {name} LOGIN"));
    execute(&mut connection, &format!("CREATE DATABASE {name} OWNER {name}"));
    Database { role: Some(name.clone()), name }
}

fn next_name(template: &Template) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}_{}_{}", template.key, NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// The server's URL without its database, from MILLRACE_TEST_POSTGRES.
///
/// # Panics
/// When it is not set or has no database.
fn server() -> String {
    let url = std::env::var(SERVER).unwrap_or_else(|_| {
        panic!("{SERVER} is not set: run the tests as `tests/with-postgres.sh cargo test …`, which starts a server for them")
    });
    match url.rsplit_once('/') {
        Some((server, _database)) => server.to_owned(),
        None => panic!("{SERVER} is not a URL of the form postgres://USER@HOST:PORT/postgres: {url}"),
    }
}

/// The database from which those of this process are cloned.
struct Template {
    name: String,
    key: i32,
    /// Holds the lock that tells other processes that this one lives, until the process ends.
    _alive: Mutex<PgConnection>,
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let mut alive = connect("postgres");
        drop_leftovers(&mut alive);
        let key = free_key(&mut alive);
        let name = format!("{PREFIX}_{key}_template");
        execute(&mut alive, &format!("CREATE DATABASE {name}"));
        if let Err(error) = millrace_store::migrate::up(&format!("{}/{name}", server())) {
            panic!("migrating {name}: {error}");
        }
        // A connection to the template, even autovacuum's, would stand in the way of a clone.
        execute(&mut alive, &format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false"));
        Template { name, key, _alive: Mutex::new(alive) }
    })
}

#[derive(QueryableByName)]
struct Text {
    #[diesel(sql_type = diesel::sql_types::Text)]
    text: String,
}

#[derive(QueryableByName)]
struct Flag {
    #[diesel(sql_type = diesel::sql_types::Bool)]
    flag: bool,
}

/// A key of this process that no living process has; its lock is held by the connection from now on. Process ids alone
/// would not do: containers that share a server have the same ones.
fn free_key(connection: &mut PgConnection) -> i32 {
    let first = (process::id() & 0x3FFF_FFFF) as i32;
    match (first..).take(1000).find(|key| try_lock(connection, *key)) {
        Some(key) => key,
        None => panic!("no free key for the test databases of this process"),
    }
}

fn try_lock(connection: &mut PgConnection, key: i32) -> bool {
    let rows: Vec<Flag> = sql_query(format!("SELECT pg_try_advisory_lock(7600, {key}) AS flag"))
        .load(connection)
        .unwrap_or_else(|error| panic!("taking the lock of the test databases: {error}"));
    rows.iter().all(|row| row.flag)
}

/// Drops what processes that were killed have left: their locks ended with their connections.
fn drop_leftovers(connection: &mut PgConnection) {
    let rows: Vec<Text> =
        sql_query(format!("SELECT datname::text AS text FROM pg_database WHERE datname LIKE '{PREFIX}\\_%'"))
            .load(connection)
            .unwrap_or_else(|error| panic!("listing the databases: {error}"));
    for Text { text: name } in rows {
        let key = name.split('_').nth(2).and_then(|key| key.parse().ok());
        let Some(key) = key else { continue };
        if try_lock(connection, key) {
            execute(connection, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
            execute(connection, &format!("SELECT pg_advisory_unlock(7600, {key})"));
        }
    }
}

fn connect(database: &str) -> PgConnection {
    let url = format!("{}/{database}", server());
    PgConnection::establish(&url).unwrap_or_else(|error| panic!("connecting to {url}: {error}"))
}

fn execute(connection: &mut PgConnection, sql: &str) {
    connection.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

impl Database {
    /// A digest of everything in its tables.
    pub fn content(&self) -> String {
        let query = "SELECT string_agg(tablename || md5(query_to_xml(format('SELECT * FROM %I', tablename), true, false, '')::text), ',')
            AS text FROM pg_tables WHERE schemaname = 'public'";
        let rows: Vec<Text> = sql_query(query).load(&mut self.connect()).expect("reading the whole database");
        rows.into_iter().map(|row| row.text).collect()
    }

    /// Its URL, as the store takes it.
    pub fn url(&self) -> String {
        let server = server();
        match (&self.role, server.split_once("//"), server.rsplit_once('@')) {
            (Some(role), Some((scheme, _)), Some((_, address))) => format!("{scheme}//{role}@{address}/{}", self.name),
            _ => format!("{server}/{}", self.name),
        }
    }

    /// The server's address, HOST:PORT.
    pub fn address(&self) -> String {
        let server = server();
        server.rsplit_once('@').map_or(server.as_str(), |(_, address)| address).to_owned()
    }

    /// Its URL through a proxy on this port of the loopback interface.
    pub fn url_through(&self, port: u16) -> String {
        self.url().replace(&self.address(), &format!("127.0.0.1:{port}"))
    }

    /// Another connection to it, for what a test does behind the store's back.
    pub fn connect(&self) -> PgConnection {
        connect(&self.name)
    }

    /// Runs SQL in it, behind the store's back.
    pub fn execute(&self, sql: &str) {
        execute(&mut self.connect(), sql);
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A server that is gone has taken the database with it; a failing test must still tell of its own failure.
        if let Ok(mut connection) = PgConnection::establish(&format!("{}/postgres", server())) {
            let _ = connection.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
            if let Some(role) = &self.role {
                let _ = connection.batch_execute(&format!("DROP ROLE IF EXISTS {role}"));
            }
        }
    }
}
