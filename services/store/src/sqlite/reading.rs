//! Rows read from statements: those that can be decoded, without harm from those that cannot.

use diesel::{
    connection::{DefaultLoadingMode, LoadConnection},
    expression::QueryMetadata,
    query_builder::{AsQuery, QueryFragment, QueryId},
    result::QueryResult,
    row::{Field, Row},
    sqlite::{Sqlite, SqliteConnection},
};

use super::{
    failure::Outcome,
    values::{BadColumn, Cell, Columns},
};
use crate::Foreign;

/// Rows of a batch read.
#[derive(Debug)]
pub(super) struct Rows<T> {
    /// Those that could be read.
    pub(super) rows: Vec<T>,
    /// Whether the query had no more.
    pub(super) exhausted: bool,
}

/// Reads up to `limit` rows that can be decoded and leaves out those that cannot: they neither fail nor crowd out their
/// neighbours.
pub(super) fn good_rows<Q, T>(
    connection: &mut SqliteConnection,
    query: Q,
    limit: i64,
    mut decode: impl FnMut(&mut Columns) -> Result<T, BadColumn>,
) -> QueryResult<Rows<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    let limit = usize::try_from(limit).unwrap_or(0);
    let mut rows = Vec::new();
    let mut exhausted = true;
    each_row(connection, query, |columns| {
        if rows.len() == limit {
            exhausted = false;
            return false;
        }
        match decode(columns) {
            Ok(row) => rows.push(row),
            Err(bad) => tracing::debug!(error = %bad, "a row that cannot be read was left out"),
        }
        true
    })?;
    Ok(Rows { rows, exhausted })
}

/// Reads every row that can be decoded, of a query that is bounded itself.
pub(super) fn all_rows<Q, T>(
    connection: &mut SqliteConnection,
    query: Q,
    decode: impl FnMut(&mut Columns) -> Result<T, BadColumn>,
) -> QueryResult<Vec<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    good_rows(connection, query, i64::MAX, decode).map(|read| read.rows)
}

/// Reads the first row; one that cannot be decoded is an error.
pub(super) fn one_row<Q, T>(
    connection: &mut SqliteConnection,
    query: Q,
    decode: impl FnOnce(&mut Columns) -> Result<T, BadColumn>,
) -> Outcome<Option<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    let mut decode = Some(decode);
    let mut found = None;
    each_row(connection, query, |columns| {
        found = decode.take().map(|decode| decode(columns));
        false
    })?;
    Ok(found.transpose()?)
}

/// The same as [`good_rows`] for rows of tasks, with `id` as their first column: what cannot be read, or is ignored, is noted.
pub(super) fn task_rows<Q, T>(
    connection: &mut SqliteConnection,
    foreign: &Foreign,
    query: Q,
    limit: i64,
    mut decode: impl FnMut(&mut Columns) -> Result<T, BadColumn>,
) -> QueryResult<Rows<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    good_rows(connection, query, limit, |row| noted(foreign, row, &mut decode))
}

/// The same as [`one_row`] for a row of a task, with `id` as its first column.
pub(super) fn task_row<Q, T>(
    connection: &mut SqliteConnection,
    foreign: &Foreign,
    query: Q,
    decode: impl FnOnce(&mut Columns) -> Result<T, BadColumn>,
) -> Outcome<Option<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    one_row(connection, query, |row| noted(foreign, row, decode))
}

/// Decodes the row of a task and notes what was not as it should be.
pub(super) fn noted<T>(
    foreign: &Foreign,
    row: &mut Columns,
    decode: impl FnOnce(&mut Columns) -> Result<T, BadColumn>,
) -> Result<T, BadColumn> {
    let id = row.peek_task_id();
    let decoded = decode(row);
    row.ignored().iter().for_each(|defect| foreign.ignored(&defect.column));
    if let Err(bad) = &decoded {
        match bad.later {
            true => foreign.too_new(1),
            false => foreign.unreadable(id, &bad.defect()),
        }
    }
    decoded
}

/// Reads the first row that can be decoded.
pub(super) fn good_row<Q, T>(
    connection: &mut SqliteConnection,
    query: Q,
    decode: impl FnMut(&mut Columns) -> Result<T, BadColumn>,
) -> QueryResult<Option<T>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    good_rows(connection, query, 1, decode).map(|mut read| read.rows.pop())
}

/// Steps through a query until `visit` returns false.
pub(super) fn each_row<Q>(
    connection: &mut SqliteConnection,
    query: Q,
    mut visit: impl FnMut(&mut Columns) -> bool,
) -> QueryResult<()>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    let rows = LoadConnection::<DefaultLoadingMode>::load(connection, query.as_query())?;
    let mut columns = Columns::default();
    for row in rows {
        let row = row?;
        columns.set((0..row.field_count()).map(|index| match row.get(index) {
            Some(field) => Cell::read(field.value()),
            None => Cell::Null,
        }));
        if !visit(&mut columns) {
            break;
        }
    }
    Ok(())
}

/// Reads rows with the names of their columns.
pub(super) fn named_rows<Q>(connection: &mut SqliteConnection, query: Q) -> QueryResult<Vec<Vec<(String, Cell)>>>
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Sqlite: QueryMetadata<Q::SqlType>,
{
    let named = |row: &<SqliteConnection as LoadConnection<DefaultLoadingMode>>::Row<'_, '_>| {
        let fields = (0..row.field_count()).filter_map(|index| row.get(index));
        fields.map(|field| (field.field_name().unwrap_or_default().to_owned(), Cell::read(field.value()))).collect()
    };
    let rows = LoadConnection::<DefaultLoadingMode>::load(connection, query.as_query())?;
    rows.map(|row| row.map(|row| named(&row))).collect()
}
