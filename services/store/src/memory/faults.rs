//! Calls that fail because the test wants it.

use std::{collections::VecDeque, fmt};

use crate::StoreError;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The database cannot be reached: nothing is done, and the caller knows it.
    BeforeCommit,
    /// The commit is lost on its way: nothing is done, and the caller cannot know.
    CommitLost,
    /// The answer to the commit is lost: it is done, and the caller cannot know.
    AfterCommit,
}

impl Fault {
    /// Whether the call is done all the same.
    pub(super) fn commits(self) -> bool {
        self == Fault::AfterCommit
    }

    /// What the caller is told.
    pub(super) fn error(self, method: &str) -> StoreError {
        match self {
            Fault::BeforeCommit => StoreError::Unavailable(format!("{method} failed on request")),
            Fault::CommitLost | Fault::AfterCommit => {
                StoreError::UnknownOutcome(format!("{method} lost its answer on request"))
            }
        }
    }
}

type Choice = Box<dyn FnMut(&'static str) -> Option<Fault> + Send>;

/// The faults that are due.
#[derive(Default)]
pub(super) struct Faults {
    /// One for each of the next calls. As long as what the test has asked for.
    due: VecDeque<Fault>,
    choose: Option<Choice>,
}

impl Faults {
    pub(super) fn push(&mut self, fault: Fault) {
        self.due.push_back(fault);
    }

    pub(super) fn choose_by(&mut self, choose: Choice) {
        self.choose = Some(choose);
    }

    /// The fault of the call that is being made.
    pub(super) fn next(&mut self, method: &'static str) -> Option<Fault> {
        self.due.pop_front().or_else(|| self.choose.as_mut().and_then(|choose| choose(method)))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("due", &self.due).field("chooses", &self.choose.is_some()).finish()
    }
}
