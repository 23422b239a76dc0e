//! The words between whoever decides about links and whoever runs ICE (RFC 8445) for them.

use std::net::SocketAddr;
use std::time::Duration;

use crate::link::{CandidateKind, LinkId, Path, PortKind, Role};
use crate::wire::candidate::Candidate;
use crate::wire::request::TurnServer;

/// Length of our user name fragments; every signalled name of ours has it.
pub const UFRAG_LENGTH: usize = 16;

/// What the node asks of ICE.
#[derive(Clone, Debug, PartialEq)]
pub enum IceCommand {
    /// Collect candidates of a new link; ends with [`IceEvent::Gathered`].
    Gather { link: LinkId, port: PortKind, role: Role, stun: Option<String>, turn: Option<TurnServer> },
    /// The peer's candidates are known: begin connectivity checks (generation 0).
    Check { link: LinkId, candidates: Vec<Candidate> },
    /// Begin a later generation beside the running one: same candidates, credentials derived from generation 0's, so
    /// nothing has to be signalled.
    Restart { link: LinkId, generation: u32 },
    /// A link of the daemon before this one goes on where it was; nothing is gathered, its pair is checked at once.
    Resume { link: LinkId, port: PortKind, role: Role, resumption: Box<Resumption> },
    /// Frames of the peer came along the selected pair since this was said last.
    TrafficSeen { link: LinkId },
    /// Forget the link and everything gathered for it.
    Close { link: LinkId },
    /// `set_network_ignore_list`: affects later gatherings.
    IgnoreInterfaces { names: Vec<String> },
}

/// What a link needs to go on in another process.
#[derive(Clone, Debug, PartialEq)]
pub struct Resumption {
    /// What was offered to the peer, with the own credentials of generation 0; never empty.
    pub own: Vec<Candidate>,
    /// What the peer offered; never empty.
    pub peer: Vec<Candidate>,
    /// The generation whose pair carries the link.
    pub generation: u32,
    /// Its pair, a direct one.
    pub pair: SelectedPair,
    /// Whether the peer was taken for being there.
    pub reachable: bool,
    /// How long ago the peer answered a check.
    pub silence: Duration,
}

/// What ICE tells the node.
#[derive(Clone, Debug, PartialEq)]
pub enum IceEvent {
    /// Gathering is complete. `problems` names what could not be had (STUN server silent, TURN refused ...).
    Gathered { link: LinkId, candidates: Vec<Candidate>, problems: Vec<String> },
    /// A pair was nominated and works; for relayed paths the channel is bound.
    Selected { link: LinkId, generation: u32, pair: SelectedPair },
    /// Checks on the selected pair are not answered any more.
    Disconnected { link: LinkId, generation: u32 },
    /// They are answered again.
    Reconnected { link: LinkId, generation: u32 },
    /// A generation ended without a working pair.
    Failed { link: LinkId, generation: u32 },
    /// The peer checks with credentials of a generation later than ours.
    PeerRestarted { link: LinkId, generation: u32 },
    /// A fresh smoothed round trip of the selected pair.
    RoundTrip { link: LinkId, rtt: Duration },
}

/// A nominated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectedPair {
    /// How to send to it.
    pub path: Path,
    /// Our end: host, server-reflexive (as the peer sees us) or our relayed address.
    pub local_addr: SocketAddr,
    pub local_kind: CandidateKind,
    /// The peer's end.
    pub remote_addr: SocketAddr,
    pub remote_kind: CandidateKind,
}
