//! Exchange streams to the owners of queues: offers, demand and answers out, matches in. Mirrors
//! `services/distributor/src/links.rs` and `tasks/owners.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_core::{
    id::{MemberId, TaskId},
    owners::{LinkEnd, Owners, Reach},
};
use millrace_store::{MemberRow, OwnerRow, Waiting};

use crate::{
    claims,
    message::{Demand, Ended, Message, Verdict},
    mutant::Mutant,
    net::{CALLER, Kind, StreamId},
    replica,
    world::{Pid, Target, World},
};

/// Every link, and which queue goes over which.
#[derive(Default)]
pub(crate) struct Links {
    owners: Owners<StreamId>,
    reach: Reach<MemberId>,
    /// Links that are kept, from the first try to open them on, with the owners that were dialled.
    linking: BTreeMap<StreamId, MemberId>,
    outboxes: BTreeMap<StreamId, Outbox>,
    /// Queues that nobody looks for on the links that are left: only a planted bug puts any there.
    lost: BTreeSet<String>,
}

#[derive(Default)]
struct Outbox {
    answers: BTreeMap<String, Vec<(TaskId, Verdict)>>,
    offers: BTreeMap<String, Vec<Waiting>>,
    demands: BTreeSet<(String, u64)>,
    leaving: bool,
}

impl Links {
    /// The link of a queue, if its owner is reached.
    fn of(&self, queue: &str) -> Option<StreamId> {
        self.owners.link(queue).filter(|_| !self.lost.contains(queue))
    }

    fn reaches(&self, owner: MemberId) -> bool {
        self.linking.iter().any(|(stream, dialled)| *dialled == owner && self.owners.has_announced(*stream))
    }
}

/// Offers a task to its queue's owner. Dropped when the owner is not reached.
pub(crate) fn offer(world: &mut World, pid: Pid, queue: &str, waiting: Waiting) {
    if world.config.offers_lost > 0.0 && !world.settling && world.chance(world.config.offers_lost) {
        return;
    }
    let doubled = world.config.offers_doubled > 0.0 && world.chance(world.config.offers_doubled);
    let Some(links) = world.replica(pid).map(|replica| &replica.links) else { return };
    let Some(stream) = links.of(queue) else { return };
    change(world, pid, stream, |outbox| {
        let offers = outbox.offers.entry(queue.to_owned()).or_default();
        offers.extend(doubled.then(|| waiting.clone()));
        offers.push(waiting);
    });
}

/// Says that a session can take more or less of these queues than before.
pub(crate) fn demand(world: &mut World, pid: Pid, receiver: u64, queues: &[String]) {
    for queue in queues {
        let link = world.replica(pid).and_then(|replica| replica.links.of(queue));
        if let Some(stream) = link {
            change(world, pid, stream, |outbox| {
                outbox.demands.insert((queue.clone(), receiver));
            });
        }
    }
}

/// The same for all queues of the session.
pub(crate) fn demand_all(world: &mut World, pid: Pid, receiver: u64) {
    let queues = world.replica(pid).and_then(|replica| replica.stays.get(&receiver)).map(|stay| stay.queues.clone());
    demand(world, pid, receiver, &queues.unwrap_or_default());
}

/// Tells the owner what became of matches.
pub(crate) fn answer(world: &mut World, pid: Pid, stream: StreamId, queue: &str, answers: Vec<(TaskId, Verdict)>) {
    change(world, pid, stream, |outbox| outbox.answers.entry(queue.to_owned()).or_default().extend(answers));
}

fn change(world: &mut World, pid: Pid, stream: StreamId, change: impl FnOnce(&mut Outbox)) {
    let outbox = world.replica(pid).and_then(|replica| replica.links.outboxes.get_mut(&stream));
    let Some(outbox) = outbox else { return };
    change(outbox);
    if !std::mem::replace(&mut outbox.leaving, true) {
        let delay = world.span(Duration::ZERO, Duration::from_millis(2));
        world.after(delay, Target::Process(pid), "link", move |world| leave(world, pid, stream));
    }
}

/// What has gathered leaves: answers, then offers, then demand as it is now.
fn leave(world: &mut World, pid: Pid, stream: StreamId) {
    let Some(replica) = world.replica(pid) else { return };
    let Some(outbox) = replica.links.outboxes.get_mut(&stream) else { return };
    let Outbox { answers, offers, demands, .. } = std::mem::take(outbox);
    let links = &replica.links;
    let demands: Vec<Demand> = demands
        .into_iter()
        // The queue may have gone over to another link meanwhile.
        .filter(|(queue, _)| links.of(queue) == Some(stream))
        .map(|(queue, receiver)| match replica.stays.get_mut(&receiver) {
            Some(stay) => stay.demand(&queue, stream),
            // It has left: the owner forgets its numbers.
            None => Demand { queue, receiver, seq: u64::MAX, credits: 0, acked: 0, closed: true },
        })
        .collect();
    for (queue, answers) in answers {
        world.send(stream, CALLER, Message::Answers { queue, answers });
    }
    for (queue, offers) in offers {
        world.send(stream, CALLER, Message::Offers { queue, offers });
    }
    if !demands.is_empty() {
        world.send(stream, CALLER, Message::Demands(demands));
    }
}

// ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A message from an owner.
pub(crate) fn received(world: &mut World, pid: Pid, stream: StreamId, message: Message) {
    match message {
        Message::Ownership { owner, queues } => take_ownership(world, pid, stream, owner, queues),
        Message::Matches { queue, epoch, matches } => claims::matched(world, pid, stream, queue, epoch, matches),
        other => world.violation(format!("a distributor received {other:?} from an owner")),
    }
}

fn take_ownership(world: &mut World, pid: Pid, stream: StreamId, owner: MemberId, queues: Vec<(String, i64)>) {
    let mutant = world.mutant;
    let Some(replica) = world.replica(pid) else { return };
    let links = &mut replica.links;
    let dialled = links.linking.get(&stream).is_some_and(|dialled| *dialled == owner);
    if !dialled && mutant != Some(Mutant::QueuesGoWithTheirLink) {
        // It was started anew where an owner had been whose lease has not ended.
        world.end(stream, CALLER, Ended::Silent);
        return over(world, pid, stream, LinkEnd::Replaced);
    }
    links.lost.retain(|queue| queues.iter().all(|(owned, _)| owned != queue));
    let changed = links.owners.announce(stream, queues);
    demand_of_all(world, pid, &changed);
}

/// The stream is over.
pub(crate) fn closed(world: &mut World, pid: Pid, stream: StreamId, how: Ended) {
    let Some(replica) = world.replica(pid) else { return };
    let end = match how {
        Ended::NotOwner => LinkEnd::Replaced,
        _ if replica.links.owners.has_announced(stream) => LinkEnd::Announced,
        _ => LinkEnd::Unreached,
    };
    over(world, pid, stream, end);
}

fn over(world: &mut World, pid: Pid, stream: StreamId, end: LinkEnd) {
    let mutant = world.mutant;
    let Some(replica) = world.replica(pid) else { return };
    let links = &mut replica.links;
    let changed = links.owners.end(stream);
    links.outboxes.remove(&stream);
    let look_at_once = links.linking.remove(&stream).is_some_and(|owner| links.reach.ended(owner, end));
    if mutant == Some(Mutant::QueuesGoWithTheirLink) {
        links.lost.extend(changed.iter().cloned());
    }
    for stay in replica.stays.values_mut() {
        stay.forget_link(stream);
    }
    demand_of_all(world, pid, &changed);
    if look_at_once || mutant == Some(Mutant::LinksAreRetriedAtOnce) {
        world.after(Duration::from_millis(5), Target::Process(pid), "look for owners", move |world| look(world, pid));
    }
}

/// Sends every session's demand for queues that go over another link now.
fn demand_of_all(world: &mut World, pid: Pid, queues: &[String]) {
    let Some(replica) = world.replica(pid) else { return };
    let stays: Vec<(u64, Vec<String>)> =
        replica.stays.values().map(|stay| (stay.receiver, stay.queues.clone())).collect();
    for (receiver, served) in stays {
        let served: Vec<String> = served.into_iter().filter(|queue| queues.contains(queue)).collect();
        demand(world, pid, receiver, &served);
    }
}

// ── Who owns what ───────────────────────────────────────────────────────────────────────────────────────────────────

/// Finds the queues' owners and keeps a link to each.
pub(crate) fn look(world: &mut World, pid: Pid) {
    if world.replica(pid).is_none_or(|replica| replica.incarnation.is_none()) {
        return;
    }
    world.call(
        pid,
        "owners",
        |db| Ok((db.store().owners()?, db.store().members()?)),
        move |world, read| {
            if let Ok((owners, members)) = read {
                found(world, pid, owners, members);
            }
        },
    );
}

fn found(world: &mut World, pid: Pid, owners: Vec<OwnerRow>, members: Vec<MemberRow>) {
    let mut queues: BTreeMap<(MemberId, String), Vec<String>> = BTreeMap::new();
    for row in owners {
        if let Some(owner) = row.owner {
            queues.entry(owner).or_default().push(row.queue);
        }
    }
    let Some(replica) = world.replica(pid) else { return };
    let known: BTreeSet<MemberId> = members.iter().map(|member| member.id).collect();
    replica.members = members;
    replica.links.reach.keep(&queues.keys().map(|(owner, _)| *owner).collect());
    for ((owner, endpoint), queues) in queues {
        if known.contains(&owner) {
            link(world, pid, owner, &endpoint);
        }
        cut_off(world, pid, owner, &queues);
    }
}

fn link(world: &mut World, pid: Pid, owner: MemberId, endpoint: &str) {
    let (Some(replica), Ok(place)) = (world.replica(pid), endpoint.parse::<usize>()) else { return };
    if replica.draining || !replica.links.reach.dial(owner) {
        return;
    }
    let stream = world.connect(Kind::Exchange, pid, place, Message::ExchangeHello);
    let Some(replica) = world.replica(pid) else { return };
    replica.links.linking.insert(stream, owner);
    replica.links.outboxes.insert(stream, Outbox::default());
}

/// Sends the orchestrators of queues whose live owner cannot be reached from here to another replica.
fn cut_off(world: &mut World, pid: Pid, owner: MemberId, queues: &[String]) {
    let now = world.now;
    let away = world.span(Duration::ZERO, Duration::from_secs(1));
    let Some(replica) = world.replica(pid) else { return };
    let reached = replica.links.reaches(owner);
    let other = replica.other();
    if !replica.links.reach.is_cut_off(owner, reached, now) || other.is_none() {
        return;
    }
    let mut sent_away = Vec::new();
    for stay in replica.stays.values_mut().filter(|stay| stay.queues.iter().any(|queue| queues.contains(queue))) {
        stay.go_away(away, other);
        sent_away.push(stay.receiver);
    }
    for receiver in sent_away {
        replica::flush(world, pid, receiver);
    }
}
