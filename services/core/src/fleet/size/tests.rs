use proptest::prelude::*;

use super::*;
use crate::fleet::{Override, Schedule};

fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000_000)
}

/// A pool of up to 1000 nodes of one slot each, with no limits that matter.
fn pool() -> Pool {
    Pool { max: 1000, step_up: 1000, step_down: 1000, ..Pool::new("p", "x", &["default"]) }
}

fn demand(waiting: f64, running: f64) -> Demand {
    Demand { waiting, running, oldest_age: None, arrival_rate: None, run_time: None }
}

fn flow(waiting: f64, running: f64, rate: f64, run_time: u64) -> Demand {
    let run_time = Some(Duration::from_secs(run_time));
    Demand { arrival_rate: Some(rate), run_time, ..demand(waiting, running) }
}

fn aged(demand: Demand, seconds: u64) -> Demand {
    Demand { oldest_age: Some(Duration::from_secs(seconds)), ..demand }
}

/// The size that a pool of no nodes is to have.
fn asks(pool: &Pool, demand: &Demand) -> u32 {
    SizePolicy::default().desire(pool, Some(demand), 0, at(0)).desired
}

fn rules(size: &Size) -> Vec<(&'static str, u32)> {
    size.steps.iter().map(|step| (step.rule, step.nodes)).collect()
}

#[test]
fn a_steady_flow_gets_the_slots_that_it_keeps_busy() {
    // 0.5 a second for 40 s each are 20 slots; as many wait as wait for 20 s, which is less than the target of 30 s.
    assert_eq!(asks(&pool(), &flow(10.0, 20.0, 0.5, 40)), 20);
    let wide = Pool { slots: 8, ..pool() };
    assert_eq!(asks(&wide, &flow(10.0, 20.0, 0.5, 40)), 3);
}

#[test]
fn a_backlog_is_worked_off_within_the_target() {
    // 300 tasks of 10 s within 30 s: three for each slot.
    assert_eq!(asks(&pool(), &flow(300.0, 0.0, 0.0, 10)), 100);
    // With 1 a second still coming, of which 30 may wait: 10 slots for them, and 270 tasks to be worked off.
    assert_eq!(asks(&pool(), &flow(300.0, 0.0, 1.0, 10)), 100);
    // Tasks that run for longer than the target need a slot each.
    assert_eq!(asks(&pool(), &flow(300.0, 50.0, 0.0, 600)), 350);
}

#[test]
fn what_has_waited_too_long_raises_it() {
    let calm = flow(60.0, 10.0, 1.0, 10);
    assert_eq!(asks(&pool(), &aged(calm.clone(), 25)), 20);
    // None of them counts as what a flow leaves waiting any more, and their age makes them count for more.
    assert_eq!(asks(&pool(), &aged(calm.clone(), 45)), 40);
    assert_eq!(asks(&pool(), &aged(calm, 100_000)), 50, "twice as much at the most");
    // However little it is, it gets a slot that is not taken.
    assert_eq!(asks(&pool(), &aged(flow(1.0, 5.0, 0.0, 1), 60)), 6);
}

#[test]
fn there_are_never_more_slots_than_tasks_nor_fewer_than_run() {
    assert_eq!(asks(&pool(), &flow(3.0, 2.0, 10.0, 100)), 5);
    assert_eq!(asks(&pool(), &flow(0.0, 70.0, 0.0, 1)), 70);
    assert_eq!(asks(&pool(), &demand(12.0, 3.0)), 15, "a slot for each while it is not known how long they run");
}

#[test]
fn odd_figures_ask_for_nothing() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -5.0] {
        let demand = Demand { waiting: odd, running: odd, arrival_rate: Some(odd), ..flow(0.0, 0.0, 0.0, 10) };
        assert_eq!(asks(&pool(), &demand), 0, "{odd}");
    }
    assert_eq!(asks(&pool(), &flow(1e300, 0.0, 1e300, u64::MAX)), 1000);
}

#[test]
fn to_zero_and_back() {
    let (mut policy, pool) = (SizePolicy::default(), pool());
    assert_eq!(policy.desire(&pool, Some(&flow(0.1, 0.0, 0.001, 1)), 0, at(0)).desired, 1, "a share of a task is one");
    for second in 1..300 {
        let size = policy.desire(&pool, Some(&demand(0.0, 0.0)), 1, at(second));
        assert_eq!(rules(&size), [("queues", 0), ("hysteresis", 1)], "after {second} s");
    }
    assert_eq!(policy.desire(&pool, Some(&demand(0.0, 0.0)), 1, at(310)).desired, 0);
    assert_eq!(policy.desire(&pool, Some(&demand(1.0, 0.0)), 0, at(311)).desired, 1);
}

#[test]
fn it_shrinks_only_to_what_was_asked_for_in_a_while() {
    let (mut policy, pool) = (SizePolicy::default(), pool());
    policy.desire(&pool, Some(&demand(0.0, 50.0)), 50, at(0));
    policy.desire(&pool, Some(&demand(0.0, 30.0)), 50, at(200));
    assert_eq!(policy.desire(&pool, Some(&demand(0.0, 10.0)), 50, at(290)).desired, 50);
    assert_eq!(policy.desire(&pool, Some(&demand(0.0, 10.0)), 50, at(320)).desired, 30);
    assert_eq!(policy.desire(&pool, Some(&demand(0.0, 10.0)), 30, at(520)).desired, 10);
}

#[test]
fn a_new_leader_drains_nothing_that_it_has_not_watched() {
    let (mut policy, pool) = (SizePolicy::default(), pool());
    assert_eq!(policy.desire(&pool, Some(&demand(0.0, 0.0)), 50, at(0)).desired, 50);
    assert_eq!(policy.desire(&pool, Some(&demand(0.0, 0.0)), 50, at(299)).desired, 50);
    assert_eq!(policy.desire(&pool, Some(&demand(0.0, 0.0)), 50, at(311)).desired, 0);
}

#[test]
fn small_differences_are_ignored_unless_something_waits_too_long() {
    let (mut policy, pool) = (SizePolicy::default(), pool());
    assert_eq!(policy.desire(&pool, Some(&demand(5.0, 100.0)), 100, at(0)).desired, 100);
    assert_eq!(policy.desire(&pool, Some(&aged(demand(5.0, 100.0), 31)), 100, at(1)).desired, 105);
    assert_eq!(policy.desire(&pool, Some(&demand(10.0, 100.0)), 100, at(2)).desired, 110);
    let mut policy = SizePolicy::default();
    let calm = Pool { scale_down_after: Duration::ZERO, ..pool };
    policy.desire(&calm, Some(&demand(0.0, 95.0)), 95, at(0));
    let size = policy.desire(&calm, Some(&demand(0.0, 95.0)), 100, at(1));
    assert_eq!(rules(&size), [("queues", 95), ("hysteresis", 100)]);
    assert_eq!(policy.desire(&calm, Some(&demand(0.0, 90.0)), 100, at(2)).desired, 90);
    assert_eq!(policy.desire(&calm, Some(&demand(0.0, 0.0)), 1, at(3)).desired, 0, "the last one goes");
}

#[test]
fn unknown_demand_holds_the_size_within_the_bounds() {
    let (mut policy, mut pool) = (SizePolicy::default(), Pool { min: 2, max: 20, ..pool() });
    let hold = |policy: &mut SizePolicy, pool: &Pool, current, now| policy.desire(pool, None, current, now).desired;
    assert_eq!(hold(&mut policy, &pool, 7, at(0)), 7);
    assert_eq!(hold(&mut policy, &pool, 0, at(1)), 2);
    assert_eq!(hold(&mut policy, &pool, 30, at(2)), 20);
    // Nothing shrinks at once when demand is known again.
    pool.max = 1000;
    hold(&mut policy, &pool, 30, at(1000));
    assert_eq!(policy.desire(&pool, Some(&demand(0.0, 1.0)), 30, at(1001)).desired, 30);
}

#[test]
fn the_rules_apply_in_their_order() {
    let always = |min| Schedule { days: Vec::new(), from: 0, to: 1440, min };
    let pool = Pool { min: 5, max: 40, schedule: vec![always(8)], step_up: 10, step_down: 3, ..pool() };
    let size = |demand: &Demand, current| SizePolicy::default().desire(&pool, Some(demand), current, at(0));
    assert_eq!(rules(&size(&demand(1.0, 0.0), 0)), [("queues", 1), ("min", 5), ("schedule", 8)]);
    assert_eq!(rules(&size(&demand(90.0, 0.0), 12)), [("queues", 90), ("max", 40), ("step", 22)]);
    assert_eq!(rules(&size(&demand(90.0, 0.0), 38)), [("queues", 90), ("max", 40)]);
    assert_eq!(rules(&size(&demand(60.0, 0.0), 60)), [("queues", 60), ("max", 40), ("step", 57)]);
    assert_eq!(rules(&size(&demand(20.0, 0.0), 15)), [("queues", 20)]);
}

fn hand(min: Option<u32>, max: Option<u32>, desired: Option<u32>) -> Pool {
    let by_hand = Override {
        owner: "ops".into(),
        reason: "a sale".into(),
        until: at(100),
        min,
        max,
        desired,
        no_terminations: false,
        no_launches: false,
    };
    Pool { by_hand: Some(by_hand), max: 40, step_up: 5, ..pool() }
}

#[test]
fn by_hand_overrules_and_shows_what_would_be_without() {
    let size = |pool: &Pool, now| SizePolicy::default().desire(pool, Some(&demand(20.0, 0.0)), 10, now);
    let set = size(&hand(None, None, Some(60)), at(99));
    assert_eq!((set.desired, set.without_override), (60, 15));
    let expected = [("queues", 20), ("step", 15), ("override", 60)];
    assert_eq!(rules(&set), expected);
    assert_eq!(set.steps[2].detail, "ops: a sale");
    assert_eq!(size(&hand(Some(18), None, None), at(0)).desired, 18);
    assert_eq!(size(&hand(None, Some(4), None), at(0)).desired, 4);
    assert_eq!(size(&hand(Some(12), Some(30), None), at(0)).desired, 15);
    assert_eq!(size(&hand(None, Some(30), Some(60)), at(0)).desired, 30);
    assert_eq!(size(&hand(None, None, Some(60)), at(100)).desired, 15, "it has ended");
    assert_eq!(SizePolicy::default().desire(&hand(None, None, Some(0)), None, 7, at(0)).desired, 0);
}

#[test]
fn a_pool_that_is_deleted_has_no_nodes() {
    let pool = Pool { deleting: true, min: 3, ..hand(Some(5), None, None) };
    let size = SizePolicy::default().desire(&pool, Some(&demand(9.0, 9.0)), 9, at(0));
    assert_eq!((size.desired, size.without_override, rules(&size)), (0, 0, vec![("deleting", 0)]));
}

#[test]
fn details_carry_the_figures() {
    let detail =
        |demand: &Demand| SizePolicy::default().desire(&pool(), Some(demand), 0, at(0)).steps[0].detail.clone();
    assert_eq!(
        detail(&flow(12.0, 25.0, 0.5, 40)),
        "12 waiting, 25 running, 0.50/s × 40 s: 25.0 slots for the flow, 1 a node"
    );
    assert_eq!(
        detail(&aged(flow(120.0, 3.0, 0.5, 40), 90)),
        "120 waiting, 3 running, 0.50/s × 40 s, the oldest for 90 s of 30 s: 20.0 slots for the flow and 240.0 for 120 more, \
         but no more than tasks: 123.0, 1 a node"
    );
    assert_eq!(
        detail(&demand(2.0, 0.0)),
        "2 waiting, 0 running, run time not known: a slot for each: 0.0 slots for the flow and 2.0 for 2 more, 1 a node"
    );
}

proptest! {
    #[test]
    fn it_stays_within_its_bounds(
        rounds in prop::collection::vec(
            (0.0f64..2000.0, 0.0f64..500.0, 0.0f64..50.0, 0u64..1000, 0u64..1000, any::<bool>()), 1..60),
        (min, max, slots) in (0u32..20, 20u32..300, 1u32..16), (step_up, step_down) in (1u32..50, 1u32..50),
    ) {
        let pool = Pool { min, max, slots, step_up, step_down, ..pool() };
        let mut policy = SizePolicy::default();
        let mut current = 0;
        for (round, (waiting, running, rate, run_time, age, known)) in rounds.into_iter().enumerate() {
            let demand = aged(flow(waiting, running, rate, run_time), age);
            let size = policy.desire(&pool, known.then_some(&demand), current, at(10 * round as i64));
            prop_assert_eq!(size.desired, size.without_override);
            prop_assert_eq!(Some(size.desired), size.steps.last().map(|step| step.nodes));
            prop_assert!(size.desired <= max.max(current.saturating_sub(step_down)));
            prop_assert!(size.desired >= min.min(current + step_up));
            prop_assert!(size.desired.abs_diff(current) <= step_up.max(step_down));
            let busy = (running / f64::from(slots) - 1e-6).ceil() as u32;
            prop_assert!(!known || size.desired >= busy.min(max).min(current), "never below running work");
            let tasks = ((waiting + running) / f64::from(slots)).ceil() as u32;
            prop_assert!(size.desired <= tasks.max(current).max(min), "never more slots than tasks");
            current = size.desired;
        }
    }
}
