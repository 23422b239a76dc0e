//! Where the headers of a TCP or UDP packet stand in an Ethernet frame, and how they are made to fit a payload.

use crate::dataplane::checksum::{fold, pseudo_header, sum};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const ETHERTYPE_AT: usize = 12;
const VLAN: [u8; 2] = [0x81, 0x00];
const IPV6_HEADER: usize = 40;
/// Offsets in a TCP header (RFC 9293).
pub(super) const TCP_SEQUENCE: usize = 4;
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const TCP_CHECKSUM: usize = 16;
/// Offset in a UDP header (RFC 768).
pub(super) const UDP_CHECKSUM: usize = 6;
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Offsets from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) family: Family,
    /// [`TCP`] or [`UDP`].
    pub(super) protocol: u8,
    pub(super) network: usize,
    pub(super) transport: usize,
    pub(super) payload: usize,
}

impl Layout {
    /// Finds the headers. `transport` says where TCP or UDP begins when IPv6 extension headers stand before it.
    pub(super) fn of(frame: &[u8], transport: Option<usize>) -> Option<Self> {
        let tagged = frame.get(ETHERTYPE_AT..ETHERTYPE_AT + 2)? == VLAN;
        let network = ETHERTYPE_AT + if tagged { 6 } else { 2 };
        let (family, after, next) = match frame.get(network - 2..network)? {
            [0x08, 0x00] => {
                let header = usize::from(frame.get(network)? & 0x0f) * 4;
                let valid = frame[network] >> 4 == 4 && header >= 20;
                (Family::V4, network + valid.then_some(header)?, *frame.get(network + 9)?)
            }
            [0x86, 0xdd] => {
                let valid = frame.get(network)? >> 4 == 6;
                (Family::V6, network + valid.then_some(IPV6_HEADER)?, *frame.get(network + 6)?)
            }
            _ => return None,
        };
        let transport = transport.unwrap_or(after);
        if transport < after || (family == Family::V4 && transport != after) {
            return None;
        }
        let protocol = next;
        Self { family, protocol, network, transport, payload: transport }.with_protocol(frame, protocol)
    }

    /// The same with the transport protocol given, which extension headers hide.
    pub(super) fn with_protocol(self, frame: &[u8], protocol: u8) -> Option<Self> {
        let length = match protocol {
            TCP => usize::from(frame.get(self.transport + 12)? >> 4) * 4,
            UDP => 8,
            // Only to be asked again with the protocol that stands behind the extension headers.
            _ if self.family == Family::V6 => return Some(Self { protocol, payload: self.transport, ..self }),
            _ => return None,
        };
        let payload = self.transport + length;
        let whole = length >= if protocol == TCP { 20 } else { 8 } && payload <= frame.len();
        whole.then_some(Self { protocol, payload, ..self })
    }

    /// Source and destination address, as they stand in the header.
    fn addresses<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        match self.family {
            Family::V4 => &frame[self.network + 12..self.network + 20],
            Family::V6 => &frame[self.network + 8..self.network + 40],
        }
    }

    /// Offset of the transport checksum.
    pub(super) fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
    }

    /// The sum of the pseudo header of a frame that ends with its packet.
    pub(super) fn pseudo_sum(&self, frame: &[u8]) -> u64 {
        pseudo_header(self.addresses(frame), self.protocol, frame.len() - self.transport)
    }

    /// Makes the lengths in the headers those of this frame, and the IPv4 header's checksum right.
    pub(super) fn fit_lengths(&self, frame: &mut [u8]) {
        let from_network = length_field(frame.len() - self.network);
        match self.family {
            Family::V4 => {
                frame[self.network + 2..self.network + 4].copy_from_slice(&from_network);
                frame[self.network + 10..self.network + 12].fill(0);
                let checksum = !fold(sum(&frame[self.network..self.header_end(frame)], 0));
                frame[self.network + 10..self.network + 12].copy_from_slice(&checksum.to_be_bytes());
            }
            Family::V6 => {
                let length = length_field(frame.len() - self.network - IPV6_HEADER);
                frame[self.network + 4..self.network + 6].copy_from_slice(&length);
            }
        }
        if self.protocol == UDP {
            let length = length_field(frame.len() - self.transport);
            frame[self.transport + 4..self.transport + 6].copy_from_slice(&length);
        }
    }

    /// Whether the IPv4 header's and the transport's checksum are right.
    pub(super) fn checksums_hold(&self, frame: &[u8]) -> bool {
        let network = match self.family {
            Family::V4 => fold(sum(&frame[self.network..self.header_end(frame)], 0)) == 0xffff,
            Family::V6 => true,
        };
        network && fold(sum(&frame[self.transport..], self.pseudo_sum(frame))) == 0xffff
    }

    /// Writes the transport checksum of a frame that is complete otherwise.
    pub(super) fn write_checksum(&self, frame: &mut [u8]) {
        let at = self.transport + self.checksum_offset();
        frame[at..at + 2].fill(0);
        let checksum = !fold(sum(&frame[self.transport..], self.pseudo_sum(frame)));
        let checksum = if checksum == 0 && self.protocol == UDP { 0xffff } else { checksum };
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    fn header_end(&self, frame: &[u8]) -> usize {
        self.network + usize::from(frame[self.network] & 0x0f) * 4
    }
}

/// A length in network order; 65,535 where it does not fit, which callers exclude.
fn length_field(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}
