//! Walks the fields of a protobuf message without decoding them, and says where each begins and ends. What it accepts, prost
//! accepts: the fields that it gives can be put together again into a message.

use std::ops::Range;

/// How deep groups and messages may nest. Libraries stop at 100, and a spec is itself inside of a response.
const DEEPEST: u8 = 90;

/// Why bytes are no message, or not one to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// They end in the middle of a field.
    CutShort,
    /// Something stands where a field would begin.
    NoField,
    /// They nest deeper than anybody reads.
    TooDeep,
}

impl Broken {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::CutShort => "is cut short",
            Self::NoField => "is not a message",
            Self::TooDeep => "nests too deep",
        }
    }
}

/// What a field holds, by its wire type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content<'b> {
    Varint(u64),
    Fixed,
    Bytes(&'b [u8]),
    Group,
}

/// A field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field<'b> {
    pub(super) tag: u32,
    pub(super) content: Content<'b>,
    /// Where it stands, its key included.
    pub(super) range: Range<usize>,
}

/// The fields of a message, one after the other. Ends with the message, or with what is broken.
pub(super) struct Walk<'b> {
    bytes: &'b [u8],
    at: usize,
    depth: u8,
}

impl<'b> Walk<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    /// The fields of a message inside of this one.
    pub(super) fn nested<'n>(&self, bytes: &'n [u8]) -> Walk<'n> {
        Walk { bytes, at: 0, depth: self.depth + 1 }
    }

    fn field(&mut self) -> Result<Field<'b>, Broken> {
        if self.depth > DEEPEST {
            return Err(Broken::TooDeep);
        }
        let start = self.at;
        let (tag, wire_type) = self.key()?;
        let content = self.content(tag, wire_type, self.depth)?;
        Ok(Field { tag, content, range: start..self.at })
    }

    fn key(&mut self) -> Result<(u32, u8), Broken> {
        let key = u32::try_from(self.varint()?).map_err(|_| Broken::NoField)?;
        match key >> 3 {
            0 => Err(Broken::NoField),
            tag => Ok((tag, (key & 7) as u8)),
        }
    }

    fn content(&mut self, tag: u32, wire_type: u8, depth: u8) -> Result<Content<'b>, Broken> {
        Ok(match wire_type {
            0 => Content::Varint(self.varint()?),
            1 => self.take(8).map(|_| Content::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Broken::CutShort)?;
                Content::Bytes(self.take(length)?)
            }
            3 => self.group(tag, depth + 1).map(|()| Content::Group)?,
            5 => self.take(4).map(|_| Content::Fixed)?,
            _ => return Err(Broken::NoField),
        })
    }

    /// Passes over a group, up to the end that bears its number.
    fn group(&mut self, group: u32, depth: u8) -> Result<(), Broken> {
        if depth > DEEPEST {
            return Err(Broken::TooDeep);
        }
        loop {
            match self.key()? {
                (tag, 4) if tag == group => return Ok(()),
                (tag, wire_type) => drop(self.content(tag, wire_type, depth)?),
            }
        }
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], Broken> {
        let end = self.at.checked_add(length).ok_or(Broken::CutShort)?;
        let taken = self.bytes.get(self.at..end).ok_or(Broken::CutShort)?;
        self.at = end;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0;
        for place in 0..10 {
            let byte = *self.bytes.get(self.at).ok_or(Broken::CutShort)?;
            self.at += 1;
            value |= u64::from(byte & 0x7F) << (7 * place);
            if byte < 0x80 {
                // The tenth byte has room for one bit of 64.
                return if place == 9 && byte > 1 { Err(Broken::NoField) } else { Ok(value) };
            }
        }
        Err(Broken::NoField)
    }
}

impl<'b> Iterator for Walk<'b> {
    type Item = Result<Field<'b>, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(bytes: &[u8]) -> Result<Vec<u32>, Broken> {
        Walk::new(bytes).map(|field| field.map(|field| field.tag)).collect()
    }

    #[test]
    fn every_wire_type_is_passed_over() {
        let bytes = [
            &[0x08, 0x96, 0x01][..],            // 1: varint
            &[0x11, 1, 2, 3, 4, 5, 6, 7, 8],    // 2: eight bytes
            &[0x1A, 2, b'h', b'i'],             // 3: two bytes
            &[0x23, 0x2B, 0x30, 1, 0x2C, 0x24], // 4: a group with a group in it
            &[0x35, 1, 2, 3, 4],                // 6: four bytes
            &[0x82, 0x80, 0x80, 0x80, 0x00, 0], // 0: a key of several bytes, and the number is none
        ];
        assert_eq!(tags(&bytes[..5].concat()), Ok(vec![1, 2, 3, 4, 6]));
        assert_eq!(tags(&bytes.concat()), Err(Broken::NoField));
        let third = Walk::new(&bytes[..5].concat()).nth(2).unwrap().unwrap().range;
        assert_eq!(third, 12..16);
    }

    #[test]
    fn what_is_broken_is_told_apart() {
        for cut in [&[0x08][..], &[0x08, 0x80], &[0x11, 1], &[0x1A, 9, 1], &[0x23, 0x30, 1], &[0x35, 1, 2, 3]] {
            assert_eq!(tags(cut), Err(Broken::CutShort), "{cut:?}");
        }
        for none in [&[0x00][..], &[0x0F], &[0x24], &[0x23, 0x2C], &[0xFF; 11]] {
            assert_eq!(tags(none), Err(Broken::NoField), "{none:?}");
        }
        assert_eq!(tags(&[0x23; 200]), Err(Broken::TooDeep));
    }
}
