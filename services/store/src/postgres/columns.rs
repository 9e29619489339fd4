//! Rows read column by column, by the types that the database says they have.
//!
//! A release may have changed a column's type in either direction. What means the same is read all the same; what does not
//! is an error of that column of that row, which costs no neighbour (R10).

use std::borrow::Cow;

use diesel::{
    connection::{DefaultLoadingMode, LoadConnection},
    pg::{Pg, PgConnection, PgValue},
    row::{Field, Row},
};
use millrace_core::{
    foreign::{Bounds, Defect, is_traceparent},
    id::TaskId,
};
use serde_json::Value as Json;
use uuid::Uuid;

/// What is read from a row.
pub(super) type Read<T> = Result<T, Defect>;

/// A row owns what it shares with its result, so the lifetimes of its type mean nothing.
type PgRow = <PgConnection as LoadConnection<DefaultLoadingMode>>::Row<'static, 'static>;

/// A row's columns in their order.
pub(super) struct Columns<'r> {
    row: &'r PgRow,
    next: usize,
    ignored: Vec<Defect>,
    too_new: bool,
}

/// A value as the server sent it: the number of its type, and its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'v> {
    oid: u32,
    bytes: &'v [u8],
}

impl<'v> Raw<'v> {
    fn of(value: &'v PgValue<'_>) -> Self {
        Self { oid: value.get_oid().get(), bytes: value.as_bytes() }
    }
}

/// What a column can be read as.
pub(super) trait Decode: Sized {
    /// Reads it; the error says what is there instead.
    fn decode(value: Raw<'_>) -> Result<Self, String>;
}

impl<'r> Columns<'r> {
    pub(super) fn new(row: &'r PgRow) -> Self {
        Self { row, next: 0, ignored: Vec::new(), too_new: false }
    }

    /// The next column.
    pub(super) fn get<T: Decode>(&mut self) -> Read<T> {
        self.read(|value| match value {
            Some(value) => T::decode(value),
            None => Err("is null".to_owned()),
        })
    }

    /// The next column, which may be null.
    pub(super) fn get_nullable<T: Decode>(&mut self) -> Read<Option<T>> {
        self.read(|value| value.map(|value| T::decode(value)).transpose())
    }

    /// The next column, turned into what it stands for.
    pub(super) fn get_as<T: Decode, U, E: ToString>(&mut self, convert: impl FnOnce(T) -> Result<U, E>) -> Read<U> {
        let at = self.next;
        let value = self.get::<T>()?;
        convert(value).map_err(|error| self.bad(at, error.to_string()))
    }

    /// The next column, a whole number that lies within bounds.
    pub(super) fn within<T: Decode + Copy + Into<i64>>(&mut self, bounds: &Bounds) -> Read<T> {
        self.get_as(|number| inside(number, bounds))
    }

    /// The same for a column that may be null.
    pub(super) fn nullable_within(&mut self, bounds: &Bounds) -> Read<Option<i64>> {
        self.read(|value| value.map(|value| inside(i64::decode(value)?, bounds)).transpose())
    }

    /// The next column, without which the row is as good when it is no number within bounds.
    pub(super) fn spare_within<T: Decode + Copy + Default + Into<i64>>(&mut self, bounds: &Bounds) -> T {
        let read = self.within(bounds);
        self.or_default(read)
    }

    /// The same for a column that may be null.
    pub(super) fn spare_nullable_within(&mut self, bounds: &Bounds) -> Option<i64> {
        let read = self.nullable_within(bounds);
        self.or_default(read)
    }

    /// The next column, a traceparent or the empty text, without which the row is as good.
    pub(super) fn spare_traceparent(&mut self) -> String {
        let read = self.get_as(|text: String| match text.is_empty() || is_traceparent(&text) {
            true => Ok(text),
            false => Err(format!("holds the text {:?}, not a W3C traceparent", start_of(&text))),
        });
        self.or_default(read)
    }

    /// The next column, which holds one of several numbers: one that this build does not know is of a later release.
    pub(super) fn get_known<T: Decode + Copy, U, E: ToString>(
        &mut self,
        convert: impl Fn(T) -> Result<U, E>,
    ) -> Read<U> {
        let at = self.next;
        let value = self.get::<T>()?;
        convert(value).map_err(|error| {
            self.too_new = true;
            self.bad(at, error.to_string())
        })
    }

    /// Whether a later release has written the row.
    pub(super) fn is_too_new(&self) -> bool {
        self.too_new
    }

    /// The next column, without which the row is as good: what cannot be read is noted, and its default stands for it.
    pub(super) fn spare<T: Decode + Default>(&mut self) -> T {
        let read = self.get();
        self.or_default(read)
    }

    /// The same for a column that may be null.
    pub(super) fn spare_nullable<T: Decode>(&mut self) -> Option<T> {
        let read = self.get_nullable();
        self.or_default(read)
    }

    fn or_default<T: Default>(&mut self, read: Read<T>) -> T {
        read.unwrap_or_else(|defect| {
            self.ignored.push(defect);
            T::default()
        })
    }

    /// What has been read without until now.
    pub(super) fn ignored(&self) -> &[Defect] {
        &self.ignored
    }

    /// The column `id`, wherever it stands.
    pub(super) fn task_id(&self) -> Option<TaskId> {
        let field = Row::<Pg>::get(self.row, "id")?;
        let value = field.value()?;
        Uuid::decode(Raw::of(&value)).ok().map(TaskId)
    }

    fn read<U>(&mut self, read: impl FnOnce(Option<Raw<'_>>) -> Result<U, String>) -> Read<U> {
        let at = self.next;
        self.next += 1;
        let result = match Row::<Pg>::get(self.row, at) {
            Some(field) => {
                let value = field.value();
                read(value.as_ref().map(Raw::of))
            }
            None => Err("is missing".to_owned()),
        };
        result.map_err(|error| self.bad(at, error))
    }

    fn bad(&self, at: usize, error: String) -> Defect {
        let field = Row::<Pg>::get(self.row, at);
        let name = field.and_then(|field| field.field_name().map(str::to_owned));
        Defect::new(name.unwrap_or_else(|| format!("{}", at + 1)), error)
    }
}

// ── Values ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// The numbers by which PostgreSQL knows its types.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const NAME: u32 = 19;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const JSON: u32 = 114;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const UNKNOWN: u32 = 705;
    pub(super) const BPCHAR: u32 = 1042;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const NUMERIC: u32 = 1700;
    pub(super) const UUID: u32 = 2950;
    pub(super) const JSONB: u32 = 3802;

    /// A type's name as people write it; of one that no column ever had, its number.
    pub(super) fn name(oid: u32) -> String {
        let name = match oid {
            BOOL => "boolean",
            BYTEA => "bytea",
            NAME => "name",
            INT8 => "bigint",
            INT2 => "smallint",
            INT4 => "integer",
            TEXT => "text",
            JSON => "json",
            FLOAT4 => "real",
            FLOAT8 => "double precision",
            UNKNOWN => "unknown",
            BPCHAR => "character",
            VARCHAR => "character varying",
            NUMERIC => "numeric",
            UUID => "uuid",
            JSONB => "jsonb",
            other => return format!("with number {other}"),
        };
        name.to_owned()
    }
}

fn unexpected<T>(value: Raw<'_>, expected: &str) -> Result<T, String> {
    Err(format!("is of the type {}, not {expected}", oid::name(value.oid)))
}

fn inside<T: Copy + Into<i64>>(number: T, bounds: &Bounds) -> Result<T, String> {
    match bounds.hold(number) {
        true => Ok(number),
        false => Err(format!("holds {}, not {}", number.into(), bounds.expected)),
    }
}

/// As much of a text as a sentence can hold.
fn start_of(text: &str) -> String {
    text.chars().take(40).collect()
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("has {} bytes, not {N}", bytes.len()))
}

/// The characters of a type that is text, or written as text. Of JSON, those of a string, a number, true or false.
fn characters(value: Raw<'_>) -> Option<Result<Cow<'_, str>, String>> {
    match value.oid {
        oid::TEXT | oid::VARCHAR | oid::NAME | oid::UNKNOWN => Some(utf8(value.bytes).map(Cow::Borrowed)),
        // Filled up with blanks, which mean nothing.
        oid::BPCHAR => Some(utf8(value.bytes).map(|text| Cow::Borrowed(text.trim_end_matches(' ')))),
        _ => json(value).map(|json| match json? {
            Json::String(text) => Ok(Cow::Owned(text)),
            Json::Bool(value) => Ok(Cow::Owned(value.to_string())),
            // 5.0 is 5.
            Json::Number(number) => Ok(Cow::Owned(match (number.as_i64(), number.as_f64()) {
                (None, Some(number)) if number.fract() == 0.0 && number.abs() < 9e15 => (number as i64).to_string(),
                _ => number.to_string(),
            })),
            other => Err(format!("holds {other:.40}")),
        }),
    }
}

fn json(value: Raw<'_>) -> Option<Result<Json, String>> {
    let bytes = match value.oid {
        oid::JSON => value.bytes,
        // A version stands before it.
        oid::JSONB => value.bytes.get(1..)?,
        _ => return None,
    };
    Some(utf8(bytes).and_then(|text| serde_json::from_str(text).map_err(|error| error.to_string())))
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "is text that is not UTF-8".to_owned())
}

impl Decode for i64 {
    fn decode(value: Raw<'_>) -> Result<Self, String> {
        let bytes = value.bytes;
        let whole = |number: f64| match number.fract() == 0.0 && number.abs() < 9e15 {
            true => Ok(number as i64),
            false => Err(format!("holds {number}, not a whole number")),
        };
        match value.oid {
            oid::INT8 => Ok(i64::from_be_bytes(fixed(bytes)?)),
            oid::INT4 => Ok(i32::from_be_bytes(fixed(bytes)?).into()),
            oid::INT2 => Ok(i16::from_be_bytes(fixed(bytes)?).into()),
            oid::FLOAT8 => whole(f64::from_be_bytes(fixed(bytes)?)),
            oid::FLOAT4 => whole(f32::from_be_bytes(fixed(bytes)?).into()),
            oid::NUMERIC => numeric(bytes).ok_or_else(|| "is not a whole number of 64 bits".to_owned()),
            _ => match characters(value) {
                Some(text) => {
                    let text = text?;
                    let number = text.trim().parse();
                    number.map_err(|_| format!("holds the text {:?}, not a whole number", start_of(&text)))
                }
                None => unexpected(value, "a whole number"),
            },
        }
    }
}

/// A numeric as it goes over the wire: how many digits of base 10,000 there are, the weight of the first, the sign, how many decimal
/// places are shown, and the digits.
fn numeric(bytes: &[u8]) -> Option<i64> {
    let word = |at: usize| Some(i16::from_be_bytes(fixed(bytes.get(2 * at..2 * at + 2)?).ok()?));
    let (count, weight, sign) = (word(0)?, word(1)?, word(2)?);
    let mut whole: i128 = 0;
    for place in 0..=weight.max(-1) {
        let digit = if place < count { word(4 + place as usize)? } else { 0 };
        whole = whole.checked_mul(10_000)?.checked_add(digit.into())?;
    }
    // Digits below one.
    let after = (weight.max(-1) + 1)..count;
    if after.into_iter().any(|place| word(4 + place as usize) != Some(0)) {
        return None;
    }
    match sign {
        0 => i64::try_from(whole).ok(),
        0x4000 => i64::try_from(-whole).ok(),
        _ => None,
    }
}

macro_rules! narrower {
    ($($type:ty),*) => { $(impl Decode for $type {
        fn decode(value: Raw<'_>) -> Result<Self, String> {
            let number = i64::decode(value)?;
            <$type>::try_from(number).map_err(|_| format!("holds {number}, which is out of its range"))
        }
    })* };
}

narrower!(i16, i32);

impl Decode for bool {
    fn decode(value: Raw<'_>) -> Result<Self, String> {
        if value.oid == oid::BOOL {
            return Ok(fixed::<1>(value.bytes)? != [0]);
        }
        match characters(value) {
            Some(Ok(text)) if matches!(&*text, "true" | "t") => return Ok(true),
            Some(Ok(text)) if matches!(&*text, "false" | "f") => return Ok(false),
            _ => {}
        }
        match i64::decode(value) {
            Ok(0) => Ok(false),
            Ok(1) => Ok(true),
            _ => unexpected(value, "true or false"),
        }
    }
}

impl Decode for String {
    fn decode(value: Raw<'_>) -> Result<Self, String> {
        match characters(value) {
            Some(text) => match json(value) {
                Some(Ok(other)) if !other.is_string() && !other.is_i64() => Err(format!("holds {other:.40}, not text")),
                _ => text.map(Cow::into_owned),
            },
            None if matches!(value.oid, oid::INT2 | oid::INT4 | oid::INT8 | oid::NUMERIC) => {
                i64::decode(value).map(|number| number.to_string())
            }
            None if value.oid == oid::UUID => Uuid::decode(value).map(|id| id.to_string()),
            None => unexpected(value, "text"),
        }
    }
}

impl Decode for Vec<u8> {
    fn decode(value: Raw<'_>) -> Result<Self, String> {
        match value.oid {
            oid::BYTEA => Ok(value.bytes.to_vec()),
            _ => unexpected(value, "bytes"),
        }
    }
}

impl Decode for Uuid {
    fn decode(value: Raw<'_>) -> Result<Self, String> {
        match value.oid {
            oid::UUID => Ok(Uuid::from_bytes(fixed(value.bytes)?)),
            _ => match characters(value) {
                Some(text) => Uuid::try_parse(&text?).map_err(|_| "holds text that is not a UUID".to_owned()),
                None => unexpected(value, "a UUID"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Decode>(oid: u32, bytes: &[u8]) -> Result<T, String> {
        T::decode(Raw { oid, bytes })
    }

    #[test]
    fn a_whole_number_is_read_whatever_the_width_of_its_column() {
        assert_eq!(read::<i32>(oid::INT8, &7i64.to_be_bytes()), Ok(7));
        assert_eq!(read::<i64>(oid::INT2, &(-7i16).to_be_bytes()), Ok(-7));
        assert_eq!(read::<i64>(oid::TEXT, b" 12 "), Ok(12));
        assert_eq!(read::<i64>(oid::JSONB, b"\x0112"), Ok(12));
        assert_eq!(read::<i64>(oid::JSONB, b"\x01\"12\""), Ok(12));
        assert_eq!(read::<i64>(oid::JSON, b"12.0"), Ok(12));
        assert!(read::<i64>(oid::JSON, b"12.5").is_err());
        assert_eq!(read::<i64>(oid::FLOAT8, &3.0f64.to_be_bytes()), Ok(3));
        assert!(read::<i64>(oid::FLOAT8, &3.5f64.to_be_bytes()).is_err());
        assert!(read::<i32>(oid::INT8, &(1i64 << 40).to_be_bytes()).is_err());
        assert!(read::<i64>(oid::TEXT, b"high").is_err());
        assert!(read::<i64>(oid::BYTEA, b"12").is_err());
    }

    #[test]
    fn a_numeric_is_read_when_it_is_whole() {
        let wire = |words: &[i16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        assert_eq!(read::<i64>(oid::NUMERIC, &wire(&[0, 0, 0, 0])), Ok(0));
        assert_eq!(read::<i64>(oid::NUMERIC, &wire(&[2, 1, 0, 0, 12, 3456])), Ok(123_456));
        assert_eq!(read::<i64>(oid::NUMERIC, &wire(&[1, 1, 0x4000, 0, 12])), Ok(-120_000));
        assert!(read::<i64>(oid::NUMERIC, &wire(&[1, -1, 0, 1, 5000])).is_err());
        assert!(read::<i64>(oid::NUMERIC, &wire(&[1, 100, 0, 0, 1])).is_err());
    }

    #[test]
    fn text_true_and_ids_are_read_from_what_means_the_same() {
        assert_eq!(read::<String>(oid::JSONB, b"\x01\"a\""), Ok("a".into()));
        assert_eq!(read::<String>(oid::VARCHAR, b"a "), Ok("a ".into()));
        assert_eq!(read::<String>(oid::BPCHAR, b"a   "), Ok("a".into()));
        assert_eq!(read::<String>(oid::INT4, &5i32.to_be_bytes()), Ok("5".into()));
        assert!(read::<String>(oid::JSONB, b"\x01{}").is_err());
        assert!(read::<String>(oid::TEXT, &[0xff]).is_err());
        assert_eq!(read::<bool>(oid::INT2, &1i16.to_be_bytes()), Ok(true));
        assert_eq!(read::<bool>(oid::TEXT, b"false"), Ok(false));
        assert!(read::<bool>(oid::INT2, &2i16.to_be_bytes()).is_err());
        let id = Uuid::from_u128(7);
        assert_eq!(read::<Uuid>(oid::TEXT, id.to_string().as_bytes()), Ok(id));
        assert_eq!(read::<Uuid>(oid::UUID, id.as_bytes()), Ok(id));
        assert_eq!(read::<Uuid>(oid::JSON, format!("\"{id}\"").as_bytes()), Ok(id));
        assert_eq!(read::<bool>(oid::JSON, b"true"), Ok(true));
        assert_eq!(read::<bool>(oid::JSON, b"\"f\""), Ok(false));
    }
}
