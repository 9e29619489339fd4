//! The book of attempts: what this orchestrator holds, and what still occupies its slots.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use millrace_core::{held::digest_of, id::TaskId};
use millrace_proto::{common::v1 as common, distributor::v1::LeaseRef};
use uuid::Uuid;

use crate::executor::{Attempt, Control};

/// How many attempts that are over are remembered. When full the oldest is forgotten; a repeat of its assignment would
/// then run, and its result be refused as stale.
const REMEMBERED: usize = 8192;

/// Names one run of one attempt in this process; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LocalId(pub(crate) u64);

/// One attempt held.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) lease: LeaseRef,
    pub(crate) local: LocalId,
    pub(crate) exclusive: bool,
    pub(crate) state: State,
}

#[derive(Debug)]
pub(crate) enum State {
    /// Exclusive, and an earlier attempt of the same task has not ended here yet.
    Waiting(Box<Attempt>),
    /// The executor has it.
    Running(Arc<Control>),
    /// It has ended, and the service has not recorded that yet. The control block is kept for its output.
    Ended { outcome: Box<common::Outcome>, control: Option<Arc<Control>> },
}

/// At most one attempt of a task is held: the service gives a new one only when the one before is over. Bounded by the
/// slots, and by what a distributor sends beyond its credits, which is handed back at once.
#[derive(Debug)]
pub(crate) struct Book {
    slots: usize,
    held: HashMap<Uuid, Held>,
    /// Attempts that are not held any more and whose executor has not returned yet. They occupy their slots until then.
    stopping: HashMap<LocalId, Uuid>,
    /// Held, running, exclusive, and not yet told to stop.
    exclusive: HashSet<Uuid>,
    /// Attempts whose results the service has answered, the newest last.
    over: VecDeque<(Uuid, i32)>,
    running: usize,
    digest: u64,
}

impl Book {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots,
            held: HashMap::new(),
            stopping: HashMap::new(),
            exclusive: HashSet::new(),
            over: VecDeque::new(),
            running: 0,
            digest: 0,
        }
    }

    /// How many assignments can be taken.
    pub(crate) fn free(&self) -> usize {
        self.slots.saturating_sub(self.held.len() + self.stopping.len())
    }

    /// Attempts held, those with undelivered results included.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Attempts held that an executor has or that wait for an executor.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// Attempts that are not held any more but have not ended here.
    pub(crate) fn stopping(&self) -> usize {
        self.stopping.len()
    }

    /// See [`digest_of`].
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn leases(&self) -> Vec<LeaseRef> {
        self.held.values().map(|held| held.lease.clone()).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Uuid, &Held)> {
        self.held.iter().map(|(task, held)| (*task, held))
    }

    pub(crate) fn tasks(&self) -> Vec<Uuid> {
        self.held.keys().copied().collect()
    }

    pub(crate) fn get(&self, task: Uuid) -> Option<&Held> {
        self.held.get(&task)
    }

    /// The task of an attempt held, when the whole reference is that of the attempt held.
    pub(crate) fn find(&self, lease: &LeaseRef) -> Option<Uuid> {
        let task = Uuid::try_parse(&lease.task_id).ok()?;
        let held = self.held.get(&task)?;
        (held.lease.attempt == lease.attempt && held.lease.lease_token == lease.lease_token).then_some(task)
    }

    /// Whether an attempt of the task that is not held any more has not ended here yet.
    pub(crate) fn is_stopping(&self, task: Uuid) -> bool {
        !self.stopping.is_empty() && self.stopping.values().any(|stopping| *stopping == task)
    }

    /// Adds an attempt. Another one of the same task must have been released before.
    pub(crate) fn insert(&mut self, task: Uuid, held: Held) {
        debug_assert!(!self.held.contains_key(&task));
        self.digest ^= digest_of(TaskId(task), held.lease.attempt);
        self.count_in(task, &held);
        self.held.insert(task, held);
    }

    /// Changes what an attempt does. False when the task is not held.
    pub(crate) fn set_state(&mut self, task: Uuid, state: State) -> bool {
        let Some(mut held) = self.held.remove(&task) else { return false };
        self.count_out(task, &held);
        held.state = state;
        self.count_in(task, &held);
        self.held.insert(task, held);
        true
    }

    /// An attempt is not held any more. Its control block is returned when its executor still has it, and its slot
    /// then stays occupied until [`Self::stopped`].
    pub(crate) fn release(&mut self, task: Uuid) -> Option<Arc<Control>> {
        let held = self.held.remove(&task)?;
        self.digest ^= digest_of(TaskId(task), held.lease.attempt);
        self.count_out(task, &held);
        match held.state {
            State::Running(control) => {
                self.stopping.insert(held.local, task);
                Some(control)
            }
            State::Waiting(_) | State::Ended { .. } => None,
        }
    }

    /// The service has answered the attempt's result: it is over, here as there.
    pub(crate) fn finish(&mut self, task: Uuid) {
        let Some(attempt) = self.held.get(&task).map(|held| held.lease.attempt) else { return };
        self.release(task);
        if self.over.len() == REMEMBERED {
            self.over.pop_front();
        }
        self.over.push_back((task, attempt));
    }

    /// Whether the attempt's result was answered not long ago. Looks through all that is remembered, so it is asked only
    /// of repeated assignments.
    pub(crate) fn is_over(&self, task: Uuid, attempt: i32) -> bool {
        self.over.contains(&(task, attempt))
    }

    /// The executor of an attempt that was released has returned.
    pub(crate) fn stopped(&mut self, local: LocalId) {
        self.stopping.remove(&local);
    }

    pub(crate) fn has_exclusive(&self) -> bool {
        !self.exclusive.is_empty()
    }

    /// The exclusive attempts that run; they count as told from now on.
    pub(crate) fn take_exclusive(&mut self) -> Vec<Arc<Control>> {
        let controls = self.exclusive.iter().filter_map(|task| match self.held.get(task).map(|held| &held.state) {
            Some(State::Running(control)) => Some(control.clone()),
            _ => None,
        });
        let controls = controls.collect();
        self.exclusive.clear();
        controls
    }

    fn count_in(&mut self, task: Uuid, held: &Held) {
        match held.state {
            State::Running(_) => {
                self.running += 1;
                if held.exclusive {
                    self.exclusive.insert(task);
                }
            }
            State::Waiting(_) => self.running += 1,
            State::Ended { .. } => {}
        }
    }

    fn count_out(&mut self, task: Uuid, held: &Held) {
        if !matches!(held.state, State::Ended { .. }) {
            self.running -= 1;
        }
        if held.exclusive {
            self.exclusive.remove(&task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(task: Uuid, attempt: i32, state: State) -> Held {
        let lease = LeaseRef { task_id: task.to_string(), attempt, lease_token: "t".into() };
        Held { lease, local: LocalId(attempt as u64), exclusive: true, state }
    }

    fn running(task: Uuid, attempt: i32) -> State {
        let attempt_data = Attempt {
            task_id: task,
            attempt,
            queue: String::new(),
            spec: Default::default(),
            spec_bytes: Default::default(),
            timeout: None,
            traceparent: String::new(),
            dispatch_time: None,
        };
        State::Running(Arc::new(Control::new(attempt_data, LocalId(attempt as u64), 16, Arc::default())))
    }

    fn ended() -> State {
        State::Ended { outcome: Box::default(), control: None }
    }

    #[test]
    fn a_slot_is_occupied_until_the_result_is_recorded_and_the_executor_is_back() {
        let (task, mut book) = (Uuid::from_u128(7), Book::new(3));
        book.insert(task, held(task, 1, running(task, 1)));
        assert_eq!((book.free(), book.running(), book.has_exclusive()), (2, 1, true));
        assert!(book.release(task).is_some());
        assert_eq!((book.free(), book.held(), book.stopping()), (2, 0, 1));
        assert!(book.is_stopping(task));
        book.insert(task, held(task, 2, running(task, 2)));
        assert!(book.set_state(task, ended()));
        assert_eq!((book.free(), book.held(), book.running(), book.has_exclusive()), (1, 1, 0, false));
        assert!(book.release(task).is_none());
        book.stopped(LocalId(1));
        assert_eq!((book.free(), book.digest()), (3, 0));
    }

    #[test]
    fn r1_the_digest_is_that_of_the_attempts_held() {
        let (a, b, mut book) = (Uuid::from_u128(1), Uuid::from_u128(u128::MAX - 5), Book::new(3));
        book.insert(a, held(a, 1, running(a, 1)));
        book.insert(b, held(b, 4, ended()));
        assert_eq!(book.digest(), digest_of(TaskId(a), 1) ^ digest_of(TaskId(b), 4));
        book.release(a);
        assert_eq!(book.digest(), digest_of(TaskId(b), 4));
    }

    #[test]
    fn an_attempt_is_found_by_its_whole_reference() {
        let (task, mut book) = (Uuid::from_u128(1), Book::new(3));
        book.insert(task, held(task, 2, ended()));
        let lease = |attempt, token: &str| LeaseRef { task_id: task.to_string(), attempt, lease_token: token.into() };
        assert_eq!(book.find(&lease(2, "t")), Some(task));
        assert_eq!((book.find(&lease(1, "t")), book.find(&lease(2, "u"))), (None, None));
    }
}
