//! Launches and joins over simulated time: no node that would join is ever to be ended, and the dead are to be found.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// A small generator, so that a seed is a whole history (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

fn node(number: usize) -> NodeId {
    // Ids that do not sort as the launches do, as those of a batch need not.
    NodeId(Uuid::from_u128((number as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
}

fn at(seconds: f64) -> Timestamp {
    Timestamp((seconds * 1e6) as i64)
}

const MIN: Duration = Duration::from_secs(60);

/// A fleet whose launches come at times, and join after times, that a history makes up.
struct World {
    /// Seconds from one look to the next.
    tick: f64,
    /// The simulated time in seconds.
    length: f64,
    /// The pool's longest join time in seconds.
    max: f64,
    /// Launches: at what time, and after what time each joins; none is dead.
    launches: Vec<(f64, Option<f64>)>,
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    /// Nodes that would have joined, and were to be ended before the pool's longest time.
    killed: Vec<usize>,
    /// Dead nodes that were found to be late by themselves, and at what ages in seconds.
    found: Vec<(usize, f64)>,
    /// Dead nodes that were given up at the pool's longest time.
    given_up: Vec<usize>,
    /// Whether many were late together at each tick.
    together: Vec<bool>,
}

impl World {
    /// Launches at these times, with log-normal join times around a median that moves with time, cut off below the longest.
    fn new(
        random: &mut Random,
        times: Vec<f64>,
        median: impl Fn(f64) -> f64,
        spread: impl Fn(f64) -> f64,
        dead: f64,
    ) -> Self {
        let max = 3600.0;
        let launches = times.into_iter().map(|time| {
            let age = loop {
                let age = median(time) * (spread(time) * random.normal()).exp();
                if age < max * 0.98 {
                    break age;
                }
            };
            (time, (random.unit() >= dead).then_some(age))
        });
        let launches: Vec<_> = launches.collect();
        let last = launches.last().map_or(0.0, |launch| launch.0);
        Self { tick: 5.0, length: last + max + 60.0, max, launches }
    }

    fn run(&self) -> Outcome {
        let mut joins = Joins::default();
        let mut outcome = Outcome::default();
        let mut next = 0;
        let mut open: Vec<usize> = Vec::new();
        let mut time = 0.0;
        while time < self.length && (next < self.launches.len() || !open.is_empty()) {
            while next < self.launches.len() && self.launches[next].0 <= time {
                joins.launched(node(next), at(self.launches[next].0));
                open.push(next);
                next += 1;
            }
            open.retain(|number| {
                let (launched, age) = self.launches[*number];
                let joined = age.is_some_and(|age| launched + age <= time);
                if joined {
                    joins.joined(node(*number), at(launched + age.unwrap_or(0.0)));
                }
                !joined
            });
            self.judge(&mut joins, &mut open, time, &mut outcome);
            time += self.tick;
        }
        outcome
    }

    fn judge(&self, joins: &mut Joins, open: &mut Vec<usize>, time: f64, outcome: &mut Outcome) {
        let grace = joins.grace(MIN, Duration::from_secs_f64(self.max), at(time));
        outcome.together.push(grace.late_together);
        let verdicts: Vec<Lateness> =
            open.iter().map(|number| joins.lateness(node(*number), &grace, at(time))).collect();
        let mut verdicts = verdicts.into_iter();
        open.retain(|number| {
            let verdict = verdicts.next().unwrap_or(Lateness::InTime);
            let over = verdict == Lateness::Over;
            let ended = over || verdict == Lateness::Late && !grace.late_together;
            if ended {
                joins.failed(node(*number), at(time));
                match self.launches[*number].1 {
                    Some(_) => outcome.killed.push(*number),
                    None if over => outcome.given_up.push(*number),
                    None => outcome.found.push((*number, time - self.launches[*number].0)),
                }
            }
            !ended
        });
    }
}

/// Launch times with a mean gap, each gap random.
fn steady(random: &mut Random, count: usize, gap: f64) -> Vec<f64> {
    let mut time = 0.0;
    (0..count)
        .map(|_| {
            time -= (1.0 - random.unit()).ln() * gap;
            time
        })
        .collect()
}

fn cases() -> ProptestConfig {
    // MILLRACE_CASES is for longer hunts by hand.
    let cases = std::env::var("MILLRACE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(16);
    // Always the same histories: in others about one node in some millions takes longer than can be told from a dead one.
    let rng_seed = proptest::test_runner::RngSeed::Fixed(4);
    ProptestConfig { cases, failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    /// The drill D1b, and the same with dead launches among them.
    #[test]
    fn no_node_is_killed_when_the_join_time_jumps(
        seed: u64, count in 60usize..500, gap in 0.3f64..8.0, spread in 0.1f64..0.5, factor in 1.0f64..8.0,
        when in 0.1f64..0.9, dead in prop_oneof![Just(0.0), Just(0.3)],
    ) {
        let mut random = Random(seed);
        let times = steady(&mut random, count, gap);
        let jump = times[(count as f64 * when) as usize];
        let world = World::new(&mut random, times, |time| if time < jump { 120.0 } else { 120.0 * factor }, |_| spread, dead);
        let outcome = world.run();
        prop_assert!(outcome.killed.is_empty(), "{:?}, jump at {jump}", outcome.killed);
    }

    /// Join times that grow wider as they grow longer, that come back after a while, and launches that come in batches.
    #[test]
    fn no_node_is_killed_when_a_slow_down_comes_and_goes(
        seed: u64, batches in 10usize..60, size in 1usize..20, gap in 5.0f64..40.0, spread in 0.1f64..0.4, wider in 1.0f64..1.5,
        factor in 0.15f64..7.0, lasts in 8usize..30, dead in prop_oneof![Just(0.0), Just(0.3)],
    ) {
        let mut random = Random(seed);
        let times: Vec<f64> =
            steady(&mut random, batches, gap).into_iter().flat_map(|time| std::iter::repeat_n(time, size)).collect();
        let jump = times[times.len() / 3];
        // A slow-down of a few nodes looks like a few dead nodes; what can be told apart are more than the neighbours compared.
        let back = times[(times.len() / 3 + (lasts * size).max(2 * NEIGHBOURS)).min(times.len() - 1)];
        let slow = |time: f64| time >= jump && time < back;
        let world = World::new(
            &mut random,
            times,
            |time| if slow(time) { 120.0 * factor } else { 120.0 },
            |time| if slow(time) { spread * wider } else { spread },
            dead,
        );
        let outcome = world.run();
        prop_assert!(outcome.killed.is_empty(), "{:?}, from {jump} to {back}", outcome.killed);
    }

    /// A speed that drifts: the median's logarithm walks at random, by up to about half within ten minutes.
    #[test]
    fn no_node_is_killed_while_the_speed_wanders(
        seed: u64, count in 60usize..600, gap in 0.5f64..10.0, spread in 0.1f64..0.4, start in 20.0f64..400.0, pace in 0.0f64..0.12,
        dead in prop_oneof![Just(0.0), Just(0.1), Just(0.3)],
    ) {
        let mut random = Random(seed);
        let times = steady(&mut random, count, gap);
        let minutes = (times[count - 1] / 60.0) as usize + 2;
        let mut level = start.ln();
        let walk: Vec<f64> = (0..minutes)
            .map(|_| {
                level = (level + pace * random.normal()).clamp(10f64.ln(), 1200f64.ln());
                level.exp()
            })
            .collect();
        let world = World::new(&mut random, times, |time| walk[(time / 60.0) as usize], |_| spread, dead);
        let outcome = world.run();
        prop_assert!(outcome.killed.is_empty(), "{:?}", outcome.killed);
    }

    /// The first nodes of a pool, of any speed: nothing is known, so that none may be judged by a few.
    #[test]
    fn no_node_is_killed_by_what_a_few_have_shown(
        seed: u64, count in 1usize..30, gap in 0.1f64..120.0, spread in 0.1f64..0.6, median in 5.0f64..1200.0,
    ) {
        let mut random = Random(seed);
        let times = steady(&mut random, count, gap);
        let outcome = World::new(&mut random, times, |_| median, |_| spread, 0.0).run();
        prop_assert!(outcome.killed.is_empty(), "{:?}", outcome.killed);
    }

    /// 30 % dead on arrival from the start: they are found one by one, at about the time that those who join set.
    #[test]
    fn the_dead_are_found_among_those_that_join(
        seed: u64, count in 120usize..500, gap in 0.5f64..6.0, spread in 0.1f64..0.35, median in 30.0f64..150.0,
    ) {
        let mut random = Random(seed);
        let mut times = steady(&mut random, count, gap);
        // Launches go on afterwards, as those that replace the dead do; these are not looked at.
        let surge = times[count - 1];
        times.extend((1..60).map(|k| surge + 20.0 * f64::from(k)));
        let world = World::new(&mut random, times, |_| median, |_| spread, 0.3);
        let outcome = world.run();
        prop_assert!(outcome.killed.is_empty(), "{:?}", outcome.killed);
        let given_up = outcome.given_up.iter().filter(|number| **number < count).count();
        let mut found: Vec<f64> = outcome.found.iter().filter(|(number, _)| *number < count).map(|one| one.1).collect();
        let dead = found.len() + given_up;
        prop_assert!(given_up * 20 <= dead + 40, "{given_up} of {dead} given up at the end only");
        found.sort_by(f64::total_cmp);
        // The spread is learnt to within a third; the first are found once some have joined and the last once some came after them.
        let likely = median * (LATE * spread * 1.6).exp().max(4.0) + 300.0;
        let most = found[found.len() * 9 / 10];
        prop_assert!(most < likely, "nine in ten found within {most} s, of {likely} s");
        let held = outcome.together.iter().filter(|together| **together).count();
        prop_assert!(held * 4 <= outcome.together.len(), "late together in {held} of {} looks", outcome.together.len());
    }
}

fn learnt(ages: &[f64]) -> Joins {
    let mut joins = Joins::default();
    for (number, age) in ages.iter().enumerate() {
        joins.launched(node(number), at(number as f64));
        joins.joined(node(number), at(number as f64 + age));
    }
    joins
}

const MAX: Duration = Duration::from_secs(1800);

#[test]
fn zones_of_different_speed_do_not_know_of_each_other() {
    let (near, far) = (learnt(&[60.0; 100]), learnt(&[700.0; 100]));
    let now = at(2000.0);
    let (near, far) = (near.grace(MIN, MAX, now), far.grace(MIN, MAX, now));
    assert!(near.grace < Duration::from_secs(150), "{near:?}");
    assert!(far.grace > Duration::from_secs(1000) && far.grace < MAX, "{far:?}");
    assert_eq!(near.median, Some(Duration::from_secs(60)));
    assert_eq!((near.joins, near.pending, near.late, near.late_together), (100, 0, 0, false));
}

#[test]
fn with_few_joins_a_node_may_take_as_long_as_the_pool_allows() {
    let joins = learnt(&[10.0; LEAST_JOINS - 1]);
    assert_eq!(joins.grace(MIN, MAX, at(100.0)).grace, MAX);
    let joins = learnt(&[10.0; 200]);
    assert_eq!(joins.grace(MIN, MAX, at(300.0)).grace, MIN, "and never less than its least");
    assert_eq!(joins.grace(MAX, MIN, at(300.0)).grace, MIN, "the longest wins over the least");
}

#[test]
fn a_lone_late_node_is_doubtful_until_later_launches_have_told() {
    let mut joins = learnt(&[60.0; 100]);
    let dead = node(1000);
    joins.launched(dead, at(200.0));
    let grace = joins.grace(MIN, MAX, at(201.0));
    assert_eq!(joins.lateness(dead, &grace, at(201.0)), Lateness::InTime);
    assert_eq!(joins.lateness(dead, &grace, at(500.0)), Lateness::Doubtful);
    for (number, launched) in [(2000, 500.0), (2001, 510.0), (2002, 520.0)] {
        joins.launched(node(number), at(launched));
        joins.joined(node(number), at(launched + 60.0));
    }
    let grace = joins.grace(MIN, MAX, at(580.0));
    assert_eq!(joins.lateness(dead, &grace, at(580.0)), Lateness::Doubtful, "only the fast ones can have told by now");
    let grace = joins.grace(MIN, MAX, at(800.0));
    assert_eq!((joins.lateness(dead, &grace, at(800.0)), grace.late_together), (Lateness::Late, false));
    assert!(joins.is_late(dead, &grace, at(800.0)) && joins.is_doubtful(dead, &grace, at(800.0)));
}

#[test]
fn boot_progress_extends_the_grace_up_to_the_longest_join_time() {
    let mut joins = learnt(&[60.0; 100]);
    joins.launched(node(1000), at(1000.0));
    let grace = joins.grace(MIN, MAX, at(1000.0));
    let first = joins.deadline(node(1000), &grace).unwrap();
    joins.progressed(node(1000), at(1100.0));
    joins.progressed(node(1000), at(1050.0));
    assert_eq!(joins.deadline(node(1000), &grace), Some(first.after(Duration::from_secs(100))));
    joins.progressed(node(1000), at(2750.0));
    assert_eq!(joins.deadline(node(1000), &grace), Some(at(2800.0)));
    assert_eq!(joins.lateness(node(1000), &grace, at(2799.0)), Lateness::InTime);
    assert_eq!(joins.lateness(node(1000), &grace, at(2800.0)), Lateness::Over);
}

#[test]
fn a_late_joiner_that_was_given_up_teaches_the_grace() {
    let mut joins = learnt(&[60.0; 100]);
    let before = joins.grace(MIN, MAX, at(200.0));
    joins.launched(node(1000), at(200.0));
    joins.failed(node(1000), at(500.0));
    joins.failed(node(1000), at(501.0));
    joins.joined(node(1000), at(800.0));
    let after = joins.grace(MIN, MAX, at(800.0));
    assert!(after.joins == before.joins + 1 && after.grace > before.grace, "{before:?} {after:?}");
    // A second join, as after a restart, is not how long it took to join.
    joins.joined(node(1000), at(1700.0));
    assert_eq!(joins.grace(MIN, MAX, at(1700.0)), after);
}

#[test]
fn what_is_forgotten_tells_nothing_and_memory_is_bounded() {
    let mut joins = learnt(&[60.0; 10]);
    let before = joins.grace(MIN, MAX, at(100.0));
    joins.launched(node(1000), at(20.0));
    joins.forget(node(1000));
    assert_eq!(joins.grace(MIN, MAX, at(100.0)), before);
    assert_eq!(joins.deadline(node(1000), &before), None);
    assert!(!joins.is_late(node(1000), &before, at(1e6)), "what is not under way is not late");
    joins.forget(node(3));
    assert_eq!(joins.grace(MIN, MAX, at(100.0)), before, "a node that goes off the books takes nothing along");

    let joins = learnt(&vec![60.0; REMEMBERED + 1000]);
    assert_eq!((joins.ended.len(), joins.launched.len()), (REMEMBERED, REMEMBERED));
    let mut joins = learnt(&[60.0; 1000]);
    joins.launched(node(5000), at(90_000.0));
    joins.joined(node(5000), at(90_060.0));
    assert_eq!((joins.ended.len(), joins.launched.len()), (LEARNT_FROM, LEARNT_FROM));
}

#[test]
fn when_all_are_late_none_is_ended_before_the_longest_join_time() {
    let mut joins = learnt(&[60.0; 200]);
    for number in 1000..1050 {
        joins.launched(node(number), at(300.0));
    }
    for time in [500.0, 1000.0, 2000.0] {
        let grace = joins.grace(MIN, MAX, at(time));
        assert!(grace.late_together && grace.late == 50, "{grace:?}");
        assert!((1000..1050).all(|number| joins.lateness(node(number), &grace, at(time)) == Lateness::Doubtful));
    }
    let grace = joins.grace(MIN, MAX, at(2100.0));
    assert!((1000..1050).all(|number| joins.lateness(node(number), &grace, at(2100.0)) == Lateness::Over));
}
