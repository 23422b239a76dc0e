//! Plain links in the kernel: whole, both ways, over IPv4 and IPv6, and what the programs leave to user space.
//!
//! ```text
//!   alice ipop -[tc]- eth0 --- switch --- eth0 -[tc]- ipop bob
//! ```

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::daemon::DaemonOptions;
use tincan_tests::ping::ping;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::traffic::{noise, tcp_echo, transfer_bytes};
use tincan_tests::wait;

const SOON: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;

/// Two nodes with a plain link that the kernel forwards.
fn linked(pair: &Pair, options: &DaemonOptions) -> Result<[Node; 2]> {
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

#[test]
fn tcp_crosses_whole_both_ways_and_user_space_sees_next_to_nothing_of_it() -> Result<()> {
    let payload = noise(transfer_bytes()?, 5);
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        let [alice, bob] = linked(&pair, &DaemonOptions::default())?;
        let user_before = [alice.counter("sent")?, bob.counter("sent")?];
        for target in [IpAddr::from(bob.ip4), bob.ip6.into()] {
            tcp_echo(&pair.alice, &pair.bob, target, &payload)
                .with_context(|| format!("{target} over {underlay:?}"))?;
        }
        for (node, peer, before) in [(&alice, &bob, user_before[0]), (&bob, &alice, user_before[1])] {
            let (user, kernel) = (node.counter("sent")? - before, node.counter("kernel_sent")?);
            ensure!(user * 100 < kernel, "user space sent {user} frames, the kernel {kernel}");
            let seen = node.peer(peer)?;
            for total in ["sent_bytes", "received_bytes"] {
                ensure!(seen.path_number(total) >= 2 * payload.len() as u64, "{total} of {}", seen.0);
            }
            ensure!(node.counter("kernel_broken")? == 0, "the kernel refused a step");
        }
    }
    Ok(())
}

#[test]
fn pings_of_every_size_fragments_too_lose_nothing() -> Result<()> {
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        let [alice, bob] = linked(&pair, &DaemonOptions::default())?;
        for target in [IpAddr::from(bob.ip4), bob.ip6.into()] {
            for size in [0, 1, 100, 1200, 1232, 1252, 4000, 20_000] {
                let report = ping(&pair.alice, target, 20, Duration::from_millis(2), &vec![0x5a; size])?;
                ensure!(report.lost == 0, "{} of 20 pings of {size} bytes to {target} lost", report.lost);
            }
        }
        ensure!(alice.counter("kernel_sent")? > 200 && bob.counter("kernel_delivered")? > 200);
    }
    Ok(())
}

#[test]
fn frames_longer_than_the_path_takes_go_through_user_space() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    for host in [&pair.alice, &pair.bob] {
        host.exec("ip link set eth0 mtu 1400")?;
    }
    let options = DaemonOptions { more: vec!["--mtu".to_owned(), "1450".to_owned()], ..DaemonOptions::default() };
    let [alice, bob] = linked(&pair, &options)?;
    let report = ping(&pair.alice, bob.ip4.into(), 20, Duration::from_millis(2), &[0x5a; 1400])?;
    ensure!(report.lost == 0, "{} of 20 pings lost", report.lost);
    ensure!(alice.counter("kernel_up_too_long")? >= 20 && bob.counter("kernel_up_too_long")? >= 20);
    ensure!(alice.counter("too_big")? == 0, "these may be fragmented");
    tcp_echo(&pair.alice, &pair.bob, bob.ip4.into(), &noise(transfer_bytes()?, 5))
}

#[test]
fn udp_super_frames_arrive_as_datagrams() -> Result<()> {
    const SEGMENT: usize = 1200;
    const SEGMENTS: usize = 10;
    const ROUNDS: usize = 5;
    let pair = Pair::new(Underlay::Dual)?;
    let [alice, bob] = linked(&pair, &DaemonOptions::default())?;
    let target = SocketAddr::new(bob.ip4.into(), PORT);
    let receiver = pair.bob.enter(|| UdpSocket::bind(target).context("the receiver's socket"))?;
    receiver.set_read_timeout(Some(SOON))?;
    let sender = pair.alice.enter(|| UdpSocket::bind((alice.ip4, 0)).context("the sender's socket"))?;
    setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(SEGMENT)?).context("UDP_SEGMENT")?;
    for round in 0..ROUNDS {
        let first = u8::try_from(round * SEGMENTS)?;
        let payload: Vec<u8> = (first..).take(SEGMENTS).flat_map(|number| [number; SEGMENT]).collect();
        sender.send_to(&payload, target).context("sending a super-frame")?;
    }
    for expected in 0..ROUNDS * SEGMENTS {
        let mut buffer = [0; 2 * SEGMENT];
        let length = receiver.recv(&mut buffer).with_context(|| format!("datagram {expected}"))?;
        ensure!(length == SEGMENT && buffer[..length].iter().all(|byte| usize::from(*byte) == expected), "{expected}");
    }
    Ok(())
}

#[test]
fn a_trimmed_link_leaves_the_kernel_and_a_new_one_comes_back() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, mut bob] = linked(&pair, &DaemonOptions::default())?;
    for _ in 0..3 {
        alice.trim(&bob)?;
        bob.trim(&alice)?;
        let sent = alice.counter("kernel_sent")?;
        let report = ping(&pair.alice, bob.ip4.into(), 5, Duration::from_millis(2), b"trimmed")?;
        ensure!(report.lost == 5 && alice.counter("kernel_sent")? == sent, "{report:?} after trim_link");
        drop((alice.door.drain()?, bob.door.drain()?));
        connect(&mut alice, &mut bob, &LinkPlan::plain())?;
        in_kernel(&alice, &bob)?;
        let report = ping(&pair.alice, bob.ip4.into(), 20, Duration::from_millis(2), b"again")?;
        ensure!(report.lost == 0, "{} of 20 pings lost", report.lost);
    }
    Ok(())
}

#[test]
fn one_side_without_the_kernel_engine_is_understood_by_the_other() -> Result<()> {
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        let off = DaemonOptions { more: vec!["--fast-path".to_owned(), "off".to_owned()], ..DaemonOptions::default() };
        let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start_with(&pair.bob, 2, &off)?);
        connect(&mut alice, &mut bob, &LinkPlan::plain())?;
        in_kernel(&alice, &bob)?;
        ensure!(bob.peer(&alice)?.text("engine") == "user");
        tcp_echo(&pair.alice, &pair.bob, bob.ip4.into(), &noise(transfer_bytes()?, 5))?;
        tcp_echo(&pair.bob, &pair.alice, alice.ip6.into(), &noise(transfer_bytes()?, 5))?;
    }
    Ok(())
}
