//! Routes: which queue a task joins.

use std::collections::BTreeMap;

/// A rule. An empty field matches anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its name.
    pub name: String,
    /// Lower is tried first; the name breaks ties.
    pub order: i32,
    /// The executor it is for.
    pub executor: String,
    /// The resource class it is for.
    pub resource_class: String,
    /// The tenant it is for.
    pub tenant: String,
    /// Labels that a task must carry.
    pub labels: BTreeMap<String, String>,
    /// The queue that the task joins.
    pub queue: String,
}

/// What routes look at.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'a> {
    /// The task's executor.
    pub executor: &'a str,
    /// Its resource class.
    pub resource_class: &'a str,
    /// Its tenant.
    pub tenant: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// Every route of one version, in the order in which they are tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteTable {
    version: i64,
    routes: Vec<Route>,
}

impl RouteTable {
    /// A table of this version.
    pub fn new(version: i64, mut routes: Vec<Route>) -> Self {
        routes.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
        Self { version, routes }
    }

    /// Raised in the database by every change.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// The routes in the order in which they are tried.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The first route that matches.
    pub fn find(&self, task: Routed<'_>) -> Option<&Route> {
        self.routes.iter().find(|route| route.matches(task))
    }
}

impl Route {
    fn matches(&self, task: Routed<'_>) -> bool {
        let fits = |wanted: &str, given: &str| wanted.is_empty() || wanted == given;
        fits(&self.executor, task.executor)
            && fits(&self.resource_class, task.resource_class)
            && fits(&self.tenant, task.tenant)
            && self.labels.iter().all(|(key, value)| task.labels.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, order: i32, executor: &str, labels: &[(&str, &str)], queue: &str) -> Route {
        Route {
            name: name.into(),
            order,
            executor: executor.into(),
            resource_class: String::new(),
            tenant: String::new(),
            labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            queue: queue.into(),
        }
    }

    #[test]
    fn the_first_route_by_order_then_name_wins() {
        let table = RouteTable::new(
            3,
            vec![
                route("z", 10, "process", &[], "late"),
                route("b", 10, "", &[("gpu", "yes")], "gpu"),
                route("all", 1000, "process", &[], "default"),
            ],
        );
        let with = |executor: &'static str, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            table
                .find(Routed { executor, resource_class: "", tenant: "default", labels: &labels })
                .map(|route| route.queue.clone())
        };
        assert_eq!(with("process", &[("gpu", "yes")]).as_deref(), Some("gpu"));
        assert_eq!(with("process", &[("gpu", "no")]).as_deref(), Some("late"));
        assert_eq!(with("docker", &[]), None);
    }
}
