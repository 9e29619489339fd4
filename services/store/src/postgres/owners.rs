//! Who matches which queue (R5).

use std::collections::HashSet;

use millrace_core::id::MemberId;

use super::{
    pool::Pool,
    rows::{number, text},
    sql::sql,
};
use crate::{OwnerRow, Result};

pub(super) fn list(pool: &Pool) -> Result<Vec<OwnerRow>> {
    let statement =
        sql("SELECT q.name, g.epoch, CASE WHEN l.expires_served_ms >= c.served_ms THEN l.owner END, l.endpoint
        FROM queues q JOIN queue_gates g ON g.queue = q.name CROSS JOIN served_clock c
        LEFT JOIN queue_leases l ON l.queue = q.name AND l.epoch = g.epoch
        ORDER BY q.name");
    pool.read(move |conn| {
        conn.readable_rows(statement, |row| {
            let (queue, epoch) = (row.get()?, row.get()?);
            let owner = row.get_nullable()?.map(MemberId);
            let endpoint: Option<String> = row.get_nullable()?;
            Ok(OwnerRow { queue, epoch, owner: owner.zip(endpoint) })
        })
    })
}

struct Lease {
    mine: bool,
    lasts: bool,
    epoch: i64,
}

pub(super) fn own(pool: &Pool, queue: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Result<Option<i64>> {
    let (queue, endpoint) = (queue.to_owned(), endpoint.to_owned());
    pool.transaction(move |conn| {
        let queue = queue.as_str();
        // Locked, so that the queue is not deleted meanwhile.
        if conn.first(sql("SELECT q.name FROM queues q WHERE q.name = $1 FOR KEY SHARE").bind(queue), text)?.is_none() {
            return Ok(None);
        }
        let enter = sql("INSERT INTO queue_leases (queue, owner, endpoint, epoch, expires_served_ms)
            VALUES ($1, NULL, '', 0, -1) ON CONFLICT (queue) DO NOTHING");
        conn.execute(enter.bind(queue))?;
        let lock = sql(
            "SELECT coalesce(l.owner = $1, FALSE), l.owner IS NOT NULL AND l.expires_served_ms >= c.served_ms, l.epoch
            FROM queue_leases l CROSS JOIN served_clock c WHERE l.queue = $2 FOR UPDATE OF l",
        );
        let lease = conn.one(lock.bind(owner.0).bind(queue), |row| {
            Ok(Lease { mine: row.get()?, lasts: row.get()?, epoch: row.get()? })
        })?;
        let epoch = match lease {
            Lease { mine: true, lasts: true, epoch } => epoch,
            Lease { lasts: true, .. } => return Ok(None),
            // Waits for claims of the epoch before, which hold the gate FOR SHARE. A claim that comes later sees the new epoch.
            _ => {
                let raise = sql("UPDATE queue_gates g SET epoch = g.epoch + 1 WHERE g.queue = $1 RETURNING g.epoch");
                conn.one(raise.bind(queue), number)?
            }
        };
        let take = sql("UPDATE queue_leases l SET owner = $1, endpoint = $2, epoch = $3,
                expires_served_ms = (SELECT c.served_ms FROM served_clock c) + $4
            WHERE l.queue = $5");
        conn.execute(take.bind(owner.0).bind(endpoint).bind(epoch).bind(ttl_ms).bind(queue))?;
        Ok(Some(epoch))
    })
}

pub(super) fn renew(pool: &Pool, owner: MemberId, queues: &[(String, i64)], ttl_ms: i64) -> Result<Vec<String>> {
    if queues.is_empty() {
        return Ok(Vec::new());
    }
    let mut queues = queues.to_vec();
    queues.sort();
    // A lease that has run out and that nobody has taken goes on: its epoch still stands in the gate.
    let statement = sql("UPDATE queue_leases l SET expires_served_ms = (SELECT c.served_ms FROM served_clock c) + $1
        FROM unnest($2::text[], $3::bigint[]) AS item(queue, epoch)
        WHERE l.queue = item.queue AND l.epoch = item.epoch AND l.owner = $4
        RETURNING l.queue, l.epoch")
    .bind(ttl_ms)
    .array(queues.iter().map(|(queue, _)| queue))
    .array(queues.iter().map(|(_, epoch)| *epoch))
    .bind(owner.0);
    pool.write(move |conn| {
        let renewed: HashSet<(String, i64)> =
            conn.rows(statement, |row| Ok((row.get()?, row.get()?)))?.into_iter().collect();
        Ok(queues.into_iter().filter(|queue| !renewed.contains(queue)).map(|(queue, _)| queue).collect())
    })
}

pub(super) fn release(pool: &Pool, owner: MemberId, queues: &[String]) -> Result<()> {
    if queues.is_empty() {
        return Ok(());
    }
    let mut queues = queues.to_vec();
    queues.sort();
    let statement = sql("UPDATE queue_leases l SET owner = NULL, endpoint = '', expires_served_ms = -1
        FROM unnest($1::text[]) AS item(queue) WHERE l.queue = item.queue AND l.owner = $2")
    .array(queues)
    .bind(owner.0);
    pool.write(move |conn| conn.execute(statement).map(drop))
}
