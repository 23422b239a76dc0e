//! Merges consecutive frames of a TCP or UDP flow into super-frames for the TAP, as the kernel's GRO would.
//!
//! One TAP write then carries up to 64 KiB. Only what the kernel can split again into the same frames is merged, and
//! only after its checksums were found right: a merged frame's checksum is written anew.
//!
//! ```text
//! push:   A1 A2 B1 A3 icmp B2 A4(fin)        an item is open until a frame of its flow does not fit behind it
//! items:  [A1 A2 A3] [B1 B2] [icmp] [A4]     in the order of their first frames, so every flow keeps its order
//! ```

#[cfg(test)]
mod tests;

use super::checksum::{TCP_CHECKSUM, UDP_CHECKSUM, fold, pseudo_header, set_word, sum, word};
use super::gso::{ETHERNET, IPV4, IPV6, Network, TCP, TCP_PROTOCOL, Transport, UDP, UDP_PROTOCOL, is_fragment};
use super::vnet::VnetHeader;

/// Flows that may grow at the same time; with more, the one that was opened first is closed.
const OPEN_FLOWS: usize = 16;
/// The longest IP packet, its header counted, in bytes.
const LONGEST_PACKET: usize = 65_535;
/// The most datagrams of one UDP super-frame (`UDP_GRO_CNT_MAX` of the kernel).
const MOST_DATAGRAMS: usize = 64;
/// Buffers that are kept between batches however long they are.
const KEPT_BUFFERS: usize = 64;
/// Bytes of buffers that are kept after a larger batch.
const KEPT_BYTES: usize = 4 << 20;

const ICMPV6_PROTOCOL: u8 = 58;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Which super-frames the TAP takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// TCP over IPv4 and IPv6.
    pub tcp: bool,
    /// UDP over IPv4 and IPv6; Linux 6.2 and later.
    pub udp: bool,
}

/// The frames of one batch on their way to the TAP.
#[derive(Debug)]
pub struct Coalescer {
    offloads: Offloads,
    /// Only the first `used` belong to this batch; the others are empty buffers.
    items: Vec<Item>,
    used: usize,
    /// The flows whose item may still grow, the oldest first.
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    flow: Flow,
    item: usize,
}

impl Coalescer {
    /// An empty batch for a TAP that takes `limits`.
    pub fn new(limits: Offloads) -> Self {
        Self { offloads: limits, items: Vec::new(), used: 0, open: Vec::with_capacity(OPEN_FLOWS) }
    }

    /// Takes a copy of the next Ethernet frame, in the order of arrival.
    pub fn push(&mut self, frame: &[u8]) {
        let (flow, transport) = match classify(frame) {
            Class::Flow(flow, transport) => (flow, transport),
            Class::Apart => {
                self.append(frame, None);
                return;
            }
            Class::Unclear => {
                self.open.clear();
                self.append(frame, None);
                return;
            }
        };
        let segment = Segment::read(frame, &flow, transport, self.offloads);
        if let Some(slot) = self.open.iter().position(|open| open.flow == flow) {
            let item = &mut self.items[self.open[slot].item];
            if let Some(segment) = &segment
                && item.accepts(frame, segment)
            {
                if item.merge(frame, segment) == Growth::Ended {
                    self.open.remove(slot);
                }
                return;
            }
            self.open.remove(slot);
        }
        let item = self.append(frame, segment);
        if segment.is_some_and(|segment| !segment.push) {
            if self.open.len() == OPEN_FLOWS {
                self.open.remove(0);
            }
            self.open.push(Open { flow, item });
        }
    }

    /// Gives every TAP write of the batch, vnet header and frame, to `write`, and begins the next batch.
    pub fn flush(&mut self, mut write: impl FnMut(&[u8])) {
        for item in &mut self.items[..self.used] {
            item.finish();
            write(&item.buffer);
        }
        self.open.clear();
        if self.used > KEPT_BUFFERS {
            let mut kept = 0;
            self.items.retain(|item| {
                kept += item.buffer.capacity();
                kept <= KEPT_BYTES
            });
        }
        self.used = 0;
    }

    fn append(&mut self, frame: &[u8], first: Option<Segment>) -> usize {
        let index = self.used;
        if index == self.items.len() {
            self.items.push(Item { buffer: Vec::new(), run: None });
        }
        self.used += 1;
        let Item { buffer, run } = &mut self.items[index];
        buffer.clear();
        buffer.extend_from_slice(&VnetHeader::default().to_bytes());
        buffer.extend_from_slice(frame);
        *run = first.map(Run::new);
        index
    }
}

/// One TAP write.
#[derive(Debug)]
struct Item {
    /// Vnet header and frame.
    buffer: Vec<u8>,
    /// `None` for a frame that merges with no other.
    run: Option<Run>,
}

/// The segments of an item.
#[derive(Debug)]
struct Run {
    first: Segment,
    count: usize,
    next_sequence: u32,
    next_id: u16,
}

impl Run {
    fn new(first: Segment) -> Self {
        Self { first, count: 1, next_sequence: first.end, next_id: first.id.wrapping_add(1) }
    }
}

#[derive(PartialEq, Eq)]
enum Growth {
    MayGoOn,
    Ended,
}

impl Item {
    /// Whether `frame`, of the same flow, is the next one and differs from the first only where splitting would differ.
    fn accepts(&self, frame: &[u8], segment: &Segment) -> bool {
        let Some(Run { first, count: _, next_sequence, next_id }) = &self.run else { return false };
        let merged = &self.buffer[VnetHeader::LEN..];
        // Without DF the identification matters to reassembly (RFC 6864).
        let id_follows = match segment.version {
            Network::V4 => word(frame, ETHERNET + 6) & 0x4000 != 0 || segment.id == *next_id,
            Network::V6 => true,
        };
        segment.size <= first.size
            && segment.sequence == *next_sequence
            && id_follows
            && merged.len() - ETHERNET + segment.size <= LONGEST_PACKET
            && segment.same_headers(frame, merged)
    }

    /// Appends the payload of an accepted frame.
    fn merge(&mut self, frame: &[u8], segment: &Segment) -> Growth {
        let run = self.run.as_mut().expect("only an item with a run accepts a frame");
        run.count += 1;
        run.next_sequence = segment.end;
        run.next_id = segment.id.wrapping_add(1);
        self.buffer.extend_from_slice(&frame[segment.payload..]);
        if segment.push {
            self.buffer[VnetHeader::LEN + segment.transport + 13] |= PSH;
        }
        let full = segment.kind == Transport::Udp && run.count == MOST_DATAGRAMS;
        if segment.push || full || segment.size < run.first.size { Growth::Ended } else { Growth::MayGoOn }
    }

    /// Writes the headers of a merged frame: lengths, partial checksum, vnet header.
    fn finish(&mut self) {
        let Some(Run { first, count: 2.., .. }) = self.run else { return };
        let (vnet, frame) = self.buffer.split_at_mut(VnetHeader::LEN);
        let length = frame.len() - ETHERNET;
        match first.version {
            Network::V4 => {
                let ip = &mut frame[ETHERNET..ETHERNET + IPV4];
                set_word(ip, 2, word_of(length));
                set_word(ip, 10, 0);
                set_word(ip, 10, !fold(sum(ip, 0)));
            }
            Network::V6 => set_word(frame, ETHERNET + 4, word_of(length - IPV6)),
        }
        let length = frame.len() - first.transport;
        let pseudo = fold(first.pseudo_header(frame));
        let (gso_type, csum_offset) = match (first.kind, first.version) {
            (Transport::Tcp, Network::V4) => (VnetHeader::GSO_TCPV4, TCP_CHECKSUM),
            (Transport::Tcp, Network::V6) => (VnetHeader::GSO_TCPV6, TCP_CHECKSUM),
            (Transport::Udp, Network::V4 | Network::V6) => {
                set_word(frame, first.transport + 4, word_of(length));
                (VnetHeader::GSO_UDP_L4, UDP_CHECKSUM)
            }
        };
        set_word(frame, first.transport + csum_offset, pseudo);
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: word_of(first.payload),
            gso_size: word_of(first.size),
            csum_start: word_of(first.transport),
            csum_offset: word_of(csum_offset),
        };
        vnet.copy_from_slice(&header.to_bytes());
    }
}

/// A length inside an IP packet, whose own length was found to fit 16 bits.
fn word_of(length: usize) -> u16 {
    u16::try_from(length).expect("no longer than the IP packet")
}

/// Whose order must be kept.
#[derive(Debug, PartialEq, Eq)]
struct Flow {
    version: Network,
    protocol: u8,
    ports: [u8; 4],
    /// Source and destination; IPv4's fill the first eight bytes.
    addresses: [u8; 32],
}

enum Class {
    /// TCP or UDP, and where its header begins.
    Flow(Flow, usize),
    /// Surely neither TCP nor UDP, or behind a VLAN tag.
    Apart,
    /// May belong to any flow: a fragment, an extension header, a broken header.
    Unclear,
}

fn classify(frame: &[u8]) -> Class {
    if frame.len() < ETHERNET {
        return Class::Apart;
    }
    let ip = &frame[ETHERNET..];
    let (version, protocol, length, from) = match word(frame, 12) {
        0x0800 if ip.len() >= IPV4 && ip[0] >> 4 == 4 && !is_fragment(ip) => {
            (Network::V4, ip[9], usize::from(ip[0] & 0x0F) * 4, &ip[12..20])
        }
        0x86DD if ip.len() >= IPV6 && ip[0] >> 4 == 6 => (Network::V6, ip[6], IPV6, &ip[8..40]),
        0x0800 | 0x86DD => return Class::Unclear,
        _ => return Class::Apart,
    };
    match (version, protocol) {
        (_, TCP_PROTOCOL | UDP_PROTOCOL) => (),
        (Network::V4, _) | (Network::V6, ICMPV6_PROTOCOL) => return Class::Apart,
        (Network::V6, _) => return Class::Unclear,
    }
    let Some(&ports) = ip.get(length..).and_then(<[u8]>::first_chunk).filter(|_| length >= IPV4) else {
        return Class::Unclear;
    };
    let mut addresses = [0; 32];
    addresses[..from.len()].copy_from_slice(from);
    Class::Flow(Flow { version, protocol, ports, addresses }, ETHERNET + length)
}

/// A frame that may be merged: headers of the right shape, payload, right checksums.
#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: Transport,
    version: Network,
    /// Where the transport header begins, in bytes from the frame's start.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    /// Bytes of payload, not zero.
    size: usize,
    /// TCP's sequence number; UDP has none and uses zero.
    sequence: u32,
    /// The sequence number of the next segment.
    end: u32,
    /// IPv4's identification; zero for IPv6.
    id: u16,
    /// TCP's PSH: nothing is merged behind it.
    push: bool,
}

impl Segment {
    fn read(frame: &[u8], flow: &Flow, transport: usize, offloads: Offloads) -> Option<Self> {
        let ip = &frame[ETHERNET..];
        let (whole, id) = match flow.version {
            Network::V4 => (transport == ETHERNET + IPV4 && usize::from(word(ip, 2)) == ip.len(), word(ip, 4)),
            Network::V6 => (usize::from(word(ip, 4)) == ip.len() - IPV6, 0),
        };
        if !whole {
            return None;
        }
        let kind = if flow.protocol == TCP_PROTOCOL { Transport::Tcp } else { Transport::Udp };
        let header = &frame[transport..];
        let (length, sequence, push) = match kind {
            Transport::Tcp if offloads.tcp => read_tcp(header)?,
            Transport::Udp if offloads.udp => (read_udp(header)?, 0, false),
            Transport::Tcp | Transport::Udp => return None,
        };
        let size = header.len().checked_sub(length).filter(|&size| size != 0)?;
        let end = match kind {
            Transport::Tcp => sequence.wrapping_add(u32::from(word_of(size))),
            Transport::Udp => 0,
        };
        let payload = transport + length;
        let segment = Self { kind, version: flow.version, transport, payload, size, sequence, end, id, push };
        segment.checksums_right(frame).then_some(segment)
    }

    fn checksums_right(&self, frame: &[u8]) -> bool {
        let network_right = match self.version {
            Network::V4 => fold(sum(&frame[ETHERNET..ETHERNET + IPV4], 0)) == 0xFFFF,
            Network::V6 => true,
        };
        network_right && fold(sum(&frame[self.transport..], self.pseudo_header(frame))) == 0xFFFF
    }

    /// Sum of the pseudo header of `frame`, which has the headers of this segment.
    fn pseudo_header(&self, frame: &[u8]) -> u64 {
        let addresses = match self.version {
            Network::V4 => ETHERNET + 12..ETHERNET + 20,
            Network::V6 => ETHERNET + 8..ETHERNET + 40,
        };
        let protocol = match self.kind {
            Transport::Tcp => TCP_PROTOCOL,
            Transport::Udp => UDP_PROTOCOL,
        };
        pseudo_header(&frame[addresses], protocol, frame.len() - self.transport)
    }

    /// Whether this segment's frame and another of its flow agree in all fields but lengths, checksums, identification,
    /// sequence number and TCP's flags, which [`Segment::read`] restricts.
    fn same_headers(&self, frame: &[u8], other: &[u8]) -> bool {
        let same = |from: usize, to: usize| frame[from..to] == other[from..to];
        let (ip, transport) = (ETHERNET, self.transport);
        let network = match self.version {
            Network::V4 => same(0, ip + 2) && same(ip + 6, ip + 10) && same(ip + 12, ip + 20),
            Network::V6 => same(0, ip + 4) && same(ip + 6, ip + 40),
        };
        network
            && same(transport, transport + 4)
            && match self.kind {
                Transport::Tcp => {
                    // The header's length is in byte 12: the options are compared only if they are equally long.
                    same(transport + 8, transport + 13)
                        && same(transport + 14, transport + 16)
                        && same(transport + 18, self.payload)
                }
                Transport::Udp => true,
            }
    }
}

/// Header length, sequence number and PSH, if there are no flags besides ACK and PSH.
fn read_tcp(tcp: &[u8]) -> Option<(usize, u32, bool)> {
    if tcp.len() < TCP {
        return None;
    }
    let length = usize::from(tcp[12] >> 4) * 4;
    if length < TCP || tcp[12] & 0x0F != 0 || tcp[13] & !PSH != ACK {
        return None;
    }
    Some((length, u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]), tcp[13] & PSH != 0))
}

/// Header length, if the datagram has a checksum and fills the packet.
fn read_udp(udp: &[u8]) -> Option<usize> {
    let fits = udp.len() >= UDP && usize::from(word(udp, 4)) == udp.len() && word(udp, UDP_CHECKSUM) != 0;
    fits.then_some(UDP)
}
