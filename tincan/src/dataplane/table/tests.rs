//! Frames in, decisions out.

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn uid(byte: u8) -> Uid {
    Uid::new([byte; 20])
}

fn ip6(byte: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd50, 0, 0, 0, 0, 0, 0, u16::from(byte))
}

/// Node 1 (172.31.0.1/24) that knows peers 2 and 3.
fn table() -> Table {
    let mut table = Table::default();
    table.set_local(Local { uid: uid(1), ip4: [172, 31, 0, 1].into(), ip4_prefix: 24, ip6: ip6(1), router_prefix: 32 });
    for peer in [2, 3] {
        table.map_peer(uid(peer), [172, 31, 0, peer].into(), ip6(peer));
    }
    table
}

fn ethernet(destination: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend_from_slice(&MAC);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

fn ipv4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = ethernet(MAC, 0x0800);
    frame.extend_from_slice(&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&destination);
    frame
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut frame = ethernet(MAC, 0x86dd);
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, 59, 64]);
    frame.extend_from_slice(&source.octets());
    frame.extend_from_slice(&destination.octets());
    frame
}

fn arp(destination: [u8; 6], operation: u16, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = ethernet(destination, 0x0806);
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame.extend_from_slice(&operation.to_be_bytes());
    frame.extend_from_slice(&MAC);
    frame.extend_from_slice(&sender);
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&target);
    frame
}

#[test]
fn unicast_goes_to_its_owner_and_an_unknown_destination_to_the_controller() {
    let table = table();
    let cases = [
        (ipv4([172, 31, 0, 1], [172, 31, 0, 2]), Route::Peer(uid(2))),
        (ipv4([172, 31, 0, 1], [172, 31, 0, 3]), Route::Peer(uid(3))),
        (ipv4([172, 31, 0, 1], [172, 31, 0, 4]), Route::Unrouted),
        (ipv6(ip6(1), ip6(2)), Route::Peer(uid(2))),
        (ipv6(ip6(1), ip6(9)), Route::Unrouted),
    ];
    for (frame, expected) in cases {
        assert_eq!(table.route(&frame, MAC), expected, "{frame:02x?}");
    }
}

#[test]
fn a_peer_whose_addresses_were_taken_back_is_neither_reached_nor_believed() {
    let mut table = table();
    table.unmap_peer(uid(2));
    assert_eq!(table.route(&ipv4([172, 31, 0, 1], [172, 31, 0, 2]), MAC), Route::Unrouted);
    assert_eq!(table.route(&ipv6(ip6(1), ip6(2)), MAC), Route::Unrouted);
    assert_eq!(table.may_be_from(uid(2), &ipv4([172, 31, 0, 2], [172, 31, 0, 1])), Err(Verdict::WrongSource));
    assert_eq!(table.peers().collect::<Vec<_>>(), [uid(3)]);
    assert_eq!(table.route(&ipv4([172, 31, 0, 1], [172, 31, 0, 3]), MAC), Route::Peer(uid(3)));
}

#[test]
fn groups_are_flooded_as_in_2014_and_link_local_ones_stay() {
    let table = table();
    for last in [[224, 0, 0, 1], [239, 255, 255, 250], [172, 31, 0, 255], [255, 255, 255, 255]] {
        assert_eq!(table.route(&ipv4([172, 31, 0, 1], last), MAC), Route::Flood, "{last:?}");
    }
    assert_eq!(table.route(&ipv4([172, 31, 0, 1], [240, 0, 0, 1]), MAC), Route::Unrouted);
    for (group, expected) in [
        ("ff05::1", Route::Flood),
        ("ff08::1", Route::Flood),
        ("ff1e::1", Route::Flood),
        ("ff02::1", Route::Drop(Verdict::NotFlooded)),
        ("ff01::1", Route::Drop(Verdict::NotFlooded)),
    ] {
        assert_eq!(table.route(&ipv6(ip6(1), group.parse().unwrap()), MAC), expected, "{group}");
    }
}

#[test]
fn an_arp_request_in_the_subnet_is_answered_with_a_unicast_address_of_its_owner() {
    let Route::Answer(reply) = table().route(&arp(BROADCAST, 1, [172, 31, 0, 1], [172, 31, 0, 2]), MAC) else {
        panic!("not answered")
    };
    assert_eq!(reply[..6], MAC);
    let owner = [0x02, 2, 2, 2, 2, 2];
    assert_eq!(reply[6..12], owner);
    assert_eq!(reply[20..22], [0, 2]);
    assert_eq!(reply[22..28], owner);
    assert_eq!(reply[28..32], [172, 31, 0, 2]);
    assert_eq!(reply[32..38], MAC);
    assert_eq!(reply[38..42], [172, 31, 0, 1]);
}

#[test]
fn other_arp_goes_where_it_belongs() {
    let table = table();
    let cases = [
        // Outside of the subnet.
        (arp(BROADCAST, 1, [172, 31, 0, 1], [10, 0, 0, 1]), Route::Drop(Verdict::ArpIgnored)),
        // An announcement.
        (arp(BROADCAST, 1, [172, 31, 0, 1], [172, 31, 0, 1]), Route::Flood),
        // For one host.
        (arp([2, 2, 2, 2, 2, 2], 1, [172, 31, 0, 1], [172, 31, 0, 2]), Route::Peer(uid(2))),
        (arp([2, 2, 2, 2, 2, 2], 2, [172, 31, 0, 1], [172, 31, 0, 3]), Route::Peer(uid(3))),
        (arp([2, 2, 2, 2, 2, 2], 2, [172, 31, 0, 1], [172, 31, 0, 9]), Route::Drop(Verdict::ArpIgnored)),
        (arp(BROADCAST, 8, [172, 31, 0, 1], [172, 31, 0, 2]), Route::Drop(Verdict::ArpIgnored)),
    ];
    for (frame, expected) in cases {
        assert_eq!(table.route(&frame, MAC), expected, "{frame:02x?}");
    }
}

#[test]
fn in_switch_mode_arp_is_the_controllers() {
    let mut table = table();
    table.set_switch_mode(true);
    assert_eq!(table.route(&arp(BROADCAST, 1, [172, 31, 0, 1], [172, 31, 0, 2]), MAC), Route::Unrouted);
}

#[test]
fn addresses_of_the_overlay_are_told_from_those_of_the_underlay() {
    let table = table();
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let inner = [ip("172.31.0.1"), ip("172.31.0.2"), ip("172.31.0.77"), ip6(1).into(), ip6(2).into()];
    assert!(inner.iter().all(|ip| table.is_inner(*ip)), "{inner:?}");
    for outer in ["192.0.2.1", "172.31.1.1", "2001:db8::1"] {
        assert!(!table.is_inner(ip(outer)), "{outer}");
    }
}

#[test]
fn a_router_prefix_makes_a_peer_the_owner_of_a_subnet() {
    let mut table = Table::default();
    table.map_peer(uid(2), [172, 16, 2, 0].into(), ip6(2));
    table.set_local(Local { uid: uid(1), ip4: [172, 16, 1, 1].into(), ip4_prefix: 24, ip6: ip6(1), router_prefix: 24 });
    table.map_peer(uid(3), [172, 16, 3, 0].into(), ip6(3));
    assert_eq!(table.route(&ipv4([172, 16, 1, 1], [172, 16, 2, 77]), MAC), Route::Peer(uid(2)));
    assert_eq!(table.route(&ipv4([172, 16, 1, 1], [172, 16, 3, 77]), MAC), Route::Peer(uid(3)));
    assert_eq!(table.may_be_from(uid(3), &ipv4([172, 16, 3, 8], [172, 16, 1, 1])), Ok(()));
}

#[test]
fn a_peer_speaks_for_its_own_addresses_only() {
    let table = table();
    let cases = [
        (ipv4([172, 31, 0, 2], [172, 31, 0, 1]), Ok(())),
        (ipv6(ip6(2), ip6(1)), Ok(())),
        (arp(MAC, 2, [172, 31, 0, 2], [172, 31, 0, 1]), Ok(())),
        (ipv4([172, 31, 0, 3], [172, 31, 0, 1]), Err(Verdict::WrongSource)),
        (ipv4([172, 31, 0, 1], [172, 31, 0, 1]), Err(Verdict::WrongSource)),
        (ipv4([172, 31, 0, 9], [172, 31, 0, 1]), Err(Verdict::WrongSource)),
        (ipv6(ip6(3), ip6(1)), Err(Verdict::WrongSource)),
        (arp(MAC, 2, [172, 31, 0, 3], [172, 31, 0, 1]), Err(Verdict::WrongSource)),
        (ethernet(MAC, 0x8100), Err(Verdict::UnsupportedFrame)),
        (ethernet(MAC, 0x0800), Err(Verdict::MalformedDatagram)),
    ];
    for (frame, expected) in cases {
        assert_eq!(table.may_be_from(uid(2), &frame), expected, "{frame:02x?}");
    }
}

#[test]
fn in_switch_mode_hosts_behind_a_peer_speak_too_but_nobody_speaks_for_another() {
    let mut table = table();
    table.set_switch_mode(true);
    assert_eq!(table.may_be_from(uid(2), &ipv4([172, 31, 0, 9], [172, 31, 0, 1])), Ok(()));
    for spoofed in [1, 3] {
        let frame = ipv4([172, 31, 0, spoofed], [172, 31, 0, 1]);
        assert_eq!(table.may_be_from(uid(2), &frame), Err(Verdict::WrongSource));
    }
}

#[test]
fn nothing_leaves_before_the_node_has_an_identity_and_damaged_frames_never_do() {
    assert_eq!(Table::default().route(&ipv4([1; 4], [2; 4]), MAC), Route::Drop(Verdict::NoIdentity));
    let table = table();
    let whole = [ipv4([172, 31, 0, 1], [172, 31, 0, 2]), ipv6(ip6(1), ip6(2)), arp(MAC, 2, [1; 4], [2; 4])];
    for frame in whole {
        for len in 0..frame.len() {
            assert_eq!(table.route(&frame[..len], MAC), Route::Drop(Verdict::MalformedFrame), "{len} bytes");
        }
    }
    assert_eq!(table.route(&ethernet(MAC, 0x88cc), MAC), Route::Drop(Verdict::UnsupportedFrame));
}
