//! Whole networks of nodes in virtual time: orders of calls, outages, wrong certificates, many peers.

#![expect(clippy::unwrap_used, reason = "the network's parts fail the test by panicking")]

mod world;

use std::time::Duration;

use tincan::link::Security;
use tincan::wire::notification::LinkStatus;
use tincan::wire::request::Request;
use world::{World, fingerprint_of};

const SECOND: Duration = Duration::from_secs(1);

/// Both sides are told to link within half a second of each other, `con_resp` arrives in any order, `copies` times.
fn linked_pair(seed: u64, security: Security, copies: usize) -> World {
    let mut world = World::new(seed, 2, security);
    world.copies = copies;
    for (from, to) in [(0, 1), (1, 0)] {
        let request = world.create_link(from, to, "");
        for _ in 0..copies {
            let delay = world.random_delay(SECOND / 2);
            world.call_after(delay, from, request.clone());
        }
    }
    world.run_for(2 * SECOND);
    world
}

#[test]
fn any_order_and_number_of_calls_makes_exactly_one_online_link() {
    for seed in 1..=500 {
        for security in [Security::Dtls, Security::None] {
            let mut world = linked_pair(seed, security, 1 + usize::try_from(seed % 3).unwrap());
            assert!(world.linked(0, 1), "seed {seed} {security:?}\n{}", world.flow_text());
        }
    }
}

#[test]
fn one_side_alone_may_begin_and_the_other_follows_its_con_resp() {
    for seed in 1..=100 {
        let mut world = World::new(seed, 2, Security::Dtls);
        let request = world.create_link(0, 1, "");
        world.call_after(Duration::ZERO, 0, request);
        world.run_for(2 * SECOND);
        assert!(world.linked(0, 1), "{}", world.flow_text());
    }
}

#[test]
fn a_status_goes_from_unknown_to_online_and_through_offline_back() {
    let mut world = linked_pair(7, Security::Dtls, 1);
    world.set_unplugged(1, true);
    world.run_for(20 * SECOND);
    assert!(!world.online(0, 1));
    world.set_unplugged(1, false);
    world.run_for(15 * SECOND);
    assert!(world.linked(0, 1), "{}", world.flow_text());
    let seen: Vec<LinkStatus> = world.hosts[0].statuses.iter().map(|(_, status)| *status).collect();
    assert_eq!(seen, [LinkStatus::Unknown, LinkStatus::Online, LinkStatus::Offline, LinkStatus::Online]);
}

#[test]
fn a_pulled_cable_heals_within_fifteen_seconds_whatever_the_length_of_the_outage() {
    for seed in 1..=50 {
        for outage in [2, 5, 8, 14, 60, 600] {
            let mut world = linked_pair(seed, Security::Dtls, 1);
            assert!(world.linked(0, 1));
            world.set_unplugged(0, true);
            world.run_for(outage * SECOND);
            world.set_unplugged(0, false);
            world.run_for(15 * SECOND);
            assert!(world.linked(0, 1), "seed {seed}, {outage} s\n{}", world.flow_text());
        }
    }
}

#[test]
fn a_wrong_certificate_never_forwards_a_frame() {
    for wrong in [0, 1] {
        let mut world = World::new(3, 2, Security::Dtls);
        for (from, to) in [(0, 1), (1, 0)] {
            let request = world.create_link(from, to, "");
            world.call_after(Duration::ZERO, from, request);
        }
        world.hosts[wrong].fingerprint = fingerprint_of(9);
        world.run_for(60 * SECOND);
        assert!(!world.online(0, 1) && !world.online(1, 0), "{}", world.flow_text());
        assert!(world.hosts.iter().all(|host| host.statuses.iter().all(|(_, status)| *status != LinkStatus::Online)));
    }
}

#[test]
fn a_link_that_is_secured_on_one_side_only_stays_down() {
    let mut world = World::new(5, 2, Security::Dtls);
    let secured = world.create_link(0, 1, "");
    world.security = Security::None;
    let plain = world.create_link(1, 0, "");
    world.call_after(Duration::ZERO, 0, secured);
    world.call_after(Duration::ZERO, 1, plain);
    world.run_for(60 * SECOND);
    assert!(!world.online(0, 1) && !world.online(1, 0), "{}", world.flow_text());
}

#[test]
fn trimmed_links_come_back_when_both_sides_create_them_again() {
    let mut world = linked_pair(11, Security::Dtls, 2);
    for _ in 0..20 {
        for (from, to) in [(0, 1), (1, 0)] {
            let uid = world.hosts[to].uid;
            world.call_after(Duration::ZERO, from, Request::TrimLink { uid });
        }
        world.run_for(SECOND);
        assert!(!world.online(0, 1) && !world.online(1, 0));
        for (from, to) in [(0, 1), (1, 0)] {
            let request = world.create_link(from, to, "");
            world.call_after(Duration::ZERO, from, request);
        }
        world.run_for(2 * SECOND);
        assert!(world.linked(0, 1), "{}", world.flow_text());
    }
}

#[test]
fn a_peer_that_restarts_with_a_new_certificate_links_again_after_trim_and_create() {
    let mut world = linked_pair(13, Security::Dtls, 1);
    world.kill(1);
    world.run_for(15 * SECOND);
    assert!(!world.online(0, 1), "offline within 15 s\n{}", world.flow_text());
    world.restart(1, fingerprint_of(77));
    let uid = world.hosts[1].uid;
    world.call_after(Duration::ZERO, 0, Request::TrimLink { uid });
    for (from, to) in [(0, 1), (1, 0)] {
        let request = world.create_link(from, to, "");
        world.call_after(SECOND, from, request);
    }
    world.run_for(4 * SECOND);
    assert!(world.linked(0, 1), "{}", world.flow_text());
}

#[test]
fn both_ends_of_a_plain_link_may_be_killed_and_resumed_again_and_again() {
    for seed in 1..=50 {
        let mut world = linked_pair(seed, Security::None, 1);
        for killed in [&[0][..], &[1], &[0, 1], &[1, 0]] {
            for host in killed {
                world.kill(*host);
            }
            world.run_for(SECOND);
            for host in killed {
                world.resume(*host);
            }
            assert!(world.online(killed[0], 1 - killed[0]), "seed {seed}, at once\n{}", world.flow_text());
            world.run_for(15 * SECOND);
            assert!(world.linked(0, 1), "seed {seed}, {killed:?}\n{}", world.flow_text());
        }
    }
}

#[test]
fn a_plain_link_heals_however_long_its_daemon_was_gone_and_whatever_its_peer_tried_meanwhile() {
    for seed in 1..=50 {
        for gone in [2, 6, 9, 14, 31, 59] {
            let mut world = linked_pair(seed, Security::None, 1);
            world.set_unplugged(0, true);
            world.run_for(20 * SECOND);
            world.set_unplugged(0, false);
            world.run_for(20 * SECOND);
            world.kill(1);
            world.run_for(gone * SECOND);
            world.resume(1);
            world.run_for(15 * SECOND);
            assert!(world.linked(0, 1), "seed {seed}, {gone} s\n{}", world.flow_text());
        }
    }
}

#[test]
fn a_ring_with_chords_of_three_hundred_nodes_comes_online() {
    let nodes = 300;
    let mut world = World::new(17, nodes, Security::Dtls);
    let pairs: Vec<(usize, usize)> =
        (0..nodes).flat_map(|host| [1, 7].map(|step| (host, (host + step) % nodes))).collect();
    for (from, to) in &pairs {
        let request = world.create_link(*from, *to, "");
        let delay = world.random_delay(5 * SECOND);
        world.call_after(delay, *from, request);
    }
    world.run_for(10 * SECOND);
    for (from, to) in pairs {
        assert!(world.linked(from, to), "{from} {to}");
    }
}
