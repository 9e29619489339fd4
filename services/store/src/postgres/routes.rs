//! Routes, and the version of everything that routing reads.

use millrace_core::route::Route;
use uuid::Uuid;

use super::{
    actions::keep_request,
    conn::Conn,
    pool::Pool,
    rows::{map_json, number, queue, queue_columns, route, text},
    sql::sql,
};
use crate::{Result, RouteResult, Routing};

pub(super) fn routing(pool: &Pool) -> Result<Routing> {
    pool.snapshot(|conn| {
        let version = conn.one(sql("SELECT c.route_version FROM cluster c"), number)?;
        let routes =
            sql("SELECT r.name, r.ord, r.executor, r.resource_class, r.tenant, r.labels, r.queue FROM routes r");
        let queues = sql(concat!(
            "SELECT ",
            queue_columns!(),
            " FROM queues q JOIN queue_gates g ON g.queue = q.name ORDER BY q.name"
        ));
        Ok(Routing { version, routes: conn.readable_rows(routes, route)?, queues: conn.readable_rows(queues, queue)? })
    })
}

/// Tells the replicas that what they route by has changed. The row is the last that a transaction locks.
pub(super) fn raise_version(conn: &mut Conn<'_>) -> Result<()> {
    conn.execute(sql("UPDATE cluster c SET route_version = c.route_version + 1")).map(drop)
}

pub(super) fn set(pool: &Pool, new: &Route, request: Option<Uuid>) -> Result<RouteResult> {
    let new = new.clone();
    pool.transaction(move |conn| {
        // Locked, so that the queue is not deleted meanwhile.
        let open = sql("SELECT q.name FROM queues q WHERE q.name = $1 AND NOT q.draining FOR KEY SHARE")
            .bind(new.queue.as_str());
        let open = conn.first(open, text)?.is_some();
        if !keep_request(conn, request, None)? {
            return Ok(RouteResult::Done);
        }
        if !open {
            conn.undo();
            return Ok(RouteResult::NoSuchQueue);
        }
        let statement = sql("INSERT INTO routes (name, ord, executor, resource_class, tenant, labels, queue)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (name) DO UPDATE SET ord = excluded.ord, executor = excluded.executor,
                resource_class = excluded.resource_class, tenant = excluded.tenant, labels = excluded.labels,
                queue = excluded.queue");
        let statement = statement
            .bind(new.name)
            .bind(new.order)
            .bind(new.executor)
            .bind(new.resource_class)
            .bind(new.tenant)
            .bind(map_json(&new.labels))
            .bind(new.queue);
        conn.execute(statement)?;
        raise_version(conn)?;
        Ok(RouteResult::Done)
    })
}

pub(super) fn delete(pool: &Pool, name: &str, request: Option<Uuid>) -> Result<RouteResult> {
    let delete = sql("DELETE FROM routes r WHERE r.name = $1").bind(name);
    pool.transaction(move |conn| {
        if !keep_request(conn, request, None)? {
            return Ok(RouteResult::Done);
        }
        if conn.execute(delete)? == 0 {
            conn.undo();
            return Ok(RouteResult::NotFound);
        }
        raise_version(conn)?;
        Ok(RouteResult::Done)
    })
}
