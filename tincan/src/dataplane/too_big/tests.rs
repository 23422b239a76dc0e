//! Errors byte by byte, and frames that get none.

use super::*;
use crate::dataplane::checksum::tests::{Splitmix, naive};

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOST4: [u8; 4] = [172, 16, 0, 1];
const PEER4: [u8; 4] = [172, 16, 0, 2];
const HOST6: [u8; 16] = [0xfd, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const PEER6: [u8; 16] = [0xfd, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// What fits, as bytes of a frame: packets of 1350 bytes.
const LONGEST: usize = 1364;

/// A frame of the host to the peer with a packet of `length` bytes that must not be fragmented.
fn frame4(protocol: u8, length: usize) -> Vec<u8> {
    let mut frame = [&PEER_MAC[..], &HOST_MAC, &IPV4].concat();
    let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
    frame.extend([0x45, 0, high, low, 0x12, 0x34, DONT_FRAGMENT, 0, 63, protocol, 0, 0]);
    frame.extend([HOST4, PEER4].concat());
    frame.extend((0..length - 20).map(|at| at.to_le_bytes()[0] | 0x80));
    frame
}

fn frame6(next_header: u8, length: usize) -> Vec<u8> {
    let mut frame = [&PEER_MAC[..], &HOST_MAC, &IPV6].concat();
    let [high, low] = u16::try_from(length - 40).unwrap().to_be_bytes();
    frame.extend([0x60, 0, 0, 0, high, low, next_header, 63]);
    frame.extend([HOST6, PEER6].concat());
    frame.extend((0..length - 40).map(|at| at.to_le_bytes()[0] | 0x80));
    frame
}

/// The answer to a frame that is no super-frame.
fn answer_to(frame: &[u8]) -> Option<Vec<u8>> {
    answer(frame, frame.len(), LONGEST)
}

fn pseudo6(answer: &[u8]) -> Vec<u8> {
    let packet = &answer[14..];
    [&packet[8..40], &[0, 0, packet[4], packet[5], 0, 0, 0, 58], &packet[40..]].concat()
}

#[test]
fn an_ipv4_sender_hears_that_fragmentation_is_needed() {
    let frame = frame4(17, 1400);
    let answer = answer_to(&frame).unwrap();
    assert_eq!(answer.len(), 14 + 576);
    assert_eq!(answer[..14], [&HOST_MAC[..], &PEER_MAC, &IPV4].concat());
    assert_eq!(answer[14..24], [0x45, 0xc0, 2, 64, 0, 0, 0x40, 0, 64, 1]);
    assert_eq!(answer[26..34], [PEER4, HOST4].concat());
    assert_eq!(answer[34..36], [3, 4]);
    assert_eq!(answer[38..42], [0, 0, 0x05, 0x46], "1350");
    assert_eq!(answer[42..], frame[14..14 + 548], "as much as fits, from the IP header on");
    assert_eq!((naive(&answer[14..34]), naive(&answer[34..])), (0xffff, 0xffff));
}

#[test]
fn an_ipv6_sender_hears_that_the_packet_is_too_big() {
    let frame = frame6(17, 1400);
    let answer = answer_to(&frame).unwrap();
    assert_eq!(answer.len(), 14 + 1280);
    assert_eq!(answer[..14], [&HOST_MAC[..], &PEER_MAC, &IPV6].concat());
    assert_eq!(answer[14..22], [0x60, 0, 0, 0, 0x04, 0xd8, 58, 64]);
    assert_eq!(answer[22..54], [PEER6, HOST6].concat());
    assert_eq!(answer[54..56], [2, 0]);
    assert_eq!(answer[58..62], [0, 0, 0x05, 0x46], "1350");
    assert_eq!(answer[62..], frame[14..14 + 1232]);
    assert_eq!(naive(&pseudo6(&answer)), 0xffff);
}

#[test]
fn short_packets_are_quoted_whole() {
    let frame = frame4(17, 90);
    let answer = answer(&frame, frame.len(), 14 + 80).unwrap();
    assert_eq!(answer[42..], frame[14..]);
    assert_eq!((word(&answer, 16), naive(&answer[34..])), (20 + 8 + 90, 0xffff));
}

#[test]
fn a_super_frame_is_judged_by_its_segments() {
    for frame in [frame4(6, 30_000), frame6(6, 30_000)] {
        assert!(answer(&frame, LONGEST, LONGEST).is_none());
        let answer = answer(&frame, LONGEST + 1, LONGEST).unwrap();
        assert!(answer.len() <= 14 + 1280);
    }
}

#[test]
fn no_mtu_below_that_of_the_protocol_is_announced() {
    let mtu4 = |answer: &[u8]| usize::from(word(answer, 40));
    let mtu6 = |answer: &[u8]| usize::from(word(answer, 60));
    for (longest, expected4, expected6) in [(0, 68, 1280), (81, 68, 1280), (83, 69, 1280), (1294, 1280, 1280)] {
        let (frame4, frame6) = (frame4(17, 1400), frame6(17, 1400));
        assert_eq!(mtu4(&answer(&frame4, 1414, longest).unwrap()), expected4);
        assert_eq!(mtu6(&answer(&frame6, 1414, longest).unwrap()), expected6);
    }
    // These go through whole or in pieces: no smaller one would come after the error.
    assert!(answer(&frame4(17, 68), 14 + 68, 0).is_none());
    assert!(answer(&frame6(17, 1280), 14 + 1280, 1200).is_none());
}

#[test]
fn the_longest_frame_leaves_room_for_the_outer_headers() {
    assert_eq!((longest_frame(1500, true), longest_frame(1500, false)), (1464, 1444));
    assert_eq!((longest_frame(20, true), longest_frame(55, false)), (0, 0));
}

/// A frame with other bytes at some places of its IP packet.
fn with(mut frame: Vec<u8>, changes: &[(usize, &[u8])]) -> Vec<u8> {
    for (at, bytes) in changes {
        frame[14 + at..14 + at + bytes.len()].copy_from_slice(bytes);
    }
    frame
}

#[test]
fn frames_whose_senders_may_not_or_need_not_be_told_are_carried() {
    let long4 = || frame4(17, 1400);
    let long6 = || frame6(17, 1400);
    let to_group = |mut frame: Vec<u8>| {
        frame[0] |= 1;
        frame
    };
    let silent = [
        ("it fits", frame4(17, 1350)),
        ("it fits", frame6(17, 1350)),
        ("fragments are allowed", with(long4(), &[(6, &[0])])),
        ("a later fragment", with(long4(), &[(7, &[1])])),
        ("an Ethernet group", to_group(long4())),
        ("an Ethernet group", to_group(long6())),
        ("multicast", with(long4(), &[(16, &[224, 0, 0, 5])])),
        ("broadcast", with(long4(), &[(16, &[255; 4])])),
        ("perhaps a subnet's broadcast", with(long4(), &[(19, &[255])])),
        ("from nobody", with(long4(), &[(12, &[0; 4])])),
        ("from the loopback", with(long4(), &[(12, &[127])])),
        ("from a group", with(long4(), &[(12, &[239])])),
        ("another version", with(long4(), &[(0, &[0x55])])),
        ("a short header length", with(long4(), &[(0, &[0x44])])),
        ("multicast", with(long6(), &[(24, &[0xff, 2])])),
        ("from nobody", with(long6(), &[(8, &[0; 16])])),
        ("from a group", with(long6(), &[(8, &[0xff])])),
        ("another version", with(long6(), &[(0, &[0x40])])),
        ("a later fragment", with(frame6(44, 1400), &[(40, &[17, 0, 0, 8])])),
        ("a later fragment behind options", with(frame6(0, 1400), &[(40, &[44, 1, 0, 0]), (56, &[17, 0, 5, 0])])),
        ("an error behind options", with(frame6(60, 1400), &[(40, &[58, 0, 0, 0]), (48, &[1])])),
        ("an error behind authentication", with(frame6(51, 1400), &[(40, &[58, 4, 0, 0]), (64, &[3])])),
        ("options beyond the end", with(frame6(0, 1400), &[(40, &[0, 255, 0, 0])])),
        ("ARP", [&[2; 12][..], &[8, 6], &[1; 1400]].concat()),
    ];
    for (why, frame) in silent {
        assert_eq!(answer_to(&frame), None, "{why}: {:02x?}", &frame[..60]);
    }
    for kind in [3, 4, 5, 11, 12] {
        assert_eq!(answer_to(&with(frame4(1, 1400), &[(20, &[kind])])), None, "ICMP type {kind}");
    }
    for kind in [1, 2, 3, 4, 127, 137] {
        assert_eq!(answer_to(&with(frame6(58, 1400), &[(40, &[kind])])), None, "ICMPv6 type {kind}");
    }
}

#[test]
fn pings_first_fragments_and_packets_with_options_are_answered() {
    let told = [
        with(frame4(1, 1400), &[(20, &[8])]),
        with(frame4(17, 1400), &[(6, &[DONT_FRAGMENT | 0x20])]),
        with(frame4(1, 1400), &[(0, &[0x4f]), (60, &[8])]),
        with(frame6(58, 1400), &[(40, &[128])]),
        with(frame6(44, 1400), &[(40, &[17, 0, 0, 1])]),
        with(frame6(0, 1400), &[(40, &[43, 0, 0, 0]), (48, &[58, 1, 0, 0]), (64, &[128])]),
    ];
    for frame in told {
        assert!(answer_to(&frame).is_some(), "{:02x?}", &frame[..80]);
    }
}

#[test]
fn damaged_frames_get_well_formed_answers_or_none() {
    let mut random = Splitmix(0x50_4d_54_55);
    let originals = [frame4(1, 1400), frame4(17, 1400), frame6(58, 1400), frame6(0, 1400), frame6(44, 1400)];
    let mut answered = 0;
    for _ in 0..100_000 {
        let mut frame = originals[random.below(originals.len())].clone();
        for _ in 0..random.below(4) {
            let at = random.below(80);
            frame[at] = random.bytes(1)[0];
        }
        if random.below(4) == 0 {
            frame.truncate(random.below(frame.len()));
        }
        let length = if random.below(2) == 0 { frame.len() } else { random.below(1 << 17) };
        let Some(answer) = answer(&frame, length, random.below(2000)) else { continue };
        answered += 1;
        if answer[12..14] == IPV4 {
            assert!(answer.len() <= 14 + 576 && usize::from(word(&answer, 16)) == answer.len() - 14);
            assert_eq!((naive(&answer[14..34]), naive(&answer[34..])), (0xffff, 0xffff));
        } else {
            assert!(answer.len() <= 14 + 1280 && usize::from(word(&answer, 18)) == answer.len() - 54);
            assert_eq!(naive(&pseudo6(&answer)), 0xffff);
        }
    }
    assert!(answered > 10_000, "{answered}");
}
