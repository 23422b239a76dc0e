//! Plain links in the kernel past the end of their daemons: killed, started again, stopped, cleaned up.
//!
//! ```text
//!   alice ipop -[tc]- eth0 --- switch --- eth0 -[tc]- ipop bob      each with a bpffs for its daemon
//! ```

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::daemon::{DaemonOptions, command_with_pins};
use tincan_tests::netns::Namespace;
use tincan_tests::ping::ping;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::udp_door::Received;
use tincan_tests::wait;

const SOON: Duration = Duration::from_secs(10);
/// Between two pings: 100 a second.
const PACE: Duration = Duration::from_millis(10);

fn options(more: &[&str]) -> DaemonOptions {
    DaemonOptions { more: more.iter().map(|word| (*word).to_owned()).collect(), ..DaemonOptions::default() }
}

/// Two nodes with a plain link that the kernel forwards.
fn linked(pair: &Pair, more: &[&str]) -> Result<[Node; 2]> {
    let options = options(more);
    let (mut alice, mut bob) = (Node::start_with(&pair.alice, 1, &options)?, Node::start_with(&pair.bob, 2, &options)?);
    connect(&mut alice, &mut bob, &LinkPlan::plain())?;
    for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
        let is_in_kernel = || node.peer(peer).is_ok_and(|peer| peer.text("engine") == "kernel");
        wait::until(SOON, "the kernel to take the link", is_in_kernel).with_context(|| node.daemon.log())?;
    }
    Ok([alice, bob])
}

/// Pings `target` at 100/s for `time` while `meanwhile` happens; the number that was lost.
fn lost_while(from: &Namespace, target: IpAddr, time: Duration, meanwhile: impl FnOnce() -> Result<()>) -> Result<u32> {
    let count = u32::try_from(time.as_millis() / PACE.as_millis())?;
    thread::scope(|scope| {
        let pings = scope.spawn(|| ping(from, target, count, PACE, &[0x5a; 56]));
        meanwhile()?;
        let report = pings.join().expect("pings end by themselves")?;
        Ok(report.lost)
    })
}

fn all_answered(from: &Namespace, target: IpAddr) -> Result<()> {
    let report = ping(from, target, 50, PACE, &[0x5a; 56])?;
    ensure!(report.lost == 0, "{} of {} pings lost", report.lost, report.sent);
    Ok(())
}

/// Ids of the programs on both sides of an interface.
fn programs(namespace: &Namespace, interface: &str) -> Result<Vec<u32>> {
    namespace.enter(|| {
        let sides = [TcAttachType::Ingress, TcAttachType::Egress];
        let of_side = |side| Ok(SchedClassifier::query_tcx(interface, side)?.1);
        let found = sides.into_iter().map(of_side).collect::<Result<Vec<_>>>()?;
        Ok(found.iter().flatten().map(aya::programs::ProgramInfo::id).collect())
    })
}

/// No TAP, no pins, no programs.
fn nothing_is_left(namespace: &Namespace) -> Result<()> {
    ensure!(namespace.interfaces()? == ["eth0"], "devices are left: {:?}", namespace.interfaces()?);
    ensure!(namespace.pinned()?.is_empty(), "pins are left: {:?}", namespace.pinned()?);
    // The kernel frees an unpinned link in its own time.
    let gone = || programs(namespace, "eth0").is_ok_and(|programs| programs.is_empty());
    wait::until(SOON, "the programs on eth0 to go", gone)
}

fn tap_index(namespace: &Namespace) -> Result<u32> {
    namespace.enter(|| if_nametoindex("ipop").context("no TAP"))
}

#[test]
fn frames_flow_without_daemons_until_a_cleanup_that_leaves_nothing() -> Result<()> {
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let pair = Pair::new(underlay)?;
        let [mut alice, mut bob] = linked(&pair, &[])?;
        let (said_well, said) = command_with_pins(&pair.alice, &["cleanup"])?;
        ensure!(!said_well && said.contains("kept ipop: a daemon is running"), "beside a daemon: {said}");
        let lost = lost_while(&pair.alice, bob.ip4.into(), Duration::from_secs(10), || {
            alice.daemon.kill9()?;
            bob.daemon.kill9()
        })?;
        ensure!(lost == 0, "{lost} pings lost while both daemons died");
        all_answered(&pair.bob, alice.ip6.into())?;
        ensure!(pair.alice.interfaces()?.contains(&"ipop".to_owned()), "the TAP went");
        for host in [&pair.alice, &pair.bob] {
            ensure!(!host.pinned()?.is_empty() && !programs(host, "eth0")?.is_empty(), "nothing to clean up");
            let (said_well, said) = command_with_pins(host, &["cleanup", "--json"])?;
            let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            let kinds: Vec<&str> =
                said["removed"].as_array().into_iter().flatten().filter_map(|one| one["kind"].as_str()).collect();
            ensure!(said_well && kinds.starts_with(&["tap", "pins"]), "{said}");
            ensure!(kinds[2..].iter().all(|kind| *kind == "device"), "{said}");
            nothing_is_left(host)?;
            ensure!(command_with_pins(host, &["cleanup"])? == (true, "nothing to remove\n".to_owned()));
        }
    }
    Ok(())
}

#[test]
fn the_lease_ends_what_no_daemon_holds() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, mut bob] = linked(&pair, &["--lease", "5"])?;
    alice.daemon.kill9()?;
    bob.daemon.kill9()?;
    all_answered(&pair.alice, bob.ip4.into())?;
    let is_silent = || ping(&pair.alice, bob.ip4.into(), 1, PACE, b"to the dead").is_ok_and(|report| report.lost == 1);
    wait::until(SOON, "the lease to end", is_silent)
}

#[test]
fn a_new_daemon_goes_on_with_device_port_programs_and_entries() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, mut bob] = linked(&pair, &[])?;
    bob.daemon.kill9()?;
    let device = tap_index(&pair.alice)?;
    let port = |node: &Node| node.daemon.call("status", &json!({}))?["host"]["plain_port"].as_u64().context("no port");
    let port_before = port(&alice)?;
    let mac = alice.daemon.call("get_state", &json!({}))?["local_state"]["_mac"].clone();
    for _ in 0..3 {
        let before = programs(&pair.alice, "eth0")?;
        let counted = alice.counter("kernel_sent")?;
        let lost = lost_while(&pair.alice, bob.ip4.into(), Duration::from_secs(3), || {
            alice.daemon.kill9()?;
            alice.restart()
        })?;
        ensure!(lost == 0, "{lost} pings lost while alice's daemon was killed and started again");
        let log = alice.daemon.log();
        ensure!(log.contains("what a daemon before left is gone on with"), "{log}");
        ensure!(tap_index(&pair.alice)? == device, "another device");
        let state = alice.daemon.call("get_state", &json!({}))?;
        ensure!(state["local_state"]["_mac"] == mac, "another address: {state}");
        ensure!(port(&alice)? == port_before, "another port");
        let after = programs(&pair.alice, "eth0")?;
        ensure!(before.len() == after.len() && !after.iter().any(|id| before.contains(id)), "{before:?} are {after:?}");
        ensure!(alice.counter("kernel_sent")? > counted, "the counters begin anew");
    }
    ensure!(alice.daemon.stop()?, "the daemon did not stop at SIGTERM");
    nothing_is_left(&pair.alice)
}

#[test]
fn twenty_deaths_in_a_row_cost_no_ping_and_leave_nothing() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, mut bob] = linked(&pair, &[])?;
    wait_stored(&alice)?;
    drop(bob.door.drain()?);
    let (devices, pins) = (pair.alice.interfaces()?, pair.alice.pinned()?);
    let ran = AtomicBool::new(true);
    let lost = thread::scope(|scope| {
        let stream = scope.spawn(|| tcp_without_a_gap(&pair, bob.ip4.into(), &ran));
        let lost = lost_while(&pair.alice, bob.ip4.into(), Duration::from_secs(15), || {
            for round in 0..20 {
                alice.daemon.kill9()?;
                let start = Instant::now();
                alice.daemon.restart()?;
                let in_kernel = || alice.peer(&bob).is_ok_and(|peer| peer.text("engine") == "kernel");
                wait::until(Duration::from_secs(2), "the next daemon to go on", in_kernel)
                    .with_context(|| alice.daemon.log())?;
                println!("round {round}: gone on with after {:.2} s", start.elapsed().as_secs_f64());
                wait_stored(&alice)?;
            }
            Ok(())
        });
        ran.store(false, Ordering::Relaxed);
        stream.join().expect("the stream ends by itself")?;
        lost
    })?;
    ensure!(lost == 0, "{lost} pings lost");
    let log = alice.daemon.log();
    ensure!(log.contains("plain links of the daemon before are resumed") && !log.contains("nobody claimed"), "{log}");
    ensure!(pair.alice.interfaces()? == devices && pair.alice.pinned()? == pins, "something was added or is gone");
    let told = bob.door.drain()?;
    let offline = told.iter().filter_map(Received::json).find(|json| json["data"] == "offline");
    ensure!(offline.is_none(), "bob told {offline:?}");
    ensure!(alice.daemon.stop()? && bob.daemon.stop()?, "a daemon did not stop at SIGTERM");
    nothing_is_left(&pair.alice)?;
    nothing_is_left(&pair.bob)
}

#[test]
fn a_death_costs_no_ping_where_frames_are_taken_in_the_driver() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, mut bob] = linked(&pair, &["--xdp", "native"])?;
    let native = |host: &Namespace| host.exec("ip link show dev eth0").is_ok_and(|text| text.contains("prog/xdp"));
    ensure!(native(&pair.alice) && native(&pair.bob), "no program in the driver: {}", alice.daemon.log());
    let lost = lost_while(&pair.alice, bob.ip4.into(), Duration::from_secs(6), || {
        for _ in 0..5 {
            wait_stored(&alice)?;
            alice.daemon.kill9()?;
            wait::until(SOON, "the kernel to take the program away", || !native(&pair.alice))?;
            alice.daemon.restart()?;
            let in_kernel = || alice.peer(&bob).is_ok_and(|peer| peer.text("engine") == "kernel");
            wait::until(SOON, "the next daemon to go on", || in_kernel() && native(&pair.alice))
                .with_context(|| alice.daemon.log())?;
        }
        Ok(())
    })?;
    ensure!(lost == 0, "{lost} pings lost");
    ensure!(alice.daemon.stop()? && bob.daemon.stop()?, "a daemon did not stop at SIGTERM");
    nothing_is_left(&pair.alice)?;
    nothing_is_left(&pair.bob)?;
    ensure!(!native(&pair.alice) && !native(&pair.bob), "a program stayed in a driver");
    Ok(())
}

#[test]
fn deaths_cost_no_ping_where_programs_are_filters_of_clsact_and_nothing_is_left() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, mut bob] = linked(&pair, &["--attach", "clsact"])?;
    let filters = |host: &Namespace| host.exec("tc filter show dev eth0 ingress");
    let names = |host: &Namespace| -> Result<usize> { Ok(filters(host)?.matches(" name ").count()) };
    ensure!(programs(&pair.alice, "eth0")?.is_empty() && names(&pair.alice)? == 2, "{}", filters(&pair.alice)?);
    let devices = || pair.alice.exec("ip -o link show").map(|text| text.matches(": ipop").count());
    let indices = || pair.alice.enter(|| Ok(["ipop", "ipop-gro"].map(|name| if_nametoindex(name).ok())));
    let before = (devices()?, indices()?);
    let lost = lost_while(&pair.alice, bob.ip4.into(), Duration::from_secs(8), || {
        for _ in 0..10 {
            wait_stored(&alice)?;
            let shown = filters(&pair.alice)?;
            alice.daemon.kill9()?;
            ensure!(filters(&pair.alice)? == shown, "the filters went with the daemon");
            alice.daemon.restart()?;
            let in_kernel = || alice.peer(&bob).is_ok_and(|peer| peer.text("engine") == "kernel");
            wait::until(Duration::from_secs(2), "the next daemon to go on", in_kernel)
                .with_context(|| alice.daemon.log())?;
            ensure!(names(&pair.alice)? == 2 && filters(&pair.alice)? != shown, "{}", filters(&pair.alice)?);
        }
        ensure!(before == (devices()?, indices()?), "other devices: {before:?}, {:?}", indices()?);
        Ok(())
    })?;
    ensure!(lost == 0, "{lost} pings lost");
    alice.daemon.kill9()?;
    let (said_well, said) = command_with_pins(&pair.alice, &["cleanup"])?;
    ensure!(said_well && said.contains("removed pins"), "{said}");
    ensure!(bob.daemon.stop()?, "a daemon did not stop at SIGTERM");
    for host in [&pair.alice, &pair.bob] {
        nothing_is_left(host)?;
        let qdiscs = host.exec("tc qdisc show dev eth0")?;
        ensure!(!qdiscs.contains("clsact"), "a qdisc is left: {qdiscs}");
    }
    Ok(())
}

/// The node's link is in its snapshot, so that the next daemon goes on with it.
fn wait_stored(node: &Node) -> Result<()> {
    let path = node.daemon.state_dir().join("ipop.links.json");
    let read = || serde_json::from_slice::<Value>(&fs::read(&path).ok()?).ok();
    let is_stored = || read().is_some_and(|snapshot| snapshot["links"][0]["reachable"] == true);
    wait::until(SOON, "the link in the snapshot", is_stored)
}

/// A TCP stream from alice to bob while `goes_on`, in which nothing arrives for 0.5 s at no time.
fn tcp_without_a_gap(pair: &Pair, target: IpAddr, goes_on: &AtomicBool) -> Result<()> {
    let listener = pair.bob.enter(|| TcpListener::bind((target, 0)).context("listening"))?;
    let address = listener.local_addr()?;
    let mut sender = pair.alice.enter(|| TcpStream::connect(address).context("connecting"))?;
    sender.set_write_timeout(Some(SOON))?;
    let (mut receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || -> Result<()> {
            while goes_on.load(Ordering::Relaxed) {
                sender.write_all(&[0x5a; 1 << 14]).context("sending")?;
            }
            Ok(())
        });
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            match receiver.read(&mut buffer).with_context(|| format!("a gap after {total} bytes"))? {
                0 => break,
                length => total += length,
            }
        }
        println!("{} MB by TCP", total >> 20);
        sending.join().expect("the sender ends by itself")
    })
}

#[test]
fn a_stopped_daemon_leaves_nothing_unless_it_is_told_to() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, mut bob] = linked(&pair, &["--keep-links"])?;
    let lost = lost_while(&pair.alice, bob.ip4.into(), Duration::from_secs(3), || {
        ensure!(alice.daemon.stop()? && bob.daemon.stop()?, "a daemon did not stop at SIGTERM");
        Ok(())
    })?;
    ensure!(lost == 0, "{lost} pings lost while both daemons stopped");
    all_answered(&pair.bob, alice.ip4.into())?;
    drop((alice, bob));
    let mut alice = Node::start_with(&pair.alice, 1, &options(&[]))?;
    ensure!(alice.daemon.log().contains("what a daemon before left is gone on with"), "{}", alice.daemon.log());
    ensure!(alice.daemon.stop()?, "a daemon did not stop at SIGTERM");
    nothing_is_left(&pair.alice)
}

#[test]
fn pins_that_do_not_fit_are_replaced_with_one_line_and_the_device_stays() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, bob] = linked(&pair, &[])?;
    let device = tap_index(&pair.alice)?;
    let directory = |namespace: &Namespace| {
        let is_map = |path: &PathBuf| path.ends_with("settings");
        let file = namespace.pinned()?.into_iter().find(is_map).context("no pins")?;
        file.parent().map(Path::to_owned).context("a file without a directory")
    };
    for (damage, said) in [("another layout", "it has layout v0"), ("half written", "map flows")] {
        let before = programs(&pair.alice, "eth0")?;
        alice.daemon.kill9()?;
        let pins = directory(&pair.alice)?;
        if damage == "another layout" {
            fs::rename(&pins, pins.with_file_name("v0"))?;
        } else {
            fs::remove_file(pins.join("flows"))?;
        }
        alice.restart()?;
        let log = alice.daemon.log();
        ensure!(log.matches("what a daemon before left is removed").count() == 1 && log.contains(said), "{log}");
        ensure!(tap_index(&pair.alice)? == device, "{damage}: another device");
        ensure!(
            log.contains("attached, pinned") && directory(&pair.alice)? == pins,
            "{damage}: not pinned anew: {log}"
        );
        let is_new = |ids: Vec<u32>| ids.len() == before.len() && !ids.iter().any(|id| before.contains(id));
        wait::until(SOON, "new programs only", || programs(&pair.alice, "eth0").is_ok_and(is_new))?;
    }
    ensure!(alice.daemon.stop()?, "the daemon did not stop at SIGTERM");
    drop(bob);
    nothing_is_left(&pair.alice)
}

#[test]
fn a_daemon_without_the_kernel_engine_takes_the_device_and_removes_the_pins() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, bob] = linked(&pair, &[])?;
    let device = tap_index(&pair.alice)?;
    alice.daemon.kill9()?;
    let mut alice = Node::start_with(&pair.alice, 1, &options(&["--fast-path", "off"]))?;
    ensure!(alice.daemon.log().contains("what a daemon before left is removed"), "{}", alice.daemon.log());
    ensure!(tap_index(&pair.alice)? == device && pair.alice.pinned()?.is_empty());
    ensure!(alice.daemon.stop()?, "the daemon did not stop at SIGTERM");
    nothing_is_left(&pair.alice)?;
    drop(bob);
    Ok(())
}

#[test]
fn only_a_tap_that_is_ours_and_that_nobody_holds_is_taken_over() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let [mut alice, _bob] = linked(&pair, &[])?;
    let second = DaemonOptions { rpc_port: 5801, ..options(&[]) };
    let said = tincan_tests::daemon::Daemon::start_refused(&pair.alice, &second)?;
    ensure!(said.contains("the TAP ipop is in use"), "beside a daemon: {said}");
    let before = programs(&pair.alice, "eth0")?;
    alice.daemon.kill9()?;
    ensure!(!before.is_empty() && programs(&pair.alice, "eth0")? == before, "the refused daemon changed something");
    pair.alice.exec("ip link del ipop")?;
    pair.alice.exec("ip tuntap add mode tap name ipop")?;
    let said = tincan_tests::daemon::Daemon::start_refused(&pair.alice, &second)?;
    ensure!(said.contains("exists already and is not ours"), "with a foreign device: {said}");
    let (said_well, said) = command_with_pins(&pair.alice, &["cleanup"])?;
    ensure!(said_well && said.starts_with("removed pins") && !said.contains("removed tap"), "{said}");
    ensure!(pair.alice.interfaces()?.contains(&"ipop".to_owned()), "a foreign device was removed");
    Ok(())
}

#[test]
fn without_bpffs_links_end_with_their_daemon_and_it_says_so() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let mut alice = Node::start_with(&pair.alice, 1, &DaemonOptions { pins: false, ..options(&[]) })?;
    let log = alice.daemon.log();
    ensure!(log.matches("links end with this daemon: no bpffs at /sys/fs/bpf").count() == 1, "{log}");
    alice.daemon.kill9()?;
    ensure!(!pair.alice.interfaces()?.contains(&"ipop".to_owned()), "the TAP is left");
    ensure!(command_with_pins(&pair.alice, &["cleanup"])?.0, "cleanup failed");
    nothing_is_left(&pair.alice)
}
