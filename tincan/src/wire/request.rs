//! What a controller asks of the node, parsed: the methods of the Controller API.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::link::Security;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::uid::Uid;

/// A call, whichever door it came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `register_svc`: log in to the XMPP service.
    RegisterService { username: String, password: Secret, host: String, port: u16 },
    /// `set_local_ip`: who this node is.
    SetLocalIp(LocalIp),
    /// `get_state`: `uid` `None` = all peers.
    GetState { uid: Option<Uid>, stats: bool },
    /// `create_link`.
    CreateLink(CreateLink),
    /// `set_remote_ip`: which addresses belong to a peer.
    SetRemoteIp(RemoteIp),
    /// `trim_link`.
    TrimLink { uid: Uid },
    /// `set_cb_endpoint`: `ip` as text; unspecified addresses mean "the sender".
    SetCallbackEndpoint { ip: String, port: u16 },
    /// `set_logging`: 0 none, 1 errors, 2 info, 3 everything.
    SetLogging { level: u8 },
    /// `set_switchmode`.
    SetSwitchMode { enabled: bool },
    /// `set_translation`.
    SetTranslation { enabled: bool },
    /// `set_trimpolicy`.
    SetTrimPolicy { enabled: bool },
    /// `set_network_ignore_list`: interface names ICE must not use.
    SetNetworkIgnoreList { interfaces: Vec<String> },
    /// `echo_request`.
    EchoRequest { message: String },
    /// `echo_reply`: accepted, nothing to do.
    EchoReply,
    /// `con_req`, `send_msg` and every unknown method: a message to a peer over XMPP.
    PeerMessage { kind: String, uid: Uid, data: String },
}

/// Parameters of `set_local_ip`. Address texts are kept verbatim: 2014 controllers compare them as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalIp {
    pub uid: Uid,
    pub ip4: Ipv4Addr,
    pub ip4_text: String,
    pub ip6: Ipv6Addr,
    pub ip6_text: String,
    /// Prefix length, 1..=32.
    pub ip4_mask: u8,
    /// Prefix length, 1..=128.
    pub ip6_mask: u8,
    /// Router mode: the prefix length each peer routes for, 1..=32; 32 = only itself.
    pub subnet_mask: u8,
}

impl LocalIp {
    /// Whether an address lies in the subnet of the TAP's address of its family.
    #[must_use]
    pub fn is_on_subnet(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.ip4_mask)).unwrap_or(0);
                ip.to_bits() & mask == self.ip4.to_bits() & mask
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.ip6_mask)).unwrap_or(0);
                ip.to_bits() & mask == self.ip6.to_bits() & mask
            }
        }
    }
}

/// Parameters of `set_remote_ip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteIp {
    pub uid: Uid,
    pub ip4: Ipv4Addr,
    pub ip4_text: String,
    pub ip6: Ipv6Addr,
    pub ip6_text: String,
}

/// Parameters of `create_link`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateLink {
    pub uid: Uid,
    /// The fingerprint as given, reported back in `peer_state`.
    pub fingerprint_text: String,
    /// `None` when the text is no fingerprint; then only a plain link may come of it.
    pub fingerprint: Option<Fingerprint>,
    pub overlay: Overlay,
    /// `host:port` of a STUN server.
    pub stun: Option<String>,
    pub turn: Option<TurnServer>,
    pub security: Security,
    /// The peer's candidates, verbatim; empty = none yet.
    pub cas: String,
}

/// Where a link's `con_resp` goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// `overlay_id` 0: to the local controller, which carries it.
    Controller,
    /// `overlay_id` 1: to the peer over XMPP.
    Xmpp,
}

/// A TURN server and the long-term credentials for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnServer {
    /// `host:port`; port 3478 where none was given.
    pub address: String,
    pub username: String,
    pub password: Secret,
}

/// Text that must never be printed or logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}
