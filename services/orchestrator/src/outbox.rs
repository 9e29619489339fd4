//! What waits to be sent, and how it is put into messages.

use std::collections::VecDeque;

use millrace_proto::distributor::v1::{
    Accepted, Completion, Completions, ConnectOrchestratorRequest, Goodbye, Heartbeat, Held as HeldList, LeaseRef,
    Progress, connect_orchestrator_request::Message,
};
use prost::Message as _;
use tokio::{
    sync::mpsc::{Permit, Sender},
    time::Instant,
};
use uuid::Uuid;

use crate::{
    book::{Held, LocalId, State},
    engine::Engine,
};

/// Messages that may wait for the transport. When as many do, everything stays in the outbox, output in its rings.
pub(crate) const OUTGOING: usize = 32;
/// Of these, how many output leaves to the messages that matter more.
const KEPT_FREE: usize = OUTGOING / 2;
/// Items in one message; the contract's limit for completions.
const MAX_ITEMS: usize = 1000;
/// Bytes of outcomes in one message, well below the 4 MiB that a distributor takes.
const MAX_BYTES: usize = 1 << 20;
/// Bytes of output in one message.
const MAX_OUTPUT_BYTES: usize = 256 * 1024;

/// What waits to be sent. It names attempts that the book holds, so it is bounded as the book is.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    held: bool,
    goodbye: Goodbyes,
    accepted: Vec<LeaseRef>,
    /// Results to send. A name may stand here twice, or of what is not held any more; both cost nothing but a look.
    completions: VecDeque<Uuid>,
    progress: VecDeque<(Uuid, LocalId)>,
    retries: Vec<Uuid>,
    retry_at: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Goodbyes {
    #[default]
    None,
    Wanted,
    Sent,
}

/// What flushing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Nothing waits.
    All,
    /// The transport is full; try again when it has room for this many messages.
    Blocked(usize),
}

impl Outbox {
    /// A new stream begins, and knows nothing of what was to be sent on the old one.
    pub(crate) fn reset(&mut self) {
        *self = Self { goodbye: self.goodbye, ..Self::default() };
    }

    pub(crate) fn accept(&mut self, lease: LeaseRef) {
        self.accepted.push(lease);
    }

    pub(crate) fn complete(&mut self, task: Uuid) {
        self.completions.push_back(task);
    }

    pub(crate) fn progress(&mut self, task: Uuid, local: LocalId) {
        self.progress.push_back((task, local));
    }

    pub(crate) fn send_held(&mut self) {
        self.held = true;
    }

    /// The session ends. After it nothing is sent on the stream.
    pub(crate) fn say_goodbye(&mut self) {
        self.goodbye = Goodbyes::Wanted;
    }

    pub(crate) fn said_goodbye(&self) -> bool {
        self.goodbye == Goodbyes::Sent
    }

    pub(crate) fn retry(&mut self, task: Uuid, at: Instant) {
        self.retries.push(task);
        self.retry_at.get_or_insert(at);
    }

    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(crate) fn retry_due(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.completions.extend(self.retries.drain(..));
        }
    }
}

/// The transport has no room for the next message, or is closed.
struct Full(usize);

impl Engine {
    /// Sends what waits, as far as the transport takes it: what keeps the session first, output last, but never a
    /// result before the output that came before it.
    pub(crate) fn flush(&mut self, stream: &Sender<ConnectOrchestratorRequest>, now: Instant) -> Flushed {
        if self.outbox.said_goodbye() {
            return Flushed::All;
        }
        match self.flush_all(stream, now) {
            Ok(()) => Flushed::All,
            Err(Full(room)) => Flushed::Blocked(room),
        }
    }

    fn flush_all(&mut self, stream: &Sender<ConnectOrchestratorRequest>, now: Instant) -> Result<(), Full> {
        self.flush_session(stream, now)?;
        self.flush_accepted(stream)?;
        self.flush_completions(stream)?;
        self.flush_progress(stream)?;
        if self.outbox.goodbye == Goodbyes::Wanted {
            send(room(stream)?, Message::Goodbye(Goodbye {}));
            self.outbox.goodbye = Goodbyes::Sent;
        }
        Ok(())
    }

    fn flush_session(&mut self, stream: &Sender<ConnectOrchestratorRequest>, now: Instant) -> Result<(), Full> {
        if self.outbox.held {
            send(room(stream)?, Message::Held(HeldList { leases: self.book.leases() }));
            self.outbox.held = false;
        }
        if self.lease.next_beat() <= now {
            let permit = room(stream)?;
            let (held_count, held_digest) = (self.book.held() as u32, self.book.digest());
            send(permit, Message::Heartbeat(Heartbeat { seq: self.lease.beat(now), held_count, held_digest }));
        }
        let permit = room(stream)?;
        if let Some(grant) = self.grants.next(self.credits()) {
            send(permit, Message::Grant(grant));
        }
        Ok(())
    }

    fn flush_accepted(&mut self, stream: &Sender<ConnectOrchestratorRequest>) -> Result<(), Full> {
        while !self.outbox.accepted.is_empty() {
            let permit = room(stream)?;
            let from = self.outbox.accepted.len().saturating_sub(MAX_ITEMS);
            send(permit, Message::Accepted(Accepted { leases: self.outbox.accepted.split_off(from) }));
        }
        Ok(())
    }

    fn flush_completions(&mut self, stream: &Sender<ConnectOrchestratorRequest>) -> Result<(), Full> {
        while !self.outbox.completions.is_empty() {
            let (mut completions, mut bytes) = (Vec::new(), 0);
            while completions.len() < MAX_ITEMS && bytes < MAX_BYTES {
                let Some(&task) = self.outbox.completions.front() else { break };
                let Some(Held { lease, state: State::Ended { outcome, control }, .. }) = self.book.get(task) else {
                    self.outbox.completions.pop_front();
                    continue;
                };
                if let Some(control) = control {
                    // Two places: one for the output and one for the results gathered so far.
                    while control.ring().has_news() {
                        if stream.capacity() < 2 {
                            return self.send_completions(stream, completions).and(Err(Full(2)));
                        }
                        send_output(room(stream)?, lease, control.take_output(MAX_OUTPUT_BYTES));
                    }
                }
                let completion = Completion { lease: Some(lease.clone()), outcome: Some((**outcome).clone()) };
                bytes += completion.encoded_len();
                // Popped one by one and put back by send_completions when there is no room for the message.
                self.outbox.completions.pop_front();
                completions.push((task, completion));
            }
            self.send_completions(stream, completions)?;
        }
        Ok(())
    }

    fn send_completions(
        &mut self,
        stream: &Sender<ConnectOrchestratorRequest>,
        completions: Vec<(Uuid, Completion)>,
    ) -> Result<(), Full> {
        if completions.is_empty() {
            return Ok(());
        }
        match room(stream) {
            Ok(permit) => {
                let completions = completions.into_iter().map(|(_, completion)| completion).collect();
                send(permit, Message::Completions(Completions { completions }));
                Ok(())
            }
            Err(full) => {
                for (task, _) in completions.into_iter().rev() {
                    self.outbox.completions.push_front(task);
                }
                Err(full)
            }
        }
    }

    fn flush_progress(&mut self, stream: &Sender<ConnectOrchestratorRequest>) -> Result<(), Full> {
        while let Some(&(task, local)) = self.outbox.progress.front() {
            if stream.capacity() <= KEPT_FREE {
                return Err(Full(KEPT_FREE + 1));
            }
            let chunks = match self.book.get(task) {
                Some(Held { lease, local: held, state: State::Running(control), .. }) if *held == local => {
                    let chunks = control.take_output(MAX_OUTPUT_BYTES);
                    if !chunks.is_empty() {
                        send_output(room(stream)?, lease, chunks);
                    }
                    control.ring().has_news()
                }
                _ => false,
            };
            // What a large ring still holds goes to the back, so that every attempt has its turn.
            self.outbox.progress.pop_front();
            if chunks {
                self.outbox.progress.push_back((task, local));
            }
        }
        Ok(())
    }
}

type Room<'a> = Permit<'a, ConnectOrchestratorRequest>;

fn room(stream: &Sender<ConnectOrchestratorRequest>) -> Result<Room<'_>, Full> {
    // A closed stream counts as full: its end is about to be seen by the reader.
    stream.try_reserve().map_err(|_| Full(1))
}

fn send(room: Room<'_>, message: Message) {
    room.send(ConnectOrchestratorRequest { message: Some(message) });
}

fn send_output(room: Room<'_>, lease: &LeaseRef, chunks: Vec<millrace_proto::common::v1::OutputChunk>) {
    send(room, Message::Progress(Progress { lease: Some(lease.clone()), chunks }));
}
