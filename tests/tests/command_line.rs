//! The command line against running daemons, and what a daemon refuses to start with.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob
//! ```

use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::daemon::{Daemon, DaemonOptions, program};
use tincan_tests::netns::Namespace;
use tincan_tests::ping::ping;
use tincan_tests::topology::{Pair, Underlay};

fn tincan(daemon: &Daemon, arguments: &[&str]) -> Result<Output> {
    let (command, rest) = arguments.split_first().context("no command")?;
    let socket = daemon.socket();
    Command::new(program()?).arg(command).arg("--socket").arg(socket).args(rest).output().context("running tincan")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn status_shows_self_and_peers_for_people_and_machines() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    let lonely = text(&tincan(&alice.daemon, &["status"])?.stdout);
    ensure!(lonely.contains("tincan call create_link"), "no advice without peers: {lonely}");
    connect(&mut alice, &mut bob, &LinkPlan::secured())?;
    ping(&pair.alice, bob.ip4.into(), 5, Duration::from_millis(10), b"status")?;
    let shown = text(&tincan(&alice.daemon, &["status"])?.stdout);
    for part in [&alice.uid, &alice.fingerprint, "172.16.0.1", "172.16.0.2", "02020202", "online", "dtls", "192.0.2.2"]
    {
        ensure!(shown.contains(part), "{part} is missing in:\n{shown}");
    }
    let status: Value = serde_json::from_slice(&tincan(&alice.daemon, &["status", "--json"])?.stdout)?;
    let peer = &status["peers"][0];
    ensure!(peer["status"] == "online" && peer["security"] == "dtls" && peer["engine"] == "user", "{peer}");
    ensure!(peer["path"]["sent_frames"].as_u64() >= Some(5), "{peer}");
    ensure!(status["counters"]["sent"].as_u64() >= Some(5), "{}", status["counters"]);
    ensure!(status["host"]["tap"] == "ipop", "{}", status["host"]);
    Ok(())
}

#[test]
fn call_makes_any_call_and_says_why_one_is_refused() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let alice = Node::start(&pair.alice, 1)?;
    let echo = tincan(&alice.daemon, &["call", "echo_request", "msg=hello"])?;
    ensure!(echo.status.success() && text(&echo.stdout).contains("hello"), "{echo:?}");
    let own = format!("uid={}", alice.uid);
    for (arguments, expected) in [
        (["call", "trim_link", "uid=12"], "40 hexadecimal digits"),
        (["call", "create_link", own.as_str()], "itself"),
        (["call", "no_such_method", "a=b"], "known are"),
        (["call", "trim_link", "uid"], "key=value"),
    ] {
        let refused = tincan(&alice.daemon, &arguments)?;
        let said = text(&refused.stderr);
        ensure!(!refused.status.success() && said.contains(expected), "{arguments:?} was answered by {said:?}");
    }
    Ok(())
}

#[test]
fn without_a_daemon_the_command_line_says_how_to_start_one() -> Result<()> {
    let output = Command::new(program()?).args(["status", "--socket", "/nonexistent/tincan.sock"]).output()?;
    let said = text(&output.stderr);
    ensure!(!output.status.success() && said.contains("tincan daemon"), "{said}");
    Ok(())
}

#[test]
fn a_file_of_authorities_that_is_none_is_said_at_start() -> Result<()> {
    let host = Namespace::new("authorities")?;
    for (path, expected) in [("/nonexistent.pem", "/nonexistent.pem"), ("/etc/hostname", "holds no certificate")] {
        let more = ["--xmpp-ca", path].map(str::to_owned).to_vec();
        let said = Daemon::start_refused(&host, &DaemonOptions { more, ..DaemonOptions::default() })?;
        ensure!(said.contains("--xmpp-ca") && said.contains(expected), "{path}: {said}");
    }
    Ok(())
}

#[test]
fn a_device_that_is_not_ours_is_never_taken_over() -> Result<()> {
    let host = Namespace::new("host")?;
    host.exec("ip tuntap add dev ipop mode tap")?;
    let said = Daemon::start_refused(&host, &DaemonOptions::default())?;
    ensure!(said.contains("ipop") && said.contains("--tap"), "{said}");
    ensure!(host.interfaces()? == ["ipop"], "the foreign device is gone");
    Ok(())
}

#[test]
fn several_daemons_share_a_host_and_a_second_one_on_the_same_port_says_so() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let _first = Node::start(&pair.alice, 1)?;
    let second = DaemonOptions { tap: "blue".to_owned(), rpc_port: 5801, ..DaemonOptions::default() };
    let mut blue = Node::start_with(&pair.alice, 3, &second)?;
    let mut bob = Node::start(&pair.bob, 2)?;
    connect(&mut blue, &mut bob, &LinkPlan::secured())?;
    let third = DaemonOptions { tap: "red".to_owned(), ..DaemonOptions::default() };
    let said = Daemon::start_refused(&pair.alice, &third)?;
    ensure!(said.contains("5800") && said.contains("--rpc-port"), "{said}");
    ensure!(!pair.alice.interfaces()?.contains(&"red".to_owned()), "a TAP is left behind");
    Ok(())
}

#[test]
fn the_kernel_programs_count_on_the_tap_and_are_gone_after_the_end() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let options = DaemonOptions { more: vec!["--fast-path".to_owned(), "on".to_owned()], ..DaemonOptions::default() };
    let mut alice = Node::start_with(&pair.alice, 1, &options)?;
    let status = alice.daemon.call("status", &json!({}))?;
    let fast_path = status["host"]["fast_path"].as_str().unwrap_or_default();
    ensure!(fast_path.starts_with("attached, pinned, merging on receive"), "{fast_path}");
    let before = alice.counter("kernel_up_unrouted")?;
    ping(&pair.alice, "172.16.0.99".parse()?, 10, Duration::from_millis(10), b"counted")?;
    let counted = alice.counter("kernel_up_unrouted")? - before;
    ensure!(counted >= 10, "{counted} of 10 frames counted");
    ensure!(alice.daemon.stop()?, "the daemon did not stop at SIGTERM");
    ensure!(pair.alice.interfaces()? == ["eth0"], "the TAP is left behind");
    let off = DaemonOptions { more: vec!["--fast-path".to_owned(), "off".to_owned()], ..DaemonOptions::default() };
    let without = Node::start_with(&pair.alice, 1, &off)?;
    ensure!(without.daemon.call("status", &json!({}))?["host"]["fast_path"] == "off");
    Ok(())
}
