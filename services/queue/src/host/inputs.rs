//! What a matcher's actor waits for, gathered into rounds.

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    mailbox::{Command, Offers},
    reads::Read,
};

/// Messages of one kind that one round takes at most, so that matches go out between them.
const BATCH: usize = 64;

/// What has come in for one round.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) commands: Vec<Command>,
    pub(super) offers: Vec<Offers>,
    pub(super) reads: Vec<Read>,
    /// Set when the pause was set, be it to the value that it had.
    pub(super) paused: Option<bool>,
}

/// The receiving sides of a matcher's actor.
#[derive(Debug)]
pub(super) struct Inputs {
    commands: mpsc::Receiver<Command>,
    offers: mpsc::Receiver<Offers>,
    paused: watch::Receiver<bool>,
    stop: CancellationToken,
}

impl Inputs {
    pub(super) fn new(
        commands: mpsc::Receiver<Command>,
        offers: mpsc::Receiver<Offers>,
        paused: watch::Receiver<bool>,
        stop: CancellationToken,
    ) -> Self {
        Self { commands, offers, paused, stop }
    }

    /// Whether matching is stopped now.
    pub(super) fn is_paused(&mut self) -> bool {
        *self.paused.borrow_and_update()
    }

    /// Waits for something to do until `deadline`, or not at all when there is none, then takes whatever else is there
    /// already, each within its bound. False when the actor is to end.
    pub(super) async fn gather(
        &mut self,
        batch: &mut Batch,
        reads: &mut mpsc::Receiver<Read>,
        deadline: Option<Instant>,
    ) -> bool {
        let mut paused_set = false;
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return false,
            changed = self.paused.changed() => match changed {
                Ok(()) => paused_set = true,
                Err(_) => return false,
            },
            received = self.commands.recv_many(&mut batch.commands, BATCH) => if received == 0 { return false },
            received = self.offers.recv_many(&mut batch.offers, BATCH) => if received == 0 { return false },
            Some(read) = reads.recv() => batch.reads.push(read),
            () = passed(deadline) => {}
        }
        fill(&mut batch.commands, &mut self.commands);
        fill(&mut batch.offers, &mut self.offers);
        fill(&mut batch.reads, reads);
        // Read last, so that a pause set before this moment holds for the matches of this round.
        paused_set |= self.paused.has_changed().unwrap_or(false);
        batch.paused = paused_set.then(|| *self.paused.borrow_and_update());
        true
    }
}

async fn passed(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        sleep_until(deadline).await;
    }
}

fn fill<T>(batch: &mut Vec<T>, channel: &mut mpsc::Receiver<T>) {
    while batch.len() < BATCH {
        match channel.try_recv() {
            Ok(item) => batch.push(item),
            Err(_) => break,
        }
    }
}
