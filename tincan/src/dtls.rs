//! The secured session: certificates and DTLS 1.2 (RFC 6347) over memory buffers, without sockets.
//!
//! [`Identity`] is who this node is; a [`Session`] is one link's handshake and records. Peers know each other by the
//! fingerprint of their self-signed certificates alone: names, dates and issuers in a certificate are never looked at.

mod ffi;
mod identity;
mod session;
#[cfg(test)]
mod tests;
mod validity;
mod wire;

use std::io;
use std::path::PathBuf;

use boring::error::ErrorStack;
use thiserror::Error;

pub use identity::Identity;
pub use session::{MAX_PLAINTEXT, MAX_RECORD_OVERHEAD, Session, SessionEvent};
pub use validity::latest_beginning;

/// Why an identity or a session cannot be had, or a record cannot be sealed.
#[derive(Debug, Error)]
pub enum DtlsError {
    /// `create_link` asks for security and names nobody.
    #[error("the null fingerprint cannot secure a link: pass the fingerprint the peer's controller told")]
    NullFingerprint,
    /// Records flow only between `Established` and the end of the session.
    #[error("the session is not established")]
    NotEstablished,
    /// A record holds 1 to [`MAX_PLAINTEXT`] bytes.
    #[error("a record holds 1 to {MAX_PLAINTEXT} bytes, not {0}")]
    PlaintextLength(usize),
    /// A file of the identity cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// A file of the identity is not what this daemon wrote.
    #[error("{} {fault}: restore it, or remove {} to get a new identity with a new fingerprint",
        path.display(), path.with_extension("").with_extension("*").display())]
    Damaged { path: PathBuf, fault: &'static str },
    /// Others than the owner can read the key.
    #[error("{} can be read by others (mode {mode:04o}): chmod 600 it if nobody had it, otherwise remove {} to get a new \
        identity with a new fingerprint", path.display(), path.with_extension("").with_extension("*").display())]
    Exposed { path: PathBuf, mode: u32 },
    /// `BoringSSL` refused, in its own words.
    #[error("BoringSSL: {0}")]
    Library(#[from] ErrorStack),
}
