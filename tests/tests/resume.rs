//! Plain links of a killed daemon go on in the next one, without a word of its peer or of a controller. User space carries
//! the frames here, and the TAP goes with the process: what a ping loses in between is not the question.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob      bob's daemon is killed and started again
//! ```

use std::fs::{self, OpenOptions};
use std::io::ErrorKind::NotFound;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::daemon::DaemonOptions;
use tincan_tests::frames;
use tincan_tests::ping::{ping, until_answered};
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::udp_door::{Received, UdpDoor};
use tincan_tests::wait;

const SOON: Duration = Duration::from_secs(5);
/// From the start of the daemon to the first ping answered.
const RESUMED_WITHIN: Duration = Duration::from_secs(2);
/// How long frames hold a link whose peer answers no check, and some more.
const LEASE: Duration = Duration::from_secs(60);
const OVER_A_MINUTE: Duration = Duration::from_secs(70);
/// Longer than a silent peer is believed in.
const NOTICED_AFTER: Duration = Duration::from_secs(10);

fn options(more: &[&str]) -> DaemonOptions {
    let more = ["--fast-path", "off"].iter().chain(more).map(|word| (*word).to_owned()).collect();
    DaemonOptions { more, ..DaemonOptions::default() }
}

/// Two nodes with a link that bob's snapshot knows.
fn linked(pair: &Pair, of_bob: &[&str]) -> Result<(Node, Node)> {
    let mut alice = Node::start_with(&pair.alice, 1, &options(&[]))?;
    let mut bob = Node::start_with(&pair.bob, 2, &options(of_bob))?;
    connect(&mut alice, &mut bob, &LinkPlan::plain())?;
    until_answered(&pair.alice, bob.ip4.into(), SOON)?;
    wait_stored(&bob)?;
    wait_stored(&alice)?;
    Ok((alice, bob))
}

fn snapshot_of(node: &Node) -> PathBuf {
    node.daemon.state_dir().join("ipop.links.json")
}

fn read_snapshot(node: &Node) -> Option<Value> {
    serde_json::from_slice(&fs::read(snapshot_of(node)).ok()?).ok()
}

fn wait_stored(node: &Node) -> Result<()> {
    let is_stored = || read_snapshot(node).is_some_and(|snapshot| snapshot["links"][0]["reachable"] == true);
    wait::until(SOON, "the link in the snapshot", is_stored).with_context(|| format!("{:?}", read_snapshot(node)))
}

/// What bob's daemon has after its start: peers and own uid.
fn known(node: &Node) -> Result<(usize, String)> {
    let state = node.daemon.call("get_state", &json!({}))?;
    let own = state["local_state"]["_uid"].as_str().context("no _uid")?.to_owned();
    Ok((state["peers"].as_array().context("no peers")?.len(), own))
}

/// Neither side ever says that the link was down.
fn never_offline(alice: &mut Node, bob: &Node) -> Result<()> {
    wait::throughout(NOTICED_AFTER, "alice has the link online", || {
        alice.peer(bob).is_ok_and(|peer| peer.is_online())
    })?;
    let told = alice.door.drain()?;
    let offline = told.iter().filter_map(Received::json).find(|json| json["data"] == "offline");
    ensure!(offline.is_none(), "alice told {offline:?}");
    Ok(())
}

#[test]
fn a_killed_daemon_goes_on_with_its_link_and_the_peer_never_misses_it() -> Result<()> {
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        let (mut alice, mut bob) = linked(&pair, &["--plain-port", "45001"])?;
        drop(alice.door.drain()?);
        for _ in 0..3 {
            bob.daemon.kill9()?;
            let start = Instant::now();
            bob.daemon.restart()?;
            ensure!(bob.peer(&alice)?.is_online(), "the link is not online at once: {:?}", bob.peer(&alice)?);
            until_answered(&pair.alice, bob.ip4.into(), RESUMED_WITHIN)?;
            println!("over {underlay:?} the first ping is answered {:?} after the start", start.elapsed());
            wait_stored(&bob)?;
        }
        never_offline(&mut alice, &bob)?;
        ensure!(bob.peer(&alice)?.is_online(), "bob lost the link");
        for target in [bob.ip4.into(), bob.ip6.into()] {
            let report = ping(&pair.alice, target, 20, Duration::from_millis(5), b"resumed")?;
            ensure!(report.lost == 0, "{} of 20 pings lost", report.lost);
        }
    }
    Ok(())
}

#[test]
fn a_port_that_the_kernel_chose_is_the_same_again_and_notifications_go_where_they_went() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = linked(&pair, &[])?;
    let port = |node: &Node| node.daemon.call("status", &json!({})).map(|status| status["host"]["plain_port"].clone());
    let before = port(&bob)?;
    drop((alice.door.drain()?, bob.door.drain()?));
    bob.daemon.kill9()?;
    bob.daemon.restart()?;
    ensure!(port(&bob)? == before, "port {before} became {}", port(&bob)?);
    never_offline(&mut alice, &bob)?;
    alice.trim(&bob)?;
    bob.door.status(NOTICED_AFTER + SOON, &alice.uid, "offline")?;
    Ok(())
}

#[test]
fn both_daemons_may_be_killed_at_once_and_a_link_that_was_given_up_comes_back() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = linked(&pair, &[])?;
    for node in [&mut alice, &mut bob] {
        node.daemon.kill9()?;
    }
    for node in [&mut alice, &mut bob] {
        node.daemon.restart()?;
    }
    until_answered(&pair.alice, bob.ip4.into(), RESUMED_WITHIN)?;
    wait_stored(&bob)?;
    bob.daemon.kill9()?;
    alice.door.status(NOTICED_AFTER, &bob.uid, "offline")?;
    bob.daemon.restart()?;
    alice.door.status(SOON, &bob.uid, "online")?;
    until_answered(&pair.alice, bob.ip4.into(), SOON)?;
    Ok(())
}

#[test]
fn the_controller_may_say_the_same_again_trim_and_link_anew() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = linked(&pair, &[])?;
    bob.daemon.kill9()?;
    bob.restart()?;
    ensure!(bob.peer(&alice)?.is_online(), "set_local_ip cost the link");
    bob.map(&alice)?;
    until_answered(&pair.alice, bob.ip4.into(), RESUMED_WITHIN)?;
    bob.trim(&alice)?;
    alice.trim(&bob)?;
    drop((alice.door.drain()?, bob.door.drain()?));
    connect(&mut alice, &mut bob, &LinkPlan::plain())?;
    until_answered(&pair.alice, bob.ip4.into(), SOON)?;
    Ok(())
}

#[test]
fn a_controller_that_names_another_node_gets_a_fresh_one() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = linked(&pair, &[])?;
    bob.daemon.kill9()?;
    bob.daemon.restart()?;
    let before = format!("{}/24", bob.ip4);
    (bob.uid, bob.ip4) = ("03".repeat(20), [172, 16, 0, 3].into());
    bob.door = UdpDoor::open(&pair.bob, 5800)?;
    bob.introduce()?;
    ensure!(known(&bob)? == (0, bob.uid.clone()), "{:?}", known(&bob)?);
    let addresses = pair.bob.exec("ip -4 addr show dev ipop")?;
    ensure!(addresses.contains("172.16.0.3/24") && !addresses.contains(&before), "{addresses}");
    drop((alice.door.drain()?, bob.door.drain()?));
    bob.ip6 = "fd50:dbc:41f2:4a3c::3".parse()?;
    connect(&mut alice, &mut bob, &LinkPlan::plain())?;
    until_answered(&pair.alice, bob.ip4.into(), SOON)?;
    Ok(())
}

#[test]
fn a_daemon_that_is_stopped_leaves_no_snapshot_and_the_next_one_has_no_link() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (_alice, mut bob) = linked(&pair, &[])?;
    ensure!(bob.daemon.stop()?, "the daemon did not obey");
    ensure!(!snapshot_of(&bob).exists(), "the snapshot is left behind");
    bob.daemon.restart()?;
    ensure!(known(&bob)? == (0, String::new()), "{:?}", known(&bob)?);
    ensure!(!bob.daemon.log().contains("not resumed"), "nothing was there to refuse");
    Ok(())
}

#[test]
fn a_link_that_is_trimmed_or_secured_leaves_no_snapshot() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = linked(&pair, &[])?;
    bob.trim(&alice)?;
    alice.trim(&bob)?;
    wait::until(SOON, "the snapshot to go with its link", || !snapshot_of(&bob).exists())?;
    drop((alice.door.drain()?, bob.door.drain()?));
    connect(&mut alice, &mut bob, &LinkPlan::secured())?;
    bob.daemon.kill9()?;
    bob.daemon.restart()?;
    ensure!(known(&bob)?.0 == 0 && !snapshot_of(&bob).exists(), "a secured link was kept");
    Ok(())
}

#[test]
fn frames_of_a_dead_peer_hold_its_link_for_a_minute_and_no_longer() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let (mut alice, mut bob) = linked(&pair, &[])?;
    bob.daemon.kill9()?;
    let killed = Instant::now();
    // What the kernel of a dead daemon goes on with, here by hand.
    let snapshot = read_snapshot(&bob).context("no snapshot")?;
    let to_alice = snapshot["links"][0]["remote_addr"].as_str().context("no address")?.to_owned();
    let cas = snapshot["links"][0]["call"]["cas"].as_str().context("no cas")?;
    let (_, tag) = cas.split_once("vni=").context("no tag")?;
    let header = (u64::from(8u8) << 56) | (u64::from_str_radix(tag.get(..6).context("a short tag")?, 16)? << 8);
    let frame = frames::udp(bob.ip4.into(), alice.ip4.into(), b"still forwarded");
    let datagram = [&header.to_be_bytes()[..], &frame].concat();
    let port = u16::try_from(snapshot["plain_port"].as_u64().context("no port")?)?;
    let socket = pair.bob.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("the dead daemon's port"))?;
    wait::until(OVER_A_MINUTE, "the end of the link", || {
        let _ = socket.send_to(&datagram, &to_alice);
        !alice.peer(&bob).is_ok_and(|peer| peer.is_online())
    })?;
    let held = killed.elapsed();
    println!("held for {held:?}");
    ensure!(held + SOON > LEASE && held < OVER_A_MINUTE, "held for {held:?}");
    alice.door.status(SOON, &bob.uid, "offline")?;
    Ok(())
}

#[test]
fn a_resumed_link_is_in_the_kernel_again() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    connect(&mut alice, &mut bob, &LinkPlan::plain())?;
    let is_in_kernel = |node: &Node, peer: &Node| node.peer(peer).is_ok_and(|peer| peer.text("engine") == "kernel");
    wait::until(SOON, "the kernel to take the link", || is_in_kernel(&bob, &alice) && is_in_kernel(&alice, &bob))?;
    wait_stored(&bob)?;
    drop(alice.door.drain()?);
    bob.daemon.kill9()?;
    bob.daemon.restart()?;
    wait::until(SOON, "the kernel to take the link again", || is_in_kernel(&bob, &alice))?;
    until_answered(&pair.alice, bob.ip4.into(), RESUMED_WITHIN)?;
    never_offline(&mut alice, &bob)
}

#[test]
fn a_snapshot_that_cannot_be_gone_on_with_is_removed_with_one_line() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let (_alice, mut bob) = linked(&pair, &["--plain-port", "45001"])?;
    bob.daemon.kill9()?;
    let good = fs::read(snapshot_of(&bob))?;
    let edited = |key: &str, value: Value| -> Result<Vec<u8>> {
        let mut snapshot: Value = serde_json::from_slice(&good)?;
        snapshot[key] = value;
        Ok(snapshot.to_string().into_bytes())
    };
    for (text, reason) in [
        (good[..good.len() / 2].to_vec(), "damaged"),
        (Vec::new(), "damaged"),
        (edited("version", json!(2))?, "version 2"),
        (edited("boot_id", json!("another"))?, "another boot"),
        (edited("uptime_ms", json!(0))?, "s old"),
        (edited("links", json!([{}]))?, "damaged"),
        (edited("plain_port", json!(45002))?, "UDP port 45002"),
    ] {
        bob.daemon.stop()?;
        fs::remove_file(snapshot_of(&bob))
            .or_else(|error| if error.kind() == NotFound { Ok(()) } else { Err(error) })?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(snapshot_of(&bob))?;
        file.write_all(&text)?;
        bob.daemon.restart()?;
        ensure!(known(&bob)? == (0, String::new()), "{reason}: {:?}", known(&bob)?);
        let log = bob.daemon.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("ipop.links.json")).collect();
        ensure!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains(reason), "{reason}: {lines:?}");
        wait::until(SOON, "the snapshot to be removed", || !snapshot_of(&bob).exists())?;
    }
    Ok(())
}
