//! What goes into a matcher's actor, and what the rest of the host holds of it.

use std::sync::{Arc, Mutex, PoisonError};

use millrace_core::{
    id::TaskId,
    matcher::{Answer, Connection, Entry, Lane, Receiver},
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{figures::Figures, outbox::Outbox};

/// What must not be lost: a full mailbox holds the sender back, and with it that connection's stream.
#[derive(Debug)]
pub(super) enum Command {
    /// A distributor's stream, with the newest row format that it can act on. Comes before anything else of it.
    Open { connection: Connection, newest_format: i16, outbox: Arc<Outbox> },
    /// The stream has ended.
    Close(Connection),
    /// What sessions can take.
    Demands(Connection, Vec<Demand>),
    /// What became of matches.
    Answers(Connection, Vec<(TaskId, Verdict)>),
}

/// What one session can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) receiver: Receiver,
    /// None when the session has left.
    pub(super) grant: Option<Grant>,
}

/// An absolute, sequenced grant of credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) seq: u64,
    pub(super) credits: u32,
    pub(super) acked: u64,
}

/// What became of one match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// What the matcher itself understands.
    Answer(Answer),
    /// The gate refused: another epoch, or a pause that this process has not seen yet.
    Refused,
}

/// Tasks that have just joined a queue. Hints: dropped when the mailbox is full.
pub(super) type Offers = Vec<(Lane, Entry)>;

/// The sending side of a matcher's actor.
#[derive(Debug, Clone)]
pub(super) struct Mailbox {
    /// Bounded; a sender waits when it is full.
    pub(super) commands: mpsc::Sender<Command>,
    /// Bounded; what does not fit is dropped, and the sweep finds it in the database.
    pub(super) offers: mpsc::Sender<Offers>,
    /// Counts offers that did not fit.
    pub(super) dropped: Counter,
}

/// A queue that is ours.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    /// The epoch of the ownership.
    pub(super) epoch: i64,
    /// Tells matchers of the same queue apart within this process.
    pub(super) number: u64,
    pub(super) mailbox: Mailbox,
    /// Holds one value, so it is never full; sending the same value again lifts a suspicion, see `Actor::refused`.
    pub(super) paused: watch::Sender<bool>,
    pub(super) figures: Arc<Mutex<Figures>>,
    /// Stops the actor.
    pub(super) stop: CancellationToken,
}

impl Owned {
    /// Sets whether matching is stopped. Never waits.
    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// The matcher's figures as it last published them.
    pub(super) fn figures(&self) -> Figures {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the actor has ended, which without being stopped it only does by a defect.
    pub(super) fn is_dead(&self) -> bool {
        self.mailbox.commands.is_closed()
    }
}
