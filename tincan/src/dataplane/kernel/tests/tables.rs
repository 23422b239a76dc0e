//! Rows of frame in, verdict, frame out; over IPv4 and IPv6.

use aya::programs::{TestRun, TestRunOptions};
use tincan_common::kernel_verdict::KernelVerdict as V;

use super::frames::{
    OWN4, OWN6, PEER4, PEER6, STRANGER4, STRANGER6, datagram, ethernet, frame4, frame6, tagged, tcp, udp_packet,
};
use super::*;

/// Offsets in `struct __sk_buff` (`linux/bpf.h`) and its size up to there.
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;
const SKB_LEN: usize = 192;

/// Runs a super-frame of segments with `segment` bytes of payload.
fn run_super(engine: &mut KernelEngine, name: &str, frame: &[u8], segment: u32, frames: u32) -> (u32, Vec<u8>) {
    let mut context = [0; SKB_LEN];
    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&segment.to_ne_bytes());
    context[GSO_SEGS..GSO_SEGS + 4].copy_from_slice(&frames.to_ne_bytes());
    let mut out = vec![0; frame.len() + 256];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    options.ctx_in = Some(&context);
    let result = program(&mut engine.ebpf, name).unwrap().test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

fn expect(engine: &mut KernelEngine, name: &str, row: &str, frame: &[u8], expected: Option<V>) -> Vec<u8> {
    let before = expected.map(|expected| verdict(engine, expected));
    let all_before: u64 = engine.verdicts().unwrap().iter().map(|(_, count)| count).sum();
    let (action, out) = run(engine, name, frame);
    let forwarded = matches!(expected, Some(V::Sent | V::Delivered));
    assert_eq!(action, if forwarded { REDIRECT } else { PASS_ON }, "{row}: {:?}", engine.verdicts());
    if let (Some(expected), Some(before)) = (expected, before) {
        assert_eq!(verdict(engine, expected), before + 1, "{row}: {:?}", engine.verdicts());
    }
    let all_after: u64 = engine.verdicts().unwrap().iter().map(|(_, count)| count).sum();
    assert_eq!(all_after - all_before, u64::from(expected.is_some()), "{row}");
    if !forwarded {
        assert_eq!(out, frame, "{row}: a frame that goes up is untouched");
    }
    out
}

/// Everything behind the outer Ethernet header's addresses.
fn comparable(mut packet: Vec<u8>) -> Vec<u8> {
    packet.drain(..12);
    packet
}

/// What the wire should carry of a frame that was sent: "don't fragment", so no identification.
fn wire(underlay: Underlay, frame: &[u8]) -> Vec<u8> {
    let mut packet = udp_packet(underlay.own, underlay.peer, [OWN_PORT, PEER_PORT], &tagged(SEND_TAG, frame));
    if underlay.own.is_ipv4() {
        let ip: &mut [u8; 20] = packet[14..].first_chunk_mut().unwrap();
        ip[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
        ip[10..12].fill(0);
        let checksum = tincan_common::inner::ipv4_checksum(ip);
        ip[10..12].copy_from_slice(&checksum);
    }
    packet
}

#[test]
fn frames_of_the_tap_are_sent_or_go_up() {
    let big = usize::try_from(MAX_FRAME).unwrap() - 14 - 20;
    let mut with_options = frame4(OWN4, PEER4, 17, &[1; 40]);
    with_options[14] = 0x46;
    let mut version = frame6(OWN6, PEER6, 17, &[1; 40]);
    version[14] = 0x45;
    let mut fragment = frame4(OWN4, PEER4, 17, &[1; 40]);
    fragment[20] = 0x20;
    let rows: Vec<(&str, Vec<u8>, V)> = vec![
        ("UDP over IPv4", frame4(OWN4, PEER4, 17, &[1; 40]), V::Sent),
        ("an empty packet over IPv4", frame4(OWN4, PEER4, 1, &[]), V::Sent),
        ("the longest over IPv4", frame4(OWN4, PEER4, 17, &vec![2; big]), V::Sent),
        ("TCP over IPv4", frame4(OWN4, PEER4, 6, &tcp(100)), V::Sent),
        ("a fragment", fragment, V::Sent),
        ("from a host behind this one", frame4(STRANGER4, PEER4, 17, &[1; 40]), V::Sent),
        ("UDP over IPv6", frame6(OWN6, PEER6, 17, &[1; 40]), V::Sent),
        ("TCP over IPv6", frame6(OWN6, PEER6, 6, &tcp(100)), V::Sent),
        ("an IPv6 fragment", frame6(OWN6, PEER6, 44, &[1; 40]), V::Sent),
        ("one byte too long over IPv4", frame4(OWN4, PEER4, 17, &vec![2; big + 1]), V::UpTooLong),
        ("one byte too long over IPv6", frame6(OWN6, PEER6, 17, &vec![2; big - 20 + 1]), V::UpTooLong),
        ("nobody's IPv4 address", frame4(OWN4, STRANGER4, 17, &[1; 40]), V::UpUnrouted),
        ("nobody's IPv6 address", frame6(OWN6, STRANGER6, 17, &[1; 40]), V::UpUnrouted),
        ("the subnet's broadcast", frame4(OWN4, [172, 16, 0, 255], 17, &[1; 40]), V::UpUnrouted),
        ("the limited broadcast", frame4(OWN4, [255; 4], 17, &[1; 40]), V::UpUnrouted),
        ("IPv4 multicast", frame4(OWN4, [239, 1, 2, 3], 17, &[1; 40]), V::UpUnrouted),
        ("IPv6 multicast", frame6(OWN6, [0xff; 16], 17, &[1; 40]), V::UpUnrouted),
        ("ARP", ethernet([0x08, 0x06], &[0; 28]), V::UpUnrouted),
        ("a VLAN tag in the frame", ethernet([0x81, 0x00], &[0; 60]), V::UpUnrouted),
        ("LLDP", ethernet([0x88, 0xcc], &[0; 60]), V::UpUnrouted),
        ("IPv4 with options", with_options, V::UpUnrouted),
        ("IPv4 under the ethertype of IPv6", version, V::UpUnrouted),
    ];
    for underlay in underlays() {
        let mut engine = linked(underlay);
        for (row, frame, expected) in &rows {
            let out = expect(&mut engine, TAP_EGRESS, &format!("{row}, {underlay:?}"), frame, Some(*expected));
            if *expected == V::Sent {
                assert_eq!(comparable(out), comparable(wire(underlay, frame)), "{row}");
            }
        }
        let sent = rows.iter().filter(|(_, _, expected)| *expected == V::Sent);
        let (frames, bytes) = sent.fold((0, 0), |(count, sum), (_, frame, _)| (count + 1, sum + frame.len() as u64));
        assert_eq!(engine.traffic(SLOT).unwrap(), [frames, bytes, 0, 0]);
    }
}

/// A test run has no segmentation type, so the kernel lets no super-frame through: `tests/tests/` sends real ones.
#[test]
fn super_frames_that_do_not_fit_or_are_not_tcp_go_up() {
    for underlay in underlays() {
        let mut engine = linked(underlay);
        let rows = [
            ("segments one byte too long over IPv4", frame4(OWN4, PEER4, 6, &tcp(2800)), 1411, V::UpTooLong),
            ("segments one byte too long over IPv6", frame6(OWN6, PEER6, 6, &tcp(2800)), 1391, V::UpTooLong),
            ("UDP over IPv4", frame4(OWN4, PEER4, 17, &[1; 2800]), 1000, V::UpOffload),
            ("UDP over IPv6", frame6(OWN6, PEER6, 17, &[1; 2800]), 1000, V::UpOffload),
        ];
        for (row, frame, segment, expected) in rows {
            let before = verdict(&engine, expected);
            let (action, out) = run_super(&mut engine, TAP_EGRESS, &frame, segment, 2);
            assert!(action == PASS_ON && out == frame, "{row}");
            assert_eq!(verdict(&engine, expected), before + 1, "{row}");
        }
    }
}

#[test]
fn datagrams_of_the_uplink_are_delivered_or_go_up() {
    let good4 = frame4(PEER4, OWN4, 17, &[1; 40]);
    let good6 = frame6(PEER6, OWN6, 17, &[1; 40]);
    let mut group = good4.clone();
    group[0] |= 1;
    let mut with_options = good4.clone();
    with_options[14] = 0x46;
    let inside: Vec<(&str, Vec<u8>, V)> = vec![
        ("UDP over IPv4", tagged(RECEIVE_TAG, &good4), V::Delivered),
        ("TCP over IPv4", tagged(RECEIVE_TAG, &frame4(PEER4, OWN4, 6, &tcp(900))), V::Delivered),
        ("an empty packet over IPv4", tagged(RECEIVE_TAG, &frame4(PEER4, OWN4, 1, &[])), V::Delivered),
        ("to a host behind this one", tagged(RECEIVE_TAG, &frame4(PEER4, STRANGER4, 17, &[1; 9])), V::Delivered),
        ("UDP over IPv6", tagged(RECEIVE_TAG, &good6), V::Delivered),
        ("another tag", tagged(SEND_TAG, &good4), V::UpTag),
        ("a stranger's IPv4 address", tagged(RECEIVE_TAG, &frame4(STRANGER4, OWN4, 17, &[1; 40])), V::UpSource),
        ("our own IPv4 address", tagged(RECEIVE_TAG, &frame4(OWN4, OWN4, 17, &[1; 40])), V::UpSource),
        ("a stranger's IPv6 address", tagged(RECEIVE_TAG, &frame6(STRANGER6, OWN6, 17, &[1; 40])), V::UpSource),
        ("our own IPv6 address", tagged(RECEIVE_TAG, &frame6(OWN6, OWN6, 17, &[1; 40])), V::UpSource),
        ("a group", tagged(RECEIVE_TAG, &group), V::UpSource),
        ("ARP", tagged(RECEIVE_TAG, &ethernet([8, 6], &[0; 28])), V::UpSource),
        ("a VLAN tag", tagged(RECEIVE_TAG, &ethernet([0x81, 0], &[0; 60])), V::UpSource),
        ("IPv4 with options", tagged(RECEIVE_TAG, &with_options), V::UpShape),
        ("a byte behind the packet", tagged(RECEIVE_TAG, &[&good4[..], &[0]].concat()), V::UpShape),
        ("a packet cut short", tagged(RECEIVE_TAG, &good4[..good4.len() - 1]), V::UpShape),
        ("two datagrams in one", [tagged(RECEIVE_TAG, &good4), tagged(RECEIVE_TAG, &good4)].concat(), V::UpShape),
        ("IPv6 cut in its header", tagged(RECEIVE_TAG, &good6[..50]), V::UpShape),
        ("IPv4 cut in its header", tagged(RECEIVE_TAG, &good4[..33]), V::UpControl),
        ("a reserved bit", [&[8, 0, 0, 1, 0x11, 0x22, 0x33, 0], &good4[..]].concat(), V::UpControl),
        ("a STUN request", [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42], &[0; 60][..]].concat(), V::UpControl),
        ("a DTLS record", vec![22; 100], V::UpControl),
        ("a TURN channel", vec![0x40; 100], V::UpControl),
        ("nothing", vec![], V::UpControl),
    ];
    for underlay in underlays() {
        let mut engine = linked(underlay);
        let mut delivered = [0, 0];
        for (row, payload, expected) in &inside {
            let packet = datagram(underlay, payload);
            let row = format!("{row}, {underlay:?}");
            let out = expect(&mut engine, UPLINK_INGRESS, &row, &packet, Some(*expected));
            if *expected == V::Delivered {
                let frame = &payload[8..];
                delivered = [delivered[0] + 1, delivered[1] + frame.len() as u64];
                assert_eq!(out[..6], TAP_MAC, "{row}");
                assert_eq!(out[6..], frame[6..], "{row}");
            }
        }
        assert_eq!(engine.traffic(SLOT).unwrap(), [0, 0, delivered[0], delivered[1]]);
    }
}

#[test]
fn only_the_links_own_flow_is_taken() {
    let payload = tagged(RECEIVE_TAG, &frame4(PEER4, OWN4, 17, &[1; 40]));
    for (underlay, stranger) in underlays().into_iter().zip(["192.0.2.9", "2001:db8::9"]) {
        let stranger: std::net::IpAddr = stranger.parse().unwrap();
        let Underlay { own, peer } = underlay;
        let rows = [
            ("another host", udp_packet(stranger, own, [PEER_PORT, OWN_PORT], &payload), Some(V::UpUnknownFlow)),
            ("another port of the peer", udp_packet(peer, own, [9, OWN_PORT], &payload), Some(V::UpUnknownFlow)),
            ("to another host", udp_packet(peer, stranger, [PEER_PORT, OWN_PORT], &payload), Some(V::UpUnknownFlow)),
            ("to another port", udp_packet(peer, own, [PEER_PORT, 9], &payload), None),
            ("ARP", ethernet([8, 6], &[0; 100]), None),
        ];
        let mut engine = linked(underlay);
        for (row, packet, expected) in rows {
            expect(&mut engine, UPLINK_INGRESS, row, &packet, expected);
        }
        let mut tcp = datagram(underlay, &payload);
        let protocol = if own.is_ipv4() { 14 + 9 } else { 14 + 6 };
        tcp[protocol] = 6;
        expect(&mut engine, UPLINK_INGRESS, "not UDP", &tcp, None);
        if own.is_ipv4() {
            for (flags, offset) in [(0x20, 0), (0, 1)] {
                let mut fragment = datagram(underlay, &payload);
                (fragment[20], fragment[21]) = (flags, offset);
                expect(&mut engine, UPLINK_INGRESS, "an outer fragment", &fragment, None);
            }
            let mut options = datagram(underlay, &payload);
            options[14] = 0x46;
            expect(&mut engine, UPLINK_INGRESS, "outer options", &options, None);
        }
    }
}

#[test]
fn every_cut_of_a_datagram_goes_up() {
    for underlay in underlays() {
        let mut engine = linked(underlay);
        let whole = datagram(underlay, &tagged(RECEIVE_TAG, &frame6(PEER6, OWN6, 17, &[1; 40])));
        // The kernel runs nothing shorter than the headers it is told of.
        let shortest = if underlay.own.is_ipv4() { 34 } else { 54 };
        for length in shortest..whole.len() {
            let (action, out) = run(&mut engine, UPLINK_INGRESS, &whole[..length]);
            assert_eq!((action, &out[..]), (PASS_ON, &whole[..length]), "{length} bytes over {underlay:?}");
        }
        assert_eq!(run(&mut engine, UPLINK_INGRESS, &whole).0, REDIRECT);
    }
}

#[test]
fn merged_datagrams_that_are_not_tcp_go_up() {
    for underlay in underlays() {
        let mut engine = linked(underlay);
        let packet = datagram(underlay, &tagged(RECEIVE_TAG, &frame4(PEER4, OWN4, 17, &[1; 2800])));
        let (action, out) = run_super(&mut engine, UPLINK_INGRESS, &packet, 1400, 2);
        assert!(action == PASS_ON && out == packet);
        assert_eq!(verdict(&engine, V::UpShape), 1);
    }
}

#[test]
fn without_settings_everything_passes() {
    let mut engine = engine();
    let frame = frame4(OWN4, PEER4, 17, &[1; 40]);
    expect(&mut engine, TAP_EGRESS, "from the TAP", &frame, Some(V::UpUnrouted));
    expect(&mut engine, UPLINK_INGRESS, "from the uplink", &frame, None);
}
