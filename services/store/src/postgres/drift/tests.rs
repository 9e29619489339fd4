//! What is known of types, and when they are looked at.

use super::{
    look::{Found, found_with},
    *,
};

fn rank_as(of: &str) -> Found {
    found_with(&[("tasks", "rank", of)])
}

fn as_expected() -> Found {
    found_with(&[])
}

const TEXT: &str = "SELECT t.id FROM tasks t WHERE t.rank = $1";

fn opened(found: Found) -> Shape {
    let shape = Shape::default();
    shape.note(found, Cause::Routine, None);
    shape
}

#[test]
fn statements_run_as_they_are_while_the_types_are_those_expected() {
    let shape = opened(as_expected());
    assert_eq!(shape.fit(TEXT, &[]), (None, Edition(0)));
    assert!(!shape.is_due() && !shape.is_fitted());
    // Another width is found when the store is opened, and nothing is prepared for the one before.
    let shape = opened(rank_as("bigint"));
    assert_eq!(shape.fit(TEXT, &[]), (None, Edition(0)));
}

#[test]
fn a_change_is_looked_for_once_and_every_call_runs_again() {
    let shape = opened(as_expected());
    let (_, first) = shape.fit(TEXT, &[]);
    // Two calls fail side by side.
    assert_eq!(shape.refused(first, Cause::Refused), Next::Look);
    assert_eq!(shape.refused(first, Cause::Refused), Next::Look);
    assert!(shape.note(rank_as("text"), Cause::Refused, Some(first)));
    assert!(shape.note(rank_as("text"), Cause::Refused, Some(first)), "the other has looked meanwhile");
    assert_eq!(shape.refused(first, Cause::Refused), Next::RunAgain);
    let (fitted, second) = shape.fit(TEXT, &[]);
    assert!(fitted.is_some_and(|text| text.contains("CASE WHEN")) && shape.is_fitted());
    // Back again.
    assert!(shape.note(as_expected(), Cause::Routine, None));
    assert_eq!(shape.refused(second, Cause::Refused), Next::RunAgain);
    assert_eq!(shape.fit(TEXT, &[]), (None, Edition(0)));
}

#[test]
fn a_statement_that_is_refused_for_itself_costs_a_look_a_second() {
    let shape = opened(as_expected());
    let (_, edition) = shape.fit(TEXT, &[]);
    assert_eq!(shape.refused(edition, Cause::Refused), Next::Look);
    assert!(!shape.note(as_expected(), Cause::Refused, Some(edition)));
    assert_eq!(shape.refused(edition, Cause::Refused), Next::GiveUp);
    // A statement that was prepared for other types is prepared anew under another text, whatever has been looked at.
    assert_eq!(shape.refused(edition, Cause::Stale), Next::Look);
    assert!(shape.note(as_expected(), Cause::Stale, Some(edition)));
    let (fitted, next) = shape.fit(TEXT, &[]);
    assert_eq!(fitted.as_deref().and_then(|text| text.strip_prefix(TEXT)), Some(" /* types 1 */"));
    assert_ne!(next, edition);
}

#[test]
fn a_value_that_cannot_be_read_is_a_reason_to_look() {
    let shape = opened(as_expected());
    shape.looks().last = None;
    assert!(!shape.is_due());
    shape.doubt();
    assert!(shape.is_due(), "one caller looks");
    assert!(!shape.is_due());
}

#[test]
fn a_statement_searches_otherwise_where_its_index_is_of_another_type() {
    let shape = opened(rank_as("jsonb"));
    let text = |columns: &'static [&'static str]| shape.fit(TEXT, &[(columns, "SELECT 7")]).0.unwrap_or_default();
    assert_eq!(text(&["queue", "rank"]), "SELECT 7 /* types 1 */");
    assert!(text(&["queue"]).starts_with("SELECT t.id"));
}

#[test]
fn bytes_are_no_text_to_whoever_judges_a_row() {
    let shape = opened(found_with(&[("tasks", "tenant", "bytea"), ("tasks", "queue", "character varying")]));
    let text = || Value::Text("\\x61".into());
    let mut row: Row = [("tenant".to_owned(), text()), ("queue".to_owned(), text())].into();
    shape.hide_bytes(&mut row);
    assert_eq!((&row["tenant"], &row["queue"]), (&Value::Other("\\x61".into()), &text()));
}

/// A bare name is not known for a column, so a statement that reads columns of a table gives it a name of its own and uses that.
#[test]
fn every_statement_names_its_tables() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/postgres");
    let tables: Vec<&str> = expected::TABLES.iter().map(|(table, _)| *table).collect();
    let mut nameless = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            for three in words.windows(3) {
                let reads = ["FROM", "JOIN", "UPDATE", "USING"].iter().any(|word| three[0].ends_with(word));
                let table = three[1].trim_matches(|c: char| !c.is_ascii_lowercase() && c != '_');
                let named = three[2].starts_with(|c: char| c.is_ascii_lowercase()) || three[2] == "AS";
                if reads && tables.contains(&table) && !(named && table == three[1]) {
                    nameless.push(format!("{}: {}", path.display(), three.join(" ")));
                }
            }
        }
    }
    assert_eq!(nameless, Vec::<String>::new());
}
