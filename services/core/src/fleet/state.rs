//! The states of a node, and every transition between them.

use thiserror::Error;

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The intent is stored; the provider has not confirmed it.
    Requested,
    /// The provider is making it.
    Starting,
    /// It has been heard of and boots.
    Joining,
    /// It takes work.
    Ready,
    /// Late, silent or unhealthy: no capacity, and not ended for that alone.
    Suspect,
    /// It starts nothing new.
    Draining,
    /// The provider is to end it.
    Terminating,
    /// It is no more.
    Gone,
}

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The provider confirmed it, or lists it.
    Confirmed,
    /// It said how far its boot has come.
    Boots,
    /// It said that it takes work.
    IsReady,
    /// It is late to join, silent or unhealthy.
    IsDoubtful,
    /// It is to start nothing new.
    Drain,
    /// A drain, or an end that nobody has been told of yet, is called off.
    Resume,
    /// It is to be ended.
    End,
    /// The provider has ended it, or does not know it.
    Ended,
}

/// An event that a state does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a node that is {state:?} cannot take {event:?}")]
pub struct Illegal {
    /// The state.
    pub state: State,
    /// The event.
    pub event: Event,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Requested,
        Self::Starting,
        Self::Joining,
        Self::Ready,
        Self::Suspect,
        Self::Draining,
        Self::Terminating,
        Self::Gone,
    ];

    /// The state after the event. Late and repeated news changes nothing; what would bring back the dead is illegal.
    pub fn next(self, event: Event) -> Result<Self, Illegal> {
        use State::{Draining, Gone, Joining, Ready, Requested, Starting, Suspect, Terminating};
        match (self, event) {
            (Gone, Event::Ended) => Ok(Gone),
            (Gone, _) => Err(Illegal { state: self, event }),
            (_, Event::Ended) => Ok(Gone),

            (Requested, Event::Confirmed) => Ok(Starting),
            (other, Event::Confirmed) => Ok(other),

            (Requested | Starting | Joining, Event::Boots) => Ok(Joining),
            // A node that was taken for late, or that restarts, boots; it stays doubtful until it is ready.
            (other, Event::Boots) => Ok(other),

            (Requested | Starting | Joining | Ready | Suspect, Event::IsReady) => Ok(Ready),
            // Ready says nothing about a drain; and the end of a late node is called off by Resume, if it still can be.
            (Draining, Event::IsReady) => Ok(Draining),
            (Terminating, Event::IsReady) => Ok(Terminating),

            (Requested | Starting | Joining | Ready | Suspect, Event::IsDoubtful) => Ok(Suspect),
            (Draining, Event::IsDoubtful) => Ok(Draining),
            (Terminating, Event::IsDoubtful) => Ok(Terminating),

            (Joining | Ready | Suspect | Draining, Event::Drain) => Ok(Draining),
            (Requested | Starting | Terminating, Event::Drain) => Err(Illegal { state: self, event }),

            (Draining | Terminating, Event::Resume) => Ok(Ready),
            (Requested | Starting | Joining | Ready | Suspect, Event::Resume) => Err(Illegal { state: self, event }),

            (_, Event::End) => Ok(Terminating),
        }
    }

    /// True while the node may still come to take work, or does.
    pub fn is_coming(self) -> bool {
        matches!(self, Self::Requested | Self::Starting | Self::Joining)
    }

    /// Its number in the database and in the contract.
    pub fn number(self) -> i16 {
        match self {
            Self::Requested => 1,
            Self::Starting => 2,
            Self::Joining => 3,
            Self::Ready => 4,
            Self::Suspect => 5,
            Self::Draining => 6,
            Self::Terminating => 7,
            Self::Gone => 8,
        }
    }

    /// The state of that number; none for a number that this build does not know.
    pub fn of(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 8] = [
        Event::Confirmed,
        Event::Boots,
        Event::IsReady,
        Event::IsDoubtful,
        Event::Drain,
        Event::Resume,
        Event::End,
        Event::Ended,
    ];

    #[test]
    fn every_pair_stands_and_nothing_brings_back_the_dead() {
        for state in State::ALL {
            for event in EVENTS {
                let next = state.next(event);
                if state == State::Gone {
                    assert_eq!(next.is_ok(), event == Event::Ended, "{event:?}");
                }
                if event == Event::Ended {
                    assert_eq!(next, Ok(State::Gone));
                }
                // Whatever happens by itself is taken in every state but the last one.
                let by_itself = matches!(event, Event::Confirmed | Event::Boots | Event::IsReady | Event::IsDoubtful);
                assert!(!by_itself || state == State::Gone || next.is_ok(), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn news_never_undoes_a_drain_or_an_end() {
        for event in [Event::Confirmed, Event::Boots, Event::IsReady, Event::IsDoubtful] {
            assert_eq!(State::Draining.next(event), Ok(State::Draining));
            assert_eq!(State::Terminating.next(event), Ok(State::Terminating));
        }
        assert_eq!(State::Draining.next(Event::Resume), Ok(State::Ready));
        assert_eq!(State::Terminating.next(Event::Resume), Ok(State::Ready));
    }

    #[test]
    fn numbers_are_the_contracts_and_read_back() {
        for state in State::ALL {
            assert_eq!(State::of(state.number()), Some(state));
        }
        assert_eq!((State::of(0), State::of(9)), (None, None));
    }
}
