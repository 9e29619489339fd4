//! The world of a drill: a clock that jumps from second to second, tasks, a simulated provider, and the scaler's books between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use millrace_core::{
    fleet::{
        Fleet, Pool, State,
        books::{Call, Decision, Figures, News, Order, Settings, Work},
        budget::{Budget, CEILING_PER_S, FLOOR_PER_S, INITIAL_PER_S},
    },
    id::NodeId,
    time::Timestamp,
};
use millrace_proto::provider::v1::DescribeNodesRequest;
use millrace_scaler::{
    engine::{Reply, request_message, terminate_message},
    provider::simulated::{Happening, Script, Simulated, Tally},
};
use uuid::Uuid;

use super::tasks::{Ms, Tasks};
use crate::form::Point;

/// The provider's name, and the queue's.
pub(crate) const PROVIDER: &str = "cloud";
pub(crate) const QUEUE: &str = "q";

/// When every drill begins.
const START: Timestamp = Timestamp(1_700_000_000_000_000);

/// Seconds between two points of the timeline.
const POINT: u64 = 10;

/// The world.
pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) provider: Arc<Simulated>,
    pub(crate) tasks: Tasks,
    /// Seconds since the start.
    pub(crate) second: u64,
    pub(crate) points: Vec<Point>,
    pub(crate) decisions: Vec<Decision>,
    /// The stretch that points belong to.
    pub(crate) phase: String,
    clock: Arc<AtomicI64>,
    /// How long each task runs.
    pub(crate) takes: Ms,
    replies: Vec<(Timestamp, Reply)>,
    numbers: BTreeMap<NodeId, u64>,
    attached: BTreeSet<NodeId>,
    draining: BTreeSet<NodeId>,
    next_id: u128,
    /// The longest time for which a node was REQUESTED, STARTING or JOINING, by what the books said.
    pub(crate) longest_start: Duration,
    waited: usize,
    /// When, in seconds, and why the books decided the end of each node.
    pub(crate) ends: BTreeMap<NodeId, (u64, String)>,
}

impl World {
    /// A world with these pools, whose provider does what the script says.
    pub(crate) fn new(pools: Vec<Pool>, script: &str) -> Result<Self> {
        let script = Script::parse(script).context("the drill's script")?;
        let clock = Arc::new(AtomicI64::new(START.0));
        let time = clock.clone();
        let provider = Simulated::new(script, Arc::new(move || Timestamp(time.load(Ordering::Relaxed))));
        let mut fleet = Fleet::new(Settings::default());
        fleet.set_provider(PROVIDER, Budget::new(INITIAL_PER_S, FLOOR_PER_S, CEILING_PER_S, START));
        pools.into_iter().for_each(|pool| fleet.set_pool(pool));
        Ok(Self {
            fleet,
            provider: Arc::new(provider),
            tasks: Tasks::default(),
            second: 0,
            points: Vec::new(),
            decisions: Vec::new(),
            phase: String::new(),
            clock,
            takes: 60_000,
            replies: Vec::new(),
            numbers: BTreeMap::new(),
            attached: BTreeSet::new(),
            draining: BTreeSet::new(),
            next_id: 0,
            longest_start: Duration::ZERO,
            waited: 0,
            ends: BTreeMap::new(),
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        START.after(Duration::from_secs(self.second))
    }

    pub(crate) fn ms(&self) -> Ms {
        self.second * 1000
    }

    pub(crate) fn tally(&self) -> Tally {
        self.provider.tally(self.now())
    }

    /// Seconds pass, with so many tasks coming in each.
    pub(crate) fn pass(&mut self, seconds: u64, per_second: f64) {
        let mut came = 0.0;
        for _ in 0..seconds {
            came += per_second;
            let whole = came as u64;
            came -= whole as f64;
            self.tasks.come(whole, self.ms());
            self.step();
        }
    }

    /// Seconds pass until everything has run, at most so many. Returns whether it has.
    pub(crate) fn drain(&mut self, at_most: u64) -> bool {
        for _ in 0..at_most {
            if self.tasks.done() {
                return true;
            }
            self.step();
        }
        self.tasks.done()
    }

    /// One second passes.
    pub(crate) fn step(&mut self) {
        self.second += 1;
        let now = self.now();
        self.clock.store(now.0, Ordering::Relaxed);
        let takes = self.takes;
        self.tasks.pass(self.ms(), || takes);
        self.hear(now);
        self.tasks.pass(self.ms(), || takes);
        self.take_replies(now);
        self.tell(now);
        let (next, mut id) = (self.next_id, self.next_id);
        self.fleet.round(now, &mut || {
            id += 1;
            NodeId(Uuid::from_u128(id))
        });
        self.next_id = id.max(next);
        let batch = self.fleet.unsaved();
        for happened in batch.happened.iter().filter(|happened| happened.state == State::Terminating) {
            self.ends.insert(happened.node, (self.second, happened.reason.clone()));
        }
        self.fleet.saved(batch, true);
        for call in self.fleet.calls(now) {
            let (at, reply) = self.call(call, now);
            self.replies.push((at, reply));
        }
        self.obey(now);
        self.decisions.extend(self.fleet.decisions());
        self.observe(now);
    }

    /// What nodes do and say.
    fn hear(&mut self, now: Timestamp) {
        for happened in self.provider.happenings(now) {
            let Some(id) = happened.node_id else { continue };
            let count = self.numbers.len() as u64;
            let number = *self.numbers.entry(id).or_insert(count);
            let ready = happened.happening == Happening::Ready;
            if matches!(happened.happening, Happening::Boot { .. } | Happening::Ready) && self.attached.insert(id) {
                let news = News::Attached { instance: happened.instance_id.clone(), slots: self.slots(id), ready };
                let _ = self.fleet.heard(id, news, now);
            }
            let health = |healthy, reason| News::Health { healthy, reason, running: 0, slots: 0 };
            let news = match happened.happening {
                Happening::Boot { stage, percent } => News::Boot { stage, percent: Some(percent) },
                Happening::Ready => {
                    // A node that nobody wants any more takes no work.
                    if self.fleet.node(id).is_none() {
                        continue;
                    }
                    self.tasks.open(number, self.slots(id));
                    News::Ready
                }
                Happening::BootFailed { error } => News::BootFailed { error },
                Happening::Unhealthy { reason } => {
                    self.tasks.close(number);
                    health(false, reason)
                }
                Happening::Healthy => {
                    self.tasks.open(number, self.slots(id));
                    health(true, String::new())
                }
                Happening::Lost => {
                    self.attached.remove(&id);
                    News::Detached
                }
                Happening::SpotNotice { at } => News::Spot { at: Some(at) },
                Happening::Exited => {
                    self.attached.remove(&id);
                    self.draining.remove(&id);
                    self.tasks.remove(number, self.second * 1000);
                    News::Detached
                }
            };
            // A node that is off the books is told so, and stops; there is nobody to tell here.
            let _ = self.fleet.heard(id, news, now);
        }
    }

    fn slots(&self, id: NodeId) -> u32 {
        let pool = self.fleet.pool_of(id).and_then(|pool| self.fleet.pool(pool));
        pool.map_or(1, |pool| pool.slots)
    }

    fn take_replies(&mut self, now: Timestamp) {
        let (due, later) = std::mem::take(&mut self.replies).into_iter().partition(|(at, _)| *at <= now);
        self.replies = later;
        let mut due: Vec<(Timestamp, Reply)> = due;
        due.sort_by_key(|(at, reply)| (*at, reply.call.id));
        for (_, Reply { call, answer, listing }) in due {
            if let Some(listing) = listing {
                self.fleet.set_max_per_call(&call.provider, listing.most_per_call);
                let next = &mut self.next_id;
                let mut ids = || {
                    *next += 1;
                    NodeId(Uuid::from_u128(*next))
                };
                self.fleet.listed(&call.provider, call.at, &listing.seen, &mut ids, now);
            }
            self.fleet.answered(call.id, answer, now);
        }
    }

    /// What the scaler reads and hears at an interval.
    fn tell(&mut self, now: Timestamp) {
        if self.second.is_multiple_of(2) {
            let run_time = self.tasks.run_time().map(Duration::from_millis);
            let figures = Figures {
                waiting: self.tasks.waiting(),
                running: self.tasks.running(),
                oldest_age: self.tasks.oldest(self.ms()).map(Duration::from_millis),
                paused: false,
                arrival_rate: Some(self.tasks.arrival_rate()),
                run_time,
            };
            self.fleet.demand(QUEUE, figures, now);
        }
        if self.second.is_multiple_of(5) {
            let working: Vec<NodeId> =
                self.fleet.nodes().filter(|node| node.state == State::Ready).map(|node| node.id).collect();
            for id in working {
                let running = self.numbers.get(&id).map_or(0, |number| self.tasks.running_on(*number));
                let slots = self.slots(id);
                let news = News::Health { healthy: true, reason: String::new(), running, slots };
                let _ = self.fleet.heard(id, news, now);
            }
        }
        let idle: Vec<NodeId> = self
            .draining
            .iter()
            .filter(|id| self.numbers.get(id).is_none_or(|number| self.tasks.running_on(*number) == 0))
            .copied()
            .collect();
        for id in idle {
            self.draining.remove(&id);
            let _ = self.fleet.heard(id, News::Drained, now);
        }
    }

    fn call(&self, call: Call, now: Timestamp) -> (Timestamp, Reply) {
        match &call.work {
            Work::List => {
                let mut pages = Vec::new();
                let mut request = DescribeNodesRequest { page_size: 10_000, ..DescribeNodesRequest::default() };
                loop {
                    let reply = self.provider.describe_at(now, &request);
                    match reply.result {
                        Ok(page) => {
                            request.page_token.clone_from(&page.next_page_token);
                            pages.push(page);
                        }
                        Err(status) => return (reply.at, Reply::listed(call, Err(status))),
                    }
                    if request.page_token.is_empty() {
                        return (reply.at, Reply::listed(call, Ok(pages)));
                    }
                }
            }
            Work::Request { .. } => {
                let reply = self.provider.request_at(now, &request_message(&call.work));
                (reply.at, Reply::requested(call, reply.result))
            }
            Work::Terminate { .. } => {
                let reply = self.provider.terminate_at(now, &terminate_message(&call.work));
                (reply.at, Reply::terminated(call, reply.result))
            }
        }
    }

    /// Nodes do what they are told.
    fn obey(&mut self, _now: Timestamp) {
        for (id, order) in self.fleet.orders() {
            let number = self.numbers.get(&id).copied();
            match order {
                Order::Drain(_) => {
                    if let Some(number) = number {
                        self.tasks.close(number);
                    }
                    self.draining.insert(id);
                }
                Order::Resume => {
                    let slots = self.slots(id);
                    if let Some(number) = number {
                        self.tasks.open(number, slots);
                    }
                    self.draining.remove(&id);
                }
            }
        }
    }

    fn observe(&mut self, now: Timestamp) {
        let coming = self.fleet.nodes().filter(|node| node.state.is_coming());
        let longest = coming.map(|node| now.since(node.requested_at)).max().unwrap_or_default();
        self.longest_start = self.longest_start.max(longest);
        if !self.second.is_multiple_of(POINT) || self.phase.is_empty() {
            return;
        }
        let desired: u32 = self.desired(now);
        let count = |states: &[State]| self.fleet.nodes().filter(|node| states.contains(&node.state)).count() as f64;
        let recent = &self.tasks.waits[self.waited..];
        let oldest = self.tasks.oldest(self.ms()).unwrap_or(0);
        let wait = recent.iter().copied().max().unwrap_or(0).max(oldest) as f64 / 1000.0;
        self.waited = self.tasks.waits.len();
        let values = vec![
            Some(f64::from(desired)),
            Some(count(&[State::Ready])),
            Some(count(&[State::Requested, State::Starting, State::Joining])),
            Some(self.provider.tally(now).killed as f64),
            Some(wait),
        ];
        self.points.push(Point { seconds: self.second as f64, phase: self.phase.clone(), values });
    }

    /// How many nodes there should be, over all pools.
    fn desired(&mut self, now: Timestamp) -> u32 {
        let names: Vec<String> = self.fleet.pool_names().map(str::to_owned).collect();
        names.iter().filter_map(|name| self.fleet.report(name, now)).map(|report| report.size.desired).sum()
    }

    /// Tells of every node that was ended before it could join, and would have joined: when it was made and ended, when it would have joined, and
    /// why the books ended it.
    pub(crate) fn wrongly_ended(&self) -> Vec<String> {
        let seconds = |at: Timestamp| at.since(START).as_secs();
        self.provider.ledger(|ledger| {
            let wrong = ledger.nodes.iter().filter(|node| node.would_have_joined());
            wrong
                .map(|node| {
                    let (at, reason) = self.ends.get(&node.node_id).cloned().unwrap_or_default();
                    let (made, joins) = (seconds(node.created), node.joins().map(seconds).unwrap_or(0));
                    format!(
                        "node {} made at {made} s, would have joined at {joins} s, ended at {at} s: {reason}",
                        node.number
                    )
                })
                .collect()
        })
    }

    pub(crate) fn count(&self, state: State) -> usize {
        self.fleet.nodes().filter(|node| node.state == state).count()
    }

    /// A stretch with a fleet that works and has learnt how long nodes take: tasks come at a rate that keeps `nodes` busy.
    pub(crate) fn warm_up(&mut self, nodes: f64, seconds: u64) {
        let per_second = nodes * 0.9 / (self.takes as f64 / 1000.0);
        self.pass(seconds, per_second);
    }
}

/// A pool that serves the drill's queue.
pub(crate) fn pool(name: &str, max: u32) -> Pool {
    Pool {
        max,
        step_up: Pool::default_step_up(max),
        step_down: Pool::default_step_down(max),
        unproven: Pool::default_unproven(max),
        ..Pool::new(name, PROVIDER, &[QUEUE])
    }
}
