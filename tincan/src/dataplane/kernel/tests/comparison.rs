//! Random and damaged frames through the programs and through their model: the same verdict, the same bytes.

use std::net::IpAddr;

use aya::programs::{TestRun, TestRunOptions};
use tincan_common::kernel_verdict::KernelVerdict;

use super::frames::{frame4, frame6, tagged, tcp, udp_packet};
use super::model::{Outcome, World};
use super::*;

const FRAMES: u32 = 100_000;
/// A run can be repeated with its seed.
const SEED: u64 = 0x7469_6e63_616e_0019;
const SOCKET_PORT: u16 = 51_003;
const MARK: u32 = 0x5eed_0001;
const SKB_MARK: usize = 8;
const SKB_LEN: usize = 192;

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// Peer `number` (1 to 4) is reached over IPv4 when odd; 4's TCP goes through the merging veth.
fn inner4(number: u8) -> [u8; 4] {
    [172, 16, number, 1]
}

fn inner6(number: u8) -> [u8; 16] {
    [0xfd, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]
}

fn outer(number: u8) -> Underlay {
    let ip = |text: String| text.parse::<IpAddr>().unwrap();
    if number % 2 == 1 {
        Underlay { own: ip("192.0.2.100".to_owned()), peer: ip(format!("192.0.2.{number}")) }
    } else {
        Underlay { own: ip("2001:db8::64".to_owned()), peer: ip(format!("2001:db8::{number}")) }
    }
}

fn tag(number: u8) -> u32 {
    0x0010_2000 + u32::from(number)
}

/// This node is number 9; a subnet of 256 addresses is behind each.
fn world() -> World {
    let plain_port = OWN_PORT.to_be_bytes();
    let settings = Settings {
        tap_index: TAP,
        tap_mac: TAP_MAC,
        plain_port,
        socket_port: SOCKET_PORT.to_be_bytes(),
        mark: MARK,
        router_mask: [255, 255, 255, 0],
        own_ip4: inner4(9),
        own_ip6: inner6(9),
    };
    let mut world = World {
        settings,
        routes4: BTreeMap::new(),
        routes6: BTreeMap::new(),
        flows: BTreeMap::new(),
        own: [1, 2].map(|number| address(outer(number).own)).into(),
    };
    for number in 1..=4 {
        let Underlay { own, peer } = outer(number);
        let (local, remote) = (address(own), address(peer));
        let (slot, remote_port) = (u32::from(number), PEER_PORT.to_be_bytes());
        let sender = Sender {
            uplink: UPLINK,
            slot,
            max_frame: 1200 + 50 * slot,
            tag: tag(number) ^ 0xff,
            source: local,
            destination: remote,
            source_port: plain_port,
            destination_port: remote_port,
        };
        let [a, b, c, _] = inner4(number);
        let merger = if number == 4 { 4444 } else { 0 };
        let receiver = Receiver { slot, tag: tag(number), merger, ip4: [a, b, c, 0], ip6: inner6(number) };
        world.routes4.insert([a, b, c, 0], sender);
        world.routes6.insert(inner6(number), sender);
        world.flows.insert(Flow { remote, local, remote_port, local_port: plain_port }.to_bytes(), receiver);
    }
    world
}

fn load(world: &World) -> KernelEngine {
    let mut engine = engine();
    engine.configure(&world.settings).unwrap();
    engine.set_lease_end(u64::MAX).unwrap();
    engine.set_own_addresses(&world.own).unwrap();
    for (destination, sender) in &world.routes4 {
        engine.set_route4(*destination, sender).unwrap();
    }
    for (destination, sender) in &world.routes6 {
        engine.set_route6(*destination, sender).unwrap();
    }
    for (flow, receiver) in &world.flows {
        engine.flows.insert(flow, receiver.to_bytes(), 0).unwrap();
    }
    engine
}

/// An inner frame from node `from` to node `to`, of either family, that may be too long.
fn inner(random: &mut Random, from: u8, to: u8) -> Vec<u8> {
    let length = random.one(&[0, 1, 20, 100, 1100, 1250, 1400]);
    let protocol = random.one(&[1, 6, 17, 44, 58]);
    let payload = if protocol == 6 { tcp(length) } else { random.bytes(length) };
    let mut frame = if random.below(2) == 0 {
        let (mut source, mut destination) = (inner4(from), inner4(to));
        source[3] = random.one(&[1, 1, 7]);
        destination[3] = random.one(&[1, 1, 7, 255]);
        frame4(source, destination, protocol, &payload)
    } else {
        frame6(inner6(from), inner6(to), protocol, &payload)
    };
    frame[0] = random.one(&[2, 2, 2, 3]);
    frame
}

/// A packet as it might be on the uplink: a peer's frame, STUN, or something for another port; perhaps a fragment.
fn on_the_uplink(random: &mut Random) -> Vec<u8> {
    let number = random.one(&[1, 2, 3, 4, 5]);
    let from = if random.below(8) == 0 { random.one(&[1, 2, 9]) } else { number };
    let frame = inner(random, from, 9);
    let payload = match random.below(8) {
        0 => [&[0, 1, 0, 8][..], &random.bytes(16)].concat(),
        1 => [&[random.one(&[0x16, 0x40, 0x80, 8])][..], &random.bytes(60)].concat(),
        2 => tagged(tag(random.one(&[1, 2, 3, 4])), &frame),
        _ => tagged(tag(number), &frame),
    };
    let Underlay { own, peer } = outer(number);
    let ports = [PEER_PORT, random.one(&[OWN_PORT, OWN_PORT, OWN_PORT, SOCKET_PORT, 80])];
    let mut packet = match random.below(4) {
        0 => udp_packet(own, peer, [random.one(&[SOCKET_PORT, OWN_PORT]), PEER_PORT], &payload),
        _ => udp_packet(peer, own, ports, &payload),
    };
    let udp_at = if own.is_ipv4() { 34 } else { 54 };
    if random.below(2) == 0 {
        let sum = random.bytes(2);
        packet[udp_at + 6..udp_at + 8].copy_from_slice(&sum);
    }
    match (random.below(8), own.is_ipv4()) {
        (0, true) => packet[20] |= 0x20,
        (1, true) => packet[21] = 3,
        (0, false) => {
            packet = [&packet[..20], &[44], &packet[21..54], &[17, 0, 0, 1, 9, 9, 9, 9], &packet[54..]].concat();
        }
        (1, false) => {
            packet = [&packet[..20], &[44], &packet[21..54], &[17, 0, 1, 1, 9, 9, 9, 9], &packet[54..]].concat();
        }
        _ => {}
    }
    packet
}

/// Flips bits, writes bytes, cuts and lengthens.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let reach = frame.len().min(random.one(&[40, 80, 130]));
        let at = random.below(reach);
        match random.below(4) {
            0 => frame[at] ^= 1 << random.below(8),
            1 => frame[at] = random.one(&[0, 1, 4, 6, 8, 17, 0x45, 0x60, 0x7f, 0xff]),
            2 => frame.truncate(frame.len() - random.below(frame.len() / 2)),
            _ => frame.extend(random.bytes(3)),
        }
    }
}

/// The test run refuses frames shorter than their network header, by ethertype.
fn is_runnable(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x86, 0xdd]) => frame.len() >= 54,
        Some(_) => frame.len() >= 34,
        None => false,
    }
}

/// What a program did, and with which counters it said so.
fn observe(engine: &mut KernelEngine, name: &str, frame: &[u8], mark: u32) -> Outcome {
    let counted = |engine: &KernelEngine| -> Vec<u64> { engine.verdicts().unwrap().iter().map(|(_, n)| *n).collect() };
    let traffic = |engine: &KernelEngine| (1..=4).map(|slot| engine.traffic(slot).unwrap()).collect::<Vec<_>>();
    let before = (counted(engine), traffic(engine));
    let mut context = [0; SKB_LEN];
    context[SKB_MARK..SKB_MARK + 4].copy_from_slice(&mark.to_ne_bytes());
    let (mut context_out, mut out) = ([0; SKB_LEN], vec![0; frame.len() + 256]);
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    options.ctx_in = Some(&context);
    options.ctx_out = Some(&mut context_out);
    let result = program(&mut engine.ebpf, name).unwrap().test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    let after = (counted(engine), traffic(engine));
    let grown: Vec<usize> = (0..after.0.len()).filter(|at| after.0[*at] != before.0[*at]).collect();
    assert!(grown.len() <= 1, "{name}: {grown:?}");
    let slots: Vec<usize> = (0..4).filter(|at| after.1[*at] != before.1[*at]).collect();
    assert!(slots.len() <= 1, "{name}: {slots:?}");
    let added = |at: usize| std::array::from_fn(|total| after.1[at][total] - before.1[at][total]);
    Outcome {
        action: result.return_value,
        frame: out,
        mark: u32::from_ne_bytes(context_out[SKB_MARK..SKB_MARK + 4].try_into().unwrap()),
        verdict: grown.first().map(|at| KernelVerdict::ALL[*at]),
        traffic: slots.first().map(|at| (u32::try_from(at + 1).unwrap(), added(*at))),
    }
}

#[test]
fn a_hundred_thousand_frames_fare_as_the_model_says() {
    println!("seed {SEED:#x}");
    let world = world();
    let mut engine = load(&world);
    let mut random = Random(SEED);
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut run = 0;
    while run < FRAMES {
        let name =
            random.one(&[TAP_EGRESS, UPLINK_INGRESS, UPLINK_INGRESS, PORT_INGRESS, PORT_EGRESS, CHECKED_INGRESS]);
        let to = random.one(&[1, 2, 3, 4, 5]);
        let mut frame = if name == TAP_EGRESS { inner(&mut random, 9, to) } else { on_the_uplink(&mut random) };
        if random.below(2) == 0 {
            damage(&mut random, &mut frame);
        }
        if !is_runnable(&frame) {
            continue;
        }
        run += 1;
        let mark = random.one(&[0, 0, 0, 1, MARK]);
        let expected = match name {
            TAP_EGRESS => world.tap_egress(&frame, mark),
            UPLINK_INGRESS => world.uplink_ingress(&frame, mark),
            PORT_INGRESS => world.port_ingress(&frame, mark),
            PORT_EGRESS => world.port_egress(&frame, mark),
            _ => world.checked_ingress(&frame, mark),
        };
        let observed = observe(&mut engine, name, &frame, mark);
        assert_eq!(observed, expected, "frame {run} of seed {SEED:#x}, {name}, mark {mark:#x}: {frame:02x?}");
        let changed = if observed.frame == frame { "" } else { ", changed" };
        *seen.entry(format!("{name}: {:?}{changed}", observed.verdict)).or_default() += 1;
    }
    println!("{seen:#?}");
    // Each way through the programs was taken often, so that the comparison means something.
    for way in [
        "tap_egress: Some(Sent), changed",
        "tap_egress: Some(UpTooLong)",
        "tap_egress: Some(UpUnrouted)",
        "uplink_ingress: Some(Delivered), changed",
        "uplink_ingress: Some(HandedOver), changed",
        "uplink_ingress: Some(UpControl)",
        "uplink_ingress: Some(UpUnknownFlow)",
        "uplink_ingress: Some(UpTag)",
        "uplink_ingress: Some(UpSource)",
        "uplink_ingress: Some(UpShape)",
        "uplink_ingress: None",
        "port_ingress: None, changed",
        "port_egress: None, changed",
        "checked_ingress: Some(Refused)",
        "checked_ingress: Some(Delivered), changed",
    ] {
        assert!(seen.get(way).is_some_and(|count| *count >= 50), "{way}: {:?}", seen.get(way));
    }
}

#[test]
fn a_hundred_thousand_routes_and_ten_thousand_flows_are_found_and_removed() {
    let world = world();
    let mut engine = load(&world);
    let (sender, flow) = (world.routes4.values().next().unwrap(), world.flows.iter().next().unwrap());
    let address4 = |number: u32| (0x0a00_0000 + (number << 8)).to_be_bytes();
    let flow_of = |number: u32| {
        let remote_port = u16::try_from(number + 1).unwrap().to_be_bytes();
        Flow { remote: [7; 16], local: [8; 16], remote_port, local_port: [9, 9] }
    };
    for number in 0..100_000_u32 {
        engine.set_route4(address4(number), &Sender { slot: number % 4000, ..*sender }).unwrap();
    }
    for number in 0..10_000 {
        engine.set_flow(&flow_of(number), &Receiver::from_bytes(&flow.1.to_bytes())).unwrap();
    }
    for number in [0, 1, 54_321, 99_999] {
        let [a, b, c, _] = address4(number);
        let frame = frame4(inner4(9), [a, b, c, 1], 17, &[1; 40]);
        let before = engine.traffic(number % 4000).unwrap();
        assert_eq!(super::run(&mut engine, TAP_EGRESS, &frame).0, REDIRECT, "{number}");
        assert_eq!(engine.traffic(number % 4000).unwrap()[0], before[0] + 1, "{number}");
    }
    for number in 0..10_000 {
        engine.remove_flow(&flow_of(number));
        engine.remove_route4(address4(number));
    }
    assert_eq!(engine.flows.keys().count(), world.flows.len());
    assert_eq!(engine.routes4.keys().count(), 90_000 + world.routes4.len());
}
