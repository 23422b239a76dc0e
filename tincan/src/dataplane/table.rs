//! The forwarding table: which peer a frame of the TAP is for, and whether a frame from the network may be from its
//! sender. Pure; the worker owns it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tincan_common::frame::ETHERNET_LEN;
use tincan_common::verdict::Verdict;

use crate::link::LinkId;
use crate::wire::uid::Uid;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// Length of an ARP packet for Ethernet and IPv4 (RFC 826).
const ARP_LEN: usize = 28;
const BROADCAST: [u8; 6] = [0xff; 6];

/// Where a frame of the TAP goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this peer.
    Peer(Uid),
    /// A copy to every mapped peer.
    Flood,
    /// Nobody is known for it; the controller may be.
    Unrouted,
    /// Back into the TAP.
    Answer(Box<[u8]>),
    /// Nowhere.
    Drop(Verdict),
}

/// Own identity and addresses.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// Own uid.
    pub uid: Uid,
    /// Own inner IPv4 address and the prefix length of its subnet.
    pub ip4: Ipv4Addr,
    pub ip4_prefix: u8,
    /// Own inner IPv6 address.
    pub ip6: Ipv6Addr,
    /// Prefix length peers' IPv4 addresses stand for: below 32, a peer is the router of a subnet.
    pub router_prefix: u8,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Table {
    local: Option<Local>,
    switch_mode: bool,
    peers: BTreeMap<Uid, (Ipv4Addr, Ipv6Addr)>,
    by_ip4: HashMap<Ipv4Addr, Uid>,
    by_ip6: HashMap<Ipv6Addr, Uid>,
    links: HashMap<Uid, LinkId>,
}

impl Table {
    /// `set_local_ip`; subnets of peers mapped before are cut to the router prefix now.
    pub fn set_local(&mut self, local: Local) {
        self.local = Some(local);
        let peers: Vec<(Uid, Ipv4Addr)> = self.peers.iter().map(|(uid, (ip4, _))| (*uid, *ip4)).collect();
        self.by_ip4 = peers.into_iter().map(|(uid, ip4)| (self.subnet_of(ip4), uid)).collect();
    }

    /// Own identity, once it is known.
    pub fn local(&self) -> Option<&Local> {
        self.local.as_ref()
    }

    /// `set_switchmode`.
    pub fn set_switch_mode(&mut self, enabled: bool) {
        self.switch_mode = enabled;
    }

    /// Whether the controller does ARP.
    pub fn switch_mode(&self) -> bool {
        self.switch_mode
    }

    /// `set_remote_ip`.
    pub fn map_peer(&mut self, uid: Uid, ip4: Ipv4Addr, ip6: Ipv6Addr) {
        self.peers.insert(uid, (ip4, ip6));
        self.by_ip4.insert(self.subnet_of(ip4), uid);
        self.by_ip6.insert(ip6, uid);
    }

    /// It has no addresses any more.
    pub fn unmap_peer(&mut self, uid: Uid) {
        self.peers.remove(&uid);
        self.by_ip4.retain(|_, owner| *owner != uid);
        self.by_ip6.retain(|_, owner| *owner != uid);
    }

    /// A link to this peer exists from now on.
    pub fn add_link(&mut self, uid: Uid, link: LinkId) {
        self.links.insert(uid, link);
    }

    /// It is gone.
    pub fn remove_link(&mut self, uid: Uid) {
        self.links.remove(&uid);
    }

    /// The link to this peer.
    pub fn link_of(&self, uid: Uid) -> Option<LinkId> {
        self.links.get(&uid).copied()
    }

    /// Whether this is one of the own inner addresses.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.local.is_some_and(|local| ip == local.ip4 || ip == local.ip6)
    }

    /// Whether this address is of the overlay itself: own, of the own IPv4 subnet, or a mapped peer's.
    pub fn is_inner(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => {
                let on_subnet = |local: &Local| {
                    let mask = mask(local.ip4_prefix);
                    u32::from(ip) & mask == u32::from(local.ip4) & mask
                };
                self.local.as_ref().is_some_and(on_subnet) || self.by_ip4.contains_key(&self.subnet_of(ip))
            }
            IpAddr::V6(ip) => self.is_own(ip.into()) || self.by_ip6.contains_key(&ip),
        }
    }

    /// Every mapped peer, by uid.
    pub fn peers(&self) -> impl Iterator<Item = Uid> {
        self.peers.keys().copied()
    }

    /// Decides about a frame read from the TAP. `own_mac` is the TAP's.
    pub fn route(&self, frame: &[u8], own_mac: [u8; 6]) -> Route {
        if self.local.is_none() {
            return Route::Drop(Verdict::NoIdentity);
        }
        match Inner::of(frame) {
            Inner::Ipv4 { destination, .. } => self.route_ipv4(destination),
            Inner::Ipv6 { destination, .. } => self.route_ipv6(destination),
            Inner::Arp(_) if self.switch_mode => Route::Unrouted,
            Inner::Arp(arp) => self.route_arp(frame, arp, own_mac),
            Inner::Other => Route::Drop(Verdict::UnsupportedFrame),
            Inner::Malformed => Route::Drop(Verdict::MalformedFrame),
        }
    }

    /// Whether a frame's source address may be this peer's. In switch mode hosts behind the peer's bridge speak too:
    /// then it must only not be ours or another peer's.
    pub fn may_be_from(&self, uid: Uid, frame: &[u8]) -> Result<(), Verdict> {
        let owner = match Inner::of(frame) {
            Inner::Ipv4 { source, .. } => self.owner_of_ip4(source),
            Inner::Arp(arp) => self.owner_of_ip4(arp.sender),
            Inner::Ipv6 { source, .. } => self.owner_of_ip6(source),
            Inner::Other => return Err(Verdict::UnsupportedFrame),
            Inner::Malformed => return Err(Verdict::MalformedDatagram),
        };
        match owner {
            Some(owner) if owner == uid => Ok(()),
            None if self.switch_mode => Ok(()),
            _ => Err(Verdict::WrongSource),
        }
    }

    fn route_ipv4(&self, destination: Ipv4Addr) -> Route {
        let [first, .., last] = destination.octets();
        // RFC 5771: 224.0.0.0/24 is local network control; 2014 flooded it like all of 224.0.0.0/4.
        if (224..=239).contains(&first) || last == 255 {
            return Route::Flood;
        }
        self.by_ip4.get(&self.subnet_of(destination)).map_or(Route::Unrouted, |uid| Route::Peer(*uid))
    }

    fn route_ipv6(&self, destination: Ipv6Addr) -> Route {
        if let [0xff, flags_and_scope, ..] = destination.octets() {
            // RFC 4291 section 2.7: site-local, organisation-local and global scope leave the link.
            return match flags_and_scope & 0x0f {
                0x5 | 0x8 | 0xe => Route::Flood,
                _ => Route::Drop(Verdict::NotFlooded),
            };
        }
        self.by_ip6.get(&destination).map_or(Route::Unrouted, |uid| Route::Peer(*uid))
    }

    /// ARP outside of switch mode: broadcast requests are answered here; what is for one host goes to it; an
    /// announcement goes to all.
    fn route_arp(&self, frame: &[u8], arp: Arp, own_mac: [u8; 6]) -> Route {
        let Some(local) = &self.local else { return Route::Drop(Verdict::NoIdentity) };
        if arp.sender == arp.target {
            return Route::Flood;
        }
        let to_all = frame.starts_with(&BROADCAST);
        if arp.operation == ARP_REQUEST && to_all {
            let subnet =
                u32::from(arp.target) & mask(local.ip4_prefix) == u32::from(local.ip4) & mask(local.ip4_prefix);
            return match (arp.target == local.ip4, subnet) {
                (true, _) => Route::Answer(answer(frame, arp, own_mac)),
                (false, true) => Route::Answer(answer(frame, arp, self.mac_for(arp.target))),
                (false, false) => Route::Drop(Verdict::ArpIgnored),
            };
        }
        if arp.operation != ARP_REQUEST && arp.operation != ARP_REPLY {
            return Route::Drop(Verdict::ArpIgnored);
        }
        self.by_ip4.get(&self.subnet_of(arp.target)).map_or(Route::Drop(Verdict::ArpIgnored), |uid| Route::Peer(*uid))
    }

    /// An address of the locally administered range that stands for whoever has this inner address: the receiver writes
    /// its own into the frame anyway.
    fn mac_for(&self, ip: Ipv4Addr) -> [u8; 6] {
        let mut mac = [0x02, 0, 0, 0, 0, 0];
        if let Some(uid) = self.by_ip4.get(&self.subnet_of(ip)) {
            mac[1..].copy_from_slice(&uid.as_bytes()[..5]);
        } else {
            mac[2..].copy_from_slice(&ip.octets());
        }
        mac
    }

    fn owner_of_ip4(&self, ip: Ipv4Addr) -> Option<Uid> {
        let own = self.local.filter(|local| local.ip4 == ip).map(|local| local.uid);
        own.or_else(|| self.by_ip4.get(&self.subnet_of(ip)).copied())
    }

    fn owner_of_ip6(&self, ip: Ipv6Addr) -> Option<Uid> {
        let own = self.local.filter(|local| local.ip6 == ip).map(|local| local.uid);
        own.or_else(|| self.by_ip6.get(&ip).copied())
    }

    fn subnet_of(&self, ip: Ipv4Addr) -> Ipv4Addr {
        let prefix = self.local.map_or(32, |local| local.router_prefix);
        Ipv4Addr::from(u32::from(ip) & mask(prefix))
    }
}

/// What is inside of a frame, as far as forwarding looks.
enum Inner {
    Ipv4 { source: Ipv4Addr, destination: Ipv4Addr },
    Ipv6 { source: Ipv6Addr, destination: Ipv6Addr },
    Arp(Arp),
    Other,
    Malformed,
}

#[derive(Clone, Copy)]
struct Arp {
    operation: u16,
    sender_mac: [u8; 6],
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

impl Inner {
    fn of(frame: &[u8]) -> Self {
        let Some((ethernet, packet)) = frame.split_first_chunk::<ETHERNET_LEN>() else { return Self::Malformed };
        let inner = match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
            ETHERTYPE_IPV4 => Self::ipv4(packet),
            ETHERTYPE_IPV6 => Self::ipv6(packet),
            ETHERTYPE_ARP => Self::arp(packet),
            _ => Some(Self::Other),
        };
        inner.unwrap_or(Self::Malformed)
    }

    fn ipv4(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<20>().filter(|header| header[0] >> 4 == 4)?;
        Some(Self::Ipv4 { source: address4(header, 12)?, destination: address4(header, 16)? })
    }

    fn ipv6(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<40>().filter(|header| header[0] >> 4 == 6)?;
        Some(Self::Ipv6 { source: address6(header, 8)?, destination: address6(header, 24)? })
    }

    fn arp(packet: &[u8]) -> Option<Self> {
        let packet = packet.first_chunk::<ARP_LEN>()?;
        // Ethernet and IPv4, with addresses of 6 and 4 bytes.
        if packet[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        Some(Self::Arp(Arp {
            operation: u16::from_be_bytes([packet[6], packet[7]]),
            sender_mac: *packet[8..].first_chunk()?,
            sender: address4(packet, 14)?,
            target: address4(packet, 24)?,
        }))
    }
}

fn address4(header: &[u8], offset: usize) -> Option<Ipv4Addr> {
    header[offset..].first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

fn address6(header: &[u8], offset: usize) -> Option<Ipv6Addr> {
    header[offset..].first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}

/// The reply to an ARP request: `mac` has the address that was asked for.
fn answer(request: &[u8], arp: Arp, mac: [u8; 6]) -> Box<[u8]> {
    let mut reply = Vec::with_capacity(ETHERNET_LEN + ARP_LEN);
    reply.extend_from_slice(&request[6..12]);
    reply.extend_from_slice(&mac);
    reply.extend_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4]);
    reply.extend_from_slice(&ARP_REPLY.to_be_bytes());
    reply.extend_from_slice(&mac);
    reply.extend_from_slice(&arp.target.octets());
    reply.extend_from_slice(&arp.sender_mac);
    reply.extend_from_slice(&arp.sender.octets());
    reply.into_boxed_slice()
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

#[cfg(test)]
mod tests;
