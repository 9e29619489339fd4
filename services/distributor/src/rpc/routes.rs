//! Routes: list, set, delete.

use millrace_core::{id::is_name, route::Route};
use millrace_proto::distributor::v1 as wire;
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, RouteResult};

use super::tasks::{key, page_size};
use crate::{shared::Shared, spec};

const DEFAULT_ORDER: i32 = 1000;
const MAX_ORDER: i32 = 1_000_000;

pub(super) async fn list(shared: &Shared, request: wire::ListRoutesRequest) -> Result<wire::ListRoutesResponse, Fault> {
    let size = page_size(request.page_size, 100)? as usize;
    let table = shared.routing.refresh(shared).await?;
    let routes = table.routes.routes();
    // The token is the name of the last route of the page before.
    let start = match request.page_token.as_str() {
        "" => 0,
        token => match routes.iter().position(|route| route.name == token) {
            Some(index) => index + 1,
            None => {
                return Err(Fault::invalid("page_token", "is not one that this list returned, or its route is gone"));
            }
        },
    };
    let page = &routes[start..routes.len().min(start + size)];
    let more = start + page.len() < routes.len();
    Ok(wire::ListRoutesResponse {
        routes: page.iter().cloned().map(to_wire).collect(),
        next_page_token: page.last().filter(|_| more).map(|route| route.name.clone()).unwrap_or_default(),
        version: table.routes.version(),
    })
}

pub(super) async fn set(shared: &Shared, request: wire::SetRouteRequest) -> Result<wire::SetRouteResponse, Fault> {
    let key = key("SetRoute", &request.request_id)?;
    let route = from_wire(request.route.ok_or_else(|| Fault::invalid("route", "is required"))?)?;
    let audit = Audit {
        action: "SetRoute".into(),
        subject: route.name.clone(),
        detail: format!("{} {} → {}", route.order, route.executor, route.queue),
    };
    let stored = route.clone();
    let result = shared
        .write(move |store| {
            let result = store.set_route(&stored, key)?;
            if result == RouteResult::Done {
                store.audit(&audit)?;
            }
            Ok(result)
        })
        .await?;
    match result {
        RouteResult::NoSuchQueue => Err(Fault::precondition(
            "NO_SUCH_QUEUE",
            format!("there is no queue {} that takes tasks; create it first", route.queue),
        )),
        RouteResult::Done | RouteResult::NotFound => {
            shared.routing.refresh(shared).await?;
            Ok(wire::SetRouteResponse { route: Some(to_wire(route)) })
        }
    }
}

pub(super) async fn delete(
    shared: &Shared,
    request: wire::DeleteRouteRequest,
) -> Result<wire::DeleteRouteResponse, Fault> {
    let key = key("DeleteRoute", &request.request_id)?;
    let name = request.name;
    if !is_name(&name) {
        return Err(Fault::invalid("name", "must be the name of a route"));
    }
    let audit = Audit { action: "DeleteRoute".into(), subject: name.clone(), detail: String::new() };
    let deleted = name.clone();
    let result = shared
        .write(move |store| {
            let result = store.delete_route(&deleted, key)?;
            if result == RouteResult::Done {
                store.audit(&audit)?;
            }
            Ok(result)
        })
        .await?;
    match result {
        RouteResult::Done => {
            shared.routing.refresh(shared).await?;
            Ok(wire::DeleteRouteResponse {})
        }
        RouteResult::NotFound | RouteResult::NoSuchQueue => {
            Err(Fault::not_found("NO_SUCH_ROUTE", format!("there is no route {name}")))
        }
    }
}

fn from_wire(route: wire::Route) -> Result<Route, Fault> {
    let mut broken = Violations::new();
    let rule = "must be 1 to 63 characters of [a-z0-9._-], starting with a letter or a digit";
    let order = route.order.unwrap_or(DEFAULT_ORDER);
    broken.require(is_name(&route.name), "route.name", rule);
    broken.require(is_name(&route.queue), "route.queue", rule);
    broken.require((0..=MAX_ORDER).contains(&order), "route.order", format!("must lie between 0 and {MAX_ORDER}"));
    for (field, value) in [
        ("route.executor", &route.executor),
        ("route.resource_class", &route.resource_class),
        ("route.tenant", &route.tenant),
    ] {
        broken.require(value.is_empty() || is_name(value), field, rule);
    }
    spec::labels(&mut broken, "route.labels", &route.labels);
    broken.finish()?;
    Ok(Route {
        name: route.name,
        order,
        executor: route.executor,
        resource_class: route.resource_class,
        tenant: route.tenant,
        labels: route.labels,
        queue: route.queue,
    })
}

fn to_wire(route: Route) -> wire::Route {
    wire::Route {
        name: route.name,
        order: Some(route.order),
        executor: route.executor,
        resource_class: route.resource_class,
        tenant: route.tenant,
        labels: route.labels,
        queue: route.queue,
    }
}
