//! Pools of connections, and the session that each connection starts with.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use diesel::{Connection, PgConnection, connection::SimpleConnection};
use r2d2::ManageConnection;

use super::{
    Known,
    conn::{Conn, Mode},
    failure::{from_diesel, one_line, words},
    link::Link,
    sql::sql,
};
use crate::{OpenOptions, Result, StoreError};

/// What a pool is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Submit, claim, complete, heartbeats and the background loops.
    Dispatch,
    /// What people read.
    People,
}

/// How much later than the server's own timeout a caller gives up on a statement.
const SLACK: Duration = Duration::from_secs(1);

/// A connection that has been idle for longer than this is asked whether it lives before it is used: a server that was restarted
/// closes all of them. One in use is not asked, which would cost the hot path a round trip.
const FRESH: Duration = Duration::from_secs(1);

/// A pool of connections for one purpose.
pub(super) struct Pool {
    links: r2d2::Pool<Manager>,
    state: Arc<ServerState>,
}

impl Pool {
    /// A pool that connects when it is first used; `open` has tried the server before.
    pub(super) fn new(url: &str, purpose: Purpose, options: &OpenOptions, known: &Arc<Known>) -> Self {
        let state = Arc::new(ServerState::default());
        let size = match purpose {
            Purpose::Dispatch => options.dispatch_connections,
            Purpose::People => options.read_connections,
        };
        let links = r2d2::Pool::builder()
            .max_size(size.max(1))
            .min_idle(Some(1))
            .connection_timeout(options.connect_timeout.max(Duration::from_millis(1)))
            .test_on_check_out(true)
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(Manager::new(url, purpose, options, Arc::clone(&state), Arc::clone(known)));
        Self { links, state }
    }

    /// Reads, each statement by itself.
    pub(super) fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Conn<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.link()?.run(Mode::Read, None, work)
    }

    /// Reads in one snapshot. Done again when the types of columns turn out to be others than they were.
    pub(super) fn snapshot<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Conn<'_>) -> Result<T> + Clone + Send + 'static,
    ) -> Result<T> {
        self.link()?.run(Mode::Snapshot, None, |conn| conn.transaction(work))
    }

    /// Statements that commit by themselves.
    pub(super) fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Conn<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.link()?.run(Mode::Write, None, work)
    }

    /// One transaction. Done again, in another, when the types of columns turn out to be others than they were.
    pub(super) fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Conn<'_>) -> Result<T> + Clone + Send + 'static,
    ) -> Result<T> {
        self.link()?.run(Mode::Transaction, None, |conn| conn.transaction(work))
    }

    /// A connection of the pool. While the server is known to be gone this fails at once, so that callers do not pile up;
    /// r2d2 goes on trying to connect by itself.
    fn link(&self) -> Result<r2d2::PooledConnection<Manager>> {
        if let Some(error) = self.state.gone()
            && self.links.state().connections == 0
        {
            return Err(StoreError::Unavailable(error));
        }
        self.links.get().map_err(|_| match self.state.gone() {
            Some(reason) => StoreError::Unavailable(reason),
            None => StoreError::Timeout("no connection of the pool became free".into()),
        })
    }
}

/// Why the last attempt to connect failed.
#[derive(Debug, Default)]
pub(super) struct ServerState(Mutex<Option<String>>);

impl ServerState {
    fn set(&self, error: Option<String>) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = error;
    }

    fn gone(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// Makes the connections of a pool.
pub(super) struct Manager {
    url: Arc<str>,
    purpose: Purpose,
    required: Arc<str>,
    connect_timeout: Duration,
    patience: Duration,
    pace: Arc<Pace>,
    state: Arc<ServerState>,
    known: Arc<Known>,
}

impl Manager {
    pub(super) fn new(
        url: &str,
        purpose: Purpose,
        options: &OpenOptions,
        state: Arc<ServerState>,
        known: Arc<Known>,
    ) -> Self {
        let statement_timeout = match purpose {
            Purpose::Dispatch => options.statement_timeout,
            Purpose::People => options.read_timeout,
        };
        Self {
            url: with_client_settings(url, purpose, options).into(),
            purpose,
            required: required_settings(purpose, statement_timeout, options).into(),
            connect_timeout: options.connect_timeout,
            patience: statement_timeout + SLACK,
            pace: Arc::new(Pace::of(purpose, statement_timeout)),
            state,
            known,
        }
    }
}

impl ManageConnection for Manager {
    type Connection = Link;
    type Error = StoreError;

    fn connect(&self) -> Result<Link> {
        let (url, required, purpose) = (Arc::clone(&self.url), Arc::clone(&self.required), self.purpose);
        // The session's settings are statements, each with its own patience, after the connection itself.
        let limit = self.connect_timeout + self.patience;
        let (pace, known) = (Arc::clone(&self.pace), Arc::clone(&self.known));
        let link = Link::open(move || establish(&url, &required, purpose), limit, self.patience, pace, known);
        match link {
            Ok(link) => {
                self.state.set(None);
                Ok(link)
            }
            Err(error @ StoreError::Config(_)) => Err(error),
            Err(error) => {
                let reason = words(error);
                self.state.set(Some(reason.clone()));
                Err(StoreError::Unavailable(reason))
            }
        }
    }

    fn is_valid(&self, link: &mut Link) -> Result<()> {
        if Instant::now().saturating_duration_since(link.used_at()) < FRESH {
            return Ok(());
        }
        link.run(Mode::Read, Some(SLACK), |conn| conn.one(sql("SELECT 1"), |row| row.get::<i32>()).map(drop))
    }

    fn has_broken(&self, link: &mut Link) -> bool {
        link.is_broken()
    }
}

// ── The session ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// The URL with what libpq is to do on its own side, except what the URL already says. `tcp_user_timeout` ends a connection
/// whose packets are not acknowledged, keepalives one that is idle meanwhile.
fn with_client_settings(url: &str, purpose: Purpose, options: &OpenOptions) -> String {
    let name = match purpose {
        Purpose::Dispatch => "millrace-dispatch",
        Purpose::People => "millrace-people",
    };
    let unacknowledged = options.statement_timeout + SLACK;
    let settings = [
        ("application_name", name.to_owned()),
        ("connect_timeout", options.connect_timeout.as_secs().max(2).to_string()),
        ("keepalives", "1".into()),
        ("keepalives_idle", "5".into()),
        ("keepalives_interval", "2".into()),
        ("keepalives_count", "3".into()),
        ("tcp_user_timeout", unacknowledged.as_millis().to_string()),
    ];
    let mut url = url.to_owned();
    for (setting, value) in settings {
        if !url.contains(&format!("{setting}=")) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{setting}={value}"));
        }
    }
    url
}

/// What every session must have: bounds on all that it can wait for, and the isolation that the statements are written for.
fn required_settings(purpose: Purpose, statement_timeout: Duration, options: &OpenOptions) -> String {
    // 0 would mean no bound.
    let ms = |span: Duration| span.as_millis().clamp(1, i32::MAX as u128);
    let read_only = match purpose {
        Purpose::Dispatch => "off",
        Purpose::People => "on",
    };
    format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {};
         SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = {read_only}",
        ms(statement_timeout),
        ms(options.lock_timeout),
        ms(statement_timeout + SLACK),
    )
}

/// How a session goes about statements that find an index for what they look for, and, while columns have other types (see [`drift`]),
/// about such that do not.
///
/// [`drift`]: super::drift
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What sets a session back to what it starts with.
    pub(super) searching: String,
    /// What lets a join read a table once, and not once for each row of a batch, and gives it time for that.
    pub(super) reading: String,
    /// How much longer a caller then waits for a statement, in times.
    pub(super) patience: u32,
}

/// How much longer a statement may take that finds no index.
const UNINDEXED: u32 = 4;

impl Pace {
    fn of(purpose: Purpose, statement_timeout: Duration) -> Self {
        let timeouts = |timeout: Duration| {
            let ms = |span: Duration| span.as_millis().clamp(1, i32::MAX as u128);
            format!(
                "SET statement_timeout = {}; SET idle_in_transaction_session_timeout = {}",
                ms(timeout),
                ms(timeout + SLACK)
            )
        };
        let joins = match purpose {
            Purpose::Dispatch => "; SET enable_hashjoin = off",
            Purpose::People => "",
        };
        Self {
            searching: format!("{}; SET enable_seqscan = off{joins}", timeouts(statement_timeout)),
            reading: format!(
                "{}; SET enable_seqscan = on; SET enable_hashjoin = on",
                timeouts(statement_timeout * UNINDEXED)
            ),
            patience: UNINDEXED,
        }
    }
}

/// What helps where the server has it.
///
/// Every statement is written to go through a primary key or one of the partial indexes, in its order. Plans are made while
/// tables are still empty, or before anyone has counted their rows, and then a scan of the whole table with a sort looks cheap;
/// so these are ruled out, and so are workers in parallel, which would take the processors from the others.
const HELPFUL: [&str; 5] = [
    "SET enable_seqscan = off",
    "SET enable_bitmapscan = off",
    "SET max_parallel_workers_per_gather = 0",
    "SET jit = off",
    "SET client_connection_check_interval = '2s'",
];

/// The same for dispatch. Its statements are nested loops over the items of a batch and are planned once.
const HELPFUL_TO_DISPATCH: [&str; 4] = [
    "SET plan_cache_mode = force_generic_plan",
    "SET enable_hashjoin = off",
    "SET enable_mergejoin = off",
    "SET tcp_user_timeout = '10s'",
];

fn establish(url: &str, required: &str, purpose: Purpose) -> Result<PgConnection> {
    let mut connection = PgConnection::establish(url).map_err(|error| not_connected(&error.to_string()))?;
    connection.batch_execute(required).map_err(|error| from_diesel(error).0)?;
    let for_dispatch = HELPFUL_TO_DISPATCH.iter().filter(|_| purpose == Purpose::Dispatch);
    for setting in HELPFUL.iter().chain(for_dispatch) {
        if let Err(error) = connection.batch_execute(setting) {
            tracing::debug!(setting, %error, "the database does not know a setting");
        }
    }
    ask_for_english(&mut connection)?;
    Ok(connection)
}

/// Why there is no connection. Those who cannot read the URL will not read it the next time either.
pub(crate) fn not_connected(message: &str) -> StoreError {
    let unreadable = [
        "invalid URI",
        "invalid connection option",
        "invalid percent-encoded",
        "invalid port number",
        "invalid integer value",
        "in URI",
    ];
    let text = one_line(message);
    match unreadable.iter().any(|part| text.contains(part)) {
        true => StoreError::Config(text),
        false => StoreError::Unavailable(text),
    }
}

/// Errors are told apart by their messages (see `failure`), so these must be PostgreSQL's own. Only a superuser may ask for
/// that, but most servers speak English anyway.
fn ask_for_english(connection: &mut PgConnection) -> Result<()> {
    use diesel::RunQueryDsl;

    #[derive(diesel::QueryableByName)]
    struct Language {
        #[diesel(sql_type = diesel::sql_types::Text)]
        messages: String,
    }
    let query = diesel::sql_query("SELECT current_setting('lc_messages') AS messages");
    let language: Language = query.get_result(connection).map_err(|error| from_diesel(error).0)?;
    let english = ["", "C", "POSIX"].contains(&&*language.messages)
        || language.messages.starts_with("en")
        || language.messages.starts_with("C.");
    if english || connection.batch_execute("SET lc_messages = 'C'").is_ok() {
        return Ok(());
    }
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            lc_messages = %language.messages,
            "the database's messages are not in English, so its errors cannot be told apart: run ALTER ROLE … SET lc_messages = 'C' as a superuser"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_keeps_what_it_says_and_gains_the_rest() {
        let options = OpenOptions::default();
        let url = with_client_settings("postgres://db/millrace?keepalives=0", Purpose::Dispatch, &options);
        assert!(url.starts_with("postgres://db/millrace?keepalives=0&application_name=millrace-dispatch&"), "{url}");
        assert!(url.contains("&tcp_user_timeout=6000") && !url.contains("keepalives=1"), "{url}");
        let bare = with_client_settings("postgres://db/millrace", Purpose::People, &options);
        assert!(bare.starts_with("postgres://db/millrace?application_name=millrace-people&"), "{bare}");
    }

    #[test]
    fn a_url_that_cannot_be_read_is_told_from_a_server_that_is_not_there() {
        let options = OpenOptions::default();
        let open =
            |url: &str| Manager::new(url, Purpose::Dispatch, &options, Arc::default(), Arc::default()).connect().err();
        let unreadable = open("postgres://127.0.0.1:port/millrace");
        assert!(matches!(unreadable, Some(StoreError::Config(_))), "{unreadable:?}");
        let unknown = open("postgres://127.0.0.1:1/millrace?colour=blue");
        assert!(matches!(unknown, Some(StoreError::Config(_))), "{unknown:?}");
        let nobody = open("postgres://127.0.0.1:1/millrace");
        assert!(matches!(nobody, Some(StoreError::Unavailable(_))), "{nobody:?}");
    }

    #[test]
    fn no_bound_becomes_none() {
        let options = OpenOptions { lock_timeout: Duration::from_micros(3), ..OpenOptions::default() };
        let settings = required_settings(Purpose::Dispatch, Duration::ZERO, &options);
        assert!(settings.contains("statement_timeout = 1;") && settings.contains("lock_timeout = 1;"), "{settings}");
    }
}
