//! Queues as people read them.

use std::time::SystemTime;

use comfy_table::{Cell, Color, Table};
use millrace_proto::queue::v1::{Pause, Queue, QueueStats};

use super::QUEUE;
use crate::exit::Failure;
use crate::output::{self, Format, printable};
use crate::time::{ago, short_proto};

/// The table of a list of queues.
pub(crate) fn table(queues: &[Queue]) -> Table {
    let headers = ["NAME", "WAITING", "OLDEST", "SCHEDULED", "RUNNING", "IN/s", "OUT/s", "WINDOW", "STATE"];
    let mut table = output::table(&headers);
    for queue in queues {
        let stats = queue.stats.clone().unwrap_or_default();
        table.add_row(vec![
            Cell::new(printable(&queue.name)),
            Cell::new(depth(&stats)),
            Cell::new(stats.oldest_age.as_ref().map(short_proto).unwrap_or_default()),
            Cell::new(stats.scheduled),
            Cell::new(stats.running),
            Cell::new(rate(stats.arrival_rate)),
            Cell::new(rate(stats.dispatch_rate)),
            Cell::new(window(&stats)),
            output::coloured(&state(queue), state_colour(queue)),
        ]);
    }
    table
}

/// How many wait, with a sign when there are more than were counted.
pub(crate) fn depth(stats: &QueueStats) -> String {
    format!("{}{}", stats.depth, if stats.depth_is_lower_bound { "+" } else { "" })
}

fn rate(rate: Option<f64>) -> String {
    rate.map(|rate| format!("{rate:.1}")).unwrap_or_default()
}

fn window(stats: &QueueStats) -> String {
    match (stats.window, stats.window_capacity) {
        (Some(window), Some(capacity)) => format!("{window}/{capacity}"),
        (Some(window), None) => window.to_string(),
        _ => String::new(),
    }
}

/// What there is to say about a queue besides figures.
fn state(queue: &Queue) -> String {
    match &queue.pause {
        Some(pause) => pause_text(pause),
        None if queue.draining => "draining".to_owned(),
        None => "open".to_owned(),
    }
}

fn state_colour(queue: &Queue) -> Option<Color> {
    (queue.pause.is_some() || queue.draining).then_some(Color::Yellow)
}

/// Why and until when a queue is paused.
pub(crate) fn pause_text(pause: &Pause) -> String {
    let until = pause.until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
    let reason = if pause.reason.is_empty() { String::new() } else { format!(": {}", printable(&pause.reason)) };
    format!("paused{until}{reason}")
}

/// Prints one queue in full.
pub(crate) fn print_one(format: Format, queue: &Queue) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json_line(QUEUE, queue);
    }
    let stats = queue.stats.clone().unwrap_or_default();
    let now = SystemTime::now();
    let at = |time: &Option<prost_types::Timestamp>| {
        time.as_ref().map(|time| format!("{time} ({})", ago(time, now))).unwrap_or_default()
    };
    let duration = |value: &Option<prost_types::Duration>| value.as_ref().map(short_proto).unwrap_or_default();
    let mut fields = vec![
        ("name", printable(&queue.name)),
        ("description", printable(&queue.description)),
        ("state", state(queue)),
        ("paused since", queue.pause.as_ref().map(|pause| at(&pause.since)).unwrap_or_default()),
        ("default timeout", duration(&queue.default_timeout)),
        ("default expire after", duration(&queue.default_expire_after)),
        ("created", at(&queue.create_time)),
        ("updated", at(&queue.update_time)),
    ];
    if queue.stats.is_some() {
        fields.extend([
            ("waiting", depth(&stats)),
            ("oldest waits for", duration(&stats.oldest_age)),
            ("scheduled", stats.scheduled.to_string()),
            ("running", stats.running.to_string()),
            ("in per second", rate(stats.arrival_rate)),
            ("out per second", rate(stats.dispatch_rate)),
            ("window", window(&stats)),
            ("demand", stats.demand.map(|demand| demand.to_string()).unwrap_or_default()),
            ("owner", if stats.owner.is_empty() { "nobody".to_owned() } else { printable(&stats.owner) }),
            ("epoch", stats.epoch.to_string()),
        ]);
    }
    output::print_fields(&fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_tells_why_and_until_when() {
        let mut pause = Pause { reason: "registry\ndown".into(), ..Default::default() };
        assert_eq!(pause_text(&pause), "paused: registry\\ndown");
        pause.until = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
        assert_eq!(pause_text(&pause), "paused until 1970-01-01T00:00:00Z: registry\\ndown");
    }

    #[test]
    fn figures_that_are_not_known_are_blank_and_bounds_marked() {
        assert_eq!(depth(&QueueStats { depth: 100_000, depth_is_lower_bound: true, ..Default::default() }), "100000+");
        assert_eq!(rate(None), "");
        assert_eq!(rate(Some(0.0)), "0.0");
        assert_eq!(window(&QueueStats { window: Some(3), window_capacity: Some(9), ..Default::default() }), "3/9");
        assert_eq!(table(&[Queue::default()]).row_count(), 1);
    }
}
