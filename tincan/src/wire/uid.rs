//! The 20-byte node identifier, 40 hexadecimal digits as text.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Length of a uid in bytes (`wire-facts`: 20 binary, 40 hex digits).
pub const UID_LEN: usize = 20;

/// A node's identifier. Orders as its lower-case hex text orders.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid([u8; UID_LEN]);

/// Why a text is not a uid.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a uid is 40 hexadecimal digits")]
pub struct UidError;

impl Uid {
    /// The uid of "nobody": the destination of a frame no peer is known for.
    pub const ZERO: Self = Self([0; UID_LEN]);

    /// Wraps 20 binary bytes.
    #[must_use]
    pub const fn new(bytes: [u8; UID_LEN]) -> Self {
        Self(bytes)
    }

    /// The 20 binary bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; UID_LEN] {
        &self.0
    }
}

impl FromStr for Uid {
    type Err = UidError;

    fn from_str(text: &str) -> Result<Self, UidError> {
        let digits = text.as_bytes();
        if digits.len() != 2 * UID_LEN {
            return Err(UidError);
        }
        let mut bytes = [0; UID_LEN];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16).ok_or(UidError)?;
            let low = char::from(pair[1]).to_digit(16).ok_or(UidError)?;
            *byte = u8::try_from(high << 4 | low).map_err(|_| UidError)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_uid() {
        let text = "27bfb1be555a4d5026464af41794985a046965ff";
        let uid: Uid = text.parse().unwrap();
        assert_eq!(uid.to_string(), text);
        assert_eq!(uid.as_bytes()[0], 0x27);
        assert_eq!(text.to_uppercase().parse(), Ok(uid));
    }

    #[test]
    fn other_lengths_and_digits_are_refused() {
        for text in ["", "27", &"z".repeat(40), &"a".repeat(39), &"a".repeat(41), &"é".repeat(20)] {
            assert_eq!(text.parse::<Uid>(), Err(UidError), "{text}");
        }
    }
}
