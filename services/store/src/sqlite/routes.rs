//! Routes.

use diesel::{prelude::*, upsert::excluded};
use millrace_core::route::Route;
use uuid::Uuid;

use super::{
    cluster::{cluster, plain, raise_route_version, remember, repeated},
    failure::Outcome,
    queues::{queues, takes_tasks},
    reading::all_rows,
    schema::routes,
    values::map_json,
};
use crate::types::{RouteResult, Routing};

pub(super) fn routing(connection: &mut SqliteConnection) -> Outcome<Routing> {
    let query = routes::table.order(routes::name).select((
        routes::name,
        routes::ord,
        routes::executor,
        routes::resource_class,
        routes::tenant,
        routes::labels,
        routes::queue,
    ));
    let routes = all_rows(connection, query, |row| {
        Ok(Route {
            name: row.text("name")?,
            order: row.narrow("ord")?,
            executor: row.text("executor")?,
            resource_class: row.text("resource_class")?,
            tenant: row.text("tenant")?,
            labels: row.map("labels")?,
            queue: row.text("queue")?,
        })
    })?;
    Ok(Routing { version: cluster(connection)?.route_version, routes, queues: queues(connection)? })
}

pub(super) fn set_route(
    connection: &mut SqliteConnection,
    now: i64,
    route: &Route,
    request: Option<Uuid>,
) -> Outcome<RouteResult> {
    plain(&[&route.name, &route.executor, &route.resource_class, &route.tenant, &route.queue])?;
    plain(&route.labels.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]).collect::<Vec<_>>())?;
    if repeated(connection, request)? {
        return Ok(RouteResult::Done);
    }
    if !takes_tasks(connection, &route.queue)? {
        return Ok(RouteResult::NoSuchQueue);
    }
    diesel::insert_into(routes::table)
        .values((
            routes::name.eq(&route.name),
            routes::ord.eq(route.order),
            routes::executor.eq(&route.executor),
            routes::resource_class.eq(&route.resource_class),
            routes::tenant.eq(&route.tenant),
            routes::labels.eq(map_json(&route.labels)),
            routes::queue.eq(&route.queue),
        ))
        .on_conflict(routes::name)
        .do_update()
        .set((
            routes::ord.eq(excluded(routes::ord)),
            routes::executor.eq(excluded(routes::executor)),
            routes::resource_class.eq(excluded(routes::resource_class)),
            routes::tenant.eq(excluded(routes::tenant)),
            routes::labels.eq(excluded(routes::labels)),
            routes::queue.eq(excluded(routes::queue)),
        ))
        .execute(connection)?;
    raise_route_version(connection)?;
    remember(connection, now, request, None)?;
    Ok(RouteResult::Done)
}

pub(super) fn delete_route(
    connection: &mut SqliteConnection,
    now: i64,
    name: &str,
    request: Option<Uuid>,
) -> Outcome<RouteResult> {
    if repeated(connection, request)? {
        return Ok(RouteResult::Done);
    }
    if diesel::delete(routes::table.filter(routes::name.eq(name))).execute(connection)? == 0 {
        return Ok(RouteResult::NotFound);
    }
    raise_route_version(connection)?;
    remember(connection, now, request, None)?;
    Ok(RouteResult::Done)
}
