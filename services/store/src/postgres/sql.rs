//! Statements with fixed text and values bound to them, which stay prepared.

use std::borrow::Cow;

use diesel::{
    expression::expression_types::Untyped,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    result::{Error, QueryResult},
    serialize::{IsNull, Output, ToSql},
    sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, SmallInt, Text, Uuid as SqlUuid},
};
use uuid::Uuid;

use super::drift::{Edition, Shape};

/// SQL with `$1`, `$2`, … whose first uses stand in this order. Diesel keeps it prepared under its text (unlike
/// `sql_query`), so each text is planned once a connection.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    text: Cow<'static, str>,
    /// Texts that search otherwise where a column of tasks has another type, with these columns; the first that applies counts.
    instead: Vec<Instead>,
    /// The text that does the same for columns of other types than those that it is written for.
    fitted: Option<String>,
    values: Vec<Value>,
}

/// Columns of tasks, and the text of a statement for when one of them has another type.
pub(super) type Instead = (&'static [&'static str], &'static str);

/// A statement without values yet.
pub(super) fn sql(text: impl Into<Cow<'static, str>>) -> Statement {
    Statement { text: text.into(), instead: Vec::new(), fitted: None, values: Vec::new() }
}

impl Statement {
    /// Binds the next value.
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Searches otherwise where one of these columns of tasks has another type, and with it an index that this text finds nothing in. Both
    /// texts have the same values.
    pub(super) fn instead(mut self, columns: &'static [&'static str], text: &'static str) -> Self {
        self.instead.push((columns, text));
        self
    }

    /// Fits it to the types that columns have.
    pub(super) fn fit(&mut self, shape: &Shape) -> Edition {
        let (fitted, edition) = shape.fit(&self.text, &self.instead);
        self.fitted = fitted;
        edition
    }

    /// Binds the next value, an array.
    pub(super) fn array<E: Element>(self, elements: impl IntoIterator<Item = E>) -> Self {
        self.bind(array(elements))
    }
}

// ── Values ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A value to be bound.
#[derive(Debug, Clone)]
pub(super) enum Value {
    BigInt(Option<i64>),
    Integer(Option<i32>),
    SmallInt(i16),
    Bool(bool),
    Text(Option<String>),
    Uuid(Option<Uuid>),
    Binary(Vec<u8>),
    Array(Kind, Encoded),
}

macro_rules! values {
    ($($from:ty => $variant:ident ($value:ident) $build:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                Value::$variant($build)
            }
        })*
    };
}

values! {
    i64 => BigInt(value) Some(value);
    Option<i64> => BigInt(value) value;
    i32 => Integer(value) Some(value);
    Option<i32> => Integer(value) value;
    i16 => SmallInt(value) value;
    bool => Bool(value) value;
    &str => Text(value) Some(value.to_owned());
    String => Text(value) Some(value);
    Option<String> => Text(value) value;
    Uuid => Uuid(value) Some(value);
    Option<Uuid> => Uuid(value) value;
    Vec<u8> => Binary(value) value;
}

/// The type of an array's elements.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    SmallInt,
    Integer,
    BigInt,
    Bool,
    Text,
    Uuid,
    Binary,
}

/// An array's elements as they go over the wire: each its length, then its bytes. Written straight from borrowed rows, so
/// that a batch is copied once.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    count: i32,
    bytes: Vec<u8>,
}

/// What can be an element of an array.
pub(super) trait Element {
    const KIND: Kind;

    /// Appends the bytes, or returns false for NULL.
    fn put(&self, out: &mut Vec<u8>) -> bool;
}

macro_rules! elements {
    ($($element:ty, $kind:ident, |$value:ident| $bytes:expr;)*) => {
        $(impl Element for $element {
            const KIND: Kind = Kind::$kind;

            fn put(&self, out: &mut Vec<u8>) -> bool {
                let $value = self;
                out.extend_from_slice($bytes);
                true
            }
        })*
    };
}

elements! {
    i16, SmallInt, |value| &value.to_be_bytes();
    i32, Integer, |value| &value.to_be_bytes();
    i64, BigInt, |value| &value.to_be_bytes();
    bool, Bool, |value| &[u8::from(*value)];
    &str, Text, |value| value.as_bytes();
    &String, Text, |value| value.as_bytes();
    String, Text, |value| value.as_bytes();
    Uuid, Uuid, |value| value.as_bytes();
    &[u8], Binary, |value| value;
}

impl<E: Element> Element for Option<E> {
    const KIND: Kind = E::KIND;

    fn put(&self, out: &mut Vec<u8>) -> bool {
        self.as_ref().is_some_and(|value| value.put(out))
    }
}

/// An array of these elements. One that has nothing but NULL is sent empty: `unnest` of several arrays fills up the shorter
/// ones with NULL, a subscript beyond the end is NULL, and the server spares itself a column.
pub(super) fn array<E: Element>(elements: impl IntoIterator<Item = E>) -> Value {
    let mut encoded = Encoded { count: 0, bytes: Vec::new() };
    let mut nothing = true;
    for element in elements {
        let start = encoded.bytes.len();
        encoded.bytes.extend_from_slice(&(-1i32).to_be_bytes());
        if element.put(&mut encoded.bytes) {
            // Messages are bounded far below what does not fit here.
            let length = (encoded.bytes.len() - start - 4) as i32;
            encoded.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
            nothing = false;
        }
        encoded.count += 1;
    }
    if nothing {
        encoded = Encoded { count: 0, bytes: Vec::new() };
    }
    Value::Array(E::KIND, encoded)
}

/// The value, or NULL for the one that most rows have; the statement puts it back with `coalesce`. See [`array`].
pub(super) fn unless<T: PartialEq>(usual: T, value: T) -> Option<T> {
    (value != usual).then_some(value)
}

impl<ST: 'static> ToSql<Array<ST>, Pg> for Encoded
where
    Pg: diesel::sql_types::HasSqlType<ST>,
{
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> diesel::serialize::Result {
        use std::io::Write;
        let oid = <Pg as diesel::sql_types::HasSqlType<ST>>::metadata(out.metadata_lookup()).oid()?;
        // Dimensions, no promise that there is no NULL, and the type; then the length, and that indexes start at 1.
        let header = [u32::from(self.count > 0), 0, oid, self.count as u32, 1];
        let words = if self.count > 0 { 5 } else { 3 };
        for word in &header[..words] {
            out.write_all(&word.to_be_bytes())?;
        }
        out.write_all(&self.bytes)?;
        Ok(IsNull::No)
    }
}

// ── The query as diesel sees it ─────────────────────────────────────────────────────────────────────────────────────

impl Value {
    fn push<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        match self {
            Value::BigInt(value) => out.push_bind_param::<Nullable<BigInt>, _>(value),
            Value::Integer(value) => out.push_bind_param::<Nullable<Integer>, _>(value),
            Value::SmallInt(value) => out.push_bind_param::<SmallInt, _>(value),
            Value::Bool(value) => out.push_bind_param::<Bool, _>(value),
            Value::Text(value) => out.push_bind_param::<Nullable<Text>, _>(value),
            Value::Uuid(value) => out.push_bind_param::<Nullable<SqlUuid>, _>(value),
            Value::Binary(value) => out.push_bind_param::<Binary, _>(value),
            Value::Array(Kind::SmallInt, value) => out.push_bind_param::<Array<SmallInt>, _>(value),
            Value::Array(Kind::Integer, value) => out.push_bind_param::<Array<Integer>, _>(value),
            Value::Array(Kind::BigInt, value) => out.push_bind_param::<Array<BigInt>, _>(value),
            Value::Array(Kind::Bool, value) => out.push_bind_param::<Array<Bool>, _>(value),
            Value::Array(Kind::Text, value) => out.push_bind_param::<Array<Text>, _>(value),
            Value::Array(Kind::Uuid, value) => out.push_bind_param::<Array<SqlUuid>, _>(value),
            Value::Array(Kind::Binary, value) => out.push_bind_param::<Array<Binary>, _>(value),
        }
    }
}

impl QueryFragment<Pg> for Statement {
    /// Diesel numbers the values as they are pushed, so a `$n` is pushed as a value where it comes first and as text
    /// after that.
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut rest = self.fitted.as_deref().unwrap_or(&self.text);
        let mut pushed = 0;
        while let Some(at) = rest.find('$') {
            let digits = rest[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
            let (before, from) = rest.split_at(at);
            let (mark, after) = from.split_at(1 + digits);
            out.push_sql(before);
            match mark[1..].parse::<usize>() {
                Ok(number) if number == pushed + 1 => {
                    let value = self.values.get(pushed);
                    let value = value.ok_or_else(|| Error::QueryBuilderError(format!("{mark} is not bound").into()))?;
                    value.push(&mut out)?;
                    pushed = number;
                }
                _ => out.push_sql(mark),
            }
            rest = after;
        }
        out.push_sql(rest);
        match pushed == self.values.len() {
            true => Ok(()),
            false => Err(Error::QueryBuilderError("more values are bound than the statement has".into())),
        }
    }
}

impl QueryId for Statement {
    type QueryId = ();

    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement {
    type SqlType = Untyped;
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    fn text(statement: &Statement) -> String {
        debug_query::<Pg, _>(statement).to_string()
    }

    #[test]
    fn a_value_may_be_used_more_than_once() {
        let statement = sql("SELECT $1 + $2 WHERE $1 > $3 OR $2 = 1").bind(7i64).bind(8i32).bind("x");
        assert!(
            text(&statement).starts_with("SELECT $1 + $2 WHERE $1 > $3 OR $2 = 1 -- binds: ["),
            "{}",
            text(&statement)
        );
    }

    #[test]
    fn values_that_do_not_fit_the_text_are_an_error() {
        let collected = |statement: Statement| {
            let mut builder = diesel::pg::PgQueryBuilder::default();
            statement.to_sql(&mut builder, &Pg).is_ok()
        };
        assert!(collected(sql("SELECT $1").bind(1i64)));
        assert!(!collected(sql("SELECT $1, $2").bind(1i64)));
        assert!(!collected(sql("SELECT $1").bind(1i64).bind(2i64)));
    }

    #[test]
    fn arrays_carry_their_nulls_and_one_of_nulls_alone_is_empty() {
        let Value::Array(Kind::Integer, some) = array([Some(1i32), None]) else { panic!("integers") };
        assert_eq!((some.count, some.bytes), (2, vec![0, 0, 0, 4, 0, 0, 0, 1, 255, 255, 255, 255]));
        let Value::Array(Kind::Text, none) = array([None::<&str>, None]) else { panic!("texts") };
        assert_eq!((none.count, none.bytes.len()), (0, 0));
        assert_eq!((unless("", ""), unless("", "a")), (None, Some("a")));
    }
}
