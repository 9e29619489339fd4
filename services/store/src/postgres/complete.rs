//! Ending tasks.

use std::collections::HashSet;

use millrace_core::{foreign, held::LeaseRef, task::State};

use super::{
    foreign::{end_live, locked},
    moves::Ending,
    pool::Pool,
    rows::{lease_ref, now_us, storable},
    sql::{Statement, sql, unless},
};
use crate::{Completed, Completion, Outcome, Result, StoreError, batch::bisect};

pub(super) fn complete(pool: &Pool, batch: &[Completion]) -> Result<Vec<Completed>> {
    // What a completion brings is made storable before it is sent, so one that is refused is refused for its row.
    let refuse = |completion: &Completion, error: StoreError| {
        tracing::warn!(task = %completion.lease.task, %error, "a row cannot be moved as it is; its task ends column by column");
        complete_foreign(pool, completion)
    };
    bisect(batch, |part| complete_part(pool, part), refuse)
}

/// Ends one task whose row another release has written so that it does not fit the finished ones.
fn complete_foreign(pool: &Pool, completion: &Completion) -> Result<Completed> {
    let completion = completion.clone();
    pool.transaction(move |conn| {
        let lease = completion.lease;
        let Some(task) = locked(conn, &[lease.task])?.pop() else { return Ok(Completed::Stale) };
        let is = |name: &str, number: i64| foreign::integer::<i64>(&task.row, name) == Ok(number);
        if !is("attempt", lease.attempt.into()) || !is("token", lease.token.0) {
            return Ok(Completed::Stale);
        }
        let cancelling = is("state", State::Cancelling as i64) && completion.state != State::Succeeded;
        let ending = Ending {
            state: if cancelling { State::Cancelled } else { completion.state },
            outcome: completion.outcome.clone(),
            failures: completion.failures,
            losses: completion.losses,
        };
        end_live(conn, &task, &ending)?;
        Ok(Completed::Recorded)
    })
}

fn complete_part(pool: &Pool, part: &[Completion]) -> Result<Vec<Completed>> {
    if part.is_empty() {
        return Ok(Vec::new());
    }
    let statement = bound(part);
    let leases: Vec<LeaseRef> = part.iter().map(|completion| completion.lease).collect();
    pool.write(move |conn| {
        let mut recorded: HashSet<LeaseRef> = conn.rows(statement, lease_ref)?.into_iter().collect();
        let missing = || leases.iter().filter(|lease| !recorded.contains(lease));
        if missing().next().is_some() {
            // Recorded by an earlier call, or stale.
            let before = with_leases(sql(RECORDED_BEFORE), missing());
            recorded.extend(conn.rows(before, lease_ref)?);
        }
        let answer = |lease| match recorded.contains(lease) {
            true => Completed::Recorded,
            false => Completed::Stale,
        };
        Ok(leases.iter().map(answer).collect())
    })
}

/// The row is found by its key and moves by one statement. A task whose cancellation came between the decision and now ends
/// as CANCELLED, unless it succeeded; that is what the state machine says of every such end.
///
/// What the completions bring is taken from the arrays by the number of the item, so that the deletion carries no more than that number
/// along. What most completions do not have is sent as NULL.
const COMPLETE: &str = concat!(
    "WITH clock AS MATERIALIZED (
        SELECT now_us, ((now_us / c.slice_us) % 8)::smallint AS slot FROM cluster c, (SELECT ", now_us!(), " AS now_us) AS now
    ), ended AS (
        DELETE FROM tasks t USING unnest($1::uuid[], $2::integer[], $3::bigint[]) WITH ORDINALITY AS item(id, attempt, token, n)
        WHERE t.id = item.id AND t.attempt = item.attempt AND t.token = item.token AND t.state IN (3, 4, 5)
        RETURNING t.id, t.tenant, t.queue, t.state, t.rank, t.executor, t.resource_class, t.concurrency_key, t.exclusive,
            t.timeout_ms, t.attempt, t.token, t.session_id, t.failures, t.losses, t.unsupported, t.created_at_us, t.expires_at_us,
            t.dispatched_at_us, t.started_at_us, t.trace_context, t.format, t.min_reader, t.spec, item.n::integer AS n
    )
    INSERT INTO finished_tasks AS f (slot, finished_at_us, id, tenant, queue, state, rank, executor, resource_class,
        concurrency_key, exclusive, timeout_ms, attempt, token, session_id, unsupported, created_at_us, expires_at_us,
        dispatched_at_us, trace_context, format, min_reader, spec, failures, losses, outcome, exit_code, signal, message,
        output_tail, output_bytes, started_at_us, ended_at_us)
    SELECT (SELECT slot FROM clock), (SELECT now_us FROM clock), id, tenant, queue,
        CASE WHEN state = 5 AND ($4::smallint[])[n] <> 6 THEN 8 ELSE ($4)[n] END, rank, executor, resource_class,
        concurrency_key, exclusive, timeout_ms, attempt, token, session_id, unsupported, created_at_us, expires_at_us,
        dispatched_at_us, trace_context, format, min_reader, spec, greatest(failures, ($5::integer[])[n]),
        greatest(losses, ($6::integer[])[n]), ($7::smallint[])[n], ($8::integer[])[n], ($9::integer[])[n],
        coalesce(($10::text[])[n], ''), coalesce(($11::bytea[])[n], ''), coalesce(($12::bigint[])[n], 0),
        coalesce(($13::bigint[])[n], started_at_us), ($14::bigint[])[n]
    FROM ended
    RETURNING f.id, f.attempt, f.token"
);

const RECORDED_BEFORE: &str =
    "SELECT t.id, t.attempt, t.token FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) AS item(id, attempt, token)
    JOIN finished_tasks t ON t.id = item.id AND t.attempt = item.attempt AND t.token = item.token";

fn bound(part: &[Completion]) -> Statement {
    let mut order: Vec<&Completion> = part.iter().collect();
    order.sort_by_key(|completion| completion.lease);
    let items = || order.iter().copied();
    debug_assert!(items().all(|item| item.state.is_terminal() && item.state != State::Expired));
    let statement = with_leases(sql(COMPLETE), items().map(|item| &item.lease))
        .array(items().map(|item| item.state as i16))
        .array(items().map(|item| unless(0, item.failures)))
        .array(items().map(|item| unless(0, item.losses)));
    with_outcomes(statement, &items().map(|item| &item.outcome).collect::<Vec<_>>())
}

/// Binds task, attempt and token of each lease as three arrays.
pub(super) fn with_leases<'a>(statement: Statement, leases: impl Iterator<Item = &'a LeaseRef> + Clone) -> Statement {
    statement
        .array(leases.clone().map(|lease| lease.task.0))
        .array(leases.clone().map(|lease| lease.attempt))
        .array(leases.map(|lease| lease.token.0))
}

/// Binds the outcomes as eight arrays. An empty message, an empty tail and a length of zero are sent as NULL.
pub(super) fn with_outcomes(statement: Statement, outcomes: &[&Outcome]) -> Statement {
    let all = || outcomes.iter().copied();
    statement
        .array(all().map(|outcome| outcome.kind as i16))
        .array(all().map(|outcome| outcome.exit_code))
        .array(all().map(|outcome| outcome.signal))
        .array(all().map(|outcome| unless(String::new(), storable(&outcome.message))))
        .array(all().map(|outcome| unless(&[][..], outcome.output_tail.as_slice())))
        .array(all().map(|outcome| unless(0, outcome.output_bytes)))
        .array(all().map(|outcome| outcome.started_at_us))
        .array(all().map(|outcome| outcome.ended_at_us))
}
