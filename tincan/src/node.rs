//! The pure core: peers, links and their life cycle. Calls, ICE and engine events and time go in; answers,
//! notifications, commands and the next deadline come out.
//!
//! Nothing here touches a socket, a clock or a file: `now` and the seed are inputs, so a whole network of nodes runs in
//! one test.

mod calls;
mod link;
mod report;
mod resume;
mod service;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use crate::ice::{IceCommand, IceEvent};
use crate::link::{LinkId, Path, Role, Traffic};
use crate::node::link::Link;
pub use crate::node::resume::Confirmation;
use crate::node::service::Signalling;
pub use crate::node::service::{Service, ServiceState};
use crate::wire::fingerprint::Fingerprint;
use crate::wire::notification::{LinkStatus, Notification};
use crate::wire::request::{LocalIp, RemoteIp};
use crate::wire::uid::Uid;

/// Most links one node keeps; further `create_link` calls are refused.
pub const MAX_LINKS: usize = 4096;

/// Most peers with addresses; further `set_remote_ip` calls are refused.
pub const MAX_PEERS: usize = 65_536;

/// What the node wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Tell the controller.
    Notify(Notification),
    /// Log in to the XMPP service, and stay.
    Login { service: Service, uid: Uid },
    /// Send a message to a peer through the XMPP service.
    Signal { to: Uid, kind: String, data: String },
    /// For the ICE edge.
    Ice(IceCommand),
    /// A link exists from now on; its frames wait until it forwards.
    OpenLink { link: LinkId, uid: Uid, role: Role, protection: LinkProtection },
    /// The tag the peer of a plain link wants to see is known.
    SetSendTag { link: LinkId, vni: u32 },
    /// A fresh session for a link whose handshake came to nothing.
    RenewSession { link: LinkId, role: Role, expected: Fingerprint },
    /// ICE validated this path; a secured link begins its handshake on the first.
    SetPath { link: LinkId, path: Path },
    /// Let frames flow, or drop them.
    SetForwarding { link: LinkId, enabled: bool },
    /// Take the link down.
    RemoveLink { link: LinkId },
    /// Inner addresses of a peer.
    MapPeer { uid: Uid, ip4: Ipv4Addr, ip6: Ipv6Addr },
    /// A peer has them no more.
    UnmapPeer { uid: Uid },
    /// `set_switchmode` for the data plane.
    SetSwitchMode { enabled: bool },
    /// `set_logging`.
    SetLogging { level: u8 },
}

/// What a link's datagrams are protected with, as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkProtection {
    /// DTLS; the peer's certificate must have this fingerprint.
    Dtls { expected: Fingerprint },
    /// Plain frames that must carry our tag.
    Plain { receive_vni: u32 },
}

/// Where the numbers of a state report come from.
pub trait TrafficSource {
    /// Totals of one link.
    fn traffic(&self, link: LinkId) -> Traffic;
    /// Which engine forwards it: `user` or `kernel`.
    fn engine(&self, link: LinkId) -> &'static str;
}

/// Everything the controller set that later behaviour or a report needs.
#[derive(Clone, Debug, Default)]
struct Settings {
    switch_mode: bool,
    translation: bool,
    trim_policy: bool,
    ignored_interfaces: Vec<String>,
}

/// Who this node is, once `set_local_ip` said so.
#[derive(Clone, Debug)]
struct Local {
    ip: LocalIp,
    fingerprint: Fingerprint,
}

/// Facts of the daemon before that a controller may still replace.
#[derive(Debug, Default)]
struct Unconfirmed {
    local: bool,
    addresses: BTreeSet<Uid>,
}

/// One node of the overlay.
#[derive(Debug)]
pub struct Node {
    local: Option<Local>,
    settings: Settings,
    signalling: Signalling,
    addresses: BTreeMap<Uid, RemoteIp>,
    owner_of_ip4: BTreeMap<Ipv4Addr, Uid>,
    owner_of_ip6: BTreeMap<Ipv6Addr, Uid>,
    links: BTreeMap<Uid, Link>,
    uid_of_link: BTreeMap<LinkId, Uid>,
    /// What came from a snapshot, and no controller has said again yet.
    unconfirmed: Unconfirmed,
    next_link: u32,
    random: u64,
    outputs: VecDeque<Output>,
}

impl Node {
    /// A node without identity. `seed` decides tags and jitter.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            local: None,
            settings: Settings::default(),
            signalling: Signalling::default(),
            addresses: BTreeMap::new(),
            owner_of_ip4: BTreeMap::new(),
            owner_of_ip6: BTreeMap::new(),
            links: BTreeMap::new(),
            uid_of_link: BTreeMap::new(),
            unconfirmed: Unconfirmed::default(),
            next_link: 1,
            random: seed,
            outputs: VecDeque::new(),
        }
    }

    /// The next thing to do; drain until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Node::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.links.values().filter_map(Link::deadline).min()
    }

    /// Time passed: links that are due try again.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<Uid> = self
            .links
            .iter()
            .filter(|(_, link)| link.deadline().is_some_and(|at| at <= now))
            .map(|(uid, _)| *uid)
            .collect();
        for uid in due {
            let jitter = self.next_random();
            self.with_link(uid, |link, outputs| link.handle_timeout(now, jitter, outputs));
        }
    }

    /// Something happened in ICE. Events of links that are gone are ignored.
    pub fn handle_ice(&mut self, now: Instant, event: IceEvent) {
        let Some(uid) = self.uid_of_link.get(&ice_event_link(&event)).copied() else { return };
        let own = self.local.as_ref().map(|local| local.fingerprint);
        let jitter = self.next_random();
        self.with_link(uid, |link, outputs| match event {
            IceEvent::Gathered { link: _, candidates, problems } => {
                link.handle_gathered(now, own, &candidates, problems, outputs);
            }
            IceEvent::Selected { link: _, generation, pair } => link.handle_selected(now, generation, pair, outputs),
            IceEvent::Disconnected { link: _, generation } => {
                link.handle_disconnected(now, generation, jitter, outputs);
            }
            IceEvent::Reconnected { link: _, generation } => link.handle_reconnected(now, generation, outputs),
            IceEvent::Failed { link: _, generation } => link.handle_failed(now, generation, jitter),
            IceEvent::PeerRestarted { link: _, generation } => link.handle_peer_restarted(now, generation, outputs),
            IceEvent::RoundTrip { link: _, rtt } => link.handle_round_trip(now, rtt),
        });
    }

    /// The first authenticated record of the peer arrived on a secured link.
    pub fn handle_authenticated(&mut self, now: Instant, link: LinkId) {
        let Some(uid) = self.uid_of_link.get(&link).copied() else { return };
        self.with_link(uid, |link, outputs| link.handle_authenticated(now, outputs));
    }

    /// A secured link's handshake, or the peer's first record after it, did not come in time.
    pub fn handle_session_timed_out(&mut self, link: LinkId) {
        let Some(uid) = self.uid_of_link.get(&link).copied() else { return };
        self.with_link(uid, Link::handle_session_timed_out);
    }

    /// A secured link's session ended; only `trim_link` and `create_link` bring the link back.
    pub fn handle_session_ended(&mut self, now: Instant, link: LinkId, reason: String) {
        let Some(uid) = self.uid_of_link.get(&link).copied() else { return };
        self.with_link(uid, |link, outputs| link.handle_session_ended(now, reason, outputs));
    }

    /// Runs one step of a link and reports a changed status.
    fn with_link(&mut self, uid: Uid, step: impl FnOnce(&mut Link, &mut VecDeque<Output>)) {
        let Some(link) = self.links.get_mut(&uid) else { return };
        let before = link.flags();
        step(link, &mut self.outputs);
        let after = link.flags();
        if before == after {
            return;
        }
        let status = match (after.online(), before.online()) {
            (true, _) => LinkStatus::Online,
            (false, true) => LinkStatus::Offline,
            (false, false) => LinkStatus::Unknown,
        };
        self.outputs.push_back(Output::SetForwarding { link: link.id, enabled: after.online() });
        self.outputs.push_back(Output::Notify(Notification::ConnectionStatus { uid, status }));
    }

    /// Splitmix64: tags and jitter need to differ, not to be secret.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn ice_event_link(event: &IceEvent) -> LinkId {
    match event {
        IceEvent::Gathered { link, .. }
        | IceEvent::Selected { link, .. }
        | IceEvent::Disconnected { link, .. }
        | IceEvent::Reconnected { link, .. }
        | IceEvent::Failed { link, .. }
        | IceEvent::PeerRestarted { link, .. }
        | IceEvent::RoundTrip { link, .. } => *link,
    }
}
