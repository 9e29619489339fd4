//! Exchange streams to the owners of queues: offers, demand and answers out, matches in. Mirrors
//! `services/distributor/src/links.rs` and `tasks/owners.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_core::id::{MemberId, TaskId};
use millrace_store::{MemberRow, OwnerRow, Waiting};

use crate::{
    claims,
    message::{Demand, Message, Verdict},
    mutant::Mutant,
    net::{CALLER, Kind, StreamId},
    replica,
    world::{Pid, Target, World},
};

/// How long an owner may be out of reach before the orchestrators of its queues are sent to another replica (R5).
const CUT_OFF: Duration = Duration::from_secs(5);

/// Every link, and which queue goes over which.
#[derive(Default)]
pub(crate) struct Links {
    by_owner: BTreeMap<MemberId, StreamId>,
    /// What the owner at the other end of each link has said that it owns. There may be two links to one process: it was
    /// started anew where an owner had been whose lease has not ended.
    announced: BTreeMap<StreamId, Vec<(String, i64)>>,
    /// The link of each queue: the one whose owner has the latest epoch.
    by_queue: BTreeMap<String, (StreamId, i64)>,
    /// Links that are kept, from the first try to open them on.
    linking: BTreeMap<MemberId, StreamId>,
    outboxes: BTreeMap<StreamId, Outbox>,
    unreached: BTreeMap<MemberId, Duration>,
}

#[derive(Default)]
struct Outbox {
    answers: BTreeMap<String, Vec<(TaskId, Verdict)>>,
    offers: BTreeMap<String, Vec<Waiting>>,
    demands: BTreeSet<(String, u64)>,
    leaving: bool,
}

/// Offers a task to its queue's owner. Dropped when the owner is not reached.
pub(crate) fn offer(world: &mut World, pid: Pid, queue: &str, waiting: Waiting) {
    if world.config.offers_lost > 0.0 && !world.settling && world.chance(world.config.offers_lost) {
        return;
    }
    let doubled = world.config.offers_doubled > 0.0 && world.chance(world.config.offers_doubled);
    let Some(links) = world.replica(pid).map(|replica| &replica.links) else { return };
    let Some(&(stream, _)) = links.by_queue.get(queue) else { return };
    change(world, pid, stream, |outbox| {
        let offers = outbox.offers.entry(queue.to_owned()).or_default();
        offers.extend(doubled.then(|| waiting.clone()));
        offers.push(waiting);
    });
}

/// Says that a session can take more or less of these queues than before.
pub(crate) fn demand(world: &mut World, pid: Pid, receiver: u64, queues: &[String]) {
    for queue in queues {
        let link = world.replica(pid).and_then(|replica| replica.links.by_queue.get(queue).copied());
        if let Some((stream, _)) = link {
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
    let by_queue = &replica.links.by_queue;
    let demands: Vec<Demand> = demands
        .into_iter()
        // The queue may have gone over to another link meanwhile.
        .filter(|(queue, _)| by_queue.get(queue).is_some_and(|(link, _)| *link == stream))
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
        Message::Ownership(queues) => take_ownership(world, pid, stream, queues),
        Message::Matches { queue, epoch, matches } => claims::matched(world, pid, stream, queue, epoch, matches),
        other => world.violation(format!("a distributor received {other:?} from an owner")),
    }
}

fn take_ownership(world: &mut World, pid: Pid, stream: StreamId, queues: Vec<(String, i64)>) {
    let Some(replica) = world.replica(pid) else { return };
    let links = &mut replica.links;
    if let Some((&owner, _)) = links.linking.iter().find(|(_, link)| **link == stream) {
        links.by_owner.insert(owner, stream);
    }
    links.announced.insert(stream, queues);
    choose(world, pid, stream);
}

/// Chooses the link of each queue anew after `changed` has changed, and sends demand where it has not been sent.
fn choose(world: &mut World, pid: Pid, changed: StreamId) {
    let mutant = world.mutant;
    let Some(replica) = world.replica(pid) else { return };
    let links = &mut replica.links;
    let mut chosen: BTreeMap<String, (StreamId, i64)> = match mutant {
        Some(Mutant::QueuesGoWithTheirLink) => {
            links.by_queue.clone().into_iter().filter(|(_, (held, _))| *held != changed).collect()
        }
        _ => BTreeMap::new(),
    };
    for (stream, queues) in &links.announced {
        if mutant == Some(Mutant::QueuesGoWithTheirLink) && *stream != changed {
            continue;
        }
        for (queue, epoch) in queues {
            // Two owners may both believe in a queue for a moment: the later epoch is the true one.
            if chosen.get(queue).is_none_or(|(_, held)| held < epoch) {
                chosen.insert(queue.clone(), (*stream, *epoch));
            }
        }
    }
    let before = std::mem::replace(&mut links.by_queue, chosen);
    let news = |(queue, link): &(&String, &(StreamId, i64))| link.0 == changed || before.get(*queue) != Some(*link);
    let gained: Vec<String> = links.by_queue.iter().filter(news).map(|(queue, _)| queue.clone()).collect();
    let stays: Vec<(u64, Vec<String>)> =
        replica.stays.values().map(|stay| (stay.receiver, stay.queues.clone())).collect();
    for (receiver, queues) in stays {
        let served: Vec<String> = queues.into_iter().filter(|queue| gained.contains(queue)).collect();
        demand(world, pid, receiver, &served);
    }
}

/// The stream is over.
pub(crate) fn closed(world: &mut World, pid: Pid, stream: StreamId) {
    let hasty = world.mutant == Some(Mutant::LinksAreRetriedAtOnce);
    let Some(replica) = world.replica(pid) else { return };
    let links = &mut replica.links;
    let reached = links.announced.contains_key(&stream);
    links.by_owner.retain(|_, held| *held != stream);
    links.linking.retain(|_, held| *held != stream);
    links.announced.remove(&stream);
    links.outboxes.remove(&stream);
    choose(world, pid, stream);
    // An owner that could not be reached is looked for at the next round, or the database would be asked without a pause.
    if reached || hasty {
        world.after(Duration::from_millis(5), Target::Process(pid), "look for owners", move |world| look(world, pid));
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
    replica.links.unreached.retain(|owner, _| queues.keys().any(|(id, _)| id == owner));
    for ((owner, endpoint), queues) in queues {
        if known.contains(&owner) {
            link(world, pid, owner, &endpoint);
        }
        cut_off(world, pid, owner, &queues);
    }
}

fn link(world: &mut World, pid: Pid, owner: MemberId, endpoint: &str) {
    let (Some(replica), Ok(place)) = (world.replica(pid), endpoint.parse::<usize>()) else { return };
    if replica.draining || replica.links.linking.contains_key(&owner) {
        return;
    }
    let stream = world.connect(Kind::Exchange, pid, place, Message::ExchangeHello);
    let Some(replica) = world.replica(pid) else { return };
    replica.links.linking.insert(owner, stream);
    replica.links.outboxes.insert(stream, Outbox::default());
}

/// Sends the orchestrators of queues whose live owner cannot be reached from here to another replica.
fn cut_off(world: &mut World, pid: Pid, owner: MemberId, queues: &[String]) {
    let now = world.now;
    let away = world.span(Duration::ZERO, Duration::from_secs(1));
    let Some(replica) = world.replica(pid) else { return };
    if replica.links.by_owner.contains_key(&owner) {
        replica.links.unreached.remove(&owner);
        return;
    }
    let since = *replica.links.unreached.entry(owner).or_insert(now);
    let other = replica.other();
    if other.is_none() || now.saturating_sub(since) < CUT_OFF {
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
