//! The header in front of every Ethernet frame on the wire, in the shape of VXLAN's (RFC 7348 section 5).
//!
//! ```text
//!  0               1               2               3
//!  +---------------+---------------+---------------+---------------+
//!  | flags = 0x08  |                reserved = 0                   |
//!  +---------------+---------------+---------------+---------------+
//!  |                tag (VNI)                      | reserved = 0  |
//!  +---------------+---------------+---------------+---------------+
//! ```
//! On the plain port it stands alone; in a DTLS record it is the start of the plaintext, with tag 0. A record that begins
//! with [`LINK_CONTROL`] carries no frame but a message of the link itself.

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;

/// The first byte: "the VNI is valid". Apart from STUN (0-3), DTLS (20-63) and TURN channels (64-79), RFC 7983.
pub const FRAME: u8 = 0x08;

/// The first byte of a DTLS record that carries no frame; the second byte says what it is.
pub const LINK_CONTROL: u8 = 0x01;

/// Length of an Ethernet header in bytes.
pub const ETHERNET_LEN: usize = 14;

/// The header for a tag; only its low 24 bits are sent, in network order.
#[must_use]
pub const fn header(tag: u32) -> [u8; HEADER_LEN] {
    let [_, high, middle, low] = tag.to_be_bytes();
    [FRAME, 0, 0, 0, high, middle, low, 0]
}

/// The tag and the frame behind the header, or `None` where it is not exactly this header.
#[must_use]
pub fn parse(datagram: &[u8]) -> Option<(u32, &[u8])> {
    let (head, frame) = datagram.split_first_chunk::<HEADER_LEN>()?;
    match *head {
        [FRAME, 0, 0, 0, high, middle, low, 0] => Some((u32::from_be_bytes([0, high, middle, low]), frame)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_stands_as_in_rfc_7348() {
        assert_eq!(header(0x00a1_b2c3), [0x08, 0, 0, 0, 0xa1, 0xb2, 0xc3, 0]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut datagram = [7; HEADER_LEN + 3];
        datagram[..HEADER_LEN].copy_from_slice(&header(5));
        assert_eq!(parse(&datagram), Some((5, &[7, 7, 7][..])));
    }

    #[test]
    fn any_reserved_bit_and_a_missing_byte_are_refused() {
        for byte in [0, 1, 2, 3, 7] {
            for bit in 0..8 {
                let mut head = header(5);
                head[byte] ^= 1 << bit;
                assert_eq!(parse(&head), None, "byte {byte} bit {bit}");
            }
        }
        assert_eq!(parse(&header(5)[..7]), None);
    }
}
