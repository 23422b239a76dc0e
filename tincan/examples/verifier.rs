//! Loads the kernel programs and prints what the verifier says about each, how long a frame takes in the kernel's test run,
//! and what many entries cost; `cargo xtask ebpf` runs it. Times are this machine's of this moment.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;
use tincan::dataplane::kernel::KernelEngine;
use tincan_common::entries::{Flow, Receiver, Sender, Settings, mapped};
use tincan_common::{frame, inner};

/// Frames whose median is taken, and rounds of the comparison.
const RUNS: usize = 2001;
const ROUNDS: usize = 5;
const ROUTES: u32 = 100_000;
const FLOWS: u32 = 10_000;
const PEERS: u32 = 10_000;

const OWN: [u8; 4] = [192, 0, 2, 1];
const PEER: [u8; 4] = [192, 0, 2, 2];
const INNER_OWN: [u8; 4] = [172, 16, 0, 1];
const INNER_PEER: [u8; 4] = [172, 16, 0, 2];
const PORT: [u8; 2] = [0x9c, 0x41];
const TAG: u32 = 77;

fn main() -> anyhow::Result<()> {
    let mut engine = linked()?;
    println!("{:<20} {:>22} {:>19}", "program", "verified instructions", "machine code bytes");
    for report in engine.reports()? {
        let verified = report.verified_instructions.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
        println!("{:<20} {verified:>22} {:>19}", report.name, report.machine_code_bytes);
    }
    let floor = floor(&mut engine)?;
    println!("\n{:<52} {:>9}", format!("a frame of 1000 bytes, without the test run's {} ns", floor.as_nanos()), "ns");
    for (what, program, frame) in frames() {
        println!("{what:<52} {:>9}", engine.time_of(program, &frame, RUNS)?.saturating_sub(floor).as_nanos());
    }
    scale(&mut engine)
}

/// An engine with one link over IPv4.
fn linked() -> anyhow::Result<KernelEngine> {
    let mut engine = KernelEngine::load()?;
    engine.configure(&Settings {
        tap_index: 4242,
        plain_port: PORT,
        socket_port: PORT,
        router_mask: [255; 4],
        own_ip4: INNER_OWN,
        ..Settings::default()
    })?;
    engine.set_lease_end(u64::MAX)?;
    engine.set_flow(&flow(0), &Receiver { tag: TAG, ip4: INNER_PEER, ..Receiver::default() })?;
    engine.set_route4(INNER_PEER, &sender())?;
    Ok(engine)
}

fn sender() -> Sender {
    Sender {
        uplink: 4343,
        max_frame: 1464,
        tag: TAG,
        source: mapped(OWN),
        destination: mapped(PEER),
        source_port: PORT,
        destination_port: PORT,
        ..Sender::default()
    }
}

/// The link's flow, or one of another peer.
fn flow(number: u32) -> Flow {
    let [high, middle, low, _] = (number << 8).to_be_bytes();
    let peer = if number == 0 { PEER } else { [198, 51_u8.wrapping_add(high), middle, low] };
    Flow { remote: mapped(peer), local: mapped(OWN), remote_port: PORT, local_port: PORT }
}

fn packet(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = [0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    [header[10], header[11]] = inner::ipv4_checksum(&header);
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..], &header, payload].concat()
}

/// What is timed: a sentence, the program, the frame.
fn frames() -> [(&'static str, &'static str, Vec<u8>); 6] {
    let out = packet(INNER_OWN, INNER_PEER, 17, &[1; 966]);
    let nobodys = packet(INNER_OWN, [10, 9, 8, 7], 17, &[1; 966]);
    let inside = [&frame::header(TAG)[..], &packet(INNER_PEER, INNER_OWN, 17, &[1; 966])].concat();
    let length = u16::try_from(8 + inside.len()).unwrap_or(u16::MAX).to_be_bytes();
    let datagram = packet(PEER, OWN, 17, &[&PORT[..], &PORT, &length, &[0, 0], &inside].concat());
    let unrelated = packet(PEER, OWN, 6, &[1; 966]);
    [
        ("tap_egress, sent", "tap_egress", out),
        ("tap_egress, passed to user space", "tap_egress", nobodys),
        ("uplink_ingress, delivered", "uplink_ingress", datagram),
        ("uplink_ingress, unrelated traffic", "uplink_ingress", unrelated.clone()),
        ("port_ingress, unrelated traffic", "port_ingress", unrelated.clone()),
        ("port_egress, unrelated traffic", "port_egress", unrelated),
    ]
}

/// What the test run itself takes: a program that gives every frame up after its first look at the settings.
fn floor(engine: &mut KernelEngine) -> anyhow::Result<Duration> {
    let [.., (_, _, frame)] = frames();
    engine.time_of("stripped_ingress", &frame, RUNS)
}

/// What many entries cost: time to install, time for each frame against an engine with one link, memory.
fn scale(few: &mut KernelEngine) -> anyhow::Result<()> {
    let before = map_memory()?;
    let mut many = linked()?;
    let start = Instant::now();
    for peer in 1..=PEERS {
        many.set_flow(&flow(peer), &Receiver::default())?;
        many.set_route4((0x0a00_0000 + peer).to_be_bytes(), &sender())?;
        many.set_route6([mapped([10, 0, 0, 0]), u128::from(peer).to_be_bytes()][1], &sender())?;
    }
    println!("\ninstalling {PEERS} peers (a flow and two routes each): {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    for route in PEERS + 1..=ROUTES {
        many.set_route4((0x0a00_0000 + route).to_be_bytes(), &sender())?;
    }
    let memory = map_memory()?.saturating_sub(before);
    println!("memory of the maps with {ROUTES} IPv4 routes, {PEERS} IPv6 routes and {FLOWS} flows: {memory} bytes");
    println!("\n{:<36} {:>9} {:>9} {:>7}", "ns for each, the test run's with it", "one link", "many", "ratio");
    for (what, program, frame) in frames() {
        let mut medians = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            medians[0].push(few.time_of(program, &frame, RUNS)?);
            medians[1].push(many.time_of(program, &frame, RUNS)?);
        }
        let [few, many] = medians.map(median);
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        println!("{what:<36} {:>9} {:>9} {ratio:>7.2}", few.as_nanos(), many.as_nanos());
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Bytes that the kernel counts for this process's maps (`memlock` in `fdinfo`, proc(5)).
fn map_memory() -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir("/proc/self/fdinfo").context("listing /proc/self/fdinfo")? {
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let memlock = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        if let Some(bytes) = memlock.filter(|_| text.contains("map_id:")) {
            sum += bytes.trim().parse::<u64>().context("reading memlock")?;
        }
    }
    Ok(sum)
}
