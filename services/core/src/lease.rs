//! Fencing tokens.

use std::{fmt, str::FromStr};

/// Proves that a report comes from the holder of an attempt's lease.
///
/// The upper 16 bits are the cluster's incarnation, which a restore from a backup changes, so that a token given before
/// it never matches a row written after it (R15); the lower 48 are random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub i64);

impl Token {
    /// A token of this incarnation from random bits.
    pub fn new(incarnation: i16, random: u64) -> Self {
        Self(i64::from(incarnation) << 48 | (random & 0xFFFF_FFFF_FFFF) as i64)
    }

    /// The incarnation that gave it.
    pub fn incarnation(self) -> i16 {
        (self.0 >> 48) as i16
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        match text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            true => u64::from_str_radix(text, 16).map(|bits| Self(bits as i64)).map_err(|_| InvalidToken),
            false => Err(InvalidToken),
        }
    }
}

/// The text is not a token that a distributor gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a lease token")]
pub struct InvalidToken;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r15_a_token_names_its_incarnation_and_reads_back() {
        for incarnation in [0, 1, 7, i16::MAX] {
            let token = Token::new(incarnation, u64::MAX);
            assert_eq!(token.incarnation(), incarnation);
            assert_eq!(token.to_string().parse(), Ok(token));
        }
        assert_ne!(Token::new(1, 5), Token::new(2, 5));
    }

    #[test]
    fn other_text_is_refused() {
        for bad in ["", "1", "00000000000000zz", "+000000000000001", "00000000000000AB"] {
            assert!(bad.parse::<Token>().is_err(), "{bad:?}");
        }
    }
}
