//! The plain port's translation, and the guard of the helper devices: rows of packet in and packet out.

use std::net::IpAddr;

use aya::programs::{TestRun, TestRunOptions};
use tincan_common::kernel_verdict::KernelVerdict as V;

use super::frames::{OWN4, PEER4, datagram, frame4, frame6, tagged, tcp, udp_packet};
use super::*;

/// The port of user space's socket.
pub const SOCKET_PORT: u16 = 51_003;
pub const MARK: u32 = 0x1234_5679;
/// `TC_ACT_SHOT`.
pub const DROP: u32 = 2;
/// Offsets in `struct __sk_buff` (`linux/bpf.h`), and the structure's size.
const SKB_MARK: usize = 8;
const SKB_GSO_SEGS: usize = 164;
const SKB_GSO_SIZE: usize = 176;
const SKB_LEN: usize = 192;
/// A STUN header's beginning, and a payload of odd length.
const STUN: &[u8] = &[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42, 7];

fn translating(underlay: Underlay) -> KernelEngine {
    let mut engine = linked(underlay);
    let settings = Settings {
        tap_index: TAP,
        tap_mac: TAP_MAC,
        plain_port: OWN_PORT.to_be_bytes(),
        socket_port: SOCKET_PORT.to_be_bytes(),
        mark: MARK,
        router_mask: [255; 4],
        own_ip4: OWN4,
        own_ip6: super::frames::OWN6,
    };
    engine.configure(&settings).unwrap();
    engine.set_own_addresses(&BTreeSet::from([address(underlay.own)])).unwrap();
    engine
}

/// Runs a program over a frame with a mark: what it returns, the frame and the mark afterwards.
fn run_marked(engine: &mut KernelEngine, name: &str, frame: &[u8], mark: u32) -> (u32, Vec<u8>, u32) {
    run_with(engine, name, frame, &[(SKB_MARK, mark)])
}

fn run_with(engine: &mut KernelEngine, name: &str, frame: &[u8], fields: &[(usize, u32)]) -> (u32, Vec<u8>, u32) {
    let mut context = [0; SKB_LEN];
    for (offset, value) in fields {
        context[*offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let (mut context_out, mut out) = ([0; SKB_LEN], vec![0; frame.len() + 256]);
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    options.ctx_in = Some(&context);
    options.ctx_out = Some(&mut context_out);
    let result = program(&mut engine.ebpf, name).unwrap().test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    let mark = u32::from_ne_bytes(context_out[SKB_MARK..SKB_MARK + 4].try_into().unwrap());
    (result.return_value, out, mark)
}

/// A packet with a right UDP checksum (RFC 768, RFC 8200 section 8.1).
fn summed(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = udp_packet(from.0, to.0, [from.1, to.1], payload);
    let udp_at = if from.0.is_ipv4() { 34 } else { 54 };
    let addresses = if from.0.is_ipv4() { 26..34 } else { 22..54 };
    let udp_len = u32::try_from(packet.len() - udp_at).unwrap();
    let words =
        [packet[addresses].to_vec(), udp_len.to_be_bytes().to_vec(), vec![0, 0, 0, 17], packet[udp_at..].to_vec()];
    let mut sum: u32 = 0;
    for pair in words.concat().chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!((folded & 0xffff) + (folded >> 16))).to_be_bytes();
    packet[udp_at + 6..udp_at + 8].copy_from_slice(&[high, low]);
    packet
}

/// The packet as the first fragment of a longer one.
fn first_fragment(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[12..14] == [0x08, 0x00] {
        packet[20] = 0x20;
        return packet;
    }
    packet[20] = 44;
    [&packet[..54], &[17, 0, 0, 1, 1, 2, 3, 4], &packet[54..]].concat()
}

fn later_fragment(packet: &[u8]) -> Vec<u8> {
    let mut packet = first_fragment(packet);
    if packet[12..14] == [0x08, 0x00] {
        packet[21] = 9;
    } else {
        packet[57] = 9;
    }
    packet
}

#[test]
fn what_is_for_the_socket_gets_its_port_and_a_right_checksum() {
    for underlay in underlays() {
        let mut engine = translating(underlay);
        let Underlay { own, peer } = underlay;
        let packet = |port, payload| summed((peer, PEER_PORT), (own, port), payload);
        let unsummed = |port| udp_packet(peer, own, [PEER_PORT, port], STUN);
        let frame = tagged(RECEIVE_TAG, &[1; 60]);
        let rows = [
            ("STUN", packet(OWN_PORT, STUN), packet(SOCKET_PORT, STUN)),
            ("nothing", packet(OWN_PORT, &[]), packet(SOCKET_PORT, &[])),
            ("without checksum", unsummed(OWN_PORT), unsummed(SOCKET_PORT)),
            ("a frame nobody took", packet(OWN_PORT, &frame), packet(SOCKET_PORT, &frame)),
            ("a first fragment", first_fragment(&packet(OWN_PORT, STUN)), first_fragment(&packet(SOCKET_PORT, STUN))),
        ];
        for (row, before, after) in rows {
            let (action, out, mark) = run_marked(&mut engine, PORT_INGRESS, &before, 77);
            assert_eq!((action, mark), (PASS_ON, 77), "{row}");
            assert_eq!(out, after, "{row}, {underlay:?}");
        }
        let mut wrong_way = packet(OWN_PORT, STUN);
        wrong_way[12..14].copy_from_slice(&[0x86, 0xde]);
        let untouched = [
            ("to another port", packet(OWN_PORT + 1, STUN)),
            ("from our port number", summed((peer, OWN_PORT), (own, PEER_PORT), STUN)),
            ("routed through", summed((own, PEER_PORT), (peer, OWN_PORT), STUN)),
            ("a later fragment", later_fragment(&packet(OWN_PORT, STUN))),
            ("another ethertype", wrong_way),
            ("TCP over IPv4", frame4([192, 0, 2, 2], [192, 0, 2, 1], 6, &packet(OWN_PORT, STUN)[34..])),
            ("TCP over IPv6", frame6([1; 16], [2; 16], 6, &packet(OWN_PORT, STUN)[34..])),
        ];
        for (row, before) in untouched {
            assert_eq!(run_marked(&mut engine, PORT_INGRESS, &before, 0), (PASS_ON, before, 0), "{row}, {underlay:?}");
        }
        let checked = packet(OWN_PORT, &frame);
        assert_eq!(run_marked(&mut engine, PORT_INGRESS, &checked, MARK), (PASS_ON, checked, MARK), "for the device");
    }
}

#[test]
fn what_the_socket_sends_gets_the_port_that_peers_know() {
    for underlay in underlays() {
        let mut engine = translating(underlay);
        let Underlay { own, peer } = underlay;
        let packet = |port| summed((own, port), (peer, PEER_PORT), STUN);
        for (row, before, after) in [
            ("STUN", packet(SOCKET_PORT), packet(OWN_PORT)),
            ("a first fragment", first_fragment(&packet(SOCKET_PORT)), first_fragment(&packet(OWN_PORT))),
        ] {
            assert_eq!(run_marked(&mut engine, PORT_EGRESS, &before, 0), (PASS_ON, after, 0), "{row}, {underlay:?}");
        }
        for (row, before) in [
            ("of the kernel engine", packet(OWN_PORT)),
            ("of another socket", packet(SOCKET_PORT + 1)),
            ("routed through", summed((peer, SOCKET_PORT), (own, PEER_PORT), STUN)),
            ("a later fragment", later_fragment(&packet(SOCKET_PORT))),
        ] {
            assert_eq!(run_marked(&mut engine, PORT_EGRESS, &before, 0), (PASS_ON, before, 0), "{row}, {underlay:?}");
        }
    }
}

#[test]
fn cut_packets_pass_the_translation_untouched() {
    for underlay in underlays() {
        let mut engine = translating(underlay);
        let packet = first_fragment(&summed((underlay.peer, PEER_PORT), (underlay.own, OWN_PORT), STUN));
        let shortest = if underlay.own.is_ipv4() { 34 } else { 54 };
        let udp_end = packet.len() - STUN.len();
        for length in shortest..udp_end {
            let cut = packet[..length].to_vec();
            assert_eq!(run_marked(&mut engine, PORT_INGRESS, &cut, 0), (PASS_ON, cut, 0), "{length} bytes");
        }
    }
}

#[test]
fn with_one_port_number_nothing_is_translated() {
    for underlay in underlays() {
        let mut engine = linked(underlay);
        engine.set_own_addresses(&BTreeSet::from([address(underlay.own)])).unwrap();
        let packet = summed((underlay.peer, PEER_PORT), (underlay.own, OWN_PORT), STUN);
        assert_eq!(run_marked(&mut engine, PORT_INGRESS, &packet, 0), (PASS_ON, packet, 0));
    }
}

#[test]
fn only_what_was_checked_passes_the_guard() {
    let [underlay, _] = underlays();
    let mut engine = translating(underlay);
    let frame = frame4(PEER4, OWN4, 17, &[1; 40]);
    for mark in [0, 1, MARK ^ 1] {
        let refused = verdict(&engine, V::Refused);
        assert_eq!(run_marked(&mut engine, CHECKED_INGRESS, &frame, mark).0, DROP, "mark {mark}");
        assert_eq!(verdict(&engine, V::Refused), refused + 1);
    }
    let (action, out, mark) = run_marked(&mut engine, CHECKED_INGRESS, &frame, MARK);
    assert_eq!((action, mark, verdict(&engine, V::Delivered)), (REDIRECT, 0, 1));
    assert_eq!(out, [&TAP_MAC[..], &frame[6..]].concat());

    let mut closed = linked(underlay);
    assert_eq!(run_marked(&mut closed, CHECKED_INGRESS, &frame, 0).0, DROP, "without a mark in the settings");
    assert_eq!(run_marked(&mut super::engine(), CHECKED_INGRESS, &frame, MARK).0, DROP, "without settings");
}

#[test]
fn checked_super_frames_other_than_tcp_are_left_to_the_vxlan_device() {
    for underlay in underlays() {
        let mut engine = translating(underlay);
        let udp = [&[0x10, 0, 0x20, 0, 0x03, 0xf0, 0, 0][..], &[1; 1000]].concat();
        let packet = datagram(underlay, &tagged(RECEIVE_TAG, &frame4(PEER4, OWN4, 17, &udp)));
        let fields = [(SKB_GSO_SIZE, 500), (SKB_GSO_SEGS, 2)];
        assert_eq!(run_with(&mut engine, UPLINK_INGRESS, &packet, &fields), (PASS_ON, packet.clone(), MARK));
        assert_eq!(verdict(&engine, V::HandedOver), 1);
        let strange = datagram(underlay, &tagged(RECEIVE_TAG, &frame4(OWN4, OWN4, 17, &udp)));
        assert_eq!(run_with(&mut engine, UPLINK_INGRESS, &strange, &fields), (PASS_ON, strange, 0));
        assert_eq!((verdict(&engine, V::HandedOver), verdict(&engine, V::UpSource)), (1, 1));
    }
}

#[test]
fn single_tcp_frames_take_the_way_through_the_merging_veth() {
    const MERGER: u32 = 4444;
    for underlay in underlays() {
        let mut engine = translating(underlay);
        let (local, remote) = (address(underlay.own), address(underlay.peer));
        let (local_port, remote_port) = (OWN_PORT.to_be_bytes(), PEER_PORT.to_be_bytes());
        let receiver = Receiver { slot: SLOT, tag: RECEIVE_TAG, merger: MERGER, ip4: PEER4, ip6: super::frames::PEER6 };
        engine.set_flow(&Flow { remote, local, remote_port, local_port }, &receiver).unwrap();
        let frame = frame4(PEER4, OWN4, 6, &tcp(100));
        let packet = datagram(underlay, &tagged(RECEIVE_TAG, &frame));
        let (action, out, mark) = run_with(&mut engine, UPLINK_INGRESS, &packet, &[]);
        assert_eq!((action, mark, verdict(&engine, V::HandedOver)), (REDIRECT, MARK, 1));
        assert_eq!(out, [&TAP_MAC[..], &frame[6..]].concat());
        let udp = datagram(underlay, &tagged(RECEIVE_TAG, &frame4(PEER4, OWN4, 17, &[1; 40])));
        let (_, _, mark) = run_with(&mut engine, UPLINK_INGRESS, &udp, &[]);
        assert_eq!((mark, verdict(&engine, V::Delivered)), (0, 1), "UDP needs no merging");
    }
}

#[test]
fn own_addresses_are_replaced_and_bounded() {
    let mut engine = engine();
    let many: BTreeSet<Address> =
        (0..300_u16).map(|number| [number.to_be_bytes(); 8].concat().try_into().unwrap()).collect();
    engine.set_own_addresses(&many).unwrap();
    assert_eq!(engine.own_addresses.keys().count(), MAX_OWN_ADDRESSES as usize);
    let one = BTreeSet::from([[9; 16]]);
    engine.set_own_addresses(&one).unwrap();
    assert_eq!(engine.own_addresses.keys().collect::<Result<BTreeSet<_>, _>>().unwrap(), one);
}
