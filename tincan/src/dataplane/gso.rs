//! Cuts a super-frame of the TAP into frames that fit the MTU, as the kernel's `tcp_gso_segment` and
//! `__udp_gso_segment` would.
//!
//! The frame and its vnet header come from the local kernel, but whoever may open a packet socket on the TAP writes
//! both: every length is checked, and the number of segments has a cap.

#[cfg(test)]
pub(super) mod tests;

use thiserror::Error;

use super::checksum::{
    TCP_CHECKSUM, UDP_CHECKSUM, complete_partial, fold, never_zero, pseudo_header, set_word, sum, word,
};
use super::vnet::VnetHeader;

/// The most segments of one super-frame: 64 KiB in the kernel's smallest TCP segments (`TCP_MIN_GSO_SIZE`, 8 bytes).
pub const MAX_SEGMENTS: usize = 8192;

pub(super) const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
pub(super) const IPV4: usize = 20;
pub(super) const IPV6: usize = 40;
pub(super) const TCP: usize = 20;
pub(super) const UDP: usize = 8;

pub(super) const TCP_PROTOCOL: u8 = 6;
pub(super) const UDP_PROTOCOL: u8 = 17;

const FIN: u16 = 0x01;
const PSH: u16 = 0x08;
const CWR: u16 = 0x80;

/// Why a frame of the TAP was not split.
#[derive(Debug, Clone, Copy, Error, PartialEq, Eq)]
pub enum SplitError {
    /// A header is cut off, or its length does not match the frame's.
    #[error("the headers' lengths do not fit the frame")]
    Length,
    /// The checksum's place is outside the frame or not where the headers say.
    #[error("the vnet header's checksum field does not fit the frame")]
    ChecksumField,
    /// The type is neither of the TCP ones nor UDP.
    #[error("unknown segmentation type {0:#04x}")]
    UnknownType(u8),
    /// The frame is not of the type the vnet header says, or is a fragment.
    #[error("the frame is not of its segmentation type")]
    WrongProtocol,
    /// `gso_size` is zero or gives more than [`MAX_SEGMENTS`].
    #[error("the segment size gives no sensible number of segments")]
    SegmentSize,
}

/// Splits `frame` as `header` asks and gives each Ethernet frame, its checksums complete, to `emit`.
///
/// `frame` may carry one VLAN tag; a frame that needs no splitting is emitted in place. Nothing is emitted on an error.
/// `scratch` holds a segment while it is built, and is kept to be used again.
pub fn split(
    header: &VnetHeader,
    frame: &mut [u8],
    scratch: &mut Vec<u8>,
    mut emit: impl FnMut(&[u8]),
) -> Result<(), SplitError> {
    let Some(transport) = Transport::of(header)? else {
        if header.needs_checksum() && !complete_partial(frame, header.csum_start.into(), header.csum_offset.into()) {
            return Err(SplitError::ChecksumField);
        }
        emit(frame);
        return Ok(());
    };
    let layout = Layout::read(header, transport, frame)?;
    let size = usize::from(header.gso_size);
    let payload = frame.len() - layout.payload;
    if size == 0 || payload.div_ceil(size) > MAX_SEGMENTS {
        return Err(SplitError::SegmentSize);
    }
    match transport {
        Transport::Tcp => layout.split_tcp(frame, size, scratch, emit),
        Transport::Udp => layout.split_udp(frame, size, scratch, emit),
    }
    Ok(())
}

/// Bytes of the longest frame that [`split`] makes of `frame`.
pub fn longest_segment(header: &VnetHeader, frame: &[u8]) -> Result<usize, SplitError> {
    let Some(transport) = Transport::of(header)? else { return Ok(frame.len()) };
    let headers = Layout::read(header, transport, frame)?.payload;
    Ok(frame.len().min(headers + usize::from(header.gso_size)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// What a super-frame carries; `None` for a single frame.
    fn of(header: &VnetHeader) -> Result<Option<Self>, SplitError> {
        match header.gso_type & !VnetHeader::GSO_ECN {
            VnetHeader::GSO_NONE => Ok(None),
            VnetHeader::GSO_TCPV4 | VnetHeader::GSO_TCPV6 => Ok(Some(Self::Tcp)),
            VnetHeader::GSO_UDP_L4 => Ok(Some(Self::Udp)),
            _ => Err(SplitError::UnknownType(header.gso_type)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    V4,
    V6,
}

/// Where the headers of a checked super-frame are, in bytes from its start.
struct Layout {
    version: Network,
    network: usize,
    transport: usize,
    payload: usize,
}

impl Layout {
    fn read(header: &VnetHeader, kind: Transport, frame: &[u8]) -> Result<Self, SplitError> {
        let (version, network) = read_ethernet(frame)?;
        let expected = match header.gso_type & !VnetHeader::GSO_ECN {
            VnetHeader::GSO_TCPV4 => Network::V4,
            VnetHeader::GSO_TCPV6 => Network::V6,
            _ => version,
        };
        if version != expected {
            return Err(SplitError::WrongProtocol);
        }
        let (protocol, transport) = match version {
            Network::V4 => read_ipv4(frame, network)?,
            Network::V6 => read_ipv6(frame, network)?,
        };
        let (wanted, checksum, length) = match kind {
            Transport::Tcp => {
                let words = frame.get(transport + 12).ok_or(SplitError::Length)? >> 4;
                (TCP_PROTOCOL, TCP_CHECKSUM, usize::from(words) * 4)
            }
            Transport::Udp => (UDP_PROTOCOL, UDP_CHECKSUM, UDP),
        };
        if protocol != wanted {
            return Err(SplitError::WrongProtocol);
        }
        let payload = transport + length;
        if payload >= frame.len() || (kind == Transport::Tcp && length < TCP) {
            return Err(SplitError::Length);
        }
        let told = (usize::from(header.csum_start), usize::from(header.csum_offset));
        if header.needs_checksum() && told != (transport, checksum) {
            return Err(SplitError::ChecksumField);
        }
        Ok(Self { version, network, transport, payload })
    }

    fn split_tcp(&self, frame: &[u8], size: usize, scratch: &mut Vec<u8>, mut emit: impl FnMut(&[u8])) {
        let (headers, payload) = frame.split_at(self.payload);
        let tcp = &headers[self.transport..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let offset_and_flags = word(tcp, 12);

        let mut segments = Segments::new(self, headers, size.min(payload.len()), scratch);
        for field in [4, 6, 12, TCP_CHECKSUM] {
            set_word(segments.transport(), field, 0);
        }
        let base = segments.transport_sum(TCP_PROTOCOL);
        let mut sequence = sequence;
        let last = payload.len().div_ceil(size) - 1;
        for (index, chunk) in payload.chunks(size).enumerate() {
            let mut flags = offset_and_flags;
            if index != 0 {
                flags &= !CWR;
            }
            if index != last {
                flags &= !(FIN | PSH);
            }
            let segment = segments.build(index, chunk);
            let tcp = &mut segment[self.transport..];
            tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
            set_word(tcp, 12, flags);
            let length = tcp.len();
            let varying = u64::from(sequence) + u64::from(flags) + length as u64;
            set_word(tcp, TCP_CHECKSUM, !fold(sum(chunk, base + varying)));
            emit(segment);
            sequence = sequence.wrapping_add(u32::from(word_of(chunk.len())));
        }
    }

    fn split_udp(&self, frame: &[u8], size: usize, scratch: &mut Vec<u8>, mut emit: impl FnMut(&[u8])) {
        let (headers, payload) = frame.split_at(self.payload);
        let mut segments = Segments::new(self, headers, size.min(payload.len()), scratch);
        for field in [4, UDP_CHECKSUM] {
            set_word(segments.transport(), field, 0);
        }
        let base = segments.transport_sum(UDP_PROTOCOL);
        for (index, chunk) in payload.chunks(size).enumerate() {
            let segment = segments.build(index, chunk);
            let udp = &mut segment[self.transport..];
            let length = udp.len();
            set_word(udp, 4, word_of(length));
            // The length is in the pseudo header and in the header.
            let varying = 2 * length as u64;
            set_word(udp, UDP_CHECKSUM, never_zero(!fold(sum(chunk, base + varying))));
            emit(segment);
        }
    }
}

/// The segment under construction: the headers stay, what differs is written over.
struct Segments<'a> {
    layout: &'a Layout,
    buffer: &'a mut Vec<u8>,
    /// IPv4's identification in the first segment; Linux counts it up from there.
    first_id: u16,
    /// Sum of the IPv4 header without its length, identification and checksum.
    network_base: u64,
}

impl<'a> Segments<'a> {
    fn new(layout: &'a Layout, headers: &[u8], longest: usize, buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        buffer.extend_from_slice(headers);
        buffer.resize(headers.len() + longest, 0);
        let mut first_id = 0;
        let mut network_base = 0;
        if layout.version == Network::V4 {
            let ip = &mut buffer[layout.network..layout.transport];
            first_id = word(ip, 4);
            for field in [2, 4, 10] {
                set_word(ip, field, 0);
            }
            network_base = sum(ip, 0);
        }
        Self { layout, buffer, first_id, network_base }
    }

    /// The transport header and what follows it.
    fn transport(&mut self) -> &mut [u8] {
        &mut self.buffer[self.layout.transport..]
    }

    /// Sum of the transport header as it stands and of the pseudo header without its length.
    fn transport_sum(&self, protocol: u8) -> u64 {
        let Layout { version, network, transport, payload } = *self.layout;
        let addresses = match version {
            Network::V4 => &self.buffer[network + 12..network + 20],
            Network::V6 => &self.buffer[network + 8..network + 40],
        };
        sum(&self.buffer[transport..payload], pseudo_header(addresses, protocol, 0))
    }

    /// Segment number `index` with `payload`; its transport header is the caller's to finish.
    fn build(&mut self, index: usize, payload: &[u8]) -> &mut [u8] {
        let Layout { version, network, transport: _, payload: at } = *self.layout;
        let segment = &mut self.buffer[..at + payload.len()];
        segment[at..].copy_from_slice(payload);
        let length = segment.len() - network;
        let ip = &mut segment[network..];
        match version {
            Network::V4 => {
                let length = word_of(length);
                let id = self.first_id.wrapping_add(word_of(index));
                set_word(ip, 2, length);
                set_word(ip, 4, id);
                set_word(ip, 10, !fold(self.network_base + u64::from(length) + u64::from(id)));
            }
            Network::V6 => set_word(ip, 4, word_of(length - IPV6)),
        }
        segment
    }
}

/// A length inside a frame whose IP length field was found right, or the index of a segment.
fn word_of(length: usize) -> u16 {
    u16::try_from(length).expect("no longer than the IP packet, whose length fits 16 bits")
}

/// The IP version, and where its header begins.
fn read_ethernet(frame: &[u8]) -> Result<(Network, usize), SplitError> {
    if frame.len() < ETHERNET + VLAN_TAG {
        return Err(SplitError::Length);
    }
    let network = if matches!(word(frame, 12), 0x8100 | 0x88A8) { ETHERNET + VLAN_TAG } else { ETHERNET };
    match word(frame, network - 2) {
        0x0800 => Ok((Network::V4, network)),
        0x86DD => Ok((Network::V6, network)),
        _ => Err(SplitError::WrongProtocol),
    }
}

/// The protocol, and where its header begins.
fn read_ipv4(frame: &[u8], network: usize) -> Result<(u8, usize), SplitError> {
    let ip = &frame[network..];
    if ip.len() < IPV4 {
        return Err(SplitError::Length);
    }
    let length = usize::from(ip[0] & 0x0F) * 4;
    if ip[0] >> 4 != 4 || is_fragment(ip) {
        return Err(SplitError::WrongProtocol);
    }
    if length < IPV4 || length > ip.len() || usize::from(word(ip, 2)) != ip.len() {
        return Err(SplitError::Length);
    }
    Ok((ip[9], network + length))
}

/// Whether the IPv4 packet has an offset or more fragments behind it (RFC 791).
pub(super) fn is_fragment(ip: &[u8]) -> bool {
    word(ip, 6) & 0x3FFF != 0
}

/// The protocol behind the extension headers (RFC 8200 section 4), and where its header begins.
fn read_ipv6(frame: &[u8], network: usize) -> Result<(u8, usize), SplitError> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;

    let ip = &frame[network..];
    if ip.len() < IPV6 {
        return Err(SplitError::Length);
    }
    if ip[0] >> 4 != 6 {
        return Err(SplitError::WrongProtocol);
    }
    if usize::from(word(ip, 4)) != ip.len() - IPV6 {
        return Err(SplitError::Length);
    }
    let mut next = ip[6];
    let mut at = IPV6;
    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
        let &[following, eights, _, segments_left] =
            ip.get(at..).and_then(<[u8]>::first_chunk).ok_or(SplitError::Length)?;
        // With segments left the checksum is that of a destination further on.
        if next == ROUTING && segments_left != 0 {
            return Err(SplitError::WrongProtocol);
        }
        next = following;
        at += 8 + usize::from(eights) * 8;
    }
    Ok((next, network + at))
}
