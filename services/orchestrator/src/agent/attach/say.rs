//! What is to be said next on a stream.

use millrace_proto::scaler::v1::{
    BootFailed, BootProgress, NodeDrained, NodeHealth, NodeReady, SpotNotice, attach_node_request::Message,
};
use tokio::time::{Duration, Instant};

use super::{End, Facts, Health};
use crate::agent::boot::Progress;

/// What changes often (the boot, how many run) is said at most this often; the newest counts.
const CHATTER: Duration = Duration::from_millis(250);
/// An assignment that was under way when the credits were withdrawn has come by then.
const SETTLE: Duration = Duration::from_secs(1);
/// Bytes of an error; the contract's own bound.
const ERROR_BYTES: usize = 4096;

/// What is to be done on a stream.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Say this.
    Say(Message),
    /// Everything is said, for ever.
    Close,
    /// Nothing, before this moment or before something changes.
    Wait(Option<Instant>),
}

/// What was said on a stream.
#[derive(Debug)]
pub(super) struct Said {
    health_interval: Duration,
    slots: u32,
    boot: Option<Progress>,
    ready: bool,
    health: Option<Health>,
    spot: bool,
    drained: bool,
    ended: bool,
    /// When the health is due at the latest.
    health_at: Instant,
    /// When what changes often may be said again.
    chatter_at: Instant,
    /// Since when a node that drains has had nothing to do.
    idle_since: Option<Instant>,
}

impl Said {
    /// A stream begins. Its Hello told whether the node is `ready`.
    pub(super) fn new(ready: bool, slots: u32, health_interval: Duration, now: Instant) -> Self {
        Self {
            health_interval,
            slots,
            boot: None,
            ready,
            health: None,
            spot: false,
            drained: false,
            ended: false,
            health_at: now,
            chatter_at: now,
            idle_since: None,
        }
    }

    /// The next thing to do. `draining` while the scaler wants nothing new started.
    pub(super) fn next(&mut self, facts: &Facts, draining: bool, now: Instant) -> Next {
        if let Some(end) = &facts.end {
            return match std::mem::replace(&mut self.ended, true) {
                true => Next::Close,
                false => Next::Say(last_word(end)),
            };
        }
        let mut wake = None;
        let message = self
            .spot(facts)
            .or_else(|| self.health(facts, now, &mut wake))
            .or_else(|| self.ready(facts))
            .or_else(|| self.boot(facts, now, &mut wake))
            .or_else(|| self.drained(facts, draining, now, &mut wake));
        message.map_or(Next::Wait(wake), Next::Say)
    }

    fn spot(&mut self, facts: &Facts) -> Option<Message> {
        let at = facts.spot?;
        (!std::mem::replace(&mut self.spot, true)).then_some(Message::SpotNotice(SpotNotice { at }))
    }

    /// At once when the node falls ill or recovers, soon when it runs more or less, and else at the interval.
    fn health(&mut self, facts: &Facts, now: Instant, wake: &mut Option<Instant>) -> Option<Message> {
        let health = facts.health.as_ref()?;
        let due = match &self.health {
            Some(said) if said.fit == health.fit && said.running == health.running => self.health_at,
            Some(said) if said.fit == health.fit => self.health_at.min(self.chatter_at),
            _ => now,
        };
        if !is_due(due, now, wake) {
            return None;
        }
        self.health = Some(health.clone());
        (self.health_at, self.chatter_at) = (now + self.health_interval, now + CHATTER);
        let count = |number| i32::try_from(number).unwrap_or(i32::MAX);
        Some(Message::Health(NodeHealth {
            healthy: health.fit.is_ok(),
            reason: health.fit.clone().err().unwrap_or_default(),
            running: count(health.running),
            slots: i32::try_from(self.slots).unwrap_or(i32::MAX),
        }))
    }

    fn ready(&mut self, facts: &Facts) -> Option<Message> {
        (facts.ready && !std::mem::replace(&mut self.ready, true)).then_some(Message::Ready(NodeReady {}))
    }

    fn boot(&mut self, facts: &Facts, now: Instant, wake: &mut Option<Instant>) -> Option<Message> {
        let progress = facts.boot.as_ref().filter(|progress| !facts.ready && self.boot.as_ref() != Some(progress))?;
        if !is_due(self.chatter_at, now, wake) {
            return None;
        }
        self.boot = Some(progress.clone());
        self.chatter_at = now + CHATTER;
        let Progress { stage, percent } = progress.clone();
        Some(Message::Boot(BootProgress { stage, percent: percent.map(i32::from) }))
    }

    fn drained(&mut self, facts: &Facts, draining: bool, now: Instant, wake: &mut Option<Instant>) -> Option<Message> {
        if !draining || facts.busy {
            // Once said it is said for this drain; what comes late is handed back.
            self.drained &= draining;
            self.idle_since = None;
            return None;
        }
        let since = *self.idle_since.get_or_insert(now);
        if self.drained || !is_due(since + SETTLE, now, wake) {
            return None;
        }
        self.drained = true;
        Some(Message::Drained(NodeDrained {}))
    }
}

/// Whether the moment has come; when it has not, it is one to wake at.
fn is_due(at: Instant, now: Instant, wake: &mut Option<Instant>) -> bool {
    if at <= now {
        return true;
    }
    *wake = Some(wake.map_or(at, |wake| wake.min(at)));
    false
}

fn last_word(end: &End) -> Message {
    match end {
        End::BootFailed(error) => {
            Message::BootFailed(BootFailed { error: error[..error.floor_char_boundary(ERROR_BYTES)].to_owned() })
        }
        End::Left => Message::Drained(NodeDrained {}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn said(now: Instant) -> Said {
        Said::new(false, 4, MINUTE, now)
    }

    fn health(fit: Result<(), &str>, running: usize) -> Option<Health> {
        Some(Health { fit: fit.map_err(str::to_owned), running })
    }

    fn boots(percent: u8) -> Facts {
        Facts { boot: Some(Progress { stage: "s".into(), percent: Some(percent) }), ..Facts::default() }
    }

    fn is_health(next: Next, healthy: bool, running: i32) -> bool {
        matches!(next, Next::Say(Message::Health(said)) if said.healthy == healthy && said.running == running)
    }

    #[test]
    fn of_what_changes_often_the_newest_is_said_now_and_then() {
        let (now, later) = (Instant::now(), Instant::now() + CHATTER);
        let mut said = said(now);
        assert!(matches!(said.next(&boots(1), false, now), Next::Say(Message::Boot(_))));
        assert_eq!(said.next(&boots(1), false, now), Next::Wait(None));
        let Next::Wait(Some(wake)) = said.next(&boots(2), false, now) else { panic!("it waits") };
        assert_eq!(wake, now + CHATTER);
        let Next::Say(Message::Boot(boot)) = said.next(&boots(7), false, later + CHATTER) else { panic!("it is due") };
        assert_eq!(boot.percent, Some(7));
    }

    #[test]
    fn a_node_is_ready_after_it_was_told_healthy_and_ill_at_once() {
        let now = Instant::now();
        let mut said = said(now);
        let mut facts = Facts { ready: true, health: health(Ok(()), 0), busy: true, ..boots(1) };
        assert!(is_health(said.next(&facts, false, now), true, 0));
        assert_eq!(said.next(&facts, false, now), Next::Say(Message::Ready(NodeReady {})));
        assert_eq!(said.next(&facts, false, now), Next::Wait(Some(now + MINUTE)));
        facts.health = health(Ok(()), 1);
        assert_eq!(said.next(&facts, false, now), Next::Wait(Some(now + CHATTER)));
        facts.health = health(Err("disk full"), 1);
        assert!(is_health(said.next(&facts, false, now), false, 1));
        assert_eq!(said.next(&facts, false, now), Next::Wait(Some(now + MINUTE)));
        assert!(is_health(said.next(&facts, false, now + MINUTE), false, 1));
    }

    #[test]
    fn drained_is_said_once_nothing_has_been_there_for_a_moment() {
        let now = Instant::now();
        let mut said = said(now);
        let (busy, idle) = (Facts { busy: true, ..Facts::default() }, Facts::default());
        assert_eq!(said.next(&idle, false, now), Next::Wait(None));
        assert_eq!(said.next(&busy, true, now), Next::Wait(None));
        assert_eq!(said.next(&idle, true, now), Next::Wait(Some(now + SETTLE)));
        // What was under way came after all.
        assert_eq!(said.next(&busy, true, now + SETTLE), Next::Wait(None));
        assert_eq!(said.next(&idle, true, now + SETTLE), Next::Wait(Some(now + 2 * SETTLE)));
        let drained = Next::Say(Message::Drained(NodeDrained {}));
        assert_eq!(said.next(&idle, true, now + 2 * SETTLE), drained);
        assert_eq!(said.next(&idle, true, now + 3 * SETTLE), Next::Wait(None));
        // Called off, and drained anew.
        assert_eq!(said.next(&busy, false, now + 3 * SETTLE), Next::Wait(None));
        said.next(&idle, true, now + 3 * SETTLE);
        assert_eq!(said.next(&idle, true, now + 4 * SETTLE), drained);
    }

    #[test]
    fn the_last_word_is_the_last() {
        let now = Instant::now();
        let mut said = said(now);
        let facts = Facts { end: Some(End::BootFailed("ü".repeat(4000))), spot: Some(None), ..boots(3) };
        let Next::Say(Message::BootFailed(failed)) = said.next(&facts, true, now) else { panic!("it is said") };
        assert_eq!(failed.error.len(), ERROR_BYTES);
        assert_eq!(said.next(&facts, true, now), Next::Close);
    }
}
