//! Certificate fingerprints: upper-case hex pairs joined by ':' (RFC 8122 without the algorithm name).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

const SHA1_LEN: usize = 20;
const SHA256_LEN: usize = 32;

/// The digest of a peer's certificate in DER form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fingerprint {
    /// SHA-1, 59 characters of text; only where the operator enables 2014 compatibility.
    Sha1([u8; SHA1_LEN]),
    /// SHA-256, 95 characters of text; the default.
    Sha256([u8; SHA256_LEN]),
}

/// The digest a fingerprint is made with; all nodes of a network must use the same one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum FingerprintKind {
    /// 95 characters of text.
    #[default]
    Sha256,
    /// 59 characters of text.
    Sha1,
}

/// Why a text is not a fingerprint.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a fingerprint is 32 (SHA-256) or 20 (SHA-1) pairs of hexadecimal digits joined by ':'")]
pub struct FingerprintError;

impl Fingerprint {
    /// The fingerprint of nothing: every byte zero.
    #[must_use]
    pub const fn null(kind: FingerprintKind) -> Self {
        match kind {
            FingerprintKind::Sha256 => Self::Sha256([0; SHA256_LEN]),
            FingerprintKind::Sha1 => Self::Sha1([0; SHA1_LEN]),
        }
    }

    /// The digest it was made with.
    #[must_use]
    pub const fn kind(&self) -> FingerprintKind {
        match self {
            Self::Sha1(_) => FingerprintKind::Sha1,
            Self::Sha256(_) => FingerprintKind::Sha256,
        }
    }

    /// The 20 or 32 bytes of the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha1(digest) => digest,
            Self::Sha256(digest) => digest,
        }
    }

    /// Every byte is zero: the text the 2014 daemon took as "no security".
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.as_bytes().iter().all(|byte| *byte == 0)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Reads either case of digits.
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let text = text.as_bytes();
        if text.len() == text_len(SHA256_LEN) {
            read_pairs(text).map(Self::Sha256)
        } else if text.len() == text_len(SHA1_LEN) {
            read_pairs(text).map(Self::Sha1)
        } else {
            Err(FingerprintError)
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.as_bytes().iter().enumerate() {
            let separator = if position == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02X}")?;
        }
        Ok(())
    }
}

/// Characters of a fingerprint of `bytes` bytes: two digits each and a ':' between.
const fn text_len(bytes: usize) -> usize {
    3 * bytes - 1
}

fn read_pairs<const N: usize>(text: &[u8]) -> Result<[u8; N], FingerprintError> {
    let mut digest = [0; N];
    for (byte, group) in digest.iter_mut().zip(text.chunks(3)) {
        let (&[high, low] | &[high, low, b':']) = group else { return Err(FingerprintError) };
        let high = char::from(high).to_digit(16).ok_or(FingerprintError)?;
        let low = char::from(low).to_digit(16).ok_or(FingerprintError)?;
        *byte = u8::try_from(high << 4 | low).map_err(|_| FingerprintError)?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA1: &str = "14:15:16:17:18:19:1A:1B:1C:1D:1E:1F:20:21:22:23:24:25:26:27";

    #[test]
    fn a_2014_fingerprint_reads_and_writes_as_the_same_text() {
        let fingerprint: Fingerprint = SHA1.parse().unwrap();
        assert_eq!(fingerprint.kind(), FingerprintKind::Sha1);
        assert_eq!(fingerprint.as_bytes()[6], 0x1a);
        assert_eq!(fingerprint.to_string(), SHA1);
        assert_eq!(SHA1.to_lowercase().parse(), Ok(fingerprint));
        assert!(!fingerprint.is_null());
    }

    #[test]
    fn null_fingerprints_are_59_and_95_characters_of_zeros() {
        for (kind, length) in [(FingerprintKind::Sha1, 59), (FingerprintKind::Sha256, 95)] {
            let null = Fingerprint::null(kind);
            let text = null.to_string();
            assert_eq!(text.len(), length);
            assert!(text.starts_with("00:00:") && text.ends_with(":00"));
            assert_eq!(text.parse(), Ok(null));
            assert!(null.is_null());
            assert_eq!(null.kind(), kind);
        }
    }

    #[test]
    fn other_lengths_digits_and_separators_are_refused() {
        let sha256 = Fingerprint::null(FingerprintKind::Sha256).to_string();
        for text in [
            String::new(),
            SHA1[..58].to_owned(),
            format!("{SHA1}:"),
            format!("{SHA1} "),
            SHA1.replace(':', "-"),
            SHA1.replace('A', "G"),
            SHA1.replacen(':', "0", 1),
            sha256.replacen("00:", "0:0", 1),
            sha256[..94].to_owned(),
            "é".repeat(29) + "1",
        ] {
            assert_eq!(text.parse::<Fingerprint>(), Err(FingerprintError), "{text}");
        }
    }
}
