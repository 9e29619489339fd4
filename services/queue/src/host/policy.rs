//! Whether a host takes queues, keeps them or gives them up (R5). Pure: the ownership loop says what it sees.

use std::time::Duration;

use millrace_store::MemberKind;

use super::HostSettings;

/// What the ownership loop sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// A queue service is a live member; for a queue service's own host, itself included.
    pub(super) queue_service: bool,
    /// A distributor is a live member.
    pub(super) distributor: bool,
    /// Exchange streams that are open here.
    pub(super) streams: usize,
    /// This host owns queues.
    pub(super) owns: bool,
}

/// What the host does about queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stance {
    /// Takes those that nobody owns, keeps its own.
    Take,
    /// Keeps its own.
    Keep,
    /// Gives its own up.
    GiveUp,
    /// Gives its own up because no distributor reaches it, and takes none for a while.
    HoldBack,
}

/// What the decision remembers.
#[derive(Debug)]
pub(super) struct Policy {
    kind: MemberKind,
    absence: Duration,
    unreached: Duration,
    hold_back: Duration,
    max_hold_back: Duration,
    /// Since when no queue service has been seen.
    absent_since: Option<Duration>,
    /// Since when it owns queues, distributors live, and none is connected.
    unreached_since: Option<Duration>,
    /// Until when it takes no queue.
    held_until: Option<Duration>,
    /// How long it is held the next time.
    next_hold: Duration,
}

impl Policy {
    pub(super) fn new(kind: MemberKind, settings: &HostSettings) -> Self {
        Self {
            kind,
            absence: settings.absence,
            unreached: settings.unreached,
            hold_back: settings.hold_back,
            max_hold_back: settings.max_hold_back,
            absent_since: None,
            unreached_since: None,
            held_until: None,
            next_hold: settings.hold_back,
        }
    }

    /// Decides. `now` is a clock that only moves forward.
    pub(super) fn next(&mut self, now: Duration, seen: Seen) -> Stance {
        if seen.streams > 0 {
            self.held_until = None;
            self.next_hold = self.hold_back;
        }
        if self.held_until.is_some_and(|until| now < until) {
            return Stance::HoldBack;
        }
        self.held_until = None;
        if self.is_unreached(now, seen) {
            self.unreached_since = None;
            self.held_until = Some(now + self.next_hold);
            self.next_hold = (self.next_hold * 2).min(self.max_hold_back);
            return Stance::HoldBack;
        }
        match self.kind {
            MemberKind::Queue => Stance::Take,
            MemberKind::Distributor => self.stand_in(now, seen),
        }
    }

    /// A distributor stands in for queue services, and only for as long as there is none.
    fn stand_in(&mut self, now: Duration, seen: Seen) -> Stance {
        if seen.queue_service {
            self.absent_since = None;
            return Stance::GiveUp;
        }
        match now.saturating_sub(*self.absent_since.get_or_insert(now)) >= self.absence {
            true => Stance::Take,
            false => Stance::Keep,
        }
    }

    fn is_unreached(&mut self, now: Duration, seen: Seen) -> bool {
        if !seen.owns || !seen.distributor || seen.streams > 0 {
            self.unreached_since = None;
            return false;
        }
        now.saturating_sub(*self.unreached_since.get_or_insert(now)) >= self.unreached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn policy(kind: MemberKind) -> Policy {
        Policy::new(kind, &HostSettings::default())
    }

    const REACHED: Seen = Seen { queue_service: false, distributor: true, streams: 1, owns: true };
    const UNREACHED: Seen = Seen { streams: 0, ..REACHED };

    #[test]
    fn r5_a_queue_service_takes_at_once_and_a_distributor_after_a_while_without_one() {
        let nobody = Seen { queue_service: false, distributor: true, streams: 0, owns: false };
        assert_eq!(policy(MemberKind::Queue).next(seconds(0), nobody), Stance::Take);
        let mut distributor = policy(MemberKind::Distributor);
        assert_eq!(distributor.next(seconds(0), nobody), Stance::Keep);
        assert_eq!(distributor.next(seconds(2), nobody), Stance::Keep);
        assert_eq!(distributor.next(seconds(3), nobody), Stance::Take);
        assert_eq!(distributor.next(seconds(4), Seen { queue_service: true, ..REACHED }), Stance::GiveUp);
        assert_eq!(distributor.next(seconds(5), nobody), Stance::Keep, "the wait begins anew");
    }

    #[test]
    fn r5_an_owner_that_no_distributor_reaches_gives_up_for_longer_each_time() {
        let mut policy = policy(MemberKind::Queue);
        assert_eq!(policy.next(seconds(0), UNREACHED), Stance::Take);
        assert_eq!(policy.next(seconds(4), UNREACHED), Stance::Take);
        assert_eq!(policy.next(seconds(5), UNREACHED), Stance::HoldBack);
        let without = Seen { owns: false, ..UNREACHED };
        assert_eq!(policy.next(seconds(14), without), Stance::HoldBack);
        assert_eq!(policy.next(seconds(15), without), Stance::Take);
        assert_eq!(policy.next(seconds(16), UNREACHED), Stance::Take);
        assert_eq!(policy.next(seconds(21), UNREACHED), Stance::HoldBack);
        assert_eq!(policy.next(seconds(40), without), Stance::HoldBack, "20 s this time");
        assert_eq!(policy.next(seconds(41), without), Stance::Take);
    }

    #[test]
    fn r5_a_stream_ends_the_holding_back_and_no_distributor_means_no_one_to_be_reached_by() {
        let mut policy = policy(MemberKind::Queue);
        policy.next(seconds(0), UNREACHED);
        assert_eq!(policy.next(seconds(5), UNREACHED), Stance::HoldBack);
        assert_eq!(policy.next(seconds(6), Seen { owns: false, ..REACHED }), Stance::Take);
        let alone = Seen { distributor: false, ..UNREACHED };
        for second in [10, 100, 1000] {
            assert_eq!(policy.next(seconds(second), alone), Stance::Take);
        }
        policy.next(seconds(1001), UNREACHED);
        assert_eq!(policy.next(seconds(1005), REACHED), Stance::Take);
        assert_eq!(policy.next(seconds(1006), UNREACHED), Stance::Take, "the wait begins anew");
        assert_eq!(policy.next(seconds(1011), UNREACHED), Stance::HoldBack);
        assert_eq!(policy.next(seconds(1020), UNREACHED), Stance::HoldBack, "10 s again after it was reached");
        assert_eq!(policy.next(seconds(1021), Seen { owns: false, ..UNREACHED }), Stance::Take);
    }
}
