//! What follows the end of an attempt: the end of the task, or another attempt and when.

use std::time::Duration;

use crate::task::{Event, Illegal, State};

/// How an attempt ended. The numbers are those of the contract and of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum OutcomeKind {
    /// Success.
    Succeeded = 1,
    /// The task's own failure.
    Failed = 2,
    /// Ran past its timeout.
    TimedOut = 3,
    /// Stopped because the task was cancelled.
    Cancelled = 4,
    /// Could not be started.
    NotStarted = 5,
    /// The orchestrator knows no such payload.
    Unsupported = 6,
    /// Given back unharmed.
    HandedBack = 7,
    /// The orchestrator fell silent.
    Lost = 8,
    /// The task waited past its deadline.
    Expired = 9,
}

/// Every kind of outcome.
pub const OUTCOMES: [OutcomeKind; 9] = [
    OutcomeKind::Succeeded,
    OutcomeKind::Failed,
    OutcomeKind::TimedOut,
    OutcomeKind::Cancelled,
    OutcomeKind::NotStarted,
    OutcomeKind::Unsupported,
    OutcomeKind::HandedBack,
    OutcomeKind::Lost,
    OutcomeKind::Expired,
];

impl TryFrom<i16> for OutcomeKind {
    type Error = i16;

    fn try_from(number: i16) -> Result<Self, i16> {
        OUTCOMES.into_iter().find(|kind| *kind as i16 == number).ok_or(number)
    }
}

/// The two budgets of a task and the pace of its retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts that may fail by the task's own doing.
    pub max_attempts: u32,
    /// Attempts that may be lost with their orchestrator.
    pub max_losses: u32,
    /// The wait before the first retry.
    pub min_backoff: Duration,
    /// The longest wait before a retry.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 1,
            max_losses: 2,
            min_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(300),
        }
    }
}

/// What a task has spent of its budgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Attempts that failed by the task's own doing.
    pub failures: u32,
    /// Attempts lost with their orchestrator.
    pub losses: u32,
    /// Attempts that ended as unsupported; they spend nothing but slow down the next try.
    pub unsupported: u32,
}

/// What follows the end of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The task ends in this terminal state.
    Finish(State),
    /// Another attempt, after this wait; zero means that it joins its queue at once.
    Again(Duration),
}

/// Decides what follows an attempt of a task in `state` that ended as `kind`, and counts it in `spent`.
///
/// `jitter` is a random number from 0 to 1. The wait doubles with each failure from `min_backoff` to `max_backoff`, and
/// a random part of up to half is taken off ("equal jitter": M. Brooker, "Exponential Backoff And Jitter", AWS
/// Architecture Blog, 2015).
pub fn after_attempt(
    state: State,
    kind: OutcomeKind,
    policy: &RetryPolicy,
    spent: &mut Spent,
    jitter: f64,
) -> Result<Verdict, Illegal> {
    let (event, wait) = match kind {
        OutcomeKind::Succeeded => (Event::Succeed, Duration::ZERO),
        OutcomeKind::Expired => (Event::Expire, Duration::ZERO),
        // An orchestrator that stops a task nobody cancelled has failed it, unless the task is being cancelled, where
        // every end but success is the cancellation's.
        OutcomeKind::Failed | OutcomeKind::TimedOut | OutcomeKind::NotStarted | OutcomeKind::Cancelled => {
            spent.failures += 1;
            again(spent.failures, policy.max_attempts, backoff(policy, spent.failures, jitter))
        }
        OutcomeKind::Lost => {
            spent.losses += 1;
            again(spent.losses, policy.max_losses, Duration::ZERO)
        }
        OutcomeKind::HandedBack => (Event::Requeue, Duration::ZERO),
        // The fleet may hold both kinds of orchestrators: the first tries are quick, and a task that nobody here can
        // run is looked at once a minute.
        OutcomeKind::Unsupported => {
            spent.unsupported += 1;
            let pace = RetryPolicy { max_backoff: Duration::from_secs(60), ..RetryPolicy::default() };
            (Event::Backoff, backoff(&pace, spent.unsupported, jitter))
        }
    };
    Ok(match state.next(event)? {
        State::Queued | State::Scheduled => Verdict::Again(wait),
        terminal => Verdict::Finish(terminal),
    })
}

fn again(spent: u32, budget: u32, wait: Duration) -> (Event, Duration) {
    match spent >= budget {
        true => (Event::Fail, Duration::ZERO),
        false if wait.is_zero() => (Event::Requeue, wait),
        false => (Event::Backoff, wait),
    }
}

fn backoff(policy: &RetryPolicy, failures: u32, jitter: f64) -> Duration {
    let doubled = policy.min_backoff.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(policy.max_backoff.max(policy.min_backoff)).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(state: State, kind: OutcomeKind, policy: &RetryPolicy, spent: &mut Spent) -> Verdict {
        after_attempt(state, kind, policy, spent, 0.0).unwrap()
    }

    #[test]
    fn the_two_budgets_do_not_spend_each_other() {
        let policy = RetryPolicy { max_attempts: 2, max_losses: 2, ..RetryPolicy::default() };
        let mut spent = Spent::default();
        assert_eq!(end(State::Running, OutcomeKind::Lost, &policy, &mut spent), Verdict::Again(Duration::ZERO));
        assert_eq!(
            end(State::Running, OutcomeKind::Failed, &policy, &mut spent),
            Verdict::Again(Duration::from_secs(1))
        );
        assert_eq!(end(State::Running, OutcomeKind::HandedBack, &policy, &mut spent), Verdict::Again(Duration::ZERO));
        assert_eq!(spent, Spent { failures: 1, losses: 1, unsupported: 0 });
        assert_eq!(end(State::Running, OutcomeKind::TimedOut, &policy, &mut spent), Verdict::Finish(State::Failed));
    }

    #[test]
    fn a_task_whose_nodes_die_under_it_twice_is_set_aside() {
        let mut spent = Spent::default();
        let policy = RetryPolicy { max_attempts: 100, ..RetryPolicy::default() };
        assert_eq!(end(State::Dispatched, OutcomeKind::Lost, &policy, &mut spent), Verdict::Again(Duration::ZERO));
        assert_eq!(end(State::Running, OutcomeKind::Lost, &policy, &mut spent), Verdict::Finish(State::Failed));
    }

    #[test]
    fn a_cancelled_task_is_never_run_again() {
        for kind in OUTCOMES {
            let policy = RetryPolicy { max_attempts: 100, max_losses: 100, ..RetryPolicy::default() };
            let verdict = after_attempt(State::Cancelling, kind, &policy, &mut Spent::default(), 0.5);
            match kind {
                OutcomeKind::Succeeded => assert_eq!(verdict, Ok(Verdict::Finish(State::Succeeded))),
                OutcomeKind::Expired => assert!(verdict.is_err()),
                _ => assert_eq!(verdict, Ok(Verdict::Finish(State::Cancelled)), "{kind:?}"),
            }
        }
    }

    #[test]
    fn the_wait_doubles_to_its_bound_and_jitter_takes_at_most_half() {
        let policy = RetryPolicy { max_backoff: Duration::from_secs(5), ..RetryPolicy::default() };
        let waits: Vec<u64> = (1..=5).map(|failures| backoff(&policy, failures, 0.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        assert_eq!(backoff(&policy, 3, 1.0), Duration::from_secs(2));
        assert_eq!(backoff(&policy, u32::MAX, 0.0), Duration::from_secs(5));
    }
}
