//! The programs in this machine's kernel: tables of frames through them (`BPF_PROG_TEST_RUN`), and real interfaces.

mod cleanup;
mod clsact;
mod comparison;
mod driver;
mod frames;
mod interfaces;
mod lease;
mod lifetimes;
mod model;
mod ports;
mod tables;

use aya::programs::{TestRun, TestRunOptions};
use nix::unistd::geteuid;

use super::*;
use frames::{OWN4, OWN6, PEER4, PEER6};

/// `TC_ACT_UNSPEC`, which is also `TCX_NEXT`: the next program decides, after the last one the frame passes.
const PASS_ON: u32 = u32::MAX;
/// `TC_ACT_REDIRECT`.
const REDIRECT: u32 = 7;
/// Numbers the programs only carry.
const TAP: u32 = 4242;
const UPLINK: u32 = 4343;
const TAP_MAC: [u8; 6] = [2, 0, 0, 0, 0xaa, 1];
const SLOT: u32 = 7;
/// The tag the peer wants, and the one we asked it for.
const SEND_TAG: u32 = 0x00a1_b2c3;
const RECEIVE_TAG: u32 = 0x0011_2233;
const OWN_PORT: u16 = 40_001;
const PEER_PORT: u16 = 50_002;
/// Longest inner frame.
const MAX_FRAME: u32 = 1464;

fn engine() -> KernelEngine {
    assert!(geteuid().is_root(), "this test loads programs into the kernel: run it as root");
    KernelEngine::load().unwrap_or_else(|error| panic!("{error:?}"))
}

/// An outer path of one family.
#[derive(Clone, Copy, Debug)]
struct Underlay {
    own: std::net::IpAddr,
    peer: std::net::IpAddr,
}

fn underlays() -> [Underlay; 2] {
    let ip = |text: &str| text.parse().unwrap();
    [
        Underlay { own: ip("192.0.2.1"), peer: ip("192.0.2.2") },
        Underlay { own: ip("2001:db8::1"), peer: ip("2001:db8::2") },
    ]
}

/// An engine with one link over `underlay`.
fn linked(underlay: Underlay) -> KernelEngine {
    let mut engine = engine();
    let (local, remote) = (address(underlay.own), address(underlay.peer));
    let (local_port, remote_port) = (OWN_PORT.to_be_bytes(), PEER_PORT.to_be_bytes());
    let settings = Settings {
        tap_index: TAP,
        tap_mac: TAP_MAC,
        plain_port: local_port,
        socket_port: local_port,
        mark: 0,
        router_mask: [255; 4],
        own_ip4: OWN4,
        own_ip6: OWN6,
    };
    engine.configure(&settings).unwrap();
    engine.set_lease_end(u64::MAX).unwrap();
    let sender = Sender {
        uplink: UPLINK,
        slot: SLOT,
        max_frame: MAX_FRAME,
        tag: SEND_TAG,
        source: local,
        destination: remote,
        source_port: local_port,
        destination_port: remote_port,
    };
    let receiver = Receiver { slot: SLOT, tag: RECEIVE_TAG, merger: 0, ip4: PEER4, ip6: PEER6 };
    engine.set_flow(&Flow { remote, local, remote_port, local_port }, &receiver).unwrap();
    engine.set_route4(PEER4, &sender).unwrap();
    engine.set_route6(PEER6, &sender).unwrap();
    engine
}

/// Runs a program over a frame: what it returns, and the frame afterwards.
fn run(engine: &mut KernelEngine, name: &str, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 256];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    let result = program(&mut engine.ebpf, name).unwrap().test_run(options).unwrap();
    let length = result.data_size_out as usize;
    out.truncate(length);
    (result.return_value, out)
}

fn verdict(engine: &KernelEngine, verdict: KernelVerdict) -> u64 {
    engine.verdicts().unwrap().iter().find(|(name, _)| *name == verdict.name()).unwrap().1
}
