//! Plain links on every engine: in the kernel by TCX and by clsact, in user space, and in user space because the daemon lacks `CAP_BPF`. The same
//! scenarios for all of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;
use tincan_tests::capture::Capture;
use tincan_tests::controller::Node;
use tincan_tests::daemon::Daemon;
use tincan_tests::engine::Engine;
use tincan_tests::netns::Namespace;
use tincan_tests::packet::Direction;
use tincan_tests::ping::ping;
use tincan_tests::topology::{Offloads, Pair, Underlay};
use tincan_tests::traffic::{noise, tcp_echo, transfer_bytes};
use tincan_tests::wire;

const SOON: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;
const OFFLOADS: [Offloads; 3] = [Offloads::Default, Offloads::Off, Offloads::Gro];
/// Bytes of a transfer that is not the scenario's point.
const SHORT: usize = 16 << 20;

/// A test for each engine.
macro_rules! on_every_engine {
    ($($scenario:ident)*) => {$(
        mod $scenario {
            use super::{Engine, Result};

            #[test]
            fn in_the_kernel() -> Result<()> {
                super::$scenario(Engine::Kernel)
            }

            #[test]
            fn in_the_kernel_by_clsact() -> Result<()> {
                super::$scenario(Engine::KernelByClsact)
            }

            #[test]
            fn in_user_space() -> Result<()> {
                super::$scenario(Engine::User)
            }

            #[test]
            fn without_cap_bpf() -> Result<()> {
                super::$scenario(Engine::WithoutBpf)
            }
        }
    )*};
}

on_every_engine! {
    tcp_crosses_whole_both_ways_with_all_offloads
    pings_of_every_size_fragments_too_lose_nothing
    frames_longer_than_the_path_takes_are_cut
    udp_super_frames_arrive_as_datagrams
    on_the_wire_frames_have_the_form_of_rfc_7348_and_right_checksums
    a_vxlan_device_on_the_tap_works
    a_container_behind_the_tap_works_by_address_translation
    a_routed_container_behind_the_tap_works
    the_tap_works_as_a_bridges_port
}

fn tcp_crosses_whole_both_ways_with_all_offloads(engine: Engine) -> Result<()> {
    let payload = noise(transfer_bytes()?, 5);
    for (underlay, offloads) in underlays_with_offloads() {
        let pair = Pair::new(underlay)?;
        pair.set_offloads(offloads)?;
        let [alice, bob] = engine.linked(&pair)?;
        for target in [IpAddr::from(bob.ip4), bob.ip6.into()] {
            tcp_echo(&pair.alice, &pair.bob, target, &payload)
                .with_context(|| format!("{target} over {underlay:?}, offloads {offloads:?}"))?;
        }
        for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
            engine.check(node)?;
            let seen = node.peer(peer)?;
            for total in ["sent_bytes", "received_bytes"] {
                ensure!(seen.path_number(total) >= 2 * payload.len() as u64, "{total} of {}", seen.0);
            }
        }
    }
    Ok(())
}

fn underlays_with_offloads() -> impl Iterator<Item = (Underlay, Offloads)> {
    [Underlay::Ipv4, Underlay::Ipv6].into_iter().flat_map(|underlay| OFFLOADS.map(|offloads| (underlay, offloads)))
}

fn pings_of_every_size_fragments_too_lose_nothing(engine: Engine) -> Result<()> {
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        let [alice, bob] = engine.linked(&pair)?;
        for target in [IpAddr::from(bob.ip4), bob.ip6.into()] {
            for size in [0, 1, 100, 1200, 1232, 1252, 4000, 20_000] {
                let report = ping(&pair.alice, target, 20, Duration::from_millis(2), &vec![0x5a; size])?;
                ensure!(report.lost == 0, "{} of 20 pings of {size} bytes to {target} lost", report.lost);
            }
        }
        engine.check(&alice)?;
    }
    Ok(())
}

fn frames_longer_than_the_path_takes_are_cut(engine: Engine) -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    for host in [&pair.alice, &pair.bob] {
        host.exec("ip link set eth0 mtu 1400")?;
    }
    let mut options = engine.options();
    options.more.extend(["--mtu".to_owned(), "1450".to_owned()]);
    let nodes = [Node::start_with(&pair.alice, 1, &options)?, Node::start_with(&pair.bob, 2, &options)?];
    let [alice, bob] = engine.link(nodes)?;
    let report = ping(&pair.alice, bob.ip4.into(), 20, Duration::from_millis(2), &[0x5a; 1400])?;
    ensure!(report.lost == 0, "{} of 20 pings lost", report.lost);
    for node in [&alice, &bob] {
        let up = node.counter("kernel_up_too_long")?;
        ensure!((up >= 20) == engine.is_in_kernel(), "the kernel left {up} frames to user space");
    }
    ensure!(alice.counter("too_big")? == 0, "these may be fragmented");
    tcp_echo(&pair.alice, &pair.bob, bob.ip4.into(), &noise(transfer_bytes()?, 5))
}

fn udp_super_frames_arrive_as_datagrams(engine: Engine) -> Result<()> {
    for offloads in OFFLOADS {
        super_frames_arrive(engine, offloads).with_context(|| format!("offloads {offloads:?}"))?;
    }
    Ok(())
}

fn super_frames_arrive(engine: Engine, offloads: Offloads) -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    pair.set_offloads(offloads)?;
    let [alice, bob] = engine.linked(&pair)?;
    let families = [(IpAddr::from(alice.ip4), IpAddr::from(bob.ip4)), (alice.ip6.into(), bob.ip6.into())];
    families.into_iter().try_for_each(|(source, target)| super_frames_cross(&pair, source, target))
}

/// Sends datagrams by `UDP_SEGMENT` from alice's to bob's address, and receives them one by one.
fn super_frames_cross(pair: &Pair, source: IpAddr, target: IpAddr) -> Result<()> {
    const SEGMENT: usize = 1200;
    const SEGMENTS: usize = 10;
    const ROUNDS: usize = 5;
    let target = SocketAddr::new(target, PORT);
    let receiver = pair.bob.enter(|| UdpSocket::bind(target).context("the receiver's socket"))?;
    receiver.set_read_timeout(Some(SOON))?;
    let sender = pair.alice.enter(|| UdpSocket::bind((source, 0)).context("the sender's socket"))?;
    setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(SEGMENT)?).context("UDP_SEGMENT")?;
    for round in 0..ROUNDS {
        let first = u8::try_from(round * SEGMENTS)?;
        let payload: Vec<u8> = (first..).take(SEGMENTS).flat_map(|number| [number; SEGMENT]).collect();
        sender.send_to(&payload, target).context("sending a super-frame")?;
    }
    for expected in 0..ROUNDS * SEGMENTS {
        let mut buffer = [0; 2 * SEGMENT];
        let length = receiver.recv(&mut buffer).with_context(|| format!("datagram {expected} to {target}"))?;
        ensure!(length == SEGMENT && buffer[..length].iter().all(|byte| usize::from(*byte) == expected), "{expected}");
    }
    Ok(())
}

fn on_the_wire_frames_have_the_form_of_rfc_7348_and_right_checksums(engine: Engine) -> Result<()> {
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        pair.set_offloads(Offloads::Off)?;
        for host in [&pair.alice, &pair.bob] {
            // No checksum is left for a network card to fill in.
            host.exec("ethtool -K eth0 tx off")?;
        }
        let [_alice, bob] = engine.linked(&pair)?;
        let captures = [&pair.alice, &pair.bob]
            .map(|host| Capture::start(host, "eth0", |direction, _| direction == Direction::Out));
        for target in [IpAddr::from(bob.ip4), bob.ip6.into()] {
            works(&pair.alice, &pair.bob, target)?;
        }
        for capture in captures {
            let mut tunnelled = 0;
            for captured in capture?.frames() {
                tunnelled += u32::from(wire::check_tunnelled(&captured.bytes)?);
            }
            ensure!(tunnelled > 1000, "{tunnelled} tunnelled frames were captured");
        }
    }
    Ok(())
}

/// Pings of several sizes and TCP both ways, everything compared.
fn works(from: &Namespace, to: &Namespace, target: IpAddr) -> Result<()> {
    for length in [5, 1000, 4000] {
        let report = ping(from, target, 20, Duration::from_millis(5), &noise(length, 1))?;
        ensure!(report.lost == 0, "{} of {} pings with {length} bytes lost", report.lost, report.sent);
    }
    tcp_echo(from, to, target, &noise(SHORT, 2))
}

fn a_vxlan_device_on_the_tap_works(engine: Engine) -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [alice, bob] = engine.linked(&pair)?;
    for (host, own, other, address) in
        [(&pair.alice, alice.ip4, bob.ip4, "10.50.0.1/24"), (&pair.bob, bob.ip4, alice.ip4, "10.50.0.2/24")]
    {
        host.exec(&format!("ip link add nest type vxlan id 9 local {own} remote {other} dstport 4789 dev ipop"))?;
        host.exec(&format!("ip addr add {address} dev nest"))?;
        host.exec("ip link set nest up")?;
    }
    works(&pair.alice, &pair.bob, Ipv4Addr::new(10, 50, 0, 2).into())
        .with_context(|| format!("{:?}", alice.daemon.call("counters", &json!({}))))
}

fn a_container_behind_the_tap_works_by_address_translation(engine: Engine) -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let [_alice, bob] = engine.linked(&pair)?;
    let container = Namespace::new("container")?;
    let (host, inside) = (pair.alice.name(), container.name());
    container
        .exec(&format!("ip link add eth0 netns {inside} mtu 1280 type veth peer name c0 mtu 1280 netns {host}"))?;
    container.exec("ip addr add 10.60.0.2/24 dev eth0")?;
    container.exec("ip link set eth0 up")?;
    container.exec("ip route add default via 10.60.0.1")?;
    pair.alice.exec("ip addr add 10.60.0.1/24 dev c0")?;
    pair.alice.exec("ip link set c0 up")?;
    pair.alice.exec("sysctl -qw net.ipv4.ip_forward=1")?;
    pair.alice.exec("nft add table ip nat")?;
    pair.alice.exec("nft add chain ip nat post { type nat hook postrouting priority 100 ; }")?;
    pair.alice.exec("nft add rule ip nat post oifname ipop masquerade")?;
    works(&container, &pair.bob, bob.ip4.into())
}

fn a_routed_container_behind_the_tap_works(engine: Engine) -> Result<()> {
    let pair = Pair::new(Underlay::Ipv6)?;
    let options = engine.options();
    let start = |host: &Namespace, number| Node::start_router(host, number, &options);
    let [alice, bob] = engine.link([start(&pair.alice, 1)?, start(&pair.bob, 2)?])?;
    let container = Namespace::new("container")?;
    let (host, inside) = (pair.alice.name(), container.name());
    container
        .exec(&format!("ip link add eth0 netns {inside} mtu 1280 type veth peer name c0 mtu 1280 netns {host}"))?;
    container.exec("ip addr add 172.16.1.9/32 dev eth0")?;
    container.exec("ip link set eth0 up")?;
    container.exec("ip route add 172.16.1.1 dev eth0")?;
    container.exec("ip route add default via 172.16.1.1")?;
    pair.alice.exec("ip link set c0 up")?;
    pair.alice.exec("ip route add 172.16.1.9 dev c0")?;
    pair.alice.exec("sysctl -qw net.ipv4.ip_forward=1")?;
    works(&container, &pair.bob, bob.ip4.into())?;
    works(&pair.bob, &container, Ipv4Addr::new(172, 16, 1, 9).into())?;
    engine.check(&alice)
}

fn the_tap_works_as_a_bridges_port(engine: Engine) -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let [alice, bob] = engine.linked(&pair)?;
    pair.alice.exec("ip link add br0 type bridge forward_delay 0")?;
    pair.alice.exec(&format!("ip addr del {}/24 dev ipop", alice.ip4))?;
    pair.alice.exec("ip link set ipop master br0")?;
    pair.alice.exec("ip link set br0 mtu 1280 up")?;
    pair.alice.exec(&format!("ip addr add {}/24 dev br0", alice.ip4))?;
    works(&pair.alice, &pair.bob, bob.ip4.into())?;
    works(&pair.bob, &pair.alice, alice.ip4.into())
}

#[test]
fn a_daemon_without_cap_bpf_says_so_in_one_line_and_refuses_only_where_the_kernel_is_demanded() -> Result<()> {
    let host = Namespace::new("unprivileged")?;
    let mut options = Engine::WithoutBpf.options();
    let daemon = Daemon::start(&host, &options)?;
    let status = daemon.call("status", &json!({}))?;
    let word = status["host"]["fast_path"].as_str().context("no fast_path")?.to_owned();
    ensure!(word.contains("CAP_BPF"), "status says {word:?}");
    let log = daemon.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains(" WARN ")).collect();
    ensure!(warnings.len() == 1 && warnings[0].contains("CAP_BPF"), "{warnings:#?}");
    drop(daemon);
    options.more = ["--fast-path", "on"].map(str::to_owned).to_vec();
    let said = Daemon::start_refused(&host, &options)?;
    ensure!(said.contains("CAP_BPF") && said.contains("--fast-path"), "{said}");
    Ok(())
}
