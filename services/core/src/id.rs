//! Names of things: UUIDs that cannot be confused with each other, and the syntax of human names.

use std::{fmt, str::FromStr};

use uuid::Uuid;

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self.0.as_hyphenated(), f)
            }
        }

        // As for people: logs and failed assertions show what one can search for.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // Only the usual hyphenated form, so that an id has one spelling in logs, files and page tokens.
                if text.len() != 36 {
                    return Err(InvalidId);
                }
                Uuid::try_parse(text).map($name).map_err(|_| InvalidId)
            }
        }

        impl $name {
            /// Reads the 16 bytes that the exchange between services carries.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidId> {
                Uuid::from_slice(bytes).map($name).map_err(|_| InvalidId)
            }

            /// The 16 bytes that the exchange between services carries.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }
    };
}

uuid_type! {
    /// A task. Ids of later submissions sort later (UUID version 7).
    TaskId
}

uuid_type! {
    /// A node of a fleet; also the idempotency token of its launch.
    NodeId
}

uuid_type! {
    /// A session of an orchestrator.
    SessionId
}

uuid_type! {
    /// A process of the suite: a distributor replica or a queue service.
    MemberId
}

/// The text or bytes are not a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")]
pub struct InvalidId;

/// The longest name of a tenant, queue, route, executor or resource class, in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// Whether the text can name a tenant, queue, route, executor or resource class: 1 to 63 of `[a-z0-9._-]`, starting
/// with a letter or a digit.
pub fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=MAX_NAME_BYTES).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_alphabet() {
        for good in ["a", "0", "gpu.large", "a-b_c", &"x".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a b", "ä", "a\0", &"x".repeat(64)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn ids_have_one_spelling() {
        let text = "0190a0b0-0000-7000-8000-00000000002a";
        assert_eq!(text.parse::<TaskId>().unwrap().to_string(), text);
        assert_eq!(format!("{:?}", text.parse::<SessionId>().unwrap()), text);
        assert_eq!(format!("{:?}", Some(text.parse::<MemberId>().unwrap())), format!("Some({text})"));
        assert!("0190a0b00000700080000000000000002a".parse::<TaskId>().is_err());
        assert!("{0190a0b0-0000-7000-8000-00000000002a}".parse::<TaskId>().is_err());
        assert!(TaskId::from_bytes(&[0; 15]).is_err());
    }
}
