//! Every kind of inner frame crosses both ways and arrives intact.
//!
//! ```text
//!   raw socket -> TAP alice ==== link ==== TAP bob -> raw socket, and back
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::frames::{self, Arp, ETHERNET_HEADER, MIN_FRAME, cross, never_crosses, somebody};
use tincan_tests::packet::PacketSocket;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::traffic::{UdpFlow, noise, tcp_echo};

const DEADLINE: Duration = Duration::from_secs(5);
/// The overlay's MTU, by default that of 2014.
const MTU: usize = 1280;

struct Overlay {
    pair: Pair,
    alice: Node,
    bob: Node,
}

impl Overlay {
    fn new(plan: &LinkPlan) -> Result<Self> {
        let pair = Pair::new(Underlay::Dual)?;
        let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
        connect(&mut alice, &mut bob, plan)?;
        Ok(Self { pair, alice, bob })
    }

    /// Sender, receiver, and the sockets on their TAPs, both ways.
    fn ways(&self) -> Result<[(&Node, &Node, PacketSocket, PacketSocket); 2]> {
        let way = |from, to| -> Result<_> {
            let (near, far): (&Node, &Node) = (from, to);
            let open = |node: &Node| PacketSocket::open(node.daemon.namespace(), &node.daemon.options().tap);
            Ok((near, far, open(near)?, open(far)?))
        };
        Ok([way(&self.alice, &self.bob)?, way(&self.bob, &self.alice)?])
    }
}

fn on_both_kinds(scenario: impl Fn(&Overlay) -> Result<()>) -> Result<()> {
    for plan in [LinkPlan::secured(), LinkPlan::plain()] {
        scenario(&Overlay::new(&plan)?).with_context(|| format!("secured: {}", plan.secured))?;
    }
    Ok(())
}

/// Own and peer's address of each family.
fn families(near: &Node, far: &Node) -> [(IpAddr, IpAddr); 2] {
    [(near.ip4.into(), far.ip4.into()), (near.ip6.into(), far.ip6.into())]
}

#[test]
fn udp_of_every_length_from_the_shortest_frame_to_the_mtu_crosses() -> Result<()> {
    on_both_kinds(|overlay| {
        for (near, far, from, mut to) in overlay.ways()? {
            for (source, destination) in families(near, far) {
                let headers = if source.is_ipv4() { 28 } else { 48 };
                let shortest = MIN_FRAME.saturating_sub(ETHERNET_HEADER + headers);
                for length in shortest..=MTU - headers {
                    let seed = u32::try_from(length)?;
                    let frame = frames::udp(source, destination, &noise(length, seed));
                    cross(&from, &mut to, &frame, DEADLINE).with_context(|| format!("{} bytes", frame.len()))?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_unicast_frame_is_addressed_to_the_receiving_host() -> Result<()> {
    on_both_kinds(|overlay| {
        for (near, far, from, mut to) in overlay.ways()? {
            let frame = frames::udp(near.ip4.into(), far.ip4.into(), b"whose MAC");
            let arrived = cross(&from, &mut to, &frame, DEADLINE)?;
            let state = far.daemon.call("get_state", &serde_json::json!({}))?;
            let mac = arrived[..6].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
            let own = state["local_state"]["_mac"].as_str().context("no _mac")?.replace(':', "").to_lowercase();
            ensure!(own == mac.concat(), "addressed to {mac:?}, not {own}");
            ensure!(arrived[6..12] == frame[6..12], "the source address changed");
        }
        Ok(())
    })
}

#[test]
fn fragments_cross() -> Result<()> {
    on_both_kinds(|overlay| {
        for (near, far, from, mut to) in overlay.ways()? {
            for (source, destination) in families(near, far) {
                for fragment in frames::udp_fragments(source, destination, &noise(1800, 3), 1024) {
                    cross(&from, &mut to, &fragment, DEADLINE)?;
                }
            }
        }
        for (near, far) in [(&overlay.alice, &overlay.bob), (&overlay.bob, &overlay.alice)] {
            for target in [IpAddr::from(far.ip4), IpAddr::from(far.ip6)] {
                // Cut by the sender's kernel, joined by the receiver's.
                UdpFlow::open(near.daemon.namespace(), far.daemon.namespace(), target)?
                    .round_trip(&noise(20_000, 4))?;
            }
        }
        Ok(())
    })
}

#[test]
fn broadcast_and_multicast_cross_with_their_group_addresses() -> Result<()> {
    on_both_kinds(|overlay| {
        for (near, _, from, mut to) in overlay.ways()? {
            let groups4: [Ipv4Addr; 4] =
                [[172, 16, 0, 255], [255; 4], [224, 0, 0, 251], [239, 1, 2, 3]].map(Ipv4Addr::from);
            let groups6 = ["ff05::1:3", "ff08::7", "ff0e::7"].map(str::parse::<Ipv6Addr>);
            for group in groups4 {
                let frame = frames::udp(near.ip4.into(), group.into(), b"to all");
                let arrived = cross(&from, &mut to, &frame, DEADLINE).with_context(|| format!("{group}"))?;
                ensure!(arrived[..12] == frame[..12], "the addresses of a frame to {group} changed");
            }
            for group in groups6 {
                let frame = frames::udp(near.ip6.into(), group?.into(), b"to all");
                let arrived = cross(&from, &mut to, &frame, DEADLINE)?;
                ensure!(arrived[..12] == frame[..12], "the addresses of a frame to a group changed");
            }
        }
        Ok(())
    })
}

#[test]
fn arp_for_one_host_and_announcements_cross() -> Result<()> {
    on_both_kinds(|overlay| {
        for (near, far, from, mut to) in overlay.ways()? {
            cross(&from, &mut to, &frames::arp(Arp::Reply, somebody(), near.ip4, far.ip4), DEADLINE)?;
            cross(&from, &mut to, &frames::arp(Arp::Request, somebody(), near.ip4, far.ip4), DEADLINE)?;
            cross(&from, &mut to, &frames::arp(Arp::Request, [0xff; 6], near.ip4, near.ip4), DEADLINE)?;
        }
        Ok(())
    })
}

#[test]
fn a_broadcast_arp_request_is_answered_at_home() -> Result<()> {
    on_both_kinds(|overlay| {
        for (near, far, from, mut to) in overlay.ways()? {
            let request = frames::arp(Arp::Request, [0xff; 6], near.ip4, far.ip4);
            let marker = frames::udp(near.ip4.into(), far.ip4.into(), b"marker");
            never_crosses(&from, &mut to, &request, &marker, DEADLINE)?;
            // The kernel may carry the marker while user space still reads the request.
            near.wait_counter("arp_answered", 1, DEADLINE)?;
        }
        Ok(())
    })
}

#[test]
fn a_peer_cannot_speak_for_an_address_that_is_not_its_own() -> Result<()> {
    on_both_kinds(|overlay| {
        for (near, far, from, mut to) in overlay.ways()? {
            let marker = frames::udp(near.ip4.into(), far.ip4.into(), b"marker");
            for spoofed in [Ipv4Addr::new(172, 16, 0, 77), far.ip4, Ipv4Addr::new(10, 0, 0, 1)] {
                let frame = frames::udp(spoofed.into(), far.ip4.into(), b"spoofed");
                never_crosses(&from, &mut to, &frame, &marker, DEADLINE)?;
            }
            far.wait_counter("wrong_source", 3, DEADLINE)?;
        }
        Ok(())
    })
}

#[test]
fn a_frame_for_nobody_goes_to_the_controller() -> Result<()> {
    let mut overlay = Overlay::new(&LinkPlan::secured())?;
    let from = PacketSocket::open(overlay.alice.daemon.namespace(), "ipop")?;
    let frame = frames::udp(overlay.alice.ip4.into(), Ipv4Addr::new(172, 16, 0, 99).into(), b"who has it");
    from.send(&frame)?;
    let packet = overlay.alice.door.take(DEADLINE, "the frame", |received| received.frame() == Some(&frame))?;
    let uid: Vec<u8> = [1; 20].to_vec();
    ensure!(packet.bytes[2..22] == uid && packet.bytes[22..42] == [0; 20], "the uids are not own and zero");
    Ok(())
}

#[test]
fn a_frame_of_the_controller_reaches_the_host() -> Result<()> {
    let overlay = Overlay::new(&LinkPlan::secured())?;
    let mut to = PacketSocket::open(overlay.alice.daemon.namespace(), "ipop")?;
    let frame = frames::udp(overlay.bob.ip4.into(), overlay.alice.ip4.into(), b"from the controller");
    overlay.alice.door.send_bytes(&[&[2, 2], [0; 40].as_slice(), &frame].concat())?;
    frames::expect(&mut to, &frame, DEADLINE)?;
    Ok(())
}

#[test]
fn tcp_and_udp_of_real_sockets_cross_over_both_families() -> Result<()> {
    on_both_kinds(|overlay| {
        let Overlay { pair, alice, bob } = overlay;
        for (client, server, node) in [(&pair.alice, &pair.bob, bob), (&pair.bob, &pair.alice, alice)] {
            for target in [IpAddr::from(node.ip4), IpAddr::from(node.ip6)] {
                for length in [1, 1000, 70_000, 5_000_000] {
                    tcp_echo(client, server, target, &noise(length, 5)).with_context(|| format!("{length} bytes"))?;
                }
                let flow = UdpFlow::open(client, server, target)?;
                for length in [0, 1, 17, 1000, 1232, 1233, 9000] {
                    flow.round_trip(&noise(length, 6)).with_context(|| format!("datagram of {length} bytes"))?;
                }
            }
        }
        Ok(())
    })
}
