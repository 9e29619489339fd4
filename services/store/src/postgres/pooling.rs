//! Telling whether a proxy that pools by transaction stands between a process and PostgreSQL.
//!
//! Such a proxy gives each transaction whichever server connection is free, so prepared statements, settings and advisory
//! locks of a session are not there when they are needed. Behind it two statements of one client may run on two servers'
//! processes, which no direct connection and no proxy that pools by session ever does.

use std::{sync::Arc, time::Duration};

use diesel::{Connection, PgConnection};

use super::{conn::Mode, link::Link, pool::not_connected, sql::sql};
use crate::{Result, StoreError};

/// How often the two connections cross each other. One time is enough with a proxy that hands out the connection used last.
const ROUNDS: usize = 5;

/// How long a statement may wait. With one server connection for both sides it would wait for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Describes the proxy's way of pooling when it is one that Millrace cannot work behind; none when the connection is direct
/// or pooled by session.
pub(crate) fn transaction_pooling(url: &str) -> Result<Option<String>> {
    let connect = || {
        let url = url.to_owned();
        let establish = move || PgConnection::establish(&url).map_err(|error| not_connected(&error.to_string()));
        Link::open(establish, PATIENCE, PATIENCE, Arc::default(), Arc::default())
    };
    let (mut ours, mut other) = (connect()?, connect()?);
    for _ in 0..ROUNDS {
        match cross(&mut ours, &mut other) {
            Ok(None) => {}
            Ok(Some(seen)) => return Ok(Some(format!("{seen}: a proxy pools by transaction"))),
            // One side's statement stands prepared where the other side prepares its own.
            Err(StoreError::Internal(text)) if text.contains("prepared statement") => {
                return Ok(Some(format!("{text}: a proxy pools by transaction")));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Runs a statement of ours on either side of a transaction of the other's. Tells what cannot be with connections of their own.
fn cross(ours: &mut Link, other: &mut Link) -> Result<Option<&'static str>> {
    let before = server_process(ours)?;
    // It takes the server connection that has just become free, if that is shared at all, and keeps it.
    command(other, "BEGIN")?;
    let theirs = server_process(other)?;
    match server_process(ours) {
        Ok(after) if after == before && theirs != before => command(other, "ROLLBACK").map(|()| None),
        Ok(_) => Ok(Some("statements of one connection ran in different server processes")),
        Err(StoreError::Timeout(_)) => Ok(Some("a connection waits for another's transaction")),
        Err(error) => Err(error),
    }
}

fn command(link: &mut Link, text: &'static str) -> Result<()> {
    link.run(Mode::Read, None, move |conn| conn.simple(text))
}

fn server_process(link: &mut Link) -> Result<i32> {
    link.run(Mode::Read, None, |conn| conn.one(sql("SELECT pg_backend_pid()"), |row| row.get()))
}
