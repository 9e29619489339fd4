//! Looking at the types that columns have.

use std::{collections::HashMap, fmt};

use super::{
    cast::{Family, Kind},
    expected::{BOTH, CARRIED, Columns as Expected, KEYS, PRESENCE, TABLES},
    rewrite::{Column, Tables, Together},
};
use crate::{
    Drift, Result,
    postgres::{
        columns::{Columns, Read},
        pool::Pool,
        sql::{Statement, sql},
    },
};

/// A column as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Actual {
    table: String,
    column: String,
    /// In the words of the database.
    of: String,
    /// The same without its length, and of a domain that of what it is over.
    base: String,
}

/// The columns that have another type than the expected one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::postgres) struct Found(Vec<(Drift, Option<Actual>)>);

/// Every column of the tables that this build knows, as far as they are there.
pub(in crate::postgres) fn looking() -> Statement {
    sql("SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod),
            format_type(coalesce(nullif(y.typbasetype, 0), y.oid), NULL)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type y ON y.oid = a.atttypid
        WHERE c.relname = ANY($1::text[]) AND c.relkind IN ('r', 'p', 'v', 'f') AND pg_table_is_visible(c.oid)
            AND a.attnum > 0 AND NOT a.attisdropped")
    .array(TABLES.iter().map(|(table, _)| *table))
}

/// A line of the answer.
pub(in crate::postgres) struct Line(Actual);

pub(in crate::postgres) fn line(row: &mut Columns<'_>) -> Read<Line> {
    Ok(Line(Actual { table: row.get()?, column: row.get()?, of: row.get()?, base: row.get()? }))
}

impl Found {
    /// Compares the answer with what is expected.
    pub(in crate::postgres) fn of(lines: Vec<Line>) -> Self {
        let mut actual: HashMap<(String, String), Actual> =
            lines.into_iter().map(|Line(line)| ((line.table.clone(), line.column.clone()), line)).collect();
        let mut found = Vec::new();
        for (table, column, expected) in every() {
            let actual = actual.remove(&(table.to_owned(), column.to_owned()));
            if actual.as_ref().is_none_or(|actual| actual.of != expected) {
                let (table, column, expected) = (table.to_owned(), column.to_owned(), expected.to_owned());
                let drift = Drift { table, column, expected, found: actual.as_ref().map(|actual| actual.of.clone()) };
                found.push((drift, actual));
            }
        }
        Self(found)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The columns that statements do not take as they are.
    pub(super) fn tables(&self) -> Tables {
        let mut tables = Tables::new();
        for (drift, actual) in &self.0 {
            let Some(actual) = actual else { continue };
            let (kind, family) = (Kind::of(&drift.expected), Family::of(&actual.base));
            if family.serves(kind) {
                continue;
            }
            let column = self.column(drift, actual, kind, family);
            // The other table's column has to do the same where both are put together.
            if column.together == Together::Text
                && let Some(other) = other_of(&drift.table)
            {
                let expected = Column { family: Family::of(&drift.expected), ..column.clone() };
                tables.entry(other.to_owned()).or_default().entry(drift.column.clone()).or_insert(expected);
            }
            tables.entry(drift.table.clone()).or_default().insert(drift.column.clone(), column);
        }
        tables
    }

    fn column(&self, drift: &Drift, actual: &Actual, kind: Kind, family: Family) -> Column {
        let name = drift.column.as_str();
        let other = other_of(&drift.table).filter(|_| BOTH.iter().any(|(both, _)| *both == name));
        let same = |(there, found): &&(Drift, Option<Actual>)| {
            there.column == drift.column
                && Some(there.table.as_str()) == other
                && found.as_ref().is_some_and(|found| found.of == actual.of)
        };
        let together = match other {
            Some(_) if self.0.iter().any(|one| same(&one)) => Together::Same,
            Some(_) if !matches!(kind, Kind::Text | Kind::Bytes) => Together::Text,
            _ => Together::Expected,
        };
        Column {
            kind,
            family,
            name: (drift.table.clone(), drift.column.clone()),
            key: KEYS.contains(&(drift.table.as_str(), name)),
            presence: PRESENCE.contains(&name),
            carried: together == Together::Same && CARRIED.contains(&name),
            decoded: family != Family::Other,
            together,
        }
    }
}

/// The other table of tasks.
fn other_of(table: &str) -> Option<&'static str> {
    match table {
        "tasks" => Some("finished_tasks"),
        "finished_tasks" => Some("tasks"),
        _ => None,
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (drift, _)) in self.0.iter().enumerate() {
            write!(f, "{}{drift}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

fn every() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let of = |table: &'static str, part: Expected| part.iter().map(move |(column, of)| (table, *column, *of));
    TABLES.iter().flat_map(move |(table, parts)| parts.iter().flat_map(move |part| of(table, part)))
}

/// The columns whose type is not the expected one. What is seen here is what statements are fitted to from now on.
pub(in crate::postgres) fn drift(people: &Pool) -> Result<Vec<Drift>> {
    let found = people.read(|conn| conn.look())?;
    Ok(found.0.into_iter().map(|(drift, _)| drift).collect())
}

/// What a database is found to have whose columns are as expected but for these.
#[cfg(test)]
pub(super) fn found_with(changed: &[(&str, &str, &str)]) -> Found {
    let line = |(table, column, expected): (&str, &str, &str)| {
        let of = changed.iter().find(|(at, name, _)| (*at, *name) == (table, column)).map_or(expected, |(.., of)| of);
        let (of, base) = (of.to_owned(), of.to_owned());
        Line(Actual { table: table.to_owned(), column: column.to_owned(), of, base })
    };
    Found::of(every().map(line).collect())
}
