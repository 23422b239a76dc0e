//! `struct virtio_net_hdr`: the ten bytes in front of every frame the TAP reads or writes with `IFF_VNET_HDR`.
//!
//! Words are in host byte order, which is what the TUN driver uses unless `TUNSETVNETLE` or `TUNSETVNETBE` was called.

/// What the TAP says about the frame behind it; the default is an ordinary frame with nothing left to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CSUM`] and [`VnetHeader::DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` constants.
    pub gso_type: u8,
    /// Bytes of headers; Linux writes the length of its linear part instead, so readers must not trust it.
    pub hdr_len: u16,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// Where the checksummed part begins, in bytes from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum is, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes on the TAP.
    pub const LEN: usize = 10;
    /// The checksum at `csum_start + csum_offset` holds only the pseudo header's sum; virtio 1.2 section 5.1.6.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was verified already.
    pub const DATA_VALID: u8 = 2;
    /// One ordinary frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4, to be cut into `gso_size` bytes of payload each.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6, to be cut into `gso_size` bytes of payload each.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP over IPv4 or IPv6, to be cut into datagrams of `gso_size` bytes of payload each; Linux 6.2.
    pub const GSO_UDP_L4: u8 = 5;
    /// Added to a TCP type when CWR is set.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header at the start of `bytes`; `None` when they are too few.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let &[flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes.first_chunk::<{ Self::LEN }>()?;
        Some(Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// The header as the TAP expects it.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let Self { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = *self;
        let mut bytes = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, word) in [(2, hdr_len), (4, gso_size), (6, csum_start), (8, csum_offset)] {
            bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Whether the frame's checksum is only the pseudo header's sum.
    pub fn needs_checksum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_place() {
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_TCPV6,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
        };
        let mut expected = vec![1, 4];
        for word in [0x0102_u16, 0x0304, 0x0506, 0x0708] {
            expected.extend(word.to_ne_bytes());
        }
        assert_eq!(header.to_bytes()[..], expected);
        expected.push(0xFF);
        assert_eq!(VnetHeader::parse(&expected), Some(header));
    }

    #[test]
    fn nine_bytes_are_no_header() {
        assert_eq!(VnetHeader::parse(&[0; 9]), None);
        assert_eq!(VnetHeader::parse(&[0; 10]), Some(VnetHeader::default()));
    }
}
