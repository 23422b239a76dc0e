//! Generic receive offload in user space: frames of one flow, in order, become one super-frame for the TAP.
//!
//! Only what the receiver could not tell apart is merged: equal headers but for length, identification, sequence number
//! and checksum; right checksums; equal payload lengths but for a shorter last. Items keep the order in which their first
//! frames came, and a frame of a flow that cannot be merged ends the flow's open item, so no flow is reordered.

use crate::dataplane::checksum::fold;
use crate::dataplane::packet::{ACK, Family, Layout, PSH, TCP, TCP_FLAGS, TCP_SEQUENCE, UDP, UDP_CHECKSUM};
use crate::dataplane::vnet::VnetHeader;

/// Flows that are merged at the same time; the one that began first is ended by a further one.
const MAX_OPEN: usize = 16;

/// Longest IP packet.
const MAX_PACKET: usize = 65_535;

/// Super-frames the TAP accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// TCP over IPv4 and IPv6.
    pub tcp: bool,
    /// UDP over both (Linux 6.2).
    pub udp: bool,
}

/// See the module's head.
#[derive(Debug)]
pub struct Coalescer {
    offloads: Offloads,
    items: Vec<Item>,
    /// How many of `items` are in use; the others keep their buffers for later.
    used: usize,
    /// Indices of items that can grow, oldest first.
    open: Vec<usize>,
}

/// A write to the TAP that is being put together.
#[derive(Debug, Default)]
struct Item {
    /// Vnet header and frame.
    packet: Vec<u8>,
    merge: Option<Merge>,
}

/// What the next frame of an item must continue.
#[derive(Clone, Copy, Debug)]
struct Merge {
    layout: Layout,
    /// Payload bytes of each frame but the last.
    size: usize,
    frames: u16,
    next_sequence: u32,
}

/// A frame that may be merged.
#[derive(Clone, Copy)]
struct Segment<'a> {
    frame: &'a [u8],
    layout: Layout,
    sequence: u32,
}

/// What to do with a frame of a flow that has an open item.
enum Fit {
    /// It continues it.
    Append { and_close: bool },
    /// It comes after it.
    After,
}

impl Coalescer {
    /// A coalescer for a TAP that accepts these.
    #[must_use]
    pub fn new(offloads: Offloads) -> Self {
        Self { offloads, items: Vec::new(), used: 0, open: Vec::new() }
    }

    /// Takes a copy of a frame.
    pub fn push(&mut self, frame: &[u8]) {
        let Some(layout) = self.transport_of(frame) else { return self.begin(frame, None) };
        let open = self.open.iter().position(|&index| self.items[index].is_flow_of(frame, &layout));
        let Some(segment) = Segment::of(frame, layout) else {
            if let Some(position) = open {
                self.open.remove(position);
            }
            return self.begin(frame, None);
        };
        let Some(position) = open else { return self.begin(frame, Some(segment)) };
        let item = &mut self.items[self.open[position]];
        match item.fit(&segment) {
            Fit::Append { and_close } => {
                item.append(&segment);
                if and_close {
                    self.open.remove(position);
                }
            }
            Fit::After => {
                self.open.remove(position);
                self.begin(frame, Some(segment));
            }
        }
    }

    /// Hands out every write, vnet header first, and forgets them.
    pub fn flush(&mut self, mut write: impl FnMut(&[u8])) {
        for item in &mut self.items[..self.used] {
            item.finish();
            write(&item.packet);
        }
        self.used = 0;
        self.open.clear();
    }

    /// The headers of a packet of a kind that is merged; not of a fragment, and not behind IP options.
    fn transport_of(&self, frame: &[u8]) -> Option<Layout> {
        let layout = Layout::of(frame, None)?;
        let wanted = match layout.protocol {
            TCP => self.offloads.tcp,
            UDP => self.offloads.udp,
            _ => false,
        };
        let plain = match layout.family {
            Family::V4 => {
                let fragment = u16::from_be_bytes([frame[layout.network + 6], frame[layout.network + 7]]) & 0x3fff;
                layout.transport - layout.network == 20 && fragment == 0
            }
            Family::V6 => true,
        };
        (wanted && plain).then_some(layout)
    }

    fn begin(&mut self, frame: &[u8], segment: Option<Segment<'_>>) {
        if self.used == self.items.len() {
            self.items.push(Item::default());
        }
        let item = &mut self.items[self.used];
        item.packet.clear();
        item.packet.extend_from_slice(&[0; VnetHeader::LEN]);
        item.packet.extend_from_slice(frame);
        item.merge = segment.as_ref().map(Segment::begin);
        if segment.is_some_and(|segment| !segment.ends_item()) {
            if self.open.len() == MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push(self.used);
        }
        self.used += 1;
    }
}

impl Item {
    fn frame(&self) -> &[u8] {
        &self.packet[VnetHeader::LEN..]
    }

    /// Same addresses, same ports.
    fn is_flow_of(&self, frame: &[u8], layout: &Layout) -> bool {
        let Some(merge) = &self.merge else { return false };
        let own = self.frame();
        let same = |from: usize, to: usize| own[from..to] == frame[from..to];
        let addresses = match layout.family {
            Family::V4 => layout.network + 12,
            Family::V6 => layout.network + 8,
        };
        let known = merge.layout;
        (known.family, known.protocol, known.network, known.transport)
            == (layout.family, layout.protocol, layout.network, layout.transport)
            && same(addresses, layout.transport + 4)
    }

    fn fit(&self, segment: &Segment<'_>) -> Fit {
        let Some(merge) = &self.merge else { return Fit::After };
        let length = segment.payload().len();
        let in_order = segment.layout.protocol == UDP || segment.sequence == merge.next_sequence;
        let room = self.frame().len() - merge.layout.network + length <= MAX_PACKET && merge.frames < u16::MAX;
        if !in_order || !room || length > merge.size || !self.same_headers(segment, merge) {
            return Fit::After;
        }
        Fit::Append { and_close: length < merge.size || segment.ends_item() }
    }

    /// Equal but for what must differ.
    fn same_headers(&self, segment: &Segment<'_>, merge: &Merge) -> bool {
        let (own, other, layout) = (self.frame(), segment.frame, segment.layout);
        if merge.layout != layout {
            return false;
        }
        let same = |from: usize, to: usize| own[from..to] == other[from..to];
        let network = layout.network;
        let network_same = match layout.family {
            // All but total length, identification and header checksum.
            Family::V4 => same(0, network + 2) && same(network + 6, network + 10) && self.follows_in_id(other, merge),
            // All but the payload length.
            Family::V6 => same(0, network + 4) && same(network + 6, network + 8),
        };
        let transport = layout.transport;
        let transport_same = match layout.protocol {
            TCP => {
                let flags = transport + TCP_FLAGS;
                same(transport + 8, flags)
                    && own[flags] | PSH == other[flags] | PSH
                    && same(flags + 1, flags + 3)
                    && same(transport + 18, layout.payload)
            }
            _ => true,
        };
        network_same && transport_same
    }

    /// Without "don't fragment" the identification matters (RFC 6864): it must count on.
    fn follows_in_id(&self, other: &[u8], merge: &Merge) -> bool {
        let network = merge.layout.network;
        let id = |frame: &[u8]| u16::from_be_bytes([frame[network + 4], frame[network + 5]]);
        let dont_fragment = other[network + 6] & 0x40 != 0;
        dont_fragment || id(other) == id(self.frame()).wrapping_add(merge.frames)
    }

    fn append(&mut self, segment: &Segment<'_>) {
        let Some(merge) = &mut self.merge else { return };
        self.packet.extend_from_slice(segment.payload());
        merge.frames += 1;
        merge.next_sequence = segment.next_sequence();
        if segment.layout.protocol == TCP {
            let flags = merge.layout.transport + TCP_FLAGS;
            self.packet[VnetHeader::LEN + flags] |= segment.frame[flags] & PSH;
        }
    }

    /// Writes the headers of a super-frame; a single frame stays as it came.
    fn finish(&mut self) {
        let Some(Merge { layout, size, frames, next_sequence: _ }) = self.merge else { return };
        if frames < 2 {
            return;
        }
        let (head, frame) = self.packet.split_at_mut(VnetHeader::LEN);
        layout.fit_lengths(frame);
        let checksum = layout.transport + layout.checksum_offset();
        let partial = fold(layout.pseudo_sum(frame)).to_be_bytes();
        frame[checksum..checksum + 2].copy_from_slice(&partial);
        let gso_type = match (layout.protocol, layout.family) {
            (TCP, Family::V4) => VnetHeader::GSO_TCPV4,
            (TCP, Family::V6) => VnetHeader::GSO_TCPV6,
            _ => VnetHeader::GSO_UDP_L4,
        };
        let word = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: word(layout.payload),
            gso_size: word(size),
            csum_start: word(layout.transport),
            csum_offset: word(layout.checksum_offset()),
        };
        head.copy_from_slice(&header.to_bytes());
    }
}

impl<'a> Segment<'a> {
    /// A frame with payload, right lengths and right checksums; for TCP, one that says nothing but "data".
    fn of(frame: &'a [u8], layout: Layout) -> Option<Self> {
        let transport = layout.transport;
        let mut fitted = [0; 2];
        match layout.family {
            Family::V4 => fitted.copy_from_slice(&frame[layout.network + 2..layout.network + 4]),
            Family::V6 => fitted.copy_from_slice(&frame[layout.network + 4..layout.network + 6]),
        }
        let from = if layout.family == Family::V4 { layout.network } else { transport };
        if frame.len() - from != usize::from(u16::from_be_bytes(fitted)) || frame.len() == layout.payload {
            return None;
        }
        let mut sequence = 0;
        if layout.protocol == TCP {
            if frame[transport + TCP_FLAGS] & !PSH != ACK {
                return None;
            }
            sequence = u32::from_be_bytes(*frame[transport + TCP_SEQUENCE..].first_chunk()?);
        } else {
            let length = u16::from_be_bytes([frame[transport + 4], frame[transport + 5]]);
            let unchecked = frame[transport + UDP_CHECKSUM..transport + UDP_CHECKSUM + 2] == [0, 0];
            if unchecked || usize::from(length) != frame.len() - transport {
                return None;
            }
        }
        layout.checksums_hold(frame).then_some(Self { frame, layout, sequence })
    }

    fn payload(&self) -> &'a [u8] {
        &self.frame[self.layout.payload..]
    }

    fn next_sequence(&self) -> u32 {
        self.sequence.wrapping_add(u32::try_from(self.payload().len()).unwrap_or(0))
    }

    /// The sender wants what it has so far to be read.
    fn ends_item(&self) -> bool {
        self.layout.protocol == TCP && self.frame[self.layout.transport + TCP_FLAGS] & PSH != 0
    }

    fn begin(&self) -> Merge {
        Merge { layout: self.layout, size: self.payload().len(), frames: 1, next_sequence: self.next_sequence() }
    }
}

#[cfg(test)]
mod tests;
