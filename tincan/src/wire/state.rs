//! The node's state as `get_state` reports it: `local_state`, `peer_state` and its `stats`, plus what only the
//! JSON-RPC door shows.

use std::net::SocketAddr;
use std::time::Duration;

use crate::link::{CandidateKind, Security, Traffic};
use crate::wire::uid::Uid;

/// The whole answer to `get_state`.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub local: LocalState,
    /// Sorted by uid.
    pub peers: Vec<PeerState>,
    /// Whether `stats` were asked for.
    pub with_stats: bool,
}

/// What the daemon uses of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState {
    /// Name of the TAP device.
    pub tap: String,
    /// UDP ports of secured and plain links.
    pub secured_port: u16,
    pub plain_port: u16,
    /// `attached`, `off`, or why the kernel engine is unavailable.
    pub fast_path: String,
    /// How the login at the XMPP service stands, in words.
    pub service: String,
}

/// `local_state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalState {
    /// `None` before `set_local_ip`: an empty text on the wire.
    pub uid: Option<Uid>,
    pub ip4: String,
    pub ip6: String,
    /// Colon-separated fingerprint, the null fingerprint before `set_local_ip`.
    pub fingerprint: String,
    /// The TAP's MAC address.
    pub mac: [u8; 6],
}

/// `peer_state`.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerState {
    pub uid: Uid,
    /// After `set_remote_ip`: the texts verbatim.
    pub addresses: Option<(String, String)>,
    /// Time since the peer's last presence; zero when none was seen.
    pub presence_age: Duration,
    /// Present exactly while a link exists.
    pub link: Option<LinkState>,
}

/// A link as reported.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkState {
    /// The fingerprint given in `create_link`, verbatim.
    pub fingerprint: String,
    pub online: bool,
    pub security: Security,
    /// Time since `create_link` (`last_time`).
    pub age: Duration,
    /// `create_link` with candidates to online, once it was online.
    pub setup: Option<Duration>,
    /// The step the link is at, for people: `gathering`, `waiting for the peer's candidates`, `checking`, `securing`,
    /// `online`, `offline`.
    pub phase: &'static str,
    /// Why it is not online, or why it is relayed, in one sentence; empty when all is well.
    pub reason: String,
    /// Own fingerprint and candidates as `con_resp` says them, once they are gathered.
    pub offer: Option<String>,
    /// `user` or `kernel`.
    pub engine: &'static str,
    pub path: Option<PathState>,
}

/// The selected pair of a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PathState {
    pub local_addr: SocketAddr,
    pub local_kind: CandidateKind,
    pub remote_addr: SocketAddr,
    pub remote_kind: CandidateKind,
    /// Smoothed round trip of STUN checks.
    pub rtt: Option<Duration>,
    pub traffic: Traffic,
    /// Bytes in the last full second.
    pub sent_per_second: u64,
    pub received_per_second: u64,
    /// True the first time this pair is reported.
    pub new: bool,
}
