//! Merging on receive: a sleeping VXLAN device holds the plain port, and nobody comes in by it.
//!
//! ```text
//!   alice ipop -[tc]- eth0 --- switch --- eth0 (GRO by ipop-gro) -[tc]- ipop bob
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::daemon::{Daemon, DaemonOptions};
use tincan_tests::frames;
use tincan_tests::netns::Namespace;
use tincan_tests::packet::PacketSocket;
use tincan_tests::ping::ping;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::traffic::{noise, tcp_echo, transfer_bytes};
use tincan_tests::wait;

const SOON: Duration = Duration::from_secs(10);
const DEVICE: &str = "ipop-gro";

fn linked(pair: &Pair) -> Result<[Node; 2]> {
    linked_with(pair, &DaemonOptions::default())
}

fn linked_with(pair: &Pair, options: &DaemonOptions) -> Result<[Node; 2]> {
    let (mut alice, mut bob) = (Node::start_with(&pair.alice, 1, options)?, Node::start_with(&pair.bob, 2, options)?);
    connect(&mut alice, &mut bob, &LinkPlan::plain())?;
    in_kernel(&alice, &bob)?;
    in_kernel(&bob, &alice)?;
    Ok([alice, bob])
}

fn in_kernel(node: &Node, peer: &Node) -> Result<()> {
    let is_in_kernel = || node.peer(peer).is_ok_and(|peer| peer.text("engine") == "kernel");
    wait::until(SOON, "the kernel to take the link", is_in_kernel).with_context(|| node.daemon.log())
}

/// The daemon's word about the kernel engine, and its plain port.
fn fast_path(node: &Node) -> Result<(String, u16)> {
    let host = node.daemon.call("status", &serde_json::json!({}))?["host"].clone();
    let port = host["plain_port"].as_u64().and_then(|port| u16::try_from(port).ok()).context("no plain_port")?;
    Ok((host["fast_path"].as_str().context("no fast_path")?.to_owned(), port))
}

fn await_fast_path(node: &Node, words: &str) -> Result<()> {
    let says = || fast_path(node).is_ok_and(|(text, _)| text.contains(words));
    wait::until(SOON, words, says).with_context(|| format!("{:?}\n{}", fast_path(node), node.daemon.log()))
}

/// Like a network card without offloads: single packets leave, and what arrives may be merged.
fn without_offloads(host: &Namespace) -> Result<()> {
    let features = "tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off gro on";
    host.exec(&format!("ethtool -K eth0 {features}")).map(drop)
}

/// How many bytes the kernel delivered in one piece, on average.
fn bytes_per_piece(node: &Node, peer: &Node, before: u64) -> Result<u64> {
    let pieces = node.counter("kernel_delivered")? - before;
    Ok(node.peer(peer)?.path_number("received_bytes") / pieces.max(1))
}

#[test]
fn tcp_that_arrives_in_single_packets_is_merged_before_the_programs_see_it() -> Result<()> {
    let payload = noise(transfer_bytes()?, 7);
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        without_offloads(&pair.alice)?;
        without_offloads(&pair.bob)?;
        // Merging needs single packets: the switch's ports must not hand super-frames on either.
        for port in ["port1", "port2"] {
            pair.lan.namespace().exec(&format!("ethtool -K {port} tso off gso off gro off"))?;
        }
        let [alice, bob] = linked(&pair)?;
        await_fast_path(&bob, "merging on receive by ipop-gro")?;
        let before = [alice.counter("kernel_delivered")?, bob.counter("kernel_delivered")?];
        for target in [IpAddr::from(bob.ip4), bob.ip6.into()] {
            tcp_echo(&pair.alice, &pair.bob, target, &payload)
                .with_context(|| format!("{target} over {underlay:?}"))?;
        }
        for (node, peer, before) in [(&alice, &bob, before[0]), (&bob, &alice, before[1])] {
            let mean = bytes_per_piece(node, peer, before)?;
            ensure!(mean > 4 * 1280, "{mean} bytes per piece over {underlay:?}");
            ensure!(
                node.counter("kernel_broken")? == 0 && node.counter("kernel_up_shape")? == 0,
                "frames were refused"
            );
        }
    }
    Ok(())
}

#[test]
fn tcp_is_merged_by_the_veth_where_the_uplink_does_not_merge() -> Result<()> {
    let payload = noise(transfer_bytes()?, 8);
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        for host in [&pair.alice, &pair.bob] {
            without_offloads(host)?;
            host.exec("ethtool -K eth0 gro off")?;
        }
        for port in ["port1", "port2"] {
            pair.lan.namespace().exec(&format!("ethtool -K {port} tso off gso off gro off"))?;
        }
        let [alice, bob] = linked(&pair)?;
        for node in [&alice, &bob] {
            await_fast_path(node, "behind uplinks without GRO")?;
        }
        for target in [IpAddr::from(bob.ip4), bob.ip6.into()] {
            tcp_echo(&pair.alice, &pair.bob, target, &payload)
                .with_context(|| format!("{target} over {underlay:?}"))?;
        }
        for node in [&alice, &bob] {
            let (handed_over, delivered) = (node.counter("kernel_handed_over")?, node.counter("kernel_delivered")?);
            ensure!(handed_over > 2 * delivered, "{handed_over} frames went to the veth, {delivered} to the TAP");
            ensure!(node.counter("kernel_broken")? == 0, "the kernel refused a step");
        }
    }
    Ok(())
}

#[test]
fn a_device_that_somebody_removed_is_made_again_and_no_ping_is_lost() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [alice, bob] = linked(&pair)?;
    await_fast_path(&bob, "merging on receive by ipop-gro")?;
    let port = fast_path(&bob)?.1;
    let target = IpAddr::from(bob.ip4);
    let report = thread::scope(|scope| {
        let pings = scope.spawn(|| ping(&pair.alice, target, 600, Duration::from_millis(10), b"through it all"));
        let outcome = remove_and_wait(&pair.bob, &bob);
        let report = pings.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome.and(report)
    })?;
    ensure!(report.lost == 0, "{} of {} lost", report.lost, report.sent);
    ensure!(fast_path(&bob)?.1 == port, "the port changed");
    in_kernel(&alice, &bob)?;
    in_kernel(&bob, &alice)
}

fn remove_and_wait(host: &Namespace, node: &Node) -> Result<()> {
    for how in ["ip link del ipop-gro", "ip link set ipop-gro down"] {
        host.exec(how)?;
        let is_back = || host.exec("ip link show ipop-gro up").is_ok_and(|text| text.contains(DEVICE));
        wait::until(SOON, "the device to be back", is_back).with_context(|| format!("{how}\n{}", node.daemon.log()))?;
        await_fast_path(node, "merging on receive by ipop-gro")?;
    }
    Ok(())
}

#[test]
fn a_port_that_another_program_took_is_said_and_traffic_goes_on_unmerged() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let [_alice, bob] = linked(&pair)?;
    let port = fast_path(&bob)?.1;
    // The daemon may be quicker to make the device again.
    let taken = wait::until_some(SOON, "the port to be ours", || {
        drop(pair.bob.exec("ip link del ipop-gro"));
        pair.bob.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("taking the port")).ok()
    })?;
    await_fast_path(&bob, &format!("another program has taken UDP port {port}"))?;
    let report = ping(&pair.alice, bob.ip4.into(), 100, Duration::from_millis(2), b"unmerged")?;
    ensure!(report.lost == 0, "{} of {} lost", report.lost, report.sent);
    drop(taken);
    await_fast_path(&bob, "merging on receive by ipop-gro")
}

#[test]
fn nothing_from_a_stranger_comes_in_through_the_device() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let [_alice, bob] = linked(&pair)?;
    pair.lan.address("192.0.2.200/24")?;
    let port = fast_path(&bob)?.1;
    let inner = frames::udp(Ipv4Addr::new(172, 16, 0, 1).into(), bob.ip4.into(), b"let me in");
    let outer: Vec<u8> = [&[8, 0, 0, 0, 1, 2, 3, 0][..], &inner].concat();
    let watched = pair.bob.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9999)).context("listening at bob")?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })?;
    let mut tap = PacketSocket::open(&pair.bob, "ipop")?;
    // From the wire: the uplink's program hands it to user space. From the host itself: past the uplink, the guard drops it.
    let unknown = bob.counter("kernel_up_unknown_flow")?;
    let refused = bob.counter("kernel_refused")?;
    let send = |from: &Namespace, to: Ipv4Addr| {
        let to = SocketAddr::from((to, port));
        from.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(&outer, to)?))
    };
    for _ in 0..20 {
        send(pair.lan.namespace(), Ipv4Addr::new(192, 0, 2, 2))?;
        send(&pair.bob, Ipv4Addr::LOCALHOST)?;
        send(&pair.bob, Ipv4Addr::new(192, 0, 2, 2))?;
    }
    bob.wait_counter("kernel_up_unknown_flow", unknown + 20, SOON)?;
    bob.wait_counter("kernel_refused", refused + 40, SOON)?;
    let mut buffer = [0; 64];
    ensure!(watched.recv_from(&mut buffer).is_err(), "the host's stack took it");
    while let Some((_, frame)) = tap.receive(Duration::ZERO)? {
        ensure!(!frame.ends_with(b"let me in"), "the TAP got it");
    }
    Ok(())
}

#[test]
fn two_nodes_in_one_namespace_find_each_other_without_a_wire() -> Result<()> {
    let host = Namespace::new("host")?;
    host.exec("ip link add eth0 type veth peer name eth1")?;
    host.exec("ip link set eth0 up")?;
    host.exec("ip link set eth1 up")?;
    host.exec("ip addr add 192.0.2.1/24 dev eth0")?;
    let mut alice = Node::start(&host, 1)?;
    let second = DaemonOptions { tap: "ipop2".to_owned(), rpc_port: 5801, ..DaemonOptions::default() };
    let mut bob = Node::start_with(&host, 2, &second)?;
    connect(&mut alice, &mut bob, &LinkPlan::plain()).with_context(|| bob.daemon.log())?;
    Ok(())
}

#[test]
fn frames_taken_in_the_driver_are_merged_by_its_gro() -> Result<()> {
    let payload = noise(transfer_bytes()? / 4, 11);
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        for (host, port) in [(&pair.alice, "port1"), (&pair.bob, "port2")] {
            without_offloads(host)?;
            pair.lan.namespace().exec(&format!("ethtool -K {port} tso off gso off gro off"))?;
        }
        let options = DaemonOptions { more: vec!["--xdp".into(), "native".into()], ..DaemonOptions::default() };
        let [alice, mut bob] = linked_with(&pair, &options)?;
        ensure!(pair.bob.exec("ip link show eth0")?.contains(" xdp "), "no program in the driver");
        let before = bob.counter("kernel_delivered")?;
        for target in [IpAddr::from(bob.ip4), bob.ip6.into()] {
            tcp_echo(&pair.alice, &pair.bob, target, &payload)
                .with_context(|| format!("{target} over {underlay:?}"))?;
            let report = ping(&pair.alice, target, 50, Duration::from_millis(2), &noise(1200, 3))?;
            ensure!(report.lost == 0, "{} of {} lost", report.lost, report.sent);
        }
        let mean = bytes_per_piece(&bob, &alice, before)?;
        ensure!(mean > 2 * 1280, "{mean} bytes per piece over {underlay:?}");
        ensure!(bob.counter("kernel_broken")? == 0, "frames were lost");
        ensure!(bob.daemon.stop()?, "the daemon did not end well");
        ensure!(!pair.bob.exec("ip link show eth0")?.contains(" xdp "), "the driver's program is left");
    }
    Ok(())
}

#[test]
fn a_program_that_is_in_the_driver_already_stays_and_frames_take_the_other_way() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let native = |tap: &str, rpc_port| DaemonOptions {
        tap: tap.to_owned(),
        rpc_port,
        more: vec!["--xdp".into(), "native".into()],
        ..DaemonOptions::default()
    };
    // It gets no addresses, so that nothing is routed to its TAP.
    let first = Daemon::start(&pair.alice, &native("other", 5801))?;
    wait::until(SOON, "the first program", || pair.alice.exec("ip link show eth0").is_ok_and(|t| t.contains(" xdp ")))?;
    let before = pair.alice.exec("ip link show eth0")?;
    let [alice, bob] = linked_with(&pair, &native("ipop", 5800))?;
    let said = || alice.daemon.log().contains("frames are not taken in the driver");
    wait::until(SOON, "a word about it", said).with_context(|| alice.daemon.log())?;
    ensure!(pair.alice.exec("ip link show eth0")? == before, "the first program was touched");
    let report = ping(&pair.bob, alice.ip4.into(), 50, Duration::from_millis(2), b"by TC")?;
    ensure!(report.lost == 0, "{} of {} lost", report.lost, report.sent);
    ensure!(alice.counter("kernel_broken")? == 0 && bob.counter("kernel_broken")? == 0, "frames were lost");
    drop(first);
    Ok(())
}

#[test]
fn a_clean_stop_removes_the_device() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let mut node = Node::start(&pair.alice, 1)?;
    ensure!(pair.alice.interfaces()?.iter().any(|name| name == DEVICE), "there is no {DEVICE}");
    ensure!(node.daemon.stop()?, "the daemon did not end well");
    ensure!(!pair.alice.interfaces()?.iter().any(|name| name == DEVICE), "{DEVICE} is left");
    Ok(())
}

#[test]
fn somebody_elses_device_of_that_name_is_left_alone() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    pair.alice.exec("ip link add ipop-gro type bridge")?;
    let mut node = Node::start(&pair.alice, 1)?;
    await_fast_path(&node, "not merging on receive: there is an interface ipop-gro already that is not ours")?;
    ensure!(node.daemon.stop()?, "the daemon did not end well");
    ensure!(pair.alice.exec("ip -d link show ipop-gro")?.contains("bridge"), "the device is gone");
    Ok(())
}
