//! The `cas` string: candidates of 12 ':'-joined fields, separated by spaces, and our extension item.

use std::net::SocketAddr;

use crate::link::{CandidateKind, Security};

/// Most candidates read from one `cas`; the rest is ignored (RFC 8445 section 6.1.2.5 caps pairs at 100).
pub const MAX_CANDIDATES: usize = 32;

/// One UDP transport address a peer offers, with the ICE credentials that go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where to send checks. Unusable addresses never get this far (port 0, unspecified, loopback, multicast).
    pub addr: SocketAddr,
    /// RFC 8445 priority.
    pub priority: u32,
    /// ICE user name fragment of this candidate.
    pub ufrag: String,
    /// ICE password of this candidate.
    pub pwd: String,
    /// Host, server-reflexive or relayed (`local`, `stun`, `relay` on the wire).
    pub kind: CandidateKind,
    /// Interface name, informational.
    pub network: String,
}

/// What travels beside the candidates in an item of fewer than 12 fields, which 2014 readers skip:
/// `tincan=1,vni=a1b2c3,sec=dtls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The 24-bit tag the sender of this `cas` wants to see in frames to it.
    pub vni: u32,
    /// The security the sender asks for.
    pub security: Security,
}

/// A whole `cas` string, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cas {
    /// UDP candidates in the order given, at most [`MAX_CANDIDATES`].
    pub candidates: Vec<Candidate>,
    /// Absent when a 2014 daemon wrote the string.
    pub extension: Option<Extension>,
    /// Items that were skipped: malformed, TCP, forbidden address, over the cap.
    pub skipped: usize,
}
