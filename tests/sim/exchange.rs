//! The exchange streams of a host of matchers. Mirrors `services/queue/src/host/connection.rs`.

use std::collections::BTreeMap;

use millrace_core::{READER_RANGE, matcher::Connection};
use millrace_store::MemberKind;

use crate::{
    host::{self, Host},
    matching::{self, Matching},
    message::{Ended, Message},
    mutant::Mutant,
    net::{CALLEE, StreamId},
    world::{Pid, World},
};

/// A message from a distributor.
pub(crate) fn received(world: &mut World, pid: Pid, stream: StreamId, message: Message) {
    let Some(host) = world.host(pid) else { return };
    let queue = match message {
        Message::ExchangeHello => {
            if host.leaving {
                return world.end(stream, CALLEE, Ended::Unavailable);
            }
            if host.kind == MemberKind::Distributor && host.owned.is_empty() {
                return world.end(stream, CALLEE, Ended::NotOwner);
            }
            host.streams.insert(stream, BTreeMap::new());
            return announce(world, pid);
        }
        Message::Offers { queue, offers } => {
            if let Some(matching) = opened(host, stream, &queue) {
                matching.offers(offers);
            }
            vec![queue]
        }
        Message::Demands(demands) => {
            for demand in &demands {
                if let Some(matching) = opened(host, stream, &demand.queue) {
                    matching.demand(stream, demand);
                }
            }
            demands.into_iter().map(|demand| demand.queue).collect()
        }
        Message::Answers { queue, answers } => {
            let refused = opened(host, stream, &queue).is_some_and(|matching| matching.answers(stream, answers));
            if refused {
                host::round(world, pid);
            }
            vec![queue]
        }
        other => return world.violation(format!("an owner received {other:?}")),
    };
    for queue in queue {
        matching::work(world, pid, &queue);
    }
}

/// The matcher of a queue, if it is ours and knows the stream.
fn opened<'a>(host: &'a mut Host, stream: StreamId, queue: &str) -> Option<&'a mut Matching> {
    let number = host.streams.get(&stream)?.get(queue)?;
    host.owned.get_mut(queue).filter(|matching| matching.number == *number)
}

/// Makes every stream known to the matchers that are ours, then tells its distributor which they are. Demand and matches
/// are numbered by the stream, so a queue that was lost and is ours again needs a new stream.
pub(crate) fn announce(world: &mut World, pid: Pid) {
    let mutant = world.mutant;
    let Some(host) = world.host(pid) else { return };
    let owner = host.member;
    let ownership: Vec<(String, i64)> = host.owned.iter().map(|(queue, owned)| (queue.clone(), owned.epoch)).collect();
    let (mut told, mut over) = (Vec::new(), Vec::new());
    for (stream, opened) in &mut host.streams {
        let mut regained = false;
        for (queue, owned) in &mut host.owned {
            let before = opened.insert(queue.clone(), owned.number);
            regained |= before.is_some_and(|number| number != owned.number);
            if before != Some(owned.number) {
                owned.matcher.open(Connection(stream.0), READER_RANGE.1);
            }
        }
        match regained && mutant != Some(Mutant::RegainedOnTheSameStream) {
            true => over.push(*stream),
            false => told.push(*stream),
        }
    }
    for stream in told {
        world.send(stream, CALLEE, Message::Ownership { owner, queues: ownership.clone() });
    }
    for stream in over {
        closed(world, pid, stream);
        world.end(stream, CALLEE, Ended::Unavailable);
    }
}

/// The stream is over: its demand goes, and its matches return.
pub(crate) fn closed(world: &mut World, pid: Pid, stream: StreamId) {
    let leaks = world.mutant == Some(Mutant::MatchesLeak);
    let Some(host) = world.host(pid) else { return };
    let Some(opened) = host.streams.remove(&stream) else { return };
    for queue in opened.into_keys() {
        if let Some(owned) = world.host(pid).and_then(|host| host.owned.get_mut(&queue))
            && !leaks
        {
            owned.matcher.close(Connection(stream.0));
        }
        matching::work(world, pid, &queue);
    }
}
