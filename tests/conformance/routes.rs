//! Routes, and the version by which replicas agree on them.

use std::collections::BTreeMap;

use millrace_core::route::Route;
use millrace_store::{DeleteMode, QueueChange, RouteResult};

use crate::world::{DEFAULT, World, audit, request};

fn route(name: &str, queue: &str) -> Route {
    Route {
        name: name.into(),
        order: 10,
        executor: "docker".into(),
        resource_class: "gpu.large".into(),
        tenant: "acme".into(),
        labels: BTreeMap::from([("os".into(), "linux \"6\"".into()), ("x".into(), String::new())]),
        queue: queue.into(),
    }
}

/// The routes by name.
fn routes(world: &World) -> BTreeMap<String, Route> {
    let routing = world.routing().expect("reading the routes");
    assert_eq!(routing.version, world.route_version());
    routing.routes.into_iter().map(|route| (route.name.clone(), route)).collect()
}

pub(crate) fn a_new_database_routes_processes_to_the_default_queue(world: &World) {
    let route = routes(world).remove("default").expect("the default route");
    assert_eq!((route.order, route.executor.as_str(), route.queue.as_str()), (1000, "process", DEFAULT));
    assert_eq!((route.resource_class.as_str(), route.tenant.as_str(), route.labels.len()), ("", "", 0));
    let queues = world.routing().expect("reading the routes").queues;
    assert_eq!(queues, world.queues().expect("reading the queues"));
    assert_eq!(queues.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>(), [DEFAULT]);
    assert_eq!((queues[0].epoch, queues[0].draining, &queues[0].pause), (0, false, &None));
}

pub(crate) fn a_route_is_set_replaced_and_deleted(world: &World) {
    let other = world.queue_named("other");
    let first = route("gpu", DEFAULT);
    assert_eq!(world.set_route(&first, None).expect("setting a route"), RouteResult::Done);
    assert_eq!(routes(world)["gpu"], first);
    let second = Route { order: 0, labels: BTreeMap::new(), tenant: String::new(), ..route("gpu", &other) };
    assert_eq!(world.set_route(&second, None).expect("setting a route"), RouteResult::Done);
    assert_eq!((&routes(world)["gpu"], routes(world).len()), (&second, 2));
    assert_eq!(world.delete_route("gpu", None).expect("deleting a route"), RouteResult::Done);
    assert_eq!(world.delete_route("gpu", None).expect("deleting a route"), RouteResult::NotFound);
    assert_eq!(world.delete_route("default", None).expect("deleting a route"), RouteResult::Done);
    assert_eq!(routes(world).len(), 0);
}

pub(crate) fn a_route_to_a_closed_queue_is_refused(world: &World) {
    let draining = world.queue_named("draining");
    world.put(world.new_task_in(&draining));
    world.delete_queue(&draining, &DeleteMode::Drain, None).expect("deleting");
    let version = world.route_version();
    for queue in ["nowhere", &draining] {
        let answer = world.set_route(&route("gpu", queue), request()).expect("setting a route");
        assert_eq!(answer, RouteResult::NoSuchQueue, "{queue}");
    }
    assert_eq!((routes(world).len(), world.route_version()), (1, version));
}

pub(crate) fn every_change_raises_the_version(world: &World) {
    let mut version = world.route_version();
    let mut raised = |what: &str, is: bool| {
        let now = world.route_version();
        assert_eq!(now > version, is, "{what}: {version} → {now}");
        version = now;
    };
    world.set_route(&route("gpu", DEFAULT), None).expect("setting a route");
    raised("setting a route", true);
    world.delete_route("nowhere", None).expect("deleting a route");
    raised("deleting no route", false);
    world.delete_route("gpu", None).expect("deleting a route");
    raised("deleting a route", true);
    let defaults = QueueChange { default_timeout_ms: Some(Some(1000)), ..QueueChange::default() };
    world.update_queue(DEFAULT, &defaults, &audit(), None).expect("changing a queue");
    raised("changing a queue's defaults", true);
    let defaults = QueueChange { default_expire_after_ms: Some(None), ..QueueChange::default() };
    world.update_queue(DEFAULT, &defaults, &audit(), None).expect("changing a queue");
    raised("changing a queue's defaults", true);
    world.queued();
    raised("submitting a task", false);
}

pub(crate) fn r11_a_repeated_route_change_changes_nothing(world: &World) {
    let (set, delete) = (request(), request());
    let (first, second) = (route("gpu", DEFAULT), Route { order: 99, ..route("gpu", DEFAULT) });
    assert_eq!(world.set_route(&first, set).expect("setting a route"), RouteResult::Done);
    assert_eq!(world.set_route(&second, request()).expect("setting a route"), RouteResult::Done);
    let version = world.route_version();
    assert_eq!(world.set_route(&first, set).expect("setting a route"), RouteResult::Done);
    assert_eq!((&routes(world)["gpu"], world.route_version()), (&second, version));
    assert_eq!(world.delete_route("gpu", delete).expect("deleting a route"), RouteResult::Done);
    assert_eq!(world.delete_route("gpu", delete).expect("deleting a route"), RouteResult::Done);
    assert_eq!(world.delete_route("gpu", request()).expect("deleting a route"), RouteResult::NotFound);
    // Made again by somebody else, it is not deleted by the repeat.
    world.set_route(&second, None).expect("setting a route");
    assert_eq!(world.delete_route("gpu", delete).expect("deleting a route"), RouteResult::Done);
    assert_eq!(routes(world).len(), 2);
}
