//! The streams of nodes at the leader: one for each node, the newest wins.

use std::collections::BTreeMap;

use millrace_core::{fleet::books::Order, id::NodeId};
use millrace_proto::scaler::v1::{self as wire, attach_node_response::Message};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use crate::convert;

/// Messages to a node that wait to be sent. They are few (a welcome, orders); a node that does not read them loses its stream, attaches
/// again, and is then told what it missed.
pub(crate) const OUTBOX: usize = 16;

/// The side of a stream that goes to the node.
pub(crate) type Outbox = mpsc::Sender<Result<wire::AttachNodeResponse, Status>>;

/// A stream, from the leader's side. Dropped, both its directions end.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Tells it from other streams of the same node.
    pub(crate) number: u64,
    /// To the node.
    pub(crate) outbox: Outbox,
    /// Ends the task that reads from the node, when it is dropped.
    _reading: DropGuard,
}

impl Stream {
    pub(crate) fn new(number: u64, outbox: Outbox, reading: CancellationToken) -> Self {
        Self { number, outbox, _reading: reading.drop_guard() }
    }

    /// Sends, unless the node has not read what was sent before.
    fn send(&self, message: Message) -> bool {
        self.outbox.try_send(Ok(wire::AttachNodeResponse { message: Some(message) })).is_ok()
    }
}

/// The streams of all nodes that are attached.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: BTreeMap<NodeId, Stream>,
}

impl Streams {
    /// Takes a node's stream in, in place of the one it had.
    pub(crate) fn enter(&mut self, node: NodeId, stream: Stream) {
        if let Some(older) = self.streams.insert(node, stream) {
            older.send(go_away("the node has attached anew", None));
        }
    }

    /// Whether this is the node's stream.
    pub(crate) fn is_current(&self, node: NodeId, number: u64) -> bool {
        self.streams.get(&node).is_some_and(|stream| stream.number == number)
    }

    /// Ends the node's stream.
    pub(crate) fn remove(&mut self, node: NodeId) {
        self.streams.remove(&node);
    }

    /// Ends the node's stream with an error.
    pub(crate) fn refuse(&mut self, node: NodeId, status: Status) {
        if let Some(stream) = self.streams.remove(&node) {
            let _ = stream.outbox.try_send(Err(status));
        }
    }

    /// Sends to a node that is attached. False when it was and has not read what came before: its stream has ended.
    #[must_use]
    pub(crate) fn send(&mut self, node: NodeId, message: Message) -> bool {
        let sent = self.streams.get(&node).is_none_or(|stream| stream.send(message));
        if !sent {
            tracing::debug!(%node, "the node does not read its stream, which ends");
            self.streams.remove(&node);
        }
        sent
    }

    /// Ends all streams, each with a word on why.
    pub(crate) fn end(&mut self, reason: &str, reconnect_after: Option<std::time::Duration>) {
        for (_, stream) in std::mem::take(&mut self.streams) {
            stream.send(go_away(reason, reconnect_after));
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }
}

/// Attach to another scaler.
pub(crate) fn go_away(reason: &str, reconnect_after: Option<std::time::Duration>) -> Message {
    Message::GoAway(wire::NodeGoAway { reason: reason.into(), reconnect_after: reconnect_after.map(convert::duration) })
}

/// An order, as the wire has it.
pub(crate) fn order(order: Order) -> Message {
    match order {
        Order::Drain(reason) => Message::Drain(wire::NodeDrain { reason }),
        Order::Resume => Message::Resume(wire::NodeResume {}),
    }
}
