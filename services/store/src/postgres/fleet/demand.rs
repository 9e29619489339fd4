//! What queues ask for.
//!
//! Whatever the tables hold, a call looks at no more than [`COUNT_BOUND`] waiting and held tasks and twice [`LOOKED_AT`] others, through
//! indexes and in their order.

use std::{collections::HashMap, time::Duration};

use millrace_core::time::micros;

use super::super::{
    conn::Conn,
    pool::Pool,
    rows::{now_us, number},
    sql::{Statement, sql},
};
use crate::{
    COUNT_BOUND, QueueDemand, Result,
    books::{LONGEST_RUN_US, LOOKED_AT, RAN, RUN_TIMES, first_id_at, span_us},
};

pub(super) fn demand(people: &Pool, queues: &[String], window: Duration) -> Result<Vec<QueueDemand>> {
    let (queues, window_us) = (queues.to_vec(), micros(window));
    if queues.is_empty() {
        return Ok(Vec::new());
    }
    people.read(move |conn| {
        let now_us = conn.one(sql(concat!("SELECT ", now_us!())), number)?;
        let mut demand = conn.readable_rows(waits(&queues), |row| {
            Ok(QueueDemand {
                queue: row.get()?,
                paused: row.get()?,
                waiting: row.get()?,
                running: row.get()?,
                oldest_ready_at_us: row.get_nullable()?,
                arrivals: 0,
                arrivals_over_us: window_us,
                run_time_us: None,
                now_us,
            })
        })?;
        let (arrivals, arrivals_over_us) = arrivals(conn, &queues, now_us, window_us)?;
        let run_times: HashMap<String, i64> =
            conn.readable_rows(run_times(&queues), |row| Ok((row.get()?, row.get()?)))?.into_iter().collect();
        for of in &mut demand {
            of.arrivals = arrivals.get(&of.queue).copied().unwrap_or(0);
            of.arrivals_over_us = arrivals_over_us;
            of.run_time_us = run_times.get(&of.queue).copied();
        }
        Ok(demand)
    })
}

/// What waits is counted by the queue's index; what is held has no index by queue and is counted over all of them at once.
fn waits(queues: &[String]) -> Statement {
    let statement = sql("WITH held AS MATERIALIZED (
            SELECT queue, count(*) AS number FROM (SELECT queue FROM tasks WHERE session_id IS NOT NULL LIMIT $1) AS few GROUP BY queue
        )
        SELECT q.name, q.paused, queued.number, coalesce(held.number, 0), (
            WITH RECURSIVE lane AS (
                (SELECT t.tenant, t.rank, t.ready_at_us FROM tasks t WHERE t.queue = q.name AND t.ready_at_us IS NOT NULL
                 ORDER BY t.tenant, t.rank, t.ready_at_us LIMIT 1)
                UNION ALL
                SELECT next.* FROM lane CROSS JOIN LATERAL (
                    SELECT t.tenant, t.rank, t.ready_at_us FROM tasks t
                    WHERE t.queue = q.name AND t.ready_at_us IS NOT NULL AND (t.tenant, t.rank) > (lane.tenant, lane.rank)
                    ORDER BY t.tenant, t.rank, t.ready_at_us LIMIT 1) AS next
            )
            SELECT min(first.ready_at_us) FROM (SELECT ready_at_us FROM lane LIMIT $1) AS first
        )
        FROM queues q
        CROSS JOIN LATERAL (
            SELECT count(*) AS number FROM (
                SELECT 1 FROM tasks t WHERE t.queue = q.name AND t.ready_at_us IS NOT NULL LIMIT $1) AS few
        ) AS queued
        LEFT JOIN held ON held.queue = q.name
        WHERE q.name = ANY($2::text[])
        ORDER BY q.name");
    statement.bind(COUNT_BOUND).array(queues)
}

/// How many tasks came into each queue, and over which span. By the moments in their ids, so that the primary keys find them; each table
/// by itself in the order of its key, because over both at once all rows would be sorted.
fn arrivals(
    conn: &mut Conn<'_>,
    queues: &[String],
    now_us: i64,
    window_us: i64,
) -> Result<(HashMap<String, i64>, i64)> {
    let statement = sql("WITH looked_at AS MATERIALIZED (
            (SELECT id, queue FROM tasks WHERE id >= $1 ORDER BY id DESC LIMIT $2)
            UNION ALL
            (SELECT id, queue FROM finished_tasks WHERE id >= $1 ORDER BY id DESC LIMIT $2)
            ORDER BY id DESC LIMIT $2
        )
        SELECT NULL::text, count(*), (SELECT id FROM looked_at ORDER BY id LIMIT 1) FROM looked_at
        UNION ALL
        SELECT queue, count(*), NULL FROM looked_at WHERE queue = ANY($3::text[]) GROUP BY queue");
    let first = first_id_at(now_us.saturating_sub(window_us));
    let rows = conn.readable_rows(statement.bind(first).bind(LOOKED_AT).array(queues), |row| {
        Ok((row.get_nullable::<String>()?, row.get::<i64>()?, row.get_nullable()?))
    })?;
    let (mut arrivals, mut over_us) = (HashMap::new(), window_us);
    for (queue, count, oldest) in rows {
        match queue {
            Some(queue) => drop(arrivals.insert(queue, count)),
            None => over_us = span_us(now_us, window_us, count, oldest),
        }
    }
    Ok((arrivals, over_us))
}

/// How long the last tasks of each queue ran, of those that are among the last of all.
fn run_times(queues: &[String]) -> Statement {
    let statement = sql("WITH looked_at AS MATERIALIZED (
            SELECT id, queue, state, started_at_us, ended_at_us FROM finished_tasks ORDER BY id DESC LIMIT $1
        ), ran AS (
            SELECT queue, least(ended_at_us::float8 - started_at_us::float8, $2::bigint::float8) AS run_us,
                row_number() OVER (PARTITION BY queue ORDER BY id DESC) AS place
            FROM looked_at
            WHERE queue = ANY($3::text[]) AND state = ANY($4::smallint[]) AND ended_at_us >= started_at_us
        )
        SELECT queue, trunc(avg(run_us))::bigint FROM ran WHERE place <= $5 GROUP BY queue");
    statement.bind(LOOKED_AT).bind(LONGEST_RUN_US).array(queues).array(RAN).bind(RUN_TIMES)
}
