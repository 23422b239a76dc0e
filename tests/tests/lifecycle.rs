//! Links through trims, deaths, new certificates and pulled cables.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob      one cable can be pulled at the switch
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tincan_tests::capture::Capture;
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::daemon::DaemonOptions;
use tincan_tests::packet::Direction;
use tincan_tests::ping::{ping, ping_once, until_answered};
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::wait;

const OFFLINE_WITHIN: Duration = Duration::from_secs(15);
const SILENT_AFTER: Duration = Duration::from_secs(30);

fn linked(plan: &LinkPlan) -> Result<(Pair, Node, Node)> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    connect(&mut alice, &mut bob, plan)?;
    ensure!(ping(&pair.alice, bob.ip4.into(), 5, Duration::from_millis(10), b"linked")?.lost == 0);
    Ok((pair, alice, bob))
}

#[test]
fn a_trimmed_link_stops_and_can_be_made_anew() -> Result<()> {
    for plan in [LinkPlan::secured(), LinkPlan::plain()] {
        let (pair, mut alice, mut bob) = linked(&plan)?;
        for _ in 0..3 {
            alice.trim(&bob)?;
            ensure!(!alice.peer(&bob)?.has_link(), "the link is still reported");
            let report = ping(&pair.alice, bob.ip4.into(), 3, Duration::from_millis(10), b"trimmed")?;
            ensure!(report.lost == 3, "a ping crossed a trimmed link");
            bob.trim(&alice)?;
            drop((alice.door.drain()?, bob.door.drain()?));
            connect(&mut alice, &mut bob, &plan)?;
            until_answered(&pair.alice, bob.ip4.into(), Duration::from_secs(5))?;
        }
    }
    Ok(())
}

#[test]
fn a_killed_peer_of_a_secured_link_is_offline_soon_and_gets_no_payload() -> Result<()> {
    a_killed_peer(&LinkPlan::secured())
}

#[test]
fn a_killed_peer_of_a_plain_link_is_offline_soon_and_gets_no_payload() -> Result<()> {
    a_killed_peer(&LinkPlan::plain())
}

fn a_killed_peer(plan: &LinkPlan) -> Result<()> {
    let (pair, mut alice, mut bob) = linked(plan)?;
    let capture =
        Capture::start(&pair.alice, "eth0", |direction, frame| direction == Direction::Out && is_payload(frame))?;
    ensure!(ping(&pair.alice, bob.ip4.into(), 5, Duration::from_millis(10), b"to the living")?.lost == 0);
    wait::until(Duration::from_secs(1), "payload in the capture while bob lives", || capture.frames().len() >= 5)?;
    bob.daemon.kill9()?;
    let killed = Instant::now();
    let offline = alice.door.status(OFFLINE_WITHIN, &bob.uid, "offline")?;
    println!("offline {:.1} s after the kill", (offline - killed).as_secs_f64());
    // The host goes on sending all the while: it is the daemon that must stop.
    while killed.elapsed() < SILENT_AFTER + Duration::from_secs(3) {
        let report = ping(&pair.alice, bob.ip4.into(), 20, Duration::from_millis(50), b"to the dead")?;
        ensure!(report.lost == report.sent, "the dead answered");
    }
    let last = capture.frames().last().map(|frame| frame.at.saturating_duration_since(killed)).unwrap_or_default();
    println!("last payload {:.1} s after the kill", last.as_secs_f64());
    ensure!(last < SILENT_AFTER, "payload went to a dead peer {last:?} after its death");
    Ok(())
}

/// UDP over IPv4 or IPv6 that is DTLS or a plain frame; STUN goes on trying.
fn is_payload(frame: &[u8]) -> bool {
    let (protocol, payload) = match frame.get(12..14) {
        Some([0x08, 0x00]) => (frame.get(23), frame.get(42)),
        Some([0x86, 0xdd]) => (frame.get(20), frame.get(62)),
        _ => return false,
    };
    protocol == Some(&17) && payload.is_some_and(|first| (20..=63).contains(first) || *first == 0x08)
}

#[test]
fn a_peer_that_comes_back_with_a_new_certificate_is_linked_again() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let options = DaemonOptions { more: vec!["--fresh-certificate".to_owned()], ..DaemonOptions::default() };
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start_with(&pair.bob, 2, &options)?);
    let plan = LinkPlan::secured();
    connect(&mut alice, &mut bob, &plan)?;
    let before = bob.fingerprint.clone();
    bob.daemon.kill9()?;
    bob.restart()?;
    ensure!(bob.fingerprint != before, "the certificate is the old one");
    alice.door.status(OFFLINE_WITHIN, &bob.uid, "offline")?;
    alice.trim(&bob)?;
    drop(alice.door.drain()?);
    connect(&mut alice, &mut bob, &plan)?;
    until_answered(&pair.alice, bob.ip4.into(), Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn a_daemon_that_restarts_keeps_its_fingerprint() -> Result<()> {
    let (_pair, mut alice, _bob) = linked(&LinkPlan::secured())?;
    let before = alice.fingerprint.clone();
    alice.restart()?;
    ensure!(alice.fingerprint == before, "{before} became {}", alice.fingerprint);
    Ok(())
}

#[test]
fn a_secured_link_survives_a_cable_pulled_for_five_seconds() -> Result<()> {
    a_pulled_cable(&LinkPlan::secured(), Duration::from_secs(5), Duration::from_secs(5))
}

#[test]
fn a_plain_link_survives_a_cable_pulled_for_five_seconds() -> Result<()> {
    a_pulled_cable(&LinkPlan::plain(), Duration::from_secs(5), Duration::from_secs(5))
}

#[test]
fn a_secured_link_survives_a_cable_pulled_for_a_minute() -> Result<()> {
    a_pulled_cable(&LinkPlan::secured(), Duration::from_secs(60), Duration::from_secs(15))
}

#[test]
fn a_plain_link_survives_a_cable_pulled_for_a_minute() -> Result<()> {
    a_pulled_cable(&LinkPlan::plain(), Duration::from_secs(60), Duration::from_secs(15))
}

fn a_pulled_cable(plan: &LinkPlan, pulled: Duration, back_within: Duration) -> Result<()> {
    let (pair, alice, bob) = linked(plan)?;
    pair.bob_cable.pull()?;
    let start = Instant::now();
    wait::until(pulled * 2, "the time the cable is out", || start.elapsed() >= pulled)?;
    ensure!(ping_once(&pair.alice, bob.ip4.into(), Duration::from_millis(200))?.lost == 1, "the cable is not out");
    pair.bob_cable.insert()?;
    let back = until_answered(&pair.alice, bob.ip4.into(), back_within)
        .with_context(|| format!("alice says {:?}", alice.peer(&bob).map(|peer| peer.0.to_string())))?;
    println!("back {:.2} s after the cable", back.as_secs_f64());
    alice.wait_online(&bob, back_within)?;
    bob.wait_online(&alice, back_within)?;
    Ok(())
}
