//! A scaler that launches what it lacks whenever it may, and images that work, fail, or do both.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const SECOND: i64 = 1_000_000;

fn node(number: u32) -> NodeId {
    NodeId(Uuid::from_u128(u128::from(number) + 1))
}

fn at(seconds: f64) -> Timestamp {
    // 2018-10-10 12:00:00 UTC.
    Timestamp(1_539_172_800 * SECOND + (seconds * 1e6) as i64)
}

fn pool(max: u32) -> Pool {
    let unproven = Pool::default_unproven(max);
    Pool { max, unproven, ..Pool::new("p", "x", &["default"]) }
}

/// What becomes of a launch, and after how many seconds.
#[derive(Debug, Clone, Copy)]
enum End {
    Joins(f64),
    Fails(f64),
    Nothing,
}

/// A small generator, so that a seed is a whole history (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", OOPSLA 2014).
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A pool that wants so many nodes, and launches them as the gate lets it.
struct World {
    gate: Gate,
    pool: Pool,
    time: f64,
    wanted: u32,
    /// Launches a second, at most.
    pace: u32,
    launches: Vec<(f64, End)>,
    under_way: Vec<u32>,
    joined: u32,
    failed: u32,
    /// Times at which launches were stopped.
    stopped: Vec<f64>,
}

impl World {
    fn new(pool: Pool, wanted: u32, pace: u32) -> Self {
        Self {
            gate: Gate::new(),
            pool,
            time: 0.0,
            wanted,
            pace,
            launches: Vec::new(),
            under_way: Vec::new(),
            joined: 0,
            failed: 0,
            stopped: Vec::new(),
        }
    }

    /// One second of it.
    fn step(&mut self, end: &mut dyn FnMut(f64) -> End) -> Allowance {
        self.tell();
        let time = self.time;
        let allowance = self.gate.allowance(&self.pool, at(time));
        if matches!(allowance.state, GateState::Stopped { .. }) {
            self.stopped.push(time);
        }
        let lacking = self.wanted.saturating_sub(self.joined + self.under_way.len() as u32);
        for _ in 0..lacking.min(self.pace).min(allowance.launches) {
            let number = self.launches.len() as u32;
            self.launches.push((time, end(time)));
            self.under_way.push(number);
            self.gate.launched(node(number), at(time));
        }
        self.time += 1.0;
        allowance
    }

    /// Tells the gate what has ended by now.
    fn tell(&mut self) {
        let time = self.time;
        let (mut joined, mut failed) = (Vec::new(), Vec::new());
        let launches = &self.launches;
        self.under_way.retain(|number| match launches[*number as usize] {
            (launched, End::Joins(after)) if launched + after <= time => {
                joined.push((*number, launched));
                false
            }
            (launched, End::Fails(after)) if launched + after <= time => {
                failed.push((*number, launched));
                false
            }
            _ => true,
        });
        self.joined += joined.len() as u32;
        self.failed += failed.len() as u32;
        for (number, launched) in joined {
            self.gate.joined(node(number), at(launched), at(time));
        }
        for (number, launched) in failed {
            self.gate.failed(node(number), at(launched), at(time), "cloud-init: bad reference");
        }
    }

    fn run(&mut self, seconds: u32, end: &mut dyn FnMut(f64) -> End) {
        for _ in 0..seconds {
            self.step(end);
        }
    }

    fn made_since(&self, time: f64) -> u32 {
        self.launches.iter().filter(|(launched, _)| *launched >= time).count() as u32
    }
}

fn seeded(cases: u32) -> ProptestConfig {
    let rng_seed = proptest::test_runner::RngSeed::Fixed(4);
    ProptestConfig { cases, failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(seeded(40))]

    /// D4: after a quiet time every launch fails. No more are launched than may be unproven, but for the probes.
    #[test]
    fn d4_launches_stop_when_all_fail(
        seed: u64, max in 1u32..1000, pace in 1u32..100, least in 1.0f64..120.0, width in 0.0f64..120.0,
    ) {
        let mut random = Random(seed);
        let mut world = World::new(pool(max), max, pace);
        world.run(3600, &mut |_| End::Fails(least + width * random.unit()));
        let first = *world.stopped.first().expect("they are stopped");
        let probes = world.made_since(first);
        let before = world.launches.len() as u32 - probes;
        prop_assert!(before <= (max / 10).max(5), "{before} launched");
        // An hour of probes: after 30 s, then doubling up to 10 min, and each takes its time to fail.
        prop_assert!((4..=12).contains(&probes), "{probes} probes in an hour");
    }

    /// D4, while launches are proven: once a tenth of the pool, or 5, have failed, no more are launched.
    #[test]
    fn d4_a_bad_deploy_in_the_middle_of_a_surge_stops_it(
        seed: u64, max in 50u32..1000, pace in 1u32..20, fails in 1.0f64..300.0, width in 0.0f64..100.0, deploy in 130.0f64..400.0,
    ) {
        let mut random = Random(seed);
        let mut world = World::new(pool(max), 1_000_000, pace);
        let mut end = |time: f64| match time < deploy {
            true => End::Joins(60.0 + 60.0 * random.unit()),
            false => End::Fails(fails + width * random.unit()),
        };
        while world.time < deploy {
            world.step(&mut end);
        }
        while world.failed < world.pool.unproven.max(5) && world.time < 3000.0 {
            world.step(&mut end);
        }
        // The last launches from before it may join until then, but they say nothing about those since.
        let so_far = world.launches.len() as u32;
        world.run(fails as u32 + width as u32 + 2, &mut end);
        let allowance = world.gate.allowance(&world.pool, at(world.time));
        prop_assert!(matches!(allowance.state, GateState::Stopped { .. }), "{allowance:?}");
        prop_assert!(allowance.reason.ends_with("failed: cloud-init: bad reference"), "{}", allowance.reason);
        world.run(600, &mut end);
        let more = world.launches.len() as u32 - so_far;
        prop_assert!(more <= 12, "{more} launched afterwards, which is more than probes");
    }

    /// Launches of which a share is dead on arrival, known sooner or later than the others join: they go on.
    #[test]
    fn launches_go_on_while_some_join(
        seed: u64, max in 100u32..1000, pace in 1u32..50, dead in 0.0f64..0.3, joins in 5.0f64..300.0, width in 0.0f64..200.0,
        fails in 1.0f64..300.0,
    ) {
        let mut random = Random(seed);
        let mut world = World::new(pool(max), 500, pace);
        world.run(7200, &mut |_| match random.unit() < dead {
            true => End::Fails(fails),
            false => End::Joins(joins + width * random.unit()),
        });
        prop_assert!(world.stopped.is_empty(), "stopped for {} s", world.stopped.len());
        prop_assert_eq!(world.joined, 500);
    }

    /// Once the image is mended, the next probe joins and launches go on by themselves.
    #[test]
    fn launches_resume_when_a_probe_joins(
        seed: u64, max in 10u32..500, mended in 300.0f64..4000.0, joins in 5.0f64..400.0, fails in 1.0f64..60.0,
    ) {
        let mut random = Random(seed);
        let mut world = World::new(pool(max), max, 10);
        let mut end = |time: f64| match time < mended {
            true => End::Fails(fails),
            false => End::Joins(joins * (0.5 + random.unit())),
        };
        world.run(mended as u32, &mut end);
        prop_assert!(!world.stopped.is_empty());
        // The next probe starts within the longest wait; it, and the first after it, take as long as joins take.
        let takes = LAST_PROBE.as_secs() as u32 + 60 + 3 * (joins * 1.5) as u32 + max / 10;
        world.run(takes, &mut end);
        prop_assert_eq!(world.joined + world.under_way.len() as u32, max);
        prop_assert_eq!(world.gate.allowance(&world.pool, at(world.time)).state, GateState::Open);
    }
}

/// In a pool of at most 5 unproven launches, 5 in a row may be dead by chance: a probe then joins, and the pool gets all its nodes.
#[test]
fn a_small_pool_with_dead_launches_gets_its_nodes() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut world = World::new(pool(40), 40, 5);
        world.run(3600, &mut |_| if random.unit() < 0.3 { End::Fails(20.0) } else { End::Joins(120.0) });
        assert_eq!(world.joined, 40, "seed {seed}");
        assert!(world.stopped.len() < 400, "seed {seed}: stopped for {} s", world.stopped.len());
    }
}

#[test]
fn what_has_not_joined_yet_has_not_failed() {
    let mut world = World::new(pool(100), 100, 10);
    world.run(3600, &mut |_| End::Nothing);
    assert_eq!((world.launches.len(), world.stopped.len()), (10, 0), "as many as may be unproven");
    let allowance = world.gate.allowance(&world.pool, at(world.time));
    assert_eq!((allowance.launches, allowance.state), (0, GateState::Proving));
    assert_eq!(allowance.reason, "no launch has joined within 60 min: at most 10 launches until one joins");
}

#[test]
fn a_join_is_a_proof_for_a_while() {
    let mut gate = Gate::new();
    let pool = pool(100);
    assert_eq!(gate.allowance(&pool, at(0.0)).launches, 10);
    gate.launched(node(0), at(0.0));
    assert_eq!(gate.allowance(&pool, at(0.0)).launches, 9);
    gate.joined(node(0), at(0.0), at(60.0));
    let open = gate.allowance(&pool, at(61.0));
    assert_eq!((open.launches, open.state), (u32::MAX, GateState::Open));
    assert_eq!(open.reason, "the last launch joined at 2018-10-10 12:01:00 UTC");
    assert_eq!(gate.allowance(&pool, at(3659.0)).state, GateState::Open);
    assert_eq!(gate.allowance(&pool, at(3660.0)).state, GateState::Proving);
}

#[test]
fn one_line_names_the_cause() {
    let mut gate = Gate::new();
    let pool = pool(50);
    for number in 0..5 {
        gate.launched(node(number), at(271.0 + f64::from(number)));
    }
    for number in 0..5 {
        let error = if number == 2 { "no route to host" } else { "cloud-init: bad reference" };
        gate.failed(node(number), at(271.0 + f64::from(number)), at(300.0 + f64::from(number)), error);
    }
    let stopped = gate.allowance(&pool, at(305.0));
    let expected = "all 5 launches since 2018-10-10 12:04:31 UTC failed, 4 of them: cloud-init: bad reference";
    assert_eq!(stopped.reason, expected);
    assert_eq!(stopped.state, GateState::Stopped { since: at(305.0), next_probe: at(335.0) });
    assert_eq!(stopped.launches, 0);
}

/// A gate that has just stopped, at 100 s.
fn stopped(pool: &Pool) -> Gate {
    let mut gate = Gate::new();
    for number in 0..10 {
        gate.failed(node(number), at(f64::from(number)), at(50.0), "");
    }
    assert_eq!(gate.allowance(pool, at(100.0)).launches, 0);
    gate
}

#[test]
fn probes_go_one_at_a_time_and_back_off() {
    let pool = pool(100);
    let mut gate = stopped(&pool);
    let mut now = 100.0;
    for (number, wait) in (100..).zip([30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]) {
        assert_eq!(gate.allowance(&pool, at(now + wait - 1.0)).launches, 0, "{number}");
        now += wait;
        assert_eq!(gate.allowance(&pool, at(now)).launches, 1, "{number}");
        gate.launched(node(number), at(now));
        assert_eq!(gate.allowance(&pool, at(now + 500.0)).launches, 0, "while a probe is under way there is no other");
        gate.failed(node(number), at(now), at(now + 10.0), "");
        now += 10.0;
    }
    let reason = gate.allowance(&pool, at(now)).reason;
    assert_eq!(reason, "all 17 launches since 2018-10-10 12:00:00 UTC failed: no error was given");
}

#[test]
fn a_probe_that_tells_nothing_makes_room_for_the_next() {
    let pool = pool(100);
    let mut gate = stopped(&pool);
    gate.launched(node(100), at(130.0));
    assert_eq!(gate.allowance(&pool, at(729.0)).launches, 0);
    assert_eq!(gate.allowance(&pool, at(730.0)).launches, 1);
    gate.forgotten(node(100));
    assert_eq!(gate.allowance(&pool, at(731.0)).launches, 1, "nor does one that was cancelled stand in the way");
}

#[test]
fn a_probe_that_joins_leads_back_through_proving() {
    let pool = pool(100);
    let mut gate = stopped(&pool);
    gate.launched(node(100), at(130.0));
    gate.joined(node(100), at(130.0), at(200.0));
    let proving = gate.allowance(&pool, at(200.0));
    assert_eq!((proving.launches, proving.state), (10, GateState::Proving));
    gate.launched(node(101), at(201.0));
    gate.joined(node(101), at(201.0), at(260.0));
    assert_eq!(gate.allowance(&pool, at(260.0)).state, GateState::Open);
}

#[test]
fn a_late_join_from_before_the_first_failure_reopens_nothing() {
    let pool = pool(100);
    let mut gate = stopped(&pool);
    gate.joined(node(500), at(-10.0), at(110.0));
    assert!(matches!(gate.allowance(&pool, at(111.0)).state, GateState::Stopped { .. }));
    gate.joined(node(501), at(20.0), at(112.0));
    assert_eq!(gate.allowance(&pool, at(112.0)).state, GateState::Proving);
}

#[test]
fn failures_among_many_under_way_slow_launches_and_do_not_stop_them() {
    let pool = pool(100);
    let mut gate = Gate::new();
    gate.joined(node(1000), at(-100.0), at(-1.0));
    for number in 0..40 {
        gate.launched(node(number), at(f64::from(number)));
    }
    // Every fourth has failed at once; the others take longer to join than these to fail.
    for number in (0..40).step_by(4) {
        gate.failed(node(number), at(f64::from(number)), at(40.0), "bad disk");
    }
    let allowance = gate.allowance(&pool, at(41.0));
    assert_eq!((allowance.launches, allowance.state), (0, GateState::Proving));
    let expected = "10 launches since 2018-10-10 12:00:00 UTC failed: bad disk; at most 10 launches until one joins";
    assert_eq!(allowance.reason, expected);
    gate.joined(node(38), at(38.0), at(90.0));
    assert_eq!(gate.allowance(&pool, at(90.0)).state, GateState::Open);
}

#[test]
fn moments_read_as_people_write_them() {
    for (seconds, text) in [
        (0, "1970-01-01 00:00:00 UTC"),
        (951_782_399, "2000-02-28 23:59:59 UTC"),
        (951_782_400, "2000-02-29 00:00:00 UTC"),
        (1_709_251_199, "2024-02-29 23:59:59 UTC"),
        (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        (-1, "1969-12-31 23:59:59 UTC"),
    ] {
        assert_eq!(utc(Timestamp(seconds * SECOND)), text);
    }
}

#[test]
fn memory_is_bounded_and_errors_are_cut() {
    let mut gate = Gate::new();
    for number in 0..1000 {
        gate.failed(node(number), at(f64::from(number)), at(2000.0), &"ä".repeat(1000));
    }
    assert_eq!(gate.failures.len(), REMEMBERED);
    assert!(gate.failures.iter().all(|failure| failure.error.len() == ERROR_BYTES));
    assert!(gate.allowance(&pool(10), at(2000.0)).reason.starts_with("all 256 or more launches since"));
    gate.joined(node(1000), at(3000.0), at(3100.0));
    assert_eq!((gate.failures.len(), gate.others.len()), (0, REMEMBERED));
}
