//! Two nodes find each other and link through a real XMPP server, as a 2014 controller drives them.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob      prosody on the switch, 192.0.2.100
//! ```

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tincan_tests::controller::{LinkPlan, Node};
use tincan_tests::daemon::DaemonOptions;
use tincan_tests::ping::ping;
use tincan_tests::prosody::{Prosody, ProsodyOptions, password};
use tincan_tests::signalling::{LOGIN_DEADLINE, link, log_in, meet, register, service, trusting};
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::wait;

const SERVER: &str = "192.0.2.100";
const SOON: Duration = Duration::from_secs(10);
/// A stream that is dead is known to be.
const NOTICED: Duration = Duration::from_secs(20);
/// After an outage.
const PRESENCE: Duration = Duration::from_secs(30);
const ROUNDS: usize = 20;

struct Scene {
    pair: Pair,
    server: Prosody,
    alice: Node,
    bob: Node,
}

fn scene() -> Result<Scene> {
    let pair = Pair::new(Underlay::Dual)?;
    pair.lan.address(&format!("{SERVER}/24"))?;
    let server = Prosody::start(pair.lan.namespace(), SERVER, &ProsodyOptions::default())?;
    let options = DaemonOptions { more: trusting(&server), ..DaemonOptions::default() };
    let alice = Node::start_with(&pair.alice, 1, &options)?;
    let bob = Node::start_with(&pair.bob, 2, &options)?;
    Ok(Scene { pair, server, alice, bob })
}

#[test]
fn two_nodes_meet_at_the_server_and_link_from_con_req_on() -> Result<()> {
    let Scene { pair, server, mut alice, mut bob } = scene()?;
    log_in(&alice, &server, "alice")?;
    log_in(&bob, &server, "bob")?;
    meet(&alice, &bob)?;
    ensure!(service(&alice)?.starts_with("online as alice@"), "{}", service(&alice)?);
    let took = link(&mut alice, &mut bob, &LinkPlan::secured())?;
    println!("con_req to both online: {took:?}");
    let report = ping(&pair.alice, bob.ip4.into(), 20, Duration::from_millis(10), b"by XMPP")?;
    ensure!(report.lost == 0, "{} pings lost", report.lost);
    alice.daemon.call("send_msg", &json!({"overlay_id": 1, "uid": bob.uid, "data": "hello bob"}))?;
    let message = bob.door.notification(SOON, "send_msg", &alice.uid)?;
    ensure!(message["data"] == "hello bob", "{message}");
    bob.daemon.call("no_such_method", &json!({"uid": alice.uid})).err().context("an unknown method over JSON-RPC")?;
    bob.door.send(&json!({"m": "my_own_kind", "uid": alice.uid, "data": "anything"}))?;
    let message = alice.door.notification(SOON, "my_own_kind", &bob.uid)?;
    ensure!(message["data"] == "anything", "{message}");
    Ok(())
}

#[test]
fn twenty_links_by_the_server_come_up_and_the_median_time_is_printed() -> Result<()> {
    let Scene { pair: _pair, server, mut alice, mut bob } = scene()?;
    log_in(&alice, &server, "alice")?;
    log_in(&bob, &server, "bob")?;
    meet(&alice, &bob)?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(link(&mut alice, &mut bob, &LinkPlan::secured())?);
        alice.trim(&bob)?;
        bob.trim(&alice)?;
        drop((alice.door.drain()?, bob.door.drain()?));
    }
    times.sort_unstable();
    println!("con_req to both online, median of {ROUNDS}: {:?}, longest {:?}", times[ROUNDS / 2], times[ROUNDS - 1]);
    Ok(())
}

#[test]
fn a_minute_with_the_server_stopped_costs_no_frame() -> Result<()> {
    an_outage_costs_no_frame(Prosody::stop, Prosody::resume)
}

#[test]
fn a_minute_with_the_servers_packets_dropped_costs_no_frame() -> Result<()> {
    an_outage_costs_no_frame(|server| server.cut_network(), |server| server.mend_network())
}

/// Pings while the server is away for a minute and until presence is back; then a message crosses again.
fn an_outage_costs_no_frame(begin: fn(&mut Prosody) -> Result<()>, end: fn(&mut Prosody) -> Result<()>) -> Result<()> {
    let Scene { pair, mut server, mut alice, mut bob } = scene()?;
    log_in(&alice, &server, "alice")?;
    log_in(&bob, &server, "bob")?;
    meet(&alice, &bob)?;
    link(&mut alice, &mut bob, &LinkPlan::secured())?;
    let connects = |node: &Node| node.counter("xmpp_connects");
    let before = [connects(&alice)?, connects(&bob)?];
    let start = Instant::now();
    begin(&mut server)?;
    let (report, noticed) = thread::scope(|scope| {
        let pings =
            scope.spawn(|| ping(&pair.alice, bob.ip4.into(), 600, Duration::from_millis(100), b"without server"));
        for node in [&alice, &bob] {
            wait::until(NOTICED, "the loss of the server", || {
                service(node).is_ok_and(|text| text.starts_with("offline"))
            })?;
        }
        let noticed = start.elapsed();
        let report = pings.join().map_err(|_| anyhow::anyhow!("the pings panicked"))??;
        anyhow::Ok((report, noticed))
    })?;
    ensure!(report.lost == 0, "{} of 600 pings lost", report.lost);
    end(&mut server)?;
    let back = Instant::now();
    for node in [&alice, &bob] {
        wait::until(PRESENCE, "the login after the outage", || {
            service(node).is_ok_and(|text| text.starts_with("online"))
        })?;
    }
    meet(&alice, &bob)?;
    let took = back.elapsed();
    let report = ping(&pair.alice, bob.ip4.into(), 50, Duration::from_millis(10), b"with server")?;
    ensure!(report.lost == 0, "{} of 50 pings lost", report.lost);
    alice.daemon.call("send_msg", &json!({"overlay_id": 1, "uid": bob.uid, "data": "hello again"}))?;
    bob.door.notification(SOON, "send_msg", &alice.uid)?;
    let tries = [connects(&alice)? - before[0], connects(&bob)? - before[1]];
    println!("noticed after {noticed:.1?}, presence back after {took:.1?}, connects {tries:?}, 0 of 650 pings lost");
    ensure!(tries.iter().all(|tries| *tries <= 12), "a storm of connects: {tries:?}");
    Ok(())
}

#[test]
fn links_do_not_need_the_server_and_presence_comes_back_with_it() -> Result<()> {
    let Scene { pair, mut server, mut alice, mut bob } = scene()?;
    log_in(&alice, &server, "alice")?;
    log_in(&bob, &server, "bob")?;
    meet(&alice, &bob)?;
    link(&mut alice, &mut bob, &LinkPlan::secured())?;
    server.stop()?;
    wait::until(Duration::from_secs(30), "the loss of the server", || {
        service(&alice).is_ok_and(|text| text.starts_with("offline"))
    })?;
    let report = ping(&pair.alice, bob.ip4.into(), 50, Duration::from_millis(10), b"without server")?;
    ensure!(report.lost == 0, "{} pings lost", report.lost);
    let refusal = alice.daemon.call("send_msg", &json!({"overlay_id": 1, "uid": bob.uid, "data": "lost"}));
    ensure!(refusal.is_err(), "a message without a server was accepted");
    server.resume()?;
    for node in [&alice, &bob] {
        wait::until(Duration::from_secs(60), "the login after the outage", || {
            service(node).is_ok_and(|text| text.starts_with("online"))
        })?;
    }
    Ok(())
}

#[test]
fn a_wrong_password_and_a_foreign_certificate_are_refused_with_a_reason() -> Result<()> {
    let Scene { pair, server, alice, bob: _bob } = scene()?;
    register(&alice, &server, "alice", "wrong")?;
    wait::until(LOGIN_DEADLINE, "the refusal", || service(&alice).is_ok_and(|text| text.starts_with("offline")))?;
    drop(alice);
    // The system's authorities did not sign this server's certificate.
    let carol = Node::start(&pair.alice, 3)?;
    register(&carol, &server, "alice", &password("alice"))?;
    wait::until(LOGIN_DEADLINE, "the refusal", || service(&carol).is_ok_and(|text| text.starts_with("offline")))?;
    let reason = service(&carol)?;
    ensure!(reason.contains("certificate"), "the reason does not name the certificate: {reason}");
    Ok(())
}
