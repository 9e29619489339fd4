//! What is decided about one node group, and what is remembered of it.

use std::{
    collections::BTreeMap,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use millrace_proto::foreign::externalgrpc::{Instance, InstanceErrorInfo, instance_status::InstanceState};
use tokio::sync::Mutex;

/// How long it is remembered what was deleted and withdrawn: until listings show it, everywhere.
const REMEMBERED: Duration = Duration::from_secs(600);

/// How many of them are remembered at most. When there are more all are forgotten: then one may be asked for once more, which its
/// provider refuses, or is withdrawn once more, which the next order makes good.
const MAX_REMEMBERED: usize = 10_000;

/// A node group that a pool has named.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: String,
    pub(super) pool: String,
    pub(super) zone: String,
    /// Held while the group is read and changed.
    pub(super) turn: Mutex<Turn>,
    /// Whether it was said that the provider does not have it.
    pub(super) missed: AtomicBool,
}

/// An order, and what there is of its group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    /// Nodes asked for.
    pub(super) asked: usize,
    /// Nodes that should be there when all is done.
    pub(super) expected: usize,
    /// The target.
    pub(super) target: usize,
    /// Instances in the target that will never run.
    pub(super) failed: usize,
    /// The greatest target.
    pub(super) most: usize,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// How many of the nodes asked for the target does not cover.
    pub(super) missing: usize,
    /// By how much to raise it.
    pub(super) delta: usize,
}

/// What is remembered of changes. All of it may be lost with the process.
#[derive(Debug, Default)]
pub(super) struct Turn {
    change: Option<Change>,
    deleted: BTreeMap<String, Instant>,
    withdrawn: BTreeMap<String, Instant>,
}

/// A change of the target whose end is not known.
#[derive(Debug)]
struct Change {
    before: i64,
    delta: i64,
    /// The nodes that were withdrawn with it.
    nodes: Vec<String>,
    /// Until then it may still come true.
    until: Instant,
}

impl Order {
    /// Never more than were asked for, than are missing, or than the group may have.
    pub(super) fn plan(self) -> Plan {
        let have = self.target.saturating_sub(self.failed);
        let missing = self.expected.saturating_sub(have).min(self.asked);
        Plan { missing, delta: missing.min(self.most.saturating_sub(self.target)) }
    }
}

impl Group {
    pub(super) fn new(id: &str, pool: &str, zone: &str) -> Self {
        let (id, pool, zone) = (id.into(), pool.into(), zone.into());
        Self { id, pool, zone, turn: Mutex::default(), missed: AtomicBool::new(false) }
    }
}

impl Turn {
    /// A change is about to be asked for.
    pub(super) fn begin(&mut self, target: usize, delta: i32, nodes: Vec<String>, until: Instant) {
        let before = i64::try_from(target).unwrap_or(i64::MAX);
        self.change = Some(Change { before, delta: delta.into(), nodes, until });
    }

    /// It was made.
    pub(super) fn done(&mut self) {
        if let Some(change) = self.change.take() {
            remember(&mut self.withdrawn, change.nodes);
        }
    }

    /// It was not.
    pub(super) fn undone(&mut self) {
        self.change = None;
    }

    /// How much longer an earlier change may still come true; none when its end is known, or there was none.
    pub(super) fn unsettled(&mut self, target: usize, now: Instant) -> Option<Duration> {
        let change = self.change.as_ref()?;
        let moved = i64::try_from(target).unwrap_or(i64::MAX).saturating_sub(change.before);
        let shows = if change.delta > 0 { moved >= change.delta } else { moved <= change.delta };
        let left = change.until.saturating_duration_since(now);
        if shows {
            self.done();
        } else if left.is_zero() {
            self.undone();
        }
        (!shows && !left.is_zero()).then_some(left)
    }

    /// Instances were deleted, and the target with them.
    pub(super) fn deleted(&mut self, instances: &[&str]) {
        if let Some(change) = &mut self.change {
            change.before = change.before.saturating_sub(i64::try_from(instances.len()).unwrap_or(0));
        }
        remember(&mut self.deleted, instances.iter().map(|id| (*id).to_owned()));
    }

    pub(super) fn was_deleted(&self, instance: &str) -> bool {
        is_remembered(&self.deleted, instance)
    }

    pub(super) fn was_withdrawn(&self, node: &str) -> bool {
        is_remembered(&self.withdrawn, node)
    }

    /// These nodes have nothing to withdraw.
    pub(super) fn withdrawn(&mut self, nodes: impl IntoIterator<Item = String>) {
        remember(&mut self.withdrawn, nodes);
    }

    /// Instances that count in the target and will never run.
    pub(super) fn failed(&self, instances: &[Instance]) -> usize {
        instances.iter().filter(|instance| error(instance).is_some() && !self.is_going(instance)).count()
    }

    /// Instances that count in the target.
    pub(super) fn counted(&self, instances: &[Instance]) -> usize {
        instances.iter().filter(|instance| !self.is_going(instance)).count()
    }

    /// Whether it is being deleted, which took it out of the target.
    pub(super) fn is_going(&self, instance: &Instance) -> bool {
        state(instance) == InstanceState::InstanceDeleting || self.was_deleted(&instance.id)
    }
}

/// Why an instance cannot be made, if it cannot.
pub(super) fn error(instance: &Instance) -> Option<&InstanceErrorInfo> {
    let error = instance.status.as_ref()?.error_info.as_ref()?;
    // Some providers always send it, empty.
    (error.instance_error_class != 0 || !error.error_code.is_empty() || !error.error_message.is_empty())
        .then_some(error)
}

pub(super) fn state(instance: &Instance) -> InstanceState {
    let state = instance.status.as_ref().map(|status| status.instance_state);
    state.and_then(|state| InstanceState::try_from(state).ok()).unwrap_or(InstanceState::Unspecified)
}

fn remember(names: &mut BTreeMap<String, Instant>, new: impl IntoIterator<Item = String>) {
    let now = Instant::now();
    names.retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
    if names.len() >= MAX_REMEMBERED {
        names.clear();
    }
    names.extend(new.into_iter().map(|name| (name, now)));
}

fn is_remembered(names: &BTreeMap<String, Instant>, name: &str) -> bool {
    names.get(name).is_some_and(|at| at.elapsed() < REMEMBERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_raised_by_what_is_missing_and_no_more() {
        let plan = |asked, expected, target, failed, most| {
            let Plan { missing, delta } = Order { asked, expected, target, failed, most }.plan();
            (missing, delta)
        };
        assert_eq!(plan(3, 5, 2, 0, 10), (3, 3));
        assert_eq!(plan(3, 5, 5, 0, 10), (0, 0), "an earlier call has raised it");
        assert_eq!(plan(3, 5, 4, 0, 10), (1, 1), "somebody else has raised it");
        assert_eq!(plan(3, 5, 0, 0, 10), (3, 3), "somebody else has lowered it: no more than was asked for");
        assert_eq!(plan(3, 5, 9, 0, 10), (0, 0));
        assert_eq!(plan(3, 5, 2, 0, 4), (3, 2), "the greatest size");
        assert_eq!(plan(3, 5, 12, 0, 10), (0, 0));
        assert_eq!(plan(2, 5, 5, 2, 10), (2, 2), "the failed ones are in the target and no help");
        assert_eq!(plan(2, 5, 7, 2, 10), (0, 0), "which an earlier call has made good");
        assert_eq!(plan(2, 5, 5, 2, 6), (2, 1));
    }

    #[test]
    fn a_change_of_unknown_end_is_waited_for_until_it_shows() {
        let (start, settle) = (Instant::now(), Duration::from_secs(30));
        let mut turn = Turn::default();
        assert_eq!(turn.unsettled(5, start), None);
        turn.begin(5, 3, Vec::new(), start + settle);
        assert_eq!(turn.unsettled(5, start), Some(settle));
        assert_eq!(turn.unsettled(7, start + settle / 2), Some(settle / 2), "somebody else's change");
        assert_eq!(turn.unsettled(8, start), None);
        assert_eq!(turn.unsettled(5, start), None, "it has shown once");

        turn.begin(5, 3, Vec::new(), start + settle);
        assert_eq!(turn.unsettled(5, start + settle), None, "it was lost");

        turn.begin(5, -2, vec!["a".into(), "b".into()], start + settle);
        assert!(turn.unsettled(4, start).is_some() && !turn.was_withdrawn("a"));
        assert_eq!(turn.unsettled(3, start), None);
        assert!(turn.was_withdrawn("a") && turn.was_withdrawn("b"));

        turn.begin(5, 3, Vec::new(), start + settle);
        turn.deleted(&["x"]);
        assert_eq!(turn.unsettled(7, start), None, "three more and one fewer");
        assert!(turn.was_deleted("x"));
    }
}
