//! Routes and queues, and who owns them.

use millrace_core::{id::MemberId, route::Route, task::State};
use uuid::Uuid;

use super::model::{Model, Ownership, Queue, bounded};
use crate::types::*;

/// How many tasks move with the call that deletes their queue.
const MOVED_AT_ONCE: i64 = 10_000;

// ── Routes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

impl Model {
    pub(super) fn routing(&self) -> Routing {
        Routing {
            version: self.cluster.route_version,
            routes: self.routes.values().cloned().collect(),
            queues: self.queue_rows(),
        }
    }

    pub(super) fn set_route(&mut self, now: i64, route: &Route, request: Option<Uuid>) -> RouteResult {
        if self.is_known(request) {
            return RouteResult::Done;
        }
        if !self.takes_tasks(&route.queue) {
            return RouteResult::NoSuchQueue;
        }
        self.routes.insert(route.name.clone(), route.clone());
        self.cluster.route_version += 1;
        self.remember(now, request, None);
        RouteResult::Done
    }

    pub(super) fn delete_route(&mut self, now: i64, name: &str, request: Option<Uuid>) -> RouteResult {
        if self.is_known(request) {
            return RouteResult::Done;
        }
        if self.routes.remove(name).is_none() {
            return RouteResult::NotFound;
        }
        self.cluster.route_version += 1;
        self.remember(now, request, None);
        RouteResult::Done
    }
}

// ── Queues ──────────────────────────────────────────────────────────────────────────────────────────────────────────

impl Model {
    pub(super) fn queue_row(&self, name: &str) -> Option<QueueRow> {
        let queue = self.queues.get(name)?;
        Some(QueueRow {
            name: name.to_owned(),
            description: queue.description.clone(),
            default_timeout_ms: queue.default_timeout_ms,
            default_expire_after_ms: queue.default_expire_after_ms,
            pause: queue.pause.clone(),
            draining: queue.draining,
            epoch: self.gates.get(name).map_or(0, |gate| gate.epoch),
            created_at_us: queue.created_at_us,
            updated_at_us: queue.updated_at_us,
        })
    }

    pub(super) fn queue_rows(&self) -> Vec<QueueRow> {
        self.queues.keys().filter_map(|name| self.queue_row(name)).collect()
    }

    pub(super) fn create_queue(&mut self, now: i64, queue: &QueueRow, request: Option<Uuid>) -> Option<QueueRow> {
        if self.is_known(request) {
            return self.queue_row(&queue.name);
        }
        if self.queues.contains_key(&queue.name) {
            return None;
        }
        let row = Queue {
            description: queue.description.clone(),
            default_timeout_ms: queue.default_timeout_ms,
            default_expire_after_ms: queue.default_expire_after_ms,
            pause: None,
            draining: false,
            move_to: None,
            created_at_us: now,
            updated_at_us: now,
        };
        self.queues.insert(queue.name.clone(), row);
        let gate = self.gates.entry(queue.name.clone()).and_modify(|former| former.epoch += 1).or_default();
        gate.paused = false;
        self.cluster.route_version += 1;
        self.remember(now, request, None);
        self.queue_row(&queue.name)
    }

    pub(super) fn update_queue(
        &mut self,
        now: i64,
        name: &str,
        change: &QueueChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Option<QueueRow> {
        if self.is_known(request) {
            return self.queue_row(name);
        }
        let queue = self.queues.get_mut(name)?;
        if let Some(description) = &change.description {
            queue.description.clone_from(description);
        }
        if let Some(default) = change.default_timeout_ms {
            queue.default_timeout_ms = default;
        }
        if let Some(default) = change.default_expire_after_ms {
            queue.default_expire_after_ms = default;
        }
        if let Some(pause) = &change.pause {
            queue.pause = pause.clone().map(|(reason, until_us)| PauseRow { reason, until_us, since_us: now });
        }
        queue.updated_at_us = now;
        self.gates.entry(name.to_owned()).or_default().paused = queue.pause.is_some();
        if change.default_timeout_ms.is_some() || change.default_expire_after_ms.is_some() {
            self.cluster.route_version += 1;
        }
        self.audit.push((now, audit.clone()));
        self.remember(now, request, None);
        self.queue_row(name)
    }

    pub(super) fn lift_pauses(&mut self, now: i64) -> Vec<String> {
        let mut lifted = Vec::new();
        for (name, queue) in &mut self.queues {
            let is_due = queue.pause.as_ref().and_then(|pause| pause.until_us).is_some_and(|until_us| until_us <= now);
            if is_due {
                queue.pause = None;
                queue.updated_at_us = now;
                self.gates.entry(name.clone()).or_default().paused = false;
                lifted.push(name.clone());
            }
        }
        lifted
    }

    pub(super) fn counts(&self, now: i64, names: &[String]) -> Vec<QueueCounts> {
        let wanted = |name: &&String| names.is_empty() || names.contains(name);
        self.queues.keys().filter(wanted).map(|name| self.count(now, name)).collect()
    }

    fn count(&self, now: i64, name: &str) -> QueueCounts {
        let tasks = || self.tasks.values().filter(|task| task.envelope.queue == name);
        let count = |fits: fn(State) -> bool| bounded(tasks().filter(|task| fits(task.state)).count());
        QueueCounts {
            name: name.to_owned(),
            queued: count(|state| state == State::Queued),
            scheduled: count(|state| state == State::Scheduled),
            held: count(State::is_held),
            oldest_ready_at_us: tasks().filter_map(|task| task.ready_at_us).min(),
            now_us: now,
        }
    }
}

// ── Deleting queues ─────────────────────────────────────────────────────────────────────────────────────────────────

impl Model {
    pub(super) fn delete_queue(
        &mut self,
        now: i64,
        name: &str,
        mode: &DeleteMode,
        request: Option<Uuid>,
    ) -> DeleteResult {
        let row = self.queue_row(name);
        if self.is_known(request) {
            // Still on its way, or gone and perhaps made again by somebody else.
            return match row {
                Some(row) if row.draining => DeleteResult::Draining(Box::new(row)),
                _ => DeleteResult::Gone,
            };
        }
        if row.is_none() {
            return DeleteResult::NotFound;
        }
        if let Some(route) = self.routes.values().find(|route| route.queue == name) {
            return DeleteResult::Routed(route.name.clone());
        }
        let move_to = match mode {
            DeleteMode::Refuse if self.is_in_use(name) => return DeleteResult::NotEmpty,
            DeleteMode::Move(to) if to == name || !self.takes_tasks(to) => return DeleteResult::NoTarget,
            DeleteMode::Move(to) => Some(to.clone()),
            DeleteMode::Refuse | DeleteMode::Drain => None,
        };
        if let Some(queue) = self.queues.get_mut(name) {
            queue.draining = true;
            queue.move_to = move_to;
            queue.updated_at_us = now;
        }
        self.cluster.route_version += 1;
        self.remember(now, request, None);
        self.move_waiting(now, name, MOVED_AT_ONCE);
        match self.remove_if_empty(name) {
            true => DeleteResult::Gone,
            false => self.queue_row(name).map_or(DeleteResult::Gone, |row| DeleteResult::Draining(Box::new(row))),
        }
    }

    pub(super) fn drain_queues(&mut self, now: i64, limit: i64) -> Vec<String> {
        let draining: Vec<String> =
            self.queues.iter().filter(|(_, queue)| queue.draining).map(|(name, _)| name.clone()).collect();
        let mut left = limit;
        for name in &draining {
            left -= self.move_waiting(now, name, left);
        }
        draining.into_iter().filter(|name| self.remove_if_empty(name)).collect()
    }

    /// Moves what waits in a queue that is being moved; returns how many tasks moved.
    fn move_waiting(&mut self, now: i64, name: &str, limit: i64) -> i64 {
        let Some(to) = self.queues.get(name).and_then(|queue| queue.move_to.clone()) else { return 0 };
        if !self.queues.contains_key(&to) {
            return 0;
        }
        let mut moved = 0;
        for task in self.tasks.values_mut() {
            if moved < limit && task.state.is_waiting() && task.envelope.queue == name {
                task.envelope.queue.clone_from(&to);
                task.ready_at_us = task.ready_at_us.map(|_| now);
                moved += 1;
            }
        }
        moved
    }

    fn is_in_use(&self, name: &str) -> bool {
        self.tasks.values().any(|task| task.envelope.queue == name)
    }

    fn remove_if_empty(&mut self, name: &str) -> bool {
        if self.is_in_use(name) {
            return false;
        }
        self.queues.remove(name);
        self.owners.remove(name);
        if let Some(gate) = self.gates.get_mut(name) {
            gate.paused = false;
        }
        true
    }
}

// ── Ownership ───────────────────────────────────────────────────────────────────────────────────────────────────────

impl Model {
    /// The ownership of a queue, if its lease has not ended.
    fn ownership(&self, queue: &str) -> Option<&Ownership> {
        self.owners.get(queue).filter(|ownership| !self.has_ended(ownership.expires_served_ms))
    }

    pub(super) fn owners(&self) -> Vec<OwnerRow> {
        let row = |name: &String| OwnerRow {
            queue: name.clone(),
            epoch: self.gates.get(name).map_or(0, |gate| gate.epoch),
            owner: self.ownership(name).map(|ownership| (ownership.owner, ownership.endpoint.clone())),
        };
        self.queues.keys().map(row).collect()
    }

    pub(super) fn own_queue(&mut self, queue: &str, owner: MemberId, endpoint: &str, ttl_ms: i64) -> Option<i64> {
        let is_own = match self.ownership(queue) {
            Some(ownership) if ownership.owner != owner => return None,
            ownership => ownership.is_some(),
        };
        if !self.queues.contains_key(queue) {
            return None;
        }
        let gate = self.gates.entry(queue.to_owned()).or_default();
        if !is_own {
            gate.epoch += 1;
        }
        let expires_served_ms = self.clock.served_ms.saturating_add(ttl_ms);
        self.owners.insert(queue.to_owned(), Ownership { owner, endpoint: endpoint.to_owned(), expires_served_ms });
        Some(gate.epoch)
    }

    pub(super) fn renew_queues(&mut self, owner: MemberId, queues: &[(String, i64)], ttl_ms: i64) -> Vec<String> {
        let expires_served_ms = self.clock.served_ms.saturating_add(ttl_ms);
        let mut lost = Vec::new();
        for (queue, epoch) in queues {
            let is_in_force = self.gates.get(queue).is_some_and(|gate| gate.epoch == *epoch);
            match self.owners.get_mut(queue) {
                Some(ownership) if ownership.owner == owner && is_in_force => {
                    ownership.expires_served_ms = expires_served_ms;
                }
                _ => lost.push(queue.clone()),
            }
        }
        lost
    }

    pub(super) fn release_queues(&mut self, owner: MemberId, queues: &[String]) {
        for queue in queues {
            if self.owners.get(queue).is_some_and(|ownership| ownership.owner == owner) {
                self.owners.remove(queue);
            }
        }
    }
}
