//! What else is on a host with the kernel engine: tunnels on the TAP, containers and bridges behind it, other overlays.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::daemon::DaemonOptions;
use tincan_tests::netns::Namespace;
use tincan_tests::ping::ping;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::traffic::{noise, tcp_echo};
use tincan_tests::wait;

const SOON: Duration = Duration::from_secs(10);
/// Bytes each way.
const TRANSFER: usize = 16 << 20;

fn linked(pair: &Pair) -> Result<[Node; 2]> {
    link([Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?])
}

fn link([mut alice, mut bob]: [Node; 2]) -> Result<[Node; 2]> {
    connect(&mut alice, &mut bob, &LinkPlan::plain())?;
    for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
        let is_in_kernel = || node.peer(peer).is_ok_and(|peer| peer.text("engine") == "kernel");
        wait::until(SOON, "the kernel to take the link", is_in_kernel).with_context(|| node.daemon.log())?;
    }
    Ok([alice, bob])
}

/// Pings of several sizes and TCP both ways, everything compared.
fn works(from: &Namespace, to: &Namespace, target: IpAddr) -> Result<()> {
    for length in [5, 1000, 4000] {
        let report = ping(from, target, 20, Duration::from_millis(5), &noise(length, 1))?;
        ensure!(report.lost == 0, "{} of {} pings with {length} bytes lost", report.lost, report.sent);
    }
    tcp_echo(from, to, target, &noise(TRANSFER, 2))
}

#[test]
fn a_vxlan_device_on_the_tap_works() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [alice, bob] = linked(&pair)?;
    for (host, own, other, address) in
        [(&pair.alice, alice.ip4, bob.ip4, "10.50.0.1/24"), (&pair.bob, bob.ip4, alice.ip4, "10.50.0.2/24")]
    {
        host.exec(&format!("ip link add nest type vxlan id 9 local {own} remote {other} dstport 4789 dev ipop"))?;
        host.exec(&format!("ip addr add {address} dev nest"))?;
        host.exec("ip link set nest up")?;
    }
    works(&pair.alice, &pair.bob, Ipv4Addr::new(10, 50, 0, 2).into())
        .with_context(|| format!("{:?}", alice.daemon.call("counters", &serde_json::json!({}))))
}

#[test]
fn a_container_behind_the_tap_works_by_address_translation() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let [_alice, bob] = linked(&pair)?;
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

#[test]
fn a_routed_container_behind_the_tap_works() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv6)?;
    let [alice, bob] = link([Node::start_router(&pair.alice, 1)?, Node::start_router(&pair.bob, 2)?])?;
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
    ensure!(alice.counter("kernel_sent")? > 100 && alice.counter("kernel_delivered")? > 100, "not in the kernel");
    Ok(())
}

#[test]
fn the_tap_works_as_a_bridges_port() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let [alice, bob] = linked(&pair)?;
    pair.alice.exec("ip link add br0 type bridge forward_delay 0")?;
    pair.alice.exec(&format!("ip addr del {}/24 dev ipop", alice.ip4))?;
    pair.alice.exec("ip link set ipop master br0")?;
    pair.alice.exec("ip link set br0 mtu 1280 up")?;
    pair.alice.exec(&format!("ip addr add {}/24 dev br0", alice.ip4))?;
    works(&pair.alice, &pair.bob, bob.ip4.into())?;
    works(&pair.bob, &pair.alice, alice.ip4.into())
}

#[test]
fn a_second_overlay_does_not_run_inside_the_first() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let [_alice, _bob] = linked(&pair)?;
    let options = DaemonOptions { tap: "second".to_owned(), rpc_port: 5801, ..DaemonOptions::default() };
    let mut carol = Node::start_with(&pair.alice, 3, &options)?;
    let mut dave = Node::start_with(&pair.bob, 4, &options)?;
    let (of_carol, of_dave) = tincan_tests::controller::gather(&mut carol, &mut dave, &LinkPlan::plain())?;
    for candidates in [of_carol, of_dave] {
        ensure!(candidates.contains("192.0.2.") && !candidates.contains("172.16.0."), "{candidates}");
    }
    Ok(())
}
