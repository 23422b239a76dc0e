//! The Internet checksum (RFC 1071).

/// Adds bytes, as big-endian words of 16 bits, to a sum; an odd last byte is the high half of a word. Sums of parts may
/// be added where each part but the last has even length.
#[must_use]
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    // RFC 1071 section 2: the sum does not depend on the width of the words, and its bytes come out swapped when the
    // words are read in the other byte order. So whole words in the machine's own order, which the compiler vectorises.
    let mut words = bytes.chunks_exact(4);
    let mut total = 0_u64;
    for word in &mut words {
        total += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    total += u64::from(u32::from_ne_bytes(last));
    initial + u64::from(u16::from_be(fold(total)))
}

/// The 16-bit one's complement sum, not inverted.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the loop leaves 16 bits")]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The sum of a pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1); `addresses` are source and destination, as
/// they stand in the IP header.
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, transport_len: usize) -> u64 {
    sum(addresses, u64::from(protocol) + u64::try_from(transport_len).unwrap_or(u64::MAX >> 16))
}

/// Fills in a checksum whose field holds the folded sum of the pseudo header; `start` and `offset` as in the vnet header.
/// False when they do not fit the frame.
#[must_use]
pub fn complete_partial(frame: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(covered) = frame.get_mut(start..).filter(|covered| offset + 2 <= covered.len()) else { return false };
    let checksum = !fold(sum(covered, 0));
    // A UDP checksum of zero would mean "none" (RFC 768); for TCP both zeros are the same.
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    covered[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for (at, byte) in bytes.iter().enumerate() {
            sum += u32::from(*byte) << if at % 2 == 0 { 8 } else { 0 };
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn every_length_and_alignment_agrees_with_the_definition() {
        let bytes: Vec<u8> = (0..400_u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
        for start in 0..8 {
            for end in start..bytes.len() {
                assert_eq!(fold(sum(&bytes[start..end], 0)), naive(&bytes[start..end]), "{start}..{end}");
            }
        }
        let ones = vec![0xff; 65_535];
        assert_eq!(fold(sum(&ones, 0)), naive(&ones));
    }

    #[test]
    fn the_example_of_rfc_1071_gives_its_sum() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0)), 0xddf2);
    }

    #[test]
    fn a_partial_checksum_is_completed_and_a_wrong_place_refused() {
        // UDP from 10.0.0.1 to 10.0.0.2: ports 1 and 2, length 9, one byte of payload.
        let mut datagram = [0, 1, 0, 2, 0, 9, 0, 0, 0x61];
        let pseudo = pseudo_header(&[10, 0, 0, 1, 10, 0, 0, 2], 17, datagram.len());
        datagram[6..8].copy_from_slice(&fold(pseudo).to_be_bytes());
        assert!(complete_partial(&mut datagram, 0, 6));
        assert_eq!(fold(sum(&datagram, pseudo)), 0xffff);
        for (start, offset) in [(10, 0), (0, 8), (9, 0), (8, 0)] {
            assert!(!complete_partial(&mut datagram.clone(), start, offset), "{start} {offset}");
        }
    }
}
