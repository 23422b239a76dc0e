//! The header in front of every frame on the TAP's descriptor: `struct virtio_net_hdr` (VIRTIO 1.2 section 5.1.6), in host
//! byte order, as the TUN driver has it unless told otherwise (`linux/if_tun.h`).

/// What is left undone in a frame: its checksum, its segmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CSUM`] or nothing.
    pub flags: u8,
    /// One of the `GSO_` constants, with or without [`VnetHeader::GSO_ECN`].
    pub gso_type: u8,
    /// Length of all headers of a super-frame in bytes; a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksum begins to sum, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum stands, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Length on the descriptor in bytes.
    pub const LEN: usize = 10;
    /// The checksum field holds the pseudo header's sum only.
    pub const NEEDS_CSUM: u8 = 1;
    /// An ordinary frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4 (TSO).
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6 (TSO).
    pub const GSO_TCPV6: u8 = 4;
    /// UDP over either (USO).
    pub const GSO_UDP_L4: u8 = 5;
    /// Set beside a TCP type when the segments carry CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header at the start of what the TAP gave; `None` when there is none.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let bytes = packet.first_chunk::<{ Self::LEN }>()?;
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let Self { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = self;
        let mut bytes = [0; Self::LEN];
        (bytes[0], bytes[1]) = (flags, gso_type);
        for (at, word) in [(2, hdr_len), (4, gso_size), (6, csum_start), (8, csum_offset)] {
            bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let header = VnetHeader { flags: 1, gso_type: 4, hdr_len: 74, gso_size: 1220, csum_start: 54, csum_offset: 16 };
        let bytes = header.to_bytes();
        assert_eq!(VnetHeader::parse(&bytes), Some(header));
        assert_eq!(VnetHeader::parse(&bytes[..9]), None);
        assert_eq!((bytes[0], bytes[1]), (1, 4));
        assert_eq!(bytes[4..6], 1220_u16.to_ne_bytes());
    }
}
