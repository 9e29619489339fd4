//! A pool, as an operator describes it, with its defaults filled in.

use std::{collections::BTreeMap, time::Duration};

use crate::time::Timestamp;

const MINUTE: Duration = Duration::from_secs(60);

/// A fleet of equal nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The class of executor.
    pub executor: String,
    /// The queues that it serves.
    pub queues: Vec<String>,
    /// Whose nodes they are.
    pub provider: String,
    /// What the provider needs to know of each node.
    pub template: BTreeMap<String, String>,
    /// Tasks that a node runs at a time, at least 1.
    pub slots: u32,
    /// Never fewer nodes.
    pub min: u32,
    /// Never more nodes.
    pub max: u32,
    /// How long a task may wait.
    pub target_wait: Duration,
    /// At most this many more in one round, at least 1.
    pub step_up: u32,
    /// At most this many fewer in one round, at least 1.
    pub step_down: u32,
    /// How long fewer nodes must have been enough before any is drained.
    pub scale_down_after: Duration,
    /// Zones, the preferred first; none leaves it to the provider.
    pub zones: Vec<String>,
    /// Pools to ask for what this one cannot get.
    pub fallback: Vec<String>,
    /// A node may take at least this long to join.
    pub join_min: Duration,
    /// A node that has not joined by then is given up.
    pub join_max: Duration,
    /// The share of the pool, in percent, that may be ended as lost or late in ten minutes.
    pub destroy_percent: u32,
    /// Minimums at times of the week.
    pub schedule: Vec<Schedule>,
    /// Launches that may be under way while none is proven.
    pub unproven: u32,
    /// How long a join proves that launches work.
    pub proof_age: Duration,
    /// Its nodes are drained because it was deleted.
    pub deleting: bool,
    /// The size set by hand.
    pub by_hand: Option<Override>,
}

/// A minimum at certain times of the week, in UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// 1 for Monday to 7 for Sunday; none means every day.
    pub days: Vec<u8>,
    /// Minutes since midnight at which it begins.
    pub from: u16,
    /// Minutes since midnight at which it ends; not later than `from` means on the next day.
    pub to: u16,
    /// The minimum.
    pub min: u32,
}

/// A size set by hand, for a stated time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Who set it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// The policy decides again from then on.
    pub until: Timestamp,
    /// The least size meanwhile.
    pub min: Option<u32>,
    /// The greatest size meanwhile.
    pub max: Option<u32>,
    /// The size meanwhile.
    pub desired: Option<u32>,
    /// No node is ended meanwhile.
    pub no_terminations: bool,
    /// No node is launched meanwhile.
    pub no_launches: bool,
}

impl Pool {
    /// A pool with the defaults of the contract.
    pub fn new(name: &str, provider: &str, queues: &[&str]) -> Self {
        let max = 10;
        Self {
            name: name.into(),
            executor: "process".into(),
            queues: queues.iter().map(|queue| (*queue).into()).collect(),
            provider: provider.into(),
            template: BTreeMap::new(),
            slots: 1,
            min: 0,
            max,
            target_wait: Duration::from_secs(30),
            step_up: Self::default_step_up(max),
            step_down: Self::default_step_down(max),
            scale_down_after: 5 * MINUTE,
            zones: Vec::new(),
            fallback: Vec::new(),
            join_min: MINUTE,
            join_max: 60 * MINUTE,
            destroy_percent: 10,
            schedule: Vec::new(),
            unproven: Self::default_unproven(max),
            proof_age: 60 * MINUTE,
            deleting: false,
            by_hand: None,
        }
    }

    /// A tenth of the greatest size, and at least 10.
    pub fn default_step_up(max: u32) -> u32 {
        (max / 10).max(10)
    }

    /// A tenth of the greatest size, and at least 5.
    pub fn default_step_down(max: u32) -> u32 {
        (max / 10).max(5)
    }

    /// A tenth of the greatest size, and at least 5.
    pub fn default_unproven(max: u32) -> u32 {
        (max / 10).max(5)
    }

    /// The override that holds now.
    pub fn by_hand(&self, now: Timestamp) -> Option<&Override> {
        self.by_hand.as_ref().filter(|by_hand| now < by_hand.until)
    }

    /// The least size now by the schedule alone; 0 when none holds.
    pub fn scheduled_min(&self, now: Timestamp) -> u32 {
        self.schedule.iter().filter(|entry| entry.holds(now)).map(|entry| entry.min).max().unwrap_or(0)
    }
}

impl Schedule {
    /// Whether it holds now.
    pub fn holds(&self, now: Timestamp) -> bool {
        const DAY: i64 = 24 * 60;
        let minutes = now.0.div_euclid(60_000_000);
        let minute = minutes.rem_euclid(DAY);
        // 1970-01-01 was a Thursday, the fourth day.
        let day = (minutes.div_euclid(DAY) + 3).rem_euclid(7);
        let on = |day: i64| self.days.is_empty() || self.days.iter().any(|one| i64::from(*one) == day + 1);
        let (from, to) = (i64::from(self.from), i64::from(self.to));
        if from < to {
            on(day) && (from..to).contains(&minute)
        } else {
            // Over midnight: the evening of its day, or the morning after.
            on(day) && minute >= from || on((day + 6).rem_euclid(7)) && minute < to
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Minutes since Thursday, 1970-01-01 00:00.
    fn at(day: i64, minute: i64) -> Timestamp {
        Timestamp((day * 24 * 60 + minute) * 60_000_000)
    }

    #[test]
    fn a_schedule_holds_on_its_days_and_over_midnight() {
        let day = Schedule { days: vec![4], from: 8 * 60, to: 18 * 60, min: 3 };
        assert!(day.holds(at(0, 8 * 60)) && !day.holds(at(0, 18 * 60)) && !day.holds(at(1, 9 * 60)));
        let night = Schedule { days: vec![4], from: 22 * 60, to: 6 * 60, min: 3 };
        assert!(night.holds(at(0, 23 * 60)) && night.holds(at(1, 5 * 60)));
        assert!(!night.holds(at(0, 5 * 60)) && !night.holds(at(1, 23 * 60)));
        let always = Schedule { days: Vec::new(), from: 0, to: 1440, min: 3 };
        assert!((0..14).all(|day| always.holds(at(day, 0)) && always.holds(at(day, 1439))));
    }

    #[test]
    fn an_override_ends_by_itself() {
        let mut pool = Pool::new("p", "x", &["default"]);
        pool.by_hand = Some(Override {
            owner: "someone".into(),
            reason: "a test".into(),
            until: at(0, 5),
            min: None,
            max: None,
            desired: Some(3),
            no_terminations: false,
            no_launches: false,
        });
        assert!(pool.by_hand(at(0, 4)).is_some() && pool.by_hand(at(0, 5)).is_none());
    }
}
