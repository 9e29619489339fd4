//! Specs that another release may have written: read field by field, so that one that cannot be read costs no other.
//!
//! A field is checked where it lies, without decoding it into anything: this is on the way of every claim and of every task that
//! is read, and costs one walk over the bytes. The table of fields is compared with the contract by a test.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use millrace_core::foreign::{Defect, SpecReading};

use super::{
    drill,
    walk::{Broken, Content, Walk},
};

/// Room that a message needs beside a spec: a message of assignments is full at 1 MiB, and may hold one spec more.
const MESSAGE_ROOM: usize = 2 * 1024 * 1024;

/// The largest spec that fits into a message of this process. Process-wide, because the store calls [`read_foreign`] without settings.
static LARGEST: AtomicUsize = AtomicUsize::new(14 * 1024 * 1024);

/// Sets the largest message that this process sends.
pub(crate) fn limit_size(largest_message: usize) {
    LARGEST.store(largest_message.saturating_sub(MESSAGE_ROOM), Ordering::Relaxed);
}

/// Judges the bytes of a stored spec: what makes it impossible to run, and which fields are passed over. For
/// `millrace_store::Reader`. Does not allocate when nothing is wrong.
///
/// A spec without a payload that this build knows is readable when it holds something that may be one of a later release: the
/// orchestrator decides (R12).
pub fn read_foreign(bytes: &[u8]) -> SpecReading {
    if let Some(defect) = too_large(bytes) {
        return SpecReading { defect: Some(defect), ignored: Vec::new() };
    }
    let findings = Findings::of(&drill::seen(bytes));
    SpecReading { defect: findings.defect(), ignored: findings.ignored() }
}

/// The bytes of a stored spec without what [`read_foreign`] passes over or cannot read; otherwise byte for byte as they are. What comes
/// out decodes, whatever goes in. Does not allocate when nothing is wrong.
pub(crate) fn cleaned(bytes: &[u8]) -> Cow<'_, [u8]> {
    let bytes = drill::seen(bytes);
    let findings = Findings::of(&bytes);
    if findings.is_clean() {
        return bytes;
    }
    let mut kept = Vec::with_capacity(bytes.len());
    for field in Walk::new(&bytes).map_while(Result::ok) {
        if index_of(field.tag).is_none_or(|index| findings.wrong[index].is_none()) {
            kept.extend_from_slice(&bytes[field.range]);
        }
    }
    Cow::Owned(kept)
}

/// [`cleaned`], for bytes that are sent on.
pub(crate) fn clean(bytes: Vec<u8>) -> Bytes {
    match cleaned(&bytes) {
        Cow::Borrowed(_) => bytes.into(),
        Cow::Owned(kept) => kept.into(),
    }
}

/// [`clean`], for people: with what is left out and why. One that fits into no answer is left out as a whole.
pub(crate) fn shown(bytes: Vec<u8>) -> (Bytes, Vec<Defect>) {
    if let Some(defect) = too_large(&bytes) {
        return (Bytes::new(), vec![defect]);
    }
    let findings = Findings::of(&drill::seen(&bytes));
    let left_out = findings.ignored().into_iter().chain(findings.defect().filter(|_| !findings.is_clean())).collect();
    (clean(bytes), left_out)
}

fn too_large(bytes: &[u8]) -> Option<Defect> {
    let largest = LARGEST.load(Ordering::Relaxed);
    let error = || format!("has {} bytes, and no message holds more than {largest}", bytes.len());
    (bytes.len() > largest).then(|| Defect::new("spec", error()))
}

// ── The contract ────────────────────────────────────────────────────────────────────────────────────────────────────

/// What a field must hold to be decoded.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A number, or true or false: no value of it is wrong.
    Number,
    Text,
    Bytes,
    Message(&'static [(u32, Kind)]),
    /// A duration or a time. Its parts may come in several pieces, so the value is judged at the end.
    Time(Slot),
}

/// A duration or a time in a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum Slot {
    NotBefore,
    ExpireAfter,
    Timeout,
    MinBackoff,
    MaxBackoff,
}

/// Every slot, with the field that it belongs to.
const SLOTS: [(Slot, u32); 5] =
    [(Slot::NotBefore, 7), (Slot::ExpireAfter, 8), (Slot::Timeout, 9), (Slot::MinBackoff, 11), (Slot::MaxBackoff, 11)];

struct Known {
    tag: u32,
    column: &'static str,
    kind: Kind,
    /// Whether a task cannot be run without it.
    required: bool,
}

const fn required(tag: u32, column: &'static str, kind: Kind) -> Known {
    Known { tag, column, kind, required: true }
}

const fn optional(tag: u32, column: &'static str, kind: Kind) -> Known {
    Known { tag, column, kind, required: false }
}

/// The fields of a TaskSpec.
const KNOWN: [Known; 13] = [
    required(1, "spec.tenant", Kind::Text),
    required(2, "spec.executor", Kind::Text),
    optional(3, "spec.resource_class", Kind::Text),
    optional(4, "spec.labels", Kind::Message(&TEXT_TO_TEXT)),
    optional(5, "spec.priority", Kind::Number),
    required(6, "spec.concurrency_key", Kind::Text),
    optional(7, "spec.not_before", Kind::Time(Slot::NotBefore)),
    optional(8, "spec.expire_after", Kind::Time(Slot::ExpireAfter)),
    optional(9, "spec.timeout", Kind::Time(Slot::Timeout)),
    required(10, "spec.exclusive", Kind::Number),
    optional(11, "spec.retry", Kind::Message(&RETRY)),
    required(COMMAND_TAG, PAYLOAD, Kind::Message(&COMMAND)),
    required(CUSTOM_TAG, PAYLOAD, Kind::Message(&ANY)),
];

const PAYLOAD: &str = "spec.payload";
const COMMAND_TAG: u32 = 16;
const CUSTOM_TAG: u32 = 17;

const TEXT_TO_TEXT: [(u32, Kind); 2] = [(1, Kind::Text), (2, Kind::Text)];
const RETRY: [(u32, Kind); 4] =
    [(1, Kind::Number), (2, Kind::Number), (3, Kind::Time(Slot::MinBackoff)), (4, Kind::Time(Slot::MaxBackoff))];
const COMMAND: [(u32, Kind); 4] =
    [(1, Kind::Text), (2, Kind::Message(&TEXT_TO_TEXT)), (3, Kind::Text), (4, Kind::Bytes)];
const ANY: [(u32, Kind); 2] = [(1, Kind::Text), (2, Kind::Bytes)];

fn index_of(tag: u32) -> Option<usize> {
    KNOWN.iter().position(|known| known.tag == tag)
}

// ── Looking ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Type,
    Utf8,
    Inside(Broken),
    Time,
}

impl Wrong {
    fn text(self) -> &'static str {
        match self {
            Self::Type => "is of another type",
            Self::Utf8 => "is not UTF-8",
            Self::Inside(broken) => broken.text(),
            Self::Time => "is not a time or duration that can be",
        }
    }
}

/// The parts of a duration or a time as they were met; the last of each counts.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    met: bool,
    seconds: i64,
    nanos: i32,
}

impl Parts {
    fn is_possible(&self, slot: Slot) -> bool {
        let seconds = match slot {
            // Years 1 to 9999.
            Slot::NotBefore => -62_135_596_800..=253_402_300_799,
            // What protobuf calls a duration, and none of these goes back in time.
            _ => 0..=315_576_000_000,
        };
        !self.met || seconds.contains(&self.seconds) && (0..1_000_000_000).contains(&self.nanos)
    }
}

/// What one walk has found.
#[derive(Debug, Default)]
struct Findings {
    /// By the place in [`KNOWN`].
    wrong: [Option<Wrong>; KNOWN.len()],
    times: [Parts; SLOTS.len()],
    /// Why the walk ended before the bytes did.
    broken: Option<Broken>,
    payload: bool,
    /// An unknown field that may be a later release's payload.
    may_be_payload: bool,
}

impl Findings {
    fn of(bytes: &[u8]) -> Self {
        let mut findings = Self::default();
        let mut walk = Walk::new(bytes);
        while let Some(field) = walk.next() {
            match field {
                Ok(field) => match index_of(field.tag) {
                    Some(index) => {
                        findings.payload |= matches!(field.tag, COMMAND_TAG | CUSTOM_TAG);
                        if let Err(wrong) = check(KNOWN[index].kind, field.content, &walk, &mut findings.times) {
                            findings.wrong[index].get_or_insert(wrong);
                        }
                    }
                    None => findings.may_be_payload |= matches!(field.content, Content::Bytes(_) | Content::Group),
                },
                Err(broken) => findings.broken = Some(broken),
            }
        }
        for (slot, tag) in SLOTS {
            if let Some(index) = index_of(tag).filter(|_| !findings.times[slot as usize].is_possible(slot)) {
                findings.wrong[index].get_or_insert(Wrong::Time);
            }
        }
        findings
    }

    fn is_clean(&self) -> bool {
        self.broken.is_none() && self.wrong.iter().all(Option::is_none)
    }

    fn ignored(&self) -> Vec<Defect> {
        self.found(false).collect()
    }

    fn defect(&self) -> Option<Defect> {
        if let Some(broken) = self.broken {
            return Some(Defect::new("spec", broken.text()));
        }
        let missing = || {
            let missing = !self.payload && !self.may_be_payload;
            missing.then(|| Defect::new(PAYLOAD, "is missing"))
        };
        self.found(true).next().or_else(missing)
    }

    fn found(&self, required: bool) -> impl Iterator<Item = Defect> {
        let found = KNOWN.iter().zip(self.wrong).filter(move |(known, _)| known.required == required);
        found.filter_map(|(known, wrong)| Some(Defect::new(known.column, wrong?.text())))
    }
}

/// Checks a field for what makes decoders fail, and notes the parts of times.
fn check(kind: Kind, content: Content<'_>, walk: &Walk<'_>, times: &mut [Parts]) -> Result<(), Wrong> {
    match (kind, content) {
        (Kind::Number, Content::Varint(_)) | (Kind::Bytes, Content::Bytes(_)) => Ok(()),
        (Kind::Text, Content::Bytes(bytes)) => std::str::from_utf8(bytes).map(drop).map_err(|_| Wrong::Utf8),
        (Kind::Message(fields), Content::Bytes(bytes)) => {
            let mut inner = walk.nested(bytes);
            while let Some(field) = inner.next() {
                let field = field.map_err(Wrong::Inside)?;
                if let Some((_, kind)) = fields.iter().find(|(tag, _)| *tag == field.tag) {
                    check(*kind, field.content, &inner, times)?;
                }
            }
            Ok(())
        }
        (Kind::Time(slot), Content::Bytes(bytes)) => {
            let parts = &mut times[slot as usize];
            parts.met = true;
            for field in walk.nested(bytes) {
                let field = field.map_err(Wrong::Inside)?;
                match (field.tag, field.content) {
                    (1, Content::Varint(seconds)) => parts.seconds = seconds as i64,
                    (2, Content::Varint(nanos)) => parts.nanos = nanos as i32,
                    (1 | 2, _) => return Err(Wrong::Type),
                    _ => {}
                }
            }
            Ok(())
        }
        _ => Err(Wrong::Type),
    }
}

#[cfg(test)]
mod tests;
