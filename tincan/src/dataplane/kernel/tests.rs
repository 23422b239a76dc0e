//! The programs in this machine's kernel: a table of frames through `tap_egress`, and a real interface.
//!
//! ```text
//!  fresh namespace, gone with the test's thread
//!  UDP socket -> near 10.80.0.1/24 -[tap_egress]- veth - far     10.80.0.2 is static, 10.80.0.3 is asked for by ARP
//! ```

use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use aya::programs::{TestRun, TestRunOptions};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use super::*;

/// `TC_ACT_UNSPEC`, which is also `TCX_NEXT`: the next program decides, after the last one the frame passes.
const PASS_ON: u32 = u32::MAX;

fn engine() -> KernelEngine {
    assert!(geteuid().is_root(), "this test loads programs into the kernel: run it as root");
    KernelEngine::load().unwrap_or_else(|error| panic!("{error:?}"))
}

fn tally(engine: &KernelEngine, kind: FrameKind) -> Tally {
    let counters = engine.counters().unwrap();
    counters.into_iter().find(|(counted, _)| *counted == kind).unwrap().1
}

fn frame(ethertype: u16, length: usize) -> Vec<u8> {
    let mut frame = vec![0; length];
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn enter_fresh_namespace() {
    assert!(geteuid().is_root(), "this test makes a network namespace: run it as root");
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
}

/// A veth pair `near` - `far` without IPv6, so that no frame leaves but those the test sends.
fn make_veth_pair() {
    enter_fresh_namespace();
    ip("link add near type veth peer name far");
    ip("link set near addrgenmode none");
    ip("link set far addrgenmode none");
    ip("address add 10.80.0.1/24 dev near");
    ip("link set far up");
    ip("link set near up");
    ip("neighbour add 10.80.0.2 lladdr 02:00:00:00:00:02 dev near nud permanent");
}

fn frames_that_reached(interface: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':')).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn programs_on(interface: &str) -> Vec<String> {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Egress).unwrap();
    programs.iter().map(|program| program.name_as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_frame_passes_and_is_counted_by_its_kind() {
    let table = [
        (frame(0x0800, 60), FrameKind::Ipv4),
        (frame(0x0800, 1514), FrameKind::Ipv4),
        (frame(0x86DD, 74), FrameKind::Ipv6),
        (frame(0x0806, 42), FrameKind::Arp),
        (frame(0x8100, 64), FrameKind::Other),
        (frame(0x88CC, 14), FrameKind::Other),
    ];
    let mut engine = engine();
    for (frame, kind) in &table {
        let before = tally(&engine, *kind);
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        let result = engine.tap_egress().unwrap().test_run(options).unwrap();
        assert_eq!(result.return_value, PASS_ON, "{kind:?}");
        let bytes = before.bytes + frame.len() as u64;
        assert_eq!(tally(&engine, *kind), Tally { frames: before.frames + 1, bytes }, "{kind:?}");
    }
    let total: u64 = engine.counters().unwrap().iter().map(|(_, tally)| tally.frames).sum();
    assert_eq!(total, table.len() as u64);
}

#[test]
fn frames_of_an_interface_are_counted_and_arrive() {
    make_veth_pair();
    let mut engine = engine();
    engine.attach("near").unwrap();
    assert_eq!(programs_on("near"), ["tap_egress"]);

    let socket = UdpSocket::bind("10.80.0.1:0").unwrap();
    for _ in 0..50 {
        socket.send_to(&[0; 100], "10.80.0.2:9").unwrap();
    }
    // 14 bytes of Ethernet, 20 of IPv4, 8 of UDP.
    assert_eq!(tally(&engine, FrameKind::Ipv4), Tally { frames: 50, bytes: 50 * (14 + 20 + 8 + 100) });
    assert_eq!(tally(&engine, FrameKind::Arp), Tally::default());
    assert_eq!(frames_that_reached("far"), 50);

    socket.send_to(&[0; 100], "10.80.0.3:9").unwrap();
    assert_eq!(tally(&engine, FrameKind::Arp).frames, 1);
}

#[test]
fn dropping_the_engine_detaches_its_program() {
    make_veth_pair();
    let mut engine = engine();
    engine.attach("near").unwrap();
    drop(engine);
    assert_eq!(programs_on("near"), [""; 0]);
}

#[test]
fn the_loopback_device_is_refused_under_any_name() {
    enter_fresh_namespace();
    ip("link set lo name innocent");
    let error = engine().attach("innocent").unwrap_err().to_string();
    assert!(error.contains("loopback"), "{error}");
}

#[test]
fn an_unknown_interface_is_named_in_the_error() {
    enter_fresh_namespace();
    let error = engine().attach("nowhere").unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn the_verifier_reports_every_program() {
    let reports = engine().reports().unwrap();
    assert_eq!(reports.len(), 1);
    assert!(reports[0].verified_instructions.is_some_and(|count| count > 0), "{reports:?}");
}
