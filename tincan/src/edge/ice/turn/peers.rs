//! The peers of an allocation: permissions, channels, when to renew them, which links need them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::edge::ice::turn::requests::Kind;
use crate::link::LinkId;

/// Channel numbers (RFC 8656 section 12).
const FIRST_CHANNEL: u16 = 0x4000;
const LAST_CHANNEL: u16 = 0x4fff;
/// A permission lives five minutes (RFC 8656 section 9).
const PERMISSION_RENEWAL: Duration = Duration::from_secs(240);
/// A channel lives ten minutes (RFC 8656 section 12).
const CHANNEL_RENEWAL: Duration = Duration::from_secs(540);
/// A channel number means another peer only five minutes after its binding ended (RFC 8656 section 12).
const CHANNEL_MEMORY: Duration = Duration::from_secs(900);
/// Pause after a refusal; the server's rules do not change by the second.
const REFUSAL_PAUSE: Duration = Duration::from_secs(30);

/// One thing granted by the server: when it is to be asked for next, and whether it holds.
#[derive(Clone, Copy, Debug)]
struct Lease {
    /// `None` while the server is being asked.
    next: Option<Instant>,
    holds: bool,
}

impl Lease {
    fn wanted(now: Instant) -> Self {
        Self { next: Some(now), holds: false }
    }
}

#[derive(Debug)]
struct Peer {
    number: u16,
    channel: Lease,
    links: Vec<LinkId>,
    /// When no link needs it: the number is free for another peer from then on.
    forget_at: Option<Instant>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Peers {
    by_address: BTreeMap<SocketAddr, Peer>,
    numbers: BTreeMap<u16, SocketAddr>,
    permissions: BTreeMap<IpAddr, Lease>,
}

impl Peers {
    /// Wants a peer for a link; false when all channel numbers are taken.
    pub fn add(&mut self, address: SocketAddr, link: LinkId, now: Instant) -> bool {
        if !self.by_address.contains_key(&address) {
            self.prune(now);
            let Some(number) = (FIRST_CHANNEL..=LAST_CHANNEL).find(|n| !self.numbers.contains_key(n)) else {
                return false;
            };
            self.numbers.insert(number, address);
            let peer = Peer { number, channel: Lease::wanted(now), links: Vec::new(), forget_at: None };
            self.by_address.insert(address, peer);
        }
        let peer = self.by_address.get_mut(&address).expect("it is there or was inserted");
        if peer.forget_at.take().is_some() {
            peer.channel = Lease::wanted(now);
        }
        if !peer.links.contains(&link) {
            peer.links.push(link);
        }
        self.permissions.entry(address.ip()).or_insert_with(|| Lease::wanted(now));
        true
    }

    /// A link needs its peers no more; those without a link are not renewed.
    pub fn forget(&mut self, link: LinkId, now: Instant) {
        for peer in self.by_address.values_mut() {
            peer.links.retain(|other| *other != link);
            if peer.links.is_empty() && peer.forget_at.is_none() {
                peer.forget_at = Some(now + CHANNEL_MEMORY);
            }
        }
        let needed: BTreeSet<IpAddr> = self.needed().map(|(address, _)| address.ip()).collect();
        self.permissions.retain(|ip, _| needed.contains(ip));
        self.prune(now);
    }

    /// A new allocation knows none of them.
    pub fn reset(&mut self, now: Instant) {
        self.by_address.values_mut().for_each(|peer| peer.channel = Lease::wanted(now));
        self.permissions.values_mut().for_each(|permission| *permission = Lease::wanted(now));
    }

    /// Takes the requests to be sent now.
    pub fn due(&mut self, now: Instant) -> Vec<Kind> {
        let is_due = |lease: &Lease| lease.next.is_some_and(|at| at <= now);
        let mut due = Vec::new();
        for (address, peer) in self.by_address.iter_mut().filter(|(_, peer)| !peer.links.is_empty()) {
            if let Some(permission) = self.permissions.get_mut(&address.ip()).filter(|lease| is_due(lease)) {
                permission.next = None;
                due.push(Kind::Permission { peer: *address });
            }
            if is_due(&peer.channel) {
                peer.channel.next = None;
                due.push(Kind::Channel { peer: *address, number: peer.number });
            }
        }
        due
    }

    pub fn permitted(&mut self, address: SocketAddr, now: Instant) {
        if let Some(permission) = self.permissions.get_mut(&address.ip()) {
            *permission = Lease { next: Some(now + PERMISSION_RENEWAL), holds: true };
        }
    }

    /// A channel is bound; true when it was not before.
    pub fn bound(&mut self, address: SocketAddr, now: Instant) -> bool {
        let Some(peer) = self.by_address.get_mut(&address) else { return false };
        let before = peer.channel.holds;
        peer.channel = Lease { next: Some(now + CHANNEL_RENEWAL), holds: true };
        !before
    }

    /// The server did not grant something, or did not answer; it is asked again later.
    pub fn refused(&mut self, kind: Kind, now: Instant) {
        let lease = match kind {
            Kind::Permission { peer } => self.permissions.get_mut(&peer.ip()),
            Kind::Channel { peer, .. } => self.by_address.get_mut(&peer).map(|peer| &mut peer.channel),
            Kind::Allocate | Kind::Refresh | Kind::Clear | Kind::Release => None,
        };
        if let Some(lease) = lease {
            *lease = Lease { next: Some(now + REFUSAL_PAUSE), holds: false };
        }
    }

    pub fn is_permitted(&self, address: SocketAddr) -> bool {
        self.permissions.get(&address.ip()).is_some_and(|permission| permission.holds)
    }

    pub fn bound_channel(&self, address: SocketAddr) -> Option<u16> {
        self.by_address
            .get(&address)
            .filter(|peer| peer.channel.holds && !peer.links.is_empty())
            .map(|peer| peer.number)
    }

    pub fn of_channel(&self, number: u16) -> Option<SocketAddr> {
        self.numbers.get(&number).copied()
    }

    pub fn deadline(&self) -> Option<Instant> {
        let channels = self.needed().filter_map(|(_, peer)| peer.channel.next);
        channels.chain(self.permissions.values().filter_map(|permission| permission.next)).min()
    }

    fn needed(&self) -> impl Iterator<Item = (&SocketAddr, &Peer)> {
        self.by_address.iter().filter(|(_, peer)| !peer.links.is_empty())
    }

    fn prune(&mut self, now: Instant) {
        self.by_address.retain(|_, peer| peer.forget_at.is_none_or(|at| now < at));
        let peers = &self.by_address;
        self.numbers.retain(|_, address| peers.contains_key(address));
    }
}
