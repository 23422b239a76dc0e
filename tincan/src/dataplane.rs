//! The forwarding table and the engines that move frames between the TAP and the peers.
//!
//! The control loop talks to the engine in [`Command`]s; the engine answers with [`EngineEvent`]s. One worker thread
//! owns the table and every DTLS session, so no frame waits for a lock.

pub mod checksum;
pub mod engine;
pub mod gro;
pub mod gso;
pub mod kernel;
mod partial;
pub mod port;
pub mod table;
pub mod too_big;
pub mod vnet;
mod worker;

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::dataplane::table::Local;
use crate::dtls::Session;
use crate::link::{FlowKey, LinkId, Path, PortKind};
use crate::wire::uid::Uid;

/// What the control loop tells the engine.
pub enum Command {
    /// `set_local_ip`: own identity and addresses.
    SetLocal(Local),
    /// `set_switchmode`.
    SetSwitchMode { enabled: bool },
    /// `set_remote_ip`: inner addresses of a peer. They stay when its link goes.
    MapPeer { uid: Uid, ip4: Ipv4Addr, ip6: Ipv6Addr },
    /// A peer has its inner addresses no more.
    UnmapPeer { uid: Uid },
    /// A link exists; frames for it wait in a bounded queue until it forwards.
    AddLink { link: LinkId, uid: Uid, protection: Protection },
    /// The 24-bit tag the peer of a plain link wants in frames to it.
    SetSendTag { link: LinkId, tag: u32 },
    /// A fresh session for a secured link whose handshake came to nothing.
    RenewSession { link: LinkId, session: Box<Session> },
    /// ICE validated a path; a DTLS session starts its handshake on the first one and moves to later ones.
    SetPath { link: LinkId, path: Path },
    /// Longest frame the path of a plain link takes, bytes; `None` while that is not known. Senders of longer ones are
    /// told, or they are carried in pieces.
    SetLongestFrame { link: LinkId, longest: Option<usize> },
    /// Frames flow (`true`) or are dropped because the peer does not answer (`false`).
    SetForwarding { link: LinkId, enabled: bool },
    /// The link is gone: a DTLS session says `close_notify` first.
    RemoveLink { link: LinkId },
    /// A frame of the controller (type 0x02) for the TAP.
    Inject { frame: Vec<u8> },
}

/// How a link's datagrams are protected and checked.
pub enum Protection {
    /// Frames inside DTLS records.
    Dtls(Box<Session>),
    /// Frames in the clear.
    Plain {
        /// The 24-bit tag we asked the peer to use.
        receive_tag: u32,
    },
}

/// What the engine tells the control loop.
#[derive(Debug)]
pub enum EngineEvent {
    /// A datagram that is not data: STUN (RFC 8489), or TURN traffic of a server (RFC 8656). `channel` is set when it
    /// came as `ChannelData`, whose header is already off `payload`.
    Control { flow: FlowKey, to: Option<std::net::IpAddr>, payload: Vec<u8> },
    /// The DTLS handshake ended well: both fingerprints are right.
    Established { link: LinkId },
    /// The first authenticated frame or control record of the peer arrived.
    Authenticated { link: LinkId },
    /// The handshake, or the peer's first record after it, did not come in time. A fresh session may do better.
    SessionTimedOut { link: LinkId },
    /// The session ended: `close_notify`, an alert, a wrong fingerprint. It does not come back.
    SessionEnded { link: LinkId, reason: String },
    /// A frame for a destination no link leads to, as the 40-byte uid header and the frame.
    Unrouted { source: Uid, destination: Uid, frame: Vec<u8> },
    /// The TAP or a socket failed for good.
    Failed { reason: String },
}

/// Receives datagrams that belong on a port; used by ICE for STUN and TURN.
pub trait Transmit: Send + Sync {
    /// Sends one datagram straight to `path.remote` (a relay hop is prefixed as `ChannelData`). Failures are counted, not
    /// reported: UDP promises nothing.
    fn transmit(&self, port: PortKind, path: &Path, payload: &[u8]);
}
