//! What the kernel programs look at in a frame's headers: pure functions, so that user space can be compared with them.

use crate::frame::{FRAME, HEADER_LEN};

/// Ethertypes in network order.
pub const IPV4: [u8; 2] = [0x08, 0x00];
/// See [`IPV4`].
pub const IPV6: [u8; 2] = [0x86, 0xdd];
/// IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// IPv6 header without extensions.
pub const IPV6_LEN: usize = 40;
/// Where the protocol stands in an IPv4 header, and the next header in an IPv6 one.
pub const IPV4_PROTOCOL_AT: usize = 9;
/// See [`IPV4_PROTOCOL_AT`].
pub const IPV6_NEXT_HEADER_AT: usize = 6;
/// IPv6 fragment header.
pub const IPV6_FRAGMENT_LEN: usize = 8;
/// UDP header.
pub const UDP_LEN: usize = 8;
/// Protocol numbers.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;
/// See [`TCP`]: the IPv6 fragment header.
pub const IPV6_FRAGMENT: u8 = 44;

/// An IPv4 header that the programs handle: version 4, no options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub protocol: u8,
    /// Bytes, header included.
    pub total_len: u16,
    /// A fragment, the first one included.
    pub is_fragment: bool,
    /// The first of its packet, or whole: what follows the header is the next protocol's header.
    pub is_first: bool,
}

/// An IPv6 header: version 6. Extension headers are not looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub next_header: u8,
    /// Bytes behind the header; 0 for a jumbogram.
    pub payload_len: u16,
}

/// Reads an IPv4 header; `None` when it has options or another version.
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub const fn ipv4(header: &[u8; IPV4_LEN]) -> Option<Ipv4> {
    let [first, _, len_high, len_low, _, _, flags, offset, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    if first != 0x45 {
        return None;
    }
    Some(Ipv4 {
        source: [s0, s1, s2, s3],
        destination: [d0, d1, d2, d3],
        protocol,
        total_len: u16::from_be_bytes([len_high, len_low]),
        // Any bit but "don't fragment" (RFC 791 section 3.1).
        is_fragment: flags & 0xbf != 0 || offset != 0,
        is_first: matches!([flags << 3, offset], [0, 0]),
    })
}

/// Reads an IPv6 header; `None` for another version.
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn ipv6(header: &[u8; IPV6_LEN]) -> Option<Ipv6> {
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source.copy_from_slice(&header[8..24]);
    destination.copy_from_slice(&header[24..40]);
    let payload_len = u16::from_be_bytes([header[4], header[5]]);
    Some(Ipv6 { source, destination, next_header: header[6], payload_len })
}

/// What follows an IPv6 fragment header (RFC 8200 section 4.5) that belongs to the first fragment; `None` for later ones.
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub const fn ipv6_first_fragment(header: &[u8; IPV6_FRAGMENT_LEN]) -> Option<u8> {
    let [next_header, _, offset_high, offset_low, ..] = *header;
    // The lower three bits are no part of the offset.
    if offset_high == 0 && offset_low & 0xf8 == 0 { Some(next_header) } else { None }
}

/// Whether a frame to this address goes to more than one peer: multicast, and what may be a subnet's broadcast (2014).
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub const fn is_group4(destination: [u8; 4]) -> bool {
    destination[0] & 0xf0 == 0xe0 || destination[3] == 255
}

/// The same for IPv6: multicast.
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub const fn is_group6(destination: &[u8; 16]) -> bool {
    destination[0] == 0xff
}

/// The address's bits that choose the peer.
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub const fn masked(address: [u8; 4], mask: [u8; 4]) -> [u8; 4] {
    [address[0] & mask[0], address[1] & mask[1], address[2] & mask[2], address[3] & mask[3]]
}

/// The tag of a frame header (see [`crate::frame`]); `None` when it is none.
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub const fn tag(header: &[u8; HEADER_LEN]) -> Option<u32> {
    match *header {
        [FRAME, 0, 0, 0, high, middle, low, 0] => Some(u32::from_be_bytes([0, high, middle, low])),
        _ => None,
    }
}

/// The checksum of an IPv4 header without options whose checksum field is zero (RFC 1071).
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub const fn ipv4_checksum(header: &[u8; IPV4_LEN]) -> [u8; 2] {
    let mut sum = 0_u32;
    let mut at = 0;
    while at < IPV4_LEN {
        sum += u16::from_be_bytes([header[at], header[at + 1]]) as u32;
        at += 2;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Wikipedia's "IPv4 header checksum", 172.16.10.99 to 172.16.10.12.
    const HEADER: [u8; 20] =
        [0x45, 0, 0, 0x3c, 0x1c, 0x46, 0x40, 0, 0x40, 6, 0xb1, 0xe6, 0xac, 0x10, 0x0a, 0x63, 0xac, 0x10, 0x0a, 0x0c];

    #[test]
    fn an_ipv4_header_is_read() {
        let read = ipv4(&HEADER).unwrap();
        assert_eq!((read.source, read.destination), ([172, 16, 10, 99], [172, 16, 10, 12]));
        assert_eq!((read.protocol, read.total_len, read.is_fragment), (TCP, 60, false));
        for (flags, offset) in [(0x20, 0), (0, 1), (0x1f, 0), (0x80, 0)] {
            let mut fragment = HEADER;
            (fragment[6], fragment[7]) = (flags, offset);
            let read = ipv4(&fragment).unwrap();
            assert!(read.is_fragment, "{flags} {offset}");
            assert_eq!(read.is_first, flags << 3 == 0 && offset == 0, "{flags} {offset}");
        }
        for first in [0x46, 0x44, 0x65, 0] {
            assert_eq!(ipv4(&[&[first], &HEADER[1..]].concat().try_into().unwrap()), None);
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        let mut header = HEADER;
        (header[10], header[11]) = (0, 0);
        assert_eq!(ipv4_checksum(&header), [0xb1, 0xe6]);
    }

    #[test]
    fn an_ipv6_header_is_read() {
        let mut header = [0; 40];
        (header[0], header[5], header[6]) = (0x6f, 9, UDP);
        (header[8], header[39]) = (0xfd, 2);
        let read = ipv6(&header).unwrap();
        assert_eq!((read.source[0], read.destination[15], read.next_header, read.payload_len), (0xfd, 2, UDP, 9));
        header[0] = 0x45;
        assert_eq!(ipv6(&header), None);
    }

    #[test]
    fn only_the_first_ipv6_fragment_shows_the_next_header() {
        assert_eq!(ipv6_first_fragment(&[UDP, 0, 0, 1, 1, 2, 3, 4]), Some(UDP));
        for later in [[0, 8], [1, 0], [0xff, 0xf9]] {
            assert_eq!(ipv6_first_fragment(&[UDP, 0, later[0], later[1], 1, 2, 3, 4]), None, "{later:?}");
        }
    }

    #[test]
    fn groups_are_multicast_and_what_ends_in_255() {
        for group in [[224, 0, 0, 1], [239, 1, 2, 3], [172, 16, 0, 255], [255; 4]] {
            assert!(is_group4(group), "{group:?}");
        }
        for host in [[223, 255, 255, 254], [240, 0, 0, 1], [172, 16, 255, 1]] {
            assert!(!is_group4(host), "{host:?}");
        }
        assert!(is_group6(&[0xff; 16]) && !is_group6(&[0xfe; 16]));
    }

    #[test]
    fn a_tag_needs_the_whole_header() {
        assert_eq!(tag(&crate::frame::header(0x00a1_b2c3)), Some(0x00a1_b2c3));
        assert_eq!(tag(&[8, 0, 0, 1, 1, 2, 3, 0]), None);
    }
}
