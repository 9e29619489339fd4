//! Decides whether a deploy is to blame when rows are set aside in numbers. Pure: looks go in, suspicions come out. Nothing is ever
//! stopped for it; an operator is told.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use millrace_core::{foreign::Defect, id::TaskId};
use millrace_store::Drift;

/// The span over which a rise is measured.
const WINDOW: Duration = Duration::from_secs(60);

/// How long a build counts as new.
const NEW: Duration = Duration::from_secs(15 * 60);

/// How long a suspicion lasts after the last rise.
const LASTS: Duration = Duration::from_secs(15 * 60);

/// More rows than this set aside within the window are a rise, if they are also more than a hundredth of what was submitted.
const MANY: u64 = 100;

/// So many are one while a build is new.
const SOME: u64 = 10;

/// What the last look found, for people and metrics.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Columns with another type than this build expects.
    pub(crate) drift: Vec<Drift>,
    /// Builds under suspicion.
    pub(crate) suspects: Vec<Suspect>,
    /// Rows that the last whole pass over the live ones has left where they are; none before the first.
    pub(crate) left: Option<Left>,
}

/// Live rows that this build cannot act on and leaves where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Too new for this build.
    pub(crate) too_new: u64,
    /// Not readable, and held by a live session.
    pub(crate) held: u64,
    /// The first of them: the task, why, and whether it is too new.
    pub(crate) examples: Vec<(TaskId, Defect, bool)>,
    /// When the pass ended, in microseconds since 1970.
    pub(crate) seen_us: i64,
}

/// Rows of which an example is kept.
const EXAMPLES: usize = 20;

impl Left {
    /// Notes a row.
    pub(crate) fn note(&mut self, task: TaskId, defect: Defect, too_new: bool) {
        *(if too_new { &mut self.too_new } else { &mut self.held }) += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push((task, defect, too_new));
        }
    }
}

/// A build under suspicion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suspect {
    pub(crate) build: String,
    /// Since when, in microseconds since 1970.
    pub(crate) since_us: i64,
    /// The most rows that were set aside within a minute since then.
    pub(crate) rows: u64,
}

/// What one look sees.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    /// The replica's own clock.
    pub(crate) at: Duration,
    /// The same moment in microseconds since 1970.
    pub(crate) at_us: i64,
    /// How many rows are set aside, by whichever build. Falls when rows are released.
    pub(crate) set_aside: u64,
    /// How many rows this replica has set aside since it started.
    pub(crate) by_this: u64,
    /// How many tasks have been submitted, over all replicas, as far as this one can tell. Only rises.
    pub(crate) submitted: u64,
    /// The builds that run, this replica's first, each with the time since its first process started.
    pub(crate) builds: Vec<(String, Duration)>,
}

/// The looks of the last minute, and what follows from them.
#[derive(Debug, Default)]
pub(crate) struct Suspicion {
    looks: VecDeque<Look>,
    suspects: BTreeMap<String, (Suspect, Duration)>,
}

impl Suspicion {
    /// Takes a look, and returns the builds that have just come under suspicion.
    pub(crate) fn look(&mut self, look: Look) -> Vec<Suspect> {
        self.suspects.retain(|_, (_, last)| look.at.saturating_sub(*last) < LASTS);
        let rise = self.rise(&look);
        let mut new = Vec::new();
        for build in blamed(rise, self.submitted(&look), &look.builds) {
            match self.suspects.get_mut(build) {
                Some((suspect, last)) => (suspect.rows, *last) = (suspect.rows.max(rise), look.at),
                None => {
                    let suspect = Suspect { build: build.to_owned(), since_us: look.at_us, rows: rise };
                    new.push(suspect.clone());
                    self.suspects.insert(build.to_owned(), (suspect, look.at));
                }
            }
        }
        self.looks.push_back(look);
        // One look that is older than the window is what the window is measured from.
        while self.looks.get(1).is_some_and(|second| self.age(second) >= WINDOW) {
            self.looks.pop_front();
        }
        new
    }

    /// Who is under suspicion now, by name.
    pub(crate) fn suspects(&self) -> Vec<Suspect> {
        self.suspects.values().map(|(suspect, _)| suspect.clone()).collect()
    }

    /// Rows set aside within the window. What was released meanwhile must not hide them.
    fn rise(&self, look: &Look) -> u64 {
        let fewest = self.looks.iter().map(|before| before.set_aside).min();
        let first = self.looks.front().map(|before| before.by_this);
        let of_all = fewest.map_or(0, |fewest| look.set_aside.saturating_sub(fewest));
        let of_this = first.map_or(0, |first| look.by_this.saturating_sub(first));
        of_all.max(of_this)
    }

    fn submitted(&self, look: &Look) -> u64 {
        self.looks.front().map_or(0, |first| look.submitted.saturating_sub(first.submitted))
    }

    fn age(&self, look: &Look) -> Duration {
        self.looks.back().map_or(Duration::ZERO, |last| last.at.saturating_sub(look.at))
    }
}

/// Whom a rise is blamed on: the builds that are new, whether they wrote the rows or cannot read them; without one, the build that
/// looks.
fn blamed(rise: u64, submitted: u64, builds: &[(String, Duration)]) -> Vec<&str> {
    let new: Vec<&str> = builds.iter().filter(|(_, age)| *age < NEW).map(|(build, _)| build.as_str()).collect();
    let much = rise > MANY && rise > submitted / 100;
    match (new.is_empty(), much) {
        (false, _) if rise >= SOME => new,
        (true, true) => builds.first().map(|(build, _)| build.as_str()).into_iter().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Duration = Duration::from_secs(86_400);

    fn look(second: u64, set_aside: u64, submitted: u64, builds: &[(&str, Duration)]) -> Look {
        Look {
            at: Duration::from_secs(second),
            at_us: second as i64 * 1_000_000,
            set_aside,
            by_this: 0,
            submitted,
            builds: builds.iter().map(|(build, age)| ((*build).to_owned(), *age)).collect(),
        }
    }

    fn names(suspects: &[Suspect]) -> Vec<&str> {
        suspects.iter().map(|suspect| suspect.build.as_str()).collect()
    }

    #[test]
    fn a_rise_while_a_build_is_new_is_blamed_on_it_once_and_for_a_while() {
        let mut suspicion = Suspicion::default();
        let builds = [("1", OLD), ("2", Duration::from_secs(30))];
        assert!(suspicion.look(look(0, 7, 0, &builds)).is_empty());
        assert!(suspicion.look(look(5, 16, 0, &builds)).is_empty(), "fewer than some");
        let new = suspicion.look(look(10, 17, 0, &builds));
        assert_eq!((names(&new), new[0].rows, new[0].since_us), (vec!["2"], 10, 10_000_000));
        assert!(suspicion.look(look(15, 99, 0, &builds)).is_empty(), "said once");
        assert_eq!(suspicion.suspects()[0].rows, 92);
        for second in (20..900).step_by(5) {
            suspicion.look(look(second, 99, 0, &builds));
        }
        assert_eq!(names(&suspicion.suspects()), ["2"]);
        suspicion.look(look(2000, 99, 0, &builds));
        assert!(suspicion.suspects().is_empty());
    }

    #[test]
    fn without_a_new_build_it_takes_many_rows_and_a_share_of_what_is_submitted() {
        for (rise, submitted, blamed) in [(100, 0, false), (101, 0, true), (101, 20_000, false), (300, 20_000, true)] {
            let mut suspicion = Suspicion::default();
            suspicion.look(look(0, 0, 1000, &[("1", OLD)]));
            let new = suspicion.look(look(5, rise, 1000 + submitted, &[("1", OLD)]));
            assert_eq!(!new.is_empty(), blamed, "{rise} of {submitted}");
        }
    }

    #[test]
    fn what_is_old_or_was_there_before_is_no_rise() {
        let mut suspicion = Suspicion::default();
        let builds = [("1", Duration::ZERO)];
        assert!(suspicion.look(look(0, 5000, 0, &builds)).is_empty(), "there when this replica started");
        for second in (5..600).step_by(5) {
            // Eight a minute.
            assert!(suspicion.look(look(second, 5000 + 8 * second / 60, 0, &builds)).is_empty(), "{second}");
        }
        assert!(suspicion.looks.len() <= 14);
    }

    #[test]
    fn releases_do_not_hide_a_rise() {
        let mut suspicion = Suspicion::default();
        suspicion.look(look(0, 500, 0, &[("1", OLD)]));
        suspicion.look(look(5, 100, 0, &[("1", OLD)]));
        assert_eq!(suspicion.look(look(10, 450, 0, &[("1", OLD)])).len(), 1);
        let mut suspicion = Suspicion::default();
        suspicion.look(look(0, 500, 0, &[("1", OLD)]));
        assert_eq!(suspicion.look(Look { by_this: 200, ..look(5, 400, 0, &[("1", OLD)]) }).len(), 1);
    }
}
