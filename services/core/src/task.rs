//! Where a task is in its life, and the one place where that changes.

use std::fmt;

/// Where a task is in its life. The numbers are those of the contract and of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i16)]
pub enum State {
    /// Waits for a moment.
    Scheduled = 1,
    /// Waits for an orchestrator.
    Queued = 2,
    /// Claimed for an orchestrator that has not yet said that it runs.
    Dispatched = 3,
    /// An orchestrator runs it.
    Running = 4,
    /// An orchestrator was told to stop it.
    Cancelling = 5,
    /// Ended well.
    Succeeded = 6,
    /// Ended badly, its budget spent.
    Failed = 7,
    /// Stopped on request.
    Cancelled = 8,
    /// Waited past its deadline.
    Expired = 9,
}

/// What can happen to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Its moment has come.
    Wake,
    /// It was claimed for an orchestrator.
    Claim,
    /// The orchestrator says that it runs.
    Accept,
    /// Someone asks to stop it.
    Cancel,
    /// Its deadline for waiting has passed.
    Expire,
    /// The attempt ended well.
    Succeed,
    /// The attempt ended and no budget is left for another.
    Fail,
    /// The attempt ended and another is due at once.
    Requeue,
    /// The attempt ended and another is due after a wait.
    Backoff,
    /// Someone asks to run a finished task again.
    Retry,
}

/// Every state, in the order of life.
pub const STATES: [State; 9] = [
    State::Scheduled,
    State::Queued,
    State::Dispatched,
    State::Running,
    State::Cancelling,
    State::Succeeded,
    State::Failed,
    State::Cancelled,
    State::Expired,
];

/// Every event.
pub const EVENTS: [Event; 10] = [
    Event::Wake,
    Event::Claim,
    Event::Accept,
    Event::Cancel,
    Event::Expire,
    Event::Succeed,
    Event::Fail,
    Event::Requeue,
    Event::Backoff,
    Event::Retry,
];

impl State {
    /// The state after the event, or why there is none.
    pub fn next(self, event: Event) -> Result<State, Illegal> {
        use Event::*;
        use State::*;
        let next = match (self, event) {
            (Scheduled, Wake) => Queued,
            (Scheduled | Queued, Cancel) => Cancelled,
            (Scheduled | Queued, Expire) => Expired,
            (Queued, Claim) => Dispatched,

            (Dispatched | Running, Accept) => Running,
            (Dispatched | Running, Cancel) => Cancelling,
            (Dispatched | Running, Succeed) => Succeeded,
            (Dispatched | Running, Fail) => Failed,
            (Dispatched | Running, Requeue) => Queued,
            (Dispatched | Running, Backoff) => Scheduled,

            // Saying that it runs, or asking again, does not take a cancellation back; an end of any other kind than
            // success completes it, and a success that came first is what happened.
            (Cancelling, Accept | Cancel) => Cancelling,
            (Cancelling, Succeed) => Succeeded,
            (Cancelling, Fail | Requeue | Backoff) => Cancelled,

            (Failed | Cancelled | Expired, Retry) => Queued,
            (Cancelled, Cancel) => Cancelled,

            (Scheduled, Claim | Accept | Succeed | Fail | Requeue | Backoff | Retry)
            | (Queued, Wake | Accept | Succeed | Fail | Requeue | Backoff | Retry)
            | (Dispatched | Running | Cancelling, Wake | Claim | Expire | Retry)
            | (Succeeded, _)
            | (Failed | Expired, Wake | Claim | Accept | Cancel | Expire | Succeed | Fail | Requeue | Backoff)
            | (Cancelled, Wake | Claim | Accept | Expire | Succeed | Fail | Requeue | Backoff) => {
                return Err(Illegal { state: self, event });
            }
        };
        Ok(next)
    }

    /// Whether nothing but a retry can follow.
    pub fn is_terminal(self) -> bool {
        matches!(self, State::Succeeded | State::Failed | State::Cancelled | State::Expired)
    }

    /// Whether an orchestrator has it.
    pub fn is_held(self) -> bool {
        matches!(self, State::Dispatched | State::Running | State::Cancelling)
    }

    /// Whether it waits.
    pub fn is_waiting(self) -> bool {
        matches!(self, State::Scheduled | State::Queued)
    }
}

impl TryFrom<i16> for State {
    type Error = UnknownState;

    fn try_from(number: i16) -> Result<Self, UnknownState> {
        STATES.into_iter().find(|state| *state as i16 == number).ok_or(UnknownState(number))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Scheduled => "SCHEDULED",
            State::Queued => "QUEUED",
            State::Dispatched => "DISPATCHED",
            State::Running => "RUNNING",
            State::Cancelling => "CANCELLING",
            State::Succeeded => "SUCCEEDED",
            State::Failed => "FAILED",
            State::Cancelled => "CANCELLED",
            State::Expired => "EXPIRED",
        })
    }
}

/// A state that a row names and this build does not know: the row is too new, it is never taken for another state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is {0}, which this build does not know")]
pub struct UnknownState(pub i16);

/// What cannot happen to a task in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a task that is {state}")]
pub struct Illegal {
    /// The state.
    pub state: State,
    /// The event.
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table in one picture: a row a state, a column an event, `.` where it cannot happen.
    #[test]
    fn every_pair_of_state_and_event_is_decided() {
        let short = |state: State| match state {
            State::Scheduled => "sched",
            State::Queued => "queue",
            State::Dispatched => "disp",
            State::Running => "run",
            State::Cancelling => "cing",
            State::Succeeded => "succ",
            State::Failed => "fail",
            State::Cancelled => "canc",
            State::Expired => "exp",
        };
        let table: Vec<String> = STATES
            .iter()
            .map(|&state| {
                let cells: Vec<&str> = EVENTS.iter().map(|&event| state.next(event).map_or(".", short)).collect();
                format!("{}: {}", short(state), cells.join(" "))
            })
            .collect();
        // wake claim accept cancel expire succeed fail requeue backoff retry
        let expected = [
            "sched: queue . . canc exp . . . . .",
            "queue: . disp . canc exp . . . . .",
            "disp: . . run cing . succ fail queue sched .",
            "run: . . run cing . succ fail queue sched .",
            "cing: . . cing cing . succ canc canc canc .",
            "succ: . . . . . . . . . .",
            "fail: . . . . . . . . . queue",
            "canc: . . . canc . . . . . queue",
            "exp: . . . . . . . . . queue",
        ];
        assert_eq!(table, expected);
    }

    #[test]
    fn numbers_are_read_back_and_unknown_ones_refused() {
        for state in STATES {
            assert_eq!(State::try_from(state as i16), Ok(state));
        }
        assert_eq!(State::try_from(0), Err(UnknownState(0)));
        assert_eq!(State::try_from(10), Err(UnknownState(10)));
    }
}
