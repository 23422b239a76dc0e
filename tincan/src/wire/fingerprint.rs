//! Certificate fingerprints: upper-case hex pairs joined by ':' (RFC 8122 without the algorithm name).

/// The digest of a peer's certificate in DER form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fingerprint {
    /// SHA-1, 59 characters of text; only where the operator enables 2014 compatibility.
    Sha1([u8; 20]),
    /// SHA-256, 95 characters of text; the default.
    Sha256([u8; 32]),
}

impl Fingerprint {
    /// Every byte is zero: the text the 2014 daemon took as "no security".
    #[must_use]
    pub fn is_null(&self) -> bool {
        match self {
            Self::Sha1(digest) => digest.iter().all(|byte| *byte == 0),
            Self::Sha256(digest) => digest.iter().all(|byte| *byte == 0),
        }
    }
}
