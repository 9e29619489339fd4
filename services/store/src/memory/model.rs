//! What the model consists of, and what always holds in it.

use std::collections::BTreeMap;

use millrace_core::{
    ROW_FORMAT,
    foreign::Row,
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    lease::Token,
    route::Route,
    served::ServedClock,
    task::{Event, State},
    time::Timestamp,
};
use uuid::Uuid;

use super::{fleet::Books, quarantine::Aside};
use crate::{COUNT_BOUND, Result, StoreError, types::*};

/// The queue that a new database has.
const DEFAULT: &str = "default";

/// Everything that a database holds.
#[derive(Debug, Clone)]
pub struct Model {
    pub(super) cluster: Cluster,
    /// The width of a slot of finished tasks.
    pub(super) slice_us: i64,
    pub(super) clock: ServedClock,
    pub(super) members: BTreeMap<MemberId, Member>,
    /// Live tasks: SCHEDULED to CANCELLING.
    pub(super) tasks: BTreeMap<TaskId, Task>,
    /// What stands in some columns of live tasks instead of what belongs there.
    pub(super) damage: BTreeMap<TaskId, Row>,
    /// Tasks that have ended.
    pub(super) finished: BTreeMap<TaskId, Finished>,
    /// Attempts that were not the last word, by task and number.
    pub(super) attempts: BTreeMap<(TaskId, i32), Attempt>,
    pub(super) requests: BTreeMap<Uuid, Request>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) queues: BTreeMap<String, Queue>,
    /// A gate outlives its queue, so that a queue made again under the same name never has an epoch twice (R5).
    pub(super) gates: BTreeMap<String, Gate>,
    pub(super) owners: BTreeMap<String, Ownership>,
    pub(super) routes: BTreeMap<String, Route>,
    pub(super) quarantined: BTreeMap<TaskId, Aside>,
    pub(super) audit: Vec<(i64, Audit)>,
    /// Pools and nodes.
    pub(super) books: Books,
}

/// A live task, or what a finished one was.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) envelope: Envelope,
    pub(super) spec: Vec<u8>,
    pub(super) state: State,
    pub(super) attempt: i32,
    pub(super) token: Option<Token>,
    pub(super) session: Option<SessionId>,
    pub(super) failures: i32,
    pub(super) losses: i32,
    pub(super) unsupported: i32,
    pub(super) created_at_us: i64,
    pub(super) ready_at_us: Option<i64>,
    pub(super) wake_at_us: Option<i64>,
    pub(super) expires_at_us: Option<i64>,
    pub(super) dispatched_at_us: Option<i64>,
    pub(super) started_at_us: Option<i64>,
}

#[derive(Debug, Clone)]
pub(super) struct Finished {
    pub(super) task: Task,
    pub(super) slot: i64,
    pub(super) finished_at_us: i64,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) token: Token,
    pub(super) row: AttemptRow,
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    /// None for calls that are not about a task.
    pub(super) task: Option<TaskId>,
    pub(super) created_at_us: i64,
}

#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) session: NewSession,
    pub(super) generation: i64,
    pub(super) expires_served_ms: i64,
    pub(super) seen_at_us: i64,
    /// Set once it is over.
    pub(super) over_at_us: Option<i64>,
}

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) row: MemberRow,
    pub(super) expires_served_ms: i64,
}

#[derive(Debug, Clone)]
pub(super) struct Queue {
    pub(super) description: String,
    pub(super) default_timeout_ms: Option<i64>,
    pub(super) default_expire_after_ms: Option<i64>,
    pub(super) pause: Option<PauseRow>,
    pub(super) draining: bool,
    pub(super) move_to: Option<String>,
    pub(super) created_at_us: i64,
    pub(super) updated_at_us: i64,
}

/// What claims require.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    pub(super) epoch: i64,
    pub(super) paused: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Ownership {
    pub(super) owner: MemberId,
    pub(super) endpoint: String,
    pub(super) expires_served_ms: i64,
}

impl Model {
    /// A new database: the queue `default` and the route that leads processes there.
    pub(super) fn new(now: Timestamp) -> Self {
        let route = Route {
            name: DEFAULT.into(),
            order: 1000,
            executor: "process".into(),
            resource_class: String::new(),
            tenant: String::new(),
            labels: BTreeMap::new(),
            queue: DEFAULT.into(),
        };
        let queue = Queue {
            description: String::new(),
            default_timeout_ms: None,
            default_expire_after_ms: None,
            pause: None,
            draining: false,
            move_to: None,
            created_at_us: now.0,
            updated_at_us: now.0,
        };
        Self {
            cluster: Cluster { incarnation: 1, write_format: ROW_FORMAT, route_version: 1 },
            slice_us: 4 * 3_600_000_000,
            clock: ServedClock { served_ms: 0, ticked_at: now, frozen_ms: 0 },
            members: BTreeMap::new(),
            tasks: BTreeMap::new(),
            damage: BTreeMap::new(),
            finished: BTreeMap::new(),
            attempts: BTreeMap::new(),
            requests: BTreeMap::new(),
            sessions: BTreeMap::new(),
            queues: BTreeMap::from([(DEFAULT.into(), queue)]),
            gates: BTreeMap::from([(DEFAULT.into(), Gate::default())]),
            owners: BTreeMap::new(),
            routes: BTreeMap::from([(route.name.clone(), route)]),
            quarantined: BTreeMap::new(),
            audit: Vec::new(),
            books: Books::default(),
        }
    }

    /// Whether a lease that ends then has ended now.
    pub(super) fn has_ended(&self, expires_served_ms: i64) -> bool {
        expires_served_ms < self.clock.served_ms
    }

    /// Whether the queue exists and takes tasks.
    pub(super) fn takes_tasks(&self, queue: &str) -> bool {
        self.queues.get(queue).is_some_and(|queue| !queue.draining)
    }

    /// Whether a call with this key has been made before.
    pub(super) fn is_known(&self, request: Option<Uuid>) -> bool {
        request.is_some_and(|key| self.requests.contains_key(&key))
    }

    /// Keeps the key of a call that did what it was to do.
    pub(super) fn remember(&mut self, now: i64, request: Option<Uuid>, task: Option<TaskId>) {
        if let Some(key) = request {
            self.requests.entry(key).or_insert(Request { task, created_at_us: now });
        }
    }

    /// The live task that is held with this very lease.
    pub(super) fn held(&mut self, lease: LeaseRef) -> Option<&mut Task> {
        self.tasks.get_mut(&lease.task).filter(|task| task.lease() == Some(lease))
    }

    /// Moves a live task to the finished ones.
    pub(super) fn finish(&mut self, now: i64, id: TaskId, event: Event, mut outcome: Outcome) -> Result<()> {
        let Some(mut task) = self.tasks.remove(&id) else {
            return Err(StoreError::Internal(format!("task {id} is to be finished and is not there")));
        };
        self.damage.remove(&id);
        task.state = next(task.state, event)?;
        task.ready_at_us = None;
        task.wake_at_us = None;
        task.started_at_us = outcome.started_at_us.or(task.started_at_us);
        outcome.started_at_us = task.started_at_us;
        outcome.message = storable(&outcome.message);
        let slot = now.div_euclid(self.slice_us).rem_euclid(8);
        self.finished.insert(id, Finished { task, slot, finished_at_us: now, outcome });
        Ok(())
    }
}

impl Task {
    /// Its lease, while it is held.
    pub(super) fn lease(&self) -> Option<LeaseRef> {
        let token = self.token.filter(|_| self.state.is_held())?;
        Some(LeaseRef { task: self.envelope.id, attempt: self.attempt, token })
    }

    /// Whether this build may act on it.
    pub(super) fn is_readable(&self) -> bool {
        self.envelope.min_reader <= millrace_core::READER_RANGE.1
    }

    /// Whether its deadline for waiting has passed.
    pub(super) fn has_expired(&self, now: i64) -> bool {
        self.expires_at_us.is_some_and(|moment| moment <= now)
    }

    /// Where it stands in its lane.
    pub(super) fn place(&self) -> Option<(Timestamp, TaskId)> {
        self.ready_at_us.map(|ready_at_us| (Timestamp(ready_at_us), self.envelope.id))
    }
}

/// The state after an event. The callers have made sure that there is one, so an error is a defect.
pub(super) fn next(state: State, event: Event) -> Result<State> {
    state.next(event).map_err(|illegal| StoreError::Internal(illegal.to_string()))
}

/// A count, up to the bound of counts.
pub(super) fn bounded(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX).min(COUNT_BOUND)
}

/// A limit as a number of items.
pub(super) fn at_most(limit: i64) -> usize {
    usize::try_from(limit).unwrap_or(0)
}

/// Text as databases can keep it. The end of a task must not be lost to a character.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

impl Model {
    /// Checks what holds between any two calls; the error names what is broken.
    pub fn check_invariants(&self) -> std::result::Result<(), String> {
        let rules = self.tasks.iter().flat_map(|(id, task)| self.live_rules(id, task));
        let rules = rules.chain(self.finished.iter().flat_map(|(id, row)| self.finished_rules(id, row)));
        let rules = rules.chain(self.queues.iter().flat_map(|(name, queue)| self.queue_rules(name, queue)));
        let rules = rules.chain(self.books.rules());
        for (holds, subject, rule) in rules {
            if !holds {
                return Err(format!("{subject} breaks the rule: {rule}"));
            }
        }
        Ok(())
    }

    fn live_rules(&self, id: &TaskId, task: &Task) -> Vec<(bool, String, &'static str)> {
        let (state, held) = (task.state, task.state.is_held());
        let rules = [
            (!state.is_terminal(), "a live task has not ended"),
            (task.envelope.id == *id, "a task is found by its id"),
            (
                !self.finished.contains_key(id) && !self.quarantined.contains_key(id),
                "a task is live, finished or set aside, never two of these",
            ),
            (task.ready_at_us.is_some() == (state == State::Queued), "ready_at is set exactly while QUEUED"),
            (task.wake_at_us.is_some() == (state == State::Scheduled), "wake_at is set exactly while SCHEDULED"),
            (task.session.is_some() == held, "session is set exactly while held"),
            (task.token.is_some() == held, "token is set exactly while held"),
            (!held || task.attempt > 0, "a held task has an attempt"),
            (
                task.session.is_none_or(|session| self.sessions.contains_key(&session)),
                "the session of a held task exists",
            ),
            (self.queues.contains_key(&task.envelope.queue), "the queue of a live task exists"),
            (
                !held || !self.attempts.contains_key(&(*id, task.attempt)),
                "the attempt that is held is not one of the earlier ones",
            ),
        ];
        rules.into_iter().map(|(holds, rule)| (holds, format!("task {id} {task:?}"), rule)).collect()
    }

    fn finished_rules(&self, id: &TaskId, row: &Finished) -> Vec<(bool, String, &'static str)> {
        let task = &row.task;
        let rules = [
            (task.state.is_terminal(), "a finished task has ended"),
            (task.ready_at_us.is_none() && task.wake_at_us.is_none(), "a finished task waits for nothing"),
            (task.session.is_some() == task.token.is_some(), "who ended a task did so with a token"),
            ((0..8).contains(&row.slot), "there are eight slots"),
        ];
        rules.into_iter().map(|(holds, rule)| (holds, format!("task {id} {row:?}"), rule)).collect()
    }

    fn queue_rules(&self, name: &str, queue: &Queue) -> Vec<(bool, String, &'static str)> {
        let gate = self.gates.get(name);
        let rules = [
            (gate.is_some(), "a queue has a gate"),
            (gate.is_none_or(|gate| gate.paused == queue.pause.is_some()), "the gate of a paused queue is closed"),
            (queue.draining || queue.move_to.is_none(), "only a queue that drains is moved"),
        ];
        rules.into_iter().map(|(holds, rule)| (holds, format!("queue {name} {queue:?}"), rule)).collect()
    }
}
