//! When to renew the session's lease, and what its silence means. Time comes in as an argument.

use std::{collections::VecDeque, time::Duration};

use millrace_proto::distributor::v1::Welcome;
use tokio::time::Instant;

/// Heartbeats whose answers may still come. When full the oldest is forgotten, and its answer then renews nothing.
const MAX_UNANSWERED: usize = 64;

/// The session's lease as seen from here. It is counted from when a renewal that was answered had been sent, so it never
/// ends later here than at the service: served time (R7) may be slower, and is ahead by no more than the service adds to a
/// lease beyond what it tells (R16).
#[derive(Debug)]
pub(crate) struct Lease {
    ttl: Duration,
    interval: Duration,
    renewed_at: Instant,
    opened_at: Instant,
    next_beat: Instant,
    seq: u64,
    unanswered: VecDeque<(u64, Instant)>,
}

/// When an exclusive attempt must be stopped (R16): first told, then dropped, both before the lease can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExclusiveEnd {
    pub(crate) tell_at: Instant,
    pub(crate) end_by: Instant,
    pub(crate) abort_at: Instant,
}

impl Lease {
    pub(crate) fn new(ttl: Duration, now: Instant) -> Self {
        let interval = ttl / 3;
        Self {
            ttl,
            interval,
            renewed_at: now,
            opened_at: now,
            next_beat: now + interval,
            seq: 0,
            unanswered: VecDeque::new(),
        }
    }

    /// A stream was opened: the service renewed the lease when it took the Hello that was sent at `sent_at`.
    pub(crate) fn opened(&mut self, welcome: &Welcome, sent_at: Instant, now: Instant) {
        let granted = welcome.lease_ttl.and_then(positive);
        self.ttl = granted.unwrap_or(self.ttl);
        let interval = welcome.heartbeat_interval.and_then(positive).unwrap_or(self.ttl / 3);
        // Half the lease at most, so that one lost heartbeat loses nothing; and never a busy loop.
        self.interval = interval.min(self.ttl / 2).max(Duration::from_millis(100));
        self.renewed_at = sent_at;
        self.opened_at = now;
        self.next_beat = now + self.interval;
        self.unanswered.clear();
    }

    pub(crate) fn next_beat(&self) -> Instant {
        self.next_beat
    }

    /// A heartbeat is sent now. Returns its seq.
    pub(crate) fn beat(&mut self, now: Instant) -> u64 {
        self.seq += 1;
        self.next_beat = now + self.interval;
        if self.unanswered.len() == MAX_UNANSWERED {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back((self.seq, now));
        self.seq
    }

    /// The heartbeat was answered: the lease is renewed as of when it was sent. False when it is not one of ours.
    pub(crate) fn answered(&mut self, seq: u64) -> bool {
        let sent_at = self.unanswered.iter().find(|(sent, _)| *sent == seq).map(|(_, at)| *at);
        self.unanswered.retain(|(sent, _)| *sent > seq);
        match sent_at {
            Some(at) => {
                self.renewed_at = self.renewed_at.max(at);
                true
            }
            None => false,
        }
    }

    /// When a replica that answers no heartbeat is given up, early enough to resume elsewhere before the lease ends.
    pub(crate) fn give_up_at(&self) -> Instant {
        // A slow Welcome may have used up that time already; the stream gets its chance all the same.
        self.renewed_at.max(self.opened_at) + self.ttl * 2 / 3
    }

    /// When exclusive attempts are to be stopped unless the lease is renewed before.
    pub(crate) fn exclusive_end(&self) -> ExclusiveEnd {
        let (end, margin) = (self.renewed_at + self.ttl, self.ttl / 5);
        ExclusiveEnd { tell_at: end - margin, end_by: end - margin / 2, abort_at: end - margin / 4 }
    }
}

fn positive(duration: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome(interval: u64, ttl: u64) -> Welcome {
        let seconds = |s| Some(prost_types::Duration { seconds: s as i64, nanos: 0 });
        Welcome { heartbeat_interval: seconds(interval), lease_ttl: seconds(ttl), ..Welcome::default() }
    }

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn r16_the_lease_counts_from_when_an_answered_renewal_was_sent() {
        let start = Instant::now();
        let mut lease = Lease::new(S(30), start);
        lease.opened(&welcome(5, 15), start, start + S(2));
        assert_eq!(lease.next_beat(), start + S(7));
        assert_eq!(lease.exclusive_end().tell_at, start + S(12));
        let (first, second) = (lease.beat(start + S(7)), lease.beat(start + S(12)));
        assert_eq!(lease.exclusive_end().tell_at, start + S(12), "a heartbeat that is not answered renews nothing");
        assert!(lease.answered(first));
        let end = lease.exclusive_end();
        assert_eq!(end.tell_at, start + S(19));
        assert!(end.tell_at < end.end_by && end.end_by < end.abort_at && end.abort_at < start + S(22));
        assert!(lease.answered(second) && !lease.answered(first) && !lease.answered(99));
        assert_eq!(lease.give_up_at(), start + S(22));
    }

    #[test]
    fn an_absurd_interval_is_bounded() {
        let start = Instant::now();
        let mut lease = Lease::new(S(15), start);
        lease.opened(&welcome(600, 10), start, start);
        assert_eq!(lease.next_beat(), start + S(5));
        lease.opened(&welcome(0, 0), start, start);
        assert_eq!(lease.next_beat(), start + S(10) / 3);
    }

    #[test]
    fn heartbeats_without_answers_are_bounded() {
        let start = Instant::now();
        let mut lease = Lease::new(S(15), start);
        for _ in 0..1000 {
            lease.beat(start);
        }
        assert_eq!(lease.unanswered.len(), MAX_UNANSWERED);
        assert!(!lease.answered(1) && lease.answered(1000));
        assert!(lease.unanswered.is_empty());
    }
}
