//! What commands print: tables for people, protobuf JSON for programs.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use prost::Message;

use crate::exit::Failure;
use crate::json;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people: tables, and colours on a terminal.
    Table,
    /// For programs: protobuf JSON, one object, or one a line for lists and streams.
    Json,
}

/// Prints a line on standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    // A stream's reader wants each line when it is written, and standard output is buffered when it is no terminal.
    out.flush()?;
    Ok(())
}

/// Prints a message of the contracts as JSON on a line of its own.
pub(crate) fn json_line(name: &'static str, message: &impl Message) -> Result<(), Failure> {
    line(&json::to_value(name, message).map_err(unprintable)?.to_string())
}

/// The failure for a message that JSON has no form for.
pub(crate) fn unprintable(error: json::JsonError) -> Failure {
    Failure::Request(error.to_string())
}

/// A table without lines, its columns as wide as they need, cut to the terminal's width where there is one.
pub(crate) fn table(headers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headers.iter().map(Cell::new));
    if table.is_tty() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    if !colours() {
        table.force_no_tty();
    }
    table
}

/// Prints a table, without the blanks that pad its last column, and flush with the left margin.
pub(crate) fn print_table(table: &Table) -> Result<(), Failure> {
    let mut text = String::new();
    for row in table.lines() {
        text.push_str(row.strip_prefix(' ').unwrap_or(&row).trim_end());
        text.push('\n');
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints names and values, one a line, the values under one another. Empty values are left out.
pub(crate) fn print_fields(fields: &[(&str, String)]) -> Result<(), Failure> {
    let shown = || fields.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    for (name, value) in shown() {
        writeln!(out, "{name:width$}  {value}")?;
    }
    out.flush()?;
    Ok(())
}

/// Whether standard output takes colours: a terminal, and NO_COLOR is not set.
pub(crate) fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A cell in a colour; the table leaves the colour out when it is not for a terminal.
pub(crate) fn coloured(text: &str, colour: Option<Color>) -> Cell {
    match colour {
        Some(colour) => Cell::new(text).fg(colour),
        None => Cell::new(text),
    }
}

/// Labels as `a=1,b=2`.
pub(crate) fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// A number of things: `1 task`, `2 tasks`.
pub(crate) fn count<N: Display + PartialEq + From<u8>>(number: N, thing: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A size in bytes, in KiB where that is a whole number.
pub(crate) fn bytes(size: usize) -> String {
    match (size / 1024, size % 1024) {
        (whole, 0) if whole > 0 => format!("{whole} KiB"),
        _ => count(size, "byte"),
    }
}

/// A text cut to `most` characters, with a sign that it was.
pub(crate) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A text from outside as a terminal may show it: control characters, which could move the cursor or retitle a window,
/// are escaped.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_text_when_piped() {
        let mut table = table(&["NAME", "STATE"]);
        table.add_row(vec![Cell::new("a"), coloured("running", Some(Color::Green))]);
        let text = table.to_string();
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(text.contains("running"));
    }

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!(
            (count(0, "task"), count(1, "task"), count(2, "task")),
            ("0 tasks".into(), "1 task".into(), "2 tasks".into())
        );
        assert_eq!((bytes(1), bytes(1023), bytes(256 << 10)), ("1 byte".into(), "1023 bytes".into(), "256 KiB".into()));
    }

    #[test]
    fn texts_are_cut_at_characters_and_made_harmless() {
        assert_eq!(cut("héllo", 2), "hé…");
        assert_eq!(cut("hé", 2), "hé");
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        let map = [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into();
        assert_eq!(labels(&map), "a=1,b=2");
    }
}
