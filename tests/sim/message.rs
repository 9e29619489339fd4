//! What travels on streams: the contract's messages, as far as the protocol needs them, with core's types for ids.

use std::{collections::BTreeSet, time::Duration};

use millrace_core::{
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    retry::OutcomeKind,
};
use millrace_store::Waiting;

/// A message in either direction of either kind of stream.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    // From an orchestrator to a distributor.
    Hello(Hello),
    Grant {
        seq: u64,
        credits: u32,
        acked: u64,
    },
    Accepted(Vec<LeaseRef>),
    Completions(Vec<(LeaseRef, OutcomeKind)>),
    Heartbeat {
        seq: u64,
        count: usize,
        digest: u64,
    },
    Held(Vec<LeaseRef>),
    Goodbye,
    // From a distributor to an orchestrator.
    Welcome {
        session: SessionId,
        generation: i64,
        ttl: Duration,
        revoked: Vec<LeaseRef>,
    },
    Assignments(Vec<Assignment>),
    Results(Vec<(LeaseRef, Report)>),
    Cancel(Vec<LeaseRef>),
    Revoke(Vec<LeaseRef>),
    Beat(u64),
    SendHeld,
    GoAway {
        delay: Duration,
        to: Option<usize>,
    },
    // From a distributor to a queue's owner.
    ExchangeHello,
    Offers {
        queue: String,
        offers: Vec<Waiting>,
    },
    Demands(Vec<Demand>),
    Answers {
        queue: String,
        answers: Vec<(TaskId, Verdict)>,
    },
    // From an owner to a distributor.
    Ownership {
        owner: MemberId,
        queues: Vec<(String, i64)>,
    },
    Matches {
        queue: String,
        epoch: i64,
        matches: Vec<Match>,
    },
    /// The last message of a stream that its sender ends.
    End(Ended),
}

/// Opens or resumes a session.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub resume: Option<(SessionId, i64)>,
    pub previous: Option<SessionId>,
    pub name: String,
    pub queues: Vec<String>,
    pub slots: u32,
    pub ttl: Duration,
    pub held: BTreeSet<LeaseRef>,
}

/// Work. The number stands for the spec: it names the [`crate::people::Plan`] of the task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Assignment {
    pub seq: u64,
    pub lease: LeaseRef,
    pub number: u32,
    pub resent: bool,
}

/// What became of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    Recorded,
    Stale,
    Unavailable,
}

/// What a session can take from a queue; closed when it has left.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    pub queue: String,
    pub receiver: u64,
    pub seq: u64,
    pub credits: u32,
    pub acked: u64,
    pub closed: bool,
}

/// What became of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Claimed,
    Stale,
    Returned,
    Refused,
}

/// A task and the receiver it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Match {
    pub task: TaskId,
    pub receiver: u64,
    pub seq: u64,
}

/// How a stream ended, as the other end hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// In order, or broken: nothing was said.
    Silent,
    /// SESSION_GONE: only a resume says so.
    Gone,
    /// SESSION_MOVED: it goes on under a later generation, or is over.
    Moved,
    /// UNAVAILABLE.
    Unavailable,
    /// NO_SUCH_QUEUE.
    NoSuchQueue,
    /// NOT_OWNER: a distributor that hosts no matcher.
    NotOwner,
}
