//! Links between homes behind NATs.
//!
//! ```text
//!   alice --- router --- internet 198.51.100.0/24 --- router --- bob
//!                         coturn on 198.51.100.10
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use tincan_tests::controller::{LinkPlan, Node, Peer, connect};
use tincan_tests::coturn::{Coturn, PASSWORD, USER};
use tincan_tests::ping::ping;
use tincan_tests::topology::{Homes, Nat, SERVER};

#[test]
fn port_restricted_homes_meet_directly_on_a_secured_link() -> Result<()> {
    meet_directly(Nat::PortRestricted, Nat::PortRestricted, &LinkPlan::secured())
}

#[test]
fn port_restricted_homes_meet_directly_on_a_plain_link() -> Result<()> {
    meet_directly(Nat::PortRestricted, Nat::PortRestricted, &LinkPlan::plain())
}

#[test]
fn a_full_cone_home_and_a_symmetric_one_meet_directly() -> Result<()> {
    meet_directly(Nat::FullCone, Nat::Symmetric, &LinkPlan::secured())
}

#[test]
fn an_address_restricted_home_and_a_port_restricted_one_meet_directly() -> Result<()> {
    meet_directly(Nat::AddressRestricted, Nat::PortRestricted, &LinkPlan::plain())
}

#[test]
fn symmetric_homes_meet_through_the_relay_on_a_secured_link() -> Result<()> {
    meet_through_the_relay(&LinkPlan::secured())
}

#[test]
fn symmetric_homes_meet_through_the_relay_on_a_plain_link() -> Result<()> {
    meet_through_the_relay(&LinkPlan::plain())
}

#[test]
fn a_silent_stun_server_delays_a_link_but_does_not_prevent_it() -> Result<()> {
    let homes = Homes::new(Nat::FullCone, Nat::FullCone)?;
    let (mut alice, mut bob) = (Node::start(&homes.alice, 1)?, Node::start(&homes.bob, 2)?);
    let plan = LinkPlan::secured().with_stun("198.51.100.77:3478");
    alice.create_link(&bob, &plan, "")?;
    let cas = alice.candidates(&bob)?;
    ensure!(cas.contains("192.168.1.2"), "the host candidate is missing: {cas}");
    let reason = alice.peer(&bob)?.text("reason").to_owned();
    ensure!(reason.contains("198.51.100.77"), "the report does not name the silent server: {reason}");
    drop(bob.door.drain()?);
    Ok(())
}

fn meet_directly(alice_nat: Nat, bob_nat: Nat, plan: &LinkPlan) -> Result<()> {
    let homes = Homes::new(alice_nat, bob_nat)?;
    let coturn = Coturn::start(homes.internet.namespace(), SERVER)?;
    let plan = plan.clone().with_stun(&coturn.address());
    for peer in meet(&homes, &plan)? {
        let (local, remote) = peer.path_kinds();
        ensure!(
            [local, remote].iter().all(|kind| ["stun", "prflx"].contains(kind)),
            "not a direct pair through both routers: {local} to {remote}"
        );
        ensure!(peer.text("reason").is_empty(), "{}", peer.text("reason"));
    }
    Ok(())
}

fn meet_through_the_relay(plan: &LinkPlan) -> Result<()> {
    let homes = Homes::new(Nat::Symmetric, Nat::Symmetric)?;
    let coturn = Coturn::start(homes.internet.namespace(), SERVER)?;
    let server = coturn.address();
    let plan = plan.clone().with_stun(&server).with_turn(&server, USER, PASSWORD);
    for peer in meet(&homes, &plan)? {
        let (local, remote) = peer.path_kinds();
        ensure!(local == "relay" || remote == "relay", "not relayed: {local} to {remote}");
        ensure!(peer.text("reason").starts_with("relayed"), "no reason for the relay: {:?}", peer.text("reason"));
    }
    Ok(())
}

fn meet(homes: &Homes, plan: &LinkPlan) -> Result<[Peer; 2]> {
    let (mut alice, mut bob) = (Node::start(&homes.alice, 1)?, Node::start(&homes.bob, 2)?);
    connect(&mut alice, &mut bob, plan)?;
    let report = ping(&homes.alice, bob.ip4.into(), 50, Duration::from_millis(10), b"through the routers")?;
    ensure!(report.lost == 0, "{} of {} pings lost", report.lost, report.sent);
    Ok([alice.peer(&bob)?, bob.peer(&alice)?])
}
