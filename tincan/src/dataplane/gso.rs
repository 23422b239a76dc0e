//! Generic segmentation in user space: a super-frame of the TAP becomes frames of wire size.

use thiserror::Error;

use crate::dataplane::checksum::complete_partial;
use crate::dataplane::packet::{CWR, FIN, Family, Layout, PSH, TCP, TCP_FLAGS, TCP_SEQUENCE, UDP};
use crate::dataplane::vnet::VnetHeader;

/// Why a frame of the TAP cannot be sent.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SplitError {
    /// The checksum's place lies outside of the frame.
    #[error("the checksum's place lies outside of the frame")]
    ChecksumPlace,
    /// The headers are not those the vnet header announces.
    #[error("the headers are not those the vnet header announces")]
    Headers,
    /// A super-frame needs segments of at least one byte.
    #[error("a super-frame with segments of no length")]
    SegmentSize,
    /// A kind of segmentation that was not offered.
    #[error("unknown segmentation type {0}")]
    Type(u8),
}

/// Does what the vnet header says is left to do and hands out each frame that results; `scratch` is room to build them.
pub fn split(
    header: &VnetHeader,
    frame: &mut [u8],
    scratch: &mut Vec<u8>,
    mut emit: impl FnMut(&[u8]),
) -> Result<(), SplitError> {
    let protocol = match header.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_NONE => {
            let (start, offset) = (usize::from(header.csum_start), usize::from(header.csum_offset));
            if header.flags & VnetHeader::NEEDS_CSUM != 0 && !complete_partial(frame, start, offset) {
                return Err(SplitError::ChecksumPlace);
            }
            emit(frame);
            return Ok(());
        }
        VnetHeader::GSO_TCPV4 | VnetHeader::GSO_TCPV6 => TCP,
        VnetHeader::GSO_UDP_L4 => UDP,
        other => return Err(SplitError::Type(other)),
    };
    let segment_size = usize::from(header.gso_size);
    if segment_size == 0 {
        return Err(SplitError::SegmentSize);
    }
    let transport = (header.flags & VnetHeader::NEEDS_CSUM != 0).then_some(usize::from(header.csum_start));
    let layout = Layout::of(frame, transport)
        .and_then(|layout| layout.with_protocol(frame, protocol))
        .filter(|layout| layout.payload < frame.len())
        .ok_or(SplitError::Headers)?;
    let (headers, payload) = frame.split_at(layout.payload);
    let last = payload.len().div_ceil(segment_size) - 1;
    for (number, segment) in payload.chunks(segment_size).enumerate() {
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(segment);
        number_segment(&layout, scratch, number, number * segment_size);
        if protocol == TCP {
            mark_segment(&layout, scratch, number == 0, number == last);
        }
        layout.fit_lengths(scratch);
        layout.write_checksum(scratch);
        emit(scratch);
    }
    Ok(())
}

/// IPv4 identification and TCP sequence number of the segment that begins `offset` bytes into the payload. Both wrap.
fn number_segment(layout: &Layout, frame: &mut [u8], number: usize, offset: usize) {
    if layout.family == Family::V4 {
        let at = layout.network + 4;
        let id = u16::from_be_bytes([frame[at], frame[at + 1]]);
        // Fewer than 65,536 segments fit a frame.
        let id = id.wrapping_add(u16::try_from(number).unwrap_or(u16::MAX));
        frame[at..at + 2].copy_from_slice(&id.to_be_bytes());
    }
    if layout.protocol == TCP
        && let Some(field) = frame[layout.transport + TCP_SEQUENCE..].first_chunk_mut::<4>()
    {
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        *field = u32::from_be_bytes(*field).wrapping_add(offset).to_be_bytes();
    }
}

/// FIN and PSH belong to the last segment, CWR to the first (RFC 3168 section 6.1.2).
fn mark_segment(layout: &Layout, frame: &mut [u8], first: bool, last: bool) {
    let flags = &mut frame[layout.transport + TCP_FLAGS];
    if !last {
        *flags &= !(FIN | PSH);
    }
    if !first {
        *flags &= !CWR;
    }
}

#[cfg(test)]
mod tests;
