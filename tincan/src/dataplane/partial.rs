//! Inner checksums that the peer's kernel left to a network device and no device wrote, because the datagram never left
//! the machine: hosts that are namespaces, containers or virtual machines of one host.
//!
//! Such a field holds the sum of the pseudo header alone. A complete checksum of the same value comes out of the
//! completion as it was, so nothing has to be known of the peer.

use tincan_common::inner::{self, IPV4, IPV4_LEN, IPV6, IPV6_LEN, TCP, UDP};

use crate::dataplane::checksum::{TCP_CHECKSUM, UDP_CHECKSUM, complete_partial, fold, pseudo_header, word};

const ETHERNET_LEN: usize = 14;

/// Completes the TCP or UDP checksum of a frame where it is the pseudo header's sum; whether it did.
pub fn complete(frame: &mut [u8]) -> bool {
    let Some((start, protocol, end, pseudo)) = transport(frame) else { return false };
    let offset = if protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    let packet = &mut frame[..end];
    if start + offset + 2 > end || word(packet, start + offset) != pseudo {
        return false;
    }
    complete_partial(packet, start, offset)
}

/// Where the transport header begins, its protocol, where the packet ends, and the sum of its pseudo header.
fn transport(frame: &[u8]) -> Option<(usize, u8, usize, u16)> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let (addresses, protocol, header, length) = match [ethernet[12], ethernet[13]] {
        IPV4 => {
            let ip = inner::ipv4(packet.first_chunk()?).filter(|ip| !ip.is_fragment)?;
            (&packet[12..IPV4_LEN], ip.protocol, IPV4_LEN, usize::from(ip.total_len).checked_sub(IPV4_LEN)?)
        }
        IPV6 => {
            let ip = inner::ipv6(packet.first_chunk()?)?;
            (&packet[8..IPV6_LEN], ip.next_header, IPV6_LEN, usize::from(ip.payload_len))
        }
        _ => return None,
    };
    let start = ETHERNET_LEN + header;
    let end = start + length;
    let is_known = protocol == TCP || protocol == UDP;
    (is_known && end <= frame.len()).then(|| (start, protocol, end, fold(pseudo_header(addresses, protocol, length))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::checksum::{set_word, sum, tests::Splitmix};

    /// A frame of either family with this transport header and payload, its checksum field the pseudo header's sum.
    fn partial(is_ipv6: bool, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        let length = u16::try_from(transport.len()).unwrap();
        if is_ipv6 {
            frame.extend(IPV6);
            let [high, low] = length.to_be_bytes();
            frame.extend([0x60, 0, 0, 0, high, low, protocol, 64]);
            frame.extend([0xfd; 32]);
        } else {
            frame.extend(IPV4);
            let [high, low] = (length + 20).to_be_bytes();
            frame.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        frame.extend(transport);
        let (start, _, _, pseudo) = super::transport(&frame).unwrap();
        let offset = if protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
        set_word(&mut frame, start + offset, pseudo);
        frame
    }

    /// Whether pseudo header and packet sum to all ones.
    fn is_right(frame: &[u8]) -> bool {
        let (start, _, end, pseudo) = super::transport(frame).unwrap();
        fold(sum(&frame[start..end], u64::from(pseudo))) == 0xffff
    }

    #[test]
    fn partial_checksums_are_completed_and_complete_ones_stay() {
        let mut random = Splitmix(7);
        for round in 0..2000 {
            let transport = random.bytes(20 + round % 1200);
            for (is_ipv6, protocol) in [(false, TCP), (false, UDP), (true, TCP), (true, UDP)] {
                let mut frame = partial(is_ipv6, protocol, &transport);
                frame.extend(random.bytes(round % 7));
                assert!(complete(&mut frame) && is_right(&frame), "round {round}");
                let completed = frame.clone();
                complete(&mut frame);
                assert_eq!(frame, completed, "round {round}");
            }
        }
    }

    #[test]
    fn other_frames_are_left_alone() {
        let whole = partial(false, TCP, &[7; 40]);
        let mut wrong = whole.clone();
        wrong[14 + 20 + TCP_CHECKSUM] ^= 1;
        let mut fragment = whole.clone();
        fragment[14 + 6] = 0x20;
        let mut icmp = whole.clone();
        icmp[14 + 9] = 1;
        for mut frame in [wrong, fragment, icmp, whole[..50].to_vec(), whole[..20].to_vec(), Vec::new()] {
            let before = frame.clone();
            assert!(!complete(&mut frame));
            assert_eq!(frame, before);
        }
    }
}
