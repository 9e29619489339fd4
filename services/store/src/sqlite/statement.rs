//! Statements that the query builder cannot say, prepared once per connection like its own.

use diesel::{
    expression::expression_types::Untyped,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    query_dsl::RunQueryDsl,
    result::QueryResult,
    sql_types::{BigInt, Binary, Nullable, Text},
    sqlite::{Sqlite, SqliteConnection},
};
use uuid::Uuid;

/// SQL with a `?` for each value. Unlike `sql_query` it is kept prepared: its text is fixed at compile time, so there
/// are as many as the source has.
#[derive(Debug, Clone)]
pub(super) struct Statement<'a> {
    sql: &'static str,
    values: Vec<Value<'a>>,
}

#[derive(Debug, Clone)]
enum Value<'a> {
    Integer(Option<i64>),
    Text(Option<&'a str>),
    Blob(Option<&'a [u8]>),
}

/// A statement without values yet.
pub(super) fn sql<'a>(sql: &'static str) -> Statement<'a> {
    Statement { sql, values: Vec::new() }
}

impl<'a> Statement<'a> {
    /// The next value: an integer or NULL.
    pub(super) fn integer(self, value: impl Into<Option<i64>>) -> Self {
        self.with(Value::Integer(value.into()))
    }

    /// The next value: text or NULL.
    pub(super) fn text(self, value: impl Into<Option<&'a str>>) -> Self {
        self.with(Value::Text(value.into()))
    }

    /// The next value: bytes or NULL.
    pub(super) fn blob(self, value: impl Into<Option<&'a [u8]>>) -> Self {
        self.with(Value::Blob(value.into()))
    }

    /// The next value: a UUID.
    pub(super) fn uuid(self, value: &'a Uuid) -> Self {
        self.with(Value::Blob(Some(value.as_bytes().as_slice())))
    }

    fn with(mut self, value: Value<'a>) -> Self {
        self.values.push(value);
        self
    }
}

impl QueryFragment<Sqlite> for Statement<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let mut values = self.values.iter();
        for (index, piece) in self.sql.split('?').enumerate() {
            if index > 0 {
                match values.next() {
                    Some(Value::Integer(number)) => out.push_bind_param::<Nullable<BigInt>, _>(number)?,
                    Some(Value::Text(text)) => out.push_bind_param::<Nullable<Text>, _>(text)?,
                    Some(Value::Blob(bytes)) => out.push_bind_param::<Nullable<Binary>, _>(bytes)?,
                    None => return Err(diesel::result::Error::QueryBuilderError("a value is missing".into())),
                }
            }
            out.push_sql(piece);
        }
        Ok(())
    }
}

impl QueryId for Statement<'_> {
    type QueryId = ();

    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement<'_> {
    type SqlType = Untyped;
}

impl RunQueryDsl<SqliteConnection> for Statement<'_> {}
