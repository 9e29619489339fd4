//! Who matches which queue (R5).

use diesel::prelude::*;
use millrace_core::id::MemberId;

use super::{
    cluster::{plain, served},
    failure::Outcome,
    reading::{all_rows, good_row},
    schema::{Key, queue_gates, queue_leases, queues},
    statement::sql,
};
use crate::types::OwnerRow;

pub(super) fn owners(connection: &mut SqliteConnection) -> Outcome<Vec<OwnerRow>> {
    let served_ms = served(connection)?.served_ms;
    let query = queues::table
        .inner_join(queue_gates::table.on(queue_gates::queue.eq(queues::name)))
        .left_join(queue_leases::table.on(queue_leases::queue.eq(queues::name)))
        .order(queues::name)
        .select((
            queues::name,
            queue_gates::epoch,
            queue_leases::owner.nullable(),
            queue_leases::endpoint.nullable(),
            queue_leases::expires_served_ms.nullable(),
        ));
    let rows = all_rows(connection, query, |row| {
        let (queue, epoch) = (row.text("queue")?, row.integer("epoch")?);
        let owner = row.optional_uuid("owner")?.map(MemberId);
        let endpoint = row.optional_text("endpoint")?.unwrap_or_default();
        let holds = row.optional_integer("expires_served_ms")?.is_some_and(|moment| moment >= served_ms);
        Ok(OwnerRow { queue, epoch, owner: owner.filter(|_| holds).map(|owner| (owner, endpoint)) })
    })?;
    Ok(rows)
}

/// The lease of a queue as it stands.
struct Lease {
    owner: Option<MemberId>,
    epoch: i64,
    expires_served_ms: i64,
}

pub(super) fn own_queue(
    connection: &mut SqliteConnection,
    queue: &str,
    owner: MemberId,
    endpoint: &str,
    ttl_ms: i64,
) -> Outcome<Option<i64>> {
    plain(&[endpoint])?;
    let served_ms = served(connection)?.served_ms;
    let lease = lease(connection, queue)?;
    let held = lease.filter(|lease| lease.expires_served_ms >= served_ms);
    let epoch = match held.and_then(|lease| lease.owner.map(|owner| (owner, lease.epoch))) {
        Some((other, _)) if other != owner => return Ok(None),
        Some((_, epoch)) => Some(epoch),
        None => take(connection, queue)?,
    };
    let Some(epoch) = epoch else { return Ok(None) };
    diesel::replace_into(queue_leases::table)
        .values((
            queue_leases::queue.eq(queue),
            queue_leases::owner.eq(Key(owner.0)),
            queue_leases::endpoint.eq(endpoint),
            queue_leases::epoch.eq(epoch),
            queue_leases::expires_served_ms.eq(served_ms.saturating_add(ttl_ms)),
        ))
        .execute(connection)?;
    Ok(Some(epoch))
}

fn lease(connection: &mut SqliteConnection, queue: &str) -> Outcome<Option<Lease>> {
    let query = queue_leases::table.filter(queue_leases::queue.eq(queue)).select((
        queue_leases::owner,
        queue_leases::epoch,
        queue_leases::expires_served_ms,
    ));
    // A lease that cannot be read is nobody's: the new epoch keeps out whoever had it.
    Ok(good_row(connection, query, |row| {
        Ok(Lease {
            owner: row.optional_uuid("owner")?.map(MemberId),
            epoch: row.integer("epoch")?,
            expires_served_ms: row.integer("expires_served_ms")?,
        })
    })?)
}

/// Raises the epoch of an existing queue's gate.
fn take(connection: &mut SqliteConnection, queue: &str) -> Outcome<Option<i64>> {
    let raised = sql("UPDATE queue_gates SET epoch = epoch + 1 \
                      WHERE queue = ? AND queue IN (SELECT name FROM queues)")
    .text(queue)
    .execute(connection)?;
    if raised == 0 {
        return Ok(None);
    }
    let query = queue_gates::table.filter(queue_gates::queue.eq(queue)).select(queue_gates::epoch);
    Ok(good_row(connection, query, |row| row.integer("epoch"))?)
}

pub(super) fn renew_queues(
    connection: &mut SqliteConnection,
    owner: MemberId,
    owned: &[(String, i64)],
    ttl_ms: i64,
) -> Outcome<Vec<String>> {
    let expires_served_ms = served(connection)?.served_ms.saturating_add(ttl_ms);
    let mut lost = Vec::new();
    for (queue, epoch) in owned {
        let renewed = diesel::update(queue_leases::table)
            .filter(queue_leases::queue.eq(queue))
            .filter(queue_leases::owner.eq(Key(owner.0)).and(queue_leases::epoch.eq(epoch)))
            .set(queue_leases::expires_served_ms.eq(expires_served_ms))
            .execute(connection)?;
        if renewed == 0 {
            lost.push(queue.clone());
        }
    }
    Ok(lost)
}

pub(super) fn release_queues(connection: &mut SqliteConnection, owner: MemberId, owned: &[String]) -> Outcome<()> {
    for queue in owned {
        diesel::update(queue_leases::table)
            .filter(queue_leases::queue.eq(queue).and(queue_leases::owner.eq(Key(owner.0))))
            .set(queue_leases::owner.eq(None::<Key>))
            .execute(connection)?;
    }
    Ok(())
}

/// Takes every queue from its owner.
pub(super) fn forget_owners(connection: &mut SqliteConnection) -> Outcome<()> {
    diesel::update(queue_leases::table).set(queue_leases::owner.eq(None::<Key>)).execute(connection)?;
    Ok(())
}
