//! The driver's program (XDP): rows of packet in and packet out, and what becomes of it on a veth pair.

use aya::programs::{TestRun, TestRunOptions};
use tincan_common::kernel_verdict::KernelVerdict as V;

use super::frames::{
    OWN4, OWN6, PEER4, PEER6, STRANGER4, STRANGER6, datagram, ethernet, frame4, frame6, tagged, tcp, udp_packet,
};
use super::*;

const MARK: u32 = 0x0bad_cafd;
/// `XDP_PASS`.
const PASS: u32 = 2;

fn in_driver(underlay: Underlay) -> KernelEngine {
    let mut engine = linked(underlay);
    let own_port = OWN_PORT.to_be_bytes();
    let settings = Settings {
        tap_index: TAP,
        tap_mac: TAP_MAC,
        plain_port: own_port,
        socket_port: own_port,
        mark: MARK,
        router_mask: [255; 4],
        own_ip4: OWN4,
        own_ip6: OWN6,
    };
    engine.configure(&settings).unwrap();
    engine.work_in_driver().unwrap();
    engine
}

fn run_xdp(engine: &mut KernelEngine, packet: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; packet.len() + 256];
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet);
    options.data_out = Some(&mut out);
    let result = engine.xdp().unwrap().test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

#[test]
fn a_peers_frame_leaves_the_driver_without_outer_headers() {
    let rows = [
        ("UDP over IPv4", frame4(PEER4, OWN4, 17, &[1; 40])),
        ("TCP over IPv4", frame4(PEER4, OWN4, 6, &tcp(1000))),
        ("ICMP to a host behind this one", frame4(PEER4, STRANGER4, 1, &[8; 64])),
        ("UDP over IPv6", frame6(PEER6, OWN6, 17, &[1; 40])),
        ("TCP over IPv6", frame6(PEER6, OWN6, 6, &tcp(1000))),
    ];
    for underlay in underlays() {
        let mut engine = in_driver(underlay);
        for (row, frame) in &rows {
            let (action, out) = run_xdp(&mut engine, &datagram(underlay, &tagged(RECEIVE_TAG, frame)));
            let expected = [&TAP_MAC[..], &frame[6..]].concat();
            // What a test run gives back begins with the metadata.
            assert_eq!(action, PASS, "{row}");
            assert!(out.ends_with(&expected), "{row}, {underlay:?}: {out:02x?}");
            assert_eq!(out.len() - expected.len(), 4 * usize::from(out[..4] == MARK.to_ne_bytes()), "{row}");
        }
        let bytes: u64 = rows.iter().map(|(_, frame)| frame.len() as u64).sum();
        assert_eq!(engine.traffic(SLOT).unwrap(), [0, 0, rows.len() as u64, bytes]);
    }
}

#[test]
fn everything_else_leaves_the_driver_untouched_and_uncounted() {
    for underlay in underlays() {
        let mut engine = in_driver(underlay);
        let good = frame4(PEER4, OWN4, 17, &[1; 40]);
        let outer = |payload: &[u8]| datagram(underlay, payload);
        let Underlay { own, peer } = underlay;
        let mut long = outer(&tagged(RECEIVE_TAG, &good));
        long.push(0);
        let rows = [
            ("STUN", outer(&[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42, 0, 0])),
            ("DTLS", outer(&[22, 254, 253, 0, 0])),
            ("TURN", outer(&[0x40, 0, 0, 4, 1, 2, 3, 4])),
            ("another tag", outer(&tagged(RECEIVE_TAG ^ 1, &good))),
            ("another sender", udp_packet(peer, own, [PEER_PORT + 1, OWN_PORT], &tagged(RECEIVE_TAG, &good))),
            ("another port", udp_packet(peer, own, [PEER_PORT, OWN_PORT + 1], &tagged(RECEIVE_TAG, &good))),
            ("a stranger's inner address", outer(&tagged(RECEIVE_TAG, &frame4(STRANGER4, OWN4, 17, &[1; 40])))),
            ("a stranger's inner IPv6 address", outer(&tagged(RECEIVE_TAG, &frame6(STRANGER6, OWN6, 17, &[1; 40])))),
            ("our own inner address", outer(&tagged(RECEIVE_TAG, &frame4(OWN4, OWN4, 17, &[1; 40])))),
            ("ARP inside", outer(&tagged(RECEIVE_TAG, &ethernet([0x08, 0x06], &[0; 40])))),
            ("longer than it says", long),
            ("ARP", ethernet([0x08, 0x06], &[0; 40])),
        ];
        for (row, packet) in rows {
            assert_eq!(run_xdp(&mut engine, &packet), (PASS, packet), "{row}, {underlay:?}");
        }
        let whole = outer(&tagged(RECEIVE_TAG, &good));
        for length in 14..whole.len() {
            let cut = whole[..length].to_vec();
            assert_eq!(run_xdp(&mut engine, &cut), (PASS, cut), "{length} bytes");
        }
        assert_eq!(engine.traffic(SLOT).unwrap(), [0; 4]);
        assert!(engine.verdicts().unwrap().iter().all(|(_, count)| *count == 0));
    }
}

#[test]
fn without_metadata_nothing_is_taken_behind_the_driver() {
    let [underlay, _] = underlays();
    let mut engine = in_driver(underlay);
    let frame = frame4(PEER4, OWN4, 17, &[1; 40]);
    assert_eq!(run(&mut engine, STRIPPED_INGRESS, &frame), (PASS_ON, frame));
    assert_eq!(verdict(&engine, V::Delivered), 0);
}
