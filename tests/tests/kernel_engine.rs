//! Plain links in the kernel: whole, both ways, over IPv4 and IPv6, and what the programs leave to user space.
//!
//! ```text
//!   alice ipop -[tc]- eth0 --- switch --- eth0 -[tc]- ipop bob
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tincan_tests::controller::{LinkPlan, Node, connect, gather};
use tincan_tests::daemon::DaemonOptions;
use tincan_tests::ping::ping;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::traffic::{noise, tcp_echo, transfer_bytes};
use tincan_tests::wait;

const SOON: Duration = Duration::from_secs(10);

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

#[test]
fn a_second_overlay_does_not_run_inside_the_first() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let [_alice, _bob] = linked(&pair, &DaemonOptions::default())?;
    let options = DaemonOptions { tap: "second".to_owned(), rpc_port: 5801, ..DaemonOptions::default() };
    let mut carol = Node::start_with(&pair.alice, 3, &options)?;
    let mut dave = Node::start_with(&pair.bob, 4, &options)?;
    let (of_carol, of_dave) = gather(&mut carol, &mut dave, &LinkPlan::plain())?;
    for candidates in [of_carol, of_dave] {
        ensure!(candidates.contains("192.0.2.") && !candidates.contains("172.16.0."), "{candidates}");
    }
    Ok(())
}
