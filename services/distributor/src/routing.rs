//! Routes and queue defaults, kept in memory and read again when their version changes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use millrace_core::route::{RouteTable, Routed};
use millrace_runtime::status::Fault;
use millrace_store::{QueueRow, Routing};

use crate::{
    shared::{Shared, lock},
    spec::Spec,
};

/// What submissions are routed by, as of one version.
#[derive(Debug, Default)]
pub(crate) struct RoutingTable {
    pub(crate) routes: RouteTable,
    pub(crate) queues: HashMap<String, QueueRow>,
}

/// The table in force.
#[derive(Debug, Default)]
pub(crate) struct RoutingCache {
    current: Mutex<Option<Arc<RoutingTable>>>,
}

impl RoutingCache {
    /// The table, read from the database when there is none yet.
    pub(crate) async fn current(&self, shared: &Shared) -> Result<Arc<RoutingTable>, Fault> {
        if let Some(table) = lock(&self.current).clone() {
            return Ok(table);
        }
        self.refresh(shared).await
    }

    /// Reads the table from the database. Readers at the same time may both read; the newer version stays.
    pub(crate) async fn refresh(&self, shared: &Shared) -> Result<Arc<RoutingTable>, Fault> {
        let routing: Routing = shared.blocking(|store| store.routing()).await?;
        let table = Arc::new(RoutingTable {
            routes: RouteTable::new(routing.version, routing.routes),
            queues: routing.queues.into_iter().map(|queue| (queue.name.clone(), queue)).collect(),
        });
        let mut current = lock(&self.current);
        match &*current {
            Some(held) if held.routes.version() > table.routes.version() => Ok(held.clone()),
            _ => {
                *current = Some(table.clone());
                Ok(table)
            }
        }
    }

    /// The version held; none before the first read.
    pub(crate) fn version(&self) -> Option<i64> {
        lock(&self.current).as_ref().map(|table| table.routes.version())
    }
}

impl RoutingTable {
    /// The queue that a task joins.
    pub(crate) fn queue_for(&self, spec: &Spec) -> Result<&QueueRow, Fault> {
        let route = self.routes.find(Routed {
            executor: &spec.wire.executor,
            resource_class: &spec.wire.resource_class,
            tenant: &spec.tenant,
            labels: &spec.wire.labels,
        });
        let Some(route) = route else {
            let class = match spec.wire.resource_class.as_str() {
                "" => String::new(),
                class => format!(" and resource class {class}"),
            };
            return Err(Fault::precondition(
                "NO_ROUTE",
                format!("no route takes a task of executor {}{class}; see `millrace route list`", spec.wire.executor),
            ));
        };
        match self.queues.get(&route.queue) {
            Some(queue) if !queue.draining => Ok(queue),
            _ => Err(queue_closed(&route.queue)),
        }
    }
}

/// The queue is gone or takes no more tasks.
pub(crate) fn queue_closed(queue: &str) -> Fault {
    Fault::precondition("QUEUE_CLOSED", format!("queue {queue} takes no more tasks: it is being deleted or is gone"))
}
