//! The drill's timeline: what the database and the judge have seen.

use crate::{
    form::{Band, More, Point, Report},
    judge::Runs,
    samples::{PERIOD, Sample},
};

/// What is drawn over time.
pub(crate) const BANDS: &[Band] = &[
    Band { column: "good_per_s", label: "good tasks/s", more_is: More::Better },
    Band { column: "quarantine", label: "quarantine", more_is: More::Worse },
    Band { column: "queue_age_s", label: "queue age, s", more_is: More::Neither },
];

/// Adds what the database and the judge have seen.
pub(super) fn seen(report: &mut Report, samples: &[Sample], runs: &Runs) {
    report.end_phase();
    let mut before_ns = None;
    let mut points = Vec::new();
    for sample in samples {
        let from = before_ns.replace(sample.at_ns).unwrap_or(sample.at_ns - PERIOD.as_nanos() as u64);
        let seconds = (sample.at_ns - from) as f64 / 1e9;
        let good_per_s = runs.ends(from, sample.at_ns) as f64 / seconds.max(1e-3);
        points.push(Point {
            seconds: report.seconds(sample.at_ns),
            phase: report.phase_at(sample.at_ns),
            values: vec![Some(good_per_s), Some(sample.quarantine as f64), Some(sample.age_s)],
        });
    }
    report.timeline(points);
}

/// Adds the ends of tasks alone, of something that was measured beside.
pub(super) fn ends(report: &mut Report, ends_ns: &[u64]) {
    report.end_phase();
    let Some(phase) = report.phases().last() else { return };
    let (from, to, step) = (phase.from_ns, phase.to_ns, PERIOD.as_nanos() as u64);
    let mut points = Vec::new();
    for at in (from + step..to).step_by(PERIOD.as_nanos() as usize) {
        let ended = ends_ns.iter().filter(|end| (at - step..at).contains(end)).count();
        let values = vec![Some(ended as f64 / PERIOD.as_secs_f64()), None, None];
        points.push(Point { seconds: report.seconds(at), phase: report.phase_at(at - 1), values });
    }
    report.timeline(points);
}
