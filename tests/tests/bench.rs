//! The bench itself: what the other tests take for granted.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob          192.0.2.0/24
//!
//!   alice eth0 --- router wan --- internet      192.168.1.0/24 behind 198.51.100.1; listeners on 198.51.100.10 and .11
//! ```

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tincan_tests::capture::Capture;
use tincan_tests::coturn::Coturn;
use tincan_tests::netns::Namespace;
use tincan_tests::ping::{ping, until_answered};
use tincan_tests::topology::{Homes, Nat, Pair, SERVER, Underlay};
use tincan_tests::traffic::{UdpFlow, noise, tcp_echo};
use tincan_tests::wait;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn two_hosts_reach_each_other_until_a_cable_is_pulled() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    for target in ["192.0.2.2", "2001:db8:1::2"] {
        let target = target.parse()?;
        until_answered(&pair.alice, target, 5 * SECOND)?;
        assert_eq!(ping(&pair.alice, target, 10, Duration::from_millis(10), b"payload")?.lost, 0);
        tcp_echo(&pair.alice, &pair.bob, target, &noise(100_000, 1))?;
        UdpFlow::open(&pair.alice, &pair.bob, target)?.round_trip(&noise(4000, 2))?;
    }
    let target = "192.0.2.2".parse()?;
    pair.bob_cable.pull()?;
    assert_eq!(ping(&pair.alice, target, 5, Duration::from_millis(10), b"payload")?.lost, 5);
    pair.bob_cable.insert()?;
    until_answered(&pair.alice, target, 5 * SECOND)?;
    Ok(())
}

#[test]
fn a_capture_sees_the_bytes_that_pass() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let capture = Capture::start(&pair.alice, "eth0", |_, _| true)?;
    ping(&pair.alice, "192.0.2.2".parse()?, 3, Duration::from_millis(10), b"find me on the wire")?;
    wait::until(SECOND, "three requests and three answers", || capture.count_holding(b"find me on the wire") == 6)?;
    assert_eq!(capture.count_holding(b"find something else"), 0);
    Ok(())
}

#[test]
fn coturn_answers_from_behind_a_router() -> Result<()> {
    let homes = Homes::new(Nat::PortRestricted, Nat::Symmetric)?;
    let coturn = Coturn::start(homes.internet.namespace(), SERVER)?;
    assert_eq!(coturn.address(), "198.51.100.10:3478");
    assert_eq!(ping(&homes.bob, SERVER.parse()?, 3, Duration::from_millis(50), b"payload")?.lost, 0);
    Ok(())
}

#[test]
fn a_full_cone_router_lets_anyone_in() -> Result<()> {
    assert_eq!(
        behaviour(Nat::FullCone)?,
        Behaviour { stable_port: true, other_port_enters: true, other_host_enters: true }
    );
    Ok(())
}

#[test]
fn an_address_restricted_router_lets_in_who_was_spoken_to() -> Result<()> {
    assert_eq!(
        behaviour(Nat::AddressRestricted)?,
        Behaviour { stable_port: true, other_port_enters: true, other_host_enters: false }
    );
    Ok(())
}

#[test]
fn a_port_restricted_router_keeps_its_port_and_others_out() -> Result<()> {
    assert_eq!(
        behaviour(Nat::PortRestricted)?,
        Behaviour { stable_port: true, other_port_enters: false, other_host_enters: false }
    );
    Ok(())
}

#[test]
fn a_symmetric_router_has_a_port_per_destination() -> Result<()> {
    assert_eq!(
        behaviour(Nat::Symmetric)?,
        Behaviour { stable_port: false, other_port_enters: false, other_host_enters: false }
    );
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Behaviour {
    /// Both listeners see the host at the same port.
    stable_port: bool,
    /// The second listener reaches the host before the host spoke to it.
    other_port_enters: bool,
    /// So does a listener on another address.
    other_host_enters: bool,
}

fn behaviour(nat: Nat) -> Result<Behaviour> {
    let homes = Homes::new(nat, Nat::PortRestricted)?;
    let server = homes.internet.namespace();
    homes.internet.address("198.51.100.11/24")?;
    let (first, second, stranger) =
        (socket(server, SERVER)?, socket(server, SERVER)?, socket(server, "198.51.100.11")?);
    let host = socket(&homes.alice, "192.168.1.2")?;
    let mut buffer = [0; 64];

    host.send_to(b"hello", first.local_addr()?)?;
    let (_, outside) =
        wait::uninterrupted(|| first.recv_from(&mut buffer)).context("the first listener heard nothing")?;
    host.set_read_timeout(Some(Duration::from_millis(300)))?;
    stranger.send_to(b"unsolicited", outside)?;
    let other_host_enters = wait::uninterrupted(|| host.recv(&mut buffer)).is_ok();
    second.send_to(b"unsolicited", outside)?;
    let other_port_enters = wait::uninterrupted(|| host.recv(&mut buffer)).is_ok();

    host.send_to(b"hello", second.local_addr()?)?;
    let (_, seen_by_second) =
        wait::uninterrupted(|| second.recv_from(&mut buffer)).context("the second listener heard nothing")?;
    ensure!(outside.ip() == seen_by_second.ip(), "the router changed its address");
    Ok(Behaviour { stable_port: outside == seen_by_second, other_port_enters, other_host_enters })
}

fn socket(namespace: &Namespace, ip: &str) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind((ip, 0)).context("binding"))?;
    socket.set_read_timeout(Some(5 * SECOND))?;
    Ok(socket)
}
