//! The words that every layer shares about a link: its id, its port, its path, its security.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How long a plain link outlives the daemon at its one end unless `--lease` says otherwise: the kernel forwards it for no
/// longer, the other end keeps it for no longer on frames alone, and a daemon that starts later than that does not resume it.
/// Twice the consent of RFC 7675.
pub const LEASE: Duration = Duration::from_secs(60);

/// Names one link for the life of the process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u32);

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link{}", self.0)
    }
}

/// Which of the node's two UDP ports a link lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortKind {
    /// The port of DTLS links.
    Secured,
    /// The port of plain links.
    Plain,
}

/// How frames of a link are protected on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// DTLS with both certificates checked by fingerprint.
    Dtls,
    /// No protection; only when the controllers of both sides ask for it.
    None,
}

impl Security {
    /// The port a link of this security gathers candidates on.
    #[must_use]
    pub fn port(self) -> PortKind {
        match self {
            Self::Dtls => PortKind::Secured,
            Self::None => PortKind::Plain,
        }
    }
}

/// Which end of a link this node is: the larger uid controls ICE and is the DTLS server (2014 rule).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// ICE controlling, DTLS server.
    Controlling,
    /// ICE controlled, DTLS client.
    Controlled,
}

/// A hop through a TURN server (RFC 8656) on this node's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelayHop {
    /// The TURN server's transport address.
    pub server: SocketAddr,
    /// The bound channel number, 0x4000..=0x4FFF.
    pub channel: u16,
}

/// Where datagrams of a link go: straight to `remote`, or to it through a TURN channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// The peer's transport address (never an IPv4-mapped IPv6 address).
    pub remote: SocketAddr,
    /// The local address to send from, where the peer is known to expect one; `None` lets the kernel choose.
    pub source: Option<IpAddr>,
    /// Set when this node reaches `remote` through its own TURN allocation.
    pub relay: Option<RelayHop>,
}

/// The kernel's way to a host of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderlayRoute {
    /// Index of the interface, which is up.
    pub interface: u32,
    /// Whether it carries Ethernet frames to other machines.
    pub is_ethernet: bool,
    /// The own address it sends from.
    pub source: IpAddr,
    /// Longest IP packet that gets there whole as far as the kernel knows: the interface's MTU, or what a router said.
    pub mtu: u32,
}

/// What an arriving datagram is matched by: the port it came in on, its sender, its TURN channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The port it arrived on.
    pub port: PortKind,
    /// The sender's transport address (the TURN server's for relayed datagrams).
    pub from: SocketAddr,
    /// The TURN channel number, `None` for direct datagrams.
    pub channel: Option<u16>,
}

impl Path {
    /// The key that datagrams coming back along this path carry.
    #[must_use]
    pub fn flow_key(&self, port: PortKind) -> FlowKey {
        match self.relay {
            Some(hop) => FlowKey { port, from: hop.server, channel: Some(hop.channel) },
            None => FlowKey { port, from: self.remote, channel: None },
        }
    }
}

/// The kind of one end of a path, in RFC 8445 words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CandidateKind {
    /// An address of an own interface.
    Host,
    /// An address a STUN server saw.
    ServerReflexive,
    /// An address the peer saw, learned from checks.
    PeerReflexive,
    /// An address on a TURN server.
    Relayed,
}

/// Traffic of one link; payload bytes on the wire (after DTLS), frames and drops. Never decreases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Datagram payload bytes sent.
    pub sent_bytes: u64,
    /// Datagram payload bytes received.
    pub received_bytes: u64,
    /// Ethernet frames sent.
    pub sent_frames: u64,
    /// Ethernet frames received and delivered.
    pub received_frames: u64,
    /// Frames and datagrams dropped, every reason.
    pub dropped: u64,
}
