//! Whether a host takes queues (R5). Mirrors `services/queue/src/host/policy.rs`.

use std::time::Duration;

use millrace_store::MemberKind;

const ABSENCE: Duration = Duration::from_secs(3);
const UNREACHED: Duration = Duration::from_secs(5);
const HOLD_BACK: Duration = Duration::from_secs(10);
const MAX_HOLD_BACK: Duration = Duration::from_secs(300);

/// What the ownership loop sees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub queue_service: bool,
    pub distributor: bool,
    pub streams: usize,
    pub owns: bool,
}

/// What the host does about queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stance {
    Take,
    Keep,
    GiveUp,
    HoldBack,
}

pub(crate) struct Policy {
    kind: MemberKind,
    absent_since: Option<Duration>,
    unreached_since: Option<Duration>,
    held_until: Option<Duration>,
    next_hold: Duration,
}

impl Policy {
    pub(crate) fn new(kind: MemberKind) -> Self {
        Self { kind, absent_since: None, unreached_since: None, held_until: None, next_hold: HOLD_BACK }
    }

    pub(crate) fn next(&mut self, now: Duration, seen: Seen) -> Stance {
        if seen.streams > 0 {
            self.held_until = None;
            self.next_hold = HOLD_BACK;
        }
        if self.held_until.is_some_and(|until| now < until) {
            return Stance::HoldBack;
        }
        self.held_until = None;
        if self.is_unreached(now, seen) {
            self.unreached_since = None;
            self.held_until = Some(now + self.next_hold);
            self.next_hold = (self.next_hold * 2).min(MAX_HOLD_BACK);
            return Stance::HoldBack;
        }
        match self.kind {
            MemberKind::Queue => Stance::Take,
            MemberKind::Distributor => self.stand_in(now, seen),
        }
    }

    fn stand_in(&mut self, now: Duration, seen: Seen) -> Stance {
        if seen.queue_service {
            self.absent_since = None;
            return Stance::GiveUp;
        }
        match now.saturating_sub(*self.absent_since.get_or_insert(now)) >= ABSENCE {
            true => Stance::Take,
            false => Stance::Keep,
        }
    }

    fn is_unreached(&mut self, now: Duration, seen: Seen) -> bool {
        if !seen.owns || !seen.distributor || seen.streams > 0 {
            self.unreached_since = None;
            return false;
        }
        now.saturating_sub(*self.unreached_since.get_or_insert(now)) >= UNREACHED
    }
}
