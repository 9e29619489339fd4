//! A provider with a true limit, and a caller that always wants more than it takes.

use proptest::prelude::*;

use super::*;

fn at(seconds: f64) -> Timestamp {
    Timestamp((seconds * 1e6) as i64)
}

/// A token bucket, as providers have them.
struct Provider {
    rate: f64,
    burst: f64,
    tokens: f64,
    time: f64,
    /// What it says of when to come again.
    hint: Hint,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Hint {
    Nothing,
    /// When there is a call again.
    Exact,
    /// A fixed number of seconds.
    Fixed(f64),
}

impl Provider {
    /// None when it takes the call.
    fn call(&mut self, time: f64) -> Option<Option<Duration>> {
        self.tokens = (self.tokens + (time - self.time) * self.rate).min(self.burst);
        self.time = time;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return None;
        }
        Some(match self.hint {
            Hint::Nothing => None,
            Hint::Exact => Some(Duration::from_secs_f64((1.0 - self.tokens) / self.rate)),
            Hint::Fixed(seconds) => Some(Duration::from_secs_f64(seconds)),
        })
    }
}

/// Calls made and calls taken, in each span of ten seconds.
struct Played {
    budget: Budget,
    provider: Provider,
    spans: Vec<(u32, u32)>,
    time: f64,
}

impl Played {
    fn new(rate: f64, burst: f64, hint: Hint) -> Self {
        Self {
            budget: Budget::new(INITIAL_PER_S, FLOOR_PER_S, CEILING_PER_S, at(0.0)),
            provider: Provider { rate, burst, tokens: burst, time: 0.0, hint },
            spans: Vec::new(),
            time: 0.0,
        }
    }

    /// Makes every call that it may, as soon as it may; answers come after `takes` seconds, one call at a time.
    fn play(&mut self, seconds: f64, takes: f64) {
        let until = self.time + seconds;
        while self.time < until {
            if !self.budget.take(at(self.time)) {
                let next = self.budget.next_at(at(self.time));
                self.time = (next.0 as f64 / 1e6).max(self.time + 1e-6);
                continue;
            }
            let answer = self.provider.call(self.time);
            self.count(answer.is_none());
            self.time += takes;
            match answer {
                None => self.budget.succeeded(at(self.time)),
                Some(hint) => self.budget.throttled(at(self.time), hint),
            }
        }
    }

    fn count(&mut self, taken: bool) {
        let span = (self.time / 10.0) as usize;
        self.spans.resize(self.spans.len().max(span + 1), (0, 0));
        self.spans[span].0 += 1;
        self.spans[span].1 += u32::from(taken);
    }

    /// Calls made and taken from this second on.
    fn since(&self, second: f64) -> (f64, f64) {
        let spans = self.spans.iter().skip((second / 10.0) as usize);
        spans.fold((0.0, 0.0), |(made, taken), span| (made + f64::from(span.0), taken + f64::from(span.1)))
    }
}

fn hints() -> impl Strategy<Value = Hint> {
    prop_oneof![Just(Hint::Nothing), Just(Hint::Exact), (0.5f64..3.0).prop_map(Hint::Fixed)]
}

/// Rates from 0.05 to 50 a second, as likely in each decade.
fn rates() -> impl Strategy<Value = f64> {
    (0.05f64.ln()..50f64.ln()).prop_map(f64::exp)
}

fn seeded(cases: u32) -> ProptestConfig {
    let cases = std::env::var("MILLRACE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(cases);
    let rng_seed = proptest::test_runner::RngSeed::Fixed(4);
    ProptestConfig { cases, failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

/// What learning costs: refusals on the way down from the initial rate, and one or two of each slow probe.
const LEARNING: f64 = 20.0;

/// Of one call in twenty seconds some are lost to finding out whether the limit has risen.
const SLOW: f64 = 6.0;

proptest! {
    #![proptest_config(seeded(40))]

    #[test]
    fn it_takes_nearly_all_and_asks_for_hardly_more(rate in rates(), burst in 1.0f64..10.0, hint in hints(), takes in 0.0f64..0.01) {
        let mut played = Played::new(rate, burst, hint);
        played.play(720.0, takes);
        let (made, _) = played.since(0.0);
        prop_assert!(made <= 1.05 * rate * 720.0 + burst + LEARNING, "{made} calls, {} allowed", rate * 720.0);
        let (_, taken) = played.since(120.0);
        let share = if matches!(hint, Hint::Fixed(_)) { 0.85 } else { 0.9 };
        prop_assert!(taken >= share * rate * 600.0 - SLOW, "{taken} taken of {}", rate * 600.0);
    }

    #[test]
    fn it_follows_a_limit_that_changes(
        before in rates(), after in rates(), burst in 1.0f64..10.0, hint in hints(), takes in 0.0f64..0.01,
    ) {
        let mut played = Played::new(before, burst, hint);
        played.play(600.0, takes);
        played.provider.rate = after;
        played.play(600.0, takes);
        let (made, _) = played.since(0.0);
        let allowed = 600.0 * (before + after);
        prop_assert!(made <= 1.05 * allowed + 2.0 * (burst + LEARNING), "{made} calls, {allowed} allowed");
        // The slowest accounts need some minutes more to learn.
        played.play(1200.0, takes);
        let (made, taken) = played.since(1800.0);
        prop_assert!(taken >= 0.8 * after * 600.0 - SLOW, "{taken} taken of {} once it has learnt", after * 600.0);
        prop_assert!(made <= 1.05 * after * 600.0 + LEARNING, "{made} calls, {} allowed", after * 600.0);
    }
}
#[test]
fn a_limit_that_rises_is_found_within_minutes_and_one_that_falls_with_a_few_refusals() {
    let mut played = Played::new(1.0, 2.0, Hint::Nothing);
    played.play(300.0, 0.001);
    played.provider.rate = 10.0;
    played.play(180.0, 0.001);
    assert!(played.budget.rate() > 9.0, "{}", played.budget.rate());
    let before = played.since(0.0);
    played.provider.rate = 0.5;
    played.play(60.0, 0.001);
    let after = played.since(0.0);
    let refused = (after.0 - after.1) - (before.0 - before.1);
    assert!(refused <= 12.0, "{refused} refused");
    assert!(played.budget.rate() < 0.6, "{}", played.budget.rate());
}

/// Where the provider asks for long pauses after each refusal, learning takes longer, and most of its limit is still used.
#[test]
fn long_pauses_cost_a_part() {
    for (rate, burst, least) in [(0.5, 1.0, 0.9), (2.0, 10.0, 0.65), (20.0, 3.0, 0.85)] {
        let mut played = Played::new(rate, burst, Hint::Fixed(10.0));
        played.play(720.0, 0.001);
        let (made, taken) = played.since(120.0);
        assert!(taken >= least * rate * 600.0, "{taken} taken of {}", rate * 600.0);
        assert!(made <= 1.05 * rate * 600.0 + LEARNING, "{made} made of {}", rate * 600.0);
    }
}

/// One that looks only now and then makes the calls of that time at once, up to a burst.
#[test]
fn a_coarse_look_makes_small_bursts() {
    let mut budget = Budget::new(50.0, FLOOR_PER_S, CEILING_PER_S, at(0.0));
    for (seconds, calls) in [(0.0, 1), (0.02, 1), (0.04, 1), (0.14, 5), (0.24, 5), (100.0, 5)] {
        assert_eq!(budget.available(at(seconds)), calls, "at {seconds} s");
        for _ in 0..calls {
            assert!(budget.take(at(seconds)));
            budget.succeeded(at(seconds));
        }
        budget.rate = 50.0;
    }
}

#[test]
fn no_call_is_made_before_the_provider_wants_one() {
    let mut budget = Budget::new(10.0, FLOOR_PER_S, CEILING_PER_S, at(0.0));
    assert!(budget.take(at(0.0)));
    budget.throttled(at(0.1), Some(Duration::from_secs(30)));
    assert_eq!(budget.not_before(), Some(at(30.1)));
    assert_eq!((budget.available(at(30.0)), budget.take(at(30.0))), (0, false));
    assert_eq!(budget.next_at(at(1.0)), at(30.1));
    assert_eq!(budget.available(at(30.1)), 1, "and no burst of what has come due meanwhile");
    assert!(budget.take(at(30.1)));
    budget.throttled(at(30.2), None);
    assert_eq!(budget.not_before(), Some(at(30.1)), "what was asked for has passed");
}

#[test]
fn refusals_of_calls_under_way_together_count_once() {
    let mut budget = Budget::new(100.0, FLOOR_PER_S, CEILING_PER_S, at(0.0));
    budget.since.taken = 1;
    assert_eq!(budget.available(at(1.0)), 10);
    (0..10).for_each(|_| assert!(budget.take(at(1.0))));
    budget.throttled(at(1.1), None);
    let rate = budget.rate();
    (0..8).for_each(|_| budget.throttled(at(1.1), None));
    budget.succeeded(at(1.1));
    assert_eq!(budget.rate(), rate);
    assert!(budget.take(at(3.0)));
    budget.throttled(at(3.1), None);
    assert!(budget.rate() < rate, "the next one counts");
}

#[test]
fn answers_that_never_come_do_not_make_it_deaf() {
    let mut budget = Budget::new(100.0, FLOOR_PER_S, CEILING_PER_S, at(0.0));
    budget.since.taken = 1;
    budget.fill(at(1.0));
    (0..10).for_each(|_| assert!(budget.take(at(1.0))));
    budget.throttled(at(1.1), None);
    let rate = budget.rate();
    assert!(budget.take(at(20.0)));
    budget.throttled(at(20.1), None);
    assert!(budget.rate() < rate);
}

#[test]
fn a_rate_that_nobody_uses_does_not_grow_and_bounds_hold() {
    let mut budget = Budget::new(1.0, 0.5, 2.0, at(0.0));
    for minute in 0..10 {
        assert!(budget.take(at(f64::from(minute) * 3600.0)));
        budget.succeeded(at(f64::from(minute) * 3600.0));
    }
    assert!(budget.rate() <= 2.0);
    for second in 0..100 {
        if budget.take(at(40_000.0 + 10.0 * f64::from(second))) {
            budget.throttled(at(40_000.0 + 10.0 * f64::from(second)), None);
        }
    }
    assert_eq!(budget.rate(), 0.5);
    assert_eq!(Budget::new(1.0, 5.0, 2.0, at(0.0)).rate(), 5.0, "a floor above the ceiling is one");
    assert!(Budget::new(f64::NAN, 0.0, 2.0, at(0.0)).rate() > 0.0);
}
