//! One queue's matcher and its reads of the database. Mirrors `services/queue/src/host/{actor,reads}.rs`.

use std::{collections::BTreeMap, time::Duration};

use millrace_core::{
    id::TaskId,
    matcher::{Answer, Connection, Entry, Feed, Lane, Limits, Matched, Matcher, Receiver},
    time::Timestamp,
};
use millrace_store::{LaneKey, Waiting};

use crate::{
    message::{Demand, Match, Message, Verdict},
    mutant::Mutant,
    net::{CALLEE, StreamId},
    world::{Pid, World},
};

/// Feeds under way at a time.
const FEEDS: usize = 4;

/// How long it waits after a read failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

const DISCOVERY: Duration = Duration::from_secs(5);

const SWEEP_IDLE: Duration = Duration::from_millis(250);

/// Lanes that one read lists: few, so that it takes several.
const LANES: i64 = 3;

const MATCHES: usize = 64;

/// The matcher of one queue and epoch.
pub(crate) struct Matching {
    pub epoch: i64,
    /// Raised with each matcher of the host.
    pub number: u64,
    pub matcher: Matcher,
    limits: Limits,
    /// Lanes that are being fed, with the offers that came meanwhile.
    feeding: BTreeMap<Lane, Vec<Entry>>,
    feed_at: Duration,
    sweeping: bool,
    sweep_at: Duration,
    discovering: bool,
    discover_at: Duration,
    discover_after: Option<LaneKey>,
}

impl Matching {
    pub(crate) fn new(limits: Limits, epoch: i64, number: u64, paused: bool) -> Self {
        let mut matcher = Matcher::new(limits);
        matcher.set_paused(paused);
        Self {
            epoch,
            number,
            matcher,
            limits,
            feeding: BTreeMap::new(),
            feed_at: Duration::ZERO,
            sweeping: false,
            sweep_at: Duration::ZERO,
            discovering: false,
            discover_at: Duration::ZERO,
            discover_after: None,
        }
    }

    pub(crate) fn offers(&mut self, offers: Vec<Waiting>) {
        for waiting in offers {
            let (lane, entry) = (lane(&waiting.tenant, waiting.rank), entry(waiting));
            match self.feeding.get_mut(&lane) {
                Some(deferred) => deferred.push(entry),
                None => {
                    self.matcher.offer(&lane, entry);
                }
            }
        }
    }

    pub(crate) fn demand(&mut self, stream: StreamId, demand: &Demand) {
        let (connection, receiver) = (Connection(stream.0), Receiver(demand.receiver));
        match demand.closed {
            true => self.matcher.forget(connection, receiver),
            false => {
                self.matcher.demand(connection, receiver, demand.seq, demand.credits, demand.acked);
            }
        }
    }

    /// True when the gate has refused a claim: matching stops until the ownership has been looked at.
    pub(crate) fn answers(&mut self, stream: StreamId, answers: Vec<(TaskId, Verdict)>) -> bool {
        let mut refused = false;
        for (task, verdict) in answers {
            let answer = match verdict {
                Verdict::Claimed => Answer::Claimed,
                Verdict::Stale => Answer::Stale,
                Verdict::Returned => Answer::Returned,
                Verdict::Refused => {
                    refused |= !self.matcher.is_paused();
                    self.matcher.set_paused(true);
                    Answer::Returned
                }
            };
            self.matcher.answer(Connection(stream.0), task, answer);
        }
        refused
    }
}

/// Runs `change` on a queue's matcher while it is still the one of this number.
fn with(world: &mut World, pid: Pid, queue: &str, number: u64, change: impl FnOnce(&mut Matching)) {
    let matching = world.host(pid).and_then(|host| host.owned.get_mut(queue));
    if let Some(matching) = matching.filter(|matching| matching.number == number) {
        change(matching);
        work(world, pid, queue);
    }
}

/// Returns overdue matches, then does what is possible.
pub(crate) fn maintain(world: &mut World, pid: Pid, queue: &str) {
    let (now, mutant) = (world.now, world.mutant);
    if let Some(matching) = world.host(pid).and_then(|host| host.owned.get_mut(queue))
        && mutant != Some(Mutant::MatchesLeak)
    {
        matching.matcher.return_overdue(now);
    }
    work(world, pid, queue);
}

/// Sends every match that is possible and starts the reads that are due.
pub(crate) fn work(world: &mut World, pid: Pid, queue: &str) {
    let now = world.now;
    let Some(host) = world.host(pid) else { return };
    let wall = host.wall(now);
    let Some(matching) = host.owned.get_mut(queue) else { return };
    let epoch = matching.epoch;
    let matched = matching.matcher.matches(now, wall, MATCHES);
    let (length, limits) = (matching.matcher.window_len(), matching.limits);
    if length > limits.window {
        world.violation(format!("the window of {queue} holds {length} of at most {} (R4)", limits.window));
    }
    let mut by_stream: BTreeMap<Connection, Vec<Match>> = BTreeMap::new();
    for Matched { connection, receiver, seq, task } in matched {
        by_stream.entry(connection).or_default().push(Match { task, receiver: receiver.0, seq });
    }
    for (connection, matches) in by_stream {
        world.send(StreamId(connection.0), CALLEE, Message::Matches { queue: queue.to_owned(), epoch, matches });
    }
    read(world, pid, queue, wall);
}

fn read(world: &mut World, pid: Pid, queue: &str, wall: Timestamp) {
    let (now, mutant) = (world.now, world.mutant);
    let Some(matching) = world.host(pid).and_then(|host| host.owned.get_mut(queue)) else { return };
    let number = matching.number;
    if !matching.discovering && now >= matching.discover_at {
        matching.discovering = true;
        let after = matching.discover_after.clone();
        discover(world, pid, queue.to_owned(), number, after);
    }
    let Some(matching) = world.host(pid).and_then(|host| host.owned.get_mut(queue)) else { return };
    let free = if now < matching.feed_at { 0 } else { FEEDS.saturating_sub(matching.feeding.len()) };
    let wall = match mutant {
        // Every row seems older than the longest transaction.
        Some(Mutant::FeedsDoNotOverlap) => wall.after(matching.limits.overlap + Duration::from_secs(60)),
        _ => wall,
    };
    let feeds = matching.matcher.feeds(wall, free);
    for of_lane in &feeds {
        matching.feeding.insert(of_lane.lane.clone(), Vec::new());
    }
    let may_sweep = !matching.sweeping && now >= matching.sweep_at && mutant != Some(Mutant::NothingIsSwept);
    for of_lane in feeds {
        feed(world, pid, queue.to_owned(), number, of_lane);
    }
    if may_sweep {
        sweep(world, pid, queue, number);
    }
}

fn feed(world: &mut World, pid: Pid, queue: String, number: u64, feed: Feed) {
    let (key, after, limit, name) = (key(&feed.lane), feed.after, feed.limit as i64, queue.clone());
    world.call(
        pid,
        "feed",
        move |db| db.store().lane_page(&name, &key, after, None, limit),
        move |world, page| {
            let now = world.now;
            if let Ok(page) = &page {
                world.note(|| format!("{feed:?} brought {:?}, exhausted {}", page.rows, page.exhausted));
            }
            with(world, pid, &queue, number, |matching| {
                let offers = matching.feeding.remove(&feed.lane).unwrap_or_default();
                match page {
                    Ok(page) => {
                        let rows = page.rows.into_iter().map(entry).collect();
                        matching.matcher.fed(&feed, rows, page.exhausted);
                    }
                    Err(_) => {
                        matching.matcher.feed_failed(&feed);
                        matching.feed_at = now + AFTER_FAILURE;
                    }
                }
                for entry in offers {
                    matching.matcher.offer(&feed.lane, entry);
                }
            });
        },
    );
}

fn sweep(world: &mut World, pid: Pid, queue: &str, number: u64) {
    let now = world.now;
    let Some(matching) = world.host(pid).and_then(|host| host.owned.get_mut(queue)) else { return };
    let Some(sweep) = matching.matcher.sweep(now) else {
        matching.sweep_at = now + SWEEP_IDLE;
        return;
    };
    matching.sweeping = true;
    let (key, after, up_to, limit) = (key(&sweep.lane), sweep.after, sweep.up_to, sweep.limit as i64);
    let (queue, name) = (queue.to_owned(), queue.to_owned());
    world.call(
        pid,
        "sweep",
        move |db| db.store().lane_page(&name, &key, after, up_to, limit),
        move |world, page| {
            let now = world.now;
            with(world, pid, &queue, number, |matching| {
                matching.sweeping = false;
                matching.sweep_at = if page.is_ok() { now } else { now + AFTER_FAILURE };
                let page = page.ok();
                let exhausted = page.as_ref().is_none_or(|page| page.exhausted);
                let rows = page.map(|page| page.rows.into_iter().map(entry).collect()).unwrap_or_default();
                matching.matcher.swept(&sweep, rows, exhausted);
            });
        },
    );
}

fn discover(world: &mut World, pid: Pid, queue: String, number: u64, after: Option<LaneKey>) {
    let name = queue.clone();
    world.call(
        pid,
        "lanes",
        move |db| db.store().lanes(&name, after.as_ref(), LANES),
        move |world, lanes| {
            let now = world.now;
            with(world, pid, &queue, number, |matching| {
                matching.discovering = false;
                matching.discover_at = match &lanes {
                    Ok(lanes) if lanes.len() as i64 >= LANES => now,
                    Ok(_) => now + DISCOVERY,
                    Err(_) => now + AFTER_FAILURE,
                };
                if let Ok(lanes) = lanes {
                    let full = lanes.len() as i64 >= LANES;
                    matching.discover_after = lanes.last().filter(|_| full).cloned();
                    let lanes = lanes.into_iter().map(|key| lane(&key.tenant, key.rank));
                    matching.matcher.discovered(lanes);
                }
            });
        },
    );
}

fn lane(tenant: &str, rank: i32) -> Lane {
    Lane { rank, tenant: tenant.into() }
}

fn key(lane: &Lane) -> LaneKey {
    LaneKey { tenant: lane.tenant.to_string(), rank: lane.rank }
}

fn entry(row: Waiting) -> Entry {
    Entry {
        id: row.id,
        ready_at: Timestamp(row.ready_at_us),
        expires_at: row.expires_at_us.map(Timestamp),
        min_reader: row.min_reader,
    }
}
