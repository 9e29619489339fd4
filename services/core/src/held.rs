//! Which attempts a session holds, as its distributor knows it (R1).

use std::{collections::BTreeMap, time::Duration};

use crate::{id::TaskId, lease::Token};

/// One attempt with the token that proves its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseRef {
    /// The task.
    pub task: TaskId,
    /// The attempt's number, from 1.
    pub attempt: i32,
    /// The fencing token.
    pub token: Token,
}

/// The attempt's part of a digest of attempts held. Parts are combined by exclusive-or, so their order does not matter.
pub fn digest_of(task: TaskId, attempt: i32) -> u64 {
    let (high, low) = task.0.as_u64_pair();
    (high ^ low).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add((attempt as i64 as u64).wrapping_mul(2))
}

/// The attempts of one session.
#[derive(Debug, Default)]
pub struct Held {
    attempts: BTreeMap<TaskId, Attempt>,
    digest: u64,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    lease: LeaseRef,
    accepted: bool,
    /// When it was last sent, on a clock that only moves forward.
    sent_at: Duration,
}

/// What makes two lists of attempts equal.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// The distributor knows them and the orchestrator does not: to be sent again with the same token.
    pub missing: Vec<LeaseRef>,
    /// The orchestrator names them and they are not its own: to be stopped without a report.
    pub foreign: Vec<LeaseRef>,
}

impl Held {
    /// Adds an attempt, or marks one as sent once more. `now` is any clock that only moves forward.
    pub fn assigned(&mut self, lease: LeaseRef, now: Duration) {
        self.remove(lease.task);
        self.digest ^= digest_of(lease.task, lease.attempt);
        self.attempts.insert(lease.task, Attempt { lease, accepted: false, sent_at: now });
    }

    /// Marks an attempt as running. Returns true when that is news.
    pub fn accepted(&mut self, lease: LeaseRef) -> bool {
        match self.attempts.get_mut(&lease.task) {
            Some(attempt) if attempt.lease == lease && !attempt.accepted => {
                attempt.accepted = true;
                true
            }
            _ => false,
        }
    }

    /// Forgets an attempt that has ended. Another attempt of the same task stays.
    pub fn ended(&mut self, lease: LeaseRef) -> bool {
        match self.attempts.get(&lease.task) {
            Some(attempt) if attempt.lease == lease => self.remove(lease.task),
            _ => false,
        }
    }

    /// Whether this very attempt is held.
    pub fn holds(&self, lease: LeaseRef) -> bool {
        self.attempts.get(&lease.task).is_some_and(|attempt| attempt.lease == lease)
    }

    /// The attempt held of this task.
    pub fn lease_of(&self, task: TaskId) -> Option<LeaseRef> {
        self.attempts.get(&task).map(|attempt| attempt.lease)
    }

    /// How many attempts are held.
    pub fn len(&self) -> usize {
        self.attempts.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }

    /// Every attempt held, by task.
    pub fn leases(&self) -> impl Iterator<Item = LeaseRef> + '_ {
        self.attempts.values().map(|attempt| attempt.lease)
    }

    /// The digest of the attempts held.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Attempts that were sent longer than `patience` ago and are not reported as running; each counts as sent now, so
    /// it is returned once per patience.
    pub fn overdue(&mut self, now: Duration, patience: Duration) -> Vec<LeaseRef> {
        let mut overdue = Vec::new();
        for attempt in self.attempts.values_mut() {
            if !attempt.accepted && now.saturating_sub(attempt.sent_at) >= patience {
                attempt.sent_at = now;
                overdue.push(attempt.lease);
            }
        }
        overdue
    }

    /// Compares with the list that the orchestrator gives. An attempt that it names counts as running; one sent less than
    /// `patience` ago may still be under way and is not missed yet.
    pub fn compare(&mut self, theirs: &[LeaseRef], now: Duration, patience: Duration) -> Difference {
        let mut difference = Difference::default();
        for &lease in theirs {
            match self.holds(lease) {
                true => {
                    self.accepted(lease);
                }
                false => difference.foreign.push(lease),
            }
        }
        let named: std::collections::BTreeSet<&LeaseRef> = theirs.iter().collect();
        for attempt in self.attempts.values_mut() {
            if !named.contains(&attempt.lease) && now.saturating_sub(attempt.sent_at) >= patience {
                attempt.accepted = false;
                attempt.sent_at = now;
                difference.missing.push(attempt.lease);
            }
        }
        difference
    }

    /// Forgets attempts sent before `read_at` that the database, read then, does not have, and returns them.
    pub fn keep_known(&mut self, known: &std::collections::BTreeSet<LeaseRef>, read_at: Duration) -> Vec<LeaseRef> {
        let unknown = |attempt: &&Attempt| attempt.sent_at < read_at && !known.contains(&attempt.lease);
        let gone: Vec<LeaseRef> = self.attempts.values().filter(unknown).map(|attempt| attempt.lease).collect();
        for lease in &gone {
            self.remove(lease.task);
        }
        gone
    }

    fn remove(&mut self, task: TaskId) -> bool {
        match self.attempts.remove(&task) {
            Some(attempt) => {
                self.digest ^= digest_of(task, attempt.lease.attempt);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn lease(task: u128, attempt: i32) -> LeaseRef {
        LeaseRef { task: TaskId(Uuid::from_u128(task)), attempt, token: Token::new(1, task as u64) }
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn r1_an_attempt_that_is_not_reported_is_sent_again_with_the_same_token() {
        let mut held = Held::default();
        held.assigned(lease(1, 1), Duration::ZERO);
        held.assigned(lease(2, 1), Duration::ZERO);
        assert!(held.accepted(lease(1, 1)));
        assert!(held.overdue(Duration::from_secs(4), PATIENCE).is_empty());
        assert_eq!(held.overdue(Duration::from_secs(5), PATIENCE), [lease(2, 1)]);
        assert!(held.overdue(Duration::from_secs(9), PATIENCE).is_empty());
    }

    #[test]
    fn r1_lists_that_differ_are_made_equal() {
        let mut held = Held::default();
        held.assigned(lease(1, 1), Duration::ZERO);
        held.assigned(lease(2, 3), Duration::ZERO);
        held.assigned(lease(4, 1), Duration::from_secs(8));
        let theirs = [lease(1, 1), lease(2, 2), lease(9, 1)];
        let difference = held.compare(&theirs, Duration::from_secs(10), PATIENCE);
        assert_eq!(difference.foreign, [lease(2, 2), lease(9, 1)]);
        assert_eq!(difference.missing, [lease(2, 3)]);
    }

    #[test]
    fn r1_the_digest_is_that_of_the_set() {
        let (mut one, mut other) = (Held::default(), Held::default());
        for number in [3, 1, 2] {
            one.assigned(lease(number, 1), Duration::ZERO);
        }
        for number in [1, 5, 2, 3] {
            other.assigned(lease(number, 1), Duration::ZERO);
        }
        assert_ne!(one.digest(), other.digest());
        assert!(other.ended(lease(5, 1)));
        assert_eq!(one.digest(), other.digest());
        other.assigned(lease(3, 2), Duration::ZERO);
        assert_ne!(one.digest(), other.digest());
        assert!(!other.ended(lease(3, 1)));
    }
}
