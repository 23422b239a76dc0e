//! The internet checksum (RFC 1071), many bytes at a time, and the 16-bit words of network headers.

/// Bytes per round of [`sum`]: eight lanes of 32 bits, which the compiler turns into vector additions.
const STRIDE: usize = 32;

/// Adds the 16-bit big-endian words of `bytes` to `initial`.
///
/// An odd last byte counts as the high half of a word, so only the last of several parts may have an odd length.
/// The result is at most `initial` + 0xFFFF: sums of sums never overflow.
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    let mut lanes = [0_u64; STRIDE / 4];
    let mut strides = bytes.chunks_exact(STRIDE);
    for stride in &mut strides {
        for (lane, word) in lanes.iter_mut().zip(stride.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut words = strides.remainder().chunks_exact(2);
    for word in &mut words {
        total += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let &[last] = words.remainder() {
        total += u64::from(u16::from_ne_bytes([last, 0]));
    }
    // RFC 1071 section 2 (B): the sum of swapped words is the swapped sum.
    initial + u64::from(u16::from_be(fold(total)))
}

/// Folds a sum into 16 bits, not complemented.
pub fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xFFFF_FFFF);
    let sum = (sum >> 32) + (sum & 0xFFFF_FFFF);
    let sum = (sum >> 16) + (sum & 0xFFFF);
    let sum = (sum >> 16) + (sum & 0xFFFF);
    #[expect(clippy::cast_possible_truncation, reason = "a carry left over is added here, and there is none after it")]
    let folded = ((sum >> 16) + (sum & 0xFFFF)) as u16;
    folded
}

/// Sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1): `addresses` are the source and the
/// destination as they stand in the IPv4 or IPv6 header, `length` counts the transport header and the payload.
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    sum(addresses, u64::from(protocol) + length as u64)
}

/// Completes a checksum the kernel left partial: the field at `start + offset` holds the folded pseudo header sum, and
/// everything from `start` on is summed. `false` when the field is not inside the frame.
pub fn complete_partial(frame: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(field) = start.checked_add(offset) else { return false };
    if field.checked_add(2).is_none_or(|end| end > frame.len()) {
        return false;
    }
    let checksum = !fold(sum(&frame[start..], 0));
    set_word(frame, field, if offset == UDP_CHECKSUM { never_zero(checksum) } else { checksum });
    true
}

/// Offset of the checksum in a UDP header (RFC 768).
pub const UDP_CHECKSUM: usize = 6;
/// Offset of the checksum in a TCP header (RFC 9293).
pub const TCP_CHECKSUM: usize = 16;

/// UDP's checksum as it is sent: zero would mean that there is none (RFC 768).
pub fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xFFFF } else { checksum }
}

/// The big-endian word at `at`, which must be inside `bytes`.
pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes a big-endian word at `at`, which must be inside `bytes`.
pub fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// RFC 1071's definition, one word at a time.
    pub fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    /// Sebastiano Vigna's splitmix64: a small seeded generator for tests.
    pub struct Splitmix(pub u64);

    impl Splitmix {
        pub fn draw(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }

        /// A number below `bound`.
        pub fn below(&mut self, bound: usize) -> usize {
            usize::try_from(self.draw() % bound as u64).unwrap()
        }

        pub fn bytes(&mut self, len: usize) -> Vec<u8> {
            (0..len).map(|_| self.draw().to_be_bytes()[0]).collect()
        }
    }

    #[test]
    fn the_fast_sum_equals_the_naive_one_at_every_length() {
        let mut random = Splitmix(1);
        for len in 0..700 {
            let bytes = random.bytes(len);
            assert_eq!(fold(sum(&bytes, 0)), naive(&bytes), "{len} bytes");
        }
        let ones = vec![0xFF; 65_535];
        assert_eq!(fold(sum(&ones, 0)), naive(&ones));
    }

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7], 0)), 0xDDF2);
    }

    #[test]
    fn parts_of_even_length_may_be_summed_one_by_one() {
        let bytes = Splitmix(2).bytes(999);
        for cut in (0..999).step_by(2) {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(fold(sum(tail, sum(head, 0))), naive(&bytes));
        }
    }

    #[test]
    fn folding_adds_every_carry() {
        let table = [
            (0, 0),
            (0xFFFF, 0xFFFF),
            (0x1_0000, 1),
            (0x1_FFFF, 1),
            (0xFFFF_FFFF, 0xFFFF),
            (0x1_0000_0000, 1),
            (u64::MAX, 0xFFFF),
            (u64::MAX - 1, 0xFFFE),
            (0xFFFF_FFFF_0000_0001, 1),
            (0x1_FFFE_FFFF, 0xFFFF),
        ];
        for (sum, folded) in table {
            assert_eq!(fold(sum), folded, "{sum:#x}");
        }
    }

    #[test]
    fn the_pseudo_header_is_summed_as_if_it_were_written_out() {
        let addresses = Splitmix(3).bytes(32);
        let v4 = [&addresses[..8], &[0, 17, 0x12, 0x34]].concat();
        assert_eq!(fold(pseudo_header(&addresses[..8], 17, 0x1234)), naive(&v4));
        let v6 = [&addresses[..], &[0, 1, 0x23, 0x45, 0, 0, 0, 6]].concat();
        assert_eq!(fold(pseudo_header(&addresses, 6, 0x1_2345)), naive(&v6));
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        let mut frame = Splitmix(4).bytes(61);
        let pseudo = 0xBEEF;
        set_word(&mut frame, 20 + TCP_CHECKSUM, pseudo);
        let expected = !naive(&frame[20..]);
        let untouched = frame[..36].to_vec();
        assert!(complete_partial(&mut frame, 20, TCP_CHECKSUM));
        assert_eq!(word(&frame, 36), expected);
        assert_eq!(frame[..36], untouched);
    }

    #[test]
    fn only_udp_turns_a_zero_checksum_into_ffff() {
        for (offset, expected) in [(UDP_CHECKSUM, 0xFFFF), (TCP_CHECKSUM, 0)] {
            let mut frame = [0; 20];
            set_word(&mut frame, offset, 0x00FF);
            set_word(&mut frame, 0, 0xFF00);
            assert!(complete_partial(&mut frame, 0, offset));
            assert_eq!(word(&frame, offset), expected);
        }
    }

    #[test]
    fn a_checksum_field_outside_the_frame_is_refused() {
        for (start, offset) in [(20, 0), (19, 0), (0, 19), (14, 6), (usize::MAX, 1), (usize::MAX - 1, 0), (30, 0)] {
            assert!(!complete_partial(&mut [0; 20], start, offset), "{start} {offset}");
        }
        assert!(complete_partial(&mut [0; 20], 12, 6));
    }
}
