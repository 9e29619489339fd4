//! Charts of plain characters, for the terminal. Colours only where there is one.

use std::fmt::Write;

use crate::form::{Band, More, Point};

/// Columns of a chart, and rows of each of its bands.
const WIDTH: usize = 100;
const HEIGHT: usize = 6;

const RED: &str = "\u{1b}[31m";
const GREEN: &str = "\u{1b}[32m";
const PLAIN: &str = "\u{1b}[0m";

/// The bands, one below the other; a chart for each part of the drill. A part is what the name of a phase begins with, up to the colon;
/// phases without one are not drawn.
pub(crate) fn timeline(bands: &[Band], points: &[Point], colours: bool) -> String {
    let part = |point: &Point| point.phase.split_once(':').map(|(part, _)| part.to_owned());
    let drawn: Vec<Point> = points.iter().filter(|point| part(point).is_some()).cloned().collect();
    let mut text = String::new();
    for of_part in drawn.chunk_by(|one, other| part(one) == part(other)) {
        chart(&part(&of_part[0]).unwrap_or_default(), bands, of_part, colours, &mut text);
    }
    text
}

fn chart(name: &str, bands: &[Band], points: &[Point], colours: bool, text: &mut String) {
    let columns = columns(points);
    let last = points.last().map_or(0.0, |point| point.seconds);
    let _ = writeln!(text, "\n{name}: {:.0} s to {last:.0} s", points[0].seconds);
    for (index, shown) in bands.iter().enumerate() {
        // Of the points in a column the worst counts.
        let (worst, colour): (fn(f64, f64) -> f64, _) = match shown.more_is {
            More::Better => (f64::min, GREEN),
            More::Worse => (f64::max, RED),
            More::Neither => (f64::max, ""),
        };
        let value = |point: &Point| point.values.get(index).copied().flatten();
        let of_column = |column: &&[Point]| column.iter().filter_map(value).reduce(worst).unwrap_or(f64::NAN);
        let values: Vec<f64> = columns.iter().map(of_column).collect();
        if values.iter().any(|value| !value.is_nan()) {
            band(shown.label, &values, if colours { colour } else { "" }, text);
        }
    }
    phases(&columns, text);
}

/// The points by column; no more columns than points.
fn columns(points: &[Point]) -> Vec<&[Point]> {
    let width = WIDTH.min(points.len());
    let bound = |column: usize| column * points.len() / width;
    (0..width).map(|column| &points[bound(column)..bound(column + 1)]).collect()
}

fn band(label: &str, values: &[f64], colour: &str, text: &mut String) {
    let highest = values.iter().copied().filter(|value| !value.is_nan()).fold(0.0, f64::max);
    for row in (0..HEIGHT).rev() {
        let scale = match row {
            row if row == HEIGHT - 1 => format!("{highest:.6}").chars().take(7).collect(),
            0 => "0".to_owned(),
            _ => String::new(),
        };
        let label = if row == HEIGHT - 1 { label } else { "" };
        let bar = |value: &f64| match value * HEIGHT as f64 / highest.max(1e-9) {
            full if full > row as f64 + 0.5 => '#',
            part if part > row as f64 => '.',
            _ => ' ',
        };
        let bars: String = values.iter().map(bar).collect();
        let (on, off) = if colour.is_empty() { ("", "") } else { (colour, PLAIN) };
        let _ = writeln!(text, "{label:>12} {scale:>7} |{on}{}{off}", bars.trim_end());
    }
}

/// Where each phase begins.
fn phases(columns: &[&[Point]], text: &mut String) {
    let mut line = String::new();
    let mut before = String::new();
    for (at, column) in columns.iter().enumerate() {
        let Some(point) = column.first() else { continue };
        let name = point.phase.split_once(':').map_or("", |(_, rest)| rest.trim());
        if name != before && !name.is_empty() && line.chars().count() <= at {
            line.push_str(&" ".repeat(at - line.chars().count()));
            line.push('^');
            line.push_str(name);
            line.push(' ');
            before = name.to_owned();
        }
    }
    if !line.is_empty() {
        let _ = writeln!(text, "{:>20}  {line}", "");
    }
}

/// The marks, one a line.
pub(crate) fn marks(marks: &[(String, f64, f64, bool)], colours: bool) -> String {
    let width = marks.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
    let mut text = "\n".to_owned();
    for (name, value, limit, pass) in marks {
        let (word, colour) = if *pass { ("kept", GREEN) } else { ("MISSED", RED) };
        let (on, off) = if colours { (colour, PLAIN) } else { ("", "") };
        let _ = writeln!(text, "{on}{word:>6}{off}  {name:width$}  {value:>10.3}  limit {limit:.3}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_band_for_what_was_seen_and_names_the_phases() {
        let point = |number: u32| Point {
            seconds: f64::from(number),
            phase: if number < 5 { "incident: before".into() } else { "incident: deploy".into() },
            values: vec![Some(f64::from(number)), Some(3.0), None],
        };
        let band = |column, label, more_is| Band { column, label, more_is };
        let bands = [
            band("good", "good tasks/s", More::Better),
            band("quarantine", "quarantine", More::Worse),
            band("age", "queue age, s", More::Neither),
        ];
        let points: Vec<Point> = (0..10).map(point).collect();
        let text = timeline(&bands, &points, false);
        assert!(text.contains("incident: 0 s to 9 s"), "{text}");
        assert!(text.contains("good tasks/s") && text.contains("quarantine") && !text.contains("queue age"), "{text}");
        assert!(text.contains("^before") && !text.contains('\u{1b}'), "{text}");
        assert!(timeline(&bands, &points, true).contains(GREEN));
    }
}
