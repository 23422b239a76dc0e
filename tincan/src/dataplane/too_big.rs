//! What becomes of a frame that is longer than its link's path takes: its sender is told by ICMP, as a router would, or
//! it is carried in pieces all the same. Pure; how often senders are told is the worker's.

use std::net::{Ipv4Addr, Ipv6Addr};

use tincan_common::frame::ETHERNET_LEN;
use tincan_common::inner::{IPV4, IPV4_LEN, IPV6, IPV6_LEN, ipv4_checksum, is_group4, is_group6};

use crate::dataplane::checksum::{fold, pseudo_header, set_word, sum, word};

/// Outer headers in front of the inner Ethernet frame, without Ethernet: IP, UDP and the frame header.
const OVERHEAD_IPV4: u32 = 20 + 8 + 8;
const OVERHEAD_IPV6: u32 = 40 + 8 + 8;
/// Smallest MTU that may be announced (RFC 1191 section 3); below it IPv4 frames are carried in pieces.
const LEAST_MTU_IPV4: usize = 68;
/// The same for IPv6: its hosts send packets of this length whatever they are told (RFC 8201 section 4).
const LEAST_MTU_IPV6: usize = 1280;
/// Longest error: every IPv4 host takes a packet of this length (RFC 1812 section 4.3.2.3).
const ERROR_LEN_IPV4: usize = 576;
/// The same for IPv6 (RFC 4443 section 3.2).
const ERROR_LEN_IPV6: usize = LEAST_MTU_IPV6;
/// Type, code, checksum, and four bytes with the MTU.
const ICMP_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;
/// Precedence of network control (RFC 1812 section 4.3.2.5).
const NETWORK_CONTROL: u8 = 0xc0;
/// "Don't fragment" (RFC 791 section 3.1), in the first byte of flags and offset.
const DONT_FRAGMENT: u8 = 0x40;

/// Protocol and extension header numbers.
mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ICMP: u8 = 1;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const ICMPV6: u8 = 58;
    pub(super) const DESTINATION: u8 = 60;
}

/// Longest inner frame of a plain link, bytes, on a path that takes IP packets of `mtu` bytes.
#[must_use]
pub fn longest_frame(mtu: u32, is_ipv4: bool) -> u32 {
    mtu.saturating_sub(if is_ipv4 { OVERHEAD_IPV4 } else { OVERHEAD_IPV6 })
}

/// The error for the sender of `frame`, whose longest segment has `length` bytes where `longest` fit, as an Ethernet
/// frame: "fragmentation needed" (RFC 1191) or "packet too big" (RFC 4443). It comes from the frame's destination: one
/// of the host's own addresses would be taken for a forgery, and the host has no other on this side.
///
/// `None` where the frame is to be carried in pieces: its sender allows that or may not be sent errors (RFC 1122 section
/// 3.2.2, RFC 4443 section 2.4), or no smaller MTU can be announced.
#[must_use]
pub fn answer(frame: &[u8], length: usize, longest: usize) -> Option<Vec<u8>> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let is_group = ethernet[0] & 1 == 1;
    let (length, mtu) = (length.checked_sub(ETHERNET_LEN)?, longest.saturating_sub(ETHERNET_LEN));
    let mut answer = Vec::with_capacity(ETHERNET_LEN + ERROR_LEN_IPV6);
    answer.extend_from_slice(&ethernet[6..12]);
    answer.extend_from_slice(&ethernet[..6]);
    answer.extend_from_slice(&ethernet[12..]);
    match [ethernet[12], ethernet[13]] {
        IPV4 if !is_group && length > mtu.max(LEAST_MTU_IPV4) && is_answered_ipv4(packet) => {
            write_ipv4(&mut answer, packet, u16::try_from(mtu.max(LEAST_MTU_IPV4)).ok()?);
        }
        IPV6 if !is_group && length > mtu.max(LEAST_MTU_IPV6) && is_answered_ipv6(packet) => {
            write_ipv6(&mut answer, packet, u32::try_from(mtu.max(LEAST_MTU_IPV6)).ok()?);
        }
        _ => return None,
    }
    Some(answer)
}

/// Whether the sender wants no fragments, and the rules allow an error.
fn is_answered_ipv4(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<IPV4_LEN>() else { return false };
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < IPV4_LEN {
        return false;
    }
    let &[.., s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let source = Ipv4Addr::new(s0, s1, s2, s3);
    // Class E, which no host has, ends in the broadcast address.
    let is_nobody = s0 == 0 || source.is_loopback() || s0 >= 224;
    // The offset is behind three flags.
    let is_first = word(header, 6) << 3 == 0;
    let is_error = header[9] == protocol::ICMP && packet.get(header_len).is_none_or(|kind| is_error_ipv4(*kind));
    header[6] & DONT_FRAGMENT != 0 && is_first && !is_nobody && !is_group4([d0, d1, d2, d3]) && !is_error
}

/// Destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 1122 section 3.2.2).
fn is_error_ipv4(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

fn is_answered_ipv6(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<IPV6_LEN>() else { return false };
    let address = |at: usize| header[at..].first_chunk::<16>().copied().unwrap_or_default();
    let source = Ipv6Addr::from(address(8));
    let is_nobody = source.is_unspecified() || source.is_loopback() || source.is_multicast();
    header[0] >> 4 == 6 && !is_nobody && !is_group6(&address(24)) && !is_error_or_later_fragment(packet, header[6])
}

/// Looks behind the extension headers (RFC 8200 section 4); what is cut off counts as an error.
fn is_error_or_later_fragment(packet: &[u8], first: u8) -> bool {
    let (mut next, mut at) = (first, IPV6_LEN);
    loop {
        let rest = packet.get(at..).unwrap_or_default();
        let unit = match next {
            // Errors, and redirects (RFC 4443 section 2.1, section 2.4 (e)).
            protocol::ICMPV6 => return rest.first().is_none_or(|kind| *kind < 128 || *kind == 137),
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION | protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => 4,
            _ => return false,
        };
        let Some(&[following, units, high, low]) = rest.first_chunk() else { return true };
        let is_fragment = next == protocol::FRAGMENT;
        if is_fragment && u16::from_be_bytes([high, low]) >> 3 != 0 {
            return true;
        }
        at += 8 + if is_fragment { 0 } else { usize::from(units) * unit };
        next = following;
    }
}

/// Appends an error that quotes `packet`, whose header was looked at.
fn write_ipv4(answer: &mut Vec<u8>, packet: &[u8], mtu: u16) {
    const UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;

    let quoted = &packet[..packet.len().min(ERROR_LEN_IPV4 - IPV4_LEN - ICMP_LEN)];
    let mut header = [0; IPV4_LEN];
    header[..2].copy_from_slice(&[0x45, NETWORK_CONTROL]);
    set_word(&mut header, 2, length_field(IPV4_LEN + ICMP_LEN + quoted.len()));
    (header[6], header[8], header[9]) = (DONT_FRAGMENT, HOP_LIMIT, protocol::ICMP);
    header[12..16].copy_from_slice(&packet[16..20]);
    header[16..20].copy_from_slice(&packet[12..16]);
    let checksum = ipv4_checksum(&header);
    header[10..12].copy_from_slice(&checksum);
    answer.extend_from_slice(&header);

    let [high, low] = mtu.to_be_bytes();
    let mut icmp = [UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0, high, low];
    let checksum = !fold(sum(quoted, sum(&icmp, 0)));
    set_word(&mut icmp, 2, checksum);
    answer.extend_from_slice(&icmp);
    answer.extend_from_slice(quoted);
}

/// Appends an error that quotes `packet`, whose header was looked at.
fn write_ipv6(answer: &mut Vec<u8>, packet: &[u8], mtu: u32) {
    const PACKET_TOO_BIG: u8 = 2;

    let quoted = &packet[..packet.len().min(ERROR_LEN_IPV6 - IPV6_LEN - ICMP_LEN)];
    let length = ICMP_LEN + quoted.len();
    let mut header = [0; IPV6_LEN];
    header[0] = 0x60;
    set_word(&mut header, 4, length_field(length));
    (header[6], header[7]) = (protocol::ICMPV6, HOP_LIMIT);
    header[8..24].copy_from_slice(&packet[24..40]);
    header[24..40].copy_from_slice(&packet[8..24]);
    answer.extend_from_slice(&header);

    let mut icmp = [PACKET_TOO_BIG, 0, 0, 0, 0, 0, 0, 0];
    icmp[4..].copy_from_slice(&mtu.to_be_bytes());
    let pseudo = pseudo_header(&header[8..], protocol::ICMPV6, length);
    let checksum = !fold(sum(quoted, sum(&icmp, pseudo)));
    set_word(&mut icmp, 2, checksum);
    answer.extend_from_slice(&icmp);
    answer.extend_from_slice(quoted);
}

fn length_field(length: usize) -> u16 {
    u16::try_from(length).expect("an error is at most 1280 bytes")
}

#[cfg(test)]
mod tests;
