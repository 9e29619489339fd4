//! How long nodes take to join, from joins seen and launches that have not joined yet.

/// The least join time that counts, in seconds: clocks that disagree must not make the logarithm of one infinite.
const LEAST: f64 = 0.001;

/// A standard deviation that is assumed, and how many observations the assumption is worth. It keeps a handful of joins that happen to
/// agree from setting a limit that the next one breaks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Assumed {
    /// The standard deviation.
    pub(super) spread: f64,
    /// What it is worth.
    pub(super) worth: f64,
}

/// What is assumed before any join was seen: half of the nodes between 0.7 and 1.4 times the median.
pub(super) const UNKNOWN: Assumed = Assumed { spread: 0.5, worth: 4.0 };

/// One launch: how old it was when it joined, or how old it is while it has not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Its age in seconds.
    pub(super) age: f64,
    /// It joined at that age; otherwise it had not joined by then, and that is all that is known (right-censored).
    pub(super) joined: bool,
}

/// The share of launches that have joined by an age: the estimate of Kaplan and Meier ("Nonparametric Estimation from Incomplete
/// Observations", Journal of the American Statistical Association, 1958).
///
/// Launches that never join leave it on a plateau below 1. Its quantiles are those of the launches that do join, which is the share at that
/// age divided by the plateau, as in cure models (Maller and Zhou, "Survival Analysis with Long-Term Survivors", 1996).
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Curve {
    /// Ages at which some joined, and the share that had joined then, both rising.
    steps: Vec<(f64, f64)>,
}

impl Curve {
    /// The curve of the samples, whatever their order.
    pub(super) fn of(mut samples: Vec<Sample>) -> Self {
        // At equal ages joins come first: who has not joined by an age was still at risk at it.
        samples.sort_unstable_by(|one, other| one.age.total_cmp(&other.age).then(other.joined.cmp(&one.joined)));
        let mut steps: Vec<(f64, f64)> = Vec::new();
        let mut waiting = 1.0;
        let mut at_risk = samples.len() as f64;
        for sample in &samples {
            if sample.joined {
                waiting *= 1.0 - 1.0 / at_risk;
                match steps.last_mut() {
                    Some(last) if last.0 == sample.age => last.1 = 1.0 - waiting,
                    _ => steps.push((sample.age, 1.0 - waiting)),
                }
            }
            at_risk -= 1.0;
        }
        Self { steps }
    }

    /// The age in seconds by which this share of the launches that join have joined; none while none has.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let plateau = self.steps.last()?.1;
        // A hair less, so that rounding does not turn the last step into none.
        self.steps.iter().find(|(_, joined)| *joined >= share * plateau - 1e-12).map(|(age, _)| *age)
    }
}

/// The logarithm of a join time in seconds.
pub(super) fn log(age: f64) -> f64 {
    age.max(LEAST).ln()
}

/// The spread of join times around whatever their level is at the moment, as a standard deviation of their logarithms.
///
/// It is taken from the differences between neighbours in launch order (von Neumann and others, "The Mean Square Successive
/// Difference", Annals of Mathematical Statistics, 1941): a level that jumps or drifts adds to one difference or a little to each,
/// where it would swell the ordinary deviation for as long as both levels are remembered. Few differences leave it near `assumed`.
pub(super) fn spread(logs: &[f64], assumed: Assumed) -> f64 {
    let squares: f64 = logs.windows(2).map(|pair| (pair[1] - pair[0]).powi(2) / 2.0).sum();
    // Neighbouring differences share a value, so that they are worth two thirds of as many independent ones.
    let worth = logs.len().saturating_sub(1) as f64 * 2.0 / 3.0;
    ((squares * 2.0 / 3.0 + assumed.worth * assumed.spread.powi(2)) / (worth + assumed.worth)).sqrt()
}

/// The spread of the pool, of which so far these join times were seen: its upper 95 % confidence bound (the normal approximation to the
/// distribution of a standard deviation), because one that is taken for too small makes healthy nodes look late.
pub(super) fn upper_spread(logs: &[f64]) -> f64 {
    let worth = logs.len().saturating_sub(1) as f64 * 2.0 / 3.0 + UNKNOWN.worth;
    spread(logs, UNKNOWN) * (1.0 + 1.65 / (2.0 * worth).sqrt())
}

/// A join time in seconds that hardly any node exceeds whose neighbours joined with these logarithms of join times: the upper
/// prediction limit of a log-normal distribution (Hahn and Meeker, "Statistical Intervals", 1991), `deviations` above the mean. None
/// without neighbours.
pub(super) fn limit(logs: &[f64], spread: f64, deviations: f64) -> Option<f64> {
    if logs.is_empty() {
        return None;
    }
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    Some((mean + deviations * spread * (1.0 + 1.0 / count).sqrt()).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(joined: &[f64], waiting: &[f64]) -> Vec<Sample> {
        let one = |joined| move |age: &f64| Sample { age: *age, joined };
        joined.iter().map(one(true)).chain(waiting.iter().map(one(false))).collect()
    }

    #[test]
    fn the_curve_is_that_of_the_paper() {
        // The example of the paper (section 2.1, table 1): deaths at 0.8, 3.1, 5.4, 9.2, losses at 1.0, 2.7, 7.0, 12.1.
        let curve = Curve::of(samples(&[0.8, 3.1, 5.4, 9.2], &[1.0, 2.7, 7.0, 12.1]));
        let expected = [(0.8, 0.125), (3.1, 0.3), (5.4, 0.475), (9.2, 0.7375)];
        assert_eq!(curve.steps.len(), expected.len());
        for (step, wanted) in curve.steps.iter().zip(expected) {
            assert!((step.0 - wanted.0).abs() < 1e-9 && (step.1 - wanted.1).abs() < 1e-9, "{step:?} {wanted:?}");
        }
    }

    #[test]
    fn the_dead_do_not_move_the_quantiles_of_the_living() {
        let joined: Vec<f64> = (1..=100).map(f64::from).collect();
        let alone = Curve::of(samples(&joined, &[]));
        let among = Curve::of(samples(&joined, &[1000.0; 60]));
        for share in [0.01, 0.5, 0.99] {
            assert_eq!(alone.quantile(share), among.quantile(share), "{share}");
        }
        assert_eq!(alone.quantile(0.5), Some(50.0));
        assert_eq!(Curve::of(samples(&[], &[1.0])).quantile(0.5), None);
    }

    #[test]
    fn those_that_still_wait_stretch_it() {
        // Half joined at 1 to 10 s; as many wait and are old enough to have joined with them, so that the one join at 60 s counts for many.
        let early: Vec<f64> = (1..=10).map(f64::from).collect();
        let joined: Vec<f64> = early.iter().copied().chain([60.0]).collect();
        let curve = Curve::of(samples(&joined, &[55.0; 9]));
        assert_eq!(curve.quantile(0.99), Some(60.0));
        assert_eq!(curve.quantile(0.4), Some(8.0));
    }

    #[test]
    fn a_jump_of_the_level_hardly_moves_the_spread() {
        let noise = |k: u32| if k.is_multiple_of(2) { 0.2 } else { -0.2 };
        let level: Vec<f64> = (0..200).map(|k| 5.0 + noise(k / 2)).collect();
        let jump: Vec<f64> = (0..200).map(|k| if k < 100 { 5.0 } else { 6.8 } + noise(k / 2)).collect();
        let (steady, jumped) = (spread(&level, UNKNOWN), spread(&jump, UNKNOWN));
        assert!((0.15..0.25).contains(&steady), "{steady}");
        assert!(jumped < steady + 0.05, "{steady} {jumped}");
        assert_eq!(spread(&[], UNKNOWN), 0.5);
    }
}
