//! What the programs should do, said once more in plain slices: no maps, no helpers, no verifier.
//!
//! Not said here are super-frames and VLAN tags, which stand beside a frame and have rows of their own.

use std::collections::{BTreeMap, BTreeSet};

use tincan_common::kernel_verdict::KernelVerdict as V;

use super::*;

/// What user space wrote into the maps.
pub struct World {
    pub settings: Settings,
    pub routes4: BTreeMap<[u8; 4], Sender>,
    pub routes6: BTreeMap<Address, Sender>,
    pub flows: BTreeMap<[u8; Flow::SIZE], Receiver>,
    pub own: BTreeSet<Address>,
}

/// What a program should have done.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: u32,
    pub frame: Vec<u8>,
    pub mark: u32,
    pub verdict: Option<V>,
    /// Slot, and what is added to its traffic.
    pub traffic: Option<(u32, RawTraffic)>,
}

impl Outcome {
    fn passed(frame: &[u8], mark: u32, verdict: Option<V>) -> Self {
        Self { action: PASS_ON, frame: frame.to_vec(), mark, verdict, traffic: None }
    }
}

/// The parts of an IP packet that matter.
struct Ip<'a> {
    source: Address,
    destination: Address,
    protocol: u8,
    /// What the header says of the whole packet, bytes.
    length: usize,
    /// A part of a larger packet.
    fragment: bool,
    /// Begins with the next protocol's header.
    first: bool,
    payload: &'a [u8],
}

fn be(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// `ethertype` and what follows it. IPv4 with options is not understood, extension headers are a protocol.
fn ip<'a>(ethertype: &[u8], packet: &'a [u8]) -> Option<Ip<'a>> {
    match ethertype {
        [0x08, 0x00] if packet.len() >= 20 && packet[0] == 0x45 => {
            let offset = be(&packet[6..8]) & 0x1fff;
            Some(Ip {
                source: entries::mapped(packet[12..16].try_into().ok()?),
                destination: entries::mapped(packet[16..20].try_into().ok()?),
                protocol: packet[9],
                length: be(&packet[2..4]),
                fragment: be(&packet[6..8]) & 0xbfff != 0,
                first: offset == 0,
                payload: &packet[20..],
            })
        }
        [0x86, 0xdd] if packet.len() >= 40 && packet[0] & 0xf0 == 0x60 => Some(Ip {
            source: packet[8..24].try_into().ok()?,
            destination: packet[24..40].try_into().ok()?,
            protocol: packet[6],
            length: 40 + be(&packet[4..6]),
            fragment: false,
            first: true,
            payload: &packet[40..],
        }),
        _ => None,
    }
}

fn last_four(address: &Address) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}

impl World {
    fn masked(&self, address: &Address) -> [u8; 4] {
        let (address, mask) = (last_four(address), self.settings.router_mask);
        std::array::from_fn(|at| address[at] & mask[at])
    }

    pub fn tap_egress(&self, frame: &[u8], mark: u32) -> Outcome {
        let up = |verdict| Outcome::passed(frame, mark, Some(verdict));
        let Some(packet) = ip(&frame[12..14], &frame[14..]) else { return up(V::UpUnrouted) };
        let sender = if frame[12] == 0x08 {
            let [first, .., last] = last_four(&packet.destination);
            let is_group = (224..240).contains(&first) || last == 255;
            self.routes4.get(&self.masked(&packet.destination)).filter(|_| !is_group)
        } else {
            self.routes6.get(&packet.destination).filter(|_| packet.destination[0] != 0xff)
        };
        let Some(sender) = sender else { return up(V::UpUnrouted) };
        let length = u32::try_from(frame.len()).unwrap();
        if length > sender.max_frame {
            return up(V::UpTooLong);
        }
        let payload = [&[8, 0, 0, 0][..], &sender.tag.to_be_bytes()[1..], &[0], frame].concat();
        let ports = [u16::from_be_bytes(sender.source_port), u16::from_be_bytes(sender.destination_port)];
        let source = std::net::Ipv6Addr::from(sender.source).to_canonical();
        let destination = std::net::Ipv6Addr::from(sender.destination).to_canonical();
        let mut out = super::frames::udp_packet(source, destination, ports, &payload);
        out[..12].copy_from_slice(&[2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
        if source.is_ipv4() {
            // No identification, don't fragment, and the checksum of that.
            out[18..20].fill(0);
            out[20..22].copy_from_slice(&[0x40, 0]);
            out[24..26].fill(0);
            let header: [u8; 20] = out[14..34].try_into().unwrap();
            out[24..26].copy_from_slice(&tincan_common::inner::ipv4_checksum(&header));
        }
        let traffic = Some((sender.slot, [1, u64::from(length), 0, 0]));
        Outcome { action: REDIRECT, frame: out, mark, verdict: Some(V::Sent), traffic }
    }

    pub fn uplink_ingress(&self, frame: &[u8], mark: u32) -> Outcome {
        let up = |verdict| Outcome::passed(frame, mark, verdict);
        if frame.len() < 14 + 20 + 8 {
            return up(None);
        }
        let Some(outer) = ip(&frame[12..14], &frame[14..]) else { return up(None) };
        if outer.protocol != 17 || outer.fragment || outer.payload.len() < 8 {
            return up(None);
        }
        let (udp, payload) = outer.payload.split_at(8);
        if udp[2..4] != self.settings.plain_port {
            return up(None);
        }
        let flow = Flow {
            remote: outer.source,
            local: outer.destination,
            remote_port: [udp[0], udp[1]],
            local_port: [udp[2], udp[3]],
        };
        match self.judge(&flow, udp, payload) {
            Err(verdict) => up(Some(verdict)),
            Ok((receiver, protocol)) => {
                let inner = &payload[8..];
                let out = [&self.settings.tap_mac[..], &inner[6..]].concat();
                let traffic = Some((receiver.slot, [0, 0, 1, inner.len() as u64]));
                let is_merged = receiver.merger != 0 && protocol == 6;
                let (verdict, mark) =
                    if is_merged { (V::HandedOver, self.settings.mark) } else { (V::Delivered, mark) };
                Outcome { action: REDIRECT, frame: out, mark, verdict: Some(verdict), traffic }
            }
        }
    }

    /// Whose frame it is and its protocol, if it may come in.
    fn judge(&self, flow: &Flow, udp: &[u8], payload: &[u8]) -> Result<(&Receiver, u8), V> {
        // A frame header, an Ethernet header and the shortest IP header have to be there.
        if payload.len() < 8 + 14 + 20 || payload[0] != 8 || payload[1..4] != [0; 3] || payload[7] != 0 {
            return Err(V::UpControl);
        }
        let receiver = self.flows.get(&flow.to_bytes()).ok_or(V::UpUnknownFlow)?;
        if be(&payload[4..7]) != receiver.tag as usize {
            return Err(V::UpTag);
        }
        let (ethernet, packet) = payload[8..].split_at(14);
        if ethernet[0] & 1 == 1 || !matches!(ethernet[12..], [0x08, 0x00] | [0x86, 0xdd]) {
            return Err(V::UpSource);
        }
        let inner = ip(&ethernet[12..], packet).ok_or(V::UpShape)?;
        let is_peers = if ethernet[12] == 0x08 {
            self.masked(&inner.source) == receiver.ip4 && last_four(&inner.source) != self.settings.own_ip4
        } else {
            inner.source == receiver.ip6 && inner.source != self.settings.own_ip6
        };
        if !is_peers {
            return Err(V::UpSource);
        }
        let is_whole = be(&udp[4..6]) == 8 + payload.len() && inner.length == packet.len();
        if is_whole { Ok((receiver, inner.protocol)) } else { Err(V::UpShape) }
    }

    pub fn checked_ingress(&self, frame: &[u8], mark: u32) -> Outcome {
        if mark == 0 || mark != self.settings.mark {
            let (action, frame, verdict) = (super::ports::DROP, frame.to_vec(), Some(V::Refused));
            return Outcome { action, frame, mark, verdict, traffic: None };
        }
        let frame = [&self.settings.tap_mac[..], &frame[6..]].concat();
        Outcome { action: REDIRECT, frame, mark: 0, verdict: Some(V::Delivered), traffic: None }
    }

    pub fn port_ingress(&self, frame: &[u8], mark: u32) -> Outcome {
        let Settings { plain_port, socket_port, .. } = self.settings;
        let is_for_device = mark == self.settings.mark;
        let out = if is_for_device { None } else { self.translated(frame, 2, plain_port, socket_port) };
        Outcome::passed(&out.unwrap_or_else(|| frame.to_vec()), mark, None)
    }

    pub fn port_egress(&self, frame: &[u8], mark: u32) -> Outcome {
        let Settings { plain_port, socket_port, .. } = self.settings;
        let out = self.translated(frame, 0, socket_port, plain_port);
        Outcome::passed(&out.unwrap_or_else(|| frame.to_vec()), mark, None)
    }

    /// `field` is the place of the port in the UDP header.
    fn translated(&self, frame: &[u8], field: usize, from: [u8; 2], to: [u8; 2]) -> Option<Vec<u8>> {
        if from == to || frame.len() < 14 + 20 + 8 {
            return None;
        }
        let packet = ip(&frame[12..14], &frame[14..])?;
        let udp = match packet.protocol {
            17 if packet.first => packet.payload,
            // The first fragment of an IPv6 packet; the lower three bits are no part of the offset.
            44 if frame[12] == 0x86 && packet.payload.len() >= 8 && be(&packet.payload[2..4]) < 8 => {
                if packet.payload[0] != 17 {
                    return None;
                }
                &packet.payload[8..]
            }
            _ => return None,
        };
        let own = if field == 0 { packet.source } else { packet.destination };
        if udp.len() < 8 || udp[field..field + 2] != from || !self.own.contains(&own) {
            return None;
        }
        let at = frame.len() - udp.len();
        let mut out = frame.to_vec();
        out[at + field..at + field + 2].copy_from_slice(&to);
        let sum = be(&udp[6..8]);
        if sum != 0 {
            // RFC 1624, equation 3, in 16-bit words; zero would mean "no checksum".
            let mut new = (!sum & 0xffff) + (!be(&from) & 0xffff) + be(&to);
            while new > 0xffff {
                new = (new & 0xffff) + (new >> 16);
            }
            let new = u16::try_from(!new & 0xffff).unwrap();
            let new = if new == 0 { 0xffff } else { new };
            out[at + 6..at + 8].copy_from_slice(&new.to_be_bytes());
        }
        Some(out)
    }
}
