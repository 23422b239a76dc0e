//! What a peer says of its addresses is a stranger's word: nothing is ever sent to where nobody may make us send.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob
//! ```

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tincan_tests::capture::Capture;
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::packet::Direction;
use tincan_tests::ping::ping;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::wait;

/// Every forbidden candidate has this port, or 0.
const FORBIDDEN_PORT: u16 = 4444;
/// The one candidate of each round that may be checked: an address of nobody on the same network.
const ALLOWED_PORT: u16 = 4443;
/// As many garbage candidates as asked for, in calls below the cap of `cas`.
const GARBAGE: usize = 10_000;
const PER_CALL: usize = 500;
const SOON: Duration = Duration::from_secs(10);
/// Checks of a pair repeat several times a second.
const WATCHED: Duration = Duration::from_millis(400);

/// Alice's own address on the overlay is 172.16.0.1, bob's is 172.16.0.2 and would be reached through the TAP.
const FORBIDDEN: [&str; 20] = [
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.255.255.254",
    "224.0.0.1",
    "239.255.255.250",
    "255.255.255.255",
    "192.0.2.255",
    "172.16.0.1",
    "172.16.0.2",
    "172.16.0.255",
    "--",
    "--1",
    "ff02--1",
    "ff05--2",
    "fe80--1",
    "--ffff-127.0.0.1",
    "fd50-dbc-41f2-4a3c--1",
    "fd50-dbc-41f2-4a3c--2",
    "--ffff-172.16.0.1",
];

fn candidate(number: usize, address: &str, port: u16) -> String {
    let credentials = "aBcDeFgHiJkLmNoP:abcdefghijklmnopqrstuvwx";
    format!("{number:08}:1:udp:{address}:{port}:2122194687:{credentials}:local:eth0:0:{number}")
}

/// The allowed candidate and `PER_CALL` others; which of the forbidden ones come first differs per round.
fn garbage(round: usize) -> String {
    let mut items = vec![candidate(0, "192.0.2.77", ALLOWED_PORT)];
    for number in 1..=PER_CALL {
        let kind = round * 7 + number;
        let item = match kind % (FORBIDDEN.len() + 4) {
            0 => candidate(number, "192.0.2.78", 0),
            1 => format!("{number}:1:udp"),
            2 => "\u{fffd}:::::::::::::".to_owned(),
            3 => candidate(number, "not-an-address", FORBIDDEN_PORT),
            forbidden => candidate(number, FORBIDDEN[forbidden - 4], FORBIDDEN_PORT),
        };
        items.push(item);
    }
    items.join(" ")
}

/// The destination port of a UDP datagram that was sent, with or without fragmentation.
fn sent_to_port(direction: Direction, frame: &[u8], loopback: bool) -> Option<u16> {
    // On the loopback device everything is seen once as sent and once as received.
    if direction == Direction::In && !loopback {
        return None;
    }
    let network = frame.get(14..)?;
    let transport = match network.first()? >> 4 {
        4 if network.get(9) == Some(&17) => network.get(usize::from(network[0] & 15) * 4..)?,
        6 if network.get(6) == Some(&17) => network.get(40..)?,
        _ => return None,
    };
    Some(u16::from_be_bytes([*transport.get(2)?, *transport.get(3)?]))
}

#[test]
fn ten_thousand_garbage_candidates_send_nothing_to_forbidden_targets() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    alice.map(&bob)?;
    let mut captures = Vec::new();
    for interface in ["eth0", "lo", "ipop"] {
        let is_wanted = move |direction, frame: &[u8]| {
            let port = sent_to_port(direction, frame, interface == "lo");
            port.is_some_and(|port| [FORBIDDEN_PORT, ALLOWED_PORT, 0].contains(&port))
        };
        captures.push((interface, Capture::start(&pair.alice, interface, is_wanted)?));
    }
    // Nobody is at the allowed address; without an entry the kernel would only ask for its MAC address.
    pair.alice.exec("ip neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0")?;
    let allowed = |captures: &[(&str, Capture)]| {
        let frames = captures[0].1.frames();
        frames.iter().filter(|frame| sent_to_port(Direction::Out, &frame.bytes, false) == Some(ALLOWED_PORT)).count()
    };
    for round in 0..GARBAGE / PER_CALL {
        let before = allowed(&captures);
        alice.create_link(&bob, &LinkPlan::secured(), &garbage(round))?;
        wait::until(SOON, "a check of the allowed candidate", || allowed(&captures) > before)?;
        wait::throughout(WATCHED, "the daemon answers", || alice.counter("sent").is_ok())?;
        alice.trim(&bob)?;
    }
    for (interface, capture) in &captures {
        let sent = capture.frames();
        let forbidden =
            sent.iter().find(|frame| sent_to_port(Direction::Out, &frame.bytes, true) != Some(ALLOWED_PORT));
        ensure!(forbidden.is_none(), "on {interface}: {:02x?}", forbidden.map(|frame| &frame.bytes));
    }
    // The cap of `cas` is told, and nothing of it stays.
    let flood = garbage(0).repeat(2);
    let refusal = alice.create_link(&bob, &LinkPlan::secured(), &flood).err().context("over 64 KiB were taken")?;
    ensure!(refusal.to_string().contains("cas"), "{refusal:#}");
    drop(alice.door.drain()?);
    connect(&mut alice, &mut bob, &LinkPlan::secured())?;
    let report = ping(&pair.alice, bob.ip4.into(), 20, Duration::from_millis(10), b"after garbage")?;
    ensure!(report.lost == 0, "{} of 20 pings lost", report.lost);
    Ok(())
}

#[test]
fn only_garbage_is_an_error_that_says_so() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    let only = candidate(1, "127.0.0.1", FORBIDDEN_PORT);
    alice.daemon.call("create_link", &json!(alice.link_params(&bob, &LinkPlan::secured(), "")))?;
    let refusal = alice.create_link(&bob, &LinkPlan::secured(), &only).err().context("a loopback target was taken")?;
    ensure!(refusal.to_string().contains("no usable"), "{refusal:#}");
    alice.trim(&bob)?;
    drop(alice.door.drain()?);
    connect(&mut alice, &mut bob, &LinkPlan::secured())?;
    Ok(())
}
