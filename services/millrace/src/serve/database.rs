//! The database of a process: its flags, and how it is opened.

use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::config::duration;
use millrace_runtime::shutdown::Shutdown;
use millrace_store::{OpenOptions, Reader, Store, StoreError};
use tokio::net::TcpListener;

use crate::client::Backoff;
use crate::exit::Failure;

/// Bounds on what a process asks of its database.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Database")]
pub(crate) struct DatabaseArgs {
    /// Connections for submit, claim, complete and the background loops.
    #[arg(long, env = "MILLRACE_DATABASE_CONNECTIONS", value_name = "COUNT", default_value_t = 8, value_parser = some())]
    database_connections: u32,
    /// Connections for what people read; they never take those above.
    #[arg(long, env = "MILLRACE_DATABASE_READ_CONNECTIONS", value_name = "COUNT", default_value_t = 4, value_parser = some())]
    database_read_connections: u32,
    /// The longest that one statement may take.
    #[arg(long, env = "MILLRACE_STATEMENT_TIMEOUT", value_name = "TIME", default_value = "5s", value_parser = duration)]
    statement_timeout: Duration,
    /// The longest that one read by people may take.
    #[arg(long, env = "MILLRACE_READ_TIMEOUT", value_name = "TIME", default_value = "3s", value_parser = duration)]
    read_timeout: Duration,
    /// The longest wait for a lock.
    #[arg(long, env = "MILLRACE_LOCK_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = duration)]
    lock_timeout: Duration,
    /// The longest wait for a connection.
    #[arg(long, env = "MILLRACE_POOL_TIMEOUT", value_name = "TIME", default_value = "3s", value_parser = duration)]
    pool_timeout: Duration,
}

/// A pool has at least one connection, and not so many that one process takes what a server has.
fn some() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1000)
}

impl DatabaseArgs {
    /// Whether the limits leave the database any time. To PostgreSQL zero means no limit, which is never meant.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let limits = [
            ("statement-timeout", self.statement_timeout),
            ("read-timeout", self.read_timeout),
            ("lock-timeout", self.lock_timeout),
            ("pool-timeout", self.pool_timeout),
        ];
        match limits.into_iter().find(|(_, limit)| limit.as_millis() == 0) {
            Some((flag, _)) => Err(Failure::Usage(format!("--{flag} must be at least 1ms"))),
            None => Ok(()),
        }
    }

    /// The same as the store takes them, with how this build reads.
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            dispatch_connections: self.database_connections,
            read_connections: self.database_read_connections,
            statement_timeout: self.statement_timeout,
            read_timeout: self.read_timeout,
            lock_timeout: self.lock_timeout,
            connect_timeout: self.pool_timeout,
            reader: Reader { build: crate::version::build(), spec: millrace_distributor::read_foreign },
            ..OpenOptions::default()
        }
    }
}

/// Whether a URL names a database that a build can open.
pub(super) fn check_url(url: &str) -> Result<(), Failure> {
    let schemes = ["postgres://", "postgresql://", "sqlite:"];
    match schemes.iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty())) {
        true => Ok(()),
        false => {
            Err(Failure::Usage(format!("--database-url: `{}` is neither postgres://… nor sqlite:PATH", redacted(url))))
        }
    }
}

/// Opens the database, for as long as it takes: a service that starts during an outage is there when the outage ends.
/// None when it was told to stop first. Meanwhile connections are closed as they come, so that clients see at once that
/// nobody serves.
///
/// A database that is there and does not fit this build will not fit it later either: that ends the process.
pub(crate) async fn open(
    url: &str,
    args: &DatabaseArgs,
    listener: &TcpListener,
    shutdown: &Shutdown,
) -> Result<Option<Arc<dyn Store>>, Failure> {
    let mut backoff = Backoff::default();
    let mut said = false;
    loop {
        let (owned, options) = (url.to_owned(), args.options());
        let attempt = async {
            let opened = tokio::task::spawn_blocking(move || millrace_store::open(&owned, &options)).await;
            let error = match opened {
                Ok(Ok(store)) => return Ok(Some(store)),
                Ok(Err(error)) if error.is_transient() => error,
                Ok(Err(error)) => return Err(store_failure(&error, url)),
                Err(error) => return Err(Failure::Request(format!("opening the database failed: {error}"))),
            };
            if !said {
                tracing::warn!(%error, database = %redacted(url), "the database does not answer; trying on");
                said = true;
            }
            tokio::time::sleep(backoff.next(None).unwrap_or(Duration::from_secs(1))).await;
            Ok(None)
        };
        tokio::select! {
            opened = attempt => if let Some(store) = opened? { return Ok(Some(store)) },
            () = turn_away(listener) => {}
            () = shutdown.draining() => return Ok(None),
        }
    }
}

/// Closes every connection as soon as it comes. Does not end.
async fn turn_away(listener: &TcpListener) {
    loop {
        if listener.accept().await.is_err() {
            // Out of descriptors, for instance: accepting again at once would only spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What an error of the store means to whoever started the command.
pub(crate) fn store_failure(error: &StoreError, url: &str) -> Failure {
    let url = redacted(url);
    match error {
        StoreError::Config(why) => Failure::Usage(format!("--database-url: {why}")),
        StoreError::Schema(why) => Failure::Usage(why.clone()),
        error if error.is_transient() => Failure::Unavailable(format!("{url}: {error}")),
        error => Failure::Request(format!("{url}: {error}")),
    }
}

/// A database's URL without its password, for messages and logs.
pub(crate) fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // The last `@` before the path ends the user's part: a password may hold one itself.
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let user_part = rest[..end].rfind('@').map_or("", |at| &rest[..at]);
    let rest = &rest[user_part.len()..];
    let user = user_part.split_once(':').map_or(user_part.to_owned(), |(user, _)| format!("{user}:***"));
    let (base, query) = rest.split_once('?').unwrap_or((rest, ""));
    let hides_nothing = !query.contains("password");
    match (query.is_empty(), hides_nothing) {
        (true, _) => format!("{scheme}://{user}{base}"),
        (false, true) => format!("{scheme}://{user}{base}?{query}"),
        (false, false) => format!("{scheme}://{user}{base}?***"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        for (url, shown) in [
            ("postgres://me:secret@db:5432/millrace", "postgres://me:***@db:5432/millrace"),
            ("postgres://me:s@cret@db/millrace?sslmode=disable", "postgres://me:***@db/millrace?sslmode=disable"),
            ("postgres://me@db/millrace", "postgres://me@db/millrace"),
            ("postgres:///millrace?host=/run&password=secret", "postgres:///millrace?***"),
            ("postgres://db", "postgres://db"),
            ("sqlite:.millrace/millrace.db", "sqlite:.millrace/millrace.db"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }

    #[test]
    fn errors_of_the_store_map_to_exit_codes() {
        let code = |error| store_failure(&error, "sqlite:x").code();
        assert_eq!(code(StoreError::Config("x".into())), 64);
        assert_eq!(code(StoreError::Schema("x".into())), 64);
        assert_eq!(code(StoreError::Unavailable("x".into())), 69);
        assert_eq!(code(StoreError::Timeout("x".into())), 69);
        assert_eq!(code(StoreError::Internal("x".into())), 1);
    }
}
