//! What a drill makes of this build: one of a release that changed the type of `concurrency_key` from text to a number.
//!
//! The failpoint `release.next` makes the build one that expects a number, and so cannot read what this release wrote;
//! `release.patched` one that reads either. A spec is turned into what this release would have written before anything looks at
//! it, so that the reader itself is the one that runs outside of drills. Without failpoints nothing is done.

use std::borrow::Cow;

use millrace_runtime::failpoint;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::walk::{Content, Walk};

/// The number of the field `concurrency_key`.
const CHANGED: u32 = 6;

/// The bytes of a spec as the release that this build is made to be sees them.
pub(super) fn seen(bytes: &[u8]) -> Cow<'_, [u8]> {
    let next = failpoint::hit("release.next").is_some();
    match next || failpoint::hit("release.patched").is_some() {
        true => seen_by(bytes, next),
        false => Cow::Borrowed(bytes),
    }
}

/// `next` says that text is no number to the release.
fn seen_by(bytes: &[u8], next: bool) -> Cow<'_, [u8]> {
    let mut seen = Vec::with_capacity(bytes.len());
    for field in Walk::new(bytes) {
        // What is broken is broken to every release.
        let Ok(field) = field else { return Cow::Borrowed(bytes) };
        match field.content {
            Content::Varint(number) if field.tag == CHANGED => text(&number.to_string(), &mut seen),
            _ if field.tag == CHANGED && next => number(&mut seen),
            _ => seen.extend_from_slice(&bytes[field.range]),
        }
    }
    Cow::Owned(seen)
}

fn text(text: &str, into: &mut Vec<u8>) {
    encode_key(CHANGED, WireType::LengthDelimited, into);
    encode_varint(text.len() as u64, into);
    into.extend_from_slice(text.as_bytes());
}

fn number(into: &mut Vec<u8>) {
    encode_key(CHANGED, WireType::Varint, into);
    encode_varint(0, into);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_release_reads_its_own_form_and_the_patched_one_reads_both() {
        let (old, new) = (&[0x12, 1, b'e', 0x32, 2, b'4', b'2'], &[0x12, 1, b'e', 0x30, 42]);
        let wrong = &[0x12, 1, b'e', 0x30, 0];
        assert_eq!((&*seen_by(new, true), &*seen_by(old, true)), (&old[..], &wrong[..]));
        assert_eq!((&*seen_by(new, false), &*seen_by(old, false)), (&old[..], &old[..]));
        assert_eq!(&*seen_by(&[0x32, 9], true), &[0x32, 9], "cut short");
        assert!(matches!(seen(new), Cow::Borrowed(_)), "no failpoint is armed");
    }
}
