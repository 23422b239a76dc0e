//! What outlives an engine by its pins, on interfaces and in a bpffs that go with the test's thread.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use aya::programs::links::FdLink;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tincan_common::kernel_verdict::KernelVerdict as V;

use super::frames::frame4;
use super::interfaces::{enter_fresh_namespace, index_of, ip, nothing_on, programs_on};
use super::ports::{MARK, SOCKET_PORT};
use super::*;
use crate::dataplane::kernel::forwarder::Forwarder;
use crate::dataplane::kernel::pins::{Left, Place};
use crate::dataplane::table::Local;
use crate::link::{LinkId, Path as LinkPath, UnderlayRoute};
use crate::wire::uid::Uid;

/// Stands for the TAP: to the programs any Ethernet device is one.
pub const NEAR: &str = "near";
/// Stands for an uplink.
pub const FAR: &str = "far";
const LEASE: Duration = Duration::from_secs(60);

/// A network namespace with two interfaces, and a bpffs of its own.
pub fn enter_place() -> Place {
    enter_fresh_namespace();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    ip("link add near type veth peer name far");
    let place = Place::of(NEAR).unwrap();
    assert_eq!(place.look(), Left::Nothing);
    place
}

pub fn pinned(place: &Place) -> KernelEngine {
    let mut engine = KernelEngine::load_pinned(place.clone().make().unwrap(), false, Way::Tcx)
        .unwrap_or_else(|error| panic!("{error:?}"));
    engine.attach_tap(index_of(NEAR)).unwrap();
    engine.attach_uplink(index_of(FAR)).unwrap();
    engine
}

/// What a daemon that was killed leaves: nothing is taken back.
pub fn die(mut engine: KernelEngine) {
    engine.set_staying(true);
}

fn settings() -> Settings {
    Settings {
        tap_index: index_of(NEAR),
        tap_mac: TAP_MAC,
        plain_port: OWN_PORT.to_be_bytes(),
        socket_port: SOCKET_PORT.to_be_bytes(),
        mark: MARK,
        router_mask: [255; 4],
        own_ip4: OWN4,
        own_ip6: OWN6,
    }
}

#[test]
fn what_somebody_took_away_is_attached_again_in_order_and_the_rest_stays() {
    let place = enter_place();
    let mut engine = pinned(&place);
    assert_eq!(engine.mend().unwrap(), [""; 0]);
    let before = link_ids(&place);
    // As `bpftool link detach`: the link is gone, the daemon still holds what was its pin.
    let taken = engine.attached.get_mut(&(UPLINK_INGRESS, index_of(FAR))).unwrap().take();
    fs::remove_file(place.layout().join(format!("{UPLINK_INGRESS}-{}", index_of(FAR)))).unwrap();
    drop(taken);
    let start = std::time::Instant::now();
    while programs_on(FAR, TcAttachType::Ingress).contains(&UPLINK_INGRESS.to_owned()) {
        assert!(start.elapsed() < Duration::from_secs(5), "the link did not go");
        std::thread::yield_now();
    }
    assert_eq!(engine.mend().unwrap(), ["uplink_ingress of far"]);
    assert_eq!(programs_on(FAR, TcAttachType::Ingress)[..], [UPLINK_INGRESS, PORT_INGRESS]);
    assert_eq!(engine.mend().unwrap(), [""; 0]);
    let tap_link = |ids: &[(String, u32)]| ids.iter().find(|(name, _)| name.starts_with(TAP_EGRESS)).cloned();
    assert_eq!(tap_link(&link_ids(&place)), tap_link(&before), "the TAP's link was not touched");
    ip("link del far");
    assert_eq!(engine.mend().unwrap(), [""; 0], "an interface that is gone is no loss");
    assert!(engine.attached.is_empty());
}

/// The ids of the pinned links, by name.
fn link_ids(place: &Place) -> Vec<(String, u32)> {
    let directory = place.layout();
    let names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut ids: Vec<_> = names
        .filter(|name| PROGRAMS.iter().any(|(program, _)| name.starts_with(program)))
        .map(|name| {
            let link = FdLink::from(PinnedLink::from_pin(directory.join(&name)).unwrap());
            (name, link.info().unwrap().id())
        })
        .collect();
    ids.sort();
    ids
}

fn program_ids(interface: &str, side: TcAttachType) -> Vec<u32> {
    SchedClassifier::query_tcx(interface, side).unwrap().1.iter().map(ProgramInfo::id).collect()
}

/// The monotonic clock, and some.
fn lease_in(ahead: Duration) -> u64 {
    let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap());
    u64::try_from((now + ahead).as_nanos()).unwrap()
}

#[test]
fn pins_go_with_an_engine_that_ends_in_order() {
    let place = enter_place();
    let engine = pinned(&place);
    assert!(engine.is_pinned() && place.owns_tap());
    drop(engine);
    nothing_on(NEAR, TcAttachType::Egress);
    nothing_on(FAR, TcAttachType::Ingress);
    assert!(!fs::exists("/sys/fs/bpf/tincan").unwrap());
}

#[test]
fn what_a_dead_engine_left_is_gone_on_with_by_the_same_links_entries_and_counters() {
    let place = enter_place();
    let mut first = pinned(&place);
    first.configure(&settings()).unwrap();
    run(&mut first, TAP_EGRESS, &frame4(OWN4, PEER4, 17, &[1; 40]));
    let (links, programs) = (link_ids(&place), program_ids(NEAR, TcAttachType::Egress));
    assert_eq!(links.len(), 4);
    die(first);
    assert_eq!(programs_on(NEAR, TcAttachType::Egress), [TAP_EGRESS]);
    assert_eq!(programs_on(FAR, TcAttachType::Ingress), [UPLINK_INGRESS, PORT_INGRESS]);
    assert_eq!(place.look(), Left::Whole(Box::new(settings())));
    let second = pinned(&place);
    assert_eq!(link_ids(&place), links);
    assert_eq!(programs_on(NEAR, TcAttachType::Egress), [TAP_EGRESS]);
    assert_ne!(program_ids(NEAR, TcAttachType::Egress), programs, "the new daemon's own program");
    assert_eq!(second.settings().unwrap(), settings());
    assert_eq!(verdict(&second, V::UpUnrouted), 1);
    drop(second);
    nothing_on(NEAR, TcAttachType::Egress);
    nothing_on(FAR, TcAttachType::Ingress);
}

#[test]
fn foreign_programs_before_and_behind_stay_with_the_same_ids() {
    let place = enter_place();
    let foreign = || {
        let mut engine = engine();
        engine.attach_tap(index_of(NEAR)).unwrap();
        engine.attach_uplink(index_of(FAR)).unwrap();
        engine
    };
    let sides = [(NEAR, TcAttachType::Egress), (FAR, TcAttachType::Ingress)];
    let ids = || sides.map(|(interface, side)| program_ids(interface, side));
    let _before = foreign();
    let first = pinned(&place);
    let _behind = foreign();
    let seen = ids();
    die(first);
    let second = pinned(&place);
    let foreign = seen.clone().map(|old| {
        let third = old.len() / 3;
        [&old[..third], &old[2 * third..]].concat()
    });
    for ((old, new), foreign) in seen.iter().zip(ids()).zip(&foreign) {
        let third = old.len() / 3;
        assert_eq!([&new[..third], &new[2 * third..]].concat(), *foreign);
        assert!(third > 0 && old[third..2 * third].iter().zip(&new[third..]).all(|(old, new)| old != new));
    }
    drop(second);
    let start = std::time::Instant::now();
    while ids() != foreign {
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", ids());
        std::thread::yield_now();
    }
}

#[test]
fn a_pinned_link_whose_interface_is_gone_is_replaced_by_one_on_the_new_interface() {
    let place = enter_place();
    ip("link add spare type veth peer name far1");
    let mut first = pinned(&place);
    let gone = index_of("far1");
    first.attach_uplink(gone).unwrap();
    die(first);
    ip("link del far1");
    let second = pinned(&place);
    assert!(!fs::exists(place.layout().join(format!("{UPLINK_INGRESS}-{gone}"))).unwrap());
    assert_eq!(programs_on(FAR, TcAttachType::Ingress), [UPLINK_INGRESS, PORT_INGRESS]);
    drop(second);
}

#[test]
fn an_uplink_that_lost_one_of_its_programs_gets_all_of_them_in_their_order() {
    for lost in &UPLINK_PROGRAMS[1..] {
        let place = enter_place();
        die(pinned(&place));
        fs::remove_file(place.layout().join(format!("{lost}-{}", index_of(FAR)))).unwrap();
        let second = pinned(&place);
        let start = std::time::Instant::now();
        while programs_on(FAR, TcAttachType::Ingress) != [UPLINK_INGRESS, PORT_INGRESS] {
            assert!(start.elapsed() < Duration::from_secs(5), "{lost}: {:?}", programs_on(FAR, TcAttachType::Ingress));
            std::thread::yield_now();
        }
        drop(second);
    }
}

#[test]
fn what_does_not_fit_is_named_and_can_be_removed() {
    type Damage = fn(&Place);
    let damages: [(&str, Damage); 6] = [
        ("layout v0", |place| fs::rename(place.layout(), place.path().join("v0")).unwrap()),
        ("layout v999", |place| fs::create_dir(place.path().join("v999")).unwrap()),
        ("map flows", |place| fs::remove_file(place.layout().join("flows")).unwrap()),
        ("map lease has another shape", |place| {
            fs::remove_file(place.layout().join("lease")).unwrap();
            MapData::from_pin(place.layout().join("routes4")).unwrap().pin(place.layout().join("lease")).unwrap();
        }),
        ("TAP near is gone", |place| fs::remove_file(place.layout().join(TAP_EGRESS)).unwrap()),
        ("TAP near is gone", |_| {
            ip("link del near");
            ip("link add near type veth peer name far");
        }),
    ];
    let place = enter_place();
    for (expected, damage) in damages {
        die(pinned(&place));
        damage(&place);
        let Left::Unfit(reason) = place.look() else { panic!("{expected}: {:?}", place.look()) };
        assert!(reason.contains(expected), "{reason}");
        place.remove().unwrap();
        assert_eq!(place.look(), Left::Nothing, "{expected}");
        nothing_on(NEAR, TcAttachType::Egress);
        nothing_on(FAR, TcAttachType::Ingress);
    }
}

#[test]
fn without_bpffs_there_is_no_place_and_the_reason_says_where_to_mount_it() {
    enter_fresh_namespace();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("none"), "/sys/fs/bpf", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let error = Place::of(NEAR).unwrap_err().to_string();
    assert!(error.contains("no bpffs at /sys/fs/bpf"), "{error}");
}

fn local() -> Local {
    Local { uid: uid(1), ip4: OWN4.into(), ip4_prefix: 24, ip6: OWN6.into(), router_prefix: 32 }
}

fn uid(number: u8) -> Uid {
    format!("{number:02x}").repeat(20).parse().unwrap()
}

/// A forwarder that has not linked yet, over what is pinned.
fn forwarder(place: &Place, plain_port: u16) -> Forwarder {
    let mut forwarder = Forwarder::new(pinned(place), index_of(NEAR), TAP_MAC, LEASE).unwrap();
    forwarder.set_ports(plain_port, SOCKET_PORT, MARK).unwrap();
    forwarder
}

/// Peer `number` has the addresses that end so, and asked for tag 1000 + `number`.
fn link(forwarder: &mut Forwarder, link: LinkId, number: u8, receive_tag: u32) {
    let [ip4, ip6] = [Ipv4Addr::new(172, 16, 0, number).into(), peer6(number).into()];
    let (std::net::IpAddr::V4(ip4), std::net::IpAddr::V6(ip6)) = (ip4, ip6) else { panic!("two families") };
    forwarder.map_peer(uid(number), ip4, ip6);
    forwarder.add_link(link, uid(number), receive_tag);
    forwarder.set_send_tag(link, 1000 + u32::from(number));
    let remote = std::net::SocketAddr::new(Ipv4Addr::new(192, 0, 2, number).into(), PEER_PORT);
    forwarder.set_path(link, LinkPath { remote, source: None, relay: None });
    forwarder.set_forwarding(link, true);
    settle(forwarder);
}

fn peer6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd50, 0, 0, 0, 0, 0, 0, number.into())
}

fn settle(forwarder: &mut Forwarder) {
    for link in forwarder.take_due() {
        let (interface, source) = (index_of(FAR), Ipv4Addr::new(192, 0, 2, 1).into());
        forwarder.settle(link, Ok(UnderlayRoute { interface, is_ethernet: true, source, mtu: 1500 }));
    }
}

/// A place with the entries of a dead daemon's links to peers 2, 3 and 4, tags 12, 13 and 14.
fn place_with_three_links() -> Place {
    let place = enter_place();
    let mut forwarder = forwarder(&place, OWN_PORT);
    forwarder.set_local(local()).unwrap();
    for number in 2..5 {
        link(&mut forwarder, LinkId(number.into()), number, 10 + u32::from(number));
        assert!(forwarder.is_installed(LinkId(number.into())));
    }
    assert!(forwarder.leave());
    place
}

/// Flows, IPv4 routes, IPv6 routes in the kernel now.
fn entries(place: &Place) -> [usize; 3] {
    let count = |name: &str| {
        let map = aya::maps::Map::from_map_data(MapData::from_pin(place.layout().join(name)).unwrap()).unwrap();
        match name {
            FLOWS => HashMap::<_, [u8; Flow::SIZE], [u8; Receiver::SIZE]>::try_from(map).unwrap().keys().count(),
            ROUTES4 => HashMap::<_, [u8; 4], [u8; Sender::SIZE]>::try_from(map).unwrap().keys().count(),
            _ => HashMap::<_, Address, [u8; Sender::SIZE]>::try_from(map).unwrap().keys().count(),
        }
    };
    [FLOWS, ROUTES4, ROUTES6].map(count)
}

#[test]
fn entries_of_the_daemon_before_are_listed_and_stay() {
    let place = place_with_three_links();
    let mut forwarder = forwarder(&place, OWN_PORT);
    forwarder.set_local(local()).unwrap();
    let mut listed: Vec<_> = forwarder
        .adopted_flows()
        .iter()
        .map(|found| (found.receive_tag, found.send_tag, found.ip4, Ipv6Addr::from(found.ip6)))
        .collect();
    listed.sort_unstable();
    let expected = [2_u8, 3, 4].map(|number| {
        let tag = 1000 + u32::from(number);
        (10 + u32::from(number), Some(tag), [172, 16, 0, number], peer6(number))
    });
    assert_eq!(listed, expected);
    forwarder.renew_lease().unwrap();
    assert_eq!(entries(&place), [3; 3]);
    forwarder.forget_unclaimed();
    assert_eq!((entries(&place), forwarder.adopted_flows()), ([0; 3], vec![]));
}

#[test]
fn a_link_with_the_same_tag_gets_the_slot_and_replaces_its_entries() {
    let place = place_with_three_links();
    let mut forwarder = forwarder(&place, OWN_PORT);
    forwarder.set_local(local()).unwrap();
    let slot = forwarder.adopted_flows().iter().find(|found| found.receive_tag == 13).unwrap().slot;
    link(&mut forwarder, LinkId(0), 3, 13);
    assert!(forwarder.is_installed(LinkId(0)));
    assert_eq!((entries(&place), forwarder.adopted_flows().len()), ([3; 3], 2));
    assert_eq!(forwarder.slot(LinkId(0)), Some(slot));
    forwarder.remove_link(LinkId(0));
    assert_eq!(entries(&place), [2; 3]);
}

#[test]
fn a_new_link_to_the_same_peer_replaces_its_entries_and_leaves_their_slot_alone_until_then() {
    let place = place_with_three_links();
    let mut forwarder = forwarder(&place, OWN_PORT);
    forwarder.set_local(local()).unwrap();
    let adopted: Vec<u32> = forwarder.adopted_flows().iter().map(|found| found.slot).collect();
    link(&mut forwarder, LinkId(0), 4, 777);
    assert!(!adopted.contains(&forwarder.slot(LinkId(0)).unwrap()));
    assert_eq!((entries(&place), forwarder.adopted_flows().len()), ([3; 3], 2));
    link(&mut forwarder, LinkId(1), 9, 778);
    assert_eq!((entries(&place), forwarder.adopted_flows().len()), ([4; 3], 2));
}

#[test]
fn a_link_that_stops_forwarding_takes_what_it_claimed_along() {
    let place = place_with_three_links();
    let mut forwarder = forwarder(&place, OWN_PORT);
    forwarder.set_local(local()).unwrap();
    forwarder.add_link(LinkId(0), uid(2), 12);
    assert_eq!(entries(&place), [3; 3], "the path is not known yet: what is there goes on");
    forwarder.set_forwarding(LinkId(0), false);
    assert_eq!(entries(&place), [2; 3]);
    forwarder.add_link(LinkId(1), uid(3), 13);
    forwarder.remove_link(LinkId(1));
    assert_eq!(entries(&place), [1; 3]);
}

#[test]
fn another_port_another_node_and_an_ended_lease_are_no_reason_to_go_on() {
    let place = place_with_three_links();
    die_with(forwarder(&place, OWN_PORT + 1));
    assert_eq!(entries(&place), [0; 3], "another port");

    let place = place_with_three_links();
    let mut other = forwarder(&place, OWN_PORT);
    other.set_local(Local { ip4: Ipv4Addr::new(172, 16, 0, 77), ..local() }).unwrap();
    assert_eq!(entries(&place), [0; 3], "another node");

    let place = place_with_three_links();
    let mut engine = pinned(&place);
    engine.set_lease_end(lease_in(Duration::ZERO)).unwrap();
    die(engine);
    die_with(forwarder(&place, OWN_PORT));
    assert_eq!(entries(&place), [0; 3], "an ended lease");
}

fn die_with(mut forwarder: Forwarder) {
    assert!(forwarder.leave());
}

#[test]
fn the_lease_of_the_daemon_before_runs_on_until_nothing_of_it_is_left() {
    let lease_end = |place: &Place| {
        let map = aya::maps::Map::from_map_data(MapData::from_pin(place.layout().join("lease")).unwrap()).unwrap();
        Array::<_, u64>::try_from(map).unwrap().get(&0, 0).unwrap()
    };
    let place = place_with_three_links();
    let mut engine = pinned(&place);
    let before = lease_in(Duration::from_secs(30));
    engine.set_lease_end(before).unwrap();
    die(engine);
    let mut forwarder = forwarder(&place, OWN_PORT);
    forwarder.set_local(local()).unwrap();
    forwarder.renew_lease().unwrap();
    assert_eq!(lease_end(&place), before, "two daemons that crash must not keep entries that nobody claims");
    for number in 2..5 {
        link(&mut forwarder, LinkId(number.into()), number, 10 + u32::from(number));
    }
    forwarder.renew_lease().unwrap();
    assert!(lease_end(&place) > before && entries(&place) == [3; 3]);

    // A new daemon comes late: what nobody claims by then goes, and the lease is its own.
    die_with(forwarder);
    let mut engine = pinned(&place);
    engine.set_lease_end(lease_in(Duration::from_secs(1))).unwrap();
    die(engine);
    let forwarder = self::forwarder(&place, OWN_PORT);
    assert!(lease_end(&place) > before && entries(&place) == [0; 3]);
    drop(forwarder);
}
