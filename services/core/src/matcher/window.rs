//! The best waiting tasks: a prefix of every lane, bounded in all (R3, R4).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use uuid::Uuid;

use super::Limits;
use crate::{id::TaskId, time::Timestamp};

/// A lane: the tasks of one tenant and one rank.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Minus the priority: lower is dispatched first.
    pub rank: i32,
    /// The tenant.
    pub tenant: Arc<str>,
}

/// A waiting task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The task.
    pub id: TaskId,
    /// When it joined the queue.
    pub ready_at: Timestamp,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// The oldest reader that may act on its row.
    pub min_reader: i16,
}

/// A place in a lane.
pub type Position = (Timestamp, TaskId);

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is in the window.
    Kept,
    /// It was already known.
    Duplicate,
    /// It lies beyond its lane's horizon; the feeder will come to it.
    Beyond,
}

/// A part of a lane to be read: the rows after a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// The lane.
    pub lane: Lane,
    /// After this position.
    pub after: Position,
    /// At most this many rows.
    pub limit: usize,
}

/// A part of a lane to be read again: the rows after a position, up to the horizon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// The lane.
    pub lane: Lane,
    /// After this position.
    pub after: Position,
    /// Up to and including this one; none for the lane's end.
    pub up_to: Option<Position>,
    /// At most this many rows.
    pub limit: usize,
}

/// An entry with the lane that it came from.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) lane: Lane,
    pub(super) entry: Entry,
}

/// The first position of every lane.
const START: Position = (Timestamp::MIN, TaskId(Uuid::nil()));

/// The least number of rows worth a read.
const MIN_FEED: usize = 256;

/// Rows that one read of the sweep looks at.
const SWEEP_ROWS: usize = 1_000;

/// How far a lane is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Horizon {
    /// Every waiting task up to here is in the window (or under way); beyond it nothing is.
    At(Position),
    /// Every waiting task of the lane is.
    Open,
}

#[derive(Debug)]
struct LaneState {
    entries: BTreeMap<Position, Entry>,
    horizon: Horizon,
    /// A read is under way.
    feeding: bool,
    /// An offer was dropped while a read was under way, which may not have seen it.
    missed: bool,
    /// Where the last read ended, when that was before the horizon: rows between the two are still to be looked at.
    unread: Option<Position>,
    /// When what lies before the horizon was last read from its beginning, and when the present reading of it began.
    read_at: Timestamp,
    reading_since: Timestamp,
    /// Where the sweep goes on, and when the next one starts.
    sweep_after: Position,
    sweep_at: Duration,
    sweeping: bool,
}

impl LaneState {
    fn unknown() -> Self {
        Self {
            entries: BTreeMap::new(),
            horizon: Horizon::At(START),
            feeding: false,
            missed: false,
            unread: None,
            read_at: Timestamp::MIN,
            reading_since: Timestamp::MIN,
            sweep_after: START,
            sweep_at: Duration::ZERO,
            sweeping: false,
        }
    }

    fn knows(&self, position: Position) -> bool {
        match self.horizon {
            Horizon::Open => true,
            Horizon::At(horizon) => position <= horizon,
        }
    }
}

#[derive(Debug)]
pub(super) struct Window {
    limits: Limits,
    lanes: BTreeMap<Lane, LaneState>,
    /// The lanes that are not known to their end.
    hungry: BTreeSet<Lane>,
    /// The head of every lane that has entries, best first.
    heads: BTreeSet<(i32, Position, Arc<str>)>,
    /// Where each task is.
    places: HashMap<TaskId, Place>,
}

#[derive(Debug, Clone)]
struct Place {
    lane: Lane,
    ready_at: Timestamp,
}

impl Window {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, lanes: BTreeMap::new(), hungry: BTreeSet::new(), heads: BTreeSet::new(), places: HashMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn contains(&self, task: TaskId) -> bool {
        self.places.contains_key(&task)
    }

    pub(super) fn offer(&mut self, lane: &Lane, entry: Entry) -> Offered {
        if let Some(place) = self.places.get(&entry.id) {
            if entry.ready_at <= place.ready_at {
                return Offered::Duplicate;
            }
            self.remove(entry.id);
        }
        let state = self.lane(lane);
        if !state.knows((entry.ready_at, entry.id)) {
            state.missed = state.feeding;
            return Offered::Beyond;
        }
        self.insert(lane, entry);
        match self.places.contains_key(&entry.id) {
            true => Offered::Kept,
            false => Offered::Beyond,
        }
    }

    /// Puts an entry back that was taken out; it was known before, so the horizon does not matter.
    pub(super) fn put_back(&mut self, held: Held) {
        self.lane(&held.lane);
        let position = (held.entry.ready_at, held.entry.id);
        let known = self.lanes.get(&held.lane).is_some_and(|state| state.knows(position));
        if known && !self.places.contains_key(&held.entry.id) {
            self.insert(&held.lane, held.entry);
        }
    }

    /// Takes out the best entry.
    pub(super) fn pop(&mut self) -> Option<Held> {
        let (rank, position, tenant) = self.heads.pop_first()?;
        let lane = Lane { rank, tenant };
        let state = self.lanes.get_mut(&lane)?;
        let entry = state.entries.remove(&position)?;
        if let Some((&next, _)) = state.entries.first_key_value() {
            self.heads.insert((rank, next, lane.tenant.clone()));
        }
        self.places.remove(&entry.id);
        Some(Held { lane, entry })
    }

    pub(super) fn remove(&mut self, task: TaskId) {
        let Some(place) = self.places.remove(&task) else { return };
        let Some(state) = self.lanes.get_mut(&place.lane) else { return };
        let position = (place.ready_at, task);
        let was_head = state.entries.first_key_value().is_some_and(|(&first, _)| first == position);
        state.entries.remove(&position);
        if was_head {
            self.heads.remove(&(place.lane.rank, position, place.lane.tenant.clone()));
            if let Some((&next, _)) = state.entries.first_key_value() {
                self.heads.insert((place.lane.rank, next, place.lane.tenant));
            }
        }
    }

    pub(super) fn discovered(&mut self, lanes: impl IntoIterator<Item = Lane>) {
        for lane in lanes {
            self.lane(&lane);
        }
    }

    /// Every lane is to be read again from its start.
    pub(super) fn forget_horizons(&mut self) {
        for state in self.lanes.values_mut() {
            state.missed = state.feeding;
            state.horizon = Horizon::At(START);
            state.entries.clear();
        }
        self.hungry = self.lanes.keys().cloned().collect();
        self.heads.clear();
        self.places.clear();
    }

    pub(super) fn feeds(&mut self, now: Timestamp, limit: usize) -> Vec<Feed> {
        let mut feeds = Vec::new();
        // Close to its bound the window is fed only by lanes that would take room from a worse one, and no feed brings
        // much more than fits: what does not fit would be read again for every task that is dispatched.
        let room = self.limits.window.saturating_sub(self.places.len());
        let worst = match room <= self.limits.window / 10 {
            true => self.heads.last().map(|(rank, _, _)| *rank),
            false => None,
        };
        for lane in &self.hungry {
            if feeds.len() >= limit || worst.is_some_and(|worst| lane.rank >= worst) {
                break;
            }
            let Some(state) = self.lanes.get_mut(lane) else { continue };
            let Horizon::At(horizon) = state.horizon else { continue };
            if state.feeding || state.entries.len() > self.limits.lane / 2 {
                continue;
            }
            // A transaction that had not committed when the lane was last read may since have put rows behind the horizon, as
            // old as the longest transaction was then: go back that far. What waits there is in the window already, so
            // this reads no more than the window holds.
            let after = match state.unread {
                Some(unread) => unread.min(horizon),
                None => {
                    state.reading_since = now;
                    (state.read_at.before(self.limits.overlap), TaskId(Uuid::nil())).min(horizon)
                }
            };
            let known = state.entries.range(after..).count();
            state.feeding = true;
            state.missed = false;
            feeds.push(Feed {
                lane: lane.clone(),
                after,
                limit: (self.limits.lane - state.entries.len()).min(room.max(MIN_FEED)) + known,
            });
        }
        feeds
    }

    pub(super) fn fed(&mut self, feed: &Feed, rows: Vec<Entry>, exhausted: bool, under_way: impl Fn(TaskId) -> bool) {
        let Some(state) = self.lanes.get_mut(&feed.lane) else { return };
        if !std::mem::take(&mut state.feeding) {
            return;
        }
        let missed = std::mem::take(&mut state.missed);
        let last = rows.last().map(|row| (row.ready_at, row.id));
        state.unread = match (exhausted, last, state.horizon) {
            (false, Some(last), Horizon::At(horizon)) if last < horizon => Some(last),
            _ => None,
        };
        if state.unread.is_none() {
            state.read_at = state.reading_since;
        }
        // The horizon may have moved to before the part that was read, for want of room: what lies between is not known.
        state.horizon = match (state.horizon, last) {
            (Horizon::At(horizon), _) if horizon < feed.after => Horizon::At(horizon),
            _ if exhausted && !missed => Horizon::Open,
            (Horizon::At(horizon), Some(last)) => Horizon::At(last.max(horizon)),
            (horizon, _) => horizon,
        };
        if state.horizon == Horizon::Open {
            self.hungry.remove(&feed.lane);
        }
        for row in rows.into_iter().filter(|row| !under_way(row.id)) {
            self.admit(&feed.lane, row);
        }
    }

    pub(super) fn feed_failed(&mut self, feed: &Feed) {
        if let Some(state) = self.lanes.get_mut(&feed.lane) {
            state.feeding = false;
        }
    }

    pub(super) fn sweep(&mut self, now: Duration) -> Option<Sweep> {
        let (lane, state) = self
            .lanes
            .iter_mut()
            .filter(|(_, state)| !state.sweeping && state.sweep_at <= now && state.horizon != Horizon::At(START))
            .min_by_key(|(_, state)| state.sweep_at)?;
        state.sweeping = true;
        state.sweep_at = now + self.limits.sweep;
        let up_to = match state.horizon {
            Horizon::At(horizon) => Some(horizon),
            Horizon::Open => None,
        };
        Some(Sweep { lane: lane.clone(), after: state.sweep_after, up_to, limit: SWEEP_ROWS })
    }

    pub(super) fn swept(
        &mut self,
        sweep: &Sweep,
        rows: Vec<Entry>,
        exhausted: bool,
        under_way: impl Fn(TaskId) -> bool,
    ) -> usize {
        let Some(state) = self.lanes.get_mut(&sweep.lane) else { return 0 };
        state.sweeping = false;
        state.sweep_after = match (exhausted, rows.last()) {
            (false, Some(row)) => (row.ready_at, row.id),
            _ => START,
        };
        if !exhausted {
            // The rest of this lane is due at once.
            state.sweep_at = state.sweep_at.saturating_sub(self.limits.sweep);
        }
        let mut missing = 0;
        for row in rows.into_iter().filter(|row| !under_way(row.id)) {
            missing += usize::from(!self.places.contains_key(&row.id));
            self.admit(&sweep.lane, row);
        }
        missing
    }

    /// Takes a row that the database has. One that is known already stays where it is.
    fn admit(&mut self, lane: &Lane, row: Entry) {
        match self.places.get(&row.id) {
            Some(place) if place.ready_at >= row.ready_at => return,
            Some(_) => self.remove(row.id),
            None => {}
        }
        if self.lane(lane).knows((row.ready_at, row.id)) {
            self.insert(lane, row);
        }
    }

    fn insert(&mut self, lane: &Lane, entry: Entry) {
        let position = (entry.ready_at, entry.id);
        let Some(state) = self.lanes.get_mut(lane) else { return };
        if let Some((&first, _)) = state.entries.first_key_value() {
            if position < first {
                self.heads.remove(&(lane.rank, first, lane.tenant.clone()));
                self.heads.insert((lane.rank, position, lane.tenant.clone()));
            }
        } else {
            self.heads.insert((lane.rank, position, lane.tenant.clone()));
        }
        state.entries.insert(position, entry);
        self.places.insert(entry.id, Place { lane: lane.clone(), ready_at: entry.ready_at });
        if state.entries.len() > self.limits.lane {
            self.cut(&lane.clone());
        } else if self.places.len() > self.limits.window
            && let Some((rank, _, tenant)) = self.heads.last()
        {
            self.cut(&Lane { rank: *rank, tenant: tenant.clone() });
        }
    }

    /// Takes the last entry of a lane out for want of room; the lane's horizon moves in front of it.
    fn cut(&mut self, lane: &Lane) {
        let Some(state) = self.lanes.get_mut(lane) else { return };
        let Some((position, entry)) = state.entries.pop_last() else { return };
        state.missed = state.feeding;
        state.horizon = match state.entries.last_key_value() {
            Some((&last, _)) => Horizon::At(last),
            None => Horizon::At(START),
        };
        self.hungry.insert(lane.clone());
        if state.entries.is_empty() {
            self.heads.remove(&(lane.rank, position, lane.tenant.clone()));
        }
        self.places.remove(&entry.id);
    }

    /// The lane's state; a lane not known yet starts with nothing read. Past the bound, lanes that are empty and known to
    /// their end are forgotten: they are read again when an offer or the discovery names them.
    fn lane(&mut self, lane: &Lane) -> &mut LaneState {
        if !self.lanes.contains_key(lane) {
            if self.lanes.len() >= self.limits.idle_lanes {
                self.lanes.retain(|_, state| {
                    state.feeding || state.sweeping || !state.entries.is_empty() || state.horizon != Horizon::Open
                });
            }
            self.hungry.insert(lane.clone());
        }
        self.lanes.entry(lane.clone()).or_insert_with(LaneState::unknown)
    }
}
