//! A column of another type than the statements are written for: how its values are read as the expected type, and how values of that
//! type are written into it.
//!
//! Both go through JSON, which has a form for every type, so neither takes for granted which type the column has by now: a statement that
//! was fitted a moment before the type was changed once more, back to the expected one for example, does what it should or fails.

/// What a statement takes a column for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    SmallInt,
    Integer,
    BigInt,
    Text,
    Uuid,
    Bool,
    Bytes,
}

impl Kind {
    /// By the words that stand in `expected`.
    pub(super) fn of(expected: &str) -> Self {
        match expected {
            "smallint" => Kind::SmallInt,
            "integer" => Kind::Integer,
            "bigint" => Kind::BigInt,
            "uuid" => Kind::Uuid,
            "boolean" => Kind::Bool,
            "bytea" => Kind::Bytes,
            _ => Kind::Text,
        }
    }
}

/// What the types of the database are to a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Whole,
    /// With a fraction, perhaps.
    Number,
    Text,
    /// Text that is filled up with blanks, which mean nothing.
    Padded,
    Json,
    Uuid,
    Bool,
    Bytes,
    /// Of which readers of a result know nothing.
    Other,
}

impl Family {
    /// By the name that the database gives the type, without what stands in parentheses behind it; of a domain, that of what it is over.
    pub(super) fn of(name: &str) -> Self {
        match name {
            "smallint" | "integer" | "bigint" => Family::Whole,
            "numeric" | "real" | "double precision" => Family::Number,
            "text" | "character varying" | "name" => Family::Text,
            "character" => Family::Padded,
            "json" | "jsonb" => Family::Json,
            "uuid" => Family::Uuid,
            "boolean" => Family::Bool,
            "bytea" => Family::Bytes,
            _ => Family::Other,
        }
    }

    /// Whether statements that are written for this kind work on it as they are: whole numbers compare with whole numbers and texts with
    /// texts, through an index as well.
    pub(super) fn serves(self, kind: Kind) -> bool {
        match kind {
            Kind::SmallInt | Kind::Integer | Kind::BigInt => self == Family::Whole,
            Kind::Text => self == Family::Text,
            Kind::Uuid => self == Family::Uuid,
            Kind::Bool => self == Family::Bool,
            Kind::Bytes => self == Family::Bytes,
        }
    }
}

/// A whole number, of which 5.0 is one; longer ones are out of every range. `$` is the end of the text in PostgreSQL's expressions.
const WHOLE: &str = "^[[:space:]]*[+-]?[0-9]{1,40}(\\.0+)?[[:space:]]*$";

/// As this build, and every database, spells one.
const UUID: &str = "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$";

/// An expression for what `column` holds, as this kind: what means the same, as [`millrace_core::foreign`] reads it out of a whole row, or
/// NULL.
pub(super) fn read(column: &str, kind: Kind, family: Family) -> String {
    if family.serves(kind) {
        return column.to_owned();
    }
    let text = show(column);
    // Most numbers are short, and in no need of a second look.
    let whole = |to: &str, least: i64, most: i64| {
        let short = most.to_string().len() - 1;
        format!(
            "(CASE WHEN {text} ~ '^-?[0-9]{{1,{short}}}$' THEN {text}::{to}
             WHEN {text} ~ '{WHOLE}' THEN CASE WHEN {text}::numeric BETWEEN {least} AND {most} THEN {text}::numeric::{to} END END)"
        )
    };
    match kind {
        Kind::SmallInt => whole("smallint", i16::MIN.into(), i16::MAX.into()),
        Kind::Integer => whole("integer", i32::MIN.into(), i32::MAX.into()),
        Kind::BigInt => whole("bigint", i64::MIN, i64::MAX),
        Kind::Text => words(column, &text),
        Kind::Uuid => format!("(CASE WHEN {text} ~ '{UUID}' THEN {text}::uuid END)"),
        Kind::Bool => format!(
            "(CASE WHEN {text} IN ('true', 't', '1') THEN TRUE WHEN {text} IN ('false', 'f', '0') THEN FALSE END)"
        ),
        Kind::Bytes => "(NULL::bytea)".to_owned(),
    }
}

/// Names compare by their bytes. In JSON bytes look like text, and the blanks of a text of fixed length like its own.
fn words(column: &str, text: &str) -> String {
    format!(
        "(CASE WHEN pg_typeof({column}) = 'bytea'::regtype THEN NULL WHEN pg_typeof({column}) = 'character'::regtype THEN rtrim({text}, ' ')
         ELSE CASE jsonb_typeof(to_jsonb({column})) WHEN 'string' THEN {text}
         WHEN 'number' THEN CASE WHEN {text} ~ '^-?[0-9]+$' THEN {text} END END END COLLATE \"C\")"
    )
}

/// An expression for what `column` holds as text, by which the reader of a result tells what is wrong with it.
pub(super) fn show(column: &str) -> String {
    format!("(to_jsonb({column}) #>> '{{}}')")
}

/// An expression of the type that this column of this table has, for a value of this kind. What the column does not take is an error about
/// data, as it is when the database assigns.
pub(super) fn write(value: &str, table: &str, column: &str, kind: Kind, family: Family) -> String {
    if family.serves(kind) {
        return value.to_owned();
    }
    let value = match (kind, family) {
        (Kind::Bool, Family::Whole | Family::Number) => format!("({value})::integer"),
        _ => value.to_owned(),
    };
    format!("(jsonb_populate_record(NULL::{table}, jsonb_build_object('{column}', {value}))).{column}")
}
