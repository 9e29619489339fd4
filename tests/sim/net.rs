//! Streams between processes: in order, with random delays, and cut at random; each end notices a cut in its own time.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    connection, exchange, links,
    message::{Ended, Message},
    replica,
    world::{Pid, Target, World},
};

/// One stream; the number is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(pub u64);

/// The ends: who called, and who was called.
pub(crate) const CALLER: usize = 0;
pub(crate) const CALLEE: usize = 1;

/// Streams that a place may open within a second. More of them are tries without a pause.
const STREAMS_A_SECOND: usize = 24;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From an orchestrator to a distributor.
    Session,
    /// From a distributor to the owner of queues.
    Exchange,
}

struct Stream {
    kind: Kind,
    ends: [Pid; 2],
    cut: bool,
    /// The end has left, or has noticed that the stream is over.
    closed: [bool; 2],
    /// When the last message under way to each end arrives.
    arrives: [Duration; 2],
}

/// Every stream, and which places cannot reach each other at present.
#[derive(Default)]
pub(crate) struct Net {
    streams: Vec<Stream>,
    /// When each place has opened streams lately.
    opened: BTreeMap<usize, VecDeque<Duration>>,
    pub blocked: Vec<(usize, usize)>,
}

impl Net {
    fn is_blocked(&self, one: usize, other: usize) -> bool {
        self.blocked.contains(&(one, other)) || self.blocked.contains(&(other, one))
    }

    /// Streams that are neither cut nor over; of one kind, or of any.
    pub(crate) fn open(&self, kind: Option<Kind>) -> Vec<StreamId> {
        let wanted = |stream: &Stream| kind.is_none_or(|kind| stream.kind == kind);
        let open = |stream: &Stream| !stream.cut && stream.closed == [false; 2] && wanted(stream);
        (0..self.streams.len())
            .filter(|&index| open(&self.streams[index]))
            .map(|index| StreamId(index as u64))
            .collect()
    }
}

impl World {
    /// Opens a stream with its first message. One that cannot be opened ends for the caller after a while.
    pub(crate) fn connect(&mut self, kind: Kind, from: Pid, to: usize, first: Message) -> StreamId {
        let id = StreamId(self.net.streams.len() as u64);
        let lately = self.net.opened.entry(from.index).or_default();
        lately.push_back(self.now);
        lately.retain(|at| *at + Duration::from_secs(1) >= self.now);
        if lately.len() > STREAMS_A_SECOND {
            self.violation(format!("{from:?} tries without a pause to reach place {to}"));
        }
        let there = self.pid(to);
        let ends = [from, there.unwrap_or(Pid { index: to, life: u64::MAX })];
        let stream = Stream { kind, ends, cut: false, closed: [false; 2], arrives: [Duration::ZERO; 2] };
        self.net.streams.push(stream);
        if there.is_none() {
            self.cut(id);
        }
        self.send(id, CALLER, first);
        id
    }

    /// Sends a message from one end. It is lost when the stream is cut, or will be before it arrives.
    pub(crate) fn send(&mut self, id: StreamId, from: usize, message: Message) {
        let stream = &self.net.streams[id.0 as usize];
        if stream.cut || stream.closed[from] {
            return;
        }
        if self.net.is_blocked(stream.ends[0].index, stream.ends[1].index) {
            self.cut(id);
            return;
        }
        let to = 1 - from;
        let delay = self.latency();
        let stream = &mut self.net.streams[id.0 as usize];
        let at = stream.arrives[to].max(self.now + delay);
        stream.arrives[to] = at;
        let target = Target::Process(stream.ends[to]);
        self.after(at - self.now, target, "message", move |world| deliver(world, id, to, message));
    }

    /// One end ends the stream: what it has sent still arrives, then the other end hears of it.
    pub(crate) fn end(&mut self, id: StreamId, from: usize, how: Ended) {
        self.send(id, from, Message::End(how));
        self.net.streams[id.0 as usize].closed[from] = true;
    }

    /// Cuts the stream: what is under way is lost, and each end notices in its own time.
    pub(crate) fn cut(&mut self, id: StreamId) {
        let stream = &mut self.net.streams[id.0 as usize];
        if std::mem::replace(&mut stream.cut, true) {
            return;
        }
        let ends = stream.ends;
        for (end, pid) in ends.into_iter().enumerate() {
            let soon = self.chance(0.6);
            let most = if soon { Duration::from_millis(20) } else { self.config.unnoticed };
            let delay = self.span(Duration::ZERO, most);
            self.after(delay, Target::Process(pid), "cut noticed", move |world| close(world, id, end, Ended::Silent));
        }
    }

    /// Cuts every stream of a place: its process is gone, or cannot be reached.
    pub(crate) fn cut_all(&mut self, concerns: impl Fn(usize, usize) -> bool) {
        for id in self.net.open(None) {
            let [one, other] = self.net.streams[id.0 as usize].ends;
            if concerns(one.index, other.index) {
                self.cut(id);
            }
        }
    }

    /// Whether this end of the stream is still there.
    pub(crate) fn is_open(&self, id: StreamId, end: usize) -> bool {
        !self.net.streams[id.0 as usize].closed[end]
    }
}

fn deliver(world: &mut World, id: StreamId, to: usize, message: Message) {
    let stream = &world.net.streams[id.0 as usize];
    if stream.cut || stream.closed[to] {
        return;
    }
    let (kind, pid) = (stream.kind, stream.ends[to]);
    world.note(|| format!("{pid:?} receives on {}: {message:?}", id.0));
    match (kind, to, message) {
        (_, _, Message::End(how)) => close(world, id, to, how),
        (Kind::Session, CALLER, message) => connection::received(world, pid, id, message),
        (Kind::Session, _, message) => replica::received(world, pid, id, message),
        (Kind::Exchange, CALLER, message) => links::received(world, pid, id, message),
        (Kind::Exchange, _, message) => exchange::received(world, pid, id, message),
    }
}

fn close(world: &mut World, id: StreamId, end: usize, how: Ended) {
    let stream = &mut world.net.streams[id.0 as usize];
    if std::mem::replace(&mut stream.closed[end], true) {
        return;
    }
    let (kind, pid) = (stream.kind, stream.ends[end]);
    world.note(|| format!("{pid:?} sees stream {} end: {how:?}", id.0));
    match (kind, end) {
        (Kind::Session, CALLER) => connection::closed(world, pid, id, how),
        (Kind::Session, _) => replica::closed(world, pid, id),
        (Kind::Exchange, CALLER) => links::closed(world, pid, id, how),
        (Kind::Exchange, _) => exchange::closed(world, pid, id),
    }
}
